//! The one place that turns a failure into an answer: a status, the flag in `weft-error`, a line of text; for gRPC callers
//! a status in the way of gRPC (gRPC over HTTP/2, "Responses", Trailers-Only).

use std::{fmt, net::SocketAddr};

use bytes::Bytes;
use weft_core::failure::Failure;
use weft_http::{
    fields::Fields,
    head::{Response, Version},
};

use super::{answer::Answer, body::Body, hop::ERROR};

/// What a failed request was sent to, as its caller is told: ` (service shop/order:80, endpoint 10.0.0.7:8080)`. Empty where
/// nothing was chosen, and wherever the caller may be outside the mesh: names and addresses of the inside are not for it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Called<'a> {
    /// The cluster that the route chose.
    pub(crate) cluster: Option<&'a str>,
    /// The endpoint tried last.
    pub(crate) endpoint: Option<SocketAddr>,
}

impl fmt::Display for Called<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.cluster, self.endpoint) {
            (None, _) => Ok(()),
            (Some(cluster), None) => write!(f, " (service {cluster})"),
            (Some(cluster), Some(endpoint)) => write!(f, " (service {cluster}, endpoint {endpoint})"),
        }
    }
}

/// The answer that a route itself gives. Not a failure: it carries no flag. A gRPC caller gets the status that gRPC clients map
/// the HTTP status to.
pub(crate) fn configured(status: u16, grpc: bool) -> Answer {
    let mut fields = Fields::with_capacity(64, 3);
    if grpc {
        fields.push(b"content-type", b"application/grpc");
        fields.push(b"grpc-status", grpc_status(status).as_bytes());
        return Answer::new(Response::new(Version::Http11, 200, fields), Body::Empty);
    }
    // RFC 9110 §8.6: none on 1xx and 204; on 304 it would speak of another answer.
    if !matches!(status, 100..=199 | 204 | 304) {
        fields.push(b"content-length", b"0");
    }
    Answer::new(Response::new(Version::Http11, status, fields), Body::Empty)
}

/// The answer to a request that failed before it was sent anywhere.
pub(crate) fn to(failure: &Failure, grpc: bool) -> Answer {
    at(failure, grpc, Called::default())
}

/// The answer to a request that failed.
pub(crate) fn at(failure: &Failure, grpc: bool, called: Called<'_>) -> Answer {
    let reply = failure.reply();
    let mut fields = Fields::with_capacity(256, 6);
    if grpc {
        fields.push(b"content-type", b"application/grpc");
        push_grpc(failure, called, &mut fields);
        return Answer::new(Response::new(Version::Http11, 200, fields), Body::Empty);
    }
    let text = Bytes::from(format!("weft: {}{called} ({})\n", failure.report(), reply.flag));
    fields.push(b"content-type", b"text/plain; charset=utf-8");
    fields.push(b"content-length", text.len().to_string().as_bytes());
    fields.push(ERROR.as_bytes(), reply.flag.as_bytes());
    Answer::new(Response::new(Version::Http11, reply.status, fields), Body::Full(text))
}

/// The trailers of an answer to a gRPC caller that broke off.
pub(crate) fn trailers(failure: &Failure, called: Called<'_>) -> Fields {
    let mut fields = Fields::with_capacity(128, 3);
    push_grpc(failure, called, &mut fields);
    fields
}

/// Appends what tells a gRPC caller of a failure.
fn push_grpc(failure: &Failure, called: Called<'_>, fields: &mut Fields) {
    let reply = failure.reply();
    // RESOURCE_EXHAUSTED: what gRPC's own implementations say of metadata above their limit.
    let status = if failure.is_too_large() { "8" } else { grpc_status(reply.status) };
    fields.push(b"grpc-status", status.as_bytes());
    fields.push(b"grpc-message", percent_encode(&format!("weft: {}{called}", failure.report())).as_bytes());
    fields.push(ERROR.as_bytes(), reply.flag.as_bytes());
}

/// The gRPC status for an HTTP status ("HTTP to gRPC Status Code Mapping" of the gRPC documentation; 504 told apart).
fn grpc_status(status: u16) -> &'static str {
    match status {
        400 => "13",
        401 => "16",
        403 => "7",
        404 => "12",
        504 => "4",
        429 | 502 | 503 => "14",
        _ => "2",
    }
}

/// gRPC's percent-encoding of a message: everything but printable ASCII, and `%` itself.
fn percent_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grpc_caller_is_told_in_its_own_way() {
        let field = |answer: &Answer, name: &str| answer.head.fields.named(name).next().unwrap().to_vec();
        let answer = to(&Failure::Denied("shop/pay#0".into()), true);
        assert_eq!((answer.head.status, field(&answer, "grpc-status")), (200, b"7".to_vec()));
        let answer = to(&Failure::NoEndpoint, false);
        assert_eq!((answer.head.status, field(&answer, "weft-error")), (503, b"UH".to_vec()));
    }

    /// (26)
    #[test]
    fn a_failure_names_what_was_called_where_the_caller_may_know_it() {
        let text = |called: Called<'_>| {
            let Body::Full(text) = at(&Failure::ConnectTimeout, false, called).body else { panic!("no text") };
            String::from_utf8(text.to_vec()).unwrap()
        };
        let endpoint = Some("10.0.0.7:8080".parse().unwrap());
        assert_eq!(text(Called::default()), "weft: connect timed out (UF)\n");
        let called = Called { cluster: Some("shop/order:80"), endpoint: None };
        assert_eq!(text(called), "weft: connect timed out (service shop/order:80) (UF)\n");
        let called = Called { endpoint, ..called };
        assert_eq!(text(called), "weft: connect timed out (service shop/order:80, endpoint 10.0.0.7:8080) (UF)\n");
        let fields = trailers(&Failure::ConnectTimeout, called);
        let message = fields.named("grpc-message").next().unwrap();
        assert_eq!(message, b"weft: connect timed out (service shop/order:80, endpoint 10.0.0.7:8080)");
    }

    #[test]
    fn messages_are_percent_encoded() {
        assert_eq!(percent_encode("100% é\n"), "100%25 %C3%A9%0A");
    }
}
