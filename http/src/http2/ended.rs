//! The streams that ended last, and how: frames that were in flight when a stream ended here are ignored; after an end that the
//! peer itself has sent there are none (RFC 9113 §5.1).

use std::collections::VecDeque;

use super::StreamId;

/// Streams that are remembered.
const MEMORY: usize = 256;
/// Late frames of one stream that cost nothing: what a peer that has not received the end may have on its way.
const LATE: u16 = 1_000;

/// How a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The local side has reset or refused it.
    Here,
    /// The peer has sent END_STREAM.
    Whole,
    /// The peer has reset it.
    Reset,
    /// It was never opened: a higher stream was opened before it (RFC 9113 §5.1.1).
    Skipped,
    /// It ended too long ago.
    Forgotten,
}

/// The streams that ended last.
#[derive(Debug, Default)]
pub(super) struct Ended {
    streams: VecDeque<(StreamId, End, u16)>,
    /// The highest stream that may have been forgotten.
    forgotten: StreamId,
}

impl Ended {
    /// Remembers how a stream ended.
    pub(super) fn push(&mut self, id: StreamId, end: End) {
        if self.streams.len() >= MEMORY
            && let Some((oldest, ..)) = self.streams.pop_front()
        {
            self.forgotten = self.forgotten.max(oldest);
        }
        self.streams.push_back((id, end, LATE));
    }

    /// How a stream ended that was opened or skipped.
    pub(super) fn find(&self, id: StreamId) -> End {
        let found = self.streams.iter().rev().find(|(ended, ..)| *ended == id).map(|(_, end, _)| *end);
        found.unwrap_or(if id <= self.forgotten { End::Forgotten } else { End::Skipped })
    }

    /// A frame came late, on a stream that ended here. Returns whether it may have been in flight.
    pub(super) fn late(&mut self, id: StreamId) -> bool {
        let found = self.streams.iter_mut().rev().find(|(ended, ..)| *ended == id);
        found.and_then(|(_, _, left)| left.checked_sub(1).map(|less| *left = less)).is_some()
    }

    /// Forgets all streams up to `last`.
    pub(super) fn clear(&mut self, last: StreamId) {
        (self.streams, self.forgotten) = (VecDeque::new(), last);
    }
}
