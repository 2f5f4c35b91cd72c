//! Header blocks to fields.
//! Spec: RFC 7541 §5, §6.

use super::{
    Error, huffman,
    table::{DEFAULT_SIZE, FIRST_DYNAMIC, STATIC, Table},
};
use crate::fields::Name;
use std::{fmt, ops::Range};

/// Most size updates at the beginning of a block: the smallest size in between and the last (RFC 7541 §4.2).
const MAX_UPDATES: usize = 2;

/// Decodes the header blocks of one connection, in their order.
pub struct Decoder {
    table: Table,
    limit: usize,
}

/// A string: in the block, in the table's buffer, or in the static table.
#[derive(Clone)]
enum Text<'a> {
    Given(&'a [u8]),
    Kept(Range<usize>),
}

impl<'a> Text<'a> {
    fn of<'t>(&'t self, table: &'t Table) -> &'t [u8]
    where
        'a: 't,
    {
        match self {
            Text::Given(bytes) => bytes,
            Text::Kept(place) => table.bytes(place.clone()),
        }
    }
}

impl Decoder {
    /// `max`: the SETTINGS_HEADER_TABLE_SIZE that we announced. As the peer may not have seen it yet, the table begins with the
    /// 4096 of the protocol and follows the peer's size updates up to `max`.
    pub fn new(max: usize) -> Self {
        Self { table: Table::new(), limit: max.min(1 << 24) }
    }

    /// Decodes one complete header block. `take` gets each field in order: its recognised name (pseudo fields come with
    /// [`Name::Other`] and a name that begins with `:`), its name and its value, none of them checked. It may refuse, which is
    /// remembered and returned at the end; decoding goes on without it so that the table stays in step (RFC 9113 §4.3).
    /// Cost: a field out of a table is handed over where it lies, so a block that repeats a large one costs what `take` does
    /// with it; once `take` has refused, one byte's reading. (A new entry that names itself by an entry's name copies that, at
    /// most the size of the table.) `take` bounds the sum of what it is given.
    /// Errors: see [`Error`]; the decoder is of no use after one.
    pub fn decode<E>(
        &mut self,
        block: &[u8],
        mut take: impl FnMut(Name, &[u8], &[u8]) -> Result<(), E>,
    ) -> Result<Result<(), E>, Error> {
        let mut taken = Ok(());
        let mut rest = self.updates(block)?;
        while let [first, after @ ..] = rest {
            let first = *first;
            rest = after;
            if first & 0x80 != 0 {
                let index = integer(first, 0x7f, &mut rest)?;
                if taken.is_err() {
                    self.check(index)?;
                    continue;
                }
                if let Some((name, value, known)) = index.checked_sub(1).and_then(|place| STATIC.get(place)) {
                    taken = take(*known, name.as_bytes(), value.as_bytes());
                } else {
                    let age = index.checked_sub(FIRST_DYNAMIC).ok_or(Error::Index)?;
                    let entry = self.table.entry(age).ok_or(Error::Index)?;
                    let [name, value] = self.table.places(entry);
                    taken = take(entry.known, self.table.bytes(name), self.table.bytes(value));
                }
                continue;
            }
            let (keep, mask) = match first {
                0x40.. => (true, 0x3f),
                0x20.. => return Err(Error::SizeUpdate),
                _ => (false, 0x0f),
            };
            let index = integer(first, mask, &mut rest)?;
            let mark = self.table.mark();
            let (known, name) = self.name(index, &mut rest)?;
            if !keep {
                let value = self.string(&mut rest)?;
                if taken.is_ok() {
                    taken = take(known, name.of(&self.table), value.of(&self.table));
                }
                self.table.forget(mark);
                continue;
            }
            match name {
                Text::Given(name) => self.table.tail().extend_from_slice(name),
                // Read just now: it stands at the mark already.
                Text::Kept(place) if place.start == mark => {}
                Text::Kept(place) => self.table.repeat(place),
            }
            let middle = self.table.mark();
            if let Text::Given(value) = self.string(&mut rest)? {
                self.table.tail().extend_from_slice(value);
            }
            if taken.is_ok() {
                let end = self.table.mark();
                taken = take(known, self.table.bytes(mark..middle), self.table.bytes(middle..end));
            }
            self.table.add(mark, middle - mark, known, 0);
        }
        self.table.tidy();
        Ok(taken)
    }

    /// Reads the size updates at the beginning of a block.
    fn updates<'a>(&mut self, block: &'a [u8]) -> Result<&'a [u8], Error> {
        let mut rest = block;
        let mut count = 0;
        while let [first @ 0x20..0x40, after @ ..] = rest {
            rest = after;
            let size = integer(*first, 0x1f, &mut rest)?;
            count += 1;
            // Before the peer knows a lower limit, the protocol's own holds.
            if size > self.limit.max(DEFAULT_SIZE) || count > MAX_UPDATES {
                return Err(Error::SizeUpdate);
            }
            self.table.resize(size);
        }
        Ok(rest)
    }

    fn check(&self, index: usize) -> Result<(), Error> {
        if index == 0 || index >= FIRST_DYNAMIC + self.table.len() { Err(Error::Index) } else { Ok(()) }
    }

    /// The name of a literal field: by index, or written out where that is 0.
    fn name<'a>(&mut self, index: usize, rest: &mut &'a [u8]) -> Result<(Name, Text<'a>), Error> {
        let Some(place) = index.checked_sub(1) else {
            let name = self.string(rest)?;
            return Ok((Name::of(name.of(&self.table)), name));
        };
        if let Some((name, _, known)) = STATIC.get(place) {
            return Ok((*known, Text::Given(name.as_bytes())));
        }
        let age = index.checked_sub(FIRST_DYNAMIC).ok_or(Error::Index)?;
        let entry = self.table.entry(age).ok_or(Error::Index)?;
        let [name, _] = self.table.places(entry);
        Ok((entry.known, Text::Kept(name)))
    }

    /// One string; what is Huffman-coded is written to the end of the table's buffer.
    fn string<'a>(&mut self, rest: &mut &'a [u8]) -> Result<Text<'a>, Error> {
        let (first, after) = rest.split_first().ok_or(Error::Truncated)?;
        *rest = after;
        let len = integer(*first, 0x7f, rest)?;
        let (text, after) = rest.split_at_checked(len).ok_or(Error::Truncated)?;
        *rest = after;
        if first & 0x80 == 0 {
            return Ok(Text::Given(text));
        }
        let mark = self.table.mark();
        huffman::decode(text, self.table.tail())?;
        Ok(Text::Kept(mark..self.table.mark()))
    }

    #[cfg(test)]
    pub(super) fn table(&self) -> &Table {
        &self.table
    }
}

impl fmt::Debug for Decoder {
    /// Without the fields, which may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoder").field("entries", &self.table.len()).field("limit", &self.limit).finish()
    }
}

/// The integer whose first byte has been read; it has its prefix in the bits of `mask` (RFC 7541 §5.1). At most four bytes more
/// are read, so that it stays below 2^28 + 128.
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
