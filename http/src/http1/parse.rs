//! Heads as they are read. `httparse` knows the grammar; what it lets pass and what the fields decide is judged here.
//! A head is parsed once, when it is there to its empty line: what comes byte by byte costs a search for line ends each time.
//! Spec: RFC 9112 §2-§6.

use std::{borrow::Cow, mem::MaybeUninit};

use bytes::{Buf, BytesMut};
use httparse::{Header, ParserConfig, Status};

use super::{Error, Framing, Limits, line, members, section};
use crate::{
    fields::{Fields, Name},
    head::{Invalid, Request, Response, Version, is_value},
};

/// Fields that most heads have room in: their places lie on the stack.
const FEW_FIELDS: usize = 32;
/// Fields above [`Limits::fields`] that proxies may tell each other.
const RESERVED_FIELDS: usize = 28;
/// Empty lines before a request that are skipped (RFC 9112 §2.2).
const MAX_EMPTY_LINES: usize = 4;
/// What a request line has room for beside its target: method, version, spaces.
const LINE_REST: usize = 48;

/// Head of a request as it was read.
#[derive(Debug)]
pub struct ParsedRequest {
    /// The head: the authority is that of the target or of `Host`, which is no more among the fields.
    pub head: Request,
    /// How long its body is.
    pub framing: Framing,
    /// Whether the connection may be used again after it.
    pub keep_alive: bool,
    /// Whether the body comes only after a 100.
    pub expects_continue: bool,
}

/// Head of an answer as it was read.
#[derive(Debug)]
pub struct ParsedResponse {
    /// The head, with its reason phrase, empty where it has none.
    pub head: Response,
    /// How long its body is; never above what the request's method and the status allow.
    pub framing: Framing,
    /// Whether the connection may be used again after it.
    pub keep_alive: bool,
}

/// Parses a head at the beginning of `buffer` and takes its bytes out. `Ok(None)`: more bytes are needed, and nothing is taken out.
/// Up to four empty lines before it are skipped.
/// Errors: malformed or above a limit, see [`Error`].
pub fn parse_request(buffer: &mut BytesMut, limits: &Limits) -> Result<Option<ParsedRequest>, Error> {
    let mut start = 0;
    while buffer.get(start..).is_some_and(|rest| rest.starts_with(b"\r\n")) {
        start += 2;
        if start > MAX_EMPTY_LINES * 2 {
            return Err(Error::Malformed("there are empty lines before the request"));
        }
    }
    let bytes = buffer.get(start..).unwrap_or_default();
    let head = match whole(bytes, limits) {
        Ok(Some(head)) => head,
        outcome => {
            let shown = bytes.get(..bytes.len().min(limits.target + LINE_REST + 1)).unwrap_or_default();
            let long = shown.len() > limits.target + LINE_REST && !shown.contains(&b'\n');
            return if long { Err(Error::TargetTooLong) } else { outcome.map(|_none| None) };
        }
    };
    let parsed = match request(head, &mut [const { MaybeUninit::uninit() }; FEW_FIELDS], limits)? {
        Some(parsed) => parsed,
        None => request(head, &mut many(limits), limits)?.ok_or(Error::TooLarge)?,
    };
    let taken = start + head.len();
    buffer.advance(taken);
    Ok(Some(parsed))
}

/// Parses a head at the beginning of `buffer` and takes its bytes out. `Ok(None)`: more bytes are needed, and nothing is taken out.
/// `method`: of the request it answers (HEAD and CONNECT have answers of their own).
/// Errors: malformed or above a limit, see [`Error`].
pub fn parse_response(buffer: &mut BytesMut, limits: &Limits, method: &str) -> Result<Option<ParsedResponse>, Error> {
    let Some(head) = whole(buffer, limits)? else { return Ok(None) };
    let parsed = match response(head, &mut [const { MaybeUninit::uninit() }; FEW_FIELDS], limits, method)? {
        Some(parsed) => parsed,
        None => response(head, &mut many(limits), limits, method)?.ok_or(Error::TooLarge)?,
    };
    let taken = head.len();
    buffer.advance(taken);
    Ok(Some(parsed))
}

/// The bytes of a head when all of it is there.
fn whole<'a>(bytes: &'a [u8], limits: &Limits) -> Result<Option<&'a [u8]>, Error> {
    let within = bytes.get(..limits.head).unwrap_or(bytes);
    match section(within)? {
        Some(end) => Ok(bytes.get(..end)),
        None if bytes.len() > limits.head => Err(Error::TooLarge),
        None => Ok(None),
    }
}

/// Places for as many fields as may be.
fn many<'a>(limits: &Limits) -> Vec<MaybeUninit<Header<'a>>> {
    (0..limits.fields.saturating_add(RESERVED_FIELDS).min(limits.head)).map(|_| MaybeUninit::uninit()).collect()
}

/// A request from its whole head; `None` when it has more fields than there are slots.
fn request<'a>(
    head: &'a [u8],
    slots: &mut [MaybeUninit<Header<'a>>],
    limits: &Limits,
) -> Result<Option<ParsedRequest>, Error> {
    let mut parsed = httparse::Request::new(&mut []);
    match ParserConfig::default().parse_request_with_uninit_headers(&mut parsed, head, slots) {
        Ok(Status::Complete(_)) => {}
        Ok(Status::Partial) => return Err(Error::Malformed("the head is not whole")),
        Err(httparse::Error::TooManyHeaders) => return Ok(None),
        Err(error) => return Err(refused(error, head, true)),
    }
    let version = version(parsed.version)?;
    let (Some(method), Some(target)) = (parsed.method, parsed.path) else {
        return Err(Error::Malformed("the request line is not whole"));
    };
    if target.len() > limits.target {
        return Err(Error::TargetTooLong);
    }
    let mut fields = Fields::with_capacity(head.len(), parsed.headers.len());
    let mut seen = Seen::default();
    seen.read(parsed.headers, &mut fields, limits, true)?;

    let (authority, path, scheme) = target_parts(method, target)?;
    let host = match (seen.host, authority) {
        // A server must refuse that, whatever the target says (RFC 9112 §3.2).
        (None, _) if version == Version::Http11 => return Err(Error::Malformed("the Host is missing")),
        (Some(host), Some(authority)) if !agree(host, authority.as_bytes(), scheme) => {
            return Err(Error::Malformed("the Host differs from the target's authority"));
        }
        (host, authority) => authority.map(str::as_bytes).or(host),
    };
    let length = seen.framing(version)?;
    let parts = [method, path.as_ref()].map(|part| fields.store(part.as_bytes()));
    let host = host.map(|host| fields.store(host));
    let head = Request::from_spans(version, parts, [host, None], fields).map_err(|invalid| {
        Error::Malformed(match invalid {
            Invalid::Method => "the method is not valid",
            Invalid::Path => "the target is not valid",
            Invalid::Authority => "the Host is not valid",
        })
    })?;
    let framing = length.unwrap_or(Framing::None);
    let has_body = !matches!(framing, Framing::None | Framing::Length(0));
    Ok(Some(ParsedRequest {
        head,
        framing,
        keep_alive: seen.keep_alive(version),
        expects_continue: seen.expects_continue && has_body && version == Version::Http11,
    }))
}

/// An answer from its whole head; `None` when it has more fields than there are slots.
fn response<'a>(
    head: &'a [u8],
    slots: &mut [MaybeUninit<Header<'a>>],
    limits: &Limits,
    method: &str,
) -> Result<Option<ParsedResponse>, Error> {
    let mut parsed = httparse::Response::new(&mut []);
    match ParserConfig::default().parse_response_with_uninit_headers(&mut parsed, head, slots) {
        Ok(Status::Complete(_)) => {}
        Ok(Status::Partial) => return Err(Error::Malformed("the head is not whole")),
        Err(httparse::Error::TooManyHeaders) => return Ok(None),
        Err(error) => return Err(refused(error, head, false)),
    }
    let version = version(parsed.version)?;
    let status = parsed.code.filter(|status| (100..1000).contains(status));
    let status = status.ok_or(Error::Malformed("the status is not valid"))?;
    let mut fields = Fields::with_capacity(head.len(), parsed.headers.len());
    let mut seen = Seen::default();
    seen.read(parsed.headers, &mut fields, limits, false)?;

    let length = seen.framing(version)?;
    let mut keep_alive = seen.keep_alive(version);
    let tunnel = method == "CONNECT" && (200..300).contains(&status);
    let framing = if status < 200 || status == 204 || tunnel {
        // These have no body and may not speak of one. A sender that does may send one too.
        if length.is_some_and(|length| length != Framing::Length(0)) {
            if status < 200 {
                return Err(Error::Malformed("an interim answer speaks of a body"));
            }
            keep_alive = false;
        }
        fields.remove(Name::ContentLength);
        Framing::None
    } else if status == 304 || method == "HEAD" {
        Framing::None
    } else {
        length.unwrap_or(Framing::UntilClose)
    };
    // Behind `HTTP/1.1 200` and its space; `httparse` gives no reason phrase that goes beyond ASCII.
    let first = line(head)?.unwrap_or_default();
    let reason = head.get(13..first.saturating_sub(2)).unwrap_or_default();
    if !reason.iter().all(|byte| is_value(*byte)) {
        return Err(Error::Malformed("the reason phrase is not valid"));
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

/// What a refusal of `httparse` means.
#[cold]
fn refused(error: httparse::Error, head: &[u8], request: bool) -> Error {
    Error::Malformed(match error {
        httparse::Error::HeaderName => "a field name is not valid",
        httparse::Error::HeaderValue => "a field value is not valid",
        httparse::Error::NewLine => "a line end is not valid",
        httparse::Error::Status => "the status line is not valid",
        httparse::Error::Token => "the first line is not valid",
        httparse::Error::TooManyHeaders => return Error::TooLarge,
        httparse::Error::Version => {
            let mut words = head.split(|byte| matches!(byte, b' ' | b'\r'));
            let word = if request { words.nth(2) } else { words.next() };
            let known = matches!(word, Some([b'H', b'T', b'T', b'P', b'/', major, b'.', minor])
                if major.is_ascii_digit() && minor.is_ascii_digit());
            if known {
                return Error::Version;
            }
            "the HTTP version is not valid"
        }
    })
}

/// What the fields of a head say of the message.
#[derive(Default)]
struct Seen<'a> {
    host: Option<&'a [u8]>,
    length: Option<u64>,
    codings: bool,
    close: bool,
    stay: bool,
    expects_continue: bool,
}

impl<'a> Seen<'a> {
    /// Goes through the fields once: notes what decides something, and keeps all but a request's `Host`.
    fn read(
        &mut self,
        headers: &[Header<'a>],
        fields: &mut Fields,
        limits: &Limits,
        request: bool,
    ) -> Result<(), Error> {
        let mut chunked = 0;
        let mut reserved = 0;
        let mut unknown = false;
        for header in headers {
            let (name, value) = (header.name.as_bytes(), super::trim(header.value));
            let known = Name::of(name);
            #[expect(clippy::wildcard_enum_match_arm, reason = "all other names decide nothing")]
            match known {
                Name::Host if request => {
                    if self.host.replace(value).is_some() {
                        return Err(Error::Malformed("more than one Host"));
                    }
                    continue;
                }
                Name::ContentLength => {
                    let length = length(value).ok_or(Error::Malformed("the Content-Length is not valid"))?;
                    if self.length.replace(length).is_some() {
                        return Err(Error::Malformed("more than one Content-Length"));
                    }
                }
                Name::TransferEncoding => {
                    self.codings = true;
                    for coding in members(std::iter::once(value)) {
                        // `chunked` is the last one, once.
                        if coding.is_empty() || chunked > 0 {
                            return Err(Error::Malformed("the Transfer-Encoding is not valid"));
                        }
                        let is_chunked = coding.eq_ignore_ascii_case(b"chunked");
                        chunked += usize::from(is_chunked);
                        unknown |= !is_chunked;
                    }
                }
                Name::Connection => {
                    for option in members(std::iter::once(value)) {
                        self.close |= option.eq_ignore_ascii_case(b"close");
                        self.stay |= option.eq_ignore_ascii_case(b"keep-alive");
                    }
                }
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
        if headers.len() - reserved > limits.fields || reserved > limits.fields {
            return Err(Error::TooLarge);
        }
        if self.codings && self.length.is_some() {
            return Err(Error::Malformed("both Content-Length and Transfer-Encoding"));
        }
        if unknown { Err(Error::Coding) } else { Ok(()) }
    }

    /// The length that was said, if any. Errors: HTTP/1.0 has no transfer codings (RFC 9112 §6.1).
    fn framing(&self, version: Version) -> Result<Option<Framing>, Error> {
        match self.length {
            _ if self.codings && version == Version::Http10 => Err(Error::Malformed("a Transfer-Encoding in HTTP/1.0")),
            _ if self.codings => Ok(Some(Framing::Chunked)),
            length => Ok(length.map(Framing::Length)),
        }
    }

    fn keep_alive(&self, version: Version) -> bool {
        !self.close && (version == Version::Http11 || self.stay)
    }
}

/// Digits alone, that fit (RFC 9110 §8.6).
fn length(value: &[u8]) -> Option<u64> {
    if value.is_empty() {
        return None;
    }
    value.iter().try_fold(0_u64, |length, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        length.checked_mul(10)?.checked_add(digit)
    })
}

/// Authority and path of a target, and the port its scheme stands for.
type Target<'a> = (Option<&'a str>, Cow<'a, str>, &'static [u8]);

/// Takes a target apart (RFC 9112 §3.2).
fn target_parts<'a>(method: &str, target: &'a str) -> Result<Target<'a>, Error> {
    if method == "CONNECT" {
        return match target.rsplit_once(':') {
            Some((_, port)) if !port.is_empty() && !port.ends_with(']') => Ok((Some(target), "/".into(), b"")),
            _ => Err(Error::Malformed("the target of CONNECT is not valid")),
        };
    }
    if target.starts_with('/') || (target == "*" && method == "OPTIONS") {
        return Ok((None, target.into(), b""));
    }
    let Some((scheme, rest)) = target.split_once("://") else {
        return Err(Error::Malformed("the target is not valid"));
    };
    let port: &[u8] = match scheme {
        _ if scheme.eq_ignore_ascii_case("http") => b"80",
        _ if scheme.eq_ignore_ascii_case("https") => b"443",
        _ => return Err(Error::Malformed("the target's scheme is not known")),
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let path = match path {
        // RFC 9112 §3.2.4.
        "" if method == "OPTIONS" => "*".into(),
        "" => "/".into(),
        _ if path.starts_with('/') => path.into(),
        _ => format!("/{path}").into(),
    };
    Ok((Some(authority), path, port))
}

/// Whether two authorities are the same, up to case and the port that the scheme stands for.
fn agree(one: &[u8], other: &[u8], port: &[u8]) -> bool {
    let bare = |authority: &[u8]| -> usize {
        let without = authority.strip_suffix(port).filter(|_| !port.is_empty()).unwrap_or(authority);
        // `a:` has an empty port, which is the default too.
        without.strip_suffix(b":").map_or(authority.len(), <[u8]>::len)
    };
    let cut = |authority: &[u8]| authority.get(..bare(authority)).unwrap_or_default().to_ascii_lowercase();
    cut(one) == cut(other)
}
