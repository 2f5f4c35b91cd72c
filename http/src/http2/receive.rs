//! Receiving, frame by frame.
//! Rules (RFC 9113 §5.4): a violation that concerns the connection ends it with GOAWAY; one that concerns a stream resets the stream.
//! Frames in flight on a stream that the local side has closed are ignored, but count for flow control and HPACK.

use bytes::{Buf, Bytes, BytesMut};

use super::{
    Code, Connection, Error, Event, Expects, MAX_ANSWERS, MAX_OVERHEAD, PREFACE, PartialBlock, Role, Shutdown, Stream,
    StreamId,
    frame::{
        ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, FrameHeader, GOAWAY, HEADER_SIZE, HEADERS, LARGEST_FRAME,
        MAX_FRAME, MAX_WINDOW, PADDED, PING, PRIORITY, PRIORITY_FLAG, PUSH_PROMISE, RST_STREAM, SETTING_CONNECT,
        SETTING_FRAME, SETTING_PUSH, SETTING_STREAMS, SETTING_TABLE, SETTING_WINDOW, SETTINGS, WINDOW_UPDATE, number,
    },
    heads::{self, Refusal},
    send::{KEEPALIVE_PING, SHUTDOWN_PING},
};

/// Most CONTINUATION frames of one header block (CVE-2024-27316).
const MAX_CONTINUATIONS: u32 = 16;
/// Most settings of one frame: INITIAL_WINDOW_SIZE changes every stream.
const MAX_SETTINGS: usize = 64;
/// Discarded DATA below this size, in bytes, counts as an overhead frame.
const TINY: u32 = 256;
/// Largest answer to a PING or SETTINGS frame, in bytes.
const ANSWER_SIZE: usize = 17;

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
            // RFC 9113 §5.3.2, §5.5: PRIORITY is deprecated, and frames of unknown types are ignored.
            _ => self.count_overhead().map(|()| None),
        }
    }

    fn data(&mut self, header: FrameHeader, mut payload: Bytes) -> Result<Option<Event>, Error> {
        let id = header.id;
        // RFC 9113 §6.9.1: the whole payload, padding included, counts for flow control, also on closed streams.
        let size = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        self.receive_window -= i64::from(size);
        if self.receive_window < 0 {
            return Err(self.connection_error(Code::FlowControlError, "DATA exceeds the connection window"));
        }
        let padding = match unpad(header, &payload) {
            Ok(part) => {
                let (start, len) = part;
                payload.advance(start);
                payload.truncate(len);
                size - u32::try_from(len).unwrap_or(size)
            }
            Err(reason) => return Err(self.connection_error(Code::ProtocolError, reason)),
        };
        let end = header.has(END_STREAM);
        // RFC 9113 §5.1: frames may be in flight on a stream that was reset or removed here. The connection gets its credit back.
        let Some(stream) = self.streams.get_mut(&id) else {
            self.check_not_idle(id)?;
            self.return_credit(size);
            return self.discarded(size);
        };
        // RFC 9113 §5.1, half-closed (remote): DATA after END_STREAM is STREAM_CLOSED.
        if stream.received_all && !stream.reset {
            self.return_credit(size);
            return self.after_end(id);
        }
        if stream.reset {
            self.return_credit(size);
            return self.discarded(size);
        }
        stream.receive_window -= i64::from(size);
        if stream.receive_window < 0 {
            self.return_credit(size);
            return self.stream_error(id, Code::FlowControlError);
        }
        // RFC 9113 §8.1.1: DATA before the head, above Content-Length, or END_STREAM below it is a malformed message.
        let count = payload.len() as u64;
        let body_left = stream.body_left.map(|body_left| body_left.checked_sub(count));
        if !stream.received_head || body_left == Some(None) || (end && body_left.flatten().is_some_and(|left| left > 0))
        {
            self.return_credit(size);
            return self.stream_error(id, Code::ProtocolError);
        }
        stream.body_left = body_left.flatten();
        let (discards, empty) = (stream.discards, payload.is_empty());
        if end {
            self.received_all(id);
        }
        if discards {
            self.consumed(id, size as usize);
            return self.discarded(size);
        }
        // The caller does not see the padding, so its credit returns at once.
        if padding > 0 {
            self.consumed(id, padding as usize);
        }
        // Empty DATA without END_STREAM carries nothing (CVE-2019-9518).
        if empty && !end {
            return self.discarded(0);
        }
        Ok(Some(Event::Data { id, data: payload, end }))
    }

    fn headers(&mut self, header: FrameHeader, payload: &[u8]) -> Result<Option<Event>, Error> {
        if header.id == 0 {
            return Err(self.connection_error(Code::ProtocolError, "HEADERS on stream 0"));
        }
        let (mut start, mut len) =
            unpad(header, payload).map_err(|reason| self.connection_error(Code::ProtocolError, reason))?;
        // RFC 9113 §6.2: five bytes of deprecated priority fields, which are ignored.
        if header.has(PRIORITY_FLAG) {
            let Some(rest) = len.checked_sub(5) else {
                return Err(self.connection_error(Code::FrameSizeError, "HEADERS too short for its priority fields"));
            };
            (start, len) = (start + 5, rest);
        }
        let block = payload.get(start..start + len).unwrap_or_default();
        let end_stream = header.has(END_STREAM);
        if header.has(END_HEADERS) {
            return self.block(header.id, end_stream, block);
        }
        self.partial = Some(PartialBlock { id: header.id, end_stream, block: block.to_vec(), frames: 0 });
        self.check_partial().map(|()| None)
    }

    fn continuation(&mut self, header: FrameHeader, payload: &[u8]) -> Result<Option<Event>, Error> {
        let Some(partial) = &mut self.partial else {
            return Err(self.connection_error(Code::ProtocolError, "CONTINUATION without HEADERS"));
        };
        partial.block.extend_from_slice(payload);
        partial.frames += 1;
        self.check_partial()?;
        match self.partial.take_if(|_| header.has(END_HEADERS)) {
            Some(partial) => self.block(partial.id, partial.end_stream, &partial.block),
            None => Ok(None),
        }
    }

    /// Bounds the size and the frames of a header block. A block is rarely longer than its fields; many small CONTINUATION frames are
    /// an attack (CVE-2024-27316).
    fn check_partial(&mut self) -> Result<(), Error> {
        let most = self.config.max_head.saturating_mul(2).max(MAX_FRAME);
        match &self.partial {
            Some(partial) if partial.frames > MAX_CONTINUATIONS || partial.block.len() > most => {
                Err(self.connection_error(Code::EnhanceYourCalm, "header block too large or in too many frames"))
            }
            _ => Ok(()),
        }
    }

    /// Decodes a complete header block.
    fn block(&mut self, id: StreamId, end: bool, block: &[u8]) -> Result<Option<Event>, Error> {
        match (self.role, self.streams.get(&id)) {
            (_, Some(stream)) if stream.received_head || stream.reset => self.trailers(id, end, block),
            (Role::Client, Some(_)) => self.response(id, end, block),
            (Role::Server, None) if id > self.last_peer_id => self.request(id, end, block),
            (_, None) => {
                // RFC 9113 §4.3: a block of a closed stream is decoded too, since it changes the HPACK table.
                let decoded = heads::trailers(&mut self.decoder, block, &self.config);
                decoded.map(drop).map_err(|_invalid| self.compression_error())?;
                self.check_not_idle(id)?;
                self.count_overhead().map(|()| None)
            }
            (Role::Server, Some(_)) => Err(self.connection_error(Code::InternalError, "stream without a head")),
        }
    }

    fn request(&mut self, id: StreamId, end: bool, block: &[u8]) -> Result<Option<Event>, Error> {
        let decoded =
            heads::request(&mut self.decoder, block, &self.config).map_err(|_invalid| self.compression_error())?;
        // RFC 9113 §5.1.1: streams of a client have odd, increasing identifiers.
        if id.is_multiple_of(2) {
            return Err(self.connection_error(Code::ProtocolError, "stream with an even identifier from a client"));
        }
        self.last_peer_id = id;
        // RFC 9113 §6.8: streams above the last stream identifier of the final GOAWAY are ignored; the peer can retry them elsewhere.
        if self.shutdown == Shutdown::Final {
            return self.count_overhead().map(|()| None);
        }
        // RFC 9113 §5.1.2. Streams that the peer has reset do not count as open, but stay until the caller removes them, so their
        // number is bounded too (rapid reset, CVE-2023-44487).
        let full = self.open >= self.config.max_streams
            || self.streams.len() >= (self.config.max_streams as usize).saturating_mul(2);
        if full {
            self.put_reset(id, Code::RefusedStream);
            return self.count_overhead().map(|()| None);
        }
        // RFC 9113 §8.1.1: a malformed request is a stream error; the caller does not see it.
        if let Err(Refusal::Malformed(_)) = decoded {
            self.put_reset(id, Code::ProtocolError);
            return self.count_overhead().map(|()| None);
        }
        self.last_accepted_id = id;
        let mut stream = Stream::new(T::default(), self.peer.initial_window, self.config.stream_window);
        stream.received_head = true;
        stream.received_all = end;
        self.open += 1;
        let event = match decoded {
            Ok((head, body_left)) => {
                // RFC 9113 §8.1.1: END_STREAM although Content-Length announces a body.
                if end && body_left.is_some_and(|body_left| body_left > 0) {
                    self.open -= 1;
                    self.put_reset(id, Code::ProtocolError);
                    return self.count_overhead().map(|()| None);
                }
                stream.body_left = body_left;
                Event::Request { id, head, end }
            }
            Err(refusal) => {
                stream.discards = true;
                let (status, reason) = match refusal {
                    Refusal::BadTarget(reason) => (400, reason),
                    Refusal::TooLarge | Refusal::Malformed(_) => (431, "header section too large"),
                };
                Event::BadRequest { id, status, reason }
            }
        };
        self.streams.insert(id, stream);
        Ok(Some(event))
    }

    fn response(&mut self, id: StreamId, end: bool, block: &[u8]) -> Result<Option<Event>, Error> {
        let decoded =
            heads::response(&mut self.decoder, block, &self.config).map_err(|_invalid| self.compression_error())?;
        let Ok((head, body_left)) = decoded else { return self.stream_error(id, Code::ProtocolError) };
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(None) };
        // RFC 9113 §8.1: an interim response cannot end the stream.
        if head.is_interim() {
            return if end {
                self.stream_error(id, Code::ProtocolError)
            } else {
                Ok(Some(Event::Interim { id, head }))
            };
        }
        stream.received_head = true;
        // RFC 9113 §8.1.1: in a response to HEAD and in 204 and 304, Content-Length announces no body.
        stream.body_left = if stream.is_head || matches!(head.status, 204 | 304) { Some(0) } else { body_left };
        if end && stream.body_left.is_some_and(|body_left| body_left > 0) {
            return self.stream_error(id, Code::ProtocolError);
        }
        if end {
            self.received_all(id);
        }
        Ok(Some(Event::Response { id, head, end }))
    }

    fn trailers(&mut self, id: StreamId, end: bool, block: &[u8]) -> Result<Option<Event>, Error> {
        let decoded =
            heads::trailers(&mut self.decoder, block, &self.config).map_err(|_invalid| self.compression_error())?;
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(None) };
        if stream.reset {
            return self.count_overhead().map(|()| None);
        }
        if stream.received_all {
            return self.after_end(id);
        }
        let short = stream.body_left.is_some_and(|body_left| body_left > 0);
        let discards = stream.discards;
        // RFC 9113 §8.1: trailers end the stream, and the body must be complete.
        match decoded {
            Ok(fields) if end && !short => {
                self.received_all(id);
                Ok((!discards).then_some(Event::Trailers { id, fields }))
            }
            _ => self.stream_error(id, Code::ProtocolError),
        }
    }

    fn settings(&mut self, header: FrameHeader, payload: &[u8]) -> Result<(), Error> {
        if header.id != 0 {
            return Err(self.connection_error(Code::ProtocolError, "SETTINGS on a stream"));
        }
        if header.has(ACK) {
            return if payload.is_empty() {
                Ok(())
            } else {
                Err(self.connection_error(Code::FrameSizeError, "SETTINGS acknowledgement with payload"))
            };
        }
        let (settings, rest) = payload.as_chunks::<6>();
        if !rest.is_empty() {
            return Err(self.connection_error(Code::FrameSizeError, "SETTINGS of invalid size"));
        }
        if settings.len() > MAX_SETTINGS {
            return Err(self.connection_error(Code::EnhanceYourCalm, "too many settings"));
        }
        for [a, b, value @ ..] in settings {
            self.setting(u16::from_be_bytes([*a, *b]), u32::from_be_bytes(*value))?;
        }
        // The first SETTINGS is part of the preface; later ones are overhead.
        if self.peer.sent_settings {
            self.count_overhead()?;
        }
        self.peer.sent_settings = true;
        self.answers += ANSWER_SIZE;
        self.put_settings_ack();
        Ok(())
    }

    fn setting(&mut self, setting: u16, value: u32) -> Result<(), Error> {
        match setting {
            SETTING_TABLE => self.encoder.limit(value as usize),
            // RFC 9113 §6.5.2: 0 or 1, and a server must not send 1.
            SETTING_PUSH if value > 1 || (value == 1 && self.role == Role::Client) => {
                return Err(self.connection_error(Code::ProtocolError, "invalid ENABLE_PUSH"));
            }
            SETTING_STREAMS => self.peer.max_streams = value,
            SETTING_WINDOW => {
                if i64::from(value) > MAX_WINDOW {
                    return Err(self.connection_error(Code::FlowControlError, "INITIAL_WINDOW_SIZE too large"));
                }
                // RFC 9113 §6.9.2: a change applies to the windows of all streams, which may become negative.
                let change = i64::from(value) - i64::from(self.peer.initial_window);
                self.peer.initial_window = value;
                let mut over = false;
                for stream in self.streams.values_mut() {
                    stream.send_window += change;
                    over |= stream.send_window > MAX_WINDOW;
                }
                if over {
                    return Err(self.connection_error(
                        Code::FlowControlError,
                        "INITIAL_WINDOW_SIZE overflows the window of a stream",
                    ));
                }
                self.unblock();
            }
            SETTING_FRAME => {
                let valid = (MAX_FRAME..=LARGEST_FRAME as usize).contains(&(value as usize));
                if !valid {
                    return Err(self.connection_error(Code::ProtocolError, "invalid MAX_FRAME_SIZE"));
                }
                // Not used: frames larger than 16 KiB bring nothing, since one already fills a TLS record.
            }
            SETTING_CONNECT if value > 1 => {
                return Err(self.connection_error(Code::ProtocolError, "invalid ENABLE_CONNECT_PROTOCOL"));
            }
            // RFC 9113 §6.5.2: unknown settings are ignored.
            _ => {}
        }
        Ok(())
    }

    fn window_update(&mut self, header: FrameHeader, payload: &[u8]) -> Result<Option<Event>, Error> {
        let Some(credit) = number(payload).filter(|_| payload.len() == 4) else {
            return Err(self.connection_error(Code::FrameSizeError, "WINDOW_UPDATE of invalid size"));
        };
        if header.id == 0 {
            self.send_window += i64::from(credit);
            if credit == 0 || self.send_window > MAX_WINDOW {
                let code = if credit == 0 { Code::ProtocolError } else { Code::FlowControlError };
                return Err(self.connection_error(code, "invalid WINDOW_UPDATE of the connection"));
            }
            self.unblock();
            return Ok(None);
        }
        // RFC 9113 §5.1: WINDOW_UPDATE may be in flight on a closed stream and is ignored.
        let Some(stream) = self.streams.get_mut(&header.id).filter(|stream| !stream.is_closed()) else {
            return self.check_not_idle(header.id).map(|()| None);
        };
        stream.send_window += i64::from(credit);
        if credit == 0 {
            return self.stream_error(header.id, Code::ProtocolError);
        }
        if stream.send_window > MAX_WINDOW {
            return self.stream_error(header.id, Code::FlowControlError);
        }
        if stream.blocked {
            self.unblock();
        }
        Ok(None)
    }

    fn rst_stream(&mut self, header: FrameHeader, payload: &[u8]) -> Result<Option<Event>, Error> {
        let Some(code) = payload.first_chunk::<4>().filter(|_| payload.len() == 4) else {
            return Err(self.connection_error(Code::FrameSizeError, "RST_STREAM of invalid size"));
        };
        let code = Code::of(u32::from_be_bytes(*code));
        let Some(stream) = self.streams.get_mut(&header.id).filter(|stream| !stream.is_closed()) else {
            return self.check_not_idle(header.id).map(|()| None);
        };
        stream.reset = true;
        self.open = self.open.saturating_sub(1);
        self.count_overhead()?;
        let unprocessed = code == Code::RefusedStream;
        Ok(Some(Event::Reset { id: header.id, code, by_peer: true, unprocessed }))
    }

    fn ping_frame(&mut self, header: FrameHeader, payload: &[u8]) -> Result<Option<Event>, Error> {
        let Some(data) = payload.first_chunk::<8>().filter(|_| payload.len() == 8) else {
            return Err(self.connection_error(Code::FrameSizeError, "PING of invalid size"));
        };
        if header.id != 0 {
            return Err(self.connection_error(Code::ProtocolError, "PING on a stream"));
        }
        if !header.has(ACK) {
            // Not counted as overhead: gRPC clients send many PINGs to estimate the bandwidth. `MAX_ANSWERS` bounds the unread answers.
            self.answers += ANSWER_SIZE;
            self.put_ping(ACK, *data);
            return Ok(None);
        }
        // The peer has received the first GOAWAY, so no streams are in flight that it opened without knowing of the shutdown.
        if *data == SHUTDOWN_PING && self.shutdown == Shutdown::Announced {
            self.shutdown = Shutdown::Final;
            self.put_goaway(self.last_accepted_id, Code::NoError);
            return Ok(None);
        }
        if *data != KEEPALIVE_PING {
            return self.count_overhead().map(|()| None);
        }
        self.pings = 0;
        Ok(Some(Event::Pong))
    }

    fn goaway(&mut self, header: FrameHeader, payload: &[u8]) -> Result<Event, Error> {
        let (Some(last), Some(code)) = (number(payload), payload.get(4..).and_then(|rest| rest.first_chunk::<4>()))
        else {
            return Err(self.connection_error(Code::FrameSizeError, "GOAWAY of invalid size"));
        };
        if header.id != 0 {
            return Err(self.connection_error(Code::ProtocolError, "GOAWAY on a stream"));
        }
        self.peer.sent_goaway = true;
        self.count_overhead()?;
        // RFC 9113 §6.8: streams above the last stream identifier were not processed and can be retried.
        if self.role == Role::Client {
            for (id, stream) in &mut self.streams {
                if *id > last && !stream.is_closed() {
                    stream.reset = true;
                    self.open = self.open.saturating_sub(1);
                    self.unprocessed.push_back(*id);
                }
            }
        }
        Ok(Event::GoAway { code: Code::of(u32::from_be_bytes(*code)) })
    }

    /// A stream error (RFC 9113 §5.4.2): resets the stream and returns the event.
    fn stream_error(&mut self, id: StreamId, code: Code) -> Result<Option<Event>, Error> {
        self.reset(id, code);
        self.count_overhead()?;
        Ok(Some(Event::Reset { id, code, by_peer: false, unprocessed: false }))
    }

    /// A frame after END_STREAM (RFC 9113 §5.1): a stream error. If the local side has ended the stream too, the exchange is complete
    /// and there is no event.
    fn after_end(&mut self, id: StreamId) -> Result<Option<Event>, Error> {
        if self.streams.get(&id).is_some_and(Stream::is_closed) {
            self.put_reset(id, Code::StreamClosed);
            return self.count_overhead().map(|()| None);
        }
        self.stream_error(id, Code::StreamClosed)
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

    /// Counts discarded DATA as overhead if it is small. Large DATA is the rest of a body and bounded by flow control.
    fn discarded(&mut self, size: u32) -> Result<Option<Event>, Error> {
        if size < TINY { self.count_overhead().map(|()| None) } else { Ok(None) }
    }

    /// Counts an overhead frame.
    fn count_overhead(&mut self) -> Result<(), Error> {
        self.overhead += 1;
        if self.overhead > MAX_OVERHEAD {
            return Err(self.connection_error(
                Code::EnhanceYourCalm,
                "too many overhead frames (resets, SETTINGS, empty or late frames)",
            ));
        }
        Ok(())
    }

    fn compression_error(&mut self) -> Error {
        self.connection_error(Code::CompressionError, "invalid header block")
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
