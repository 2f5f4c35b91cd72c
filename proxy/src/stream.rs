//! Byte streams: a TCP connection of which something was read already, or one with mesh TLS on it.

pub(crate) mod kernel;

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::{Arc, atomic::AtomicBool},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::timeout,
};

use self::kernel::{bound_unread, linger, sent};
use crate::{buffer, tls::session::Session};

/// Longest time to deliver bytes that came before an error, before the error is passed on.
pub(crate) const DELIVERY: Duration = Duration::from_secs(10);
/// A byte stream in both directions, for places that hold one of several kinds as `Box<dyn Duplex>`. It has two exits: a
/// shutdown is an end, and breaking off is an error.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {
    /// Makes the stream end as an error. A stream of HTTP/2 is reset, TLS ends by a fatal alert or without close_notify, TCP by a
    /// reset when it is dropped. Returns how TCP below may end then. Bytes may be lost that were written and not yet sent: see
    /// [`abort`].
    fn break_off(&mut self) -> Exit;
    /// The connection below; `None` for a stream of HTTP/2.
    fn socket(&self) -> Option<&TcpStream>;
}

/// How the TCP connection below a stream that was broken off may end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// By a reset only.
    Reset,
    /// In any way: the stream itself says that it broke off, or shows it.
    Any,
}

/// Breaks a stream off, behind the bytes that were written to it and that the peer takes within [`DELIVERY`]. It is to be
/// dropped afterwards.
pub(crate) async fn abort(stream: &mut impl Duplex) {
    // Even if this is dropped meanwhile, the stream does not end as a closed one.
    linger(stream.socket(), Some(Duration::ZERO));
    let flushed = timeout(DELIVERY, poll_fn(|cx| Pin::new(&mut *stream).poll_flush(cx))).await;
    let exit = stream.break_off();
    if !matches!(flushed, Ok(Ok(()))) {
        return;
    }
    let sent = async {
        // TLS has an alert to send now.
        if poll_fn(|cx| Pin::new(&mut *stream).poll_flush(cx)).await.is_ok()
            && let Some(socket) = stream.socket()
        {
            sent(socket).await;
        }
    };
    match timeout(DELIVERY, sent).await {
        // The kernel repeats lost segments in front of a FIN, but not in front of a reset.
        Ok(()) if exit == Exit::Any => linger(stream.socket(), None),
        Ok(()) => {}
        Err(_elapsed) => tracing::debug!("the peer did not take all bytes that came before an error"),
    }
}

/// Breaks a stream off to which nothing was written.
pub(crate) fn refuse(mut stream: impl Duplex) {
    stream.break_off();
    let told = Pin::new(&mut stream).poll_flush(&mut Context::from_waker(Waker::noop()));
    tracing::trace!(?told, "refused");
}

impl Duplex for TcpStream {
    fn break_off(&mut self) -> Exit {
        linger(Some(self), Some(Duration::ZERO));
        Exit::Reset
    }
    fn socket(&self) -> Option<&TcpStream> {
        Some(self)
    }
}

impl<S: Duplex> Duplex for Rewind<S> {
    fn break_off(&mut self) -> Exit {
        self.stream.break_off()
    }
    fn socket(&self) -> Option<&TcpStream> {
        self.stream.socket()
    }
}

impl Duplex for Session {
    fn break_off(&mut self) -> Exit {
        self.end_with_error();
        Exit::Any
    }
    fn socket(&self) -> Option<&TcpStream> {
        Some(self.tcp())
    }
}

impl Duplex for Stream {
    fn break_off(&mut self) -> Exit {
        match self {
            Self::Tcp(stream) => stream.break_off(),
            Self::Tls(session) => session.break_off(),
            Self::TlsAgain(stream) => stream.break_off(),
        }
    }
    fn socket(&self) -> Option<&TcpStream> {
        match self {
            Self::Tcp(stream) => stream.socket(),
            Self::Tls(session) => session.socket(),
            Self::TlsAgain(stream) => stream.socket(),
        }
    }
}

impl<D: Duplex + ?Sized> Duplex for Box<D> {
    fn break_off(&mut self) -> Exit {
        (**self).break_off()
    }
    fn socket(&self) -> Option<&TcpStream> {
        (**self).socket()
    }
}

impl<D: Duplex + ?Sized> Duplex for &mut D {
    fn break_off(&mut self) -> Exit {
        (**self).break_off()
    }
    fn socket(&self) -> Option<&TcpStream> {
        (**self).socket()
    }
}

#[cfg(test)]
impl Duplex for tokio::io::DuplexStream {
    fn break_off(&mut self) -> Exit {
        Exit::Any
    }
    fn socket(&self) -> Option<&TcpStream> {
        None
    }
}

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

    /// Bounds what the kernel keeps of a workload's bytes: see [`bound_unread`].
    pub(crate) fn bound_unread(&self) {
        if let Self::Tcp(tcp) = self {
            bound_unread(&tcp.stream);
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
