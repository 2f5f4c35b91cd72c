//! Decoding of Huffman code.
//! Shape: the code is canonical (codes of one length are consecutive in the order of their symbols), so the lengths alone define it.
//! One look-up by the next 8 bits decodes every symbol with a code of at most 8 bits, which covers almost all bytes of fields;
//! longer codes are found by comparison with the first code of each length. The tables, 1 KiB, are constants.
//! Spec: RFC 7541 §5.2, appendix B.

use super::Error;

/// Length of the code of each symbol, in bits; the last is EOS.
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28,
    28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12,
    10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6,
    5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22,
    22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20,
    22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28,
    27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28,
    27, 27, 27, 27, 27, 26, 30,
];

const EOS: usize = 256;

/// Length of the longest code, in bits.
const LONGEST: usize = 30;

/// By the next 8 bits: the symbol and the length of its code; length 0 if the code is longer than 8 bits.
static SHORT: [(u8, u8); 256] = short();

/// The codes longer than 8 bits, by length.
static LONG: [Length; LONGEST - 8] = long();

/// Symbols with a code of more than 8 bits, in the order of their codes.
static SYMBOLS: [u16; 257] = symbols();

/// The codes of one length.
#[derive(Clone, Copy)]
struct Length {
    /// First code after them, left-aligned in 32 bits; 0 if no code has this length.
    end: u32,
    /// First of them, left-aligned in 32 bits.
    first: u32,
    /// Index of the first in [`SYMBOLS`].
    index: u16,
}

/// Decodes `code` and appends the bytes to `out`, at most 8/5 of its length.
/// Errors: EOS, or padding that is not the beginning of EOS or has more than 7 bits.
pub(super) fn decode(code: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
    // The shortest code has 5 bits.
    out.reserve(code.len() * 8 / 5);
    let mut rest = code;
    // The next bits, left-aligned; all bits below them are 1, like padding.
    let mut bits = u64::MAX;
    let mut count = 0_u32;
    loop {
        if count < 32 {
            if let Some((word, after)) = rest.split_first_chunk::<4>() {
                rest = after;
                let word = u64::from(u32::from_be_bytes(*word)) << 32;
                bits &= (word | 0xffff_ffff).rotate_right(count);
                count += 32;
            } else {
                while let [byte, after @ ..] = rest
                    && count <= 56
                {
                    rest = after;
                    bits &= (u64::from(*byte) << 56 | (u64::MAX >> 8)).rotate_right(count);
                    count += 8;
                }
            }
        }
        // Short codes first; each round of the outer loop decodes at least one symbol or refills the bits.
        while let Some((symbol, len @ 1..)) = SHORT.get((bits >> 56) as usize).copied()
            && u32::from(len) <= count
        {
            out.push(symbol);
            bits = (bits << len) | ((1 << len) - 1);
            count -= u32::from(len);
        }
        if count < 32 && !rest.is_empty() {
            continue;
        }
        // RFC 7541 §5.2: padding is less than 8 bits, all 1.
        if count < 8 && bits == u64::MAX {
            return Ok(());
        }
        let (symbol, len) = longer((bits >> 32) as u32).ok_or(Error::Huffman)?;
        if len > count {
            return Err(Error::Huffman);
        }
        out.push(symbol);
        bits = (bits << len) | ((1 << len) - 1);
        count -= len;
    }
}

/// The first symbol of the bits and the length of its code, which is longer than 8 bits. `None` for EOS.
fn longer(bits: u32) -> Option<(u8, u32)> {
    let (len, at) = (9_u32..).zip(&LONG).find(|(_, at)| bits < at.end)?;
    let index = (bits.checked_sub(at.first)? >> (32 - len)) as usize + usize::from(at.index);
    Some((u8::try_from(*SYMBOLS.get(index)?).ok()?, len))
}

#[expect(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "evaluated at compile time, where an index out of bounds is an error"
)]
const fn symbols() -> [u16; 257] {
    let mut symbols = [EOS as u16; 257];
    let (mut index, mut len) = (0, 9);
    while len <= LONGEST {
        let mut symbol = 0;
        while symbol < LENGTHS.len() {
            if LENGTHS[symbol] as usize == len {
                symbols[index] = symbol as u16;
                index += 1;
            }
            symbol += 1;
        }
        len += 1;
    }
    symbols
}

#[expect(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "evaluated at compile time, where an index out of bounds is an error"
)]
const fn short() -> [(u8, u8); 256] {
    let mut table = [(0, 0); 256];
    let (mut at, mut len) = (0, 1);
    while len <= 8 {
        let mut symbol = 0;
        while symbol < EOS {
            if LENGTHS[symbol] as usize == len {
                let end = at + (1 << (8 - len));
                while at < end {
                    table[at] = (symbol as u8, len as u8);
                    at += 1;
                }
            }
            symbol += 1;
        }
        len += 1;
    }
    table
}

#[expect(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "evaluated at compile time, where an index out of bounds is an error"
)]
const fn long() -> [Length; LONGEST - 8] {
    let mut table = [Length { end: 0, first: 0, index: 0 }; LONGEST - 8];
    let (mut code, mut index, mut len) = (0_u64, 0, 1);
    while len <= LONGEST {
        let (first, mut count, mut symbol) = (code << (32 - len), 0, 0);
        while symbol < LENGTHS.len() {
            if LENGTHS[symbol] as usize == len {
                count += 1;
            }
            symbol += 1;
        }
        code += count;
        if len > 8 && count > 0 {
            let end = code << (32 - len);
            // The longest codes end with all ones, which is EOS; the bound excludes it, so that it is not found.
            table[len - 9] =
                Length { end: if end > u32::MAX as u64 { u32::MAX } else { end as u32 }, first: first as u32, index };
            index += count as u16;
        }
        code <<= 1;
        len += 1;
    }
    table
}

/// Encodes bit by bit, for tests.
#[cfg(test)]
pub(super) fn encode(text: &[u8]) -> Vec<u8> {
    let mut codes = vec![(0_u64, 0); LENGTHS.len()];
    let (mut code, mut before) = (0, 0);
    let mut order: Vec<_> = LENGTHS.iter().enumerate().map(|(symbol, len)| (*len, symbol)).collect();
    order.sort_unstable();
    for (len, symbol) in order {
        code <<= len - before;
        before = len;
        codes[symbol] = (code, len);
        code += 1;
    }
    let bits: Vec<bool> = text
        .iter()
        .flat_map(|byte| {
            let (code, len) = codes[usize::from(*byte)];
            (0..len).rev().map(move |bit| code >> bit & 1 == 1)
        })
        .collect();
    bits.chunks(8)
        .map(|byte| (0..8).fold(0, |all, bit| all << 1 | u8::from(byte.get(bit).copied().unwrap_or(true))))
        .collect()
}
