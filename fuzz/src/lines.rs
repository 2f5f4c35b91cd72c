//! A naive reading of HTTP/1 lines, to compare the parser with: no state, no limits, only the grammar of RFC 9112.

/// One field line: name, value without the white space around it.
pub(crate) type Line<'a> = (&'a [u8], &'a [u8]);

/// Splits a section of whole lines into the first line and fields. Panics where RFC 9112 leaves two readers a choice: a line end
/// other than CRLF, a folded line, white space in a name, a control character.
/// `section` ends with its empty line; `first` says whether a start line precedes the fields.
pub(crate) fn split(section: &[u8], first: bool) -> (&[u8], Vec<Line<'_>>) {
    let text = section.strip_suffix(b"\r\n").unwrap_or_default();
    assert!(text.is_empty() || text.ends_with(b"\r\n"), "the section does not end with an empty line");
    let mut lines = text.split_inclusive(|byte| *byte == b'\n').map(|line| {
        let line = line.strip_suffix(b"\r\n").unwrap_or(b"\n");
        assert!(
            !line.iter().any(|byte| matches!(byte, 0..=8 | 10..=31 | 127)),
            "a control character was accepted: {}",
            line.escape_ascii()
        );
        line
    });
    let start = if first { lines.next().unwrap_or_default() } else { b"" };
    let fields = lines.map(|line| {
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or_default();
        let (name, value) = line.split_at(colon);
        let token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
        assert!(!name.is_empty() && name.iter().all(token), "a field name was accepted: {}", line.escape_ascii());
        (name, trim(value.get(1..).unwrap_or_default()))
    });
    (start, fields.collect())
}

/// Values of a name.
pub(crate) fn named<'a>(fields: &[Line<'a>], name: &str) -> Vec<&'a [u8]> {
    fields.iter().filter(|(other, _)| other.eq_ignore_ascii_case(name.as_bytes())).map(|(_, value)| *value).collect()
}

/// Without spaces and tabs around it.
pub(crate) fn trim(value: &[u8]) -> &[u8] {
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let start = value.iter().position(|byte| !is_blank(byte)).unwrap_or(value.len());
    let end = value.iter().rposition(|byte| !is_blank(byte)).map_or(start, |end| end + 1);
    value.get(start..end).unwrap_or_default()
}
