//! Receiving header blocks: HEADERS and CONTINUATION become the heads and trailers of messages (RFC 9113 §8).

use super::{
    super::{
        BadRequest, BlockKind, Code, Connection, Error, Event, PartialBlock, Role, Shutdown, Stream, StreamId, account,
        ended::End,
        frame::{END_HEADERS, END_STREAM, FrameHeader, PRIORITY_FLAG, number},
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
        // RFC 9113 §6.2: five bytes of deprecated priority fields, which are ignored, but for a stream that depends on itself: no
        // peer that understands them sends that (RFC 7540 §5.3.1).
        let mut malformed = false;
        if header.has(PRIORITY_FLAG) {
            let Some(rest) = len.checked_sub(5) else {
                return Err(self.connection_error(Code::FrameSizeError, "HEADERS too short for its priority fields"));
            };
            malformed = payload.get(start..).and_then(number) == Some(header.id);
            (start, len) = (start + 5, rest);
        }
        let block = payload.get(start..start + len).unwrap_or_default();
        let kind = BlockKind { end: header.has(END_STREAM), malformed };
        if header.has(END_HEADERS) {
            return self.block(header.id, kind, block);
        }
        self.partial = Some(PartialBlock { id: header.id, kind, block: block.to_vec(), frames: 0 });
        Ok(None)
    }

    pub(super) fn continuation(&mut self, header: FrameHeader, payload: &[u8]) -> Result<Option<Event>, Error> {
        let Some(partial) = &mut self.partial else {
            return Err(self.connection_error(Code::ProtocolError, "CONTINUATION without HEADERS"));
        };
        partial.block.extend_from_slice(payload);
        partial.frames += 1;
        // RFC 9113 §10.5.1: a section above the limit is its message's error, so it is read on. What bounds it is the number of
        // frames (CVE-2024-27316), each of at most 16 KiB.
        if partial.frames > MAX_CONTINUATIONS {
            return Err(self.connection_error(Code::EnhanceYourCalm, "header block in too many frames"));
        }
        match self.partial.take_if(|_| header.has(END_HEADERS)) {
            Some(partial) => self.block(partial.id, partial.kind, &partial.block),
            None => Ok(None),
        }
    }

    /// Decodes a complete header block.
    fn block(&mut self, id: StreamId, kind: BlockKind, block: &[u8]) -> Result<Option<Event>, Error> {
        match (self.role, self.streams.get(&id)) {
            (_, Some(stream)) if stream.received_head || stream.reset => self.trailers(id, kind, block),
            (Role::Client, Some(_)) => self.response(id, kind, block),
            (Role::Server, None) if id > self.last_peer_id => self.request(id, kind, block),
            (_, None) => self.late_block(id, block),
            (Role::Server, Some(_)) => Err(self.connection_error(Code::InternalError, "stream without a head")),
        }
    }

    /// A block of a stream that has ended or was skipped. It is decoded all the same, since it changes the HPACK table
    /// (RFC 9113 §4.3).
    fn late_block(&mut self, id: StreamId, block: &[u8]) -> Result<Option<Event>, Error> {
        let decoded = self.decoder.decode(block, |_, _, _| Err(()));
        decoded.map(drop).map_err(|invalid| self.compression_error(invalid))?;
        let end = self.end_of(id)?;
        self.waste(work(block));
        match end {
            End::Here => self.late(id),
            End::Reset => self.after_own_end(id),
            // RFC 9113 §5.1, closed.
            End::Whole if self.role == Role::Server => {
                Err(self.connection_error(Code::StreamClosed, "HEADERS on a stream that has ended"))
            }
            // RFC 9113 §5.1.1: the identifiers of new streams increase.
            End::Skipped if self.role == Role::Server => {
                Err(self.connection_error(Code::ProtocolError, "HEADERS on a stream below the last one"))
            }
            End::Whole | End::Skipped | End::Forgotten => self.idle_frame().map(|()| None),
        }
    }

    fn request(&mut self, id: StreamId, kind: BlockKind, block: &[u8]) -> Result<Option<Event>, Error> {
        let decoded = heads::request(&mut self.decoder, block, &self.config);
        let decoded = decoded.map_err(|invalid| self.compression_error(invalid))?;
        // RFC 9113 §5.1.1: streams of a client have odd, increasing identifiers.
        if id.is_multiple_of(2) {
            return Err(self.connection_error(Code::ProtocolError, "stream with an even identifier from a client"));
        }
        self.last_peer_id = id;
        // RFC 9113 §6.8: streams above the last stream identifier of the final GOAWAY are ignored; the peer can retry them elsewhere.
        if self.shutdown == Shutdown::Final {
            return self.idle_frame().map(|()| None);
        }
        // RFC 9113 §5.1.2. Streams that the peer has reset do not count as open, but stay until the caller removes them, so their
        // number is bounded too (rapid reset, CVE-2023-44487).
        let full = self.open >= self.config.max_streams
            || self.streams.len() >= (self.config.max_streams as usize).saturating_mul(2);
        if full {
            self.refuse_stream(id, Code::RefusedStream);
            return self.idle_frame().map(|()| None);
        }
        self.account.opened();
        let decoded = match decoded {
            // RFC 9113 §8.1.1: END_STREAM although Content-Length announces a body.
            Ok((_, Some(1..))) if kind.end => Err(Refusal::Malformed("the body is missing")),
            _ if kind.malformed => Err(Refusal::Malformed("a stream that depends on itself")),
            decoded => decoded,
        };
        let mut stream = Stream::new(T::default(), self.peer.initial_window, self.config.stream_window, self.ticks);
        (stream.received_head, stream.received_all) = (true, kind.end);
        let event = match decoded {
            Ok((head, body_left)) => {
                stream.body_left = body_left;
                Event::Request { id, head, end: kind.end, wire: block.len() }
            }
            // RFC 9113 §8.1.1: a malformed request is a stream error; the caller does not see it.
            Err(Refusal::Malformed(_)) => {
                self.refuse_stream(id, Code::ProtocolError);
                self.waste(account::FAULT);
                return Ok(None);
            }
            Err(Refusal::BadTarget(reason)) => {
                stream.discards = true;
                Event::BadRequest { id, reason: BadRequest::Target(reason) }
            }
            Err(Refusal::TooLarge(excess)) => {
                stream.discards = true;
                self.waste(account::GIVEN_UP + work(block));
                Event::BadRequest { id, reason: BadRequest::TooLarge(excess) }
            }
        };
        self.last_accepted_id = id;
        self.open += 1;
        self.streams.insert(id, stream);
        Ok(Some(event))
    }

    /// Refuses a request that the local side has no room for (server). Nothing of it was processed: the peer may send it again. It
    /// counts as wasted work.
    pub fn refuse(&mut self, id: StreamId) {
        self.remove(id, Code::RefusedStream);
        self.waste(account::GIVEN_UP);
    }

    /// Resets a stream that the peer has just opened.
    fn refuse_stream(&mut self, id: StreamId, code: Code) {
        self.put_reset(id, code);
        self.ended.push(id, End::Here);
    }

    fn response(&mut self, id: StreamId, kind: BlockKind, block: &[u8]) -> Result<Option<Event>, Error> {
        let decoded = heads::response(&mut self.decoder, block, &self.config);
        let decoded = decoded.map_err(|invalid| self.compression_error(invalid))?;
        self.account.useful();
        let end = kind.end;
        let (head, body_left) = match decoded {
            Ok(decoded) => decoded,
            // RFC 9113 §10.5.1: a client may discard an answer that it cannot process.
            Err(Refusal::TooLarge(excess)) => {
                self.reset(id, Code::Cancel);
                return Ok(Some(Event::TooLarge { id, trailers: false, excess }));
            }
            Err(Refusal::Malformed(_) | Refusal::BadTarget(_)) => return self.stream_error(id, Code::ProtocolError),
        };
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

    fn trailers(&mut self, id: StreamId, kind: BlockKind, block: &[u8]) -> Result<Option<Event>, Error> {
        let decoded = heads::trailers(&mut self.decoder, block, &self.config);
        let decoded = decoded.map_err(|invalid| self.compression_error(invalid))?;
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(None) };
        if stream.reset {
            let own = stream.reset_by_peer;
            self.waste(work(block));
            return if own { self.after_own_end(id) } else { self.idle_frame().map(|()| None) };
        }
        if stream.received_all {
            // RFC 9113 §5.1, closed.
            if stream.sent_all && self.role == Role::Server {
                return Err(self.connection_error(Code::StreamClosed, "HEADERS on a stream that has ended"));
            }
            return self.after_end(id);
        }
        let short = stream.body_left.is_some_and(|body_left| body_left > 0);
        let discards = stream.discards;
        // RFC 9113 §8.1: trailers end the stream, and the body must be complete.
        if !kind.end || short {
            return self.stream_error(id, Code::ProtocolError);
        }
        match decoded {
            Ok(fields) => {
                self.account.useful();
                self.received_all(id);
                Ok((!discards).then_some(Event::Trailers { id, fields }))
            }
            // A server still answers the request.
            Err(Refusal::TooLarge(excess)) => {
                match self.role {
                    Role::Client => self.reset(id, Code::Cancel),
                    Role::Server => self.received_all(id),
                }
                self.waste(work(block));
                Ok((!discards).then_some(Event::TooLarge { id, trailers: true, excess }))
            }
            Err(Refusal::Malformed(_) | Refusal::BadTarget(_)) => self.stream_error(id, Code::ProtocolError),
        }
    }
}

/// The work that a block has cost and that brought nothing, in streams: its decoding.
fn work(block: &[u8]) -> u32 {
    u32::try_from(block.len() / 4096).unwrap_or(u32::MAX)
}
