//! Prints responses: JSON and YAML unchanged; tables, ages and times for terminals.
//! A closed pipe (`weft get … | head`) is not an error.

use std::io::{self, Write as _};

use jiff::{SpanRound, Timestamp, Unit};
use serde::Serialize;
use serde_json::{Value, json};

use weft_core::text::is_unprintable;

use crate::{args::Format, style::Style, table::Table};

/// Prints JSON or YAML, or the lines of `table`. YAML with characters that a terminal obeys is printed as JSON, which is YAML too and
/// escapes them.
///
/// Errors: standard output is closed or full.
pub fn print(format: Format, value: &Value, table: impl FnOnce(&Value) -> Vec<String>) -> io::Result<()> {
    match format {
        Format::Json => lines(&[escaped(&serde_json::to_string_pretty(value)?)]),
        Format::Yaml => match yaml(value)?.trim_end() {
            text if text.contains(|c| c != '\n' && is_unprintable(c)) => print(Format::Json, value, table),
            text => lines(&[text.to_owned()]),
        },
        Format::Table => lines(&table(value)),
    }
}

/// JSON without characters that a terminal obeys: as escapes, which mean the same in a string (RFC 8259 §7). Outside of strings
/// there are none.
fn escaped(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if c != '\n' && is_unprintable(c) {
            out.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            out.push(c);
        }
    }
    out
}

/// Objects as a `v1 List`, which `apply` accepts.
pub fn list(items: Vec<Value>, revision: u64) -> Value {
    json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": revision.to_string()}, "items": items})
}

/// A value as YAML.
///
/// Errors: none for JSON values.
pub fn yaml(value: &impl Serialize) -> io::Result<String> {
    serde_norway::to_string(value).map_err(io::Error::other)
}

/// Prints lines to standard output.
///
/// Errors: standard output is full. A closed pipe ends the output without an error.
pub fn lines(lines: &[String]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let result = lines.iter().try_for_each(|line| writeln!(out, "{line}")).and_then(|()| out.flush());
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// The lines of a table, or the line `nothing` if it has no rows.
pub fn table_or(table: &Table, nothing: &str) -> Vec<String> {
    if table.is_empty() { vec![nothing.to_owned()] } else { table.render(Style::stdout()) }
}

/// Time since `time`, in one or two units: `45s`, `3m`, `5h12m`, `12d`. Empty if the value is not a time.
pub fn age(time: &Value, now: Timestamp) -> String {
    timestamp(time).map(|time| span(now.as_second().saturating_sub(time.as_second()))).unwrap_or_default()
}

/// Time until `time`, in the same form; `expired` if it has passed.
pub fn until(time: &Value, now: Timestamp) -> String {
    let left = timestamp(time).map(|time| time.as_second().saturating_sub(now.as_second()));
    left.map(|left| if left <= 0 { "expired".to_owned() } else { span(left) }).unwrap_or_default()
}

/// A time, rounded to seconds.
pub fn time(time: &Value) -> String {
    let rounded = timestamp(time).and_then(|time| time.round(Unit::Second).ok());
    rounded.map(|time| time.to_string()).unwrap_or_default()
}

fn timestamp(value: &Value) -> Option<Timestamp> {
    match value {
        Value::String(text) => text.parse().ok(),
        Value::Number(seconds) => Timestamp::from_second(seconds.as_i64()?).ok(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

fn span(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let smallest = match seconds {
        0..60 => Unit::Second,
        60..86_400 => Unit::Minute,
        _ => Unit::Hour,
    };
    let options =
        SpanRound::new().largest(Unit::Day).smallest(smallest).mode(jiff::RoundMode::Trunc).days_are_24_hours();
    let Ok(span) = jiff::Span::new().seconds(seconds).round(options) else { return String::new() };
    let parts = [
        (i64::from(span.get_days()), "d"),
        (i64::from(span.get_hours()), "h"),
        (span.get_minutes(), "m"),
        (span.get_seconds(), "s"),
    ];
    let text: String =
        parts.iter().filter(|(count, _)| *count > 0).take(2).map(|(count, unit)| format!("{count}{unit}")).collect();
    if text.is_empty() { "0s".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (35)
    #[test]
    fn json_keeps_what_it_says_and_nothing_of_it_moves_the_cursor() {
        let value = json!({"message": "a\u{1b}[2J\u{9b}31m\u{202e}\u{7f}\n"});
        let text = escaped(&serde_json::to_string_pretty(&value).unwrap());
        assert!(!text.contains(|c| c != '\n' && is_unprintable(c)), "{text:?}");
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
    }

    #[test]
    fn ages_are_short() {
        let now: Timestamp = "2026-01-10T12:00:00Z".parse().unwrap();
        for (time, wanted) in [
            ("2026-01-10T12:00:00Z", "0s"),
            ("2026-01-10T11:59:15.9Z", "45s"),
            ("2026-01-10T11:56:30Z", "3m"),
            ("2026-01-10T06:48:00Z", "5h12m"),
            ("2026-01-08T11:59:00Z", "2d"),
            ("2026-01-08T10:59:00Z", "2d1h"),
            ("2026-01-10T12:00:09Z", "0s"),
            ("yesterday", ""),
        ] {
            assert_eq!(age(&json!(time), now), wanted, "{time}");
        }
        assert_eq!(until(&json!("2026-01-11T11:30:00Z"), now), "23h30m");
        assert_eq!(until(&json!("2026-01-10T11:30:00Z"), now), "expired");
        assert_eq!(until(&Value::Null, now), "");
        assert_eq!(time(&json!("2026-01-10T11:59:15.4Z")), "2026-01-10T11:59:15Z");
    }
}
