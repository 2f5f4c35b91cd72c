//! Receiving, frame by frame.
//! Rules (RFC 9113 §5.4): a violation that concerns the connection ends it with GOAWAY; one that concerns a stream resets the stream.
//! Frames in flight on a stream that the local side has closed are ignored, but count for flow control and HPACK.

mod control;
mod data;
mod message;

use bytes::{Buf, BytesMut};

use super::{
    Code, Connection, Error, Event, Expects, MAX_ANSWERS, PREFACE, Role, Stream, StreamId, account,
    ended::End,
    frame::{
        ACK, CONTINUATION, DATA, FrameHeader, GOAWAY, HALF_CLOSED, HEADER_SIZE, HEADERS, MAX_FRAME, PADDED, PING,
        PRIORITY, PUSH_PROMISE, RST_STREAM, SETTINGS, WINDOW_UPDATE,
    },
};
use crate::hpack;

impl<T: Default> Connection<T> {
    /// Decodes the next event of `input` and removes its bytes. `None`: more bytes are needed.
    /// Errors: a connection error; the caller writes [`Connection::unsent`] and closes the connection.
    pub fn receive(&mut self, input: &mut BytesMut) -> Result<Option<Event>, Error> {
        loop {
            if let Some(id) = self.writable.pop_front() {
                return Ok(Some(Event::Writable { id }));
            }
            if let Some(id) = self.unprocessed.pop_front() {
                let code = Code::RefusedStream;
                return Ok(Some(Event::Reset { id, code, by_peer: true, unprocessed: true }));
            }
            // RFC 9113 §3.4: a wrong preface fails at its first wrong byte, before the rest arrives.
            if self.expects == Expects::Preface {
                let seen = input.len().min(PREFACE.len());
                if input.get(..seen) != PREFACE.get(..seen) {
                    return Err(self.connection_error(Code::ProtocolError, "invalid connection preface"));
                }
                if seen < PREFACE.len() {
                    return Ok(None);
                }
                input.advance(PREFACE.len());
                self.expects = Expects::Settings;
            }
            let Some(header) = FrameHeader::read(input) else { return Ok(None) };
            // RFC 9113 §4.2: the limit is SETTINGS_MAX_FRAME_SIZE. A longer frame could change the state of the connection, so it is a
            // connection error; checked before the payload is buffered.
            if header.len > MAX_FRAME {
                return Err(self.connection_error(Code::FrameSizeError, "frame larger than 16 KiB"));
            }
            // RFC 9113 §3.4: the first frame of each side is SETTINGS.
            if self.expects == Expects::Settings {
                if header.kind != SETTINGS || header.has(ACK) {
                    return Err(self.connection_error(Code::ProtocolError, "first frame is not SETTINGS"));
                }
                if input.len() >= HEADER_SIZE + header.len {
                    self.expects = Expects::Frames;
                }
            }
            // RFC 9113 §4.3: the frames of one header block are contiguous.
            if self.partial.as_ref().is_some_and(|partial| header.kind != CONTINUATION || header.id != partial.id) {
                return Err(self.connection_error(Code::ProtocolError, "frame inside a header block"));
            }
            if input.len() < HEADER_SIZE + header.len {
                return Ok(None);
            }
            input.advance(HEADER_SIZE);
            // DATA is split off the buffer without a copy if it is large; other payloads are read in place.
            let event = match header.kind {
                DATA => {
                    let payload = crate::input::take(input, header.len);
                    self.data(header, payload)
                }
                _ => {
                    let payload = input.get(..header.len).unwrap_or_default();
                    let event = self.frame(header, payload);
                    input.advance(header.len);
                    event
                }
            };
            if self.answers > MAX_ANSWERS {
                return Err(self.connection_error(Code::EnhanceYourCalm, "too many unread answers (PING, SETTINGS)"));
            }
            if let Some(event) = event? {
                return Ok(Some(event));
            }
        }
    }

    /// Whether a stream's caller has closed its sending side only now.
    fn half_closed(&mut self, id: StreamId) -> bool {
        match self.streams.get_mut(&id) {
            Some(stream) if self.role == Role::Server && !stream.is_closed() => {
                !std::mem::replace(&mut stream.caller_half_closed, true)
            }
            _ => false,
        }
    }

    fn frame(&mut self, header: FrameHeader, payload: &[u8]) -> Result<Option<Event>, Error> {
        match header.kind {
            HEADERS => self.headers(header, payload),
            CONTINUATION => self.continuation(header, payload),
            SETTINGS => self.settings(header, payload).map(|()| None),
            WINDOW_UPDATE => self.window_update(header, payload),
            RST_STREAM => self.rst_stream(header, payload),
            PING => self.ping_frame(header, payload),
            GOAWAY => self.goaway(header, payload).map(Some),
            PUSH_PROMISE => Err(self.connection_error(Code::ProtocolError, "PUSH_PROMISE although push is disabled")),
            PRIORITY if header.id == 0 => Err(self.connection_error(Code::ProtocolError, "PRIORITY on stream 0")),
            PRIORITY if payload.len() != 5 => {
                Err(self.connection_error(Code::FrameSizeError, "PRIORITY of invalid size"))
            }
            HALF_CLOSED if self.half_closed(header.id) => Ok(Some(Event::HalfClosed { id: header.id })),
            // RFC 9113 §5.3.2, §5.5: PRIORITY is deprecated, and frames of unknown types are ignored.
            _ => self.idle_frame().map(|()| None),
        }
    }

    /// A stream error (RFC 9113 §5.4.2): resets the stream and returns the event.
    fn stream_error(&mut self, id: StreamId, code: Code) -> Result<Option<Event>, Error> {
        self.reset(id, code);
        self.waste(account::FAULT);
        Ok(Some(Event::Reset { id, code, by_peer: false, unprocessed: false }))
    }

    /// DATA or HEADERS after END_STREAM (RFC 9113 §5.1): a stream error. If the local side has ended the stream too, the exchange is
    /// complete and there is no event.
    fn after_end(&mut self, id: StreamId) -> Result<Option<Event>, Error> {
        if self.streams.get(&id).is_some_and(Stream::is_closed) {
            return self.after_own_end(id);
        }
        self.stream_error(id, Code::StreamClosed)
    }

    /// DATA or HEADERS on a stream whose end the peer itself has sent (RFC 9113 §5.1).
    fn after_own_end(&mut self, id: StreamId) -> Result<Option<Event>, Error> {
        self.put_reset(id, Code::StreamClosed);
        self.waste(account::FAULT);
        self.idle_frame().map(|()| None)
    }

    /// DATA or HEADERS on a stream that ended here: it may have been in flight.
    fn late(&mut self, id: StreamId) -> Result<Option<Event>, Error> {
        if self.ended.late(id) { Ok(None) } else { self.idle_frame().map(|()| None) }
    }

    /// How a stream ended that is not in the table. Errors: it is idle (RFC 9113 §5.1).
    fn end_of(&mut self, id: StreamId) -> Result<End, Error> {
        self.check_not_idle(id)?;
        // Streams that the peer opens after the final GOAWAY are ignored.
        let ignored = self.role == Role::Server && self.sent_final_goaway() && id > self.last_accepted_id;
        Ok(if ignored { End::Forgotten } else { self.ended.find(id) })
    }

    fn received_all(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.received_all = true;
            if stream.sent_all {
                self.open = self.open.saturating_sub(1);
            }
        }
    }

    /// Checks a frame on a stream that is not in the table: ignored if the stream is closed, a connection error if it is idle
    /// (RFC 9113 §5.1).
    fn check_not_idle(&mut self, id: StreamId) -> Result<(), Error> {
        let opened = match self.role {
            Role::Server => id % 2 == 1 && id <= self.last_peer_id,
            Role::Client => id % 2 == 1 && id < self.next_id,
        };
        if opened { Ok(()) } else { Err(self.connection_error(Code::ProtocolError, "frame on an idle stream")) }
    }

    /// Counts a frame that brought nothing.
    fn idle_frame(&mut self) -> Result<(), Error> {
        if self.account.idle() {
            let reason = "too many frames that bring nothing (SETTINGS, empty or late frames)";
            return Err(self.connection_error(Code::EnhanceYourCalm, reason));
        }
        Ok(())
    }

    /// Counts work that the peer wastes (server); a peer that wastes more than half of it is sent away. An end that a server sends
    /// is an answer, of which there are no more than requests.
    fn waste(&mut self, work: u32) {
        if self.role == Role::Server && self.account.waste(work) {
            self.send_away();
        }
    }

    fn compression_error(&mut self, invalid: hpack::Error) -> Error {
        let (code, reason) = if invalid == hpack::Error::Copies {
            (Code::EnhanceYourCalm, "names copied too often in a header block")
        } else {
            (Code::CompressionError, "invalid header block")
        };
        self.connection_error(code, reason)
    }

    /// A connection error (RFC 9113 §5.4.1): queues GOAWAY and returns the error.
    fn connection_error(&mut self, code: Code, reason: &'static str) -> Error {
        self.abort(code);
        Error { code, reason }
    }
}

/// Offset and length of the content of a frame without padding (RFC 9113 §6.1).
fn unpad(header: FrameHeader, payload: &[u8]) -> Result<(usize, usize), &'static str> {
    if !header.has(PADDED) {
        return Ok((0, payload.len()));
    }
    let padding = payload.first().map(|padding| usize::from(*padding) + 1);
    match padding.and_then(|padding| payload.len().checked_sub(padding)) {
        Some(len) => Ok((1, len)),
        None => Err("padding longer than the frame"),
    }
}
