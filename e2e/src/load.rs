//! Steady HTTP/1.1 load from one host, with every outcome kept: to kill something under it and count what failed.
//! Open loop: requests start at their time whatever the others do, on kept-alive connections.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};

use crate::host::Host;
use crate::process::Process;
use crate::wait::{DEADLINE, until_some};

/// A running load. Dropping it ends it.
#[derive(Debug)]
pub struct Load(Process);

/// How one request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// When it ended: milliseconds of Unix time, as [`unix_millis`] tells it.
    pub at: u64,
    /// Milliseconds it took.
    pub took: u64,
    /// The status, such as `200`, or `error: KIND`.
    pub result: String,
}

impl Outcome {
    /// Whether it was under way at any moment of this span of Unix time, in milliseconds.
    pub fn overlaps(&self, span: &RangeInclusive<u64>) -> bool {
        self.at.saturating_sub(self.took) <= *span.end() && self.at >= *span.start()
    }
}

/// Now, in milliseconds of Unix time.
///
/// Errors: the clock stands before 1970.
pub fn unix_millis() -> Result<u64> {
    Ok(u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?)
}

impl Load {
    /// Sends `rate` GETs per second for `path` to `address`, with `authority` as the host.
    ///
    /// Errors: it cannot be started.
    pub fn start(host: &Host, address: SocketAddr, authority: &str, path: &str, rate: u32) -> Result<Self> {
        let (address, rate) = (address.to_string(), rate.to_string());
        let args = ["load", &address, authority, path, "--rate", &rate];
        Ok(Self(host.spawn("weft-e2e-probe", &args, &[])?))
    }

    /// Like [`Load::start`], with POSTs and a body of five bytes.
    ///
    /// Errors: it cannot be started.
    pub fn start_posts(host: &Host, address: SocketAddr, authority: &str, path: &str, rate: u32) -> Result<Self> {
        let (address, rate) = (address.to_string(), rate.to_string());
        let args = ["load", &address, authority, path, "--rate", &rate, "--post"];
        Ok(Self(host.spawn("weft-e2e-probe", &args, &[])?))
    }

    /// Every outcome so far, in the order of their ends.
    ///
    /// Errors: the load has ended, or its log cannot be read.
    pub fn outcomes(&mut self) -> Result<Vec<Outcome>> {
        let ended = self.0.ended()?;
        let text = self.0.output()?;
        ensure!(ended.is_none(), "the load exited: {text}");
        // The last line may be half written.
        let complete = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
        complete
            .lines()
            .map(|line| parse(line).with_context(|| format!("unexpected output of the load: {line:?}")))
            .collect()
    }

    /// Waits until `count` more requests than now have been answered with 200.
    ///
    /// Errors: not within [`DEADLINE`].
    pub fn wait_for_more(&mut self, count: usize) -> Result<()> {
        let good = |outcomes: &[Outcome]| outcomes.iter().filter(|outcome| outcome.result == "200").count();
        let before = good(&self.outcomes()?);
        until_some(format!("{count} more good requests"), DEADLINE, || {
            Ok((good(&self.outcomes()?) >= before + count).then_some(()))
        })
    }

    /// Those that did not end with 200 so far.
    ///
    /// Errors: as [`Load::outcomes`].
    pub fn failures(&mut self) -> Result<Vec<Outcome>> {
        Ok(self.outcomes()?.into_iter().filter(|outcome| outcome.result != "200").collect())
    }

    /// Fails when one request so far did not end with 200.
    ///
    /// Errors: that, with the failures; and as [`Load::outcomes`].
    pub fn ensure_no_failure(&mut self) -> Result<()> {
        let failures = self.failures()?;
        ensure!(failures.is_empty(), "{} of {} requests failed: {failures:?}", failures.len(), self.outcomes()?.len());
        Ok(())
    }

    /// How many ended in which way so far.
    ///
    /// Errors: as [`Load::outcomes`].
    pub fn tally(&mut self) -> Result<BTreeMap<String, usize>> {
        let mut tally = BTreeMap::new();
        for outcome in self.outcomes()? {
            *tally.entry(outcome.result).or_default() += 1;
        }
        Ok(tally)
    }
}

/// `<at> <took> <result>`
fn parse(line: &str) -> Option<Outcome> {
    let mut fields = line.splitn(3, ' ');
    let (at, took) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(Outcome { at, took, result: fields.next()?.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_line() {
        let outcome = Outcome { at: 12, took: 3, result: "error: ConnectionReset".to_owned() };
        assert_eq!(parse("12 3 error: ConnectionReset"), Some(outcome));
        assert_eq!(parse("12 x 200"), None);
    }
}
