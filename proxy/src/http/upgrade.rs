//! Protocol switches: an HTTP/1 upgrade on one side, an extended CONNECT (RFC 8441) or another upgrade on the other, and the
//! bytes between them.

use std::time::Duration;

use http::{
    Extensions, HeaderValue, Request, Response, StatusCode,
    header::{CONNECTION, UPGRADE},
};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;

use super::{body::Body, exchange::Exchange, hop};
use crate::tcp;

/// A tunnel with no byte either way is closed after this.
const IDLE: Duration = Duration::from_secs(3600);

/// Answers a caller whose protocol switch the other side has accepted, and joins the two once both are done with HTTP.
/// `extensions`: the caller's request's; `protocol`: what it asked for. `http2`: the caller spoke HTTP/2, so that the answer is a 200 with a mark.
pub(crate) fn accept(
    exchange: Box<Exchange>,
    extensions: Extensions,
    mut answer: Response<Body>,
    protocol: Option<HeaderValue>,
    http2: bool,
) -> Response<Body> {
    let mut request = Request::new(());
    *request.extensions_mut() = extensions;
    join(exchange, hyper::upgrade::on(request), hyper::upgrade::on(&mut answer));
    let mut response = answer.map(|_body| Body::Empty);
    response.extensions_mut().clear();
    let fields = response.headers_mut();
    if http2 {
        fields.remove(CONNECTION);
        let chosen = fields.remove(UPGRADE).or(protocol);
        fields.insert(hop::UPGRADED, chosen.unwrap_or(HeaderValue::from_static("1")));
        *response.status_mut() = StatusCode::OK;
    } else {
        let chosen = fields.remove(hop::UPGRADED).or_else(|| fields.get(UPGRADE).cloned()).or(protocol);
        fields.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        if let Some(chosen) = chosen {
            fields.insert(UPGRADE, chosen);
        }
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    }
    response
}

/// Whether the other side has switched: 101, or over the hop 200 with the mark.
pub(crate) fn was_accepted(answer: &Response<Body>) -> bool {
    answer.status() == StatusCode::SWITCHING_PROTOCOLS
        || (answer.status() == StatusCode::OK && answer.headers().contains_key(hop::UPGRADED))
}

fn join(exchange: Box<Exchange>, caller: OnUpgrade, callee: OnUpgrade) {
    tokio::spawn(async move {
        let both: Result<(Upgraded, Upgraded), hyper::Error> = async { Ok((caller.await?, callee.await?)) }.await;
        match both {
            Ok((caller, callee)) => {
                let (relayed, _result) = tcp::relay(TokioIo::new(caller), TokioIo::new(callee), IDLE).await;
                exchange.tunnelled(relayed.sent, relayed.received);
            }
            Err(error) => tracing::debug!(%error, "a protocol switch was not completed"),
        }
    });
}
