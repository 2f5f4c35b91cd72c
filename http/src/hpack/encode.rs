//! Encoding of header blocks.
//! A field enters the dynamic table on its second occurrence, if it is short and its value does not usually differ per message: a
//! field that occurs once would only evict others. Credentials are never indexed (RFC 7541 §7.1.3); cookies are not indexed, since
//! many clients share one connection between proxies.
//! Spec: RFC 7541 §6, §7.1.

use super::table::{DEFAULT_SIZE, Entry, FIRST_DYNAMIC, Table, size};
use crate::fields::Name;
use std::fmt;

/// Largest field that enters the table, in bytes as the table counts them.
const MAX_INDEXED: usize = 512;

/// Longest path that enters the table, in bytes.
const MAX_PATH: usize = 64;

/// Size of the hash arrays; a power of two.
const SLOTS: usize = 32;

/// Encodes the header blocks of one direction of a connection, in order.
pub struct Encoder {
    table: Table,
    /// Smallest and last table size that the peer has set since the last block.
    pending: Option<(usize, usize)>,
    /// Number of entries added so far, modulo 2^32.
    added: u32,
    /// By hash: the value of `added` when the entry that was found last was added.
    hints: [u32; SLOTS],
    /// By hash: the hash of the last field that is not in the table.
    seen: [u32; SLOTS],
    /// A reused buffer for a name in lower case.
    lower: Vec<u8>,
}

/// How a field that is in no table is represented (RFC 7541 §6.2).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Indexing {
    Incremental,
    Without,
    Never,
}

impl Default for Encoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Encoder {
    /// An encoder with the initial table size of 4,096 bytes.
    pub fn new() -> Self {
        let (hints, seen) = ([0; SLOTS], [0; SLOTS]);
        Self { table: Table::new(), pending: None, added: 0, hints, seen, lower: Vec::new() }
    }

    /// Applies SETTINGS_HEADER_TABLE_SIZE of the peer, in bytes, of which at most 4,096 are used. The next block begins with the size
    /// update.
    pub fn limit(&mut self, max: usize) {
        let max = max.min(DEFAULT_SIZE);
        let smallest = self.pending.map_or(max, |(smallest, _)| smallest.min(max));
        self.pending = Some((smallest, max));
    }

    /// Begins a block: writes the pending size updates (RFC 7541 §4.2).
    pub fn begin(&mut self, out: &mut Vec<u8>) {
        let Some((smallest, last)) = self.pending.take() else { return };
        if smallest < last.min(self.table.max()) {
            self.table.resize(smallest);
            integer(0x20, 0x1f, smallest, out);
        }
        if last != self.table.max() {
            self.table.resize(last);
            integer(0x20, 0x1f, last, out);
        }
    }

    /// Writes one field, with its name in lower case. `known` must equal `Name::of(name)`; pseudo-header fields have [`Name::Other`].
    pub fn field(&mut self, known: Name, name: &[u8], value: &[u8], out: &mut Vec<u8>) {
        if name.iter().fold(false, |any, byte| any | byte.is_ascii_uppercase()) {
            let mut lower = std::mem::take(&mut self.lower);
            lower.clear();
            lower.extend(name.iter().map(u8::to_ascii_lowercase));
            self.lower_field(known, &lower, value, out);
            self.lower = lower;
        } else {
            self.lower_field(known, name, value, out);
        }
    }

    /// Writes `:status`.
    pub fn status(&mut self, status: u16, out: &mut Vec<u8>) {
        let index = match status {
            200 => 8,
            204 => 9,
            206 => 10,
            304 => 11,
            400 => 12,
            404 => 13,
            500 => 14,
            _ => return self.lower_field(Name::Other, b":status", &digits(status), out),
        };
        out.push(0x80 | index);
    }

    /// Writes a field whose name is in lower case.
    fn lower_field(&mut self, known: Name, name: &[u8], value: &[u8], out: &mut Vec<u8>) {
        // Fields that are in the static table whole are one byte; the others get the static index of their name.
        let (index, indexing) = if let [b':', pseudo @ ..] = name {
            match (pseudo, value) {
                (b"method", b"GET") => return out.push(0x82),
                (b"method", b"POST") => return out.push(0x83),
                (b"method", _) => (2, Indexing::Incremental),
                (b"path", b"/") => return out.push(0x84),
                (b"path", b"/index.html") => return out.push(0x85),
                // Long paths and those with a query rarely repeat.
                (b"path", _) if value.len() > MAX_PATH || value.contains(&b'?') => (4, Indexing::Without),
                (b"path", _) => (4, Indexing::Incremental),
                (b"scheme", b"http") => return out.push(0x86),
                (b"scheme", b"https") => return out.push(0x87),
                (b"scheme", _) => (6, Indexing::Incremental),
                (b"authority", _) => (1, Indexing::Incremental),
                (b"status", _) => (8, Indexing::Incremental),
                _ => (0, Indexing::Incremental),
            }
        } else {
            if known == Name::AcceptEncoding && value == b"gzip, deflate" {
                return out.push(0x90);
            }
            indexing(known, name)
        };
        // A field that is larger than the table would empty it (RFC 7541 §4.4).
        if indexing != Indexing::Incremental || size(name.len(), value.len()) > MAX_INDEXED.min(self.table.max()) {
            return literal(if indexing == Indexing::Never { 0x10 } else { 0 }, 0x0f, index, name, value, out);
        }
        let hash = hash(known, name, value);
        if let Some(age) = self.find(hash, known, name, value) {
            return integer(0x80, 0x7f, FIRST_DYNAMIC + age, out);
        }
        // First occurrence: remember the hash. Second: add to the table.
        let slot = hash as usize % SLOTS;
        let Some(seen) = self.seen.get_mut(slot).filter(|seen| **seen != hash) else {
            return self.insert(hash, known, (index, name), value, out);
        };
        *seen = hash;
        literal(0, 0x0f, index, name, value, out);
    }

    /// Writes a literal with incremental indexing and adds it to the table (RFC 7541 §6.2.1).
    fn insert(&mut self, hash: u32, known: Name, (index, name): (usize, &[u8]), value: &[u8], out: &mut Vec<u8>) {
        literal(0x40, 0x3f, index, name, value, out);
        let mark = self.table.mark();
        let buffer = self.table.buffer();
        buffer.extend_from_slice(name);
        buffer.extend_from_slice(value);
        self.table.add(mark, name.len(), known, hash);
        if let Some(hint) = self.hints.get_mut(hash as usize % SLOTS) {
            *hint = self.added;
        }
        self.added = self.added.wrapping_add(1);
    }

    /// The number of entries that are newer than the entry equal to this field.
    fn find(&mut self, hash: u32, known: Name, name: &[u8], value: &[u8]) -> Option<usize> {
        let table = &self.table;
        let is = |entry: Entry| {
            let [its_name, its_value] = table.ranges(entry);
            entry.known == known && table.bytes(its_value) == value && table.bytes(its_name) == name
        };
        let hint = self.hints.get_mut(hash as usize % SLOTS)?;
        let newest = self.added.wrapping_sub(1);
        let age = newest.wrapping_sub(*hint) as usize;
        if table.entry(age).is_some_and(|entry| entry.hash == hash && is(entry)) {
            return Some(age);
        }
        let age = table.find(hash, is)?;
        *hint = newest.wrapping_sub(u32::try_from(age).ok()?);
        Some(age)
    }

    #[cfg(test)]
    pub(super) fn table(&self) -> &Table {
        &self.table
    }
}

impl fmt::Debug for Encoder {
    /// Omits the fields, which may contain secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoder").field("entries", &self.table.len()).field("max", &self.table.max()).finish()
    }
}

/// Index of a name in the static table (RFC 7541 appendix A), 0 for none, and the representation of its fields.
fn indexing(known: Name, name: &[u8]) -> (usize, Indexing) {
    use Indexing::{Incremental, Never, Without};
    match known {
        Name::Accept => (19, Incremental),
        Name::AcceptEncoding => (16, Incremental),
        // RFC 7541 §7.1.3: never indexed, on no hop, so that the size of a block does not reveal a guessed credential.
        Name::Authorization => (23, Never),
        // Values that differ per message, here and below, would evict entries that repeat.
        Name::ContentLength => (28, Without),
        Name::ContentType => (31, Incremental),
        // RFC 7541 §7.1: secret, and different for each client of a shared connection.
        Name::Cookie => (32, Without),
        Name::Date => (33, Without),
        Name::Expect => (35, Incremental),
        Name::Host => (38, Incremental),
        Name::Server => (54, Incremental),
        Name::SetCookie => (55, Without),
        Name::TransferEncoding => (57, Incremental),
        Name::UserAgent => (58, Incremental),
        // Not in the static table, different per message.
        Name::GrpcMessage | Name::Traceparent => (0, Without),
        // Not in the static table, but repeated. The encoder of heads leaves out the connection-specific ones.
        Name::Reserved
        | Name::Connection
        | Name::GrpcStatus
        | Name::Http2Settings
        | Name::KeepAlive
        | Name::ProxyConnection
        | Name::Te
        | Name::Trailer
        | Name::Upgrade
        | Name::XForwardedFor
        | Name::XForwardedProto => (0, Incremental),
        // The rest of the static table, by name.
        Name::Other => match name {
            b"accept-charset" => (15, Incremental),
            b"accept-language" => (17, Incremental),
            b"accept-ranges" => (18, Incremental),
            b"access-control-allow-origin" => (20, Incremental),
            b"age" => (21, Without),
            b"allow" => (22, Incremental),
            b"cache-control" => (24, Incremental),
            b"content-disposition" => (25, Incremental),
            b"content-encoding" => (26, Incremental),
            b"content-language" => (27, Incremental),
            b"content-location" => (29, Without),
            b"content-range" => (30, Without),
            b"etag" => (34, Without),
            b"expires" => (36, Without),
            b"from" => (37, Incremental),
            b"if-match" => (39, Without),
            b"if-modified-since" => (40, Without),
            b"if-none-match" => (41, Without),
            b"if-range" => (42, Without),
            b"if-unmodified-since" => (43, Without),
            b"last-modified" => (44, Without),
            b"link" => (45, Incremental),
            b"location" => (46, Without),
            b"max-forwards" => (47, Incremental),
            b"proxy-authenticate" => (48, Incremental),
            b"proxy-authorization" => (49, Never),
            b"range" => (50, Without),
            b"referer" => (51, Incremental),
            b"refresh" => (52, Incremental),
            b"retry-after" => (53, Incremental),
            b"strict-transport-security" => (56, Incremental),
            b"vary" => (59, Incremental),
            b"via" => (60, Incremental),
            b"www-authenticate" => (61, Incremental),
            b"baggage" | b"grpc-timeout" | b"tracestate" | b"x-request-id" => (0, Without),
            _ => (0, Incremental),
        },
    }
}

/// A hash of a field. It need not resist collisions: a scan of a table full of one hash is bounded by the size of the table.
fn hash(known: Name, name: &[u8], value: &[u8]) -> u32 {
    let mut state = 0x9e37_79b9_7f4a_7c15 ^ ((known as u64) << 32) ^ ((name.len() as u64) << 16) ^ value.len() as u64;
    if matches!(known, Name::Other | Name::Reserved) {
        state = mix(state, name);
    }
    state = mix(state, value);
    u32::try_from(state >> 32).unwrap_or_default()
}

fn mix(mut state: u64, bytes: &[u8]) -> u64 {
    let mut step = |word: u64| {
        let wide = u128::from(state ^ word) * 0x9fb2_1c65_1e98_df25_u128;
        state = u64::try_from(wide & u128::from(u64::MAX)).unwrap_or_default()
            ^ u64::try_from(wide >> 64).unwrap_or_default();
    };
    let (words, rest) = bytes.as_chunks::<8>();
    words.iter().for_each(|word| step(u64::from_le_bytes(*word)));
    if !rest.is_empty() {
        step(rest.iter().fold(0, |word, byte| word << 8 | u64::from(*byte)));
    }
    state
}

/// Writes a literal field: the name by its static index, or as a string if the index is 0. Not Huffman-coded.
fn literal(pattern: u8, mask: u8, index: usize, name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    out.reserve(name.len() + value.len() + 12);
    integer(pattern, mask, index, out);
    if index == 0 {
        string(name, out);
    }
    string(value, out);
}

/// Writes a string without Huffman code (RFC 7541 §5.2).
fn string(text: &[u8], out: &mut Vec<u8>) {
    integer(0, 0x7f, text.len(), out);
    out.extend_from_slice(text);
}

/// Writes an integer (RFC 7541 §5.1): `pattern` above the bits of `mask`, the prefix in them.
#[expect(clippy::cast_possible_truncation, reason = "each value is below 256 at its cast")]
fn integer(pattern: u8, mask: u8, value: usize, out: &mut Vec<u8>) {
    let Some(mut above) = value.checked_sub(usize::from(mask)) else {
        return out.push(pattern | value as u8);
    };
    out.push(pattern | mask);
    while above >= 0x80 {
        out.push(0x80 | (above & 0x7f) as u8);
        above >>= 7;
    }
    out.push(above as u8);
}

/// The three digits of a status.
fn digits(status: u16) -> [u8; 3] {
    [status / 100, status / 10, status].map(|digit| b'0' + (digit % 10) as u8)
}
