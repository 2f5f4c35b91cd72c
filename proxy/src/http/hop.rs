//! What travels beside a request on the hop: reserved `weft-*` fields, accepted on mesh ALPN only and stripped everywhere else.
//!
//! | field | meaning |
//! |---|---|
//! | `weft-version` | the HTTP version of the caller, when it is not 1.1: `1.0` or `2` |
//! | `weft-upgraded` | on the answer to an extended CONNECT: the application switched to this protocol (101) |
//! | `weft-status` | on the answer to an extended CONNECT: the application answered with this 2xx and did not switch |
//! | `weft-method` | on an extended CONNECT: the method of the request that asks for another protocol, when it is not GET |
//! | `weft-error` | on an answer that a proxy gave instead of the application: the flag of the failure; not stripped on the way back |
//! | `weft-client-id` | added for the application by its proxy: the caller's SPIFFE ID |

use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Version};

use super::{body::Body, head::Head};

const PREFIX: &str = "weft";
const VERSION: HeaderName = HeaderName::from_static("weft-version");
/// See the table above.
pub(crate) const UPGRADED: HeaderName = HeaderName::from_static("weft-upgraded");
/// On an answer that a proxy gave instead of the application: the flag of the failure.
pub(crate) const ERROR: HeaderName = HeaderName::from_static("weft-error");
const STATUS: HeaderName = HeaderName::from_static("weft-status");
const METHOD: HeaderName = HeaderName::from_static("weft-method");
const CLIENT_ID: HeaderName = HeaderName::from_static("weft-client-id");

/// How many reserved fields there are: they do not count against the caller's limit, which the other proxy has judged.
pub(crate) fn reserved(fields: &HeaderMap) -> usize {
    fields.keys().filter(|name| is_reserved(name)).count()
}

/// Applications that are told fields by environment variables (CGI, WSGI) take `_` for `-`, so `weft_client_id` is one too.
fn is_reserved(name: &HeaderName) -> bool {
    name.as_str().strip_prefix(PREFIX).is_some_and(|rest| rest.starts_with(['-', '_']))
}

/// Takes out every reserved field.
pub(crate) fn strip(fields: &mut HeaderMap) {
    if fields.keys().any(is_reserved) {
        let reserved: Vec<HeaderName> = fields.keys().filter(|name| is_reserved(name)).cloned().collect();
        for name in reserved {
            fields.remove(name);
        }
    }
}

/// Takes the reserved fields out of an answer for the caller, but for `weft-error`, which tells what failed where.
pub(crate) fn strip_answer(fields: &mut HeaderMap) {
    let error = fields.remove(ERROR);
    strip(fields);
    if let Some(error) = error {
        fields.insert(ERROR, error);
    }
}

/// Writes down what HTTP/2 cannot carry. `version`: what the application at the other end is to be given.
pub(crate) fn send(fields: &mut HeaderMap, version: Version) {
    let text = match version {
        Version::HTTP_10 => HeaderValue::from_static("1.0"),
        Version::HTTP_2 => HeaderValue::from_static("2"),
        _ => return,
    };
    fields.insert(VERSION, text);
}

/// Writes down the method of a request that crosses as an extended CONNECT.
pub(crate) fn send_method(fields: &mut HeaderMap, method: &Method) {
    if *method != Method::GET
        && let Ok(method) = HeaderValue::from_str(method.as_str())
    {
        fields.insert(METHOD, method);
    }
}

/// Hides the success of an application that did not switch: over HTTP/2 a 2xx to CONNECT would be the tunnel itself.
pub(crate) fn hide_success(answer: &mut Response<Body>) {
    if answer.status().is_success() {
        let status = HeaderValue::from(answer.status().as_u16());
        answer.headers_mut().insert(STATUS, status);
        *answer.status_mut() = StatusCode::EXPECTATION_FAILED;
    }
}

/// The answer as the application gave it.
pub(crate) fn reveal_success(answer: &mut Response<Body>) {
    let status = answer.headers().get(STATUS).and_then(|status| StatusCode::from_bytes(status.as_bytes()).ok());
    if let Some(status) = status {
        *answer.status_mut() = status;
    }
}

/// Restores what the other proxy wrote down, and strips the reserved fields.
pub(crate) fn receive(head: &mut Head) {
    if head.method == Method::CONNECT {
        let method = head.fields.get(METHOD).and_then(|method| Method::from_bytes(method.as_bytes()).ok());
        head.method = method.filter(|method| *method != Method::CONNECT).unwrap_or(Method::GET);
    }
    head.version = match head.fields.get(VERSION).map(HeaderValue::as_bytes) {
        Some(b"1.0") => Version::HTTP_10,
        Some(b"2") => Version::HTTP_2,
        _ => Version::HTTP_11,
    };
    strip(&mut head.fields);
}

/// Tells the application who calls.
pub(crate) fn tell_client(fields: &mut HeaderMap, identity: &str) {
    if let Ok(value) = HeaderValue::from_str(identity) {
        fields.insert(CLIENT_ID, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserved_field_is_taken_out_however_it_is_joined() {
        let names = ["weft-client-id", "WEFT_client_id", "weft-client_id", "weftage", "x-weft-client-id"];
        let mut fields: HeaderMap =
            names.iter().map(|name| (name.parse().unwrap(), HeaderValue::from_static("1"))).collect();
        assert_eq!(reserved(&fields), 3);
        strip(&mut fields);
        assert_eq!(fields.len(), 2);
        assert!(fields.contains_key("weftage") && fields.contains_key("x-weft-client-id"));
    }
}
