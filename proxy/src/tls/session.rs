//! A mesh connection after its handshake: rustls has agreed on the keys and changes them, the records are made and read here.
//! In that way what comes is decrypted in the buffer of whoever reads it, what leaves is encrypted from where it stands, and a
//! connection that is idle holds keys and nothing else (docs/adr/0014).
//! Invariants: nothing is handed on that was not authenticated; after the first fault, or the peer's farewell, nothing more is
//! read; what was sealed is written before anything else is. What the handshake has left leaves with the first write or flush.
//!
//! # Defaults
//! One write seals at most [`WRITTEN_AT_ONCE`], behind at most [`MAX_LAST_WORDS`] of the handshake. A handshake message: 64 KiB.
//! Records without data in a row: 32. Tickets: 8.

use std::{
    cell::RefCell,
    fmt, io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use rustls::{
    AlertDescription, ContentType, Error, ExtractedSecrets, HandshakeType, InvalidMessage, PeerMisbehaved,
    client::ClientConnectionData, kernel::KernelConnection, server::ServerConnectionData,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::record::{self, HEADER, Key, MAX_CONTENT, MAX_RECORD, OVERHEAD, REKEY};
use crate::buffer;

/// What one write encrypts at most, in bytes: so many leave in one system call.
const WRITTEN_AT_ONCE: usize = buffer::SIZE;
/// Most bytes of the handshake that are left to the session to send.
pub(super) const MAX_LAST_WORDS: usize = 4 * 1024;
/// Room for it in records, and for the handshake's last words and a change of key before.
const SEALED: usize =
    MAX_LAST_WORDS + WRITTEN_AT_ONCE + WRITTEN_AT_ONCE.div_ceil(MAX_CONTENT) * OVERHEAD + KEY_UPDATE.len() + OVERHEAD;
/// Largest message of the handshake that comes after it.
const MAX_MESSAGE: usize = 64 * 1024;
/// Records without data that may come in a row. BoringSSL and rustls allow as many changes of key.
const MAX_WITHOUT_DATA: u8 = 32;
/// Tickets of one connection that are kept; each costs a derivation, and the store's lock.
const MAX_TICKETS: u8 = 8;
/// A change of our key that asks for none of the peer's (RFC 8446 §4.6.3).
const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];
/// Places to seal in that a thread keeps.
const KEPT: usize = 4;

thread_local! {
    static PLACES: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// What rustls keeps of a connection: how its keys go on, and where its tickets go to.
pub(super) enum Keys {
    Client(KernelConnection<ClientConnectionData>),
    Server(KernelConnection<ServerConnectionData>),
}

impl Keys {
    fn next_of_ours(&mut self) -> Result<Key, Error> {
        Key::new(match self {
            Self::Client(keys) => keys.update_tx_secret(),
            Self::Server(keys) => keys.update_tx_secret(),
        }?)
    }

    fn next_of_peer(&mut self) -> Result<Key, Error> {
        Key::new(match self {
            Self::Client(keys) => keys.update_rx_secret(),
            Self::Server(keys) => keys.update_rx_secret(),
        }?)
    }
}

/// A mesh connection.
pub(crate) struct Session {
    tcp: TcpStream,
    keys: Keys,
    opens: Key,
    seals: Key,
    /// Read and not opened: a part of a record, or what came behind the handshake.
    sealed: Vec<u8>,
    /// Opened and not taken, because the reader had little room.
    plain: Bytes,
    /// The beginning of a message of the handshake.
    message: Vec<u8>,
    without_data: u8,
    tickets: u8,
    reading: Reading,
    /// Whoever asks hears that the peer has sent an alert.
    alerted: Option<Arc<AtomicBool>>,
    /// Sealed and not written, from `written` on.
    unwritten: Vec<u8>,
    written: usize,
    /// What is unwritten are the handshake's last words, which no write was tried with.
    last_words: bool,
    /// The peer has asked for a new key of ours.
    owes_key: bool,
    /// Records for each of our keys.
    rekey: u64,
    /// We have said that nothing more comes.
    closed: bool,
}

enum Reading {
    Open,
    /// The peer has sent all.
    Ended,
    Failed(Error),
}

impl Session {
    /// `sealed`: what came behind the handshake. `last_words`: what it has left to be sent, at most [`MAX_LAST_WORDS`].
    pub(super) fn new(
        tcp: TcpStream,
        secrets: ExtractedSecrets,
        keys: Keys,
        sealed: Vec<u8>,
        last_words: Vec<u8>,
    ) -> Result<Self, Error> {
        Ok(Self {
            tcp,
            keys,
            opens: Key::new(secrets.rx)?,
            seals: Key::new(secrets.tx)?,
            sealed,
            plain: Bytes::new(),
            message: Vec::new(),
            without_data: 0,
            tickets: 0,
            reading: Reading::Open,
            alerted: None,
            last_words: !last_words.is_empty(),
            unwritten: last_words,
            written: 0,
            owes_key: false,
            rekey: REKEY,
            closed: false,
        })
    }

    /// Is raised when the peer sends an alert, which before the first byte of an answer means that it refused our identity.
    pub(crate) fn alerted(&mut self) -> Arc<AtomicBool> {
        self.alerted.get_or_insert_default().clone()
    }

    /// See [`Stream::poll_readable`](crate::stream::Stream::poll_readable).
    pub(crate) fn poll_readable(&self, cx: &mut Context<'_>, drained: bool) -> bool {
        !drained || self.tcp.poll_read_ready(cx).is_ready()
    }

    /// Reads, and opens what has come. Returns how many bytes were added to `buf`, which has room for a record: none when the
    /// peer has sent all, or what came was not for us.
    fn poll_open(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<usize>> {
        let start = buf.filled().len();
        let early = self.sealed.len().min(buf.remaining());
        buf.put_slice(self.sealed.get(..early).unwrap_or_default());
        let whole = record::length(&self.sealed);
        if matches!(whole, Ok(None)) {
            let polled = Pin::new(&mut self.tcp).poll_read(cx, buf);
            let ended = buf.filled().len() == start + early;
            if polled.is_pending() || ended {
                buf.set_filled(start);
            }
            ready!(polled)?;
            if ended {
                // Nobody is left to say farewell to.
                self.closed = true;
                return Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "closed without TLS close_notify",
                )));
            }
        }
        let read = buf.filled_mut().get_mut(start..).unwrap_or_default();
        let (mut at, mut end) = (0, 0);
        while let Reading::Open = self.reading {
            match self.open_one(read, at, &mut end) {
                Ok(Some(length)) => at += length,
                Ok(None) => break,
                Err(error) => self.fail(error),
            }
        }
        let rest = read.get(at..).unwrap_or_default();
        let over = !matches!(self.reading, Reading::Open);
        if over || rest.is_empty() && early == self.sealed.len() {
            self.sealed = Vec::new();
        } else {
            self.sealed.splice(..early, rest.iter().copied());
        }
        buf.set_filled(start + end);
        Poll::Ready(Ok(end))
    }

    /// Opens the record at `at`, and moves its data to `end`. Returns its length, or `None` where not all of it is there.
    fn open_one(&mut self, read: &mut [u8], at: usize, end: &mut usize) -> Result<Option<usize>, Error> {
        let Some(length) = record::length(read.get(at..).unwrap_or_default())? else { return Ok(None) };
        let (kind, count) = self.opens.open(read.get_mut(at..at + length).unwrap_or_default())?;
        let content = at + HEADER..at + HEADER + count;
        if kind != ContentType::Handshake && !self.message.is_empty() {
            return Err(PeerMisbehaved::MessageInterleavedWithHandshakeMessage.into());
        }
        if kind == ContentType::ApplicationData && count > 0 {
            self.without_data = 0;
            read.copy_within(content, *end);
            *end += count;
            return Ok(Some(length));
        }
        self.without_data += 1;
        if self.without_data > MAX_WITHOUT_DATA {
            return Err(PeerMisbehaved::TooManyEmptyFragments.into());
        }
        let content = read.get(content).unwrap_or_default();
        if kind == ContentType::Handshake {
            self.handshake(content)?;
        } else if kind == ContentType::Alert {
            self.alert(content)?;
        } else if kind != ContentType::ApplicationData {
            return Err(unexpected(kind));
        }
        Ok(Some(length))
    }

    /// Messages of the handshake that come after it (RFC 8446 §4.6): tickets, and a new key of the peer's.
    fn handshake(&mut self, content: &[u8]) -> Result<(), Error> {
        if content.is_empty() {
            return Err(InvalidMessage::InvalidEmptyPayload.into());
        }
        let mut message = std::mem::take(&mut self.message);
        message.extend_from_slice(content);
        let mut rest = message.as_slice();
        while let Some((&[kind, a, b, c], body)) = rest.split_first_chunk() {
            let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
            if length > MAX_MESSAGE {
                return Err(InvalidMessage::HandshakePayloadTooLarge.into());
            }
            let Some((body, behind)) = body.split_at_checked(length) else { break };
            rest = behind;
            match (HandshakeType::from(kind), &mut self.keys) {
                (HandshakeType::NewSessionTicket, Keys::Client(_)) if self.tickets == MAX_TICKETS => {}
                (HandshakeType::NewSessionTicket, Keys::Client(keys)) => {
                    keys.handle_new_session_ticket(body)?;
                    self.tickets += 1;
                }
                (HandshakeType::KeyUpdate, keys) => {
                    self.owes_key |= match body {
                        [0] => false,
                        [1] => true,
                        _ => return Err(InvalidMessage::InvalidKeyUpdate.into()),
                    };
                    if !rest.is_empty() {
                        return Err(PeerMisbehaved::KeyEpochWithPendingFragment.into());
                    }
                    self.opens = keys.next_of_peer()?;
                }
                (got_type, _) => {
                    return Err(Error::InappropriateHandshakeMessage {
                        expect_types: vec![HandshakeType::NewSessionTicket, HandshakeType::KeyUpdate],
                        got_type,
                    });
                }
            }
        }
        self.message = rest.to_vec();
        Ok(())
    }

    /// RFC 8446 §6: whatever its level says, an alert ends the connection; but one.
    fn alert(&mut self, content: &[u8]) -> Result<(), Error> {
        let &[_level, description] = content else {
            let fault =
                if content.is_empty() { InvalidMessage::InvalidEmptyPayload } else { InvalidMessage::MessageTooShort };
            return Err(fault.into());
        };
        let description = AlertDescription::from(description);
        if description == AlertDescription::CloseNotify {
            self.reading = Reading::Ended;
        } else if description != AlertDescription::UserCanceled {
            return Err(Error::AlertReceived(description));
        }
        Ok(())
    }

    /// Nothing more is read. The peer hears why, as far as it listens.
    fn fail(&mut self, error: Error) {
        if let Error::AlertReceived(_) = &error {
            self.closed = true;
            if let Some(alerted) = &self.alerted {
                alerted.store(true, Relaxed);
            }
        } else {
            self.say(2, description(&error));
        }
        self.reading = Reading::Failed(error);
        // Not waited for: whoever hears of the fault closes the connection.
        if let Some(rest @ [_, ..]) = self.unwritten.get(self.written..)
            && let Ok(count) = self.tcp.try_write(rest)
        {
            self.written += count;
        }
    }

    /// Queues a last word: an alert behind which nothing is sent.
    fn say(&mut self, level: u8, description: AlertDescription) {
        if std::mem::replace(&mut self.closed, true) {
            return;
        }
        let mut record = [0; 2 + OVERHEAD];
        let content = [level, description.into()];
        if let Ok(length) = self.seals.seal(ContentType::Alert, 2, Some(&content), &mut record) {
            self.unwritten.extend_from_slice(record.get(..length).unwrap_or_default());
        }
    }

    /// Writes what is sealed.
    fn poll_unwritten(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.last_words = false;
        while let Some(rest @ [_, ..]) = self.unwritten.get(self.written..) {
            match ready!(Pin::new(&mut self.tcp).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.written += count,
            }
        }
        if self.written > 0 {
            give_back(std::mem::take(&mut self.unwritten));
            self.written = 0;
        }
        Poll::Ready(Ok(()))
    }

    /// Seals the front of what is to be sent into `place`. Returns how much of it, and the length of the records.
    fn seal(&mut self, parts: &[io::IoSlice<'_>], place: &mut [u8]) -> Result<(usize, usize), Error> {
        let mut length = 0;
        if std::mem::take(&mut self.owes_key) || self.seals.sequence() >= self.rekey {
            length += self.seals.seal(ContentType::Handshake, KEY_UPDATE.len(), Some(&KEY_UPDATE), place)?;
            self.seals = self.keys.next_of_ours()?;
        }
        let whole = parts.iter().map(|part| part.len()).sum::<usize>().min(WRITTEN_AT_ONCE);
        let mut parts = Parts { parts: parts.iter(), part: &[] };
        let mut left = whole;
        while left > 0 {
            let count = left.min(MAX_CONTENT);
            let out = place.get_mut(length..).unwrap_or_default();
            let content = parts.one(count);
            if content.is_none() {
                parts.gather(out.get_mut(HEADER..HEADER + count).unwrap_or_default());
            }
            length += self.seals.seal(ContentType::ApplicationData, count, content, out)?;
            left -= count;
        }
        Ok((whole, length))
    }
}

/// What is to be sealed, in order.
struct Parts<'a> {
    parts: std::slice::Iter<'a, io::IoSlice<'a>>,
    part: &'a [u8],
}

impl<'a> Parts<'a> {
    /// The next `count` bytes, if they stand in one place.
    fn one(&mut self, count: usize) -> Option<&'a [u8]> {
        while self.part.is_empty() {
            self.part = self.parts.next()?;
        }
        let (one, rest) = self.part.split_at_checked(count)?;
        self.part = rest;
        Some(one)
    }

    /// Copies the next bytes.
    fn gather(&mut self, mut to: &mut [u8]) {
        while !to.is_empty() {
            if self.part.is_empty() {
                let Some(part) = self.parts.next() else { return };
                self.part = part;
            }
            let (from, rest) = self.part.split_at(self.part.len().min(to.len()));
            let (here, behind) = to.split_at_mut(from.len());
            here.copy_from_slice(from);
            (self.part, to) = (rest, behind);
        }
    }
}

/// A place to seal in.
fn place() -> Vec<u8> {
    PLACES.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; SEALED])
}

fn give_back(mut place: Vec<u8>) {
    if place.capacity() >= SEALED {
        place.resize(SEALED, 0);
        PLACES.with_borrow_mut(|places| {
            if places.len() < KEPT {
                places.push(place);
            }
        });
    }
}

fn unexpected(got_type: ContentType) -> Error {
    let expect_types = vec![ContentType::ApplicationData, ContentType::Handshake, ContentType::Alert];
    Error::InappropriateMessage { expect_types, got_type }
}

/// What the peer hears of a fault (RFC 8446 §6.2).
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

impl AsyncRead for Session {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if !this.plain.is_empty() {
                buffer::hand_on(&mut this.plain, buf);
                return Poll::Ready(Ok(()));
            }
            match &this.reading {
                Reading::Ended => return Poll::Ready(Ok(())),
                Reading::Failed(error) => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error.clone())));
                }
                Reading::Open if buf.remaining() >= MAX_RECORD => {
                    if ready!(this.poll_open(cx, buf))? > 0 {
                        return Poll::Ready(Ok(()));
                    }
                }
                Reading::Open if buf.remaining() == 0 => return Poll::Ready(Ok(())),
                Reading::Open => ready!(buffer::lend(|lent| {
                    ready!(tokio_util::io::poll_read_buf(Pin::new(&mut *this), cx, lent))?;
                    this.plain = buffer::detach(lent).freeze();
                    Poll::Ready(io::Result::Ok(()))
                }))?,
            }
        }
    }
}

impl AsyncWrite for Session {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if !this.last_words {
            ready!(this.poll_unwritten(cx))?;
        }
        if this.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let mut place = place();
        let (before, rest) = place.split_at_mut(this.unwritten.len());
        before.copy_from_slice(&this.unwritten);
        // Whatever goes wrong, a record is missing then: nothing can follow it.
        this.closed = true;
        let (taken, length) = this.seal(bufs, rest).map_err(io::Error::other)?;
        let length = this.unwritten.len() + length;
        (this.unwritten, this.last_words) = (Vec::new(), false);
        let sealed = place.get(..length).unwrap_or_default();
        let written = match Pin::new(&mut this.tcp).poll_write(cx, sealed) {
            Poll::Ready(written) => written?,
            Poll::Pending => 0,
        };
        this.closed = false;
        // A little is copied, so that the place goes back to the thread.
        let rest = sealed.get(written..).unwrap_or_default();
        if rest.len() <= MAX_CONTENT {
            this.unwritten.extend_from_slice(rest);
            give_back(place);
        } else {
            place.truncate(length);
            (this.unwritten, this.written) = (place, written);
        }
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_unwritten(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.say(1, AlertDescription::CloseNotify);
        ready!(self.poll_unwritten(cx))?;
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("tcp", &self.tcp).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
