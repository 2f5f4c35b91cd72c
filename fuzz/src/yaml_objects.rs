//! Text to objects. The first byte of the input chooses: `p` a proxy's own file, anything else documents to apply.
//! Oracles: what was read, written as YAML or JSON and read again is the same; mistakes name their document and field, and
//! their number and length are bounded.

use weft_core::api::{ApiError, Fault, MAX_ERRORS, Object, parse_documents, parse_proxy_file};

use crate::must;

/// Longest text of one mistake, in bytes: a path and a reason of 2000 characters each, and what stands around them.
const MAX_MISTAKE: usize = 4 * (2 * 2001 + 500);

/// Runs the target.
pub fn run(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else { return };
    let Ok(text) = std::str::from_utf8(rest) else { return };
    if *first == b'p' {
        match parse_proxy_file(text) {
            Ok((_, objects)) => again(&objects),
            Err(errors) => judge(&errors, text),
        }
        return;
    }
    match parse_documents(text) {
        Ok(objects) => again(&objects),
        Err(errors) => judge(&errors, text),
    }
}

/// Writes the objects and reads them again.
fn again(objects: &[Object]) {
    for object in objects {
        let json = must(serde_json::to_string(object), "an object that can be written as JSON");
        let yaml = must(serde_norway::to_string(object), "an object that can be written as YAML");
        for text in [&json, &yaml] {
            let read = must(parse_documents(text), "an object that can be read again");
            assert_eq!(read, std::slice::from_ref(object), "{text}");
        }
        let stored: Object = must(serde_json::from_str(&json), "an object that can be stored");
        assert_eq!(&stored, object, "{json}");
        assert!(stored.same_spec(object), "a specification that differs from itself: {json}");
    }
}

/// What holds for mistakes.
fn judge(errors: &[ApiError], text: &str) {
    assert!((1..=MAX_ERRORS + 1).contains(&errors.len()), "{} mistakes", errors.len());
    let documents = 1 + text.lines().filter(|line| line.starts_with("---") || line.starts_with("...")).count();
    for error in errors {
        let shown = error.to_string();
        assert!(shown.len() <= MAX_MISTAKE, "a mistake of {} bytes", shown.len());
        assert!(error.document < documents, "document {} of {documents}", error.document + 1);
        // A document that is no object, or a text without any, has no field to name.
        let whole = error.error.fault == Fault::Syntax
            || ["an object must be a map", "too many errors", "the file is empty"]
                .iter()
                .any(|start| error.error.reason.starts_with(start));
        assert!(whole || !error.error.path.is_empty(), "a mistake without a field: {shown}");
        assert!(!error.error.reason.is_empty(), "a mistake without a reason");
    }
}
