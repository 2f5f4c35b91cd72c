//! Reserved `weft-*` fields, which carry metadata of a request on the hop: accepted on mesh ALPN only, stripped everywhere else.
//!
//! | field | meaning |
//! |---|---|
//! | `weft-version` | the HTTP version of the caller, when it is not 1.1: `1.0` or `2` |
//! | `weft-upgraded` | on the answer to an extended CONNECT: the application switched to this protocol (101) |
//! | `weft-status` | on the answer to an extended CONNECT: the application answered with this 2xx and did not switch |
//! | `weft-method` | on an extended CONNECT: the method of the request that asks for another protocol, when it is not GET |
//! | `weft-body` | on an extended CONNECT: the length of the body of the request that asks for another protocol, whose bytes precede the tunnel's; Content-Length would be the length of all that follows |
//! | `weft-connect` | on a request: how long the application may take to be connected, in milliseconds, when the caller's policy says other than its default |
//! | `weft-names` | the spelling of the field names of a message of HTTP/1: `weft_http::spelling` |
//! | `weft-reason` | on an answer: the reason phrase, when it is not the standard one |
//! | `weft-upgrade` | on an answer of 426: the protocols that the application asks for |
//! | `weft-error` | on an answer that a proxy gave instead of the application: the flag of the failure; `BUDGET` beside it, or on the application's own answer: no retry was left in the budget; not stripped on the way back |
//! | `weft-retried` | on an answer of 5xx: it comes from a service behind the one called, and its call was retried there, or would have been with a budget; the caller's proxy does not retry it |
//! | `weft-client-id` | added for the application by its proxy: the caller's SPIFFE ID |

use std::time::Duration;

use weft_core::failure::Failure;
use weft_http::{
    fields::{Fields, Name},
    head::{Response, Version},
    spelling,
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
const NAMES: &str = "weft-names";
const REASON: &str = "weft-reason";
const UPGRADE: &str = "weft-upgrade";
/// Longest reason phrase that is carried; a longer one is replaced by the standard one.
const MAX_REASON: usize = 512;
const RETRIED: &str = "weft-retried";
const BODY: &str = "weft-body";
const CONNECT: &str = "weft-connect";
/// The longest time to connect to an application, whatever a policy says.
pub(crate) const MAX_CONNECT: Duration = Duration::from_secs(300);
/// For the application: the SPIFFE ID of the caller.
pub(crate) const CLIENT_ID: &str = "weft-client-id";

/// Removes every reserved field.
pub(crate) fn strip(fields: &mut Fields) {
    if fields.has(Name::Reserved) {
        fields.remove(Name::Reserved);
    }
}

/// Adds to an answer what HTTP/2 cannot carry of HTTP/1: the spelling of names, the reason phrase, and the protocols that a
/// 426 asks for.
pub(crate) fn send_answer(answer: &mut Response) {
    if answer.version == Version::Http2 {
        return;
    }
    if let Some(names) = spelling::describe(None, &answer.fields) {
        answer.fields.push(NAMES.as_bytes(), &names);
    }
    if let Some(reason) = answer.unusual_reason().filter(|reason| reason.len() <= MAX_REASON).map(<[u8]>::to_vec) {
        answer.fields.push(REASON.as_bytes(), &reason);
    }
    if answer.status == 426 {
        let protocols = answer.fields.all(Name::Upgrade).collect::<Vec<_>>().join(&b", "[..]);
        answer.fields.push(UPGRADE.as_bytes(), &protocols);
    }
}

/// Marks a failing answer as one whose cause was retried behind the service that gives it.
pub(crate) fn mark_retried(answer: &mut Response) {
    answer.fields.push(RETRIED.as_bytes(), b"1");
}

/// Whether an answer of another proxy is marked so.
pub(crate) fn is_retried(answer: &Response) -> bool {
    answer.status >= 500 && reserved(&answer.fields, RETRIED).is_some()
}

/// Restores an answer from the reserved fields, and strips them, except `weft-error`, which carries the flag of a failure.
pub(crate) fn receive_answer(answer: &mut Response) {
    if !answer.fields.has(Name::Reserved) {
        return;
    }
    let told = |name| reserved(&answer.fields, name).map(<[u8]>::to_vec);
    let (names, reason, protocols) = (told(NAMES), told(REASON), told(UPGRADE));
    answer.fields.retain(|field| field.known != Name::Reserved || field.is(ERROR));
    if let Some(names) = names {
        spelling::restore(&names, None, &mut answer.fields);
    }
    if let Some(reason) = reason {
        answer.set_reason(&reason);
    }
    if let Some(protocols) = protocols.filter(|protocols| answer.status == 426 && !protocols.is_empty()) {
        answer.fields.push(b"Upgrade", &protocols);
    }
}

/// The first value of a reserved field.
pub(crate) fn reserved<'a>(fields: &'a Fields, name: &'a str) -> Option<&'a [u8]> {
    if fields.has(Name::Reserved) { fields.named(name).next() } else { None }
}

/// Adds the fields for what HTTP/2 cannot carry: the spelling of names, the method of an upgrade, and the HTTP version for the
/// application.
pub(crate) fn send(head: &mut Head) {
    if head.request.version != Version::Http2
        && let Some(names) = head.request.spelling()
    {
        head.request.fields.push(NAMES.as_bytes(), &names);
    }
    if let Some(protocol) = head.upgrade.take() {
        let method = head.request.method().as_bytes().to_vec();
        if method != b"GET" {
            head.request.fields.push(METHOD.as_bytes(), &method);
        }
        // Of the fields that frame a request's body, none may frame the tunnel.
        head.request.fields.remove(Name::ContentLength);
        if let Some(length) = head.upgrade_body {
            head.request.fields.push(BODY.as_bytes(), length.to_string().as_bytes());
        }
        head.request.set_protocol(Some(&protocol));
        head.set_method(b"CONNECT");
        head.upgrade = Some(protocol);
    }
    if let Some(connect) = head.connect {
        head.request.fields.push(CONNECT.as_bytes(), connect.as_millis().to_string().as_bytes());
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

/// The method of a request that asks for another protocol.
pub(crate) fn told_method(fields: &Fields) -> &str {
    reserved(fields, METHOD).and_then(|method| std::str::from_utf8(method).ok()).unwrap_or("GET")
}

/// The length of the body in front of a tunnel.
pub(crate) fn upgrade_body(fields: &Fields) -> Option<u64> {
    std::str::from_utf8(reserved(fields, BODY)?).ok()?.parse().ok()
}

/// How long the application may take to be connected.
fn connect(fields: &Fields) -> Option<Duration> {
    let millis = std::str::from_utf8(reserved(fields, CONNECT)?).ok()?.parse().ok()?;
    Some(Duration::from_millis(millis).min(MAX_CONNECT))
}

/// Restores the head from the reserved fields, and strips them. The method that the peer names is judged as the method of a request
/// is. Errors: it is refused.
pub(crate) fn receive(head: &mut Head) -> Result<(), Failure> {
    head.request.set_protocol(None);
    let mut judged = Ok(());
    if head.request.method() == "CONNECT" {
        let told = reserved(&head.request.fields, METHOD).unwrap_or(b"GET").to_vec();
        head.set_method(b"GET");
        judged = match &told[..] {
            b"TRACE" => Err(Failure::MethodRefused),
            b"CONNECT" => Err(Failure::BadRequest("CONNECT in weft-method")),
            method => head.request.set_method(method).map_err(|_invalid| Failure::BadRequest("invalid weft-method")),
        };
    }
    if head.upgrade.is_some()
        && let Some(length) = upgrade_body(&head.request.fields)
    {
        head.upgrade_body = Some(length);
        head.request.fields.push(b"content-length", length.to_string().as_bytes());
    }
    head.connect = connect(&head.request.fields);
    head.version = match reserved(&head.request.fields, VERSION) {
        Some(b"1.0") => Version::Http10,
        Some(b"2") => Version::Http2,
        _ => Version::Http11,
    };
    if head.version != Version::Http2
        && let Some(names) = reserved(&head.request.fields, NAMES).map(<[u8]>::to_vec)
    {
        head.request.respell(&names);
    }
    strip(&mut head.request.fields);
    judged
}
