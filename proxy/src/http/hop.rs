//! Reserved `weft-*` fields, which carry metadata of a request on the hop: accepted on mesh ALPN only, stripped everywhere else.
//!
//! | field | meaning |
//! |---|---|
//! | `weft-version` | the HTTP version of the caller, when it is not 1.1: `1.0` or `2` |
//! | `weft-upgraded` | on the answer to an extended CONNECT: the application switched to this protocol (101) |
//! | `weft-status` | on the answer to an extended CONNECT: the application answered with this 2xx and did not switch |
//! | `weft-method` | on an extended CONNECT: the method of the request that asks for another protocol, when it is not GET |
//! | `weft-error` | on an answer that a proxy gave instead of the application: the flag of the failure; `BUDGET` beside it, or on the application's own answer: no retry was left in the budget; not stripped on the way back |
//! | `weft-client-id` | added for the application by its proxy: the caller's SPIFFE ID |

use weft_http::{
    fields::{Fields, Name},
    head::{Response, Version},
};

use super::head::Head;

const VERSION: &str = "weft-version";
/// On the answer to an extended CONNECT: the protocol that the application switched to.
pub(crate) const UPGRADED: &str = "weft-upgraded";
/// On an answer that a proxy gave instead of the application: the flag of the failure.
pub(crate) const ERROR: &str = "weft-error";
/// A further value of [`ERROR`]: no retry was left in the budget.
pub(crate) const OVER_BUDGET: &[u8] = b"BUDGET";
const STATUS: &str = "weft-status";
const METHOD: &str = "weft-method";
/// For the application: the SPIFFE ID of the caller.
pub(crate) const CLIENT_ID: &str = "weft-client-id";

/// Removes every reserved field.
pub(crate) fn strip(fields: &mut Fields) {
    if fields.has(Name::Reserved) {
        fields.remove(Name::Reserved);
    }
}

/// Removes the reserved fields from an answer for the caller, except `weft-error`, which carries the flag of a failure.
pub(crate) fn strip_answer(fields: &mut Fields) {
    if fields.has(Name::Reserved) {
        fields.retain(|field| field.known != Name::Reserved || field.is(ERROR));
    }
}

/// The first value of a reserved field.
pub(crate) fn reserved<'a>(fields: &'a Fields, name: &'a str) -> Option<&'a [u8]> {
    if fields.has(Name::Reserved) { fields.named(name).next() } else { None }
}

/// Adds the fields for what HTTP/2 cannot carry: the method of an upgrade, and the HTTP version for the application.
pub(crate) fn send(head: &mut Head) {
    if let Some(protocol) = head.upgrade.take() {
        let method = head.request.method().as_bytes().to_vec();
        if method != b"GET" {
            head.request.fields.push(METHOD.as_bytes(), &method);
        }
        head.request.set_protocol(Some(&protocol));
        head.set_method(b"CONNECT");
        head.upgrade = Some(protocol);
    }
    match head.version {
        Version::Http10 => head.request.fields.push(VERSION.as_bytes(), b"1.0"),
        Version::Http2 => head.request.fields.push(VERSION.as_bytes(), b"2"),
        Version::Http11 => {}
    }
}

/// Hides the success of an application that did not switch: over HTTP/2 a 2xx to CONNECT would be the tunnel itself.
pub(crate) fn hide_success(answer: &mut Response) {
    if (200..300).contains(&answer.status) {
        let status = answer.status.to_string();
        answer.fields.push(STATUS.as_bytes(), status.as_bytes());
        answer.status = 417;
    }
}

/// The answer as the application gave it.
pub(crate) fn reveal_success(answer: &mut Response) {
    let status = reserved(&answer.fields, STATUS).and_then(|status| std::str::from_utf8(status).ok()?.parse().ok());
    if let Some(status) = status.filter(|status| (200..300).contains(status)) {
        answer.status = status;
    }
}

/// Whether another proxy passes on a request of HTTP/1.0.
pub(crate) fn is_http10(fields: &Fields) -> bool {
    reserved(fields, VERSION) == Some(b"1.0")
}

/// Restores the head from the reserved fields, and strips them.
pub(crate) fn receive(head: &mut Head) {
    head.request.set_protocol(None);
    if head.request.method() == "CONNECT" {
        let method = reserved(&head.request.fields, METHOD).unwrap_or(b"GET").to_vec();
        head.set_method(if method == b"CONNECT" { b"GET" } else { &method });
        if head.request.method() == "CONNECT" {
            head.set_method(b"GET");
        }
    }
    head.version = match reserved(&head.request.fields, VERSION) {
        Some(b"1.0") => Version::Http10,
        Some(b"2") => Version::Http2,
        _ => Version::Http11,
    };
    strip(&mut head.request.fields);
}
