//! Protocol switches: an HTTP/1 upgrade on one side, an extended CONNECT (RFC 8441) or another upgrade on the other, and the
//! bytes between them.

use std::time::Duration;

use weft_core::failure::Failure;
use weft_http::{fields::Name, head::Response};

use super::{
    exchange::Exchange,
    hop, http1,
    http2::{StreamRef, Tunnel},
};
use crate::{inbound, stream::End, tcp};

/// A tunnel with no byte either way is closed after this.
const IDLE: Duration = Duration::from_secs(3600);

/// A switch that the other side has accepted.
pub(crate) struct Switch {
    pub(crate) exchange: Box<Exchange>,
    pub(crate) far: Far,
    /// What it switched to.
    pub(crate) protocol: Vec<u8>,
}

impl std::fmt::Debug for Switch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Switch").field("far", &self.far).finish_non_exhaustive()
    }
}

/// The connection that was switched.
#[derive(Debug)]
pub(crate) enum Far {
    Http1(http1::Shared),
    Http2(StreamRef),
}

/// Whether the other side has switched: 101, or over the hop 200 with the mark.
pub(crate) fn was_accepted(answer: &Response) -> bool {
    answer.status == 101 || (answer.status == 200 && hop::reserved(&answer.fields, hop::UPGRADED).is_some())
}

/// Makes the answer that tells a caller of a switch: the fields of the other side's, without what belongs to its connection.
/// Returns what was switched to.
pub(crate) fn head(answer: &mut Response, asked: Option<&[u8]>, http2: bool) -> Vec<u8> {
    let chosen = hop::reserved(&answer.fields, hop::UPGRADED).or_else(|| answer.fields.first(Name::Upgrade)).or(asked);
    let chosen = chosen.unwrap_or(b"1").to_vec();
    for name in [Name::Reserved, Name::Connection, Name::Upgrade] {
        answer.fields.remove(name);
    }
    if http2 {
        answer.status = 200;
        answer.fields.push(hop::UPGRADED.as_bytes(), &chosen);
    } else {
        answer.status = 101;
    }
    chosen
}

/// Joins the caller with the other side, until both are done, or the request would no longer be allowed.
pub(crate) async fn join(switch: Box<Switch>, caller: impl End) {
    let Switch { exchange, far, .. } = *switch;
    let relay = async {
        match far {
            Far::Http1(io) => {
                let stream = io.lock().take_stream();
                let stream = stream?;
                Some(tcp::relay(caller, stream, IDLE).await.0)
            }
            Far::Http2(stream) => Some(tcp::relay(caller, Tunnel::new(stream), IDLE).await.0),
        }
    };
    let relayed = tokio::select! {
        relayed = relay => Ok(relayed),
        () = exchange.connection.cut() => Err(Failure::IdleTimeout),
        failure = inbound::revoked_request(&exchange.worker, &exchange.connection, &exchange.head) => Err(failure),
    };
    match relayed {
        Ok(Some(relayed)) => exchange.tunnelled(relayed.sent, relayed.received),
        Ok(None) => {}
        Err(failure) => exchange.refuse(failure),
    }
}
