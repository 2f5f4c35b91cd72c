//! Tunnels: the caller joined with the upstream after a protocol switch, until both are done or policy no longer allows it.

use weft_core::failure::Failure;

use super::{authorize, exchange::Exchange};
use crate::{
    http::upgrade::Switched,
    stream::{self, Duplex},
    tcp::{Relay, RelayError, Relayed},
};

/// Relays until both directions have ended, the connection is cut, or the request is no longer allowed. All but the first break
/// both sides off.
pub(crate) async fn join(exchange: Box<Exchange>, upstream: Switched, mut caller: Box<dyn Duplex>) {
    let Some(mut upstream) = upstream.into_stream() else {
        stream::abort(&mut caller).await;
        return exchange.tunnelled(Relayed::default(), Some(Failure::reset("connection closed")));
    };
    let idle = exchange.tunnel_idle();
    let _tunnel = exchange.connection.tunnel();
    let mut relay = Relay::new(caller, &mut upstream.stream);
    let failure = tokio::select! {
        result = relay.run(idle, exchange.connection.moved()) => result.err().map(RelayError::into_failure),
        failure = exchange.connection.cut() => Some(failure),
        failure = authorize::request_revoked(&exchange.worker, &exchange.connection, &exchange.head) => Some(failure),
    };
    let relayed = relay.relayed();
    if failure.is_some() {
        relay.abort().await;
    }
    drop(relay);
    exchange.tunnelled(relayed, failure);
}
