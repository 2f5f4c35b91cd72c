//! Writing of a [`WeftSession`]: bytes are sealed from where they stand into a buffer that belongs to the thread.

use std::{cell::RefCell, io};

use rustls::{ContentType, Error};

use super::{KEY_UPDATE, WeftSession};
use crate::{
    buffer,
    tls::record::{HEADER, MAX_CONTENT, OVERHEAD},
};

/// Most bytes that one write encrypts; their records leave in one system call.
pub(super) const WRITTEN_AT_ONCE: usize = buffer::SIZE;
/// Most bytes of the handshake that are left to the session to send.
pub(in crate::tls) const MAX_HANDSHAKE_TAIL: usize = 4 * 1024;
/// Room for the records of one write, with the rest of the handshake and a key update before them.
pub(super) const SEALED: usize = MAX_HANDSHAKE_TAIL
    + WRITTEN_AT_ONCE
    + WRITTEN_AT_ONCE.div_ceil(MAX_CONTENT) * OVERHEAD
    + KEY_UPDATE.len()
    + OVERHEAD;
/// Buffers that a thread keeps.
const KEPT: usize = 4;

thread_local! {
    static BUFFERS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

impl WeftSession {
    /// Seals the front of `parts` into `place`. Returns how many bytes of `parts`, and the length of the records.
    /// Errors: no room or no sequence number, which is our own mistake; nothing may be sent behind it.
    pub(super) fn seal(&mut self, parts: &[io::IoSlice<'_>], place: &mut [u8]) -> Result<(usize, usize), Error> {
        let mut length = 0;
        // The old key says that a new one follows.
        if std::mem::take(&mut self.key_update_requested) || self.send_key.sequence() >= self.records_per_key {
            length += self.send_key.seal(ContentType::Handshake, KEY_UPDATE.len(), Some(&KEY_UPDATE), place)?;
            self.send_key = self.keys.next_send_key()?;
        }
        let whole = parts.iter().map(|part| part.len()).sum::<usize>().min(WRITTEN_AT_ONCE);
        let mut parts = Parts { parts: parts.iter(), part: &[] };
        let mut left = whole;
        while left > 0 {
            let count = left.min(MAX_CONTENT);
            let out = place.get_mut(length..).unwrap_or_default();
            let content = parts.one(count);
            if content.is_none() {
                parts.gather(out.get_mut(HEADER..HEADER + count).unwrap_or_default());
            }
            length += self.send_key.seal(ContentType::ApplicationData, count, content, out)?;
            left -= count;
        }
        Ok((whole, length))
    }
}

/// Bytes to be sealed, in order.
struct Parts<'a> {
    parts: std::slice::Iter<'a, io::IoSlice<'a>>,
    part: &'a [u8],
}

impl<'a> Parts<'a> {
    /// The next `count` bytes, if they stand in one place.
    fn one(&mut self, count: usize) -> Option<&'a [u8]> {
        while self.part.is_empty() {
            self.part = self.parts.next()?;
        }
        let (one, rest) = self.part.split_at_checked(count)?;
        self.part = rest;
        Some(one)
    }

    /// Copies the next bytes.
    fn gather(&mut self, mut to: &mut [u8]) {
        while !to.is_empty() {
            if self.part.is_empty() {
                let Some(part) = self.parts.next() else { return };
                self.part = part;
            }
            let (from, rest) = self.part.split_at(self.part.len().min(to.len()));
            let (here, behind) = to.split_at_mut(from.len());
            here.copy_from_slice(from);
            (self.part, to) = (rest, behind);
        }
    }
}

/// A buffer of [`SEALED`] bytes to seal in.
pub(super) fn buffer_to_seal_in() -> Vec<u8> {
    BUFFERS.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; SEALED])
}

/// Keeps a buffer for the thread's next write, if it is one of [`buffer_to_seal_in`].
pub(super) fn give_back(mut buffer: Vec<u8>) {
    if buffer.capacity() >= SEALED {
        buffer.resize(SEALED, 0);
        BUFFERS.with_borrow_mut(|buffers| {
            if buffers.len() < KEPT {
                buffers.push(buffer);
            }
        });
    }
}
