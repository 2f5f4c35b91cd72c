//! Relay of opaque bytes: copies both directions of a connection until both have ended. Half-close is kept; an idle connection
//! is closed.

pub(crate) mod guard;

use std::{
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{Instant, sleep},
};

use crate::buffer::{self, Filled};

/// Buffers that one direction may move before other tasks get their turn.
const TURNS: usize = 4;

/// SO_RCVBUF towards a workload, in bytes: room for one segment of loopback (64 KiB) and not for two. With less, segments are
/// broken up.
const UNREAD: usize = 72 * 1024;

/// Bounds what the kernel keeps for us of what the workload has sent and we have not read; the rest stays with the workload.
/// By itself the kernel lets that grow to net.ipv4.tcp_rmem, many megabytes a connection, for the sake of long paths. The path
/// to the workload has no length: there it costs memory, what comes out of a long queue is no longer in the CPU's cache, and
/// where the workload's congestion control paces (BBR) each segment takes a timer, which none needs that waits for its window.
/// What cannot be bounded works as well.
pub(crate) fn bound_unread(workload: &TcpStream) {
    if let Err(error) = SockRef::from(workload).set_recv_buffer_size(UNREAD) {
        tracing::debug!(%error, "SO_RCVBUF");
    }
}

/// Bytes that a relay has read.
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
    #[error("idle for too long")]
    Idle,
}

/// Copies between the caller and the callee until both directions have ended.
pub(crate) async fn relay<A, B>(mut caller: A, mut callee: B, idle: Duration) -> (Relayed, Result<(), RelayError>)
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (mut up, mut down) = (Direction::default(), Direction::default());
    let mut seen = 0;
    let mut silence = pin!(sleep(idle));
    let result = poll_fn(|cx| {
        let sent = up.poll(cx, &mut caller, &mut callee).map_err(RelayError::Io)?;
        let received = down.poll(cx, &mut callee, &mut caller).map_err(RelayError::Io)?;
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
    .await;
    (Relayed { sent: up.count, received: down.count }, result)
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

impl Direction {
    /// Moves bytes until one side is pending. Ready when this direction has ended.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
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
            if buffer::lend(|buffer| self.poll_through(cx, from, to, buffer))?.is_pending() {
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
    fn poll_through(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        buffer: &mut BytesMut,
    ) -> io::Result<Poll<()>> {
        let Poll::Ready(read) = buffer::poll_fill(from, cx, buffer, buffer::SIZE, &mut self.failed) else {
            return Ok(Poll::Pending);
        };
        let Filled { count, drained } = read?;
        self.ended = count == 0;
        self.count += count as u64;
        self.unflushed |= count > 0;
        let mut filled = &buffer[..];
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
        Ok(if drained { Poll::Pending } else { Poll::Ready(()) })
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, duplex},
        net::{TcpListener, TcpSocket},
        time::timeout,
    };

    use super::*;

    #[tokio::test]
    async fn what_is_not_read_stays_with_the_workload() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let workload = TcpSocket::new_v4().unwrap();
        workload.set_send_buffer_size(64 * 1024).unwrap();
        let mut workload = workload.connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut ours, _) = listener.accept().await.unwrap();
        bound_unread(&ours);
        // What is read fast makes the kernel keep more and more, where nothing bounds it.
        let (content, mut much) = (vec![b'x'; 64 << 20], vec![0; 64 << 20]);
        let (written, read) = tokio::join!(workload.write_all(&content), ours.read_exact(&mut much));
        assert!(written.is_ok() && read.is_ok());
        let mut sent = 0;
        // Written until the kernel takes no more, not even after a moment.
        while let Ok(written) = timeout(Duration::from_millis(200), workload.write(&[b'x'; 16 * 1024])).await {
            sent += written.unwrap();
        }
        assert!((UNREAD..4 * UNREAD).contains(&sent), "{sent} bytes");
        // Nothing is lost by it.
        workload.shutdown().await.unwrap();
        assert_eq!(ours.read_to_end(&mut Vec::new()).await.unwrap(), sent);
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
