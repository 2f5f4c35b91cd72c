//! The queue of bytes to write: small frames are packed together, large data is queued without a copy.

use std::{collections::VecDeque, io::IoSlice};

use bytes::{Buf, Bytes, BytesMut};

/// Data below this size, in bytes, is copied behind the frames before it; above, a copy costs more than one more slice in
/// a vectored write.
const COPY: usize = 2 * 1024;

/// Bytes to write, in order: a [`Buf`].
#[derive(Debug, Default)]
pub struct Unsent {
    queue: VecDeque<Bytes>,
    tail: BytesMut,
    len: usize,
}

impl Unsent {
    /// The number of queued bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no byte is queued.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends a copy of `bytes`.
    pub fn put(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
        self.len += bytes.len();
    }

    /// Appends data, without a copy if it is large.
    pub fn put_data(&mut self, data: Bytes) {
        if data.len() < COPY {
            return self.put(&data);
        }
        self.len += data.len();
        if !self.tail.is_empty() {
            let tail = self.tail.split().freeze();
            self.queue.push_back(tail);
        }
        self.queue.push_back(data);
    }

    /// Frees the memory of an empty queue.
    pub fn shrink(&mut self) {
        if self.len == 0 && (self.tail.capacity() > COPY || self.queue.capacity() > 8) {
            *self = Self::default();
        }
    }
}

impl Buf for Unsent {
    fn remaining(&self) -> usize {
        self.len
    }

    fn chunk(&self) -> &[u8] {
        self.queue.front().map_or(&self.tail, |first| first)
    }

    fn advance(&mut self, mut count: usize) {
        self.len = self.len.saturating_sub(count);
        while let Some(first) = self.queue.front_mut() {
            if first.len() > count {
                first.advance(count);
                return;
            }
            count -= first.len();
            self.queue.pop_front();
        }
        if count >= self.tail.len() {
            self.tail.clear();
        } else {
            self.tail.advance(count);
        }
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let parts = self.queue.iter().map(|bytes| &bytes[..]).chain([&self.tail[..]]).filter(|part| !part.is_empty());
        slices.iter_mut().zip(parts).map(|(slice, part)| *slice = IoSlice::new(part)).count()
    }
}
