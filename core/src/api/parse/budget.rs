//! The cost of reading a YAML document, checked before the YAML library sees it, because that keeps every part of a
//! document in memory before we may say no, and takes quadratic time for some texts.
//! How: one pass over the bytes, which knows no quotes and no comments, so it may count too much, never much too little.

use crate::api::node::MAX_DEPTH;

/// Most documents in one text, empty ones included.
pub const MAX_DOCUMENTS: usize = 20_000;
/// Most parts of one YAML document, counted as [`pieces`] does: lines, list members, fields. A document of 20,000 lines of
/// `field: value` has 40,000. JSON needs no such limit: it is read without being kept.
pub const MAX_PIECES: usize = 300_000;
/// Most lines of one document that start with `%` (YAML 1.2 §6.8): the library compares each directive with all others.
pub const MAX_DIRECTIVES: usize = 8;

/// Why a document must not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BudgetError {
    /// The library looks at every open bracket for each token.
    #[error("deeper than {MAX_DEPTH} levels")]
    Depth,
    #[error("more than {MAX_PIECES} lines, fields and list members in one document; divide it, or use JSON")]
    Pieces,
    #[error("more than {MAX_DIRECTIVES} directives (lines that start with '%')")]
    Directives,
}

/// Judges the nesting of brackets. Those in quoted texts count too: they would have to be unbalanced by more than twice the
/// levels allowed.
pub(super) fn check_depth(chunk: &str) -> Result<(), BudgetError> {
    let mut open = 0usize;
    for byte in chunk.bytes() {
        match byte {
            b'[' | b'{' => open += 1,
            b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        if open > 2 * MAX_DEPTH {
            return Err(BudgetError::Depth);
        }
    }
    Ok(())
}

/// Judges a document that is not JSON.
pub(super) fn check_yaml(chunk: &str) -> Result<(), BudgetError> {
    if pieces(chunk.as_bytes()) > MAX_PIECES {
        return Err(BudgetError::Pieces);
    }
    let is_break = |c: char| matches!(c, '\n' | '\r' | '\u{85}' | '\u{2028}' | '\u{2029}');
    if chunk.split(is_break).filter(|line| line.starts_with('%')).count() > MAX_DIRECTIVES {
        return Err(BudgetError::Directives);
    }
    Ok(())
}

/// About as many as the library's events: a line gives a text; `:` a value; `-` a list or a map, with its end; a bracket
/// the same; `,` a field and its value.
fn pieces(text: &[u8]) -> usize {
    let mut count = 0;
    let mut before = b'\n';
    for (index, byte) in text.iter().copied().enumerate() {
        // An indicator is one when nothing but white space or a bracket follows (YAML 1.2 §7.3.3).
        let stands = || match text.get(index + 1) {
            None => true,
            Some(next) => {
                matches!(next, b' ' | b'\t' | b'\n' | b'\r' | b',' | b'[' | b']' | b'{' | b'}') || *next >= 0x80
            }
        };
        count += match byte {
            b'\n' | b'\r' => 1,
            // The line ends of Unicode: U+0085, U+2028, U+2029.
            0x85 if before == 0xc2 => 1,
            0xa8 | 0xa9 if before == 0x80 => 1,
            b':' if stands() || matches!(before, b'"' | b'\'' | b']' | b'}') => 1,
            b'-' if stands() => 2,
            b'?' if stands() => 4,
            b',' | b'[' => 2,
            b'{' => 3,
            _ => 0,
        };
        before = byte;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_write_a_part_counts() {
        for (text, expected) in [
            ("plain text, with a: b-c http://a:80 [::1]", 5),
            ("a: b\nc:\n", 4),
            ("- a\n- b", 5),
            ("- - - a", 6),
            ("? a", 4),
            ("[a, b]", 4),
            ("{\"a\":1,'b':2}", 7),
            ("a\rb\u{85}c\u{2028}d", 3),
        ] {
            assert_eq!(pieces(text.as_bytes()), expected, "{text}");
        }
    }
}
