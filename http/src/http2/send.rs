//! What we send: heads, data under flow control, resets, credit, farewells.

use bytes::Bytes;

use super::{
    Code, Connection, Going, MAX_UNSENT, PREFACE, Role, SendError, Stream, StreamId,
    frame::{
        ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, FrameHead, GOAWAY, HEAD, HEADERS, INITIAL_WINDOW, MAX_FRAME,
        MAX_STREAM_ID, PING, RST_STREAM, SETTING_CONNECT, SETTING_HEAD, SETTING_PUSH, SETTING_STREAMS, SETTING_WINDOW,
        SETTINGS, WINDOW_UPDATE,
    },
    heads,
};
use crate::{
    fields::Fields,
    head::{Request, Response},
    out::Unsent,
};

/// The ping behind a first GOAWAY.
pub(super) const FAREWELL: [u8; 8] = *b"weft bye";
/// The ping that asks for a sign of life.
pub(super) const ALIVE: [u8; 8] = *b"weft hi?";

impl<T> Connection<T> {
    /// Opens a stream with a request (client).
    /// Errors: no new stream can be opened; the value comes back.
    pub fn send_request(&mut self, head: &Request, end: bool, value: T) -> Result<StreamId, (SendError, T)> {
        if !self.has_room() {
            return Err((SendError::Full, value));
        }
        let id = self.next_id;
        self.next_id += 2;
        let mut stream = Stream::new(value, self.peer.initial_window, self.config.stream_window);
        stream.sent_all = end;
        stream.bodiless = head.method() == "HEAD";
        self.streams.insert(id, stream);
        self.open += 1;
        let mut block = std::mem::take(&mut self.block);
        heads::write_request(&mut self.encoder, head, &mut block);
        self.put_block(id, end, block);
        Ok(id)
    }

    /// Sends the head of an answer, or one before it (server).
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

    /// Sends what flow control and [`MAX_UNSENT`] allow of `data`, which keeps the rest. `end`: the body ends with it.
    /// Returns whether all was taken; if not, [`Event::Writable`](super::Event::Writable) tells when to go on.
    pub fn send_data(&mut self, id: StreamId, data: &mut Bytes, end: bool) -> Result<bool, SendError> {
        self.sendable(id)?;
        let Some(stream) = self.streams.get_mut(&id) else { return Err(SendError::Closed) };
        let whole = data.len();
        loop {
            let room = room(&self.out);
            let window = usize::try_from(stream.send_window.min(self.send_window)).unwrap_or(0);
            let count = data.len().min(window).min(room).min(self.peer.max_frame);
            if count == 0 && !data.is_empty() {
                if !std::mem::replace(&mut stream.waits, true) {
                    if data.len() == whole { self.starved.push(id) } else { self.waiting.push(id) }
                }
                return Ok(false);
            }
            let part = data.split_to(count);
            let last = data.is_empty();
            if count > 0 || end {
                let flags = if last && end { END_STREAM } else { 0 };
                self.out.put(&FrameHead { len: count, kind: DATA, flags, id }.bytes());
                self.out.put_data(part);
                let count = i64::try_from(count).unwrap_or(i64::MAX);
                stream.send_window -= count;
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

    /// Ends a body with trailers.
    pub fn send_trailers(&mut self, id: StreamId, fields: &Fields) -> Result<(), SendError> {
        self.sendable(id)?;
        let mut block = std::mem::take(&mut self.block);
        heads::write_trailers(&mut self.encoder, fields, &mut block);
        self.put_block(id, true, block);
        self.sent_all(id);
        Ok(())
    }

    /// Ends a stream before its end.
    pub fn reset(&mut self, id: StreamId, code: Code) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let was_over = stream.is_over();
        if !std::mem::replace(&mut stream.reset, true) && !was_over {
            self.open = self.open.saturating_sub(1);
            self.put_reset(id, code);
        }
    }

    /// The user has read so many bytes of a stream's data: the peer may send as many more.
    pub fn consumed(&mut self, id: StreamId, count: usize) {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let enough = self.config.stream_window / 2;
        if let Some(stream) = self.streams.get_mut(&id)
            && !stream.received_all
            && !stream.reset
        {
            stream.to_give_back = stream.to_give_back.saturating_add(count);
            if stream.to_give_back >= enough {
                let credit = std::mem::take(&mut stream.to_give_back);
                stream.receive_window += i64::from(credit);
                self.put_window(id, credit);
            }
        }
        self.give_back(count);
    }

    /// The same for data that belongs to no stream any more.
    pub(super) fn give_back(&mut self, count: u32) {
        self.to_give_back = self.to_give_back.saturating_add(count);
        if self.to_give_back >= self.config.connection_window / 2 {
            let credit = std::mem::take(&mut self.to_give_back);
            self.receive_window += i64::from(credit);
            self.put_window(0, credit);
        }
    }

    /// Throws away what still comes of a request's body (server).
    pub fn discard(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.discards = true;
        }
    }

    /// Asks for a sign of life. Returns whether an earlier question is unanswered, and then asks no more.
    pub fn ping(&mut self) -> bool {
        if self.pings > 0 {
            return true;
        }
        self.pings += 1;
        self.put_ping(0, ALIVE);
        false
    }

    /// Says goodbye: what runs may end, nothing new is taken once the peer has heard it.
    pub fn go_away(&mut self) {
        if self.going != Going::No {
            return;
        }
        if self.role == Role::Client {
            self.going = Going::Gone;
            return self.put_goaway(0, Code::NoError);
        }
        self.going = Going::Announced;
        self.put_goaway(MAX_STREAM_ID, Code::NoError);
        self.put_ping(0, FAREWELL);
    }

    /// Says that the connection is over now.
    pub fn abort(&mut self, code: Code) {
        self.going = Going::Gone;
        self.put_goaway(self.last_taken_id, code);
    }

    pub(super) fn greet(&mut self) {
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
        self.out.put(&FrameHead { len: settings.len() * 6, kind: SETTINGS, flags: 0, id: 0 }.bytes());
        for (setting, value) in settings {
            self.out.put(&setting.to_be_bytes());
            self.out.put(&value.to_be_bytes());
        }
        if let Some(more) = self.config.connection_window.checked_sub(INITIAL_WINDOW).filter(|more| *more > 0) {
            self.put_window(0, more);
        }
    }

    /// Moves streams that may send again from those that wait; first those that could send nothing in their last turn, so that
    /// none takes all the room each time.
    pub(super) fn grant(&mut self) {
        if self.send_window <= 0 || room(&self.out) == 0 {
            return;
        }
        let (streams, writable) = (&mut self.streams, &mut self.writable);
        for waiting in [&mut self.starved, &mut self.waiting] {
            waiting.retain(|id| match streams.get_mut(id) {
                Some(stream) if !stream.is_over() && stream.send_window <= 0 => true,
                Some(stream) => {
                    stream.waits = false;
                    writable.push_back(*id);
                    false
                }
                None => false,
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

    /// Queues a header block, in as many frames as it needs, and keeps its buffer for the next.
    fn put_block(&mut self, id: StreamId, end_stream: bool, mut block: Vec<u8>) {
        let mut kind = HEADERS;
        let mut flags = if end_stream { END_STREAM } else { 0 };
        let mut rest = block.as_slice();
        loop {
            let (part, more) = rest.split_at_checked(MAX_FRAME).unwrap_or((rest, &[]));
            if more.is_empty() {
                flags |= END_HEADERS;
            }
            self.out.put(&FrameHead { len: part.len(), kind, flags, id }.bytes());
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
        self.out.put(&FrameHead { len: 4, kind: RST_STREAM, flags: 0, id }.bytes());
        self.out.put(&code.number().to_be_bytes());
    }

    fn put_window(&mut self, id: StreamId, credit: u32) {
        self.out.put(&FrameHead { len: 4, kind: WINDOW_UPDATE, flags: 0, id }.bytes());
        self.out.put(&credit.to_be_bytes());
    }

    pub(super) fn put_ping(&mut self, flags: u8, payload: [u8; 8]) {
        self.out.put(&FrameHead { len: 8, kind: PING, flags, id: 0 }.bytes());
        self.out.put(&payload);
    }

    pub(super) fn put_settings_ack(&mut self) {
        self.out.put(&FrameHead { len: 0, kind: SETTINGS, flags: ACK, id: 0 }.bytes());
    }

    pub(super) fn put_goaway(&mut self, last: StreamId, code: Code) {
        self.out.put(&FrameHead { len: 8, kind: GOAWAY, flags: 0, id: 0 }.bytes());
        self.out.put(&last.to_be_bytes());
        self.out.put(&code.number().to_be_bytes());
    }
}

/// Data that a frame may bring now. Its head is counted in: what waits makes whole TLS records, and no small one behind them.
fn room(out: &Unsent) -> usize {
    MAX_UNSENT.saturating_sub(out.len() + HEAD)
}
