//! Heads and trailers from and to header blocks, with the checks for malformed messages (RFC 9113 §8.1 to §8.5, RFC 8441 §4).

use super::Config;
use crate::{
    fields::{Field, Fields, Name, Span},
    head::{Excess, Invalid, Request, Response, Version, is_token, is_value},
    hpack::{Decoder, Encoder, Error},
};

/// Why a field section is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// A malformed message (RFC 9113 §8.1.1): the stream is reset.
    Malformed(&'static str),
    /// Above a limit of [`Config`]: answered with 431.
    TooLarge(Excess),
    /// Invalid path or authority: answered with 400.
    BadTarget(&'static str),
}

use Refusal::{BadTarget, Malformed, TooLarge};

/// Initial capacity of a head, in bytes and fields.
const CAPACITY: (usize, usize) = (512, 16);

/// Collects and checks the fields of one field section.
struct Collector<'a> {
    config: &'a Config,
    fields: Fields,
    /// Bytes so far, as RFC 9113 §6.5.2 counts them.
    size: usize,
    /// A regular field has followed the pseudo-header fields.
    regular: bool,
    pseudo: [Option<Span>; PSEUDO.len()],
    content_length: Option<u64>,
}

const PSEUDO: [&[u8]; 6] = [b":method", b":path", b":authority", b":scheme", b":protocol", b":status"];
const STATUS: usize = 5;

impl<'a> Collector<'a> {
    fn new(config: &'a Config) -> Self {
        let fields = Fields::with_capacity(CAPACITY.0, CAPACITY.1);
        Self { config, fields, size: 0, regular: false, pseudo: [None; 6], content_length: None }
    }

    fn field(&mut self, known: Name, name: &[u8], value: &[u8]) -> Result<(), Refusal> {
        self.size += name.len() + value.len() + 32;
        if self.size > self.config.max_head {
            return Err(TooLarge(Excess::Bytes(self.config.max_head)));
        }
        // RFC 9113 §8.2.1: no control characters, no leading or trailing white space.
        if !value.iter().all(|byte| is_value(*byte)) || is_space(value.first()) || is_space(value.last()) {
            return Err(Malformed("invalid field value"));
        }
        // RFC 9113 §8.3: pseudo-header fields are known, appear once each, and precede all regular fields.
        if name.first() == Some(&b':') {
            let slot = PSEUDO.iter().position(|pseudo| *pseudo == name).and_then(|index| self.pseudo.get_mut(index));
            return match slot {
                Some(slot @ None) if !self.regular => {
                    *slot = Some(self.fields.store(value));
                    Ok(())
                }
                _ => Err(Malformed("unknown, repeated or misplaced pseudo-header field")),
            };
        }
        self.regular = true;
        // RFC 9113 §8.2.1: names are tokens in lower case.
        if name.is_empty() || !name.iter().all(|byte| is_token(*byte) && !byte.is_ascii_uppercase()) {
            return Err(Malformed("invalid field name"));
        }
        // RFC 9113 §8.2.2: connection-specific fields make a message malformed; TE may only be `trailers`.
        if known.is_connection_specific() {
            return Err(Malformed("connection-specific field"));
        }
        if known == Name::Te && value != b"trailers" {
            return Err(Malformed("TE other than trailers"));
        }
        // As in HTTP/1, a repeated Content-Length is rejected: the message may be forwarded as HTTP/1.
        if known == Name::ContentLength {
            let length = digits(value).ok_or(Malformed("invalid Content-Length"))?;
            if self.content_length.replace(length).is_some() {
                return Err(Malformed("more than one Content-Length"));
            }
        }
        // Reserved fields come from another proxy, which has applied the limit to its caller; only their size counts here.
        if self.fields.len() >= self.config.max_fields && known != Name::Reserved {
            return Err(TooLarge(Excess::Fields(self.config.max_fields)));
        }
        self.fields.push_as(known, name, value);
        Ok(())
    }
}

fn is_space(byte: Option<&u8>) -> bool {
    matches!(byte, Some(b' ' | b'\t'))
}

fn digits(value: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    text.parse().ok()
}

/// A head with its Content-Length.
pub(super) type Decoded<H> = Result<(H, Option<u64>), Refusal>;

/// Decodes the head of a request. Outer error: the block is not valid HPACK, a connection error.
pub(super) fn request(decoder: &mut Decoder, block: &[u8], config: &Config) -> Result<Decoded<Request>, Error> {
    let mut collector = Collector::new(config);
    let decoded = decoder.decode(block, |known, name, value| collector.field(known, name, value))?;
    Ok(decoded.and_then(|()| finish_request(collector)))
}

fn finish_request(collector: Collector<'_>) -> Decoded<Request> {
    let [method, path, authority, scheme, protocol, status] = collector.pseudo;
    let mut fields = collector.fields;
    let method = method.ok_or(Malformed("missing :method"))?;
    if status.is_some() {
        return Err(Malformed(":status in a request"));
    }
    let is_connect = fields.bytes(method) == b"CONNECT";
    // RFC 9113 §8.3.1: :scheme and :path are mandatory; §8.5: CONNECT has neither; RFC 8441 §4: extended CONNECT has both.
    let path = match (path, scheme) {
        (Some(path), Some(_)) if fields.bytes(path).is_empty() => return Err(Malformed("empty :path")),
        (Some(path), Some(_)) if !is_connect || protocol.is_some() => path,
        (None, None) if is_connect && protocol.is_none() => fields.store(b"/"),
        _ => return Err(Malformed(":path and :scheme do not fit the method")),
    };
    if protocol.is_some() && !(is_connect && collector.config.connect_protocol) {
        return Err(Malformed("unexpected :protocol"));
    }
    if is_connect && protocol.is_none() && authority.is_none_or(|authority| fields.bytes(authority).is_empty()) {
        return Err(Malformed("CONNECT without :authority"));
    }
    let authority = host(&mut fields, authority)?;
    let head = Request::from_spans(Version::Http2, [method, path], [authority, protocol], fields);
    match head {
        Ok(head) => Ok((head, collector.content_length)),
        Err(Invalid::Method) => Err(Malformed("invalid method")),
        Err(Invalid::Path) => Err(BadTarget("invalid path")),
        Err(Invalid::Authority) => Err(BadTarget("invalid authority")),
    }
}

/// The authority, from :authority or Host, which must be equal if both are present (RFC 9113 §8.3.1). Host is removed.
fn host(fields: &mut Fields, authority: Option<Span>) -> Result<Option<Span>, Refusal> {
    let authority = authority.filter(|authority| !fields.bytes(*authority).is_empty());
    if !fields.has(Name::Host) {
        return Ok(authority);
    }
    if fields.all(Name::Host).count() > 1 {
        return Err(BadTarget("more than one Host"));
    }
    let host = fields.first(Name::Host).unwrap_or_default().to_vec();
    if authority.is_some_and(|authority| !fields.bytes(authority).eq_ignore_ascii_case(&host)) {
        return Err(BadTarget("Host differs from :authority"));
    }
    fields.remove(Name::Host);
    Ok(Some(match authority {
        Some(authority) => authority,
        None => fields.store(&host),
    }))
}

/// Decodes the head of a response. Errors: as for a request.
pub(super) fn response(decoder: &mut Decoder, block: &[u8], config: &Config) -> Result<Decoded<Response>, Error> {
    let mut collector = Collector::new(config);
    let decoded = decoder.decode(block, |known, name, value| collector.field(known, name, value))?;
    Ok(decoded.and_then(|()| {
        // RFC 9113 §8.3.2: :status is the only pseudo-header field of a response; §8.6: HTTP/2 has no 101.
        let status = collector.pseudo.get(STATUS).copied().flatten();
        let others = collector.pseudo.iter().take(STATUS).any(Option::is_some);
        let status = status.filter(|_| !others).map(|status| collector.fields.bytes(status));
        let status = status.filter(|status| status.len() == 3).and_then(digits);
        let status = status.and_then(|status| u16::try_from(status).ok()).filter(|status| *status >= 100);
        let status = status.filter(|status| *status != 101).ok_or(Malformed("invalid :status"))?;
        Ok((Response::new(Version::Http2, status, collector.fields), collector.content_length))
    }))
}

/// Decodes trailers. Errors: as for a head, and pseudo-header fields (RFC 9113 §8.1).
pub(super) fn trailers(decoder: &mut Decoder, block: &[u8], config: &Config) -> Result<Result<Fields, Refusal>, Error> {
    let mut collector = Collector::new(config);
    let decoded = decoder.decode(block, |known, name, value| collector.field(known, name, value))?;
    Ok(decoded.and_then(|()| match collector.pseudo.iter().any(Option::is_some) {
        true => Err(Malformed("pseudo-header field in trailers")),
        // Reserved fields are for heads; an application may read trailers as if they stood there.
        false => {
            let mut fields = collector.fields;
            fields.remove(Name::Reserved);
            Ok(fields)
        }
    }))
}

/// Encodes the head of a request. `Host` is not written: the authority replaces it.
pub(super) fn write_request(encoder: &mut Encoder, head: &Request, out: &mut Vec<u8>) {
    encoder.begin(out);
    encoder.field(Name::Other, b":method", head.method().as_bytes(), out);
    let protocol = head.protocol();
    if head.method() != "CONNECT" || protocol.is_some() {
        encoder.field(Name::Other, b":scheme", b"http", out);
        encoder.field(Name::Other, b":path", head.target().as_bytes(), out);
    }
    if let Some(authority) = head.authority() {
        encoder.field(Name::Other, b":authority", authority.as_bytes(), out);
    }
    if let Some(protocol) = protocol {
        encoder.field(Name::Other, b":protocol", protocol, out);
    }
    write_fields(encoder, &head.fields, out);
}

/// Encodes the head of a response.
pub(super) fn write_response(encoder: &mut Encoder, head: &Response, out: &mut Vec<u8>) {
    encoder.begin(out);
    encoder.status(head.status, out);
    write_fields(encoder, &head.fields, out);
}

/// Encodes trailers.
pub(super) fn write_trailers(encoder: &mut Encoder, fields: &Fields, out: &mut Vec<u8>) {
    encoder.begin(out);
    write_fields(encoder, fields, out);
}

/// Connection-specific fields are left out, since the peer must treat them as malformed (RFC 9113 §8.2.2).
fn write_fields(encoder: &mut Encoder, fields: &Fields, out: &mut Vec<u8>) {
    for field in fields.iter().filter(Field::is_carried) {
        encoder.field(field.known, field.name, field.value, out);
    }
}
