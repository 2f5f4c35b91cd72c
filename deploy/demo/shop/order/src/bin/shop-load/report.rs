//! What `shop-load` prints: JSON lines for programs, or text for people.
//!
//! JSON lines have a `kind`: `second` (counts of the second that just ended), `request` (one for every POST and for
//! every failed request), `summary` (last line).

use std::io::{StdoutLock, Write as _};
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::plan::{Plan, Route};
use crate::send::Outcome;
use crate::tally::{Count, Tally};
use crate::{Verified, unix_ms};

/// Writes to stdout, each line at once.
pub(crate) struct Report {
    json: bool,
    out: StdoutLock<'static>,
}

impl Report {
    pub(crate) fn new(json: bool) -> Self {
        Self { json, out: std::io::stdout().lock() }
    }

    /// One second's counts.
    pub(crate) fn second(&mut self, tally: &Tally, elapsed: Duration, in_flight: usize) -> anyhow::Result<()> {
        if self.json {
            let mut line = counts("second", tally, elapsed);
            line.insert("in_flight".to_owned(), json!(in_flight));
            return self.line(&Value::Object(line).to_string());
        }
        self.line(&text(tally, elapsed))
    }

    /// A POST, or any failed request.
    pub(crate) fn request(&mut self, outcome: &Outcome) -> anyhow::Result<()> {
        let method = if outcome.route == Route::Place { "POST" } else { "GET" };
        if self.json && (outcome.route == Route::Place || !outcome.ok()) {
            let line = json!({
                "kind": "request",
                "method": method,
                "path": outcome.path,
                "key": outcome.key,
                "started_at": outcome.started_at,
                "ended_at": outcome.ended_at,
                "ok": outcome.ok(),
                "status": outcome.status,
                "error": outcome.failure,
                "detail": outcome.detail,
                "instance": outcome.instance,
                "order": outcome.order,
            });
            return self.line(&line.to_string());
        }
        if let (false, Some(failure)) = (self.json, &outcome.failure) {
            let (path, detail) = (&outcome.path, outcome.detail.as_deref().unwrap_or(""));
            return self.line(&format!("      failed: {method} {path}: {failure} {detail}"));
        }
        Ok(())
    }

    /// The last line.
    pub(crate) fn summary(
        &mut self,
        total: &Tally,
        elapsed: Duration,
        plan: &Plan,
        verified: Option<&Verified>,
    ) -> anyhow::Result<()> {
        if self.json {
            let mut line = counts("summary", total, elapsed);
            line.insert("cut_off".to_owned(), json!(total.cut_off));
            line.insert("acknowledged".to_owned(), json!(plan.acknowledged));
            if let Some(Verified { found, missing, unreadable }) = verified {
                let verified = json!({ "found": found, "missing": missing, "unreadable": unreadable });
                line.insert("verified".to_owned(), verified);
            }
            return self.line(&Value::Object(line).to_string());
        }
        self.line(&format!("total {}", text(total, elapsed)))?;
        if let Some(Verified { found, missing, unreadable }) = verified {
            let (acknowledged, missing) = (plan.acknowledged, missing.len());
            self.line(&format!(
                "orders: {acknowledged} acknowledged, {found} found again, {missing} missing, {unreadable} unreadable"
            ))?;
        }
        Ok(())
    }

    fn line(&mut self, line: &str) -> anyhow::Result<()> {
        writeln!(self.out, "{line}")?;
        self.out.flush()?;
        Ok(())
    }
}

fn counts(kind: &str, tally: &Tally, elapsed: Duration) -> Map<String, Value> {
    let routes: Map<_, _> =
        tally.routes.iter().map(|(route, count)| (route.name().to_owned(), Value::Object(of_count(count)))).collect();
    let mut line = Map::new();
    line.insert("kind".to_owned(), json!(kind));
    line.insert("at".to_owned(), json!(unix_ms()));
    line.insert("elapsed_s".to_owned(), json!(round(elapsed.as_secs_f64())));
    line.insert("sent".to_owned(), json!(tally.sent));
    line.insert("not_sent".to_owned(), json!(tally.not_sent));
    line.append(&mut of_count(&tally.all));
    line.insert("routes".to_owned(), Value::Object(routes));
    line.insert("failures".to_owned(), json!(tally.failures));
    line.insert("versions".to_owned(), json!(tally.versions));
    line.insert("instances".to_owned(), json!(tally.instances));
    line
}

fn of_count(count: &Count) -> Map<String, Value> {
    let quantile = |share| json!(count.latency.quantile_ms(share).map(round));
    Map::from_iter([
        ("ok".to_owned(), json!(count.ok)),
        ("failed".to_owned(), json!(count.failed)),
        ("p50_ms".to_owned(), quantile(0.5)),
        ("p99_ms".to_owned(), quantile(0.99)),
    ])
}

fn text(tally: &Tally, elapsed: Duration) -> String {
    let quantile = |share| tally.all.latency.quantile_ms(share).map_or("-".to_owned(), |ms| format!("{ms:.1}"));
    let list = |map: &std::collections::BTreeMap<String, u64>| {
        map.iter().map(|(name, count)| format!("{name}={count}")).collect::<Vec<_>>().join(" ")
    };
    let mut line = format!(
        "{:>5.1} s  ok {:>5}  failed {:>3}  p50 {:>6} ms  p99 {:>6} ms  product {}",
        elapsed.as_secs_f64(),
        tally.all.ok,
        tally.all.failed,
        quantile(0.5),
        quantile(0.99),
        list(&tally.versions)
    );
    if tally.not_sent > 0 {
        line.push_str(&format!("  not sent {}", tally.not_sent));
    }
    if !tally.failures.is_empty() {
        line.push_str(&format!("  failures {}", list(&tally.failures)));
    }
    line
}

/// To three digits after the point.
fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}
