//! Opaque bytes that a lenient HTTP server may read requests in: no reserved field passes, since only a proxy tells the
//! application who calls (docs/adr/0029).
//! Shape: a [`Guarded`] stream is read like the stream in it; its read fails at a line that begins with `weft-` or `weft_`.
//! Cost: one search for line ends, and a look at the beginning of each line.

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

/// A stream whose bytes are looked at.
#[derive(Debug)]
pub(crate) struct Guarded<S> {
    stream: S,
    /// At the beginning of a line: how much of [`RESERVED`] has come. `None`: inside a line.
    matched: Option<usize>,
}

/// A reserved field came in opaque bytes.
#[derive(Debug, thiserror::Error)]
#[error("a reserved weft-* field in bytes that are not read as HTTP")]
pub(crate) struct ReservedField;

impl<S> Guarded<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, matched: Some(0) }
    }

    /// Whether the next bytes may pass.
    fn admits(&mut self, mut bytes: &[u8]) -> bool {
        while let Some((byte, rest)) = bytes.split_first() {
            let Some(count) = self.matched else {
                let Some(end) = memchr::memchr2(b'\r', b'\n', bytes) else { return true };
                self.matched = Some(0);
                bytes = bytes.get(end + 1..).unwrap_or_default();
                continue;
            };
            self.matched = match RESERVED.get(count) {
                None if matches!(byte, b'-' | b'_') => return false,
                Some(wanted) if byte.eq_ignore_ascii_case(wanted) => Some(count + 1),
                // White space before a name: some servers skip it.
                Some(_) if count == 0 && byte.is_ascii_whitespace() => Some(0),
                // The same byte again: it may be a line end.
                None | Some(_) => {
                    self.matched = None;
                    continue;
                }
            };
            bytes = rest;
        }
        true
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let admitted = self.admits(buf.filled().get(before..).unwrap_or_default());
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
        let mut guarded = Guarded::new(tokio_test_reader(pieces));
        guarded.read_to_end(&mut Vec::new()).await.is_ok()
    }

    /// A stream that gives one piece at a read.
    fn tokio_test_reader(pieces: &[&[u8]]) -> impl AsyncRead + Unpin {
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
}
