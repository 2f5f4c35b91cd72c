//! Receiving DATA: flow control and the length of the message (RFC 9113 §5.2, §8.1.1).

use bytes::{Buf, Bytes};

use super::{
    super::{
        Code, Connection, Error, Event,
        ended::End,
        frame::{END_STREAM, FrameHeader},
    },
    unpad,
};

/// DATA of a discarded body below this size, in bytes, brings nothing.
const TINY: u64 = 256;

impl<T: Default> Connection<T> {
    pub(super) fn data(&mut self, header: FrameHeader, mut payload: Bytes) -> Result<Option<Event>, Error> {
        let id = header.id;
        // RFC 9113 §6.9.1: the whole payload, padding included, counts for flow control, also on closed streams.
        let size = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        self.receive_window -= i64::from(size);
        if self.receive_window < 0 {
            return Err(self.connection_error(Code::FlowControlError, "DATA exceeds the connection window"));
        }
        self.return_credit(size);
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
        // RFC 9113 §5.1: frames may be in flight on a stream that was reset or removed here.
        let Some(stream) = self.streams.get_mut(&id) else {
            let end = self.end_of(id)?;
            return match end {
                End::Here => self.late(id),
                End::Whole | End::Reset | End::Skipped => self.after_own_end(id),
                End::Forgotten => self.idle_frame().map(|()| None),
            };
        };
        // RFC 9113 §5.1, half-closed (remote): DATA after END_STREAM is STREAM_CLOSED.
        if stream.received_all && !stream.reset {
            return self.after_end(id);
        }
        if stream.reset {
            return if stream.reset_by_peer { self.after_own_end(id) } else { Ok(None) };
        }
        stream.receive_window -= i64::from(size);
        if stream.receive_window < 0 {
            return self.stream_error(id, Code::FlowControlError);
        }
        // RFC 9113 §8.1.1: DATA before the head, above Content-Length, or END_STREAM below it is a malformed message.
        let count = payload.len() as u64;
        let body_left = stream.body_left.map(|body_left| body_left.checked_sub(count));
        if !stream.received_head || body_left == Some(None) || (end && body_left.flatten().is_some_and(|left| left > 0))
        {
            return self.stream_error(id, Code::ProtocolError);
        }
        stream.body_left = body_left.flatten();
        let (discards, empty) = (stream.discards, payload.is_empty());
        if end {
            self.received_all(id);
        }
        if discards {
            self.consumed(id, size as usize);
            return self.idle_data(count, end);
        }
        // The caller does not see the padding, so its credit returns at once.
        if padding > 0 {
            self.consumed(id, padding as usize);
        }
        // Empty DATA without END_STREAM carries nothing (CVE-2019-9518).
        if empty && !end {
            return self.idle_data(0, end);
        }
        self.account.useful();
        Ok(Some(Event::Data { id, data: payload, end }))
    }

    /// Counts DATA of a body that is discarded, or that is empty. Large frames are bounded by flow control.
    fn idle_data(&mut self, count: u64, end: bool) -> Result<Option<Event>, Error> {
        if count < TINY && !end { self.idle_frame().map(|()| None) } else { Ok(None) }
    }
}
