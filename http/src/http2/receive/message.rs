//! Receiving header blocks: HEADERS and CONTINUATION become the heads and trailers of messages (RFC 9113 §8).

use super::{
    super::{
        Code, Connection, Error, Event, PartialBlock, Role, Shutdown, Stream, StreamId,
        frame::{END_HEADERS, END_STREAM, FrameHeader, MAX_FRAME, PRIORITY_FLAG},
        heads::{self, Refusal},
    },
    unpad,
};

/// Most CONTINUATION frames of one header block (CVE-2024-27316).
const MAX_CONTINUATIONS: u32 = 16;

impl<T: Default> Connection<T> {
    pub(super) fn headers(&mut self, header: FrameHeader, payload: &[u8]) -> Result<Option<Event>, Error> {
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

    pub(super) fn continuation(&mut self, header: FrameHeader, payload: &[u8]) -> Result<Option<Event>, Error> {
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
        let mut stream = Stream::new(T::default(), self.peer.initial_window, self.config.stream_window, self.ticks);
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
}
