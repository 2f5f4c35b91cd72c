//! Tunnels: the caller joined with the upstream after a protocol switch, until both are done or policy no longer allows it.

use std::time::Duration;

use weft_core::failure::Failure;

use super::{authorize, exchange::Exchange};
use crate::{http::upgrade::Switched, stream::Duplex, tcp};

/// A tunnel is closed after this time without a byte in either direction.
const IDLE: Duration = Duration::from_secs(3600);

/// Relays until both directions have ended, the connection is cut, or the request is no longer allowed.
pub(crate) async fn join(exchange: Box<Exchange>, upstream: Switched, caller: Box<dyn Duplex>) {
    // A connection that is gone already: the exchange ends with it, as one whose caller went away.
    let Some(upstream) = upstream.into_stream() else { return };
    let relayed = tokio::select! {
        (relayed, _) = tcp::relay(caller, upstream, IDLE) => Ok(relayed),
        () = exchange.connection.cut() => Err(Failure::IdleTimeout),
        failure = authorize::request_revoked(&exchange.worker, &exchange.connection, &exchange.head) => Err(failure),
    };
    match relayed {
        Ok(relayed) => exchange.tunnelled(relayed.sent, relayed.received),
        Err(failure) => exchange.refuse(failure),
    }
}
