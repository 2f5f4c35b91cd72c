//! Heads and chunks as they are written. The names of fields that are added are in lower case, as HTTP/2 would have them.
//! Spec: RFC 9112 §2-§4, §7.1; RFC 9113 §8.2.3 for cookies.

use super::{Framing, body::is_trailer, hop::is_hop_by_hop};
use crate::{
    fields::{Fields, Name},
    head::{Request, Response, Version},
};

/// What the Connection field says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection<'a> {
    /// The connection stays: said in HTTP/1.0 only, where it is not understood by itself.
    KeepAlive,
    /// The connection ends with this message.
    Close,
    /// Another protocol is asked for or begins.
    Upgrade(&'a [u8]),
}

/// Writes the head of a request. Its fields are written as they are, those of one connection left out; `Content-Length` and
/// `Transfer-Encoding` come from `framing`, a `Content-Length` in the place it had. `host` stands first unless it is among the fields.
/// Several `Cookie` fields, into which HTTP/2 may split one, become one.
pub fn write_request(head: &Request, framing: Framing, connection: Connection<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(head.method().as_bytes());
    out.push(b' ');
    out.extend_from_slice(head.target().as_bytes());
    let old = head.version == Version::Http10;
    out.extend_from_slice(if old { b" HTTP/1.0\r\n" } else { b" HTTP/1.1\r\n" });
    match head.authority() {
        _ if head.fields.has(Name::Host) => {}
        Some(authority) => write_field(b"host", authority.as_bytes(), out),
        // Empty where there is none (RFC 9112 §3.2).
        None if !old => write_field(b"host", b"", out),
        None => {}
    }
    // A request of this framing has no length to tell.
    let length = if framing == Framing::None { Length::Drop } else { Length::of(framing) };
    write_fields(&head.fields, length, true, out);
    write_end(framing, connection, old, out);
}

/// Writes the head of an answer: its reason phrase as it came, else the usual one; the rest as in [`write_request`]. With
/// [`Framing::None`] a `Content-Length` stays as it is (HEAD, 304), but for 1xx and 204, which have none.
pub fn write_response(head: &Response, framing: Framing, connection: Connection<'_>, out: &mut Vec<u8>) {
    let old = head.version == Version::Http10;
    out.extend_from_slice(if old { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
    write_number(u64::from(head.status), 10, out);
    out.push(b' ');
    out.extend_from_slice(head.reason().unwrap_or_else(|| standard_reason(head.status).as_bytes()));
    out.extend_from_slice(b"\r\n");
    let length = if head.status < 200 || head.status == 204 { Length::Drop } else { Length::of(framing) };
    write_fields(&head.fields, length, false, out);
    write_end(framing, connection, old, out);
}

/// Writes the line before a chunk of so many bytes, at least one: none would end the body. The chunk and a CRLF follow.
pub fn write_chunk_head(len: usize, out: &mut Vec<u8>) {
    write_number(len as u64, 16, out);
    out.extend_from_slice(b"\r\n");
}

/// Writes the end of a chunked body, with those of the trailers that may be there.
pub fn write_last_chunk(trailers: Option<&Fields>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"0\r\n");
    for field in trailers.into_iter().flat_map(Fields::iter).filter(|field| is_trailer(field.known)) {
        write_field(field.name, field.value, out);
    }
    out.extend_from_slice(b"\r\n");
}

/// What becomes of `Content-Length`.
#[derive(Clone, Copy)]
enum Length {
    Keep,
    Drop,
    Write(u64),
}

impl Length {
    fn of(framing: Framing) -> Self {
        match framing {
            Framing::None => Self::Keep,
            Framing::Length(length) => Self::Write(length),
            Framing::Chunked | Framing::UntilClose => Self::Drop,
        }
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "all other names are written as they are")]
fn write_fields(fields: &Fields, mut length: Length, request: bool, out: &mut Vec<u8>) {
    let mut cookies = false;
    for field in fields.iter() {
        match field.known {
            Name::ContentLength => match length {
                Length::Keep => write_field(field.name, field.value, out),
                Length::Drop => {}
                Length::Write(value) => {
                    write_length(field.name, value, out);
                    length = Length::Drop;
                }
            },
            Name::Cookie if request => {
                if !cookies {
                    cookies = true;
                    write_cookies(field.name, fields, out);
                }
            }
            known if is_hop_by_hop(known) => {}
            _ => write_field(field.name, field.value, out),
        }
    }
    if let Length::Write(value) = length {
        write_length(b"content-length", value, out);
    }
}

fn write_end(framing: Framing, connection: Connection<'_>, old: bool, out: &mut Vec<u8>) {
    if framing == Framing::Chunked {
        out.extend_from_slice(b"transfer-encoding: chunked\r\n");
    }
    match connection {
        Connection::KeepAlive if old => out.extend_from_slice(b"connection: keep-alive\r\n"),
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
    for (i, crumb) in fields.all(Name::Cookie).enumerate() {
        out.extend_from_slice(if i == 0 { b": " } else { b"; " });
        out.extend_from_slice(crumb);
    }
    out.extend_from_slice(b"\r\n");
}

fn write_length(name: &[u8], length: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    write_number(length, 10, out);
    out.extend_from_slice(b"\r\n");
}

/// Digits of a number, to base 10 or 16.
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

/// The usual words for a status (RFC 9110 §15, and the registry).
fn standard_reason(status: u16) -> &'static str {
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
