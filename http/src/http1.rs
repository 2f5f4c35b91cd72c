//! HTTP/1: parsing and writing of heads, bodies and hop-by-hop fields.
//! Shape: `parse` parses heads with `httparse` and determines the framing, `body` decodes bodies, `write` writes heads and chunks,
//! `hop` handles hop-by-hop fields. This file has their shared types and the line scanner.
//! Invariant: a message is rejected if two recipients could disagree on its end (request smuggling, RFC 9112 §11.2): its length
//! is given once and in one way, and every line ends with CRLF, in requests and responses alike.
//! Spec: RFC 9112, RFC 9110 §5-§7 and §10.1.1.

mod body;
mod hop;
mod parse;
mod write;

#[cfg(test)]
mod tests;

pub use body::{BodyDecoder, Piece};
pub use hop::{is_upgrade, strip_answer, strip_hop_by_hop, upgrade};
pub use parse::{ParsedRequest, ParsedResponse, parse_request, parse_response};
pub use write::{Connection, write_chunk_head, write_last_chunk, write_request, write_response};

use crate::head::Excess;

/// Bounds of a head.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a head, from its first line to the empty line; also of a trailer section.
    pub head: usize,
    /// Fields of a head or trailer section. Fields reserved for proxies are counted apart, with the same bound.
    pub fields: usize,
    /// Bytes of a request target.
    pub target: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { head: 16 * 1024, fields: 100, target: 8 * 1024 }
    }
}

/// How the length of a message body is determined (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// No body, and in a request no length field.
    None,
    /// Content-Length, in bytes; may be 0.
    Length(u64),
    /// Chunked transfer coding.
    Chunked,
    /// The body ends with the connection; responses only.
    UntilClose,
}

/// Why a message is rejected. The connection cannot be reused after any of them, since the start of the next message is unknown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Invalid syntax or ambiguous framing.
    #[error("{0}")]
    Malformed(&'static str),
    /// A target above [`Limits::target`].
    #[error("request target too long")]
    TargetTooLong,
    /// An expectation other than `100-continue`.
    #[error("unknown expectation")]
    Expectation,
    /// A head above [`Limits::head`] or [`Limits::fields`].
    #[error("head too large: {0}")]
    TooLarge(Excess),
    /// A trailer section above the same limits.
    #[error("trailers too large: {0}")]
    TrailersTooLarge(Excess),
    /// A transfer coding other than `chunked`.
    #[error("unknown transfer coding")]
    Coding,
    /// A version other than 1.0 and 1.1.
    #[error("unsupported HTTP version")]
    Version,
    /// The connection ended inside the message.
    #[error("connection closed inside a message")]
    Truncated,
}

impl Error {
    /// The status of the answer to a request with this error.
    pub fn status(&self) -> u16 {
        match self {
            Self::Malformed(_) | Self::Truncated => 400,
            Self::TargetTooLong => 414,
            Self::Expectation => 417,
            Self::TooLarge(_) | Self::TrailersTooLarge(_) => 431,
            Self::Coding => 501,
            Self::Version => 505,
        }
    }
}

/// Length of the first line including its CRLF; `None` if the line is incomplete. Errors: the line ends with a bare LF, which
/// RFC 9112 §2.2 permits a recipient to accept and which another recipient may read differently.
fn line(bytes: &[u8]) -> Result<Option<usize>, Error> {
    let len = memchr::memchr(b'\n', bytes).map_or(0, |at| at + 1);
    match bytes.get(..len).unwrap_or_default() {
        [.., b'\r', b'\n'] => Ok(Some(len)),
        [.., b'\n'] => Err(Error::Malformed("line does not end with CRLF")),
        _ => Ok(None),
    }
}

/// Length of the section of lines at the beginning of `bytes`, including its empty line; `None` if it is incomplete.
fn section(bytes: &[u8]) -> Result<Option<usize>, Error> {
    let mut end = 0;
    loop {
        match line(bytes.get(end..).unwrap_or_default())? {
            None => return Ok(None),
            Some(2) => return Ok(Some(end + 2)),
            Some(len) => end += len,
        }
    }
}

/// The members of comma-separated lists (RFC 9110 §5.6.1), without surrounding white space.
fn members<'a>(values: impl Iterator<Item = &'a [u8]> + Clone) -> impl Iterator<Item = &'a [u8]> + Clone {
    values.flat_map(|value| value.split(|byte| *byte == b',')).map(trim)
}

/// The value without leading and trailing spaces and tabs, the only optional white space (RFC 9110 §5.6.3).
fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}
