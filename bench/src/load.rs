//! The load: wrk for HTTP/1.1, h2load for HTTP/2, both closed loop (a connection or stream sends again when answered).
//!
//! Every failure is an error: a refused connection, a timeout, a status other than 2xx.
//! h2load prints no percentiles, so they are computed from its log of requests. It does not report a lost connection (it stops
//! sending), so the log must extend to the end of the load.

use std::net::SocketAddr;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};

use crate::app::MESSAGE;
use crate::measure::percentile;
use crate::process::{Child, Launcher};
use crate::programs::Tools;
use crate::scenario::{Protocol, Scenario};

/// Requests in flight on an HTTP/2 connection.
const STREAMS: u32 = 32;

/// A load generator at work.
#[derive(Debug)]
pub struct Load {
    child: Child,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Wrk,
    H2load { log: tempfile::NamedTempFile },
}

/// The client's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latency {
    /// Half of the requests took no longer.
    pub p50: Duration,
    /// 99 of 100 requests took no longer.
    pub p99: Duration,
}

impl Load {
    /// Starts the load of `scenario` on `target` for `seconds`, pinned to `cpu`.
    ///
    /// # Errors
    /// The generator does not start.
    pub fn start(
        launcher: &Launcher,
        tools: &Tools,
        scenario: Scenario,
        target: SocketAddr,
        seconds: u64,
        cpu: usize,
    ) -> Result<Self> {
        let url = match scenario {
            Scenario::GrpcMany => format!("http://{target}/bench.Echo/Unary"),
            _ => format!("http://{target}/"),
        };
        let (connections, duration) = (scenario.connections().to_string(), seconds.to_string());
        match scenario.protocol() {
            Protocol::Http1 => {
                let args = ["-t", "1", "-c", &connections, "-d", &duration, "--timeout", "5", "--latency", &url];
                Ok(Self { child: launcher.start("wrk", cpu, &tools.wrk, args)?, kind: Kind::Wrk })
            }
            Protocol::Tcp => bail!("neither wrk nor h2load can send opaque bytes"),
            Protocol::Http2 => {
                let log = tempfile::NamedTempFile::new_in(launcher.logs()).context("a file for h2load's log")?;
                let (path, streams) = (log.path().display().to_string(), STREAMS.to_string());
                let message = launcher.logs().join("message.grpc").display().to_string();
                let mut args = vec![
                    "-c",
                    &connections,
                    "-m",
                    &streams,
                    "-D",
                    &duration,
                    "--warm-up-time",
                    "0",
                    "--log-file",
                    &path,
                ];
                if scenario == Scenario::GrpcMany {
                    std::fs::write(&message, MESSAGE).context("write the gRPC message")?;
                    args.extend(["-d", &message, "-H", "content-type: application/grpc", "-H", "te: trailers"]);
                }
                args.push(&url);
                Ok(Self { child: launcher.start("h2load", cpu, &tools.h2load, args)?, kind: Kind::H2load { log } })
            }
        }
    }

    /// The generator's process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.child.pid()
    }

    /// Whether the load is still on.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn is_running(&mut self) -> Result<bool> {
        self.child.is_running()
    }

    /// Waits for the end. Latencies are those of requests begun after `window` began where the generator tells (h2load),
    /// else of the whole run (wrk).
    ///
    /// # Errors
    /// A request failed, or the generator printed something else than expected.
    pub async fn finish(self, window: Range<SystemTime>) -> Result<Latency> {
        let text = self.child.finish().await?;
        match self.kind {
            Kind::Wrk => parse_wrk(&text),
            Kind::H2load { log } => {
                check_h2load(&text)?;
                read_h2load_log(log.path(), window)
            }
        }
    }
}

/// Reads what `wrk --latency` prints.
fn parse_wrk(text: &str) -> Result<Latency> {
    if let Some(line) = text.lines().find(|line| line.trim_start().starts_with("Socket errors:")) {
        bail!("wrk saw errors: {}", line.trim());
    }
    if let Some(line) = text.lines().find(|line| line.trim_start().starts_with("Non-2xx or 3xx responses:")) {
        bail!("wrk saw errors: {}", line.trim());
    }
    let requests = text.lines().find_map(|line| line.trim().split_once(" requests in ")?.0.parse::<u64>().ok());
    ensure!(requests.is_some_and(|requests| requests > 0), "wrk completed no request; it printed:\n{text}");
    let line = |name: &str| {
        let value = text.lines().find_map(|line| line.trim().strip_prefix(name))?;
        parse_wrk_time(value.trim())
    };
    let p50 = line("50%").with_context(|| format!("no 50% line from wrk:\n{text}"))?;
    let p99 = line("99%").with_context(|| format!("no 99% line from wrk:\n{text}"))?;
    Ok(Latency { p50, p99 })
}

/// `210.00us`, `2.38ms`, `1.02s`, `1.50m`.
fn parse_wrk_time(text: &str) -> Option<Duration> {
    let unit = text.find(|c: char| c.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at(unit);
    let seconds = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()
}

/// Reads the two lines of h2load that tell of failures.
fn check_h2load(text: &str) -> Result<()> {
    let fields = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let pair = |part: &str| {
            let (count, what) = part.trim().split_once(' ')?;
            Some((what.to_owned(), count.parse::<u64>().ok()?))
        };
        line.split(',').map(pair).collect::<Option<std::collections::BTreeMap<String, u64>>>()
    };
    let requests = fields("requests:").with_context(|| format!("no requests line from h2load:\n{text}"))?;
    let statuses = fields("status codes:").with_context(|| format!("no status line from h2load:\n{text}"))?;
    let count = |name: &str| requests.get(name).copied().with_context(|| format!("h2load names no {name:?}:\n{text}"));
    let bad = count("failed")? + count("errored")? + count("timeout")?;
    let other: u64 = statuses.iter().filter(|(class, _)| *class != "2xx").map(|(_, count)| count).sum();
    ensure!(bad == 0 && other == 0, "h2load reported errors: requests {requests:?}, status codes {statuses:?}");
    ensure!(count("succeeded")? > 0, "h2load completed no request; it printed:\n{text}");
    Ok(())
}

fn read_h2load_log(path: &Path, window: Range<SystemTime>) -> Result<Latency> {
    let text = std::fs::read_to_string(path).context("read h2load's log")?;
    let micros = |time: SystemTime| Ok::<_, anyhow::Error>(time.duration_since(SystemTime::UNIX_EPOCH)?.as_micros());
    let mut durations = parse_h2load_log(&text, micros(window.start)?..micros(window.end)?)?;
    let p50 = percentile(&mut durations, 50).context("h2load's log has no request inside the window")?;
    let p99 = percentile(&mut durations, 99).context("h2load's log has no request inside the window")?;
    Ok(Latency { p50: Duration::from_micros(p50), p99: Duration::from_micros(p99) })
}

/// How long before the window's end the last answer may have come, microseconds.
const SILENCE: u128 = 100_000;

/// Microseconds of every request begun after `window` (microseconds since the epoch) began.
/// Columns: start, status, duration.
fn parse_h2load_log(text: &str, window: Range<u128>) -> Result<Vec<u64>> {
    let (mut durations, mut last) = (Vec::new(), 0);
    for line in text.lines() {
        let mut columns = line.split('\t');
        let mut next = || columns.next().with_context(|| format!("h2load's log: {line:?}"));
        let (start, status, duration) = (next()?, next()?, next()?);
        ensure!(status.starts_with('2'), "h2load's log contains status {status}");
        let start = start.parse::<u128>().with_context(|| format!("h2load's log: {line:?}"))?;
        let duration = duration.parse::<u64>().with_context(|| format!("h2load's log: {line:?}"))?;
        last = last.max(start + u128::from(duration));
        if start >= window.start {
            durations.push(duration);
        }
    }
    let silent = window.end.saturating_sub(last);
    ensure!(silent <= SILENCE, "h2load received no response in the last {} ms: its connection was lost", silent / 1000);
    Ok(durations)
}

#[cfg(test)]
mod tests;
