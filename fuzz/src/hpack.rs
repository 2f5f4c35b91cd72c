//! HPACK. The first byte of the input is `d` or `e`.
//! `d`: header blocks for the decoder, each behind a byte with its length (0: all that is left).
//! `e`: fields for the encoder, see [`Script`].
//! Oracles: the decoder of loona-hpack, for fields, errors and the dynamic table at the end; what was encoded decodes to the same
//! in both decoders; the table of a decoder stays within its limit.
//! Spec: RFC 7541.

use weft_http::{
    fields::Name,
    hpack::{Decoder, Encoder, Error},
};

use crate::{must, some};

/// Size of the dynamic table that the protocol begins with.
const TABLE: usize = 4096;
/// First index of the dynamic table.
const FIRST_DYNAMIC: u8 = 62;

type Field = (Vec<u8>, Vec<u8>);

/// Runs the target.
pub fn run(bytes: &[u8]) {
    match bytes.split_first() {
        Some((b'd', blocks)) => decode(blocks),
        Some((b'e', script)) => encode(script),
        _ => {}
    }
}

/// Our decoder and the other one, kept in step.
struct Decoders {
    ours: Decoder,
    other: loona_hpack::Decoder<'static>,
}

impl Decoders {
    fn new() -> Self {
        let mut other = loona_hpack::Decoder::new();
        other.set_max_allowed_table_size(TABLE);
        Self { ours: Decoder::new(TABLE), other }
    }

    /// Decodes a block in both. `None` after an error, which ends the connection.
    fn block(&mut self, block: &[u8]) -> Option<Vec<Field>> {
        let mut fields = Vec::new();
        let ours = self.ours.decode(block, |known, name, value| {
            let expected = if name.starts_with(b":") { Name::Other } else { Name::of(name) };
            assert_eq!(known, expected, "{} is recognised as another name", name.escape_ascii());
            fields.push((name.to_vec(), value.to_vec()));
            Ok::<(), ()>(())
        });
        let mut others = Vec::new();
        let other =
            self.other.decode_with_cb(block, |name, value| others.push((name.into_owned(), value.into_owned())));
        // The other decoder refuses a block of size updates alone, which the RFC allows, after it has followed them.
        let agree = matches!(other, Ok(()) | Err(loona_hpack::decoder::DecoderError::SizeUpdateAtEnd));
        match ours {
            Ok(taken) => {
                assert_eq!(taken, Ok(()));
                assert!(agree, "accepted what another decoder refuses: {other:?}");
                assert_eq!(fields, others, "the fields differ");
                Some(fields)
            }
            // Limits of ours.
            Err(Error::SizeUpdate | Error::Integer) => None,
            Err(error) => {
                assert!(!agree, "{error:?}, but another decoder accepts it");
                None
            }
        }
    }

    /// Reads the dynamic tables out, newest entry first, and asserts that they agree and stay within `limit`.
    fn check_tables(&mut self, limit: usize) {
        let mut size = 0;
        for place in 0..=TABLE / 32 {
            let mut block = Vec::new();
            // An indexed field: the index with a prefix of 7 bits.
            match FIRST_DYNAMIC.checked_add(u8::try_from(place).unwrap_or(u8::MAX)).filter(|index| *index < 127) {
                Some(index) => block.push(0x80 | index),
                None => block.extend([0xff, u8::try_from(place - 65).unwrap_or(u8::MAX)]),
            }
            let Some(fields) = self.block(&block) else { break };
            assert!(place < limit / 32, "more entries than the table may have");
            size += fields.iter().map(|(name, value)| name.len() + value.len() + 32).sum::<usize>();
        }
        assert!(size <= limit, "a table of {size} bytes, allowed are {limit}");
    }
}

fn decode(mut blocks: &[u8]) {
    let mut decoders = Decoders::new();
    while let Some((len, rest)) = blocks.split_first() {
        let len = if *len == 0 { rest.len() } else { usize::from(*len).min(rest.len()) };
        let (block, after) = rest.split_at(len);
        blocks = after;
        if decoders.block(block).is_none() {
            return;
        }
        // A consumer that refuses leaves the table in step all the same.
    }
    refused_in_step(&mut decoders);
    decoders.check_tables(TABLE);
}

/// A head that its reader refuses changes the table as one that it takes.
fn refused_in_step(decoders: &mut Decoders) {
    let block = [0x40, 1, b'a', 1, b'b', 0x40, 0x81, 0x1f, 1, b'd', 0x82];
    let refused = must(decoders.ours.decode(&block, |_, _, _| Err(())), "a valid block");
    assert_eq!(refused, Err(()));
    must(decoders.other.decode(&block), "a valid block in the other decoder");
}

/// What an input says to the encoder: one step a byte, some with operands.
struct Script<'a>(&'a [u8]);

enum Step {
    /// Ends the block.
    End,
    /// The peer's table size.
    Limit(usize),
    Status(u16),
    Field(Vec<u8>, Vec<u8>),
}

/// Names that the encoder treats in different ways.
const NAMES: [&str; 16] = [
    ":method",
    ":path",
    ":authority",
    ":scheme",
    "accept",
    "authorization",
    "cookie",
    "content-length",
    "set-cookie",
    "user-agent",
    "x-forwarded-for",
    "weft-client-id",
    "etag",
    "X-Mixed",
    "traceparent",
    "vary",
];

impl Script<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn text(&mut self) -> Option<Vec<u8>> {
        let len = usize::from(self.byte()?);
        // A large length stands for a value that fills the table.
        if len >= 0xf0 {
            return Some(vec![b'v'; len * 20]);
        }
        let (text, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        Some(text.to_vec())
    }

    fn step(&mut self) -> Option<Step> {
        Some(match self.byte()? {
            b'.' => Step::End,
            b'L' => Step::Limit(usize::from(self.byte()?) * 33),
            b'S' => Step::Status(100 + u16::from(self.byte()?) * 3),
            b'F' => Step::Field(self.text()?, self.text()?),
            known => {
                let name = some(NAMES.get(usize::from(known) % NAMES.len()), "a name");
                Step::Field(name.as_bytes().to_vec(), self.text()?)
            }
        })
    }
}

fn encode(script: &[u8]) {
    let mut script = Script(script);
    let (mut encoder, mut decoders) = (Encoder::new(), Decoders::new());
    // The announced size and the smallest since the last block; the table in use never exceeds the first.
    let mut limit = TABLE;
    loop {
        let (mut block, mut expected, mut over) = (Vec::new(), Vec::<Field>::new(), false);
        encoder.begin(&mut block);
        loop {
            match script.step() {
                None => over = true,
                Some(Step::End) => {}
                Some(Step::Limit(size)) => {
                    // Follows with the next block.
                    encoder.limit(size);
                    limit = size.min(TABLE);
                }
                Some(Step::Status(status)) => {
                    encoder.status(status, &mut block);
                    expected.push((b":status".to_vec(), status.to_string().into_bytes()));
                    continue;
                }
                Some(Step::Field(name, value)) => {
                    let known = if name.starts_with(b":") { Name::Other } else { Name::of(&name) };
                    encoder.field(known, &name, &value, &mut block);
                    expected.push((name.to_ascii_lowercase(), value));
                    continue;
                }
            }
            break;
        }
        let decoded = some(decoders.block(&block), "an encoded block that decodes");
        assert_eq!(decoded, expected, "other fields than were encoded");
        if over {
            // The last limit is in force after a block of its own.
            let mut block = Vec::new();
            encoder.begin(&mut block);
            some(decoders.block(&block), "a block of size updates");
            return decoders.check_tables(limit);
        }
    }
}
