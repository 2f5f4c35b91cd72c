//! Byte streams: a TCP connection of which more was read than was asked for, and the same below mesh TLS.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{client, server};

use crate::buffer;

/// What a reader must have room for to be read to directly. rustls has room for 4 KiB, then for a record.
const LARGE: usize = 32 * 1024;

/// What mesh TLS encrypts before it writes, in bytes: so many leave in one system call.
pub(crate) const WRITTEN_AT_ONCE: usize = buffer::SIZE;

/// A stream that first gives back what was read from it: to look at, or because the reader had little room.
#[derive(Debug)]
pub(crate) struct Rewind<S = TcpStream> {
    first: Bytes,
    stream: S,
}

/// A connection, with or without mesh TLS on it.
#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(Rewind),
    Accepted(Box<server::TlsStream<Rewind>>),
    /// Dialled by us; the flag is raised when the peer sends a TLS alert, which before the first byte of an answer means
    /// that it refused our identity.
    Dialled(Box<client::TlsStream<Rewind>>, Arc<AtomicBool>),
}

impl<S> Rewind<S> {
    pub(crate) fn new(stream: S, first: Bytes) -> Self {
        Self { first, stream }
    }
}

impl Rewind {
    fn poll_readable(&self, cx: &mut Context<'_>) -> bool {
        !self.first.is_empty() || self.stream.poll_read_ready(cx).is_ready()
    }
}

impl Stream {
    pub(crate) fn tcp(stream: TcpStream, first: Bytes) -> Self {
        Self::Tcp(Rewind::new(stream, first))
    }

    /// Whether there may be bytes to read; if not, the task is woken when there are. Costs no system call. TLS may hold bytes of
    /// its own and always says yes, unless it is known to be `drained`: a read has found nothing.
    pub(crate) fn poll_readable(&mut self, cx: &mut Context<'_>, drained: bool) -> bool {
        match self {
            Self::Tcp(stream) => stream.poll_readable(cx),
            Self::Accepted(stream) => !drained || stream.get_ref().0.poll_readable(cx),
            Self::Dialled(stream, _) => !drained || stream.get_ref().0.poll_readable(cx),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewind<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            if buf.remaining() >= LARGE {
                return Pin::new(&mut self.stream).poll_read(cx, buf);
            }
            let this = &mut *self;
            return buffer::lend(|ahead| {
                ready!(tokio_util::io::poll_read_buf(Pin::new(&mut this.stream), cx, ahead))?;
                let now = ahead.split_to(ahead.len().min(buf.remaining()));
                buf.put_slice(&now);
                if !ahead.is_empty() {
                    this.first = buffer::detach(ahead).freeze();
                }
                Poll::Ready(Ok(()))
            });
        }
        let count = self.first.len().min(buf.remaining());
        if let Some(part) = self.first.get(..count) {
            buf.put_slice(part);
        }
        self.first.advance(count);
        if self.first.is_empty() {
            // Gives the memory back, which the connection would hold to its end.
            self.first = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewind<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        true
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

macro_rules! each {
    ($self:ident, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Stream::Tcp($stream) => $call,
            Stream::Accepted($stream) => $call,
            Stream::Dialled($stream, _) => $call,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Accepted(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Dialled(stream, alerted) => {
                let polled = Pin::new(stream).poll_read(cx, buf);
                if let Poll::Ready(Err(error)) = &polled
                    && is_alert(error)
                {
                    alerted.store(true, Relaxed);
                }
                polled
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }
    fn is_write_vectored(&self) -> bool {
        true
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_flush(cx))
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

/// Whether an error is an alert that the peer sent.
pub(crate) fn is_alert(error: &io::Error) -> bool {
    tls_error(error).is_some_and(|error| matches!(error, rustls::Error::AlertReceived(_)))
}

/// The TLS error inside an IO error.
pub(crate) fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}
