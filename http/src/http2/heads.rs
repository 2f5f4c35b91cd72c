//! Heads from and to header blocks, and what makes one malformed (RFC 9113 §8.1 to §8.5, RFC 8441 §4).

use super::Config;
use crate::{
    fields::{Fields, Name, Span},
    head::{Invalid, Request, Response, Version, is_token, is_value},
    hpack::{Decoder, Encoder, Error},
};

/// Why a head is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Not HTTP: the stream is reset.
    Malformed(&'static str),
    /// Above a limit: answered with 431.
    TooLarge,
    /// The target is not valid: answered with 400.
    BadTarget(&'static str),
}

use Refusal::{BadTarget, Malformed, TooLarge};

/// Bytes and fields that a usual head has room in without growing.
const USUAL: (usize, usize) = (512, 16);

/// A head while its fields come in.
struct Taking<'a> {
    config: &'a Config,
    fields: Fields,
    size: usize,
    /// A field that is no pseudo field has come.
    regular: bool,
    pseudo: [Option<Span>; PSEUDO.len()],
    length: Option<u64>,
}

const PSEUDO: [&[u8]; 6] = [b":method", b":path", b":authority", b":scheme", b":protocol", b":status"];
const STATUS: usize = 5;

impl<'a> Taking<'a> {
    fn new(config: &'a Config) -> Self {
        let fields = Fields::with_capacity(USUAL.0, USUAL.1);
        Self { config, fields, size: 0, regular: false, pseudo: [None; 6], length: None }
    }

    fn take(&mut self, known: Name, name: &[u8], value: &[u8]) -> Result<(), Refusal> {
        self.size += name.len() + value.len() + 32;
        if self.size > self.config.max_head {
            return Err(TooLarge);
        }
        if !value.iter().all(|byte| is_value(*byte)) || is_space(value.first()) || is_space(value.last()) {
            return Err(Malformed("a field value is not valid"));
        }
        if name.first() == Some(&b':') {
            let place = PSEUDO.iter().position(|pseudo| *pseudo == name).and_then(|index| self.pseudo.get_mut(index));
            return match place {
                Some(place @ None) if !self.regular => {
                    *place = Some(self.fields.store(value));
                    Ok(())
                }
                _ => Err(Malformed("a pseudo field is unknown, repeated or not at the beginning")),
            };
        }
        self.regular = true;
        if name.is_empty() || !name.iter().all(|byte| is_token(*byte) && !byte.is_ascii_uppercase()) {
            return Err(Malformed("a field name is not valid"));
        }
        if is_of_http1(known) {
            return Err(Malformed("a field of HTTP/1 connections"));
        }
        if known == Name::Te && value != b"trailers" {
            return Err(Malformed("TE other than trailers"));
        }
        if known == Name::ContentLength {
            let length = digits(value).ok_or(Malformed("Content-Length is no number"))?;
            if self.length.replace(length).is_some() {
                return Err(Malformed("Content-Length twice"));
            }
        }
        // What proxies tell each other does not count against the caller's limit, which the other proxy has judged.
        if self.fields.len() >= self.config.max_fields && known != Name::Reserved {
            return Err(TooLarge);
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

/// A head and what its Content-Length promises.
pub(super) type Taken<H> = Result<(H, Option<u64>), Refusal>;

/// Reads the head of a request.
pub(super) fn request(decoder: &mut Decoder, block: &[u8], config: &Config) -> Result<Taken<Request>, Error> {
    let mut taking = Taking::new(config);
    let taken = decoder.decode(block, |known, name, value| taking.take(known, name, value))?;
    Ok(taken.and_then(|()| finish_request(taking)))
}

fn finish_request(taking: Taking<'_>) -> Taken<Request> {
    let [method, path, authority, scheme, protocol, status] = taking.pseudo;
    let mut fields = taking.fields;
    let method = method.ok_or(Malformed(":method is missing"))?;
    if status.is_some() {
        return Err(Malformed(":status in a request"));
    }
    let is_connect = fields.bytes(method) == b"CONNECT";
    let path = match (path, scheme) {
        (Some(path), Some(_)) if !is_connect || protocol.is_some() => path,
        (None, None) if is_connect && protocol.is_none() => fields.store(b"/"),
        _ => return Err(Malformed(":path and :scheme are not as the method wants them")),
    };
    if protocol.is_some() && !(is_connect && taking.config.connect_protocol) {
        return Err(Malformed(":protocol is not welcome"));
    }
    if is_connect && protocol.is_none() && authority.is_none_or(|authority| fields.bytes(authority).is_empty()) {
        return Err(Malformed("CONNECT without :authority"));
    }
    let authority = host(&mut fields, authority)?;
    let head = Request::from_spans(Version::Http2, [method, path], [authority, protocol], fields);
    match head {
        Ok(head) => Ok((head, taking.length)),
        Err(Invalid::Method) => Err(Malformed("the method is not valid")),
        Err(Invalid::Path) => Err(BadTarget("the path is not valid")),
        Err(Invalid::Authority) => Err(BadTarget("the authority is not valid")),
    }
}

/// The host, from :authority or Host, which must agree; Host is taken out.
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
        return Err(BadTarget("the Host differs from the target's authority"));
    }
    fields.remove(Name::Host);
    Ok(Some(match authority {
        Some(authority) => authority,
        None => fields.store(&host),
    }))
}

/// Reads the head of an answer.
pub(super) fn response(decoder: &mut Decoder, block: &[u8], config: &Config) -> Result<Taken<Response>, Error> {
    let mut taking = Taking::new(config);
    let taken = decoder.decode(block, |known, name, value| taking.take(known, name, value))?;
    Ok(taken.and_then(|()| {
        let status = taking.pseudo.get(STATUS).copied().flatten();
        let others = taking.pseudo.iter().take(STATUS).any(Option::is_some);
        let status = status.filter(|_| !others).map(|status| taking.fields.bytes(status));
        let status = status.filter(|status| status.len() == 3).and_then(digits);
        let status = status.and_then(|status| u16::try_from(status).ok()).filter(|status| *status >= 100);
        let status = status.filter(|status| *status != 101).ok_or(Malformed(":status is not valid"))?;
        Ok((Response::new(Version::Http2, status, taking.fields), taking.length))
    }))
}

/// Reads trailers. Errors: as for a head, and pseudo fields.
pub(super) fn trailers(decoder: &mut Decoder, block: &[u8], config: &Config) -> Result<Result<Fields, Refusal>, Error> {
    let mut taking = Taking::new(config);
    let taken = decoder.decode(block, |known, name, value| taking.take(known, name, value))?;
    Ok(taken.and_then(|()| match taking.pseudo.iter().any(Option::is_some) {
        true => Err(Malformed("a pseudo field among trailers")),
        false => Ok(taking.fields),
    }))
}

/// Writes the head of a request. `Host` is not written: the authority says it.
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

/// Writes the head of an answer.
pub(super) fn write_response(encoder: &mut Encoder, head: &Response, out: &mut Vec<u8>) {
    encoder.begin(out);
    encoder.status(head.status, out);
    write_fields(encoder, &head.fields, out);
}

/// Writes trailers.
pub(super) fn write_trailers(encoder: &mut Encoder, fields: &Fields, out: &mut Vec<u8>) {
    encoder.begin(out);
    write_fields(encoder, fields, out);
}

/// What belongs to HTTP/1 connections is left out: nobody may be given a head that it has to refuse.
fn write_fields(encoder: &mut Encoder, fields: &Fields, out: &mut Vec<u8>) {
    for field in fields.iter() {
        let te = field.known == Name::Te && field.value != b"trailers";
        if !te && !is_of_http1(field.known) && !matches!(field.known, Name::Host | Name::Http2Settings) {
            encoder.field(field.known, field.name, field.value, out);
        }
    }
}

/// Whether a field belongs to one HTTP/1 connection (RFC 9113 §8.2.2).
fn is_of_http1(name: Name) -> bool {
    matches!(name, Name::Connection | Name::KeepAlive | Name::ProxyConnection | Name::TransferEncoding | Name::Upgrade)
}
