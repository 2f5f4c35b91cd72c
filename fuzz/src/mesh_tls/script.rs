//! What an input says: what the sender does, and what then happens to its records on their way.

/// A step of the sender.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// Sends so many bytes.
    Data(usize),
    /// Changes its key, and asks for a new one of the receiver's.
    Key,
    /// Says that nothing more comes.
    Close,
}

/// A change of the records; numbers are taken modulo what there is.
#[derive(Clone, Copy, Debug)]
enum Change<'a> {
    Flip { record: usize, at: usize, xor: u8 },
    Remove { record: usize },
    Repeat { record: usize },
    Swap { record: usize },
    Insert { record: usize, bytes: &'a [u8] },
    Truncate { at: usize },
}

/// The input, read.
#[derive(Debug, Default)]
pub(super) struct Script<'a> {
    pub(super) steps: Vec<Step>,
    changes: Vec<Change<'a>>,
}

impl<'a> Script<'a> {
    /// Steps and changes, a letter each, with operands of one byte: `d` (twice: length), `D` (length times 256), `k`, `c`;
    /// `x` (record, place, bits), `r`, `2`, `s` (record), `i` (record, length, bytes), `t` (twice: place).
    pub(super) fn read(mut bytes: &'a [u8]) -> Self {
        let mut script = Self::default();
        loop {
            let (rest, taken) = match *bytes {
                [b'd', high, low, ref rest @ ..] => (rest, Ok(Step::Data(number(high, low) % 5000))),
                [b'D', high, ref rest @ ..] => (rest, Ok(Step::Data(usize::from(high) * 256))),
                [b'k', ref rest @ ..] => (rest, Ok(Step::Key)),
                [b'c', ref rest @ ..] => (rest, Ok(Step::Close)),
                [b'x', record, at, xor, ref rest @ ..] => {
                    (rest, Err(Change::Flip { record: record.into(), at: at.into(), xor }))
                }
                [b'r', record, ref rest @ ..] => (rest, Err(Change::Remove { record: record.into() })),
                [b'2', record, ref rest @ ..] => (rest, Err(Change::Repeat { record: record.into() })),
                [b's', record, ref rest @ ..] => (rest, Err(Change::Swap { record: record.into() })),
                [b't', high, low, ref rest @ ..] => (rest, Err(Change::Truncate { at: number(high, low) })),
                [b'i', record, length, ref rest @ ..] => {
                    let (bytes, rest) = rest.split_at(usize::from(length).min(rest.len()));
                    (rest, Err(Change::Insert { record: record.into(), bytes }))
                }
                [_, ref rest @ ..] => {
                    bytes = rest;
                    continue;
                }
                [] => return script,
            };
            bytes = rest;
            match taken {
                Ok(step) if script.steps.len() < MOST => script.steps.push(step),
                Err(change) if script.changes.len() < MOST => script.changes.push(change),
                Ok(_) | Err(_) => {}
            }
        }
    }

    /// The sender's bytes, cut into records and changed.
    pub(super) fn change(&self, bytes: &[u8]) -> Vec<u8> {
        let mut records = records(bytes);
        for change in &self.changes {
            let count = records.len();
            let place = |record: usize| record.checked_rem(count).unwrap_or_default();
            match *change {
                _ if count == 0 => {}
                Change::Flip { record, at, xor } => {
                    if let Some(record) = records.get_mut(place(record)) {
                        let at = at.checked_rem(record.len()).unwrap_or_default();
                        record.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= xor);
                    }
                }
                Change::Remove { record } => drop(records.remove(place(record))),
                Change::Repeat { record } => {
                    let copy = records.get(place(record)).cloned().unwrap_or_default();
                    records.insert(place(record), copy);
                }
                Change::Swap { record } => records.swap(place(record), place(record + 1)),
                Change::Insert { record, bytes } => records.insert(place(record), bytes.to_vec()),
                Change::Truncate { at } => {
                    let mut left = at;
                    for record in &mut records {
                        record.truncate(left);
                        left = left.saturating_sub(record.len());
                    }
                }
            }
        }
        records.concat()
    }
}

/// Whether all heads of records say what RFC 8446 §5.2 has them say, lengths of at most 2^14 + 256 bytes included. rustls looks at
/// the lengths only, and waits for records of up to 2^14 + 2048; our session authenticates the heads and refuses longer records
/// at once, as the RFC has it.
pub(super) fn has_good_heads(bytes: &[u8]) -> bool {
    records(bytes).iter().all(|record| {
        let long = record.first_chunk().is_some_and(|&[_, _, _, high, low]| number(high, low) > (1 << 14) + 256);
        !long && record.iter().zip([23, 3, 3]).all(|(byte, good)| *byte == good)
    })
}

/// Steps, and changes, of a run.
const MOST: usize = 24;

fn number(high: u8, low: u8) -> usize {
    usize::from(high) << 8 | usize::from(low)
}

/// Cuts what a sender wrote into its records (RFC 8446 §5.1).
fn records(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    while let Some(&[_, _, _, high, low]) = bytes.first_chunk::<5>() {
        let (record, rest) = bytes.split_at((5 + number(high, low)).min(bytes.len()));
        records.push(record.to_vec());
        bytes = rest;
    }
    // What is too short for a head.
    records.extend(Some(bytes.to_vec()).filter(|rest| !rest.is_empty()));
    records
}
