//! Fields to header blocks.
//! What is put into the table: a field that came twice, is short, and is not known to differ with each message. One that comes
//! once would only push out others. Credentials are marked as never to be indexed (RFC 7541 §7.1.3); cookies are not indexed,
//! as many clients share a connection between proxies.
//! Spec: RFC 7541 §6, §7.1.

use super::table::{DEFAULT_SIZE, Entry, FIRST_DYNAMIC, Table, size};
use crate::fields::Name;
use std::fmt;

/// Largest field, as the table counts it, that is put into the table.
const MAX_INDEXED: usize = 512;

/// Longest path that is put into the table.
const MAX_PATH: usize = 64;

/// Fields that are remembered apart from the table, by their hash; a power of two.
const SLOTS: usize = 32;

/// Encodes the heads of one connection, in their order.
pub struct Encoder {
    table: Table,
    /// Smallest and last size asked for since the last block.
    pending: Option<(usize, usize)>,
    /// How many entries were added ever, around at 2^32.
    added: u32,
    /// By hash: when the entry that was found last was added.
    hints: [u32; SLOTS],
    /// By hash: hash of the field that came last and is not in the table.
    seen: [u32; SLOTS],
    /// A name in lower case.
    lower: Vec<u8>,
}

/// How a field is written that is in no table.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Policy {
    Index,
    Literal,
    Never,
}

impl Default for Encoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Encoder {
    /// With a table of 4096 bytes until told otherwise.
    pub fn new() -> Self {
        let (hints, seen) = ([0; SLOTS], [0; SLOTS]);
        Self { table: Table::new(), pending: None, added: 0, hints, seen, lower: Vec::new() }
    }

    /// The peer's SETTINGS_HEADER_TABLE_SIZE; at most 4096 of it is used. Takes effect with a size update at the next block.
    pub fn limit(&mut self, max: usize) {
        let max = max.min(DEFAULT_SIZE);
        let smallest = self.pending.map_or(max, |(smallest, _)| smallest.min(max));
        self.pending = Some((smallest, max));
    }

    /// Begins a block: writes the pending size updates.
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

    /// Writes one field, its name in lower case. `known` is what [`Name::of`] says; pseudo fields have [`Name::Other`].
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

    fn lower_field(&mut self, known: Name, name: &[u8], value: &[u8], out: &mut Vec<u8>) {
        let (index, policy) = if let [b':', pseudo @ ..] = name {
            match (pseudo, value) {
                (b"method", b"GET") => return out.push(0x82),
                (b"method", b"POST") => return out.push(0x83),
                (b"method", _) => (2, Policy::Index),
                (b"path", b"/") => return out.push(0x84),
                (b"path", b"/index.html") => return out.push(0x85),
                (b"path", _) if value.len() > MAX_PATH || value.contains(&b'?') => (4, Policy::Literal),
                (b"path", _) => (4, Policy::Index),
                (b"scheme", b"http") => return out.push(0x86),
                (b"scheme", b"https") => return out.push(0x87),
                (b"scheme", _) => (6, Policy::Index),
                (b"authority", _) => (1, Policy::Index),
                (b"status", _) => (8, Policy::Index),
                _ => (0, Policy::Index),
            }
        } else {
            if known == Name::AcceptEncoding && value == b"gzip, deflate" {
                return out.push(0x90);
            }
            rule(known, name)
        };
        if policy != Policy::Index || size(name.len(), value.len()) > MAX_INDEXED.min(self.table.max()) {
            return literal(if policy == Policy::Never { 0x10 } else { 0 }, 0x0f, index, name, value, out);
        }
        let hash = hash(known, name, value);
        if let Some(age) = self.find(hash, known, name, value) {
            return integer(0x80, 0x7f, FIRST_DYNAMIC + age, out);
        }
        let slot = hash as usize % SLOTS;
        let Some(seen) = self.seen.get_mut(slot).filter(|seen| **seen != hash) else {
            return self.insert(hash, known, (index, name), value, out);
        };
        *seen = hash;
        literal(0, 0x0f, index, name, value, out);
    }

    fn insert(&mut self, hash: u32, known: Name, (index, name): (usize, &[u8]), value: &[u8], out: &mut Vec<u8>) {
        literal(0x40, 0x3f, index, name, value, out);
        let mark = self.table.mark();
        let tail = self.table.tail();
        tail.extend_from_slice(name);
        tail.extend_from_slice(value);
        self.table.add(mark, name.len(), known, hash);
        if let Some(hint) = self.hints.get_mut(hash as usize % SLOTS) {
            *hint = self.added;
        }
        self.added = self.added.wrapping_add(1);
    }

    /// How many entries are newer than the one that is this field.
    fn find(&mut self, hash: u32, known: Name, name: &[u8], value: &[u8]) -> Option<usize> {
        let table = &self.table;
        let is = |entry: Entry| {
            let [its_name, its_value] = table.places(entry);
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
    /// Without the fields, which may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoder").field("entries", &self.table.len()).field("max", &self.table.max()).finish()
    }
}

/// Static index of a name, 0 for none, and how its values are written.
fn rule(known: Name, name: &[u8]) -> (usize, Policy) {
    use Policy::{Index, Literal, Never};
    match known {
        Name::Accept => (19, Index),
        Name::AcceptEncoding => (16, Index),
        Name::Authorization => (23, Never),
        Name::ContentLength => (28, Literal),
        Name::ContentType => (31, Index),
        Name::Cookie => (32, Literal),
        Name::Date => (33, Literal),
        Name::Expect => (35, Index),
        Name::Host => (38, Index),
        Name::Server => (54, Index),
        Name::SetCookie => (55, Literal),
        Name::TransferEncoding => (57, Index),
        Name::UserAgent => (58, Index),
        Name::GrpcMessage | Name::Traceparent => (0, Literal),
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
        | Name::XForwardedProto => (0, Index),
        Name::Other => match name {
            b"accept-charset" => (15, Index),
            b"accept-language" => (17, Index),
            b"accept-ranges" => (18, Index),
            b"access-control-allow-origin" => (20, Index),
            b"age" => (21, Literal),
            b"allow" => (22, Index),
            b"cache-control" => (24, Index),
            b"content-disposition" => (25, Index),
            b"content-encoding" => (26, Index),
            b"content-language" => (27, Index),
            b"content-location" => (29, Literal),
            b"content-range" => (30, Literal),
            b"etag" => (34, Literal),
            b"expires" => (36, Literal),
            b"from" => (37, Index),
            b"if-match" => (39, Literal),
            b"if-modified-since" => (40, Literal),
            b"if-none-match" => (41, Literal),
            b"if-range" => (42, Literal),
            b"if-unmodified-since" => (43, Literal),
            b"last-modified" => (44, Literal),
            b"link" => (45, Index),
            b"location" => (46, Literal),
            b"max-forwards" => (47, Index),
            b"proxy-authenticate" => (48, Index),
            b"proxy-authorization" => (49, Never),
            b"range" => (50, Literal),
            b"referer" => (51, Index),
            b"refresh" => (52, Index),
            b"retry-after" => (53, Index),
            b"strict-transport-security" => (56, Index),
            b"vary" => (59, Index),
            b"via" => (60, Index),
            b"www-authenticate" => (61, Index),
            b"baggage" | b"grpc-timeout" | b"tracestate" | b"x-request-id" => (0, Literal),
            _ => (0, Index),
        },
    }
}

/// Equal fields have equal hashes; that is all that must hold. A scan of a table full of one hash is bounded by its size.
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

/// A literal field: the name by its static index, or written out where that is 0. Never Huffman-coded.
fn literal(pattern: u8, mask: u8, index: usize, name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    out.reserve(name.len() + value.len() + 12);
    integer(pattern, mask, index, out);
    if index == 0 {
        string(name, out);
    }
    string(value, out);
}

fn string(text: &[u8], out: &mut Vec<u8>) {
    integer(0, 0x7f, text.len(), out);
    out.extend_from_slice(text);
}

#[expect(clippy::cast_possible_truncation, reason = "each is below 256 where it is cast")]
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

/// Three digits.
fn digits(status: u16) -> [u8; 3] {
    [status / 100, status / 10, status].map(|digit| b'0' + (digit % 10) as u8)
}
