//! Opaque bytes: both directions of a connection copied until both have ended, half-close kept, idle ones closed.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, sleep},
};

/// What is read before it is written: four TLS records, which leave in one system call.
const BUFFER: usize = 64 * 1024;
/// Buffers that one way may move before others get their turn.
const TURNS: usize = 8;

thread_local! {
    /// The buffer of this worker's relays: borrowed while bytes move, so that an idle relay holds none.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What passed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Relayed {
    pub(crate) sent: u64,
    pub(crate) received: u64,
}

/// How a relay ended other than by both sides closing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RelayError {
    #[error("connection broke")]
    Io(#[source] io::Error),
    #[error("nothing moved for the idle time")]
    Idle,
}

/// Copies between the caller and the callee until both directions have ended.
pub(crate) async fn relay<A, B>(mut caller: A, mut callee: B, idle: Duration) -> (Relayed, Result<(), RelayError>)
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (mut up, mut down) = (Way::default(), Way::default());
    let mut seen = 0;
    let mut silence = pin!(sleep(idle));
    let result = poll_fn(|cx| {
        let sent = up.poll(cx, &mut caller, &mut callee).map_err(RelayError::Io)?;
        let received = down.poll(cx, &mut callee, &mut caller).map_err(RelayError::Io)?;
        if sent.is_ready() && received.is_ready() {
            return Poll::Ready(Ok(()));
        }
        // One timer for the whole relay, looked at when it rings.
        while silence.as_mut().poll(cx).is_ready() {
            if up.count.wrapping_add(down.count) == seen {
                return Poll::Ready(Err(RelayError::Idle));
            }
            seen = up.count.wrapping_add(down.count);
            silence.as_mut().reset(Instant::now() + idle);
        }
        Poll::Pending
    })
    .await;
    (Relayed { sent: up.count, received: down.count }, result)
}

/// One direction of a relay.
#[derive(Debug, Default)]
struct Way {
    /// Read and not yet written.
    rest: Bytes,
    /// Bytes that were read.
    count: u64,
    /// All has been read.
    ended: bool,
    /// What was written may still stand in a buffer of the writer's.
    unflushed: bool,
    done: bool,
}

impl Way {
    /// Moves what can be moved. Ready when this direction has ended.
    fn poll<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
    ) -> Poll<io::Result<()>> {
        if self.done {
            return Poll::Ready(Ok(()));
        }
        for _ in 0..TURNS {
            while !self.rest.is_empty() {
                let written = ready!(Pin::new(&mut *to).poll_write(cx, &self.rest))?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.rest.advance(written);
            }
            if self.ended {
                ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                self.done = true;
                return Poll::Ready(Ok(()));
            }
            let mut scratch = SCRATCH.take();
            scratch.resize(BUFFER, 0);
            let moved = self.poll_through(cx, from, to, &mut scratch);
            SCRATCH.set(scratch);
            if moved?.is_pending() {
                if self.unflushed && self.rest.is_empty() {
                    ready!(Pin::new(&mut *to).poll_flush(cx))?;
                    self.unflushed = false;
                }
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Fills the buffer as far as it goes at once, and writes it. Pending when there was nothing to read, or no room to write.
    fn poll_through<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        scratch: &mut [u8],
    ) -> io::Result<Poll<()>> {
        let mut buffer = ReadBuf::new(scratch);
        let mut blocked = false;
        while buffer.remaining() > 0 && !self.ended && !blocked {
            let before = buffer.filled().len();
            match Pin::new(&mut *from).poll_read(cx, &mut buffer) {
                Poll::Ready(read) => {
                    read?;
                    self.ended = buffer.filled().len() == before;
                }
                Poll::Pending => blocked = true,
            }
        }
        let mut filled = buffer.filled();
        self.count += filled.len() as u64;
        self.unflushed |= !filled.is_empty();
        while !filled.is_empty() {
            match Pin::new(&mut *to).poll_write(cx, filled) {
                Poll::Ready(written) => match filled.split_at_checked(written?) {
                    Some((&[], _)) | None => return Err(io::ErrorKind::WriteZero.into()),
                    Some((_, rest)) => filled = rest,
                },
                Poll::Pending => {
                    self.rest = Bytes::copy_from_slice(filled);
                    return Ok(Poll::Pending);
                }
            }
        }
        Ok(if blocked { Poll::Pending } else { Poll::Ready(()) })
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn half_close_reaches_the_other_side_and_the_answer_still_comes_back() {
        let ((mut client, a), (b, mut server)) = (duplex(64), duplex(64));
        let relay = tokio::spawn(relay(a, b, Duration::from_secs(60)));
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut question = Vec::new();
        server.read_to_end(&mut question).await.unwrap();
        server.write_all(b"answer").await.unwrap();
        server.shutdown().await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert_eq!((&question[..], &answer[..]), (&b"question"[..], &b"answer"[..]));
        let (relayed, result) = relay.await.unwrap();
        assert!(result.is_ok());
        assert_eq!((relayed.sent, relayed.received), (8, 6));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_both_ways_ends_it_and_traffic_does_not() {
        let ((mut client, a), (b, _server)) = (duplex(64), duplex(64));
        let relay = tokio::spawn(relay(a, b, Duration::from_secs(10)));
        for _ in 0..4 {
            sleep(Duration::from_secs(7)).await;
            client.write_all(b"x").await.unwrap();
        }
        assert!(!relay.is_finished());
        sleep(Duration::from_secs(21)).await;
        assert!(matches!(relay.await.unwrap().1, Err(RelayError::Idle)));
    }
}
