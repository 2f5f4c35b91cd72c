//! A mesh connection whose records are made and read here: `spec.tls.records: weft`. rustls has agreed on the keys and derives
//! new ones (docs/adr/0014). Bytes are decrypted in the reader's buffer and encrypted from the writer's, and an idle connection
//! holds its keys and nothing else.
//!
//! - `open`: from the socket to the reader: records, tickets, key updates, alerts.
//! - `seal`: from the writer to the socket.
//!
//! Invariants: sealed records are written before any that are sealed later. After the first fault, or the peer's close_notify,
//! no further record is opened.
//!
//! # Defaults
//! One write seals at most [`WRITTEN_AT_ONCE`](seal::WRITTEN_AT_ONCE), behind at most [`MAX_HANDSHAKE_TAIL`] of the handshake. A
//! handshake message: 64 KiB. Records without data in a row: 32. Tickets: 8.

mod open;
mod seal;

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use rustls::{
    AlertDescription, ContentType, Error, ExtractedSecrets, InvalidMessage, client::ClientConnectionData,
    kernel::KernelConnection, server::ServerConnectionData,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

pub(in crate::tls) use self::seal::MAX_HANDSHAKE_TAIL;
use self::seal::{buffer_to_seal_in, give_back};
use super::{Alerted, fault};
use crate::{
    buffer,
    tls::record::{Key, MAX_CONTENT, MAX_RECORD, OVERHEAD, REKEY},
};

/// A change of our key that asks for none of the peer's (RFC 8446 §4.6.3).
const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];

/// What rustls keeps of a connection: it derives the next keys and stores tickets.
pub(in crate::tls) enum Keys {
    Client(KernelConnection<ClientConnectionData>),
    Server(KernelConnection<ServerConnectionData>),
}

impl Keys {
    fn next_send_key(&mut self) -> Result<Key, Error> {
        Key::new(match self {
            Self::Client(keys) => keys.update_tx_secret(),
            Self::Server(keys) => keys.update_tx_secret(),
        }?)
    }

    fn next_receive_key(&mut self) -> Result<Key, Error> {
        Key::new(match self {
            Self::Client(keys) => keys.update_rx_secret(),
            Self::Server(keys) => keys.update_rx_secret(),
        }?)
    }
}

/// A mesh connection with our own records.
pub(crate) struct WeftSession {
    pub(super) tcp: TcpStream,
    keys: Keys,
    receive_key: Key,
    send_key: Key,
    /// Read and not opened: a part of a record, or the bytes behind the handshake.
    ciphertext: Vec<u8>,
    /// Opened and not taken, because the reader had little room.
    plaintext: Bytes,
    /// The beginning of a handshake message.
    message: Vec<u8>,
    /// Records without data since the last with data.
    records_without_data: u8,
    tickets: u8,
    reading: Reading,
    pub(super) alerted: Alerted,
    /// Sealed; `written` bytes of it were sent.
    output: Vec<u8>,
    written: usize,
    /// `output` is what the handshake left to be sent, with which no write was tried.
    handshake_tail: bool,
    /// The peer has asked for a new key of ours.
    key_update_requested: bool,
    /// Records for each of our keys.
    records_per_key: u64,
    /// Nothing more can be written: we have sent close_notify or an alert, or the peer an alert or a FIN.
    write_closed: bool,
}

/// Whether more can be read.
enum Reading {
    Open,
    /// The peer has sent close_notify.
    Ended,
    Failed(Error),
}

impl WeftSession {
    /// `ciphertext`: the bytes that came behind the handshake. `output`: what the handshake has left to be sent, at most
    /// [`MAX_HANDSHAKE_TAIL`].
    /// Errors: a cipher suite or key that records cannot be made with.
    pub(in crate::tls) fn new(
        tcp: TcpStream,
        secrets: ExtractedSecrets,
        keys: Keys,
        ciphertext: Vec<u8>,
        output: Vec<u8>,
    ) -> Result<Self, Error> {
        Ok(Self {
            tcp,
            keys,
            receive_key: Key::new(secrets.rx)?,
            send_key: Key::new(secrets.tx)?,
            ciphertext,
            plaintext: Bytes::new(),
            message: Vec::new(),
            records_without_data: 0,
            tickets: 0,
            reading: Reading::Open,
            alerted: Alerted::default(),
            handshake_tail: !output.is_empty(),
            output,
            written: 0,
            key_update_requested: false,
            records_per_key: REKEY,
            write_closed: false,
        })
    }

    /// Ends reading with a fault, and sends the alert that it calls for as far as the socket takes it.
    fn fail(&mut self, error: Error) {
        if let Error::AlertReceived(_) = &error {
            self.write_closed = true;
            self.alerted.raise();
        } else {
            self.queue_alert(2, description(&error));
        }
        self.reading = Reading::Failed(error);
        // Not waited for: the caller that sees the fault closes the connection.
        if let Some(rest @ [_, ..]) = self.output.get(self.written..)
            && let Ok(count) = self.tcp.try_write(rest)
        {
            self.written += count;
        }
    }

    /// Queues an alert, behind which nothing is sent.
    fn queue_alert(&mut self, level: u8, description: AlertDescription) {
        if std::mem::replace(&mut self.write_closed, true) {
            return;
        }
        let mut record = [0; 2 + OVERHEAD];
        let content = [level, description.into()];
        if let Ok(length) = self.send_key.seal(ContentType::Alert, 2, Some(&content), &mut record) {
            self.output.extend_from_slice(record.get(..length).unwrap_or_default());
        }
    }

    /// Queues a fatal alert, unless close_notify or an alert went before. Which one says nothing: the application's error is not
    /// one of TLS.
    pub(super) fn break_off(&mut self) {
        self.queue_alert(2, AlertDescription::InternalError);
    }

    /// Writes what is sealed.
    fn poll_output(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.handshake_tail = false;
        while let Some(rest @ [_, ..]) = self.output.get(self.written..) {
            match ready!(Pin::new(&mut self.tcp).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.written += count,
            }
        }
        if self.written > 0 {
            give_back(std::mem::take(&mut self.output));
            self.written = 0;
        }
        Poll::Ready(Ok(()))
    }

    pub(super) fn poll_write_vectored(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // Earlier records leave first, so that output has a bound. Bytes of the handshake leave together with these.
        if !self.handshake_tail {
            ready!(self.poll_output(cx))?;
        }
        if self.write_closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let mut sealed = buffer_to_seal_in();
        let (before, rest) = sealed.split_at_mut(self.output.len());
        before.copy_from_slice(&self.output);
        // If sealing or writing fails, a record is missing in the stream, so nothing may follow it.
        self.write_closed = true;
        let (taken, length) = self.seal(bufs, rest).map_err(io::Error::other)?;
        let length = self.output.len() + length;
        (self.output, self.handshake_tail) = (Vec::new(), false);
        let records = sealed.get(..length).unwrap_or_default();
        let written = match Pin::new(&mut self.tcp).poll_write(cx, records) {
            Poll::Ready(written) => written?,
            Poll::Pending => 0,
        };
        self.write_closed = false;
        // A short rest is copied, so that the large buffer goes back to the thread.
        let rest = records.get(written..).unwrap_or_default();
        if rest.len() <= MAX_CONTENT {
            self.output.extend_from_slice(rest);
            give_back(sealed);
        } else {
            sealed.truncate(length);
            (self.output, self.written) = (sealed, written);
        }
        Poll::Ready(Ok(taken))
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_output(cx)
    }

    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.queue_alert(1, AlertDescription::CloseNotify);
        ready!(self.poll_output(cx))?;
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

/// The alert for a fault (RFC 8446 §6.2).
#[expect(clippy::wildcard_enum_match_arm, reason = "of others' errors, these few are a peer's fault")]
fn description(error: &Error) -> AlertDescription {
    match error {
        Error::DecryptError => AlertDescription::BadRecordMac,
        Error::PeerSentOversizedRecord => AlertDescription::RecordOverflow,
        Error::InvalidMessage(InvalidMessage::InvalidKeyUpdate) => AlertDescription::IllegalParameter,
        Error::InvalidMessage(InvalidMessage::InvalidEmptyPayload) => AlertDescription::UnexpectedMessage,
        Error::InvalidMessage(_) => AlertDescription::DecodeError,
        Error::InappropriateMessage { .. } | Error::InappropriateHandshakeMessage { .. } | Error::PeerMisbehaved(_) => {
            AlertDescription::UnexpectedMessage
        }
        _ => AlertDescription::InternalError,
    }
}

impl AsyncRead for WeftSession {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if !this.plaintext.is_empty() {
                buffer::hand_on(&mut this.plaintext, buf);
                return Poll::Ready(Ok(()));
            }
            match &this.reading {
                Reading::Ended => return Poll::Ready(Ok(())),
                Reading::Failed(error) => return Poll::Ready(Err(fault(error))),
                // With room for a whole record it is decrypted where the reader wants it.
                Reading::Open if buf.remaining() >= MAX_RECORD => {
                    if ready!(this.poll_open(cx, buf))? > 0 {
                        return Poll::Ready(Ok(()));
                    }
                }
                Reading::Open if buf.remaining() == 0 => return Poll::Ready(Ok(())),
                // With less, in a buffer of the thread's, and what does not fit is kept as plaintext.
                Reading::Open => ready!(buffer::lend(|lent| {
                    ready!(tokio_util::io::poll_read_buf(Pin::new(&mut *this), cx, lent))?;
                    this.plaintext = buffer::detach(lent).freeze();
                    Poll::Ready(io::Result::Ok(()))
                }))?,
            }
        }
    }
}

#[cfg(test)]
mod tests;
