//! Opaque bytes: both directions of a connection copied until both have ended, half-close kept, idle ones closed.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes},
    time::sleep,
};

/// Buffer for each direction.
const BUFFER: usize = 16 * 1024;

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
pub(crate) async fn relay<A, B>(caller: A, callee: B, idle: Duration) -> (Relayed, Result<(), RelayError>)
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (sent, received) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut caller = Metered { stream: caller, read: sent.clone() };
    let mut callee = Metered { stream: callee, read: received.clone() };
    let moved = || sent.load(Relaxed).wrapping_add(received.load(Relaxed));
    let result = {
        let copy = copy_bidirectional_with_sizes(&mut caller, &mut callee, BUFFER, BUFFER);
        let mut copy = std::pin::pin!(copy);
        loop {
            let before = moved();
            tokio::select! {
                result = copy.as_mut() => break result.map(drop).map_err(RelayError::Io),
                () = sleep(idle) => if moved() == before { break Err(RelayError::Idle) },
            }
        }
    };
    (Relayed { sent: sent.load(Relaxed), received: received.load(Relaxed) }, result)
}

struct Metered<S> {
    stream: S,
    read: Arc<AtomicU64>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.read.fetch_add((buf.filled().len() - before) as u64, Relaxed);
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
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
