//! A gateway at the edge: connections from outside on ports of its own, routed to services of the mesh.
//! A request goes the way of `outbound`, with the route table of the port it came in on.

use std::{net::SocketAddr, sync::Arc};

use bytes::BytesMut;
use tokio::{net::TcpStream, time::Instant};
use weft_core::failure::Failure;

use crate::{
    inbound::refuse,
    listener::detect::{PATIENCE, Speaks, detect},
    outbound::{Serves, http},
    stream::Stream,
    telemetry::Direction,
    upstream::pool::Version,
    worker::Worker,
};

/// Takes one connection to a port of the gateway.
pub(crate) async fn connection(
    worker: Arc<Worker>,
    mut stream: TcpStream,
    peer: SocketAddr,
    local: SocketAddr,
    port: u16,
) {
    let accepted = Instant::now();
    let mut bytes = BytesMut::new();
    let version = match detect(&mut stream, &mut bytes, PATIENCE).await {
        Ok(Speaks::Http1) => Version::Http1,
        Ok(Speaks::Http2) => Version::Http2,
        Ok(Speaks::Closed | Speaks::Silent) => return,
        Ok(Speaks::MeshTls | Speaks::ApplicationTls | Speaks::Unknown) => {
            return refuse(&worker, Direction::Gateway, peer, local, None, "", &Failure::ProtocolRefused);
        }
        Err(error) => return tracing::debug!(%error, %peer, "connection broke"),
    };
    http(&worker, Stream::tcp(stream, bytes.freeze()), [peer, local], Serves::Gateway(port), version, accepted);
}
