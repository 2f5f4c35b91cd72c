//! A mesh connection whose records rustls makes and reads: `spec.tls.records: rustls`, an operator's way out of our own record
//! layer. Shape: rustls' buffered [`Connection`] from the ClientHello on, and the socket.
//!
//! # Defaults
//! rustls bounds what it holds: plaintext read and not taken one read of the socket, a handshake message 64 KiB on the wire,
//! records without data in a row 32, output 64 KiB of plaintext. It changes keys before a cipher's limit.

use std::{
    io::{self, BufRead, Read, Write},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use rustls::{CommonState, Connection, Error, InvalidMessage};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::{Alerted, fault, truncated};

/// A mesh connection with rustls' records.
pub(crate) struct BufferedSession {
    pub(super) tcp: TcpStream,
    tls: Connection,
    /// Read from the socket and not yet shown to rustls.
    first: Bytes,
    pub(super) alerted: Alerted,
    /// The first fault of the peer's.
    failed: Option<Error>,
    /// The output is what the handshake left to be sent, with which no write was tried.
    handshake_tail: bool,
    /// Nothing more can be written: we have sent close_notify or an alert, or the peer an alert or a FIN.
    write_closed: bool,
}

impl BufferedSession {
    /// A connection before its handshake. `first`: what was read of it already.
    pub(in crate::tls) fn new(tls: Connection, tcp: TcpStream, first: Bytes) -> Self {
        Self { tcp, tls, first, alerted: Alerted::default(), failed: None, handshake_tail: false, write_closed: false }
    }

    /// What rustls knows of the connection.
    pub(in crate::tls) fn state(&self) -> &CommonState {
        &self.tls
    }

    /// Carries the bytes of the handshake. What it has left to be sent at its end leaves with the first write or flush.
    /// Errors: IO, or of rustls inside one of the kind `InvalidData`; an alert was sent to the peer.
    pub(in crate::tls) fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.tls.is_handshaking() {
            ready!(self.poll_output(cx))?;
            if ready!(self.poll_input(cx))? == 0 {
                let closed = io::Error::new(io::ErrorKind::UnexpectedEof, "closed during the TLS handshake");
                return Poll::Ready(Err(closed));
            }
            if let Some(error) = &self.failed {
                return Poll::Ready(Err(fault(error)));
            }
        }
        self.handshake_tail = self.tls.wants_write();
        Poll::Ready(Ok(()))
    }

    /// Reads from the socket once, and lets rustls process it. Returns the bytes read: 0 at a FIN.
    fn poll_input(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut socket = Socket { tcp: &mut self.tcp, first: &mut self.first, cx };
        let read = match self.tls.read_tls(&mut socket) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
            // rustls' own, of a handshake message in too many records: sockets fail in other ways.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                self.fail(cx, InvalidMessage::HandshakePayloadTooLarge.into());
                return Poll::Ready(Ok(1));
            }
            Err(error) => return Poll::Ready(Err(error)),
        };
        if let Err(error) = self.tls.process_new_packets() {
            self.fail(cx, error);
        }
        Poll::Ready(Ok(read))
    }

    /// Keeps the fault. rustls has queued the alert that tells the peer.
    fn fail(&mut self, cx: &mut Context<'_>, error: Error) {
        self.write_closed = true;
        if let Error::AlertReceived(_) = &error {
            self.alerted.raise();
        }
        self.failed = Some(error);
        // Not waited for: the caller that sees the fault closes the connection.
        let _sent: Poll<io::Result<()>> = self.poll_output(cx);
    }

    /// Writes what rustls has sealed.
    fn poll_output(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.handshake_tail = false;
        while self.tls.wants_write() {
            let mut socket = Socket { tcp: &mut self.tcp, first: &mut self.first, cx };
            match self.tls.write_tls(&mut socket) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    pub(super) fn poll_write_vectored(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // Earlier records leave first, so that output does not grow. Bytes of the handshake leave together with these.
        if !self.handshake_tail {
            ready!(self.poll_output(cx))?;
        }
        if self.write_closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let taken = self.tls.writer().write_vectored(bufs)?;
        // What the socket does not take now leaves with the next write or flush.
        if let Poll::Ready(written) = self.poll_output(cx) {
            written?;
        }
        Poll::Ready(Ok(taken))
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_output(cx)
    }

    /// No close_notify is sent from now on: rustls sends no alert of another's choice.
    pub(super) fn break_off(&mut self) {
        self.write_closed = true;
    }

    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !std::mem::replace(&mut self.write_closed, true) {
            self.tls.send_close_notify();
        }
        ready!(self.poll_output(cx))?;
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

impl AsyncRead for BufferedSession {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let start = buf.filled().len();
        loop {
            // All that is decrypted is taken first, so that bytes before a fault or an end are not lost.
            let mut reader = this.tls.reader();
            let ended = loop {
                match reader.fill_buf() {
                    Ok(chunk) => {
                        let count = chunk.len().min(buf.remaining());
                        buf.put_slice(chunk.get(..count).unwrap_or_default());
                        reader.consume(count);
                        if count == 0 {
                            // No room is left, or the peer has sent close_notify.
                            return Poll::Ready(Ok(()));
                        }
                    }
                    Err(error) => break error.kind() == io::ErrorKind::UnexpectedEof,
                }
            };
            if buf.filled().len() > start {
                return Poll::Ready(Ok(()));
            }
            if let Some(error) = &this.failed {
                return Poll::Ready(Err(fault(error)));
            }
            if ended {
                // No close_notify of ours has a reader any more.
                this.write_closed = true;
                return Poll::Ready(Err(truncated()));
            }
            ready!(this.poll_input(cx))?;
        }
    }
}

/// The socket as rustls reads and writes it: without waiting, with `WouldBlock` where the task is woken later.
struct Socket<'a, 'b> {
    tcp: &'a mut TcpStream,
    first: &'a mut Bytes,
    cx: &'a mut Context<'b>,
}

fn or_would_block<T>(polled: Poll<io::Result<T>>) -> io::Result<T> {
    match polled {
        Poll::Ready(result) => result,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

impl Read for Socket<'_, '_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if !self.first.is_empty() {
            let count = self.first.len().min(buf.len());
            self.first.split_to(count).copy_to_slice(buf.get_mut(..count).unwrap_or_default());
            return Ok(count);
        }
        let mut buf = ReadBuf::new(buf);
        or_would_block(Pin::new(&mut *self.tcp).poll_read(self.cx, &mut buf))?;
        Ok(buf.filled().len())
    }
}

impl Write for Socket<'_, '_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        or_would_block(Pin::new(&mut *self.tcp).poll_write(self.cx, buf))
    }

    fn write_vectored(&mut self, bufs: &[io::IoSlice<'_>]) -> io::Result<usize> {
        or_would_block(Pin::new(&mut *self.tcp).poll_write_vectored(self.cx, bufs))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
impl BufferedSession {
    /// Announces a new key of ours, and seals with it from then on.
    pub(super) fn refresh_key(&mut self) {
        self.tls.refresh_traffic_keys().unwrap();
    }
}
