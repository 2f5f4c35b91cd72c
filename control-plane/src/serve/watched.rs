//! A stream with deadlines: for its first byte, and for each time that the peer takes nothing of what is written.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

/// Longest wait for the first byte of a connection, after its handshake.
pub(super) const FIRST_BYTE: Duration = Duration::from_secs(10);
/// Longest time in which the peer takes no byte of what waits to be written.
pub(super) const WRITE: Duration = Duration::from_secs(30);

/// The stream.
pub(super) struct Watched<S> {
    inner: S,
    first: Option<Pin<Box<Sleep>>>,
    writing: Option<Pin<Box<Sleep>>>,
}

impl<S> Watched<S> {
    pub(super) fn new(inner: S) -> Self {
        Self { inner, first: Some(Box::pin(sleep(FIRST_BYTE))), writing: None }
    }

    /// What came of writing: a wait has its deadline, anything else ends it.
    fn wrote<T>(&mut self, result: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.writing = None;
            return result;
        }
        let deadline = self.writing.get_or_insert_with(|| Box::pin(sleep(WRITE)));
        deadline.as_mut().poll(cx).map(|()| Err(late("the peer takes no bytes")))
    }
}

fn late(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, what)
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.inner).poll_read(cx, buf);
        match (&result, &mut self.first) {
            (Poll::Pending, Some(deadline)) => deadline.as_mut().poll(cx).map(|()| Err(late("no byte came"))),
            (Poll::Ready(_), _) => {
                self.first = None;
                result
            }
            (Poll::Pending, None) => result,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.wrote(result, cx)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.inner).poll_flush(cx);
        self.wrote(result, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.wrote(result, cx)
    }
}
