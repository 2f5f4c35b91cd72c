//! What we receive, frame by frame.
//! Rules: what breaks the connection's own rules ends it with GOAWAY; what concerns one stream resets that one; what may still be
//! on its way on a stream that we have closed is thrown away.

use bytes::{Buf, Bytes, BytesMut};

use super::{
    Code, Connection, Error, Event, Expects, Going, MAX_ANSWERS, PATIENCE, PREFACE, Pending, Role, Stream, StreamId,
    frame::{
        ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, FrameHead, GOAWAY, HEAD, HEADERS, LARGEST_FRAME, MAX_FRAME,
        MAX_WINDOW, PADDED, PING, PRIORITY, PRIORITY_FLAG, PUSH_PROMISE, RST_STREAM, SETTING_CONNECT, SETTING_FRAME,
        SETTING_PUSH, SETTING_STREAMS, SETTING_TABLE, SETTING_WINDOW, SETTINGS, WINDOW_UPDATE, number,
    },
    heads::{self, Refusal},
    send::{ALIVE, FAREWELL},
};

/// CONTINUATION frames of one head.
const MAX_CONTINUATIONS: u32 = 16;
/// Settings of one frame: each may make work for every stream.
const MAX_SETTINGS: usize = 64;
/// Data below this that nobody wants is a frame that only makes work.
const TINY: u32 = 256;
/// What an answer to a frame takes at most, in bytes.
const ANSWER: usize = 17;

impl<T: Default> Connection<T> {
    /// Says what comes next in `input`, whose bytes are taken as they are understood. `None`: more bytes are needed.
    /// Errors: the peer broke the protocol; what is unsent is to be written, and the connection closed.
    pub fn receive(&mut self, input: &mut BytesMut) -> Result<Option<Event>, Error> {
        loop {
            if let Some(id) = self.writable.pop_front() {
                return Ok(Some(Event::Writable { id }));
            }
            if let Some(id) = self.lost.pop_front() {
                let code = Code::RefusedStream;
                return Ok(Some(Event::Reset { id, code, by_peer: true, unprocessed: true }));
            }
            if self.expects == Expects::Preface {
                let seen = input.len().min(PREFACE.len());
                if input.get(..seen) != PREFACE.get(..seen) {
                    return Err(self.fail(Code::ProtocolError, "not the preface of HTTP/2"));
                }
                if seen < PREFACE.len() {
                    return Ok(None);
                }
                input.advance(PREFACE.len());
                self.expects = Expects::Settings;
            }
            let Some(head) = FrameHead::read(input) else { return Ok(None) };
            if head.len > MAX_FRAME {
                return Err(self.fail(Code::FrameSizeError, "a frame above 16 KiB"));
            }
            if self.expects == Expects::Settings {
                if head.kind != SETTINGS || head.has(ACK) {
                    return Err(self.fail(Code::ProtocolError, "the first frame is not SETTINGS"));
                }
                if input.len() >= HEAD + head.len {
                    self.expects = Expects::Frames;
                }
            }
            if self.head.as_ref().is_some_and(|pending| head.kind != CONTINUATION || head.id != pending.id) {
                return Err(self.fail(Code::ProtocolError, "a frame amid a head"));
            }
            if input.len() < HEAD + head.len {
                return Ok(None);
            }
            input.advance(HEAD);
            let event = match head.kind {
                DATA => {
                    let payload = crate::input::take(input, head.len);
                    self.data(head, payload)
                }
                _ => {
                    let payload = input.get(..head.len).unwrap_or_default();
                    let event = self.frame(head, payload);
                    input.advance(head.len);
                    event
                }
            };
            if self.answers > MAX_ANSWERS {
                return Err(self.fail(Code::EnhanceYourCalm, "answers are asked for and not read"));
            }
            if let Some(event) = event? {
                return Ok(Some(event));
            }
        }
    }

    fn frame(&mut self, head: FrameHead, payload: &[u8]) -> Result<Option<Event>, Error> {
        match head.kind {
            HEADERS => self.headers(head, payload),
            CONTINUATION => self.continuation(head, payload),
            SETTINGS => self.settings(head, payload).map(|()| None),
            WINDOW_UPDATE => self.window_update(head, payload),
            RST_STREAM => self.rst_stream(head, payload),
            PING => self.pinged(head, payload),
            GOAWAY => self.goaway(head, payload).map(Some),
            PUSH_PROMISE => Err(self.fail(Code::ProtocolError, "a push that was not asked for")),
            PRIORITY if head.id == 0 => Err(self.fail(Code::ProtocolError, "PRIORITY without a stream")),
            PRIORITY if payload.len() != 5 => Err(self.fail(Code::FrameSizeError, "PRIORITY of a wrong size")),
            // PRIORITY is obsolete, what is unknown is for others.
            _ => self.works().map(|()| None),
        }
    }

    fn data(&mut self, head: FrameHead, mut payload: Bytes) -> Result<Option<Event>, Error> {
        let id = head.id;
        // A frame is at most 16 KiB.
        let size = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        self.receive_window -= i64::from(size);
        if self.receive_window < 0 {
            return Err(self.fail(Code::FlowControlError, "more data than the connection may carry"));
        }
        let padding = match unpad(head, &payload) {
            Ok(part) => {
                let (start, len) = part;
                payload.advance(start);
                payload.truncate(len);
                size - u32::try_from(len).unwrap_or(size)
            }
            Err(reason) => return Err(self.fail(Code::ProtocolError, reason)),
        };
        let end = head.has(END_STREAM);
        let Some(stream) = self.streams.get_mut(&id) else {
            self.known(id)?;
            self.give_back(size);
            return self.wasted(size);
        };
        if stream.received_all && !stream.reset {
            self.give_back(size);
            return self.late(id);
        }
        if stream.reset {
            self.give_back(size);
            return self.wasted(size);
        }
        stream.receive_window -= i64::from(size);
        if stream.receive_window < 0 {
            self.give_back(size);
            return self.breaks(id, Code::FlowControlError);
        }
        let count = payload.len() as u64;
        let promised = stream.promised.map(|promised| promised.checked_sub(count));
        if !stream.headed || promised == Some(None) || (end && promised.flatten().is_some_and(|left| left > 0)) {
            self.give_back(size);
            return self.breaks(id, Code::ProtocolError);
        }
        stream.promised = promised.flatten();
        let (discards, empty) = (stream.discards, payload.is_empty());
        if end {
            self.received_all(id);
        }
        if discards {
            self.consumed(id, size as usize);
            return self.wasted(size);
        }
        if padding > 0 {
            self.consumed(id, padding as usize);
        }
        if empty && !end {
            return self.wasted(0);
        }
        Ok(Some(Event::Data { id, data: payload, end }))
    }

    fn headers(&mut self, head: FrameHead, payload: &[u8]) -> Result<Option<Event>, Error> {
        if head.id == 0 {
            return Err(self.fail(Code::ProtocolError, "HEADERS without a stream"));
        }
        let (mut start, mut len) = unpad(head, payload).map_err(|reason| self.fail(Code::ProtocolError, reason))?;
        if head.has(PRIORITY_FLAG) {
            let Some(rest) = len.checked_sub(5) else {
                return Err(self.fail(Code::FrameSizeError, "HEADERS too short for its priority"));
            };
            (start, len) = (start + 5, rest);
        }
        let block = payload.get(start..start + len).unwrap_or_default();
        let end_stream = head.has(END_STREAM);
        if head.has(END_HEADERS) {
            return self.block(head.id, end_stream, block);
        }
        self.head = Some(Pending { id: head.id, end_stream, block: block.to_vec(), frames: 0 });
        self.pending_bounds().map(|()| None)
    }

    fn continuation(&mut self, head: FrameHead, payload: &[u8]) -> Result<Option<Event>, Error> {
        let Some(pending) = &mut self.head else {
            return Err(self.fail(Code::ProtocolError, "CONTINUATION of nothing"));
        };
        pending.block.extend_from_slice(payload);
        pending.frames += 1;
        self.pending_bounds()?;
        match self.head.take_if(|_| head.has(END_HEADERS)) {
            Some(pending) => self.block(pending.id, pending.end_stream, &pending.block),
            None => Ok(None),
        }
    }

    /// What is compressed is hardly longer than what it says; a head of many small frames is an attack (CVE-2024-27316).
    fn pending_bounds(&mut self) -> Result<(), Error> {
        let most = self.config.max_head.saturating_mul(2).max(MAX_FRAME);
        match &self.head {
            Some(pending) if pending.frames > MAX_CONTINUATIONS || pending.block.len() > most => {
                Err(self.fail(Code::EnhanceYourCalm, "a head of too many or too large frames"))
            }
            _ => Ok(()),
        }
    }

    /// A complete header block.
    fn block(&mut self, id: StreamId, end: bool, block: &[u8]) -> Result<Option<Event>, Error> {
        match (self.role, self.streams.get(&id)) {
            (_, Some(stream)) if stream.headed || stream.reset => self.trailers(id, end, block),
            (Role::Client, Some(_)) => self.response(id, end, block),
            (Role::Server, None) if id > self.last_peer_id => self.request(id, end, block),
            (_, None) => {
                // Of a stream that is over: decoded all the same, as the table must stay in step.
                let decoded = heads::trailers(&mut self.decoder, block, &self.config);
                decoded.map(drop).map_err(|_bad| self.uncompressed())?;
                self.known(id)?;
                self.works().map(|()| None)
            }
            (Role::Server, Some(_)) => Err(self.fail(Code::InternalError, "a stream without a head")),
        }
    }

    fn request(&mut self, id: StreamId, end: bool, block: &[u8]) -> Result<Option<Event>, Error> {
        let taken = heads::request(&mut self.decoder, block, &self.config).map_err(|_bad| self.uncompressed())?;
        if id.is_multiple_of(2) {
            return Err(self.fail(Code::ProtocolError, "a client opened a stream with an even number"));
        }
        self.last_peer_id = id;
        // What we said goodbye to is dropped: the peer was told that it is not looked at.
        if self.going == Going::Gone {
            return self.works().map(|()| None);
        }
        // A stream that the peer has reset may still be known to us for a while.
        let full = self.open >= self.config.max_streams
            || self.streams.len() >= (self.config.max_streams as usize).saturating_mul(2);
        if full {
            self.put_reset(id, Code::RefusedStream);
            return self.works().map(|()| None);
        }
        if let Err(Refusal::Malformed(_)) = taken {
            self.put_reset(id, Code::ProtocolError);
            return self.works().map(|()| None);
        }
        self.last_taken_id = id;
        let mut stream = Stream::new(T::default(), self.peer.initial_window, self.config.stream_window);
        stream.headed = true;
        stream.received_all = end;
        self.open += 1;
        let event = match taken {
            Ok((head, promised)) => {
                if end && promised.is_some_and(|promised| promised > 0) {
                    self.open -= 1;
                    self.put_reset(id, Code::ProtocolError);
                    return self.works().map(|()| None);
                }
                stream.promised = promised;
                Event::Request { id, head, end }
            }
            Err(refusal) => {
                stream.discards = true;
                let (status, reason) = match refusal {
                    Refusal::BadTarget(reason) => (400, reason),
                    Refusal::TooLarge | Refusal::Malformed(_) => (431, "the head is too large"),
                };
                Event::BadRequest { id, status, reason }
            }
        };
        self.streams.insert(id, stream);
        Ok(Some(event))
    }

    fn response(&mut self, id: StreamId, end: bool, block: &[u8]) -> Result<Option<Event>, Error> {
        let taken = heads::response(&mut self.decoder, block, &self.config).map_err(|_bad| self.uncompressed())?;
        let Ok((head, promised)) = taken else { return self.breaks(id, Code::ProtocolError) };
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(None) };
        if head.is_interim() {
            return if end { self.breaks(id, Code::ProtocolError) } else { Ok(Some(Event::Interim { id, head })) };
        }
        stream.headed = true;
        stream.promised = if stream.bodiless || matches!(head.status, 204 | 304) { Some(0) } else { promised };
        if end && stream.promised.is_some_and(|promised| promised > 0) {
            return self.breaks(id, Code::ProtocolError);
        }
        if end {
            self.received_all(id);
        }
        Ok(Some(Event::Response { id, head, end }))
    }

    fn trailers(&mut self, id: StreamId, end: bool, block: &[u8]) -> Result<Option<Event>, Error> {
        let taken = heads::trailers(&mut self.decoder, block, &self.config).map_err(|_bad| self.uncompressed())?;
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(None) };
        if stream.reset {
            return self.works().map(|()| None);
        }
        if stream.received_all {
            return self.late(id);
        }
        let short = stream.promised.is_some_and(|promised| promised > 0);
        let discards = stream.discards;
        match taken {
            Ok(fields) if end && !short => {
                self.received_all(id);
                Ok((!discards).then_some(Event::Trailers { id, fields }))
            }
            _ => self.breaks(id, Code::ProtocolError),
        }
    }

    fn settings(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Error> {
        if head.id != 0 {
            return Err(self.fail(Code::ProtocolError, "SETTINGS of a stream"));
        }
        if head.has(ACK) {
            return if payload.is_empty() {
                Ok(())
            } else {
                Err(self.fail(Code::FrameSizeError, "an acknowledgement of settings with settings"))
            };
        }
        let (settings, rest) = payload.as_chunks::<6>();
        if !rest.is_empty() {
            return Err(self.fail(Code::FrameSizeError, "SETTINGS of a wrong size"));
        }
        if settings.len() > MAX_SETTINGS {
            return Err(self.fail(Code::EnhanceYourCalm, "too many settings"));
        }
        for [a, b, value @ ..] in settings {
            self.setting(u16::from_be_bytes([*a, *b]), u32::from_be_bytes(*value))?;
        }
        if self.peer.settled {
            self.works()?;
        }
        self.peer.settled = true;
        self.answers += ANSWER;
        self.put_settings_ack();
        Ok(())
    }

    fn setting(&mut self, setting: u16, value: u32) -> Result<(), Error> {
        match setting {
            SETTING_TABLE => self.encoder.limit(value as usize),
            SETTING_PUSH if value > 1 || (value == 1 && self.role == Role::Client) => {
                return Err(self.fail(Code::ProtocolError, "ENABLE_PUSH is not valid"));
            }
            SETTING_STREAMS => self.peer.max_streams = value,
            SETTING_WINDOW => {
                if i64::from(value) > MAX_WINDOW {
                    return Err(self.fail(Code::FlowControlError, "INITIAL_WINDOW_SIZE is too large"));
                }
                let change = i64::from(value) - i64::from(self.peer.initial_window);
                self.peer.initial_window = value;
                let mut over = false;
                for stream in self.streams.values_mut() {
                    stream.send_window += change;
                    over |= stream.send_window > MAX_WINDOW;
                }
                if over {
                    return Err(self.fail(Code::FlowControlError, "INITIAL_WINDOW_SIZE makes a window too large"));
                }
                self.grant();
            }
            SETTING_FRAME => {
                let valid = (MAX_FRAME..=LARGEST_FRAME as usize).contains(&(value as usize));
                if !valid {
                    return Err(self.fail(Code::ProtocolError, "MAX_FRAME_SIZE is not valid"));
                }
                // Nobody gains by larger frames: one that fills a TLS record is enough.
            }
            SETTING_CONNECT if value > 1 => {
                return Err(self.fail(Code::ProtocolError, "ENABLE_CONNECT_PROTOCOL is not valid"));
            }
            SETTING_CONNECT => self.peer.connect_protocol |= value == 1,
            _ => {}
        }
        Ok(())
    }

    fn window_update(&mut self, head: FrameHead, payload: &[u8]) -> Result<Option<Event>, Error> {
        let Some(credit) = number(payload).filter(|_| payload.len() == 4) else {
            return Err(self.fail(Code::FrameSizeError, "WINDOW_UPDATE of a wrong size"));
        };
        if head.id == 0 {
            self.send_window += i64::from(credit);
            if credit == 0 || self.send_window > MAX_WINDOW {
                let code = if credit == 0 { Code::ProtocolError } else { Code::FlowControlError };
                return Err(self.fail(code, "WINDOW_UPDATE of the connection is not valid"));
            }
            self.grant();
            return Ok(None);
        }
        // Credit that comes late, for a stream that is over, is what every peer sends now and then.
        let Some(stream) = self.streams.get_mut(&head.id).filter(|stream| !stream.is_over()) else {
            return self.known(head.id).map(|()| None);
        };
        stream.send_window += i64::from(credit);
        if credit == 0 {
            return self.breaks(head.id, Code::ProtocolError);
        }
        if stream.send_window > MAX_WINDOW {
            return self.breaks(head.id, Code::FlowControlError);
        }
        if stream.waits {
            self.grant();
        }
        Ok(None)
    }

    fn rst_stream(&mut self, head: FrameHead, payload: &[u8]) -> Result<Option<Event>, Error> {
        let Some(code) = payload.first_chunk::<4>().filter(|_| payload.len() == 4) else {
            return Err(self.fail(Code::FrameSizeError, "RST_STREAM of a wrong size"));
        };
        let code = Code::of(u32::from_be_bytes(*code));
        let Some(stream) = self.streams.get_mut(&head.id).filter(|stream| !stream.is_over()) else {
            return self.known(head.id).map(|()| None);
        };
        stream.reset = true;
        self.open = self.open.saturating_sub(1);
        self.works()?;
        let unprocessed = code == Code::RefusedStream;
        Ok(Some(Event::Reset { id: head.id, code, by_peer: true, unprocessed }))
    }

    fn pinged(&mut self, head: FrameHead, payload: &[u8]) -> Result<Option<Event>, Error> {
        let Some(data) = payload.first_chunk::<8>().filter(|_| payload.len() == 8) else {
            return Err(self.fail(Code::FrameSizeError, "PING of a wrong size"));
        };
        if head.id != 0 {
            return Err(self.fail(Code::ProtocolError, "PING of a stream"));
        }
        if !head.has(ACK) {
            // Not counted as work: some measure the bandwidth with as many as the round trips allow. What waits is bounded.
            self.answers += ANSWER;
            self.put_ping(ACK, *data);
            return Ok(None);
        }
        if *data == FAREWELL && self.going == Going::Announced {
            self.going = Going::Gone;
            self.put_goaway(self.last_taken_id, Code::NoError);
            return Ok(None);
        }
        if *data != ALIVE {
            return self.works().map(|()| None);
        }
        self.pings = 0;
        Ok(Some(Event::Pong))
    }

    fn goaway(&mut self, head: FrameHead, payload: &[u8]) -> Result<Event, Error> {
        let (Some(last), Some(code)) = (number(payload), payload.get(4..).and_then(|rest| rest.first_chunk::<4>()))
        else {
            return Err(self.fail(Code::FrameSizeError, "GOAWAY of a wrong size"));
        };
        if head.id != 0 {
            return Err(self.fail(Code::ProtocolError, "GOAWAY of a stream"));
        }
        self.peer.gone = true;
        self.works()?;
        if self.role == Role::Client {
            for (id, stream) in &mut self.streams {
                if *id > last && !stream.is_over() {
                    stream.reset = true;
                    self.open = self.open.saturating_sub(1);
                    self.lost.push_back(*id);
                }
            }
        }
        Ok(Event::GoAway { code: Code::of(u32::from_be_bytes(*code)) })
    }

    /// A stream did what it may not: it is reset, and the user told.
    fn breaks(&mut self, id: StreamId, code: Code) -> Result<Option<Event>, Error> {
        self.reset(id, code);
        self.works()?;
        Ok(Some(Event::Reset { id, code, by_peer: false, unprocessed: false }))
    }

    /// A frame behind the end of what the peer had to send. The user hears of it unless the stream has ended for us too, which
    /// nothing can spoil any more.
    fn late(&mut self, id: StreamId) -> Result<Option<Event>, Error> {
        if self.streams.get(&id).is_some_and(Stream::is_over) {
            self.put_reset(id, Code::StreamClosed);
            return self.works().map(|()| None);
        }
        self.breaks(id, Code::StreamClosed)
    }

    fn received_all(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.received_all = true;
            if stream.sent_all {
                self.open = self.open.saturating_sub(1);
            }
        }
    }

    /// A frame on a stream that is not known: fine when it has been, an error when it was never opened.
    fn known(&mut self, id: StreamId) -> Result<(), Error> {
        let opened = match self.role {
            Role::Server => id % 2 == 1 && id <= self.last_peer_id,
            Role::Client => id % 2 == 1 && id < self.next_id,
        };
        if opened { Ok(()) } else { Err(self.fail(Code::ProtocolError, "a frame on a stream that nobody opened")) }
    }

    /// Counts data that nobody wants, unless there is enough of it to be an upload that was given up.
    fn wasted(&mut self, size: u32) -> Result<Option<Event>, Error> {
        if size < TINY { self.works().map(|()| None) } else { Ok(None) }
    }

    /// Counts a frame that makes work and brings nothing.
    fn works(&mut self) -> Result<(), Error> {
        self.work += 1;
        if self.work > PATIENCE {
            return Err(self.fail(Code::EnhanceYourCalm, "too many frames that bring nothing"));
        }
        Ok(())
    }

    fn uncompressed(&mut self) -> Error {
        self.fail(Code::CompressionError, "a head is not valid HPACK")
    }

    fn fail(&mut self, code: Code, reason: &'static str) -> Error {
        self.abort(code);
        Error { code, reason }
    }
}

/// Where the content of a frame begins, and how long it is, without padding.
fn unpad(head: FrameHead, payload: &[u8]) -> Result<(usize, usize), &'static str> {
    if !head.has(PADDED) {
        return Ok((0, payload.len()));
    }
    let padding = payload.first().map(|padding| usize::from(*padding) + 1);
    match padding.and_then(|padding| payload.len().checked_sub(padding)) {
        Some(len) => Ok((1, len)),
        None => Err("padding longer than its frame"),
    }
}
