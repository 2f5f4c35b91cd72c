//! A gateway at the edge: connections from outside on ports of its own, routed to services of the mesh.
//! A request goes the way of `outbound`, with the route table of the port it came in on.

use std::sync::Arc;

use bytes::BytesMut;
use tokio::net::TcpStream;
use weft_core::failure::Failure;

use crate::{
    inbound::refuse,
    listener::{
        accept::Accepted,
        detect::{PATIENCE, Speaks, detect},
    },
    outbound::{Serves, http},
    stream::Stream,
    telemetry::Direction,
    upstream::pool::Version,
    worker::Worker,
};

/// Takes one connection to a port of the gateway.
pub(crate) async fn connection(worker: Arc<Worker>, mut stream: TcpStream, accepted: Accepted, port: u16) {
    let Accepted { peer, destination, .. } = accepted;
    let mut bytes = BytesMut::new();
    let version = match detect(&mut stream, &mut bytes, PATIENCE).await {
        Ok(Speaks::Http1) => Version::Http1,
        Ok(Speaks::Http2) => Version::Http2,
        Ok(Speaks::Closed | Speaks::Silent) => return,
        Ok(Speaks::MeshTls | Speaks::ApplicationTls | Speaks::Unknown) => {
            return refuse(&worker, Direction::Gateway, peer, destination, None, "", &Failure::ProtocolRefused);
        }
        Err(error) => return tracing::debug!(%error, %peer, "connection broke"),
    };
    http(&worker, Stream::tcp(stream, bytes.freeze()), accepted, Serves::Gateway(port), version);
}
