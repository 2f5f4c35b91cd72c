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
    time::{Instant, sleep_until, timeout_at},
};
use tokio_util::io::poll_read_buf;

pub(crate) use super::request_line::proxied;
use super::request_line::{self, Line};
use crate::{
    buffer,
    stream::Stream,
    tls::hello::{self, Hello},
};

/// After this much silence a caller is taken to wait for the server to speak first.
pub(crate) const SILENCE: Duration = Duration::from_millis(20);
/// Longest time in which bytes that could become HTTP or a ClientHello may stay incomplete.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// Longest time in which neither side of a captured connection speaks, such as one that a pool opened in advance.
pub(crate) const IDLE: Duration = Duration::from_secs(3600);
/// The same at most, whatever a policy says.
const MAX_IDLE: Duration = Duration::from_secs(365 * 24 * 3600);
/// The start of every HTTP/2 connection (RFC 9113 §3.4); its first line is enough.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n";
/// Most bytes that are read at a time: a ClientHello of the mesh takes up to 1.9 KiB.
const AT_A_TIME: usize = 4 * 1024;

/// The protocol of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speaks {
    MeshTls,
    ApplicationTls,
    /// A request of HTTP/1, well-formed or not, or the beginning of one that does not go on.
    Http1,
    Http2,
    /// Another protocol.
    Unknown,
    /// The same, of binary bytes: see [`Line::Binary`].
    Binary,
    /// The same, but a lenient HTTP server may read requests in the bytes: see [`Line::Doubtful`].
    Doubtful,
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
            Hello::Malformed => Some(Speaks::Binary),
        };
    }
    let both = bytes.len().min(PREFACE.len());
    if bytes.get(..both) == PREFACE.get(..both) {
        return (both == PREFACE.len()).then_some(Speaks::Http2);
    }
    request_line::judge(bytes).map(|line| match line {
        Line::Request => Speaks::Http1,
        Line::Other => Speaks::Unknown,
        Line::Binary => Speaks::Binary,
        Line::Doubtful => Speaks::Doubtful,
    })
}

/// The verdict on bytes that stay incomplete for [`PATIENCE`]. What may be a request is answered: 408.
fn stalled(bytes: &[u8]) -> Speaks {
    if bytes.first() == Some(&hello::HANDSHAKE) { Speaks::Unknown } else { Speaks::Http1 }
}

/// Reads until it is sure. `silence`: how long nothing at all may come; from the first byte on [`PATIENCE`] counts.
/// The bytes read stay in `bytes`. Where silence is an answer ([`SILENCE`]), a caller that ends its direction without a word
/// is silent too: it may still listen (half-close).
pub(crate) async fn detect(stream: &mut Stream, bytes: &mut BytesMut, silence: Duration) -> io::Result<Speaks> {
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
            Err(_elapsed) => return Ok(stalled(bytes)),
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
/// `greeting`; if it was first, the protocol is [`Speaks::Unknown`]. `idle`: how long neither may speak.
pub(crate) async fn first_speaker<S: AsyncRead + Unpin>(
    caller: &mut Stream,
    bytes: &mut BytesMut,
    server: &mut S,
    greeting: &mut BytesMut,
    idle: Duration,
) -> io::Result<Speaks> {
    let mut until = Instant::now() + idle.min(MAX_IDLE);
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
            () = sleep_until(until) => return Ok(if bytes.is_empty() { Speaks::Closed } else { stalled(bytes) }),
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
            (b"G", None),
            (b"PRI * HTTP/2.0\r\n", Some(Speaks::Http2)),
            (b"PRI * HTTP/2.0", None),
            (b"PRI * HTTP/2.1\r\n", Some(Speaks::Http1)),
            (b"PRICE / HTTP/1.1\r\n", Some(Speaks::Http1)),
            (b"*1\r\n$4\r\nPING\r\n", Some(Speaks::Unknown)),
            (b"{\"a\": 1}", Some(Speaks::Doubtful)),
            (b"\x16\x03", None),
            (b"", None),
        ] {
            assert_eq!(sniff(bytes), verdict, "{:?}", String::from_utf8_lossy(bytes));
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
