//! The static table, and the dynamic table of one direction.
//! Shape: the bytes of all entries stand in one buffer in the order they were added; evicted ones are a gap at its beginning
//! that is closed when it is larger than what is left. What is being read is appended to the same buffer, so that a field to
//! be kept is not copied again. Nothing is allocated before the first field that is.
//! Spec: RFC 7541 §2.3, §4, appendix A.

use crate::fields::Name;
use std::{collections::VecDeque, ops::Range};

/// Size of the dynamic table until a size update (RFC 9113 §6.5.2).
pub(super) const DEFAULT_SIZE: usize = 4096;

/// First index of the dynamic table.
pub(super) const FIRST_DYNAMIC: usize = STATIC.len() + 1;

/// A gap below this many bytes is not worth moving the rest.
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

/// Where an entry lies, and what is known of it.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    /// Counted from the first byte that the buffer ever held, around at 4 GiB.
    start: u32,
    name: u32,
    value: u32,
    /// What the encoder finds it by.
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
    /// Dropped bytes, then those of the entries, then what is being read.
    bytes: Vec<u8>,
    /// How many bytes were taken away from the beginning of the buffer so far, around at 4 GiB.
    taken: u32,
    /// Oldest first.
    entries: VecDeque<Entry>,
    size: usize,
    max: usize,
}

impl Table {
    pub(super) fn new() -> Self {
        Self { bytes: Vec::new(), taken: 0, entries: VecDeque::new(), size: 0, max: DEFAULT_SIZE }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn max(&self) -> usize {
        self.max
    }

    /// Changes how large it may become, and evicts what is above.
    pub(super) fn resize(&mut self, max: usize) {
        self.max = max;
        self.evict_to(max);
        self.tidy();
    }

    /// The entry that was added as the last but `age`.
    pub(super) fn entry(&self, age: usize) -> Option<Entry> {
        let place = self.entries.len().checked_sub(age)?.checked_sub(1)?;
        self.entries.get(place).copied()
    }

    /// How many were added after the newest entry that has this hash and passes.
    pub(super) fn find(&self, hash: u32, is: impl Fn(Entry) -> bool) -> Option<usize> {
        self.entries.iter().rev().position(|entry| entry.hash == hash && is(*entry))
    }

    /// Where the name and the value of an entry lie in the buffer.
    pub(super) fn places(&self, entry: Entry) -> [Range<usize>; 2] {
        let start = entry.start.wrapping_sub(self.taken) as usize;
        let middle = start.saturating_add(entry.name as usize);
        [start..middle, middle..middle.saturating_add(entry.value as usize)]
    }

    /// Bytes of the buffer.
    pub(super) fn bytes(&self, place: Range<usize>) -> &[u8] {
        self.bytes.get(place).unwrap_or_default()
    }

    /// The buffer, to append to what is being read.
    pub(super) fn tail(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Where something that is read next will begin.
    pub(super) fn mark(&self) -> usize {
        self.bytes.len()
    }

    /// Forgets what was appended since a mark.
    pub(super) fn forget(&mut self, mark: usize) {
        self.bytes.truncate(mark);
    }

    /// Makes a copy of some bytes at the end of the buffer.
    pub(super) fn repeat(&mut self, place: Range<usize>) {
        if place.start <= place.end && place.end <= self.bytes.len() {
            self.bytes.extend_from_within(place);
        }
    }

    /// Makes an entry of what was appended since a mark; `name` of these bytes are its name. One that is larger than the whole
    /// table empties it (RFC 7541 §4.4).
    pub(super) fn add(&mut self, mark: usize, name: usize, known: Name, hash: u32) {
        let value = self.bytes.len().saturating_sub(mark).saturating_sub(name);
        let size = size(name, value);
        self.evict_to(self.max.saturating_sub(size));
        let (Ok(start), Ok(name), Ok(value)) = (u32::try_from(mark), u32::try_from(name), u32::try_from(value)) else {
            return self.forget(mark);
        };
        if size > self.max {
            self.entries.clear();
            self.size = 0;
            return self.forget(mark);
        }
        self.size += size;
        self.entries.push_back(Entry { start: self.taken.wrapping_add(start), name, value, hash, known });
        self.close_gap();
    }

    fn evict_to(&mut self, max: usize) {
        while self.size > max {
            let Some(oldest) = self.entries.pop_front() else { break };
            self.size -= oldest.size();
        }
    }

    fn close_gap(&mut self) {
        let first = self.entries.front().map(|entry| entry.start.wrapping_sub(self.taken));
        let gap = first.map_or(self.bytes.len(), |first| first as usize);
        if gap >= SMALL_GAP && gap >= self.bytes.len() / 2 {
            self.bytes.drain(..gap.min(self.bytes.len()));
            self.taken = self.taken.wrapping_add(u32::try_from(gap).unwrap_or_default());
        }
    }

    /// Gives back the memory that a block of unusual size left behind.
    pub(super) fn tidy(&mut self) {
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
        newest_first.map(|entry| self.places(*entry).map(|place| self.bytes(place).to_vec()).into()).collect()
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
