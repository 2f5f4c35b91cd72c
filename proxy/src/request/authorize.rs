//! The authorize phase at the workload: whether policy allows a request or an opaque connection, now and while it lasts.
//! The decisions themselves are those of `live::authorize`.

use weft_core::{failure::Failure, identity::Identity};

pub(crate) use crate::live::authorize::connection;
use crate::{
    connection::Connection,
    http::{head::Head, path},
    live::{
        Snapshot,
        authorize::{self, Operation},
    },
    telemetry::Direction,
    worker::Worker,
};

/// Whether policy allows a request.
pub(crate) fn request(live: &Snapshot, port: u16, identity: Option<&Identity>, head: &Head) -> Result<(), Failure> {
    let operation = Operation { method: head.request.method(), path: head.request.path() };
    authorize::request(live, port, identity, operation, path::readings)
}

/// Ends when a new configuration no longer allows this opaque connection. A connection outlives a configuration without any
/// inbound listener, as before the first one.
pub(crate) async fn connection_revoked(worker: &Worker, port: u16, identity: Option<Identity>) -> Failure {
    let live = &worker.shared.live;
    loop {
        let swapped = live.swapped.notified();
        let snapshot = live.load_full();
        if snapshot.inbound.is_some()
            && let Err(failure) = connection(&snapshot, port, identity.as_ref())
        {
            return failure;
        }
        swapped.await;
    }
}

/// Ends when a new configuration no longer allows a request that has become a tunnel.
pub(crate) async fn request_revoked(worker: &Worker, connection: &Connection, head: &Head) -> Failure {
    if connection.flow.direction != Direction::Inbound {
        return std::future::pending().await;
    }
    let live = &worker.shared.live;
    let port = connection.flow.destination.port();
    loop {
        let swapped = live.swapped.notified();
        if let Err(failure) = request(&live.load(), port, connection.identity.as_ref(), head) {
            return failure;
        }
        swapped.await;
    }
}
