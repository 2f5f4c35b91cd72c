//! Text of others on a terminal: without characters that move the cursor, change colours or reverse the order of letters.

use std::borrow::Cow;

/// Whether a character must not reach a terminal: control characters (C0, DEL, C1), and the invisible ones that reorder text or
/// end a line (Unicode TR 36 §3.2: bidirectional controls; U+2028, U+2029).
pub fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// One line: every such character, newlines too, as `?`.
pub fn clean(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unprintable) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.chars().map(|c| if is_unprintable(c) { '?' } else { c }).collect())
}

/// Several lines: the same without newlines.
pub fn clean_lines(text: &str) -> String {
    text.split('\n').map(clean).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (35)
    #[test]
    fn what_moves_the_cursor_or_reorders_text_is_shown_as_a_question_mark() {
        assert_eq!(clean("a\x1b[2Jb\r\n\t\u{9b}31m\u{202e}x\u{2066}\u{7f}é漢"), "a?[2Jb???".to_owned() + "?31m?x??é漢");
        assert!(matches!(clean("naïve – ok"), Cow::Borrowed(_)));
        assert_eq!(clean_lines("a\n\x1bb\n"), "a\n?b\n");
    }
}
