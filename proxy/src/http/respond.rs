//! The one place that turns a failure into an answer: a status, the flag in `weft-error`, a line of text; for gRPC callers
//! a status in the way of gRPC (gRPC over HTTP/2, "Responses", Trailers-Only).

use bytes::Bytes;
use weft_core::failure::Failure;
use weft_http::{
    fields::Fields,
    head::{Response, Version},
};

use super::{answer::Answer, body::Body, hop::ERROR};

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

/// The answer to a request that failed.
pub(crate) fn to(failure: &Failure, grpc: bool) -> Answer {
    let reply = failure.reply();
    let mut fields = Fields::with_capacity(256, 6);
    if grpc {
        fields.push(b"content-type", b"application/grpc");
        push_grpc(failure, &mut fields);
        return Answer::new(Response::new(Version::Http11, 200, fields), Body::Empty);
    }
    let text = Bytes::from(format!("weft: {} ({})\n", failure.report(), reply.flag));
    fields.push(b"content-type", b"text/plain; charset=utf-8");
    fields.push(b"content-length", text.len().to_string().as_bytes());
    fields.push(ERROR.as_bytes(), reply.flag.as_bytes());
    Answer::new(Response::new(Version::Http11, reply.status, fields), Body::Full(text))
}

/// The trailers of an answer to a gRPC caller that broke off.
pub(crate) fn trailers(failure: &Failure) -> Fields {
    let mut fields = Fields::with_capacity(128, 3);
    push_grpc(failure, &mut fields);
    fields
}

/// Appends what tells a gRPC caller of a failure.
fn push_grpc(failure: &Failure, fields: &mut Fields) {
    let reply = failure.reply();
    // RESOURCE_EXHAUSTED: what gRPC's own implementations say of metadata above their limit.
    let status = if failure.is_too_large() { "8" } else { grpc_status(reply.status) };
    fields.push(b"grpc-status", status.as_bytes());
    fields.push(b"grpc-message", percent_encode(&format!("weft: {}", failure.report())).as_bytes());
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

    #[test]
    fn messages_are_percent_encoded() {
        assert_eq!(percent_encode("100% é\n"), "100%25 %C3%A9%0A");
    }
}
