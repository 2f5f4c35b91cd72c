//! The access log: one JSON line for each request or connection that the policy asks for, written by one task, never
//! waiting: when the reader of our output is slow, lines are dropped and counted.
//! Invariant: a line is JSON, and text from a peer in it can neither end it nor steer a terminal: what serde_json leaves
//! as it is (DEL, C1, U+2028, U+2029) is escaped too. Queries and user information are left out: secrets travel in them.
//!
//! # Defaults
//! A line is written at once; lines of the 20 ms after a write go together with the next one. 4,096 lines may wait.

use std::{
    io::{self, Write},
    time::Duration,
};

use serde::{Serialize, Serializer};
use serde_json::ser::{CompactFormatter, Formatter};
use tokio::{
    io::{AsyncWrite, AsyncWriteExt, stdout},
    sync::mpsc,
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use weft_core::listener::AccessLog as Policy;

use super::metrics::Metrics;

/// Lines that may wait to be written.
const QUEUE: usize = 4_096;
/// The pause between two writes: without it each line costs a wake-up.
const PAUSE: Duration = Duration::from_millis(20);
/// After so many bytes a write follows without a pause.
const WRITTEN_AT_ONCE: usize = 64 * 1024;

/// The sending end; one per worker.
#[derive(Clone, Debug)]
pub struct AccessLog {
    lines: mpsc::Sender<Vec<u8>>,
    end: CancellationToken,
}

/// One line. Empty and absent fields are left out.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Line<'a> {
    pub(super) time: String,
    pub(super) direction: &'static str,
    pub(super) protocol: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub(super) method: &'a str,
    /// Written without user information.
    #[serde(skip_serializing_if = "str::is_empty", serialize_with = "without_user")]
    pub(super) authority: &'a str,
    /// Written without its query.
    #[serde(skip_serializing_if = "str::is_empty", serialize_with = "without_query")]
    pub(super) path: &'a str,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) status: u16,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub(super) flag: &'a str,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) source: String,
    pub(super) source_identity: Option<&'a str>,
    pub(super) destination: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub(super) cluster: &'a str,
    pub(super) endpoint: Option<String>,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub(super) route: &'a str,
    pub(super) attempts: u32,
    pub(super) security: &'static str,
    pub(super) duration_us: u64,
    pub(super) bytes_sent: u64,
    pub(super) bytes_received: u64,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub(super) traceparent: &'a str,
}

fn is_zero(number: &u16) -> bool {
    *number == 0
}

fn without_user<S: Serializer>(authority: &&str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(authority.rsplit_once('@').map_or(*authority, |(_, host)| host))
}

fn without_query<S: Serializer>(path: &&str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(path.split_once('?').map_or(*path, |(path, _)| path))
}

/// JSON in which no text has a character that ends a line or steers a terminal.
struct Escaping;

impl Formatter for Escaping {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        if fragment.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            return CompactFormatter.write_string_fragment(writer, fragment);
        }
        let mut rest = fragment;
        while let Some((at, found)) = rest.char_indices().find(|(_, found)| is_steering(*found)) {
            let (before, after) = rest.split_at(at);
            CompactFormatter.write_string_fragment(writer, before)?;
            // All of them are in the first plane: one escape each.
            write!(writer, "\\u{:04x}", u32::from(found))?;
            rest = after.get(found.len_utf8()..).unwrap_or_default();
        }
        CompactFormatter.write_string_fragment(writer, rest)
    }
}

/// Control characters, line and paragraph separators, and what turns the direction of writing.
fn is_steering(found: char) -> bool {
    found.is_control() || matches!(found, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

impl Line<'_> {
    /// The line, with its end.
    fn line(&self) -> Option<Vec<u8>> {
        let mut line = Vec::with_capacity(512);
        self.serialize(&mut serde_json::Serializer::with_formatter(&mut line, Escaping)).ok()?;
        line.push(b'\n');
        Some(line)
    }
}

/// Whether the policy asks for a line about something that ended so.
pub(super) fn wanted(policy: Policy, status: u16, failed: bool) -> bool {
    match policy {
        Policy::Off => false,
        Policy::Errors => failed || status >= 500,
        Policy::All => true,
    }
}

impl AccessLog {
    /// Starts the writer to standard output on the current runtime.
    pub fn start() -> Self {
        Self::to(stdout())
    }

    /// The same to somewhere else.
    pub fn to(out: impl AsyncWrite + Send + Unpin + 'static) -> Self {
        let (lines, queue) = mpsc::channel(QUEUE);
        let end = CancellationToken::new();
        tokio::spawn(write(out, queue, end.clone()));
        Self { lines, end }
    }

    /// Ends the log; ready when all lines are written.
    pub(crate) async fn end(&self) {
        self.end.cancel();
        self.lines.closed().await;
    }

    /// Hands a line to the writer.
    pub(super) fn write(&self, line: &Line<'_>, metrics: &Metrics) {
        let Some(line) = line.line() else { return };
        if self.lines.try_send(line).is_err() {
            metrics.event("weft_access_log_dropped_total", &[]);
        }
    }
}

/// Writes lines until the log or the output ends.
async fn write(mut out: impl AsyncWrite + Unpin, mut queue: mpsc::Receiver<Vec<u8>>, end: CancellationToken) {
    let mut text = Vec::new();
    loop {
        let first = tokio::select! {
            line = queue.recv() => line,
            () = end.cancelled() => queue.try_recv().ok(),
        };
        let Some(first) = first else { return };
        text.extend_from_slice(&first);
        while text.len() < WRITTEN_AT_ONCE
            && let Ok(line) = queue.try_recv()
        {
            text.extend_from_slice(&line);
        }
        if out.write_all(&text).await.is_err() || out.flush().await.is_err() {
            return;
        }
        if text.len() < WRITTEN_AT_ONCE {
            tokio::select! {
                () = sleep(PAUSE) => {}
                () = end.cancelled() => {}
            }
        }
        text.clear();
    }
}

/// The time as it is written, from a clock reading taken by the caller.
pub(super) fn timestamp() -> String {
    jiff::Timestamp::now().to_string()
}

/// A duration in the log's unit.
pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;
    use tokio::{io::AsyncReadExt, time::Instant};

    use super::*;

    fn parsed(entry: &Line<'_>) -> Value {
        let line = entry.line().unwrap();
        let text = String::from_utf8(line).unwrap();
        let body = text.strip_suffix('\n').unwrap();
        assert!(!body.chars().any(is_steering), "{body:?}");
        serde_json::from_str(body).unwrap()
    }

    #[test]
    fn what_steers_terminals_and_readers_of_lines_is_escaped() {
        for steering in
            ["\0", "\n", "\x1b[2J", "\x7f", "\u{85}", "\u{9b}2J", "\u{2028}", "\u{2029}", "\u{202e}", "\u{2066}"]
        {
            let value = parsed(&Line { reason: format!("a{steering}\"b"), ..Line::default() });
            assert_eq!(value["reason"], format!("a{steering}\"b"));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn lines_are_written_together_and_all_of_them_at_the_end() {
        let (out, mut seen) = tokio::io::duplex(1024 * 1024);
        let (log, metrics) = (AccessLog::to(out), Metrics::default());
        let mut text = vec![0; 1024 * 1024];
        log.write(&Line { method: "FIRST", ..Line::default() }, &metrics);
        let begun = Instant::now();
        let count = seen.read(&mut text).await.unwrap();
        assert!(text[..count].ends_with(b"\n") && begun.elapsed() < PAUSE, "the first one is written at once");
        for _ in 0..1000 {
            log.write(&Line::default(), &metrics);
        }
        let count = seen.read(&mut text).await.unwrap();
        assert!(text[..count].ends_with(b"\n") && begun.elapsed() >= PAUSE, "the others after a pause");
        let together = text[..count].iter().filter(|byte| **byte == b'\n').count();
        assert!(together > 100, "{together} in one write");
        log.write(&Line { method: "LAST", ..Line::default() }, &metrics);
        log.end().await;
        drop(log);
        let mut rest = String::new();
        seen.read_to_string(&mut rest).await.unwrap();
        assert_eq!(together + rest.lines().count(), 1001);
        assert!(rest.lines().last().unwrap().contains("LAST"), "{rest}");
    }

    #[test]
    fn queries_and_user_information_are_not_written() {
        let entry = Line { path: "/a/b?token=secret?x", authority: "me:secret@shop:80", ..Line::default() };
        let value = parsed(&entry);
        assert_eq!((&value["path"], &value["authority"]), (&"/a/b".into(), &"shop:80".into()));
        let plain = parsed(&Line { path: "*", authority: "[::1]:80", ..Line::default() });
        assert_eq!((&plain["path"], &plain["authority"]), (&"*".into(), &"[::1]:80".into()));
    }

    proptest! {
        #[test]
        fn any_bytes_make_one_line_of_json_that_reads_back(
            texts in proptest::array::uniform8(prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..64).prop_map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
                ".{0,32}",
                "[\\x00-\u{a0}\u{2020}-\u{2070}\"\\\\]{0,32}",
            ]),
        ) {
            let [method, flag, reason, source, cluster, route, traceparent, destination] = &texts;
            let entry = Line {
                method, flag, cluster, route, traceparent,
                reason: reason.clone(),
                source: source.clone(),
                destination: destination.clone(),
                endpoint: Some(destination.clone()),
                source_identity: Some(source),
                ..Line::default()
            };
            let value = parsed(&entry);
            for (field, text) in [("method", method), ("flag", flag), ("reason", reason), ("source", source),
                ("cluster", cluster), ("route", route), ("traceparent", traceparent)] {
                prop_assert_eq!(value.get(field).and_then(Value::as_str).unwrap_or_default(), text);
            }
            prop_assert_eq!(value["destination"].as_str(), Some(destination.as_str()));
        }
    }
}
