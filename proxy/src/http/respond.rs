//! The one place that turns a failure into an answer: a status, the flag in `weft-error`, a line of text; for gRPC callers
//! a status in the way of gRPC (gRPC over HTTP/2, "Responses", Trailers-Only).

use bytes::Bytes;
use http::{
    HeaderValue, Response, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_TYPE},
};
use weft_core::failure::Failure;

use super::{body::Body, hop::ERROR};

/// The answer to a request that failed.
pub(crate) fn to(failure: &Failure, grpc: bool) -> Response<Body> {
    let reply = failure.reply();
    let mut response = Response::new(Body::Empty);
    let flag = HeaderValue::from_static(reply.flag);
    if grpc {
        let fields = response.headers_mut();
        fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        fields.insert("grpc-status", HeaderValue::from_static(grpc_status(reply.status)));
        if let Ok(message) = HeaderValue::from_str(&percent_encode(&format!("weft: {failure}"))) {
            fields.insert("grpc-message", message);
        }
        fields.insert(ERROR, flag);
        return response;
    }
    let text = Bytes::from(format!("weft: {failure} ({})\n", reply.flag));
    *response.status_mut() = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let fields = response.headers_mut();
    fields.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    fields.insert(CONTENT_LENGTH, HeaderValue::from(text.len()));
    fields.insert(ERROR, flag);
    *response.body_mut() = Body::Full(text);
    response
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
        let response = to(&Failure::Denied("shop/pay#0".into()), true);
        assert_eq!((response.status(), &response.headers()["grpc-status"]), (StatusCode::OK, &"7".parse().unwrap()));
        let response = to(&Failure::NoEndpoint, false);
        assert_eq!(
            (response.status(), &response.headers()["weft-error"]),
            (StatusCode::SERVICE_UNAVAILABLE, &"UH".parse().unwrap())
        );
    }

    #[test]
    fn messages_are_percent_encoded() {
        assert_eq!(percent_encode("100% é\n"), "100%25 %C3%A9%0A");
    }
}
