//! Protocol detection by the first bytes of a connection. Never stalls a caller: bytes decide at once, and silence is an answer
//! too.
//! Shape: [`sniff`] is pure; [`detect`] reads until it is sure, the caller stays silent for too long, or the bound is reached.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Poll, ready},
    time::Duration,
};

use bytes::{BufMut, BytesMut};
use tokio::{
    io::AsyncRead,
    net::TcpStream,
    time::{Instant, sleep_until, timeout_at},
};
use tokio_util::io::poll_read_buf;

use crate::{
    buffer,
    tls::hello::{self, Hello},
};

/// After this much silence a caller is taken to wait for the server to speak first.
pub(crate) const SILENCE: Duration = Duration::from_millis(20);
/// Longest time in which bytes that could become HTTP or a ClientHello may stay incomplete.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// Longest time in which neither side of a captured connection speaks, such as one that a pool opened in advance.
pub(crate) const IDLE: Duration = Duration::from_secs(3600);
/// The start of every HTTP/2 connection (RFC 9113 §3.4); its first line is enough.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n";
/// Longest request line looked at.
const MAX_LINE: usize = 16 * 1024;
/// Most bytes that are read at a time: a ClientHello of the mesh takes up to 1.9 KiB.
const AT_A_TIME: usize = 4 * 1024;
/// Longest method.
const MAX_METHOD: usize = 32;

/// The protocol of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speaks {
    MeshTls,
    ApplicationTls,
    Http1,
    Http2,
    Unknown,
    /// Nothing was said.
    Silent,
    /// The caller is gone.
    Closed,
}

/// The protocol by the bytes so far; `None`: more are needed.
pub(crate) fn sniff(bytes: &[u8]) -> Option<Speaks> {
    let first = *bytes.first()?;
    if first == hello::HANDSHAKE {
        return match hello::sniff(bytes) {
            Hello::Partial => None,
            Hello::Mesh => Some(Speaks::MeshTls),
            Hello::Application => Some(Speaks::ApplicationTls),
            Hello::Malformed => Some(Speaks::Unknown),
        };
    }
    let both = bytes.len().min(PREFACE.len());
    if bytes.get(..both) == PREFACE.get(..both) {
        return (both == PREFACE.len()).then_some(Speaks::Http2);
    }
    request_line(bytes)
}

/// A request line of HTTP/1 (RFC 9112 §3), as far as it has come.
fn request_line(bytes: &[u8]) -> Option<Speaks> {
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let method = bytes.iter().take_while(|byte| is_token(byte)).count();
    match bytes.get(method) {
        None if method <= MAX_METHOD => return None,
        Some(b' ') if (1..=MAX_METHOD).contains(&method) => {}
        None | Some(_) => return Some(Speaks::Unknown),
    }
    // A whole line is judged as its parts are: the verdict must not depend on how a line is cut.
    let end = bytes.iter().position(|byte| *byte == b'\n');
    let line = bytes.get(..end.unwrap_or(bytes.len())).unwrap_or_default();
    let printable = line.iter().all(|byte| *byte >= b' ' && *byte != 0x7f || *byte == b'\r');
    match end {
        _ if line.len() >= MAX_LINE || !printable => Some(Speaks::Unknown),
        None => None,
        Some(_) => {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let version = line.iter().rposition(|byte| *byte == b' ').and_then(|space| line.get(space + 1..));
            let is_http = version.is_some_and(|version| version.starts_with(b"HTTP/1."));
            Some(if is_http { Speaks::Http1 } else { Speaks::Unknown })
        }
    }
}

/// Reads until it is sure. `silence`: how long nothing at all may come; from the first byte on [`PATIENCE`] counts.
/// The bytes read stay in `bytes`. Where silence is an answer ([`SILENCE`]), a caller that ends its direction without a word
/// is silent too: it may still listen (half-close).
pub(crate) async fn detect(stream: &mut TcpStream, bytes: &mut BytesMut, silence: Duration) -> io::Result<Speaks> {
    let mut until = Instant::now() + if bytes.is_empty() { silence } else { PATIENCE };
    loop {
        if let Some(verdict) = sniff(bytes) {
            return Ok(verdict);
        }
        let silent = bytes.is_empty();
        match timeout_at(until, read(stream, bytes)).await {
            Ok(Ok(0)) if silent && silence == SILENCE => return Ok(Speaks::Silent),
            Ok(Ok(0)) if bytes.is_empty() => return Ok(Speaks::Closed),
            Ok(Ok(0)) => return Ok(Speaks::Unknown),
            Ok(Ok(_)) if silent => until = Instant::now() + PATIENCE,
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(error),
            Err(_elapsed) if bytes.is_empty() => return Ok(Speaks::Silent),
            Err(_elapsed) => return Ok(Speaks::Unknown),
        }
    }
}

/// Reads what has come. A connection that is silent holds no room for it.
async fn read<S: AsyncRead + Unpin>(stream: &mut S, bytes: &mut BytesMut) -> io::Result<usize> {
    poll_fn(|cx| {
        buffer::lend(|lent| {
            let stream = Pin::new(&mut *stream);
            let count = ready!(poll_read_buf(stream, cx, &mut (&mut *lent).limit(AT_A_TIME)))?;
            bytes.extend_from_slice(lent);
            Poll::Ready(Ok(count))
        })
    })
    .await
}

/// After silence: watches a caller and the server connected for it; the first to send bytes decides. The server's bytes stay in
/// `greeting`; if it was first, the protocol is [`Speaks::Unknown`].
pub(crate) async fn first_speaker<S: AsyncRead + Unpin>(
    caller: &mut TcpStream,
    bytes: &mut BytesMut,
    server: &mut S,
    greeting: &mut BytesMut,
) -> io::Result<Speaks> {
    let mut until = Instant::now() + IDLE;
    loop {
        if let Some(verdict) = sniff(bytes) {
            return Ok(verdict);
        }
        tokio::select! {
            spoken = read(caller, bytes) => match spoken? {
                0 => return Ok(Speaks::Unknown),
                _ => until = until.min(Instant::now() + PATIENCE),
            },
            greeted = read(server, greeting) => return greeted.map(|_bytes| Speaks::Unknown),
            () = sleep_until(until) => return Ok(if bytes.is_empty() { Speaks::Closed } else { Speaks::Unknown }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bytes_decide() {
        for (bytes, verdict) in [
            (&b"GET / HTTP/1.1\r\n"[..], Some(Speaks::Http1)),
            (b"GET /a b HTTP/1.1\r\n", Some(Speaks::Http1)),
            (b"PROPFIND /a HTTP/1.0\n", Some(Speaks::Http1)),
            (b"G", None),
            (b"GET /very/long", None),
            (b"PRI * HTTP/2.0\r\n", Some(Speaks::Http2)),
            (b"PRI * HTTP/2.0", None),
            (b"PRICE / HTTP/1.1\r\n", Some(Speaks::Http1)),
            (b"*1\r\n$4\r\nPING\r\n", Some(Speaks::Unknown)),
            (b"SET a b\r\n", Some(Speaks::Unknown)),
            (b"PING\r\n", Some(Speaks::Unknown)),
            (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", Some(Speaks::Unknown)),
            (b"\x16\x03", None),
            (b"", None),
        ] {
            assert_eq!(sniff(bytes), verdict, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn a_request_line_is_judged_alike_however_it_is_cut() {
        let long = format!("GET /{} HTTP/1.1\r\n", "a".repeat(MAX_LINE));
        for line in [&b"PRICE / \x18 HTTP/1.1\r\n"[..], b"GET /\x7f HTTP/1.1\n", long.as_bytes()] {
            for end in 1..=line.len() {
                assert!(matches!(sniff(&line[..end]), None | Some(Speaks::Unknown)), "{end} bytes");
            }
            assert_eq!(sniff(line), Some(Speaks::Unknown));
        }
    }

    proptest! {
        #[test]
        fn a_verdict_never_changes_with_more_bytes(bytes in prop::collection::vec(any::<u8>(), 1..200), cut in 1usize..200) {
            let cut = cut.min(bytes.len());
            if let Some(early) = sniff(&bytes[..cut]) {
                prop_assert_eq!(sniff(&bytes), Some(early));
            }
        }
    }
}
