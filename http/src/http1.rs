//! HTTP/1: heads read and written, bodies taken apart, and what belongs to one connection only.
//! Shape: `parse` reads heads with `httparse` and decides how long the message is, `body` reads what follows, `write` writes both,
//! `hop` knows the fields of one connection. This file has what they share.
//! Invariant: a message whose end two readers could see in different places is refused (RFC 9112 §11.2): there is one length,
//! said once and in one way, and every line ends with CRLF, in requests and answers alike.
//! Spec: RFC 9112, RFC 9110 §5-§7 and §10.1.1.

mod body;
mod hop;
mod parse;
mod write;

#[cfg(test)]
mod tests;

pub use body::{BodyDecoder, Piece};
pub use hop::{strip_hop_by_hop, upgrade};
pub use parse::{ParsedRequest, ParsedResponse, parse_request, parse_response};
pub use write::{Connection, write_chunk_head, write_last_chunk, write_request, write_response};

/// What bounds a head.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a head from its first line to the empty one, and of a trailer section.
    pub head: usize,
    /// Fields of a head or trailer section; those that proxies tell each other are not counted among them, but are bounded too.
    pub fields: usize,
    /// Bytes of a request's target.
    pub target: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { head: 16 * 1024, fields: 100, target: 8 * 1024 }
    }
}

/// How long a message's body is (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// It has no body, and a request says no length.
    None,
    /// As many bytes; 0 too where that was said.
    Length(u64),
    /// In chunks.
    Chunked,
    /// Until the connection ends; answers only.
    UntilClose,
}

/// Why a message is refused. After any of them the connection is of no more use: where the next message begins is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Against the grammar, or of two meanings.
    #[error("{0}")]
    Malformed(&'static str),
    /// A target above [`Limits::target`].
    #[error("the request's target is too long")]
    TargetTooLong,
    /// An expectation other than `100-continue`.
    #[error("the expectation is not known")]
    Expectation,
    /// A head or trailer section above [`Limits::head`] or [`Limits::fields`].
    #[error("the head is too large")]
    TooLarge,
    /// A transfer coding other than `chunked`.
    #[error("the transfer coding is not known")]
    Coding,
    /// A version other than 1.0 and 1.1.
    #[error("the HTTP version is not known")]
    Version,
    /// The connection ended before the message.
    #[error("the message breaks off")]
    Truncated,
}

impl Error {
    /// The status that answers it.
    pub fn status(&self) -> u16 {
        match self {
            Self::Malformed(_) | Self::Truncated => 400,
            Self::TargetTooLong => 414,
            Self::Expectation => 417,
            Self::TooLarge => 431,
            Self::Coding => 501,
            Self::Version => 505,
        }
    }
}

/// Length of the first line with its line end: `None` when there is no line end yet. Errors: it does not end with CRLF.
fn line(bytes: &[u8]) -> Result<Option<usize>, Error> {
    let len = memchr::memchr(b'\n', bytes).map_or(0, |at| at + 1);
    match bytes.get(..len).unwrap_or_default() {
        [.., b'\r', b'\n'] => Ok(Some(len)),
        [.., b'\n'] => Err(Error::Malformed("a line does not end with CRLF")),
        _ => Ok(None),
    }
}

/// Where the section of lines ends that begins here, behind its empty line.
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

/// The members of comma-separated lists, without white space around them.
fn members<'a>(values: impl Iterator<Item = &'a [u8]> + Clone) -> impl Iterator<Item = &'a [u8]> + Clone {
    values.flat_map(|value| value.split(|byte| *byte == b',')).map(trim)
}

/// Without spaces and tabs at the ends: no other white space (RFC 9110 §5.6.3).
fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}
