//! Heads of requests and responses, shared by both versions.
//! Invariant: method, path and authority are valid UTF-8 without white space and control characters, and the authority has no user
//! information; [`Request::new`] rejects anything else.
//! Spec: RFC 9110 §4.2, §7.2, §9; RFC 9112 §3; RFC 9113 §8.3.

use crate::{
    fields::{Fields, Span},
    spelling,
};

/// The HTTP version of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    Http11,
    /// HTTP/2.
    Http2,
}

/// Head of a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// The version that it was received in or is written in.
    pub version: Version,
    /// Its fields. `Host` is not among them if the parser has moved it to the authority.
    pub fields: Fields,
    /// The name of `Host` as it is written; in lower case unless HTTP/1 spelled it otherwise.
    host_name: [u8; 4],
    method: Span,
    path: Span,
    authority: Option<Span>,
    protocol: Option<Span>,
}

/// Head of a response.
#[derive(Clone, Debug, PartialEq)]
pub struct Response {
    /// The version that it was received in or is written in.
    pub version: Version,
    /// Status, 100 to 999.
    pub status: u16,
    /// Its fields.
    pub fields: Fields,
    reason: Option<Span>,
}

/// The limit that a head or trailer section is above.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Excess {
    /// In bytes, as the version of HTTP counts them: HTTP/2 adds 32 for each field (RFC 9113 §6.5.2).
    #[error("more than {0} bytes")]
    Bytes(usize),
    /// In fields.
    #[error("more than {0} fields")]
    Fields(usize),
}

/// Why [`Request::new`] rejects a part of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// The method is not a token (RFC 9110 §9.1) or is longer than 32 bytes.
    #[error("invalid method")]
    Method,
    /// The path is neither `*` (OPTIONS only) nor a path that begins with a slash, or it contains white space, a control
    /// character or `#`.
    #[error("invalid path")]
    Path,
    /// The authority is not `host` or `host:port` (RFC 3986 §3.2), or has user information.
    #[error("invalid authority")]
    Authority,
}

/// Longest method, in bytes.
const MAX_METHOD: usize = 32;

impl Request {
    /// A head from its parts; `fields` may already hold fields.
    /// Errors: a part is invalid.
    pub fn new(
        version: Version,
        method: &[u8],
        path: &[u8],
        authority: Option<&[u8]>,
        mut fields: Fields,
    ) -> Result<Self, Invalid> {
        let parts = [method, path].map(|part| fields.store(part));
        let authority = authority.map(|authority| fields.store(authority));
        Self::from_spans(version, parts, [authority, None], fields)
    }

    /// A head from parts that are already stored in `fields`.
    pub(crate) fn from_spans(
        version: Version,
        [method, path]: [Span; 2],
        [authority, protocol]: [Option<Span>; 2],
        fields: Fields,
    ) -> Result<Self, Invalid> {
        if !is_method(fields.bytes(method)) {
            return Err(Invalid::Method);
        }
        if !is_path(fields.bytes(path), fields.bytes(method)) {
            return Err(Invalid::Path);
        }
        if authority.is_some_and(|authority| !is_authority(fields.bytes(authority))) {
            return Err(Invalid::Authority);
        }
        Ok(Self { version, fields, host_name: *b"host", method, path, authority, protocol })
    }

    /// The method, which is case-sensitive.
    pub fn method(&self) -> &str {
        self.text(self.method)
    }

    /// Path and query.
    pub fn target(&self) -> &str {
        self.text(self.path)
    }

    /// The path without the query.
    pub fn path(&self) -> &str {
        let target = self.target();
        target.split_once('?').map_or(target, |(path, _)| path)
    }

    /// Host and port, if known.
    pub fn authority(&self) -> Option<&str> {
        self.authority.map(|authority| self.text(authority))
    }

    /// The host without the port; empty without an authority.
    pub fn host(&self) -> &str {
        let authority = self.authority().unwrap_or_default();
        if authority.starts_with('[') {
            return authority.find(']').and_then(|end| authority.get(..=end)).unwrap_or(authority);
        }
        authority.split_once(':').map_or(authority, |(host, _)| host)
    }

    /// The name of the field that tells the authority in HTTP/1, in its original case.
    pub fn host_name(&self) -> &[u8] {
        &self.host_name
    }

    /// Takes the spelling of `Host` from the head that was received.
    pub(crate) fn set_host_name(&mut self, name: &[u8]) {
        if let Ok(name) = name.try_into() {
            self.host_name = name;
        }
    }

    /// Describes the spelling of its names: see [`spelling::describe`].
    pub fn spelling(&self) -> Option<Vec<u8>> {
        spelling::describe(self.authority.map(|_| &self.host_name[..]), &self.fields)
    }

    /// Spells its names as a text says: see [`spelling::restore`].
    pub fn respell(&mut self, text: &[u8]) {
        spelling::restore(text, self.authority.map(|_| &mut self.host_name[..]), &mut self.fields);
    }

    /// The protocol of an extended CONNECT (RFC 8441).
    pub fn protocol(&self) -> Option<&[u8]> {
        self.protocol.map(|protocol| self.fields.bytes(protocol))
    }

    /// Replaces the method. Errors: `method` is invalid.
    pub fn set_method(&mut self, method: &[u8]) -> Result<(), Invalid> {
        if !is_method(method) {
            return Err(Invalid::Method);
        }
        self.method = self.fields.store(method);
        Ok(())
    }

    /// Sets the protocol of an extended CONNECT.
    pub fn set_protocol(&mut self, protocol: Option<&[u8]>) {
        self.protocol = protocol.map(|protocol| self.fields.store(protocol));
    }

    fn text(&self, span: Span) -> &str {
        // Validated by `from_spans` and the setters.
        std::str::from_utf8(self.fields.bytes(span)).unwrap_or_default()
    }
}

impl Response {
    /// A head with this status and no reason phrase.
    pub fn new(version: Version, status: u16, fields: Fields) -> Self {
        Self { version, status, fields, reason: None }
    }

    /// The reason phrase, if HTTP/1 had one (RFC 9112 §4).
    pub fn reason(&self) -> Option<&[u8]> {
        self.reason.map(|reason| self.fields.bytes(reason))
    }

    /// Sets the reason phrase. One with control characters is left out.
    pub fn set_reason(&mut self, reason: &[u8]) {
        self.reason = reason.iter().all(|byte| is_value(*byte)).then(|| self.fields.store(reason));
    }

    /// The reason phrase without white space around it, where it is not the standard one of the status.
    pub fn unusual_reason(&self) -> Option<&[u8]> {
        let reason = self.reason().map(<[u8]>::trim_ascii)?;
        (reason != standard_reason(self.status).as_bytes()).then_some(reason)
    }

    /// Whether it is an interim response (1xx), which a final response follows (RFC 9110 §15.2). 101 is none: HTTP ends with it.
    pub fn is_interim(&self) -> bool {
        (100..200).contains(&self.status) && self.status != 101
    }
}

/// The standard reason phrase of a status (RFC 9110 §15 and the IANA registry).
pub(crate) fn standard_reason(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        103 => "Early Hints",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        203 => "Non-Authoritative Information",
        204 => "No Content",
        205 => "Reset Content",
        206 => "Partial Content",
        300 => "Multiple Choices",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Payload Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        422 => "Unprocessable Entity",
        425 => "Too Early",
        426 => "Upgrade Required",
        428 => "Precondition Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        451 => "Unavailable For Legal Reasons",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}

fn is_method(method: &[u8]) -> bool {
    !method.is_empty() && method.len() <= MAX_METHOD && method.iter().all(|byte| is_token(*byte))
}

/// Whether a token may contain the byte (RFC 9110 §5.6.2).
pub fn is_token(byte: u8) -> bool {
    matches!(
        byte,
        b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
    ) || byte.is_ascii_alphanumeric()
}

/// Whether a field value may contain the byte: visible ASCII, space, tab, or above ASCII (RFC 9110 §5.5).
pub(crate) fn is_value(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

/// `*` with OPTIONS, or a path that begins with a slash, with an optional query. White space, control characters and a fragment
/// are rejected. Other characters that RFC 3986 requires to be percent-encoded pass unchanged, since clients send them; bytes
/// above ASCII must be UTF-8.
fn is_path(path: &[u8], method: &[u8]) -> bool {
    (path == b"*" && method == b"OPTIONS")
        || (path.first() == Some(&b'/')
            && path.iter().all(|byte| !matches!(byte, 0..=b' ' | 0x7f | b'#'))
            && (path.is_ascii() || std::str::from_utf8(path).is_ok()))
}

/// `host`, `host:port`, `[v6]`, `[v6]:port`.
fn is_authority(authority: &[u8]) -> bool {
    let (host, port) = match authority {
        [b'[', rest @ ..] => {
            let Some(end) = rest.iter().position(|byte| *byte == b']') else { return false };
            let (address, after) = rest.split_at(end);
            let valid = std::str::from_utf8(address).is_ok_and(|text| text.parse::<std::net::Ipv6Addr>().is_ok());
            match after {
                _ if !valid => return false,
                [b']'] => return true,
                [b']', b':', port @ ..] => return is_port(port),
                _ => return false,
            }
        }
        _ => match authority.iter().position(|byte| *byte == b':') {
            Some(colon) => {
                let (host, port) = authority.split_at(colon);
                (host, port.get(1..).unwrap_or_default())
            }
            None => (authority, &b""[..]),
        },
    };
    // reg-name of RFC 3986 §3.2.2: unreserved, percent-encoded and sub-delims; without `,`, which joins repeated Host fields.
    let valid = |byte: &u8| {
        byte.is_ascii_alphanumeric()
            || matches!(
                byte,
                b'-' | b'.' | b'_' | b'~' | b'%' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b';' | b'='
            )
    };
    !host.is_empty() && host.len() <= 255 && host.iter().all(valid) && is_port(port)
}

fn is_port(port: &[u8]) -> bool {
    port.len() <= 5 && port.iter().all(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &str, path: &str, authority: Option<&str>) -> Result<Request, Invalid> {
        let authority = authority.map(str::as_bytes);
        Request::new(Version::Http11, method.as_bytes(), path.as_bytes(), authority, Fields::default())
    }

    #[test]
    fn parts_are_read_back() {
        let head = request("GET", "/a/b?c=/d?e", Some("[fd00::1]:80")).unwrap();
        assert_eq!((head.method(), head.target(), head.path()), ("GET", "/a/b?c=/d?e", "/a/b"));
        assert_eq!((head.authority(), head.host()), (Some("[fd00::1]:80"), "[fd00::1]"));
        assert_eq!(request("OPTIONS", "*", Some("a.example:8080")).unwrap().host(), "a.example");
        assert_eq!(request("GET", "/ä", None).unwrap().host(), "");
    }

    #[test]
    fn malformed_parts_are_rejected() {
        for method in ["", "G T", "GET\n", "G\u{e4}T", &"A".repeat(33)] {
            assert_eq!(request(method, "/", None), Err(Invalid::Method), "{method}");
        }
        for path in ["", "*", "a", "*a", "/ ", "/\t", "/a#b", "/\u{7f}", "http://a/"] {
            assert_eq!(request("GET", path, None), Err(Invalid::Path), "{path}");
        }
        for authority in ["", ":80", "a b", "u@a", "a/b", "a:b", "a:999999", "[::1", "[zz]", "[::1]x", "a, b", "a\n"] {
            assert_eq!(request("GET", "/", Some(authority)), Err(Invalid::Authority), "{authority}");
        }
    }
}
