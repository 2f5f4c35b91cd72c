//! The static table, and the dynamic table of one direction.
//! Shape: one buffer holds the bytes of all entries in the order of insertion. Evicted entries leave a gap at its beginning, which is
//! closed once it is larger than the rest. The decoder appends the strings that it decodes to the same buffer, so that a new entry
//! needs no further copy. An empty table has no allocation.
//! Spec: RFC 7541 §2.3, §4, appendix A.

use crate::fields::Name;
use std::{collections::VecDeque, ops::Range};

/// Initial size of the dynamic table, in bytes (RFC 9113 §6.5.2).
pub(super) const DEFAULT_SIZE: usize = 4096;

/// First index of the dynamic table.
pub(super) const FIRST_DYNAMIC: usize = STATIC.len() + 1;

/// A gap below this size, in bytes, is not closed.
const SMALL_GAP: usize = 1024;

/// Name, value and recognised name of every static entry; the first has index 1.
pub(super) static STATIC: [(&str, &str, Name); 61] = [
    (":authority", "", Name::Other),
    (":method", "GET", Name::Other),
    (":method", "POST", Name::Other),
    (":path", "/", Name::Other),
    (":path", "/index.html", Name::Other),
    (":scheme", "http", Name::Other),
    (":scheme", "https", Name::Other),
    (":status", "200", Name::Other),
    (":status", "204", Name::Other),
    (":status", "206", Name::Other),
    (":status", "304", Name::Other),
    (":status", "400", Name::Other),
    (":status", "404", Name::Other),
    (":status", "500", Name::Other),
    ("accept-charset", "", Name::Other),
    ("accept-encoding", "gzip, deflate", Name::AcceptEncoding),
    ("accept-language", "", Name::Other),
    ("accept-ranges", "", Name::Other),
    ("accept", "", Name::Accept),
    ("access-control-allow-origin", "", Name::Other),
    ("age", "", Name::Other),
    ("allow", "", Name::Other),
    ("authorization", "", Name::Authorization),
    ("cache-control", "", Name::Other),
    ("content-disposition", "", Name::Other),
    ("content-encoding", "", Name::Other),
    ("content-language", "", Name::Other),
    ("content-length", "", Name::ContentLength),
    ("content-location", "", Name::Other),
    ("content-range", "", Name::Other),
    ("content-type", "", Name::ContentType),
    ("cookie", "", Name::Cookie),
    ("date", "", Name::Date),
    ("etag", "", Name::Other),
    ("expect", "", Name::Expect),
    ("expires", "", Name::Other),
    ("from", "", Name::Other),
    ("host", "", Name::Host),
    ("if-match", "", Name::Other),
    ("if-modified-since", "", Name::Other),
    ("if-none-match", "", Name::Other),
    ("if-range", "", Name::Other),
    ("if-unmodified-since", "", Name::Other),
    ("last-modified", "", Name::Other),
    ("link", "", Name::Other),
    ("location", "", Name::Other),
    ("max-forwards", "", Name::Other),
    ("proxy-authenticate", "", Name::Other),
    ("proxy-authorization", "", Name::Other),
    ("range", "", Name::Other),
    ("referer", "", Name::Other),
    ("refresh", "", Name::Other),
    ("retry-after", "", Name::Other),
    ("server", "", Name::Server),
    ("set-cookie", "", Name::SetCookie),
    ("strict-transport-security", "", Name::Other),
    ("transfer-encoding", "", Name::TransferEncoding),
    ("user-agent", "", Name::UserAgent),
    ("vary", "", Name::Other),
    ("via", "", Name::Other),
    ("www-authenticate", "", Name::Other),
];

/// An entry of the dynamic table.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    /// Offset from the first byte that the buffer ever held, modulo 2^32.
    start: u32,
    /// Length of the name.
    name: u32,
    /// Length of the value.
    value: u32,
    /// The hash by which the encoder finds the entry.
    pub(super) hash: u32,
    /// Its recognised name.
    pub(super) known: Name,
}

impl Entry {
    fn size(self) -> usize {
        size(self.name as usize, self.value as usize)
    }
}

/// Size of a field in the table (RFC 7541 §4.1).
pub(super) fn size(name: usize, value: usize) -> usize {
    name.saturating_add(value).saturating_add(32)
}

/// A dynamic table.
pub(super) struct Table {
    /// The gap, the entries, then strings that are being decoded.
    bytes: Vec<u8>,
    /// Number of bytes removed from the beginning of the buffer so far, modulo 2^32.
    drained: u32,
    /// Oldest first.
    entries: VecDeque<Entry>,
    size: usize,
    max: usize,
}

impl Table {
    pub(super) fn new() -> Self {
        Self { bytes: Vec::new(), drained: 0, entries: VecDeque::new(), size: 0, max: DEFAULT_SIZE }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn max(&self) -> usize {
        self.max
    }

    /// Sets the maximum size, in bytes, and evicts entries above it (RFC 7541 §4.3).
    pub(super) fn resize(&mut self, max: usize) {
        self.max = max;
        self.evict_to(max);
        self.shrink();
    }

    /// The entry with `age` newer ones.
    pub(super) fn entry(&self, age: usize) -> Option<Entry> {
        let position = self.entries.len().checked_sub(age)?.checked_sub(1)?;
        self.entries.get(position).copied()
    }

    /// The age of the newest entry with this hash for which `is` returns true.
    pub(super) fn find(&self, hash: u32, is: impl Fn(Entry) -> bool) -> Option<usize> {
        self.entries.iter().rev().position(|entry| entry.hash == hash && is(*entry))
    }

    /// The ranges of the name and the value of an entry in the buffer.
    pub(super) fn ranges(&self, entry: Entry) -> [Range<usize>; 2] {
        let start = entry.start.wrapping_sub(self.drained) as usize;
        let middle = start.saturating_add(entry.name as usize);
        [start..middle, middle..middle.saturating_add(entry.value as usize)]
    }

    /// Bytes of the buffer.
    pub(super) fn bytes(&self, range: Range<usize>) -> &[u8] {
        self.bytes.get(range).unwrap_or_default()
    }

    /// The buffer, for appending to the string that is being decoded.
    pub(super) fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// The offset at which appended bytes begin.
    pub(super) fn mark(&self) -> usize {
        self.bytes.len()
    }

    /// Removes the bytes appended since `mark`.
    pub(super) fn truncate(&mut self, mark: usize) {
        self.bytes.truncate(mark);
    }

    /// Appends a copy of bytes of the buffer.
    pub(super) fn append_copy(&mut self, range: Range<usize>) {
        if range.start <= range.end && range.end <= self.bytes.len() {
            self.bytes.extend_from_within(range);
        }
    }

    /// Adds the bytes appended since `mark` as an entry, whose name has `name` bytes. An entry larger than the table empties it
    /// (RFC 7541 §4.4).
    pub(super) fn add(&mut self, mark: usize, name: usize, known: Name, hash: u32) {
        let value = self.bytes.len().saturating_sub(mark).saturating_sub(name);
        let size = size(name, value);
        self.evict_to(self.max.saturating_sub(size));
        let (Ok(start), Ok(name), Ok(value)) = (u32::try_from(mark), u32::try_from(name), u32::try_from(value)) else {
            return self.truncate(mark);
        };
        if size > self.max {
            self.entries.clear();
            self.size = 0;
            return self.truncate(mark);
        }
        self.size += size;
        self.entries.push_back(Entry { start: self.drained.wrapping_add(start), name, value, hash, known });
        self.close_gap();
    }

    fn evict_to(&mut self, max: usize) {
        while self.size > max {
            let Some(oldest) = self.entries.pop_front() else { break };
            self.size -= oldest.size();
        }
    }

    fn close_gap(&mut self) {
        let first = self.entries.front().map(|entry| entry.start.wrapping_sub(self.drained));
        let gap = first.map_or(self.bytes.len(), |first| first as usize);
        if gap >= SMALL_GAP && gap >= self.bytes.len() / 2 {
            self.bytes.drain(..gap.min(self.bytes.len()));
            self.drained = self.drained.wrapping_add(u32::try_from(gap).unwrap_or_default());
        }
    }

    /// Frees the memory that an unusually large block has left.
    pub(super) fn shrink(&mut self) {
        self.close_gap();
        let usual = self.bytes.len() + SMALL_GAP;
        if self.bytes.capacity() > 4 * usual {
            self.bytes.shrink_to(usual);
        }
        if self.entries.is_empty() && self.entries.capacity() > 64 {
            self.entries = VecDeque::new();
        }
    }

    #[cfg(test)]
    pub(super) fn fields(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let newest_first = self.entries.iter().rev();
        newest_first.map(|entry| self.ranges(*entry).map(|range| self.bytes(range).to_vec()).into()).collect()
    }

    #[cfg(test)]
    pub(super) fn size(&self) -> usize {
        self.size
    }

    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }
}
