//! Data that arrived on a stream and waits for its reader. Flow control bounds its bytes; this bounds the memory that they occupy:
//! a part may hold a whole read buffer, and many small parts are mostly overhead.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// So many parts are copied together when they are small.
const MANY: usize = 64;
/// Small: this many bytes or fewer in [`MANY`] parts.
const LITTLE: usize = 64 * 1024;

/// Data in the order in which it came.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    parts: VecDeque<Bytes>,
    /// The first so many parts are copies, which occupy what they are long.
    copied: usize,
    /// The reader has taken a part since the last tick.
    moves: bool,
}

impl Waiting {
    pub(super) fn push(&mut self, part: Bytes) {
        self.parts.push_back(part);
        if self.parts.len() - self.copied >= MANY && self.loose() <= LITTLE {
            self.copy();
        }
    }

    pub(super) fn pop(&mut self) -> Option<Bytes> {
        let part = self.parts.pop_front()?;
        self.copied = self.copied.saturating_sub(1);
        self.moves = true;
        Some(part)
    }

    /// Puts back what was not taken of the part popped last.
    pub(super) fn put_back(&mut self, rest: Bytes) {
        self.copied += usize::from(self.copied > 0);
        self.parts.push_front(rest);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Called once a second: copies what its reader leaves, so that it no longer holds read buffers.
    pub(super) fn tick(&mut self) {
        if !std::mem::take(&mut self.moves) && self.parts.len() > self.copied {
            self.copy();
        }
    }

    /// Bytes that are not copied.
    fn loose(&self) -> usize {
        self.parts.range(self.copied..).map(Bytes::len).sum()
    }

    fn copy(&mut self) {
        let mut all = BytesMut::with_capacity(self.loose());
        self.parts.drain(self.copied..).for_each(|part| all.extend_from_slice(&part));
        self.parts.push_back(all.freeze());
        self.copied = self.parts.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(mut waiting: Waiting) -> Vec<u8> {
        std::iter::from_fn(|| waiting.pop()).flatten().collect()
    }

    /// (1)
    #[test]
    fn small_parts_are_kept_together() {
        let mut waiting = Waiting::default();
        let bytes: Vec<u8> = (0..100_000u32).map(|i| u8::try_from(i % 251).unwrap()).collect();
        for byte in &bytes {
            waiting.push(Bytes::copy_from_slice(&[*byte]));
        }
        assert!(waiting.parts.len() < bytes.len() / MANY + 2 * MANY, "{} parts", waiting.parts.len());
        assert_eq!(drain(waiting), bytes);
    }

    /// (1)
    #[test]
    fn data_that_is_left_lets_go_of_the_read_buffer() {
        let mut waiting = Waiting::default();
        let mut buffer = BytesMut::from(&[7; 100_000][..]);
        waiting.push(buffer.split_to(10_000).freeze());
        waiting.push(buffer.split_to(20_000).freeze());
        assert!(!buffer.try_reclaim(100_000), "the parts are in the buffer");
        buffer.clear();
        // A reader that moves costs no copy.
        waiting.pop();
        waiting.tick();
        assert!(!buffer.try_reclaim(100_000));
        waiting.tick();
        assert!(buffer.try_reclaim(100_000));
        waiting.push(Bytes::from_static(b"end"));
        let left = drain(waiting);
        assert_eq!((left.len(), left.ends_with(b"7end"), left.ends_with(b"end")), (20_003, false, true));
    }
}
