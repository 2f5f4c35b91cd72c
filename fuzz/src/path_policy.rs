//! Paths and the policy that judges them. The first byte of the input chooses a policy, see [`policy`]; the rest is the path as
//! a caller sends it.
//! Oracle: naive applications, which decode escapes, merge slashes, drop parameters, turn backslashes and resolve dot segments
//! in every order. Where a request passes, no rule that denies matches what any of them reads, and the rule that allows matches
//! all of it. The engine of core agrees with its model on every reading.
//! Spec: RFC 3986 §5.2.4, §6.2.2.

use std::collections::BTreeSet;

use weft_core::policy::{Authorization, Decision, Engine, Operation, PathPattern, Principal, Request, Rule};
use weft_http::{
    fields::Fields,
    head::{self, Version},
};
use weft_proxy::fuzzing;

use crate::must;

/// Steps of an application beyond the first reading.
const DEPTH: usize = 4;
/// Readings that are followed: more only cost time.
const MOST: usize = 200;
/// Longest path of a run, in bytes.
const LONGEST: usize = 256;

/// Runs the target.
pub fn run(bytes: &[u8]) {
    let Some((first, path)) = bytes.split_first() else { return };
    if path.len() > LONGEST {
        return;
    }
    // Only what the parsers let in gets to the policy.
    let Ok(head) = head::Request::new(Version::Http11, b"GET", path, None, Fields::default()) else { return };
    let path = head.path();
    let denies = first.is_multiple_of(2);
    let authorization = policy(*first);
    let engine = Engine::new(&authorization);
    let passes = |path: &str| {
        let request = Request { identity: None, port: 80, http: Some(("GET", path)) };
        let (decision, naive) = (engine.check(&request), authorization.check(&request));
        assert_eq!(decision, naive, "the engine differs from the model about {path}");
        matches!(decision, Decision::Allow(_))
    };
    let readings = fuzzing::readings(path);
    let allowed = fuzzing::authorize(&engine, path).is_ok();
    if let Ok(readings) = &readings {
        for reading in readings {
            let again = must(fuzzing::readings(reading), "a reading that can be read");
            assert!(again.iter().all(|other| readings.contains(other)), "{path} reads {readings:?}, then {again:?}");
        }
    }
    if !allowed {
        return;
    }
    for reading in applications(path) {
        // Parameters that one application keeps are not in the patterns, so a rule may allow only what begins like it.
        let exact = !reading.contains(';');
        assert!(
            if denies { passes(&reading) } else { passes(&reading) || !exact },
            "{path} passed, and an application reads {reading}"
        );
    }
}

/// The policies: the even ones deny, the odd ones allow.
fn policy(number: u8) -> Authorization {
    let patterns = match number / 2 % 4 {
        0 => vec![PathPattern::Prefix("/admin".into())],
        1 => vec![PathPattern::Exact("/admin".into()), PathPattern::Exact("/".into())],
        2 => vec![PathPattern::Prefix("/a/".into()), PathPattern::Exact("/a".into())],
        _ => vec![PathPattern::Prefix("/a/b/c".into()), PathPattern::Exact("/admin/x".into())],
    };
    let to = vec![Operation { paths: patterns, ..Operation::default() }];
    let rule = Rule { name: "fuzz/policy#0".into(), from: vec![Principal::Any], to };
    if number.is_multiple_of(2) {
        Authorization { deny: vec![rule], allow: None }
    } else {
        Authorization { deny: Vec::new(), allow: Some(vec![rule]) }
    }
}

/// What applications may take a path for.
fn applications(path: &str) -> BTreeSet<String> {
    let mut all = BTreeSet::from([path.to_owned()]);
    let mut last = vec![path.to_owned()];
    for _ in 0..DEPTH {
        let mut next = Vec::new();
        for reading in &last {
            for step in [decode, merge, without_parameters, backslashes, without_dots] {
                let read = step(reading);
                if all.len() < MOST && all.insert(read.clone()) {
                    next.push(read);
                }
            }
        }
        last = next;
    }
    all
}

/// Decodes escapes of ASCII once, printable or not.
fn decode(path: &str) -> String {
    let mut out = String::new();
    let mut rest = path;
    while let Some(first) = rest.chars().next() {
        let octet = rest.get(..3).and_then(|escape| escape.strip_prefix('%'));
        let octet = octet.filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        match octet.and_then(|digits| u8::from_str_radix(digits, 16).ok()).filter(u8::is_ascii) {
            Some(octet) => {
                out.push(char::from(octet));
                rest = rest.get(3..).unwrap_or_default();
            }
            None => {
                out.push(first);
                rest = rest.get(first.len_utf8()..).unwrap_or_default();
            }
        }
    }
    out
}

fn merge(path: &str) -> String {
    let mut out = String::new();
    for character in path.chars().filter(|character| *character != '\0') {
        if character != '/' || !out.ends_with('/') {
            out.push(character);
        }
    }
    out
}

fn without_parameters(path: &str) -> String {
    let segments: Vec<&str> = path.split('/').map(|segment| segment.split(';').next().unwrap_or_default()).collect();
    segments.join("/")
}

fn backslashes(path: &str) -> String {
    path.replace('\\', "/")
}

/// Resolves dot segments (RFC 3986 §5.2.4).
fn without_dots(path: &str) -> String {
    let mut out: Vec<&str> = Vec::new();
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    let dot_at_the_end = matches!(segments.last(), Some(&("." | "..")));
    for segment in segments {
        match segment {
            "." => {}
            ".." => drop(out.pop()),
            _ => out.push(segment),
        }
    }
    format!("/{}{}", out.join("/"), if dot_at_the_end && !out.is_empty() { "/" } else { "" })
}
