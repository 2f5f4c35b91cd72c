//! The access log: one JSON line for each request or connection that the policy asks for, written by one task, never
//! waiting: when the reader of our output is slow, lines are dropped and counted.

use std::{sync::Arc, time::Duration};

use serde::Serialize;
use tokio::{
    io::{AsyncWrite, AsyncWriteExt, stdout},
    sync::mpsc,
};
use weft_core::listener::AccessLog as Policy;

use super::metrics::Metrics;

/// Lines that may wait to be written.
const QUEUE: usize = 4_096;

/// The sending end; one per worker.
#[derive(Clone, Debug)]
pub struct AccessLog {
    lines: mpsc::Sender<Vec<u8>>,
}

/// One line. Empty and absent fields are left out.
#[derive(Debug, Default, Serialize)]
#[expect(missing_docs, reason = "docs/reference/access-log.md lists the fields")]
pub struct Entry<'a> {
    pub time: String,
    pub direction: &'static str,
    pub protocol: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub method: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub authority: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub path: &'a str,
    #[serde(skip_serializing_if = "is_zero")]
    pub status: u16,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub flag: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub reason: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub source: &'a str,
    pub source_identity: Option<&'a str>,
    pub destination: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub cluster: &'a str,
    pub endpoint: Option<String>,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub route: &'a str,
    pub attempts: u32,
    pub security: &'static str,
    pub duration_us: u64,
    pub bytes_sent: u64,
    pub bytes_received: u64,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub traceparent: &'a str,
}

fn is_zero(number: &u16) -> bool {
    *number == 0
}

/// Whether the policy asks for a line about something that ended so.
pub(crate) fn wanted(policy: Policy, status: u16, failed: bool) -> bool {
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
    pub fn to(mut out: impl AsyncWrite + Send + Unpin + 'static) -> Self {
        let (lines, mut queue) = mpsc::channel::<Vec<u8>>(QUEUE);
        tokio::spawn(async move {
            while let Some(line) = queue.recv().await {
                if out.write_all(&line).await.is_err() || (queue.is_empty() && out.flush().await.is_err()) {
                    break;
                }
            }
        });
        Self { lines }
    }

    /// Hands a line to the writer.
    pub(crate) fn write(&self, entry: &Entry<'_>, metrics: &Arc<Metrics>) {
        let Ok(mut line) = serde_json::to_vec(entry) else { return };
        line.push(b'\n');
        if self.lines.try_send(line).is_err() {
            metrics.event("weft_access_log_dropped_total", &[]);
        }
    }
}

/// The time as it is written, from a clock reading taken by the caller.
pub(crate) fn timestamp() -> String {
    jiff::Timestamp::now().to_string()
}

/// A duration in the log's unit.
pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
