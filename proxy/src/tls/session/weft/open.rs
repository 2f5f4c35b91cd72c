//! Reading of a [`WeftSession`]: records are opened where the reader wants their data, and messages that are not data are obeyed.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use rustls::{AlertDescription, ContentType, Error, HandshakeType, InvalidMessage, PeerMisbehaved};
use tokio::io::{AsyncRead, ReadBuf};

use super::{Keys, Reading, WeftSession};
use crate::tls::{
    record::{self, HEADER},
    session::truncated,
};

/// Largest handshake message, in bytes.
const MAX_MESSAGE: usize = 64 * 1024;
/// Records without data that may come in a row. BoringSSL and rustls allow as many key updates.
pub(super) const MAX_WITHOUT_DATA: u8 = 32;
/// Tickets of one connection that are kept.
pub(super) const MAX_TICKETS: u8 = 8;

impl WeftSession {
    /// Reads from the socket, and opens the whole records. Returns how many bytes were added to `buf`, which has room for a record:
    /// 0 when the records held no data, or the connection ended.
    pub(super) fn poll_open(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<usize>> {
        let start = buf.filled().len();
        // Bytes of an earlier read come first; the socket is read only if they are no whole record.
        let early = self.ciphertext.len().min(buf.remaining());
        buf.put_slice(self.ciphertext.get(..early).unwrap_or_default());
        let whole = record::length(&self.ciphertext);
        if matches!(whole, Ok(None)) {
            let polled = Pin::new(&mut self.tcp).poll_read(cx, buf);
            let ended = buf.filled().len() == start + early;
            if polled.is_pending() || ended {
                buf.set_filled(start);
            }
            ready!(polled)?;
            if ended {
                // No close_notify of ours has a reader any more.
                self.write_closed = true;
                return Poll::Ready(Err(truncated()));
            }
        }
        let read = buf.filled_mut().get_mut(start..).unwrap_or_default();
        // Data moves to the front as records are opened: `at` is the next record, `end` is where its data goes.
        let (mut at, mut end) = (0, 0);
        while let Reading::Open = self.reading {
            match self.open_one(read, at, &mut end) {
                Ok(Some(length)) => at += length,
                Ok(None) => break,
                Err(error) => self.fail(error),
            }
        }
        // Of what is not opened, nothing is kept behind the end; otherwise it replaces the early bytes that it began with.
        let rest = read.get(at..).unwrap_or_default();
        let over = !matches!(self.reading, Reading::Open);
        if over || rest.is_empty() && early == self.ciphertext.len() {
            self.ciphertext = Vec::new();
        } else {
            self.ciphertext.splice(..early, rest.iter().copied());
        }
        buf.set_filled(start + end);
        Poll::Ready(Ok(end))
    }

    /// Opens the record at `at`, and moves its data to `end`. Returns its length, or `None` where not all of it is there.
    fn open_one(&mut self, read: &mut [u8], at: usize, end: &mut usize) -> Result<Option<usize>, Error> {
        let Some(length) = record::length(read.get(at..).unwrap_or_default())? else { return Ok(None) };
        let (kind, count) = self.receive_key.open(read.get_mut(at..at + length).unwrap_or_default())?;
        let content = at + HEADER..at + HEADER + count;
        if kind != ContentType::Handshake && !self.message.is_empty() {
            return Err(PeerMisbehaved::MessageInterleavedWithHandshakeMessage.into());
        }
        if kind == ContentType::ApplicationData && count > 0 {
            self.records_without_data = 0;
            read.copy_within(content, *end);
            *end += count;
            return Ok(Some(length));
        }
        self.records_without_data += 1;
        if self.records_without_data > MAX_WITHOUT_DATA {
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

    /// Handshake messages after the handshake (RFC 8446 §4.6): tickets, and key updates.
    fn handshake(&mut self, content: &[u8]) -> Result<(), Error> {
        if content.is_empty() {
            return Err(InvalidMessage::InvalidEmptyPayload.into());
        }
        // A message may come in several records, and a record may hold several messages.
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
                // Further tickets are ignored: each costs a key derivation and the lock of the store.
                (HandshakeType::NewSessionTicket, Keys::Client(_)) if self.tickets == MAX_TICKETS => {}
                (HandshakeType::NewSessionTicket, Keys::Client(keys)) => {
                    keys.handle_new_session_ticket(body)?;
                    self.tickets += 1;
                }
                (HandshakeType::KeyUpdate, keys) => {
                    self.key_update_requested |= match body {
                        [0] => false,
                        [1] => true,
                        _ => return Err(InvalidMessage::InvalidKeyUpdate.into()),
                    };
                    // The bytes behind it would be of both keys (RFC 8446 §5.1).
                    if !rest.is_empty() {
                        return Err(PeerMisbehaved::KeyEpochWithPendingFragment.into());
                    }
                    self.receive_key = keys.next_receive_key()?;
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

    /// An alert ends the connection, whatever its level says, except user_canceled (RFC 8446 §6).
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
}

fn unexpected(got_type: ContentType) -> Error {
    let expect_types = vec![ContentType::ApplicationData, ContentType::Handshake, ContentType::Alert];
    Error::InappropriateMessage { expect_types, got_type }
}
