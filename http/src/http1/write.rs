//! Writing of heads and chunks. Added fields have names in lower case, as in HTTP/2.
//! Spec: RFC 9112 §2-§4, §7.1; RFC 9113 §8.2.3 for cookies.

use super::{Framing, body::is_trailer, hop::is_hop_by_hop};
use crate::{
    fields::{Fields, Name},
    head::{Request, Response, Version, standard_reason},
};

/// The content of the Connection field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection<'a> {
    /// The connection persists: written in HTTP/1.0 only, since it is the default of HTTP/1.1 (RFC 9112 §9.3).
    KeepAlive,
    /// The connection closes after this message.
    Close,
    /// The connection switches to this protocol: requested or accepted.
    Upgrade(&'a [u8]),
}

/// Writes the head of a request. Fields are written unchanged, except hop-by-hop fields, which are left out. `Content-Length` (at
/// its original position) and `Transfer-Encoding` come from `framing`. `host` comes first unless it is among the fields. Several
/// `Cookie` fields, into which HTTP/2 may split one, are joined (RFC 9113 §8.2.3).
pub fn write_request(head: &Request, framing: Framing, connection: Connection<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(head.method().as_bytes());
    out.push(b' ');
    out.extend_from_slice(head.target().as_bytes());
    let http10 = head.version == Version::Http10;
    out.extend_from_slice(if http10 { b" HTTP/1.0\r\n" } else { b" HTTP/1.1\r\n" });
    match head.authority() {
        _ if head.fields.has(Name::Host) => {}
        Some(authority) => write_field(head.host_name(), authority.as_bytes(), out),
        // Without an authority, HTTP/1.1 requires an empty Host (RFC 9112 §3.2).
        None if !http10 => write_field(b"host", b"", out),
        None => {}
    }
    // A request without a body has no Content-Length; in a response to HEAD it is metadata instead.
    let length = if framing == Framing::None { ContentLength::Omit } else { ContentLength::of(framing) };
    write_fields(&head.fields, length, Kind::Request, out);
    write_end(framing, connection, http10, false, out);
}

/// Writes the head of a response with its reason phrase, or the standard one if it has none; otherwise as [`write_request`]. With
/// [`Framing::None`] a `Content-Length` is kept (HEAD, 304), except for 1xx and 204, which have none (RFC 9110 §8.6).
pub fn write_response(head: &Response, framing: Framing, connection: Connection<'_>, out: &mut Vec<u8>) {
    let http10 = head.version == Version::Http10;
    out.extend_from_slice(if http10 { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
    write_number(u64::from(head.status), 10, out);
    out.push(b' ');
    out.extend_from_slice(head.reason().unwrap_or_else(|| standard_reason(head.status).as_bytes()));
    out.extend_from_slice(b"\r\n");
    let length = if head.status < 200 || head.status == 204 { ContentLength::Omit } else { ContentLength::of(framing) };
    let asks = head.status == 426 && head.fields.has(Name::Upgrade);
    write_fields(&head.fields, length, if asks { Kind::AsksUpgrade } else { Kind::Response }, out);
    write_end(framing, connection, http10, asks, out);
}

/// Writes the chunk-size line of a chunk of `len` bytes, at least 1, since 0 ends the body. The caller writes the chunk and a CRLF
/// after it.
pub fn write_chunk_head(len: usize, out: &mut Vec<u8>) {
    write_number(len as u64, 16, out);
    out.extend_from_slice(b"\r\n");
}

/// Writes the last chunk and the trailer section, with the fields that are allowed in trailers.
pub fn write_last_chunk(trailers: Option<&Fields>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"0\r\n");
    for field in trailers.into_iter().flat_map(Fields::iter).filter(|field| is_trailer(field.known)) {
        write_field(field.name, field.value, out);
    }
    out.extend_from_slice(b"\r\n");
}

/// The message whose fields are written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Request,
    Response,
    /// A response of 426 with the protocol that the server asks for.
    AsksUpgrade,
}

/// How `Content-Length` is written.
#[derive(Clone, Copy)]
enum ContentLength {
    Keep,
    Omit,
    Write(u64),
}

impl ContentLength {
    fn of(framing: Framing) -> Self {
        match framing {
            Framing::None => Self::Keep,
            Framing::Length(length) => Self::Write(length),
            Framing::Chunked | Framing::UntilClose => Self::Omit,
        }
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "all other fields are written unchanged")]
fn write_fields(fields: &Fields, mut length: ContentLength, kind: Kind, out: &mut Vec<u8>) {
    let mut cookies = false;
    for field in fields.iter() {
        match field.known {
            Name::ContentLength => match length {
                ContentLength::Keep => write_field(field.name, field.value, out),
                ContentLength::Omit => {}
                ContentLength::Write(value) => {
                    write_length(field.name, value, out);
                    length = ContentLength::Omit;
                }
            },
            Name::Cookie if kind == Kind::Request => {
                if !cookies {
                    cookies = true;
                    write_cookies(field.name, fields, out);
                }
            }
            Name::Upgrade if kind == Kind::AsksUpgrade => write_field(field.name, field.value, out),
            known if is_hop_by_hop(known) => {}
            _ => write_field(field.name, field.value, out),
        }
    }
    if let ContentLength::Write(value) = length {
        write_length(b"content-length", value, out);
    }
}

/// `asks`: the fields hold an `Upgrade` of their own.
fn write_end(framing: Framing, connection: Connection<'_>, http10: bool, asks: bool, out: &mut Vec<u8>) {
    if framing == Framing::Chunked {
        out.extend_from_slice(b"transfer-encoding: chunked\r\n");
    }
    match connection {
        Connection::KeepAlive if asks => out.extend_from_slice(b"connection: upgrade\r\n"),
        Connection::Close if asks => out.extend_from_slice(b"connection: upgrade, close\r\n"),
        Connection::KeepAlive if http10 => out.extend_from_slice(b"connection: keep-alive\r\n"),
        Connection::KeepAlive => {}
        Connection::Close => out.extend_from_slice(b"connection: close\r\n"),
        Connection::Upgrade(protocol) => {
            out.extend_from_slice(b"connection: Upgrade\r\n");
            write_field(b"upgrade", protocol, out);
        }
    }
    out.extend_from_slice(b"\r\n");
}

fn write_field(name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn write_cookies(name: &[u8], fields: &Fields, out: &mut Vec<u8>) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    // An empty one adds nothing; joined, it would leave white space at the end of the value (RFC 9110 §5.5).
    for (i, cookie) in fields.all(Name::Cookie).filter(|cookie| !cookie.is_empty()).enumerate() {
        out.extend_from_slice(if i == 0 { b"" } else { b"; " });
        out.extend_from_slice(cookie);
    }
    out.extend_from_slice(b"\r\n");
}

fn write_length(name: &[u8], length: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    write_number(length, 10, out);
    out.extend_from_slice(b"\r\n");
}

/// Writes a number in base 10 or 16.
fn write_number(mut number: u64, base: u64, out: &mut Vec<u8>) {
    let start = out.len();
    loop {
        let digit =
            b"0123456789abcdef".get(usize::try_from(number % base).unwrap_or_default()).copied().unwrap_or_default();
        out.push(digit);
        number /= base;
        if number == 0 {
            break;
        }
    }
    if let Some(digits) = out.get_mut(start..) {
        digits.reverse();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_cookie_fields_leave_no_white_space_behind_the_others() {
        for (cookies, expected) in
            [(&["a", ""][..], "cookie: a\r\n"), (&["", "a", "", "b"], "cookie: a; b\r\n"), (&[""], "cookie: \r\n")]
        {
            let fields: Fields = cookies.iter().map(|cookie| ("cookie", *cookie)).collect();
            let mut out = Vec::new();
            write_cookies(b"cookie", &fields, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }
}
