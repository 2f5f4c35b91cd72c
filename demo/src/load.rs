//! The load generator `shop-load`, and what it reports: counts a second, every POST, every failure.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    task::JoinHandle,
};

use crate::{
    process::{Process, Program},
    wait::until,
};

/// Running load.
#[derive(Debug)]
pub(crate) struct Load {
    process: Process,
    received: Arc<Mutex<Received>>,
    reader: JoinHandle<()>,
}

/// A point in the reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    seconds: usize,
    requests: usize,
}

#[derive(Debug, Default)]
struct Received {
    seconds: Vec<Second>,
    requests: Vec<Request>,
    summary: Option<Summary>,
}

/// Counts of one second.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Second {
    /// Good answers.
    pub(crate) ok: u64,
    /// Everything else.
    pub(crate) failed: u64,
    /// Due, but too many were under way.
    pub(crate) not_sent: u64,
    /// Latency of good answers.
    pub(crate) p50_ms: Option<f64>,
    /// Likewise.
    pub(crate) p99_ms: Option<f64>,
    /// Good answers by instance.
    pub(crate) instances: BTreeMap<String, u64>,
}

/// A POST, or a failed request.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Request {
    /// GET or POST.
    pub(crate) method: String,
    /// Path.
    pub(crate) path: String,
    /// Idempotency key of a POST.
    #[serde(default)]
    pub(crate) key: Option<String>,
    /// Unix milliseconds: when it left, and when its outcome was known.
    pub(crate) started_at: u64,
    /// Likewise.
    pub(crate) ended_at: u64,
    /// Whether the answer was the right one.
    pub(crate) ok: bool,
    /// Status or reason of a failure.
    #[serde(default)]
    pub(crate) error: Option<String>,
    /// More of it.
    #[serde(default)]
    pub(crate) detail: Option<String>,
}

/// The whole run.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Summary {
    /// Good answers.
    pub(crate) ok: u64,
    /// Everything else.
    pub(crate) failed: u64,
    /// POSTs answered with 201.
    pub(crate) acknowledged: u64,
    /// Those orders, read again.
    #[serde(default)]
    pub(crate) verified: Option<Verified>,
}

/// Acknowledged orders, read again at the end.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Verified {
    /// There.
    pub(crate) found: u64,
    /// Gone.
    pub(crate) missing: Vec<String>,
    /// No answer in time.
    pub(crate) unreadable: u64,
}

/// What was reported since a mark.
#[derive(Debug, Clone, Default)]
pub(crate) struct Since {
    /// Good answers, in whole seconds.
    pub(crate) ok: u64,
    /// By instance.
    pub(crate) instances: BTreeMap<String, u64>,
    /// POSTs and failures.
    pub(crate) requests: Vec<Request>,
}

impl Load {
    /// Starts the program, which must print JSON lines to standard output.
    ///
    /// Errors: it cannot be started.
    pub(crate) fn start(program: &Program, logs: &std::path::Path) -> Result<Self> {
        let mut process = program.start_piped(logs)?;
        let out = process.take_stdout().context("the load generator's output")?;
        let received = Arc::new(Mutex::new(Received::default()));
        let sink = Arc::clone(&received);
        let reader = tokio::spawn(async move {
            let mut lines = BufReader::new(out).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                sink.lock().add(&line);
            }
        });
        Ok(Self { process, received, reader })
    }

    /// The program's process number.
    pub(crate) fn id(&self) -> i32 {
        self.process.id()
    }

    /// Here and now.
    pub(crate) fn mark(&self) -> Mark {
        let received = self.received.lock();
        Mark { seconds: received.seconds.len(), requests: received.requests.len() }
    }

    /// Waits until `count` whole seconds after `mark` are reported. The first second after a mark began before it.
    ///
    /// Errors: the load ended.
    pub(crate) async fn seconds(&mut self, mark: Mark, count: usize) -> Result<Since> {
        let received = Arc::clone(&self.received);
        let deadline = Duration::from_secs(count as u64 + 20);
        self.process
            .until("reports of the load", deadline, async || {
                let seconds = received.lock().seconds.len();
                ensure!(seconds > mark.seconds + count, "{seconds} so far");
                Ok(())
            })
            .await?;
        Ok(self.since(mark))
    }

    /// What was reported since the mark.
    pub(crate) fn since(&self, mark: Mark) -> Since {
        let received = self.received.lock();
        let mut since =
            Since { requests: received.requests.iter().skip(mark.requests).cloned().collect(), ..Since::default() };
        for second in received.seconds.iter().skip(mark.seconds) {
            since.ok += second.ok;
            for (instance, count) in &second.instances {
                *since.instances.entry(instance.clone()).or_default() += count;
            }
        }
        since
    }

    /// Ends the load: it reads all acknowledged orders again and sums up.
    ///
    /// Errors: it does not sum up.
    pub(crate) async fn finish(mut self) -> Result<Summary> {
        self.process.signal(rustix::process::Signal::TERM);
        let received = Arc::clone(&self.received);
        let summary = until("the load generator's summary", Duration::from_secs(30), async || {
            received.lock().summary.clone().context("none yet")
        });
        let summary = summary.await?;
        self.process.end(Duration::from_secs(5)).await?;
        self.reader.abort();
        Ok(summary)
    }
}

impl Received {
    fn add(&mut self, line: &str) {
        #[derive(Deserialize)]
        #[serde(tag = "kind", rename_all = "lowercase")]
        enum Line {
            Second(Second),
            Request(Request),
            Summary(Summary),
        }
        // Kinds that a later version adds are ignored.
        match serde_json::from_str(line) {
            Ok(Line::Second(second)) => self.seconds.push(second),
            Ok(Line::Request(request)) => self.requests.push(request),
            Ok(Line::Summary(summary)) => self.summary = Some(summary),
            Err(_) => {}
        }
    }
}

impl Since {
    /// Fails when a request failed.
    ///
    /// Errors: how many, and the first.
    pub(crate) fn none_failed(&self) -> Result<()> {
        let failed: Vec<&Request> = self.requests.iter().filter(|request| !request.ok).collect();
        match failed.first() {
            None => Ok(()),
            Some(first) => anyhow::bail!("{} failed, the first: {}", failed.len(), first.summary()),
        }
    }
}

impl Request {
    /// Method, path and failure in one line.
    pub(crate) fn summary(&self) -> String {
        let part = |text: &Option<String>| text.as_deref().map(|text| format!(" {text}")).unwrap_or_default();
        format!("{} {}:{}{}", self.method, self.path, part(&self.error), part(&self.detail))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_generators_lines_are_parsed() {
        let mut received = Received::default();
        for line in [
            r#"{"kind":"second","at":1,"elapsed_s":1.0,"sent":9,"not_sent":0,"ok":8,"failed":1,"p50_ms":1.5,"p99_ms":null,"routes":{},"failures":{"503":1},"versions":{"v1":4},"instances":{"order-1":3},"in_flight":0}"#,
            r#"{"kind":"request","method":"GET","path":"/products","key":null,"started_at":5,"ended_at":6,"ok":false,"status":503,"error":"503","detail":"no endpoint","instance":null,"order":null}"#,
            r#"{"kind":"request","method":"POST","path":"/orders","key":"k","started_at":5,"ended_at":6,"ok":true,"status":201,"error":null,"detail":null,"instance":"order-1","order":"o"}"#,
            r#"{"kind":"tomorrow"}"#,
            r#"{"kind":"summary","ok":8,"failed":1,"acknowledged":1,"verified":{"found":1,"missing":[],"unreadable":0}}"#,
        ] {
            received.add(line);
        }
        assert_eq!((received.seconds.len(), received.requests.len()), (1, 2));
        assert_eq!(received.seconds[0].instances["order-1"], 3);
        assert_eq!(received.summary.unwrap().verified.unwrap().found, 1);
        let since = Since { requests: received.requests, ..Since::default() };
        let error = since.none_failed().unwrap_err().to_string();
        assert_eq!(error, "1 failed, the first: GET /products: 503 no endpoint");
    }
}
