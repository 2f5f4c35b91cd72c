//! Sending: header blocks, DATA under flow control, resets, WINDOW_UPDATE, PING, GOAWAY.

use bytes::Bytes;

use super::{
    Code, Connection, MAX_UNSENT, PREFACE, Role, SendError, Shutdown, Stream, StreamId,
    frame::{
        ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, FrameHeader, GOAWAY, HALF_CLOSED, HEADER_SIZE, HEADERS,
        INITIAL_WINDOW, MAX_FRAME, MAX_STREAM_ID, PING, RST_STREAM, SETTING_CONNECT, SETTING_HEAD, SETTING_PUSH,
        SETTING_STREAMS, SETTING_WINDOW, SETTINGS, WINDOW_UPDATE,
    },
    heads,
    stream::Blocked,
};
use crate::{
    fields::Fields,
    head::{Request, Response},
    out::Unsent,
};

/// A stream that sent fewer bytes in its last turn has priority in the next.
const TURN: usize = 64 * 1024;
/// Payload of the PING after the first GOAWAY of a graceful shutdown.
pub(super) const SHUTDOWN_PING: [u8; 8] = *b"weft bye";
/// Payload of a keepalive PING.
pub(super) const KEEPALIVE_PING: [u8; 8] = *b"weft hi?";

impl<T> Connection<T> {
    /// Opens a stream with a request (client).
    /// Errors: no new stream can be opened; returns `value` too.
    pub fn send_request(&mut self, head: &Request, end: bool, value: T) -> Result<StreamId, (SendError, T)> {
        if !self.has_room() {
            return Err((SendError::Full, value));
        }
        let id = self.next_id;
        self.next_id += 2;
        let mut stream = Stream::new(value, self.peer.initial_window, self.config.stream_window, self.ticks);
        stream.sent_all = end;
        stream.is_head = head.method() == "HEAD";
        self.streams.insert(id, stream);
        self.open += 1;
        let mut block = std::mem::take(&mut self.block);
        heads::write_request(&mut self.encoder, head, &mut block);
        self.put_block(id, end, block);
        Ok(id)
    }

    /// Sends the head of an interim or final response (server).
    pub fn send_response(&mut self, id: StreamId, head: &Response, end: bool) -> Result<(), SendError> {
        self.sendable(id)?;
        let mut block = std::mem::take(&mut self.block);
        heads::write_response(&mut self.encoder, head, &mut block);
        self.put_block(id, end, block);
        if end {
            self.sent_all(id);
        }
        Ok(())
    }

    /// Sends as much of `data` as flow control and [`MAX_UNSENT`] allow; the rest stays in `data`. `end`: the body ends after it.
    /// Returns whether all was sent; if not, [`Event::Writable`](super::Event::Writable) follows once the stream is unblocked.
    pub fn send_data(&mut self, id: StreamId, data: &mut Bytes, end: bool) -> Result<bool, SendError> {
        self.sendable(id)?;
        let Some(stream) = self.streams.get_mut(&id) else { return Err(SendError::Closed) };
        let before = data.len();
        loop {
            // RFC 9113 §6.9.1: both windows bound DATA; the frame header is not counted.
            let room = room(&self.out);
            let window = usize::try_from(stream.send_window.min(self.send_window)).unwrap_or(0);
            let count = data.len().min(window).min(room).min(self.peer.max_frame);
            if count == 0 && !data.is_empty() {
                if stream.blocked == Blocked::No {
                    stream.blocked = if stream.send_window > 0 { Blocked::Connection } else { Blocked::Stream };
                    if stream.blocked == Blocked::Connection {
                        // Little was sent in this turn: the stream has priority in the next.
                        if before - data.len() < TURN { self.starved.push(id) } else { self.blocked.push(id) }
                    }
                }
                return Ok(false);
            }
            let part = data.split_to(count);
            let last = data.is_empty();
            if count > 0 || end {
                let flags = if last && end { END_STREAM } else { 0 };
                self.out.put(&FrameHeader { len: count, kind: DATA, flags, id }.bytes());
                self.out.put_data(part);
                let count = i64::try_from(count).unwrap_or(i64::MAX);
                stream.send_window -= count;
                stream.waits = 0;
                self.send_window -= count;
            }
            if last {
                if end {
                    self.sent_all(id);
                }
                return Ok(true);
            }
        }
    }

    /// Sends trailers, which end the body.
    pub fn send_trailers(&mut self, id: StreamId, fields: &Fields) -> Result<(), SendError> {
        self.sendable(id)?;
        let mut block = std::mem::take(&mut self.block);
        heads::write_trailers(&mut self.encoder, fields, &mut block);
        self.put_block(id, true, block);
        self.sent_all(id);
        Ok(())
    }

    /// Tells a peer that is a proxy, once, that the caller of a request has closed its sending side (client).
    pub fn half_close(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id)
            && !stream.is_closed()
            && !std::mem::replace(&mut stream.caller_half_closed, true)
        {
            self.out.put(&FrameHeader { len: 0, kind: HALF_CLOSED, flags: 0, id }.bytes());
        }
    }

    /// Resets a stream, unless it is closed.
    pub fn reset(&mut self, id: StreamId, code: Code) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let was_closed = stream.is_closed();
        if !std::mem::replace(&mut stream.reset, true) && !was_closed {
            self.open = self.open.saturating_sub(1);
            self.put_reset(id, code);
        }
    }

    /// Discards the rest of a request body (server).
    pub fn discard(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.discards = true;
        }
    }

    /// Sends a keepalive PING. If the previous one has no acknowledgement, sends none and returns true.
    pub fn ping(&mut self) -> bool {
        if self.pings > 0 {
            return true;
        }
        self.pings += 1;
        self.put_ping(0, KEEPALIVE_PING);
        false
    }

    /// Begins a graceful shutdown (RFC 9113 §6.8): streams in flight complete. A server still accepts streams until the peer has
    /// acknowledged the first GOAWAY.
    pub fn go_away(&mut self) {
        if self.shutdown != Shutdown::No {
            return;
        }
        if self.role == Role::Client {
            self.shutdown = Shutdown::Final;
            return self.put_goaway(0, Code::NoError);
        }
        self.announce(Code::NoError);
    }

    /// Sends a client away that wastes work: what runs ends, and new streams go to another connection. A client that goes on
    /// before it has acknowledged that is left with what runs.
    pub(super) fn send_away(&mut self) {
        match self.shutdown {
            Shutdown::No => self.announce(Code::EnhanceYourCalm),
            Shutdown::Announced => self.abort(Code::EnhanceYourCalm),
            Shutdown::Final => {}
        }
    }

    /// The first of the two GOAWAY of a graceful shutdown.
    fn announce(&mut self, code: Code) {
        (self.shutdown, self.farewell) = (Shutdown::Announced, code);
        self.put_goaway(MAX_STREAM_ID, code);
        self.put_ping(0, SHUTDOWN_PING);
    }

    /// Queues the final GOAWAY: streams that the peer opens from now on are ignored.
    pub fn abort(&mut self, code: Code) {
        self.shutdown = Shutdown::Final;
        self.put_goaway(self.last_accepted_id, code);
    }

    /// Queues the connection preface (RFC 9113 §3.4): SETTINGS, after the magic bytes in a client.
    pub(super) fn send_preface(&mut self) {
        let mut settings: Vec<(u16, u32)> = vec![
            (SETTING_WINDOW, self.config.stream_window),
            (SETTING_HEAD, u32::try_from(self.config.max_head).unwrap_or(u32::MAX)),
        ];
        match self.role {
            Role::Client => {
                self.out.put(PREFACE);
                settings.push((SETTING_PUSH, 0));
            }
            Role::Server => {
                settings.push((SETTING_STREAMS, self.config.max_streams));
                if self.config.connect_protocol {
                    settings.push((SETTING_CONNECT, 1));
                }
            }
        }
        self.out.put(&FrameHeader { len: settings.len() * 6, kind: SETTINGS, flags: 0, id: 0 }.bytes());
        for (setting, value) in settings {
            self.out.put(&setting.to_be_bytes());
            self.out.put(&value.to_be_bytes());
        }
        if let Some(excess) = self.config.connection_window.checked_sub(INITIAL_WINDOW).filter(|excess| *excess > 0) {
            self.put_window_update(0, excess);
        }
    }

    /// Moves streams that may send again from `blocked` to `writable`. Streams that sent little in their last turn come first, so
    /// that no stream takes the whole window each time.
    pub(super) fn unblock(&mut self) {
        if self.send_window <= 0 || room(&self.out) == 0 {
            return;
        }
        let (streams, writable) = (&mut self.streams, &mut self.writable);
        for blocked in [&mut self.starved, &mut self.blocked] {
            blocked.drain(..).for_each(|id| match streams.get_mut(&id) {
                // A lower SETTINGS_INITIAL_WINDOW_SIZE has closed its window meanwhile (RFC 9113 §6.9.2).
                Some(stream) if !stream.is_closed() && stream.send_window <= 0 => stream.blocked = Blocked::Stream,
                Some(stream) => {
                    stream.blocked = Blocked::No;
                    writable.push_back(id);
                }
                None => {}
            });
        }
    }

    fn sendable(&self, id: StreamId) -> Result<(), SendError> {
        match self.streams.get(&id) {
            Some(stream) if !stream.sent_all && !stream.reset => Ok(()),
            _ => Err(SendError::Closed),
        }
    }

    fn sent_all(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.sent_all = true;
            if stream.received_all {
                self.open = self.open.saturating_sub(1);
            }
        }
    }

    /// Queues a header block as HEADERS and CONTINUATION frames, and keeps its buffer for the next one.
    fn put_block(&mut self, id: StreamId, end_stream: bool, mut block: Vec<u8>) {
        let mut kind = HEADERS;
        let mut flags = if end_stream { END_STREAM } else { 0 };
        let mut rest = block.as_slice();
        loop {
            let (part, more) = rest.split_at_checked(MAX_FRAME).unwrap_or((rest, &[]));
            if more.is_empty() {
                flags |= END_HEADERS;
            }
            self.out.put(&FrameHeader { len: part.len(), kind, flags, id }.bytes());
            self.out.put(part);
            if more.is_empty() {
                break;
            }
            (kind, flags, rest) = (CONTINUATION, 0, more);
        }
        block.clear();
        self.block = block;
    }

    pub(super) fn put_reset(&mut self, id: StreamId, code: Code) {
        self.out.put(&FrameHeader { len: 4, kind: RST_STREAM, flags: 0, id }.bytes());
        self.out.put(&code.number().to_be_bytes());
    }

    pub(super) fn put_window_update(&mut self, id: StreamId, credit: u32) {
        self.out.put(&FrameHeader { len: 4, kind: WINDOW_UPDATE, flags: 0, id }.bytes());
        self.out.put(&credit.to_be_bytes());
    }

    pub(super) fn put_ping(&mut self, flags: u8, payload: [u8; 8]) {
        self.out.put(&FrameHeader { len: 8, kind: PING, flags, id: 0 }.bytes());
        self.out.put(&payload);
    }

    pub(super) fn put_settings_ack(&mut self) {
        self.out.put(&FrameHeader { len: 0, kind: SETTINGS, flags: ACK, id: 0 }.bytes());
    }

    pub(super) fn put_goaway(&mut self, last: StreamId, code: Code) {
        self.out.put(&FrameHeader { len: 8, kind: GOAWAY, flags: 0, id: 0 }.bytes());
        self.out.put(&last.to_be_bytes());
        self.out.put(&code.number().to_be_bytes());
    }
}

/// Bytes of DATA that the queue accepts now. The frame header is included, so that a full queue fills whole TLS records.
fn room(out: &Unsent) -> usize {
    MAX_UNSENT.saturating_sub(out.len() + HEADER_SIZE)
}
