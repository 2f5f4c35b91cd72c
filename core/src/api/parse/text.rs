//! A text -> its documents as bounded trees.
//! YAML is cut at its `---` lines first, so that a syntax error in one document hides no mistake in another (YAML 1.2
//! §9.1: a line that starts with `---` is a document's start even inside a scalar).

use serde_json::error::Category;

use super::{
    MAX_TEXT,
    budget::{self, MAX_DOCUMENTS},
};
use crate::api::node::Node;

/// The documents of a text, empty ones left out; each a tree or why it is none.
pub(super) fn documents(text: &str) -> impl Iterator<Item = Result<Node, String>> {
    let too_large = (text.len() > MAX_TEXT).then(|| Err(format!("larger than {} MiB", MAX_TEXT / 1024 / 1024)));
    let text = if too_large.is_some() { "" } else { text };
    let documents = chunks(text).take(MAX_DOCUMENTS).filter(|(_, chunk)| !is_empty(chunk));
    let too_many = chunks(text).nth(MAX_DOCUMENTS).map(|_| Err(format!("more than {MAX_DOCUMENTS} documents")));
    too_large.into_iter().chain(too_many).chain(documents.map(|(line, chunk)| read(line, chunk)))
}

/// The document at an index of [`documents`], with the number of lines before it.
pub(super) fn document(text: &str, index: usize) -> Option<(usize, &str)> {
    let (line, chunk) = chunks(text).filter(|(_, chunk)| !is_empty(chunk)).nth(index)?;
    Some((line, chunk.strip_prefix("...").unwrap_or(chunk)))
}

/// Cuts a text at its document markers. With each piece the number of lines before it.
fn chunks(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut rest = Some(text.strip_prefix('\u{feff}').unwrap_or(text));
    let mut line = 0;
    std::iter::from_fn(move || {
        let all = rest?;
        let (mut at, mut lines) = (0, 0);
        for row in all.split_inclusive('\n') {
            let bare = row.trim_end();
            if at > 0 && (bare == "---" || bare == "..." || row.starts_with("--- ")) {
                break;
            }
            at += row.len();
            lines += 1;
        }
        let (chunk, tail) = all.split_at(at);
        rest = (!tail.is_empty()).then_some(tail);
        let start = line;
        line += lines;
        Some((start, chunk))
    })
}

/// Whether there is nothing but comments and markers.
fn is_empty(chunk: &str) -> bool {
    chunk.lines().all(|line| {
        let line = line.trim();
        line.is_empty() || line.starts_with('#') || matches!(line, "---" | "...")
    })
}

fn read(line: usize, chunk: &str) -> Result<Node, String> {
    budget::check_depth(chunk).map_err(|error| error.to_string())?;
    if chunk.trim_start().starts_with('{') {
        match serde_json::from_str(chunk) {
            Ok(node) => return Ok(node),
            // Well-formed, and too large for us: YAML would say the same at a higher price.
            Err(error) if error.classify() == Category::Data => return Err(shift_lines(&error.to_string(), line)),
            Err(_) => {}
        }
    }
    budget::check_yaml(chunk).map_err(|error| error.to_string())?;
    let chunk = chunk.strip_prefix("...").unwrap_or(chunk);
    serde_norway::from_str(chunk).map_err(|error| shift_lines(&error.to_string(), line))
}

/// Makes the `line N` of a message count from the start of the whole text.
fn shift_lines(message: &str, offset: usize) -> String {
    let mut shifted = String::new();
    for (index, part) in message.split("at line ").enumerate() {
        if index == 0 {
            shifted.push_str(part);
            continue;
        }
        let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        let (number, tail) = part.split_at(digits);
        match number.parse::<usize>() {
            Ok(number) => shifted.push_str(&format!("at line {}{tail}", number.saturating_add(offset))),
            Err(_) => shifted.push_str(&format!("at line {part}")),
        }
    }
    shifted
}
