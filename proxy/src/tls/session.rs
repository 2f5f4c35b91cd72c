//! A mesh connection after its handshake, as a byte stream. Two record layers carry it, chosen by `spec.tls.records`:
//! [`weft`] is our own (docs/adr/0014), [`buffered`] is rustls' buffered connection (docs/adr/0027). Both behave alike:
//!
//! - No byte is handed on that was not authenticated. The bytes before a fault are handed on; the fault is returned by every
//!   later read.
//! - A read returns 0 only after close_notify. A FIN without close_notify is an error of the kind `UnexpectedEof`, a fault one
//!   of the kind `InvalidData` with rustls' error inside.
//! - close_notify ends one direction: the other can still be used (RFC 8446 §6.1).
//! - A write may return before its records have left: a later write or a flush sends them. Bytes that the handshake left to be
//!   sent leave with the first write or flush.

pub(super) mod buffered;
pub(super) mod weft;

use std::{
    fmt, io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use rustls::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use self::{buffered::BufferedSession, weft::WeftSession};

/// A mesh connection.
pub(crate) enum Session {
    Weft(Box<WeftSession>),
    Rustls(Box<BufferedSession>),
}

/// A flag that is raised when the peer sends an alert. Absent until somebody asks for it.
#[derive(Default)]
struct Alerted(Option<Arc<AtomicBool>>);

impl Alerted {
    fn flag(&mut self) -> Arc<AtomicBool> {
        self.0.get_or_insert_default().clone()
    }

    fn raise(&self) {
        if let Some(flag) = &self.0 {
            flag.store(true, Relaxed);
        }
    }
}

impl Session {
    /// Raised when the peer sends an alert. Before the first byte of an answer an alert means that the peer refused our identity.
    pub(crate) fn alerted(&mut self) -> Arc<AtomicBool> {
        match self {
            Self::Weft(session) => session.alerted.flag(),
            Self::Rustls(session) => session.alerted.flag(),
        }
    }

    /// Whether there may be bytes to read; if not, the task is woken when there are. Costs no system call. `drained`: the last
    /// read found nothing, so neither plaintext nor a whole record is held here.
    pub(crate) fn poll_readable(&self, cx: &mut Context<'_>, drained: bool) -> bool {
        !drained || self.tcp().poll_read_ready(cx).is_ready()
    }

    /// Ends our direction as broken off: our own records by a fatal alert, rustls' without close_notify (RFC 8446 §6.1). The
    /// alert leaves with the next flush.
    pub(crate) fn end_with_error(&mut self) {
        match self {
            Self::Weft(session) => session.break_off(),
            Self::Rustls(session) => session.break_off(),
        }
    }

    pub(crate) fn tcp(&self) -> &TcpStream {
        match self {
            Self::Weft(session) => &session.tcp,
            Self::Rustls(session) => &session.tcp,
        }
    }
}

/// The error of a read after a TLS fault.
fn fault(error: &Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.clone())
}

/// The error of a read after a FIN without close_notify.
fn truncated() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "closed without TLS close_notify")
}

macro_rules! each {
    ($self:ident, $session:ident => $call:expr) => {
        match $self.get_mut() {
            Session::Weft($session) => $call,
            Session::Rustls($session) => $call,
        }
    };
}

impl AsyncRead for Session {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, session => Pin::new(session).poll_read(cx, buf))
    }
}

impl AsyncWrite for Session {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, session => session.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, session => session.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, session => session.poll_shutdown(cx))
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("tcp", self.tcp()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
