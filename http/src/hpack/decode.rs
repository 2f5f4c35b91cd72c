//! Decoding of header blocks.
//! Spec: RFC 7541 §5, §6.

use super::{
    Error, huffman,
    table::{DEFAULT_SIZE, FIRST_DYNAMIC, STATIC, Table},
};
use crate::fields::Name;
use std::{fmt, ops::Range};

/// Most size updates at the beginning of a block: the smallest size since the last block, and the final one (RFC 7541 §4.2).
const MAX_UPDATES: usize = 2;

/// Most bytes of names of old entries that one block copies into new ones; each costs it about one byte.
const MAX_COPIED: usize = 64 * 1024;

/// Decodes the header blocks of one direction of a connection, in order.
pub struct Decoder {
    table: Table,
    limit: usize,
}

/// A string.
#[derive(Clone)]
enum Text<'a> {
    /// In the block or in the static table.
    Borrowed(&'a [u8]),
    /// In the buffer of the dynamic table.
    Buffered(Range<usize>),
}

impl<'a> Text<'a> {
    fn of<'t>(&'t self, table: &'t Table) -> &'t [u8]
    where
        'a: 't,
    {
        match self {
            Text::Borrowed(bytes) => bytes,
            Text::Buffered(range) => table.bytes(range.clone()),
        }
    }
}

impl Decoder {
    /// `max`: the announced SETTINGS_HEADER_TABLE_SIZE, in bytes. Since the peer may not have received it yet, the table begins with
    /// the initial size of 4,096 bytes and follows the size updates of the peer up to `max`.
    pub fn new(max: usize) -> Self {
        Self { table: Table::new(), limit: max.min(1 << 24) }
    }

    /// Decodes one complete header block and passes each field to `take` in order: its recognised name ([`Name::Other`] for
    /// pseudo-header fields), its name and its value, all unchecked. The first error of `take` is returned at the end; decoding
    /// continues without `take`, so that the table stays synchronised (RFC 9113 §4.3).
    /// Cost: a field of a table is passed by reference, so a block that repeats a large field (one byte each) costs what `take` does
    /// with it, and almost nothing once `take` has failed. A new entry with the name of an old one copies the name, which is
    /// bounded in sum. `take` must bound the total size of the fields.
    /// Errors: see [`Error`]; the decoder cannot be used after one.
    pub fn decode<E>(
        &mut self,
        block: &[u8],
        mut take: impl FnMut(Name, &[u8], &[u8]) -> Result<(), E>,
    ) -> Result<Result<(), E>, Error> {
        let mut taken = Ok(());
        let mut copied = 0;
        let mut rest = self.updates(block)?;
        while let [first, after @ ..] = rest {
            let first = *first;
            rest = after;
            // RFC 7541 §6.1, indexed field: the whole field is in a table.
            if first & 0x80 != 0 {
                let index = integer(first, 0x7f, &mut rest)?;
                if taken.is_err() {
                    self.check(index)?;
                    continue;
                }
                if let Some((name, value, known)) = index.checked_sub(1).and_then(|position| STATIC.get(position)) {
                    taken = take(*known, name.as_bytes(), value.as_bytes());
                } else {
                    let age = index.checked_sub(FIRST_DYNAMIC).ok_or(Error::Index)?;
                    let entry = self.table.entry(age).ok_or(Error::Index)?;
                    let [name, value] = self.table.ranges(entry);
                    taken = take(entry.known, self.table.bytes(name), self.table.bytes(value));
                }
                continue;
            }
            // RFC 7541 §6.2: a literal with incremental indexing (01), without indexing (0000) or never indexed (0001). The two last
            // differ only for an encoder. §4.2: a size update (001) must precede all fields.
            let (indexed, mask) = match first {
                0x40.. => (true, 0x3f),
                0x20.. => return Err(Error::SizeUpdate),
                _ => (false, 0x0f),
            };
            let index = integer(first, mask, &mut rest)?;
            let mark = self.table.mark();
            let (known, name) = self.name(index, &mut rest)?;
            if !indexed {
                let value = self.string(&mut rest)?;
                if taken.is_ok() {
                    taken = take(known, name.of(&self.table), value.of(&self.table));
                }
                // Huffman-coded strings were decoded behind the entries; they are not needed any more.
                self.table.truncate(mark);
                continue;
            }
            // A new entry is built at the end of the table's buffer: name, then value. The name of an old entry is copied first,
            // since adding the new entry may evict the old one (RFC 7541 §4.4).
            match name {
                Text::Borrowed(name) => self.table.buffer().extend_from_slice(name),
                // Huffman-coded, so decoded to the mark already.
                Text::Buffered(range) if range.start == mark => {}
                Text::Buffered(range) => {
                    copied += range.len();
                    if copied > MAX_COPIED {
                        return Err(Error::Copies);
                    }
                    self.table.append_copy(range);
                }
            }
            let middle = self.table.mark();
            if let Text::Borrowed(value) = self.string(&mut rest)? {
                self.table.buffer().extend_from_slice(value);
            }
            if taken.is_ok() {
                let end = self.table.mark();
                taken = take(known, self.table.bytes(mark..middle), self.table.bytes(middle..end));
            }
            // After `take`: an entry that is larger than the table empties it and is not stored.
            self.table.add(mark, middle - mark, known, 0);
        }
        self.table.shrink();
        Ok(taken)
    }

    /// Decodes the size updates at the beginning of a block and returns the rest of the block.
    fn updates<'a>(&mut self, block: &'a [u8]) -> Result<&'a [u8], Error> {
        let mut rest = block;
        let mut count = 0;
        while let [first @ 0x20..0x40, after @ ..] = rest {
            rest = after;
            let size = integer(*first, 0x1f, &mut rest)?;
            count += 1;
            // The peer may not have received a lower limit yet, so the initial size is always valid.
            if size > self.limit.max(DEFAULT_SIZE) || count > MAX_UPDATES {
                return Err(Error::SizeUpdate);
            }
            self.table.resize(size);
        }
        Ok(rest)
    }

    /// Checks an index without reading the field.
    fn check(&self, index: usize) -> Result<(), Error> {
        if index == 0 || index >= FIRST_DYNAMIC + self.table.len() { Err(Error::Index) } else { Ok(()) }
    }

    /// The name of a literal field: that of the entry `index`, or a string if `index` is 0 (RFC 7541 §6.2).
    fn name<'a>(&mut self, index: usize, rest: &mut &'a [u8]) -> Result<(Name, Text<'a>), Error> {
        let Some(position) = index.checked_sub(1) else {
            let name = self.string(rest)?;
            return Ok((Name::of(name.of(&self.table)), name));
        };
        if let Some((name, _, known)) = STATIC.get(position) {
            return Ok((*known, Text::Borrowed(name.as_bytes())));
        }
        let age = index.checked_sub(FIRST_DYNAMIC).ok_or(Error::Index)?;
        let entry = self.table.entry(age).ok_or(Error::Index)?;
        let [name, _] = self.table.ranges(entry);
        Ok((entry.known, Text::Buffered(name)))
    }

    /// Decodes a string (RFC 7541 §5.2). A Huffman-coded one is decoded to the end of the table's buffer.
    fn string<'a>(&mut self, rest: &mut &'a [u8]) -> Result<Text<'a>, Error> {
        let (first, after) = rest.split_first().ok_or(Error::Truncated)?;
        *rest = after;
        let len = integer(*first, 0x7f, rest)?;
        let (text, after) = rest.split_at_checked(len).ok_or(Error::Truncated)?;
        *rest = after;
        if first & 0x80 == 0 {
            return Ok(Text::Borrowed(text));
        }
        let mark = self.table.mark();
        huffman::decode(text, self.table.buffer())?;
        Ok(Text::Buffered(mark..self.table.mark()))
    }

    #[cfg(test)]
    pub(super) fn table(&self) -> &Table {
        &self.table
    }
}

impl fmt::Debug for Decoder {
    /// Omits the fields, which may contain secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoder").field("entries", &self.table.len()).field("limit", &self.limit).finish()
    }
}

/// Decodes an integer (RFC 7541 §5.1) after its first byte, whose prefix is in the bits of `mask`. Reads at most four more bytes, so
/// the value is below 2^28 + 128.
fn integer(first: u8, mask: u8, rest: &mut &[u8]) -> Result<usize, Error> {
    let mut value = usize::from(first & mask);
    if value < usize::from(mask) {
        return Ok(value);
    }
    for shift in [0, 7, 14, 21] {
        let (byte, after) = rest.split_first().ok_or(Error::Truncated)?;
        *rest = after;
        value += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Error::Integer)
}
