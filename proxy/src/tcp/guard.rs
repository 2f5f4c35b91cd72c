//! Opaque bytes that a lenient HTTP server may read requests in: no reserved field passes, since only a proxy tells the
//! application who calls (docs/adr/0029).
//! Shape: a [`Guarded`] stream is read like the stream in it; its read fails at a line that begins with `weft-` or `weft_`.
//! Cost: of text, one search for line ends and a look at the beginning of each line; of binary bytes, a look at their first
//! line only. A server that finds no version of HTTP there reads no further.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use crate::stream::{Duplex, Exit};

/// What every reserved field begins with, up to `-` or `_`.
const RESERVED: &[u8] = b"weft";

/// The word in a request line that no server does without, but for GET (HTTP/0.9), which is text.
const VERSION: &[u8] = b"HTTP/";
/// Longest request line that a server is known to take (Python's `http.server`), in bytes.
const MAX_LINE: usize = 65_536;

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Guard {
    Nothing,
    /// The first line, for [`VERSION`], of which so much has come, in so many bytes; then every line, or nothing.
    FirstLine {
        matched: usize,
        seen: usize,
        blank: bool,
    },
    /// The beginning of every line: how much of [`RESERVED`] has come. `None`: inside a line.
    Lines(Option<usize>),
}

/// A stream whose bytes are looked at.
#[derive(Debug)]
pub(crate) struct Guarded<S> {
    stream: S,
    guard: Guard,
}

/// A reserved field came in opaque bytes.
#[derive(Debug, thiserror::Error)]
#[error("a reserved weft-* field in bytes that are not read as HTTP")]
pub(crate) struct ReservedField;

impl Guard {
    pub(crate) fn every_line() -> Self {
        Self::Lines(Some(0))
    }

    pub(crate) fn first_line() -> Self {
        Self::FirstLine { matched: 0, seen: 0, blank: true }
    }

    /// Whether the next bytes may pass.
    fn admits(&mut self, mut bytes: &[u8]) -> bool {
        while let Some((byte, rest)) = bytes.split_first() {
            *self = match *self {
                Self::Nothing => return true,
                Self::FirstLine { blank: false, .. } if *byte == b'\n' => Self::Nothing,
                Self::FirstLine { seen: MAX_LINE, .. } => Self::Nothing,
                Self::FirstLine { matched, seen, blank } => {
                    let fits = VERSION.get(matched).is_some_and(|wanted| byte.eq_ignore_ascii_case(wanted));
                    let matched = if fits { matched + 1 } else { usize::from(byte.eq_ignore_ascii_case(&b'h')) };
                    if matched == VERSION.len() {
                        Self::Lines(None)
                    } else {
                        Self::FirstLine { matched, seen: seen + 1, blank: blank && byte.is_ascii_whitespace() }
                    }
                }
                Self::Lines(None) => {
                    let Some(end) = memchr::memchr2(b'\r', b'\n', bytes) else { return true };
                    *self = Self::Lines(Some(0));
                    bytes = bytes.get(end + 1..).unwrap_or_default();
                    continue;
                }
                Self::Lines(Some(count)) => match RESERVED.get(count) {
                    None if matches!(byte, b'-' | b'_') => return false,
                    Some(wanted) if byte.eq_ignore_ascii_case(wanted) => Self::Lines(Some(count + 1)),
                    // White space before a name: some servers skip it.
                    Some(_) if count == 0 && byte.is_ascii_whitespace() => Self::Lines(Some(0)),
                    // The same byte again: it may be a line end.
                    None | Some(_) => {
                        *self = Self::Lines(None);
                        continue;
                    }
                },
            };
            bytes = rest;
        }
        true
    }
}

impl<S> Guarded<S> {
    pub(crate) fn new(stream: S, guard: Guard) -> Self {
        Self { stream, guard }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let admitted = self.guard.admits(buf.filled().get(before..).unwrap_or_default());
        if !admitted {
            buf.set_filled(before);
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, ReservedField)));
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl<S: Duplex> Duplex for Guarded<S> {
    fn break_off(&mut self) -> Exit {
        self.stream.break_off()
    }
    fn socket(&self) -> Option<&TcpStream> {
        self.stream.socket()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    async fn passes(pieces: &[&[u8]]) -> bool {
        passes_guard(Guard::every_line(), pieces).await
    }

    async fn passes_guard(guard: Guard, pieces: &[&[u8]]) -> bool {
        let mut guarded = Guarded::new(reader(pieces), guard);
        guarded.read_to_end(&mut Vec::new()).await.is_ok()
    }

    /// A stream that gives one piece at a read.
    fn reader(pieces: &[&[u8]]) -> impl AsyncRead + Unpin {
        let pieces: Vec<io::Result<bytes::Bytes>> =
            pieces.iter().map(|piece| Ok(bytes::Bytes::copy_from_slice(piece))).collect();
        tokio_util::io::StreamReader::new(futures_util::stream::iter(pieces))
    }

    #[tokio::test]
    async fn a_reserved_field_at_the_beginning_of_a_line_does_not_pass_however_it_is_cut() {
        let text = b"GET key\r\nX: 1\r\nWeft_Client-Id: x\r\n\r\n";
        assert!(!passes(&[text]).await);
        for cut in 1..text.len() {
            assert!(!passes(&[&text[..cut], &text[cut..]]).await, "{cut}");
        }
        for lines in [&b"weft-a: 1"[..], b"\nweft-a", b"a\r \tweft_a", b"w\nwe\nwef\nweft\nweft-"] {
            assert!(!passes(&[lines]).await, "{}", lines.escape_ascii());
        }
    }

    #[tokio::test]
    async fn all_other_bytes_pass() {
        for bytes in
            [&b"x weft-client-id: 1"[..], b"weft", b"\nweftage-x", b"\nw-eft-", b"x-weft-client-id: 1\r\n", b""]
        {
            assert!(passes(&[bytes]).await, "{}", bytes.escape_ascii());
        }
    }

    #[tokio::test]
    async fn binary_bytes_are_looked_at_where_their_first_line_names_http() {
        let request = b"\x01GET / hhttp/1.1\r\nweft-client-id: x\r\n\r\n";
        for cut in 1..request.len() {
            assert!(!passes_guard(Guard::first_line(), &[&request[..cut], &request[cut..]]).await, "{cut}");
        }
        assert!(!passes_guard(Guard::first_line(), &[b"\r\n\n\0 / HTTP/1.1\nweft_a: 1"]).await);
        let long = [&[1; MAX_LINE][..], b"HTTP/1.1\nweft-a: 1\n"].concat();
        for bytes in [&b"\0\x01\nHTTP/1.1\nweft-a: 1\n"[..], b"\0HTTP\n/\nweft-a: 1", &long] {
            assert!(
                passes_guard(Guard::first_line(), &[bytes]).await,
                "{}",
                bytes[..20.min(bytes.len())].escape_ascii()
            );
        }
    }
}
