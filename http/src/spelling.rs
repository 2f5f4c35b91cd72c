//! The spelling of field names, as a text that HTTP/2 can carry between proxies: HTTP/2 has names in lower case (RFC 9113
//! §8.2.1), and some applications and tools compare names of HTTP/1 as they are written.
//! Shape: [`describe`] gives the text for names that are not all in lower case, [`restore`] applies it at the other side.
//! The text: `c` (each word with a capital, `Content-Type`) or `l` (lower case) for most names, then ` <n>:<Name>` for each
//! other one, `n` names behind the one before. `Host` comes first, fields that HTTP/2 does not carry are left out.

use crate::fields::{Field, Fields, Name};

/// Longest text, in bytes; names that find no room are spelled like most.
pub const MAX_SPELLING: usize = 1024;
/// Digits of a count, a space and a colon.
const MARKS: usize = 6;

/// The spelling of the names; `None`: all are in lower case. `host`: the name of `Host`, where there is one.
pub fn describe(host: Option<&[u8]>, fields: &Fields) -> Option<Vec<u8>> {
    let names = host.into_iter().chain(fields.iter().filter(is_counted).map(|field| field.name));
    let (mut lower, mut capital) = (0_usize, 0_usize);
    for name in names.clone() {
        lower += usize::from(!name.iter().any(u8::is_ascii_uppercase));
        capital += usize::from(is_capitalised(name));
    }
    if lower == names.clone().count() {
        return None;
    }
    let capitalise = capital >= lower;
    let mut text = vec![if capitalise { b'c' } else { b'l' }];
    let mut skipped = 0_usize;
    for name in names {
        let usual = if capitalise { is_capitalised(name) } else { !name.iter().any(u8::is_ascii_uppercase) };
        if usual {
            skipped += 1;
            continue;
        }
        if text.len() + name.len() + MARKS > MAX_SPELLING {
            break;
        }
        text.push(b' ');
        text.extend_from_slice(skipped.to_string().as_bytes());
        text.push(b':');
        text.extend_from_slice(name);
        skipped = 0;
    }
    Some(text)
}

/// Spells the names as a text says. What is malformed in it changes nothing; no letter becomes another.
pub fn restore(text: &[u8], host: Option<&mut [u8]>, fields: &mut Fields) {
    let Some((usual, rest)) = text.split_first() else { return };
    let mut pieces = rest.split(|byte| *byte == b' ').filter_map(piece);
    let mut next = pieces.next();
    let mut spell = |name: &mut [u8]| match &mut next {
        Some((0, spelled)) if spelled.eq_ignore_ascii_case(name) => {
            name.copy_from_slice(spelled);
            next = pieces.next();
        }
        other => {
            if let Some((skip, _)) = other {
                *skip = skip.saturating_sub(1);
            }
            if *usual == b'c' {
                capitalise(name);
            }
        }
    };
    if let Some(host) = host {
        spell(host);
    }
    fields.respell(is_counted, spell);
}

/// ` <n>:<Name>`.
fn piece(text: &[u8]) -> Option<(usize, &[u8])> {
    let colon = text.iter().position(|byte| *byte == b':')?;
    let count = std::str::from_utf8(text.get(..colon)?).ok()?.parse().ok()?;
    Some((count, text.get(colon + 1..)?))
}

fn is_counted(field: &Field<'_>) -> bool {
    field.known != Name::Reserved && field.is_carried()
}

fn is_capitalised(name: &[u8]) -> bool {
    let mut start = true;
    name.iter().all(|byte| {
        let fits = if start { !byte.is_ascii_lowercase() } else { !byte.is_ascii_uppercase() };
        start = *byte == b'-';
        fits
    })
}

fn capitalise(name: &mut [u8]) {
    let mut start = true;
    for byte in name {
        if start {
            byte.make_ascii_uppercase();
        }
        start = *byte == b'-';
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fields(names: &[&str]) -> Fields {
        names.iter().map(|name| (*name, "1")).collect()
    }

    #[test]
    fn usual_names_cost_a_letter_and_lower_case_nothing() {
        for (host, names, expected) in [
            (Some("host"), &["accept", "x-a"][..], None),
            (None, &[], None),
            (Some("Host"), &["User-Agent", "Accept", "X-A"], Some("c")),
            (Some("host"), &["a", "b", "X-Request-ID"], Some("l 3:X-Request-ID")),
            (
                None,
                &["Content-Type", "ETag", "Date", "WWW-Authenticate", "dnt"],
                Some("c 1:ETag 1:WWW-Authenticate 0:dnt"),
            ),
            // What HTTP/2 does not carry is not counted, nor are reserved fields.
            (None, &["Connection", "weft-error", "Keep-Alive", "ETag", "A"], Some("c 0:ETag")),
        ] {
            let text = describe(host.map(str::as_bytes), &fields(names)).map(|text| String::from_utf8(text).unwrap());
            assert_eq!(text.as_deref(), expected, "{names:?}");
        }
    }

    #[test]
    fn a_text_that_does_not_fit_changes_no_letter() {
        for text in
            ["", "c", "x", "c 0:", "c :A", "l 0:zz", "l 9999999999999999999999:A", "c 0:A 0:A 0:A", " ", "l 5:A"]
        {
            let mut all = fields(&["a", "b-c"]);
            let mut host = *b"host";
            restore(text.as_bytes(), Some(&mut host), &mut all);
            assert!(host.eq_ignore_ascii_case(b"host"), "{text}");
            assert!(
                all.iter().map(|field| field.name.to_ascii_lowercase()).eq([b"a".to_vec(), b"b-c".to_vec()]),
                "{text}"
            );
        }
    }

    #[test]
    fn names_that_find_no_room_are_spelled_like_most() {
        let names: Vec<String> = (0..100).map(|index| format!("x{}Y-{index}", "z".repeat(30))).collect();
        let all = fields(&names.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(describe(None, &all).unwrap().len() <= MAX_SPELLING);
    }

    proptest! {
        #[test]
        fn names_come_back_as_they_were(
            host in prop::option::of("[Hh][Oo][Ss][Tt]"),
            names in prop::collection::vec("[A-Za-z0-9]{1,6}(-[A-Za-z]{1,6}){0,2}", 0..12),
        ) {
            let before = fields(&names.iter().map(String::as_str).collect::<Vec<_>>());
            let text = describe(host.as_ref().map(String::as_bytes), &before);
            let lower: Vec<String> = names.iter().map(|name| name.to_ascii_lowercase()).collect();
            let mut after = fields(&lower.iter().map(String::as_str).collect::<Vec<_>>());
            let mut told = host.clone().map(|host| host.to_ascii_lowercase().into_bytes());
            if let Some(text) = text {
                restore(&text, told.as_deref_mut(), &mut after);
            }
            // A field that HTTP/2 does not carry keeps no spelling.
            let carried = |fields: &Fields| -> Vec<Vec<u8>> { fields.iter().filter(is_counted).map(|field| field.name.to_vec()).collect() };
            prop_assert_eq!(carried(&after), carried(&before));
            prop_assert_eq!(told, host.map(String::into_bytes));
        }
    }
}
