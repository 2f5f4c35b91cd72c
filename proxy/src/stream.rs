//! Byte streams: a TCP connection of which something was read already, or one with mesh TLS on it.

use std::{
    io,
    pin::Pin,
    sync::{Arc, atomic::AtomicBool},
    task::{Context, Poll},
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use crate::{buffer, tcp, tls::session::Session};

/// A byte stream in both directions, for places that hold one of several kinds as `Box<dyn Duplex>`.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A stream whose first bytes were read to detect the protocol, and are read again.
#[derive(Debug)]
pub(crate) struct Rewind<S = TcpStream> {
    first: Bytes,
    stream: S,
}

/// A connection, with or without mesh TLS on it.
#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(Rewind),
    Tls(Session),
    /// Mesh TLS of which something was read already.
    TlsAgain(Box<Rewind<Session>>),
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

    /// The same stream with bytes that were read from it, to be read again. At its beginning only: none are left from before.
    pub(crate) fn again(self, first: Bytes) -> Self {
        match self {
            stream if first.is_empty() => stream,
            Self::Tcp(tcp) => Self::tcp(tcp.stream, first),
            Self::Tls(session) => Self::TlsAgain(Box::new(Rewind::new(session, first))),
            Self::TlsAgain(again) => Self::TlsAgain(Box::new(Rewind::new(again.stream, first))),
        }
    }

    /// The TCP connection, where there is no TLS on it.
    pub(crate) fn into_tcp(self) -> Option<TcpStream> {
        match self {
            Self::Tcp(tcp) => Some(tcp.stream),
            Self::Tls(_) | Self::TlsAgain(_) => None,
        }
    }

    /// Bounds what the kernel keeps of a workload's bytes: see [`tcp::bound_unread`].
    pub(crate) fn bound_unread(&self) {
        if let Self::Tcp(tcp) = self {
            tcp::bound_unread(&tcp.stream);
        }
    }

    /// Whether there may be bytes to read; if not, the task is woken when there are. Costs no system call. TLS may hold bytes of
    /// its own and always says yes, unless it is known to be `drained`: a read has found nothing.
    pub(crate) fn poll_readable(&mut self, cx: &mut Context<'_>, drained: bool) -> bool {
        match self {
            Self::Tcp(stream) => stream.poll_readable(cx),
            Self::Tls(session) => session.poll_readable(cx, drained),
            Self::TlsAgain(again) => !again.first.is_empty() || again.stream.poll_readable(cx, drained),
        }
    }

    /// Is raised when the peer sends a TLS alert: see [`Session::alerted`].
    pub(crate) fn alerted(&mut self) -> Arc<AtomicBool> {
        match self {
            Self::Tcp(_) => Arc::default(),
            Self::Tls(session) => session.alerted(),
            Self::TlsAgain(again) => again.stream.alerted(),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewind<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        buffer::hand_on(&mut self.first, buf);
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
            Stream::Tls($stream) => $call,
            Stream::TlsAgain($stream) => $call,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_read(cx, buf))
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

/// The TLS error inside an IO error.
pub(crate) fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}
