//! Parsing of heads. `httparse` checks the grammar; this file checks what `httparse` lets pass, and derives framing, host and
//! persistence from the fields.
//! A head is parsed once, when it is complete: until then each read costs one search for line ends.
//! Spec: RFC 9112 §2-§6.

use std::{borrow::Cow, mem::MaybeUninit};

use bytes::{Buf, BytesMut};
use httparse::{Header, ParserConfig, Status};

use super::{Error, Framing, Limits, line, members, section};
use crate::{
    fields::{Fields, Name},
    head::{Excess, Invalid, Request, Response, Version, is_value},
};

/// Number of field slots on the stack, enough for most heads.
const FEW_FIELDS: usize = 32;
/// Slots for reserved fields in addition to [`Limits::fields`].
const RESERVED_FIELDS: usize = 28;
/// Empty lines before a request that are skipped (RFC 9112 §2.2).
const MAX_EMPTY_LINES: usize = 4;
/// Bytes of a request line beside its target: method, version, spaces.
const LINE_REST: usize = 48;

/// A parsed request head.
#[derive(Debug)]
pub struct ParsedRequest {
    /// The head. Its authority comes from the target or from `Host`, which is not among the fields.
    pub head: Request,
    /// How the length of its body is determined.
    pub framing: Framing,
    /// Whether the connection persists after the message (RFC 9112 §9.3).
    pub keep_alive: bool,
    /// Whether its target named the authority (absolute form, RFC 9112 §3.2.2): clients write that to proxies.
    pub absolute: bool,
    /// Whether the client waits for a 100 before it sends the body (RFC 9110 §10.1.1).
    pub expects_continue: bool,
}

/// A parsed response head.
#[derive(Debug)]
pub struct ParsedResponse {
    /// The head, with its reason phrase, which may be empty.
    pub head: Response,
    /// How the length of its body is determined, with regard to the method of the request and the status.
    pub framing: Framing,
    /// Whether the connection persists after the message (RFC 9112 §9.3).
    pub keep_alive: bool,
}

/// Parses a request head at the beginning of `buffer` and removes it. `Ok(None)`: more bytes are needed, and `buffer` is unchanged.
/// Skips up to four empty lines before the head.
/// Errors: malformed or above a limit, see [`Error`].
pub fn parse_request(buffer: &mut BytesMut, limits: &Limits) -> Result<Option<ParsedRequest>, Error> {
    let mut start = 0;
    while buffer.get(start..).is_some_and(|rest| rest.starts_with(b"\r\n")) {
        start += 2;
        if start > MAX_EMPTY_LINES * 2 {
            return Err(Error::Malformed("too many empty lines before the request"));
        }
    }
    let bytes = buffer.get(start..).unwrap_or_default();
    let head = match complete_head(bytes, limits) {
        Ok(Some(head)) => head,
        outcome => {
            // A request line without an end that is already too long is 414 rather than 431.
            let shown = bytes.get(..bytes.len().min(limits.target + LINE_REST + 1)).unwrap_or_default();
            let long = shown.len() > limits.target + LINE_REST && !shown.contains(&b'\n');
            if long {
                return Err(Error::TargetTooLong);
            }
            outcome?;
            // A request line without a version is no beginning of a head that is worth waiting for (HTTP/0.9).
            return if line(bytes)?.is_none_or(|len| has_version(bytes, len)) { Ok(None) } else { Err(Error::Version) };
        }
    };
    let parsed = match request(head, &mut [const { MaybeUninit::uninit() }; FEW_FIELDS], limits)? {
        Some(parsed) => parsed,
        None => request(head, &mut heap_slots(limits), limits)?.ok_or(too_many(limits))?,
    };
    let taken = start + head.len();
    buffer.advance(taken);
    Ok(Some(parsed))
}

/// Whether a request line of this length ends with a version of HTTP (RFC 9112 §2.3).
fn has_version(bytes: &[u8], len: usize) -> bool {
    let version = bytes.get(..len).and_then(|line| line.rsplit(|byte| *byte == b' ').next());
    version.is_some_and(|version| version.starts_with(b"HTTP/"))
}

/// Parses a response head at the beginning of `buffer` and removes it. `Ok(None)`: more bytes are needed, and `buffer` is unchanged.
/// `method`: that of the request, since responses to HEAD and CONNECT have no body.
/// Errors: malformed or above a limit, see [`Error`].
pub fn parse_response(buffer: &mut BytesMut, limits: &Limits, method: &str) -> Result<Option<ParsedResponse>, Error> {
    let Some(head) = complete_head(buffer, limits)? else { return Ok(None) };
    let parsed = match response(head, &mut [const { MaybeUninit::uninit() }; FEW_FIELDS], limits, method)? {
        Some(parsed) => parsed,
        None => response(head, &mut heap_slots(limits), limits, method)?.ok_or(too_many(limits))?,
    };
    let taken = head.len();
    buffer.advance(taken);
    Ok(Some(parsed))
}

/// The bytes of the head, once it is complete.
fn complete_head<'a>(bytes: &'a [u8], limits: &Limits) -> Result<Option<&'a [u8]>, Error> {
    let within = bytes.get(..limits.head).unwrap_or(bytes);
    match section(within)? {
        Some(end) => Ok(bytes.get(..end)),
        None if bytes.len() > limits.head => Err(Error::TooLarge(Excess::Bytes(limits.head))),
        None => Ok(None),
    }
}

/// Slots for as many fields as the limits allow.
fn heap_slots<'a>(limits: &Limits) -> Vec<MaybeUninit<Header<'a>>> {
    (0..limits.fields.saturating_add(RESERVED_FIELDS).min(limits.head)).map(|_| MaybeUninit::uninit()).collect()
}

/// Parses a complete request head; `None` if it has more fields than `slots`.
fn request<'a>(
    head: &'a [u8],
    slots: &mut [MaybeUninit<Header<'a>>],
    limits: &Limits,
) -> Result<Option<ParsedRequest>, Error> {
    let mut parsed = httparse::Request::new(&mut []);
    match ParserConfig::default().parse_request_with_uninit_headers(&mut parsed, head, slots) {
        Ok(Status::Complete(_)) => {}
        Ok(Status::Partial) => return Err(Error::Malformed("incomplete head")),
        Err(httparse::Error::TooManyHeaders) => return Ok(None),
        Err(error) => return Err(parse_error(error, head, true)),
    }
    let version = version(parsed.version)?;
    let (Some(method), Some(target)) = (parsed.method, parsed.path) else {
        return Err(Error::Malformed("incomplete request line"));
    };
    // RFC 9112 §3: a target that is too long is answered with 414.
    if target.len() > limits.target {
        return Err(Error::TargetTooLong);
    }
    let mut fields = Fields::with_capacity(head.len(), parsed.headers.len());
    let mut control = ControlFields::default();
    control.read(parsed.headers, &mut fields, limits, true)?;
    let host_name = control.host_name;

    let (authority, path, scheme) = target_parts(method, target)?;
    let absolute = authority.is_some() && method != "CONNECT";
    let host = match (control.host, authority) {
        // RFC 9112 §3.2: an HTTP/1.1 request without Host is an error, even with a target in absolute form.
        (None, _) if version == Version::Http11 => return Err(Error::Malformed("missing Host")),
        // RFC 9112 §3.2.2: the target replaces Host. A difference is rejected instead, since a recipient behind the proxy could
        // route by the other one.
        (Some(host), Some(authority)) if !same_authority(host, authority.as_bytes(), scheme) => {
            return Err(Error::Malformed("Host differs from the authority of the target"));
        }
        (host, authority) => authority.map(str::as_bytes).or(host),
    };
    let length = control.framing(version)?;
    let parts = [method, path.as_ref()].map(|part| fields.store(part.as_bytes()));
    let host = host.map(|host| fields.store(host));
    let mut head = Request::from_spans(version, parts, [host, None], fields).map_err(|invalid| {
        Error::Malformed(match invalid {
            Invalid::Method => "invalid method",
            Invalid::Path => "invalid target",
            Invalid::Authority => "invalid Host",
        })
    })?;
    head.set_host_name(host_name.unwrap_or_default());
    // RFC 9112 §6.3, 7: a request without Content-Length and Transfer-Encoding has no body.
    let framing = length.unwrap_or(Framing::None);
    let has_body = !matches!(framing, Framing::None | Framing::Length(0));
    // RFC 9110 §10.1.1: 100-continue is ignored in HTTP/1.0 and without a body.
    Ok(Some(ParsedRequest {
        head,
        framing,
        keep_alive: control.persists(version),
        absolute,
        expects_continue: control.expects_continue && has_body && version == Version::Http11,
    }))
}

/// Parses a complete response head; `None` if it has more fields than `slots`.
fn response<'a>(
    head: &'a [u8],
    slots: &mut [MaybeUninit<Header<'a>>],
    limits: &Limits,
    method: &str,
) -> Result<Option<ParsedResponse>, Error> {
    let mut parsed = httparse::Response::new(&mut []);
    match ParserConfig::default().parse_response_with_uninit_headers(&mut parsed, head, slots) {
        Ok(Status::Complete(_)) => {}
        Ok(Status::Partial) => return Err(Error::Malformed("incomplete head")),
        Err(httparse::Error::TooManyHeaders) => return Ok(None),
        Err(error) => return Err(parse_error(error, head, false)),
    }
    let version = version(parsed.version)?;
    let status = parsed.code.filter(|status| (100..1000).contains(status));
    let status = status.ok_or(Error::Malformed("invalid status"))?;
    let mut fields = Fields::with_capacity(head.len(), parsed.headers.len());
    let mut control = ControlFields::default();
    control.read(parsed.headers, &mut fields, limits, false)?;

    let length = control.framing(version)?;
    let mut keep_alive = control.persists(version);
    // RFC 9112 §6.3, 1 and 2: these responses have no body, whatever their fields say.
    let tunnel = method == "CONNECT" && (200..300).contains(&status);
    let framing = if status < 200 || status == 204 || tunnel {
        // RFC 9110 §8.6, RFC 9112 §6.1: they must not have a length field either. A server that sends one may also send a body,
        // which would be read as the next response, so the connection is not reused.
        if length.is_some_and(|length| length != Framing::Length(0)) {
            if status < 200 {
                return Err(Error::Malformed("interim response with Content-Length or Transfer-Encoding"));
            }
            keep_alive = false;
        }
        fields.remove(Name::ContentLength);
        Framing::None
    } else if status == 304 || method == "HEAD" {
        Framing::None
    } else {
        // RFC 9112 §6.3, 8.
        length.unwrap_or(Framing::UntilClose)
    };
    // The reason phrase follows `HTTP/1.1 200 ` (RFC 9112 §4). `httparse` drops one with bytes above ASCII, so it is read here.
    let first = line(head)?.unwrap_or_default();
    let reason = head.get(13..first.saturating_sub(2)).unwrap_or_default();
    if !reason.iter().all(|byte| is_value(*byte)) {
        return Err(Error::Malformed("invalid reason phrase"));
    }
    let mut head = Response::new(version, status, fields);
    head.set_reason(reason);
    Ok(Some(ParsedResponse { head, framing, keep_alive: keep_alive && framing != Framing::UntilClose }))
}

fn version(minor: Option<u8>) -> Result<Version, Error> {
    match minor {
        Some(0) => Ok(Version::Http10),
        Some(1) => Ok(Version::Http11),
        _ => Err(Error::Version),
    }
}

fn too_many(limits: &Limits) -> Error {
    Error::TooLarge(Excess::Fields(limits.fields))
}

/// Converts an error of `httparse`.
#[cold]
fn parse_error(error: httparse::Error, head: &[u8], request: bool) -> Error {
    Error::Malformed(match error {
        httparse::Error::HeaderName => "invalid field name",
        httparse::Error::HeaderValue => "invalid field value",
        httparse::Error::NewLine => "invalid line ending",
        httparse::Error::Status => "invalid status line",
        httparse::Error::Token => "invalid request line or status line",
        httparse::Error::TooManyHeaders => "too many fields",
        httparse::Error::Version => {
            // `httparse` reports any version but 1.0 and 1.1 alike. A well-formed one is answered with 505 instead of 400.
            let mut words = head.split(|byte| matches!(byte, b' ' | b'\r'));
            let word = if request { words.nth(2) } else { words.next() };
            let known = matches!(word, Some([b'H', b'T', b'T', b'P', b'/', major, b'.', minor])
                if major.is_ascii_digit() && minor.is_ascii_digit());
            if known {
                return Error::Version;
            }
            "invalid HTTP version"
        }
    })
}

/// The fields that control framing, host and persistence of a message.
#[derive(Default)]
struct ControlFields<'a> {
    host: Option<&'a [u8]>,
    host_name: Option<&'a [u8]>,
    content_length: Option<u64>,
    /// A Transfer-Encoding is present.
    transfer_encoding: bool,
    /// Connection options.
    close: bool,
    keep_alive: bool,
    expects_continue: bool,
}

impl<'a> ControlFields<'a> {
    /// Reads all fields once and stores them in `fields`, except the `Host` of a request.
    /// Errors: ambiguous framing, an unknown coding or expectation, a repeated field that must be single, too many fields.
    fn read(
        &mut self,
        headers: &[Header<'a>],
        fields: &mut Fields,
        limits: &Limits,
        request: bool,
    ) -> Result<(), Error> {
        let mut chunked = 0;
        let mut reserved = 0;
        let mut unknown_coding = false;
        for header in headers {
            let (name, value) = (header.name.as_bytes(), super::trim(header.value));
            let known = Name::of(name);
            #[expect(clippy::wildcard_enum_match_arm, reason = "all other fields are only stored")]
            match known {
                // RFC 9112 §3.2: more than one Host is an error.
                Name::Host if request => {
                    self.host_name = Some(name);
                    if self.host.replace(value).is_some() {
                        return Err(Error::Malformed("more than one Host"));
                    }
                    continue;
                }
                // RFC 9110 §8.6 permits a recipient to accept equal repeated values; rejecting them is the safe choice.
                Name::ContentLength => {
                    let length = length(value).ok_or(Error::Malformed("invalid Content-Length"))?;
                    if self.content_length.replace(length).is_some() {
                        return Err(Error::Malformed("more than one Content-Length"));
                    }
                }
                // RFC 9112 §6.1: chunked is applied once, as the last coding. §6.3, 4: otherwise the length of a request is unknown.
                Name::TransferEncoding => {
                    self.transfer_encoding = true;
                    for coding in members(std::iter::once(value)) {
                        if coding.is_empty() || chunked > 0 {
                            return Err(Error::Malformed("invalid Transfer-Encoding"));
                        }
                        let is_chunked = coding.eq_ignore_ascii_case(b"chunked");
                        chunked += usize::from(is_chunked);
                        unknown_coding |= !is_chunked;
                    }
                }
                // RFC 9112 §9.3: `close` has precedence over `keep-alive`.
                Name::Connection => {
                    for option in members(std::iter::once(value)) {
                        self.close |= option.eq_ignore_ascii_case(b"close");
                        self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                    }
                }
                // RFC 9110 §10.1.1: 100-continue is the only expectation; others may be answered with 417.
                Name::Expect if request => {
                    if !value.eq_ignore_ascii_case(b"100-continue") {
                        return Err(Error::Expectation);
                    }
                    self.expects_continue = true;
                }
                Name::Reserved => reserved += 1,
                _ => {}
            }
            fields.push_as(known, name, value);
        }
        // Reserved fields come from another proxy and do not count against the limit of the caller, but have the same bound.
        if headers.len() - reserved > limits.fields || reserved > limits.fields {
            return Err(too_many(limits));
        }
        // RFC 9112 §6.3, 3: Transfer-Encoding overrides Content-Length, but the combination may be request smuggling.
        if self.transfer_encoding && self.content_length.is_some() {
            return Err(Error::Malformed("both Content-Length and Transfer-Encoding"));
        }
        if unknown_coding { Err(Error::Coding) } else { Ok(()) }
    }

    /// The framing that the fields give, if any. Errors: a Transfer-Encoding in HTTP/1.0, whose framing is faulty (RFC 9112 §6.1).
    fn framing(&self, version: Version) -> Result<Option<Framing>, Error> {
        match self.content_length {
            _ if self.transfer_encoding && version == Version::Http10 => {
                Err(Error::Malformed("Transfer-Encoding in HTTP/1.0"))
            }
            _ if self.transfer_encoding => Ok(Some(Framing::Chunked)),
            length => Ok(length.map(Framing::Length)),
        }
    }

    /// Whether the connection persists (RFC 9112 §9.3).
    fn persists(&self, version: Version) -> bool {
        !self.close && (version == Version::Http11 || self.keep_alive)
    }
}

/// A Content-Length: digits only, within a u64 (RFC 9110 §8.6).
fn length(value: &[u8]) -> Option<u64> {
    if value.is_empty() {
        return None;
    }
    value.iter().try_fold(0_u64, |length, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        length.checked_mul(10)?.checked_add(digit)
    })
}

/// Authority and path of a target, and the default port of its scheme.
type Target<'a> = (Option<&'a str>, Cow<'a, str>, &'static [u8]);

/// Splits a target into its parts: origin, absolute, authority (CONNECT) or asterisk form (RFC 9112 §3.2).
fn target_parts<'a>(method: &str, target: &'a str) -> Result<Target<'a>, Error> {
    if method == "CONNECT" {
        return match target.rsplit_once(':') {
            Some((_, port)) if !port.is_empty() && !port.ends_with(']') => Ok((Some(target), "/".into(), b"")),
            _ => Err(Error::Malformed("invalid target of CONNECT")),
        };
    }
    if target.starts_with('/') || (target == "*" && method == "OPTIONS") {
        return Ok((None, target.into(), b""));
    }
    let Some((scheme, rest)) = target.split_once("://") else {
        return Err(Error::Malformed("invalid target"));
    };
    let port: &[u8] = match scheme {
        _ if scheme.eq_ignore_ascii_case("http") => b"80",
        _ if scheme.eq_ignore_ascii_case("https") => b"443",
        _ => return Err(Error::Malformed("unknown scheme in the target")),
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let path = match path {
        // RFC 9112 §3.2.4: the absolute form of `*`.
        "" if method == "OPTIONS" => "*".into(),
        "" => "/".into(),
        _ if path.starts_with('/') => path.into(),
        _ => format!("/{path}").into(),
    };
    Ok((Some(authority), path, port))
}

/// Whether two authorities are equal, ignoring case and the default port of the scheme.
fn same_authority(one: &[u8], other: &[u8], port: &[u8]) -> bool {
    let bare = |authority: &[u8]| -> usize {
        let without = authority.strip_suffix(port).filter(|_| !port.is_empty()).unwrap_or(authority);
        // `a:` has an empty port, which also means the default port (RFC 3986 §3.2.3).
        without.strip_suffix(b":").map_or(authority.len(), <[u8]>::len)
    };
    let cut = |authority: &[u8]| authority.get(..bare(authority)).unwrap_or_default().to_ascii_lowercase();
    cut(one) == cut(other)
}
