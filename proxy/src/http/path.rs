//! The other ways in which an application may read a path, so that a rule on paths is checked against all of them.
//! Shape: [`readings`] takes the path as sent and gives its other readings: escapes decoded, slashes merged, parameters (`;x`)
//! kept and left out. The path itself is never changed: the bytes sent are the bytes received.
//! Refused, because applications differ too much: an escaped `/`, `\` or control character, a `\`, an overlong UTF-8 form, a dot segment, and
//! bytes escaped more than twice. Spec: RFC 3986 §6.2.2.

/// Times that a path is decoded before it is refused.
const ROUNDS: usize = 3;

/// The other readings of a path; none for a path that is read in one way only.
/// Errors: why no rule on paths can be checked against it.
pub(crate) fn readings(path: &str) -> Result<Vec<String>, &'static str> {
    let odd = |byte: &u8| matches!(byte, b'%' | b';' | b'\\') || !byte.is_ascii();
    if !path.as_bytes().iter().any(odd) && !path.contains("//") && !path.contains("/.") {
        return Ok(Vec::new());
    }
    let mut text = path.to_owned();
    for round in 0.. {
        let next = decoded(&text)?;
        if next == text {
            break;
        }
        if round == ROUNDS {
            return Err("the path is escaped more than twice");
        }
        text = next;
    }
    if is_overlong(text.as_bytes()) {
        return Err("the path holds an overlong or invalid UTF-8 form");
    }
    let name = |segment: &str| segment.split(';').next().unwrap_or_default().to_owned();
    if text.split('/').any(|segment| matches!(name(segment).as_str(), "." | "..")) {
        return Err("the path holds a dot segment");
    }
    let whole = merged(text.split('/').map(str::to_owned));
    let bare = merged(text.split('/').map(name));
    Ok(if whole == bare { vec![whole] } else { vec![whole, bare] })
}

/// A path whose escaped slashes are slashes: what is refused in it is refused on whichever side of one it stands. Slashes
/// that are escaped twice stay.
pub(crate) fn with_slashes(path: &str) -> String {
    path.replace("%2f", "/").replace("%2F", "/")
}

/// Segments as a path without empty ones; a slash at the end stays.
fn merged(segments: impl Iterator<Item = String>) -> String {
    let (mut out, mut last_is_empty) = (String::new(), false);
    for segment in segments {
        last_is_empty = segment.is_empty();
        if !last_is_empty {
            out.push('/');
            out.push_str(&segment);
        }
    }
    if last_is_empty || out.is_empty() {
        out.push('/');
    }
    out
}

/// Decodes escapes of printable ASCII once; writes other escapes in upper case, and other bytes as escapes.
fn decoded(path: &str) -> Result<String, &'static str> {
    let bytes = path.as_bytes();
    let mut out = String::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at).copied() {
        let (value, escaped) = match escape(bytes, at) {
            Some(value) => (value, true),
            None => (byte, false),
        };
        at += if escaped { 3 } else { 1 };
        match value {
            b'\\' => return Err("the path holds a backslash"),
            b'/' if escaped => return Err("the path holds an escaped slash"),
            0..=0x1f | 0x7f => return Err("the path holds a control character"),
            // `%25` that is followed by two digits is an escape of an escape.
            b'%' if escaped && !followed_by_digits(bytes, at) => out.push_str("%25"),
            0x21..=0x7e => out.push(char::from(value)),
            _ => out.push_str(&format!("%{value:02X}")),
        }
    }
    Ok(out)
}

/// The octet that is escaped at this place.
fn escape(bytes: &[u8], at: usize) -> Option<u8> {
    let digit = |index: usize| bytes.get(index).and_then(|byte| char::from(*byte).to_digit(16));
    let (high, low) = (digit(at + 1)?, digit(at + 2)?);
    (bytes.get(at) == Some(&b'%')).then(|| u8::try_from(high * 16 + low).ok()).flatten()
}

fn followed_by_digits(bytes: &[u8], at: usize) -> bool {
    bytes.get(at..at + 2).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
}

/// Whether the octets hold bytes that no UTF-8 text has: characters in more bytes than they need (RFC 3629 §3).
fn is_overlong(path: &[u8]) -> bool {
    let mut octets = Vec::with_capacity(path.len());
    let mut at = 0;
    while let Some(byte) = path.get(at) {
        let value = escape(path, at);
        octets.push(value.unwrap_or(*byte));
        at += if value.is_some() { 3 } else { 1 };
    }
    let pair = |pair: &[u8]| matches!(pair, [0xe0, 0x80..=0x9f] | [0xf0, 0x80..=0x8f]);
    octets.iter().any(|octet| matches!(octet, 0xc0 | 0xc1 | 0xf5..=0xff)) || octets.windows(2).any(pair)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_reading_of_an_odd_path_is_given() {
        for (path, expected) in [
            ("/admin", &[][..]),
            ("/", &[]),
            ("/a.b/c-d", &[]),
            ("//admin", &["/admin"]),
            ("/%61dmin", &["/admin"]),
            ("/%2561dmin", &["/admin"]),
            ("/x//%61dmin/", &["/x/admin/"]),
            ("/admin;x=1/y", &["/admin;x=1/y", "/admin/y"]),
            ("/;/admin", &["/;/admin", "/admin"]),
            ("/admin%3bx", &["/admin;x", "/admin"]),
            ("/50%25", &["/50%25"]),
            ("/caf%c3%a9", &["/caf%C3%A9"]),
            ("/café", &["/caf%C3%A9"]),
            ("/a%20b", &["/a%20b"]),
        ] {
            assert_eq!(readings(path).unwrap(), expected, "{path}");
        }
    }

    #[test]
    fn what_applications_read_in_different_ways_is_refused() {
        for path in [
            "/x%2fadmin",
            "/x%2Fadmin",
            "/x%5cadmin",
            "/x\\admin",
            "/admin%00",
            "/admin%0a",
            "/admin%09/x",
            "/%250d%250aadmin",
            "/admin%7F",
            "/x%252fadmin",
            "/x%c0%afadmin",
            "/x%e0%80%afadmin",
            "/x%25c0%25afadmin",
            "/./admin",
            "/x/../admin",
            "/x/%2e%2e/admin",
            "/x/.%2e/admin",
            "/%252e/admin",
            "/..;/admin",
            "/..;x=1/admin",
            "/x/..",
            "/%2525252561dmin",
        ] {
            assert!(readings(path).is_err(), "{path}");
        }
    }

    proptest! {
        #[test]
        fn a_reading_has_no_other_reading(path in "(/[%0-9a-f;.A-Zé]{0,8}){1,5}") {
            if let Ok(found) = readings(&path)
                && let Some(bare) = found.last()
            {
                let again = readings(bare).unwrap();
                prop_assert!(again.iter().all(|other| other == bare), "{} -> {} -> {:?}", path, bare, again);
            }
        }
    }
}
