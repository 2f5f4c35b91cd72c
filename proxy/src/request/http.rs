//! An HTTP connection from a caller: entered in the table of connections, and served in a task of its own, which keeps nothing
//! of the prelude.

use std::sync::Arc;

use futures_util::FutureExt;

use crate::{
    connection::Connection,
    http::serve::{self, Handler},
    listener::socket::Accepted,
    stream::Stream,
    telemetry::Protocol,
    tls::verify::Peer,
    upstream::pool::Version,
    worker::Worker,
};

/// Starts the task. `verified`: the caller, where it came by mesh TLS. `handler`: made for the connection's entry.
pub(crate) fn serve<H: Handler>(
    worker: &Arc<Worker>,
    stream: Stream,
    accepted: Accepted,
    verified: Option<Peer>,
    version: Version,
    handler: impl FnOnce(Arc<Connection>) -> H,
) {
    let Accepted { flow, since, reservation } = accepted;
    let protocol = match version {
        Version::Http1 => Protocol::Http1,
        Version::Http2 => Protocol::Http2,
    };
    let valid_for = verified.as_ref().map(Peer::valid_for);
    let entry = worker.connections.open(flow, verified.map(|verified| verified.identity), protocol);
    let connection = entry.connection.clone();
    let guards = (worker.metrics.connection(flow.direction), entry, reservation);
    connection.http_begins(since);
    if let Some(valid_for) = valid_for {
        connection.valid_for(valid_for);
    }
    let handler = Arc::new(handler(connection.clone()));
    let metrics = worker.metrics.clone();
    match version {
        Version::Http1 => {
            worker.spawn(serve::http1(stream, connection, handler, metrics, worker.muxes.stall).map(|()| drop(guards)));
        }
        Version::Http2 => {
            let (muxes, streams) = (worker.muxes.clone(), worker.shared.max_streams);
            worker.spawn(serve::http2(stream, connection, handler, metrics, muxes, streams).map(|()| drop(guards)));
        }
    }
}
