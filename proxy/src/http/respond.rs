//! The one place that turns a failure into an answer: a status, the flag in `weft-error`, a line of text; for gRPC callers
//! a status in the way of gRPC (gRPC over HTTP/2, "Responses", Trailers-Only).

use std::{
    fmt::{self, Write as _},
    net::SocketAddr,
};

use bytes::Bytes;
use weft_core::failure::Failure;
use weft_http::{
    fields::{Fields, Name},
    head::{Response, Version},
};

use super::{answer::Answer, body::Body, hop::ERROR};

/// What a failed request was sent to, as its caller is told. Nothing wherever the caller may be outside the mesh: names and
/// addresses of the inside are not for it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Called<'a> {
    /// Nothing that the caller may know.
    #[default]
    Unnamed,
    /// No service was chosen.
    Destination {
        /// The host and port of the request.
        host: Option<&'a str>,
        /// The address that the caller has connected to.
        address: SocketAddr,
    },
    /// The route chose this cluster.
    Service {
        /// Its name.
        cluster: &'a str,
        /// The endpoint tried last.
        endpoint: Option<SocketAddr>,
    },
}

/// Longest host that is named.
const MAX_HOST: usize = 255;

impl Called<'_> {
    /// The names and values, at most two.
    fn each(&self, mut say: impl FnMut(&str, &dyn fmt::Display) -> fmt::Result) -> fmt::Result {
        match self {
            Self::Unnamed => Ok(()),
            Self::Destination { host, address } => {
                if let Some(host) = host.filter(|host| is_plain(host)) {
                    say("host", &host)?;
                }
                say("destination", address)
            }
            Self::Service { cluster, endpoint } => {
                say("service", cluster)?;
                endpoint.as_ref().map_or(Ok(()), |endpoint| say("endpoint", endpoint))
            }
        }
    }

    /// The value of `weft-error`: an item of structured fields (RFC 9651 §3.3), the flag with what was called as parameters.
    fn error(&self, flag: &str) -> Result<String, fmt::Error> {
        let mut out = flag.to_owned();
        self.each(|name, value| write!(out, ";{name}=\"{value}\""))?;
        Ok(out)
    }
}

/// Whether a host can be repeated as it is: it is the caller's own word.
fn is_plain(host: &str) -> bool {
    host.len() <= MAX_HOST && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~:[]%".contains(&byte))
}

/// ` (service shop/order:80, endpoint 10.0.0.7:8080)`.
impl fmt::Display for Called<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut before = " (";
        self.each(|name, value| write!(f, "{}{name} {value}", std::mem::replace(&mut before, ", ")))?;
        if before == ", " { f.write_str(")") } else { Ok(()) }
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
    let text = Bytes::from(text(failure, called) + "\n");
    fields.push(b"content-type", b"text/plain; charset=utf-8");
    fields.push(b"content-length", text.len().to_string().as_bytes());
    push_error(reply.flag, called, &mut fields);
    Answer::new(Response::new(Version::Http11, reply.status, fields), Body::Full(text))
}

/// `weft: connect timed out (service shop/order:80) (UF)`.
fn text(failure: &Failure, called: Called<'_>) -> String {
    let flag = failure.reply().flag;
    match (failure, called) {
        // Which identities these are is not for a caller at the edge.
        (Failure::PeerIdentity(_), Called::Unnamed) => {
            format!("weft: the peer's identity is not the expected one ({flag})")
        }
        _ => format!("weft: {}{called} ({flag})", failure.report()),
    }
}

/// Removes from an answer of another proxy (it has `weft-error`) the names of services, endpoints, policies and identities, which
/// are not for callers at the edge. Its status and flag stay.
pub(crate) fn without_names(answer: &mut Answer) {
    let Some(value) = answer.head.fields.named(ERROR).next() else { return };
    let flag: String = value.iter().take_while(|byte| byte.is_ascii_alphanumeric()).map(|b| char::from(*b)).collect();
    let text = format!("weft: refused, or failed, behind the gateway ({flag})");
    let fields = &mut answer.head.fields;
    fields.set(ERROR, flag.as_bytes());
    if fields.has(Name::GrpcStatus) {
        fields.set("grpc-message", percent_encode(&text).as_bytes());
        return;
    }
    let text = Bytes::from(text + "\n");
    fields.set("content-type", b"text/plain; charset=utf-8");
    fields.set("content-length", text.len().to_string().as_bytes());
    answer.body = Body::Full(text);
}

fn push_error(flag: &str, called: Called<'_>, fields: &mut Fields) {
    // Writing to a text cannot fail.
    let value = called.error(flag).unwrap_or_else(|_never| flag.to_owned());
    fields.push(ERROR.as_bytes(), value.as_bytes());
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
    fields.push(b"grpc-message", percent_encode(&text(failure, called)).as_bytes());
    push_error(reply.flag, called, fields);
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

    /// (26) (20.26)
    #[test]
    fn a_failure_names_what_was_called_where_the_caller_may_know_it() {
        let text = |called: Called<'_>| {
            let Body::Full(text) = at(&Failure::ConnectTimeout, false, called).body else { panic!("no text") };
            String::from_utf8(text.to_vec()).unwrap()
        };
        let endpoint = Some("10.0.0.7:8080".parse().unwrap());
        let address = "240.0.0.9:80".parse().unwrap();
        let cluster = "shop/order:80";
        for (called, named, error) in [
            (Called::Unnamed, "", "UF"),
            (Called::Service { cluster, endpoint: None }, " (service shop/order:80)", "UF;service=\"shop/order:80\""),
            (
                Called::Service { cluster, endpoint },
                " (service shop/order:80, endpoint 10.0.0.7:8080)",
                "UF;service=\"shop/order:80\";endpoint=\"10.0.0.7:8080\"",
            ),
            (
                Called::Destination { host: Some("order:80"), address },
                " (host order:80, destination 240.0.0.9:80)",
                "UF;host=\"order:80\";destination=\"240.0.0.9:80\"",
            ),
            (
                Called::Destination { host: Some("a\"b"), address },
                " (destination 240.0.0.9:80)",
                "UF;destination=\"240.0.0.9:80\"",
            ),
        ] {
            let expected = format!("weft: connect timed out{named} (UF)");
            assert_eq!(text(called), format!("{expected}\n"));
            // A caller of gRPC is told the same.
            let fields = trailers(&Failure::ConnectTimeout, called);
            assert_eq!(fields.named("grpc-message").next(), Some(expected.as_bytes()));
            for fields in [fields, at(&Failure::ConnectTimeout, false, called).head.fields] {
                assert_eq!(fields.named("weft-error").next(), Some(error.as_bytes()));
            }
        }
    }

    /// (20.26)
    #[test]
    fn callers_at_the_edge_are_told_no_names() {
        let failure = Failure::PeerIdentity("expected spiffe://a/ns/b/sa/c".into());
        let Body::Full(told) = to(&failure, false).body else { panic!("no text") };
        assert_eq!(&told[..], b"weft: the peer's identity is not the expected one (PEERID)\n");
        let called = Called::Service { cluster: "shop/order:80", endpoint: None };
        for grpc in [false, true] {
            let mut answer = at(&Failure::Denied("shop/secret#0".into()), grpc, called);
            without_names(&mut answer);
            assert_eq!(answer.head.fields.named("weft-error").collect::<Vec<_>>(), [b"RBAC"]);
            assert!(
                !format!("{answer:?}").contains("secret") && !format!("{answer:?}").contains("order"),
                "{answer:?}"
            );
        }
    }

    #[test]
    fn messages_are_percent_encoded() {
        assert_eq!(percent_encode("100% é\n"), "100%25 %C3%A9%0A");
    }
}
