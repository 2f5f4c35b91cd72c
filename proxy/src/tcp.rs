//! Relay of opaque bytes: copies both directions of a connection until both have ended. Half-close is kept. An error leaves as
//! an error, behind the bytes that came before it; so does the end of an idle connection.

pub(crate) mod guard;

use std::{
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::time::{Instant, sleep, timeout};
use weft_core::failure::Failure;

use crate::{
    buffer::{self, Filled},
    stream::{self, DELIVERY, Duplex},
};

/// Buffers that one direction may move before other tasks get their turn.
const TURNS: usize = 4;

/// An opaque connection or a tunnel without a policy of its own ends after this time without a byte in either direction.
pub(crate) const IDLE: Duration = Duration::from_secs(3600);
/// The same where another proxy is the caller: that one knows the policy, and ends the connection. A year.
pub(crate) const IDLE_HOP: Duration = Duration::from_secs(365 * 24 * 3600);

/// Bytes that a relay has read.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Relayed {
    pub(crate) sent: u64,
    pub(crate) received: u64,
}

/// How a relay ended other than by both sides closing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RelayError {
    #[error("the caller's connection broke")]
    Caller(#[source] io::Error),
    #[error("the callee's connection broke")]
    Callee(#[source] io::Error),
    #[error("idle for too long")]
    Idle,
}

impl RelayError {
    /// The failure of the connection.
    pub(crate) fn into_failure(self) -> Failure {
        match self {
            Self::Caller(_) => Failure::CallerGone,
            Self::Callee(error) => Failure::reset(error),
            Self::Idle => Failure::IdleTimeout,
        }
    }
}

/// A caller joined with a callee. Dropped without [`Relay::abort`] only after [`Relay::run`] has returned `Ok`: an error must
/// not look like an end.
pub(crate) struct Relay<A, B> {
    caller: A,
    callee: B,
    up: Direction,
    down: Direction,
}

impl<A: Duplex, B: Duplex> Relay<A, B> {
    pub(crate) fn new(caller: A, callee: B) -> Self {
        Self { caller, callee, up: Direction::default(), down: Direction::default() }
    }

    /// Bytes so far.
    pub(crate) fn relayed(&self) -> Relayed {
        Relayed { sent: self.up.count, received: self.down.count }
    }

    /// Copies until both directions have ended. If one side breaks, the bytes that it had sent before are handed on first.
    /// `moved` counts the bytes of both.
    /// Errors: the side that broke, or no byte in either direction for `idle`.
    pub(crate) async fn run(&mut self, idle: Duration, moved: &AtomicU64) -> Result<(), RelayError> {
        let error = match self.copy(idle, moved).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let Self { caller, callee, up, down } = self;
        let rest = poll_fn(|cx| match &error {
            RelayError::Caller(_) => up.poll_rest(cx, caller, callee),
            RelayError::Callee(_) => down.poll_rest(cx, callee, caller),
            RelayError::Idle => Poll::Ready(()),
        });
        if timeout(DELIVERY, rest).await.is_err() {
            tracing::debug!(%error, "bytes sent before the error were not all delivered");
        }
        Err(error)
    }

    async fn copy(&mut self, idle: Duration, moved: &AtomicU64) -> Result<(), RelayError> {
        let idle = idle.min(IDLE_HOP);
        let Self { caller, callee, up, down } = self;
        let (mut seen, mut told) = (0, 0);
        let mut silence = pin!(sleep(idle));
        poll_fn(|cx| {
            let sent = up.poll(cx, caller, callee).map_err(|broke| match broke {
                Broke::From(error) => RelayError::Caller(error),
                Broke::To(error) => RelayError::Callee(error),
            })?;
            let received = down.poll(cx, callee, caller).map_err(|broke| match broke {
                Broke::From(error) => RelayError::Callee(error),
                Broke::To(error) => RelayError::Caller(error),
            })?;
            // Only this thread adds.
            let total = up.count.wrapping_add(down.count);
            if total != told {
                moved.store(moved.load(Relaxed).wrapping_add(total.wrapping_sub(told)), Relaxed);
                told = total;
            }
            if sent.is_ready() && received.is_ready() {
                return Poll::Ready(Ok(()));
            }
            // One timer for the whole relay, checked when it fires: none is set for a read or a write.
            while silence.as_mut().poll(cx).is_ready() {
                if up.count.wrapping_add(down.count) == seen {
                    return Poll::Ready(Err(RelayError::Idle));
                }
                seen = up.count.wrapping_add(down.count);
                silence.as_mut().reset(Instant::now() + idle);
            }
            Poll::Pending
        })
        .await
    }

    /// Breaks both sides off, behind the bytes that were written to them.
    pub(crate) async fn abort(&mut self) {
        tokio::join!(stream::abort(&mut self.caller), stream::abort(&mut self.callee));
    }
}

/// One direction of a relay.
#[derive(Debug, Default)]
struct Direction {
    /// Read and not yet written.
    rest: Bytes,
    /// Bytes that were read.
    count: u64,
    failed: Option<io::Error>,
    /// The reader has reached the end.
    ended: bool,
    /// The writer may still hold written bytes in its buffer.
    unflushed: bool,
    done: bool,
}

/// The side of a direction that broke.
#[derive(Debug)]
enum Broke {
    From(io::Error),
    To(io::Error),
}

impl Direction {
    /// Moves bytes until one side is pending. Ready when this direction has ended.
    fn poll(&mut self, cx: &mut Context<'_>, from: &mut impl Duplex, to: &mut impl Duplex) -> Poll<Result<(), Broke>> {
        if self.done {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_bytes(cx, from, to))?;
        ready!(Pin::new(to).poll_shutdown(cx)).map_err(Broke::To)?;
        self.done = true;
        Poll::Ready(Ok(()))
    }

    /// Moves what is left to be read of a side that broke. What looks like its end is none, so it is not passed on: the kernel
    /// tells of a reset only once, and a write may have been told.
    fn poll_rest(&mut self, cx: &mut Context<'_>, from: &mut impl Duplex, to: &mut impl Duplex) -> Poll<()> {
        if self.done { Poll::Ready(()) } else { self.poll_bytes(cx, from, to).map(|_broke| ()) }
    }

    /// Moves bytes until one side is pending. Ready when all were written.
    fn poll_bytes(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut impl Duplex,
        to: &mut impl Duplex,
    ) -> Poll<Result<(), Broke>> {
        for _ in 0..TURNS {
            while !self.rest.is_empty() {
                let written = ready!(Pin::new(&mut *to).poll_write(cx, &self.rest)).map_err(Broke::To)?;
                if written == 0 {
                    return Poll::Ready(Err(Broke::To(io::ErrorKind::WriteZero.into())));
                }
                self.rest.advance(written);
            }
            if self.ended {
                return Poll::Ready(Ok(()));
            }
            if buffer::lend(|buffer| self.poll_through(cx, from, to, buffer))?.is_pending() {
                if self.unflushed && self.rest.is_empty() {
                    ready!(Pin::new(&mut *to).poll_flush(cx)).map_err(Broke::To)?;
                    self.unflushed = false;
                }
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Fills the buffer as far as it goes at once, and writes it. Pending when there was nothing to read, or no room to write.
    fn poll_through(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut impl Duplex,
        to: &mut impl Duplex,
        buffer: &mut BytesMut,
    ) -> Result<Poll<()>, Broke> {
        let Poll::Ready(read) = buffer::poll_fill(from, cx, buffer, buffer::SIZE, &mut self.failed) else {
            return Ok(Poll::Pending);
        };
        // Nothing more is read after an error.
        self.ended = !matches!(read, Ok(Filled { count: 1.., .. }));
        let Filled { count, drained } = read.map_err(Broke::From)?;
        self.count += count as u64;
        self.unflushed |= count > 0;
        let mut filled = &buffer[..];
        while !filled.is_empty() {
            match Pin::new(&mut *to).poll_write(cx, filled) {
                Poll::Ready(written) => match filled.split_at_checked(written.map_err(Broke::To)?) {
                    Some((&[], _)) | None => return Err(Broke::To(io::ErrorKind::WriteZero.into())),
                    Some((_, rest)) => filled = rest,
                },
                Poll::Pending => {
                    self.rest = Bytes::copy_from_slice(filled);
                    return Ok(Poll::Pending);
                }
            }
        }
        Ok(if drained { Poll::Pending } else { Poll::Ready(()) })
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    async fn relay(a: DuplexStream, b: DuplexStream, idle: Duration) -> (Relayed, Result<(), RelayError>) {
        let mut relay = Relay::new(a, b);
        let result = relay.run(idle, &AtomicU64::new(0)).await;
        (relay.relayed(), result)
    }

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
