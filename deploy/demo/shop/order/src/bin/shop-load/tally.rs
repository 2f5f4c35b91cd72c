//! Counts of outcomes over a second or the whole run.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::plan::Route;
use crate::send::Outcome;

/// Most distinct names counted in one map; the rest is counted as `other`.
const MAX_NAMES: usize = 64;

/// Outcomes of requests that ended, and requests that were sent or not, in one stretch of time.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) sent: u64,
    /// Due, but at the bound of concurrency.
    pub(crate) not_sent: u64,
    /// Under way when the run was cut off.
    pub(crate) cut_off: usize,
    pub(crate) routes: BTreeMap<Route, Count>,
    pub(crate) all: Count,
    /// Failures by status or reason.
    pub(crate) failures: BTreeMap<String, u64>,
    /// Good answers of the product service by version, and of every service by instance.
    pub(crate) versions: BTreeMap<String, u64>,
    pub(crate) instances: BTreeMap<String, u64>,
}

/// Outcomes and latencies of one route. Latencies are of good answers.
#[derive(Debug, Default)]
pub(crate) struct Count {
    pub(crate) ok: u64,
    pub(crate) failed: u64,
    pub(crate) latency: Histogram,
}

impl Tally {
    /// Counts one outcome.
    pub(crate) fn record(&mut self, outcome: &Outcome) {
        for count in [self.routes.entry(outcome.route).or_default(), &mut self.all] {
            if outcome.ok() {
                count.ok += 1;
                count.latency.record(outcome.latency);
            } else {
                count.failed += 1;
            }
        }
        if let Some(failure) = &outcome.failure {
            bump(&mut self.failures, failure, 1);
            return;
        }
        if let Some(version) = &outcome.version {
            bump(&mut self.versions, version, 1);
        }
        if let Some(instance) = &outcome.instance {
            bump(&mut self.instances, instance, 1);
        }
    }

    /// Adds another stretch of time.
    pub(crate) fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.not_sent += other.not_sent;
        self.cut_off += other.cut_off;
        self.all.add(&other.all);
        for (route, count) in &other.routes {
            self.routes.entry(*route).or_default().add(count);
        }
        for (to, from) in [
            (&mut self.failures, &other.failures),
            (&mut self.versions, &other.versions),
            (&mut self.instances, &other.instances),
        ] {
            for (name, count) in from {
                bump(to, name, *count);
            }
        }
    }
}

impl Count {
    fn add(&mut self, other: &Self) {
        self.ok += other.ok;
        self.failed += other.failed;
        self.latency.add(&other.latency);
    }
}

fn bump(map: &mut BTreeMap<String, u64>, name: &str, by: u64) {
    let name = if map.len() < MAX_NAMES || map.contains_key(name) { name } else { "other" };
    *map.entry(name.to_owned()).or_default() += by;
}

/// Latencies in buckets of 1/32 of a power of two: an answer is at most 3.2 % above the true one.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    buckets: BTreeMap<u32, u64>,
    count: u64,
}

impl Histogram {
    /// Counts one latency, exact to a microsecond below 64 µs.
    pub(crate) fn record(&mut self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        *self.buckets.entry(bucket(micros)).or_default() += 1;
        self.count += 1;
    }

    /// The latency that `share` (0..=1) of the requests did not exceed, in milliseconds; none if there were none.
    pub(crate) fn quantile_ms(&self, share: f64) -> Option<f64> {
        let mut left = (share * self.count as f64).ceil().max(1.0);
        for (bucket, count) in &self.buckets {
            left -= *count as f64;
            if left <= 0.0 {
                return Some(upper(*bucket) as f64 / 1000.0);
            }
        }
        None
    }

    fn add(&mut self, other: &Self) {
        self.count += other.count;
        for (bucket, count) in &other.buckets {
            *self.buckets.entry(*bucket).or_default() += count;
        }
    }
}

/// Values below 64 have their own bucket; above, the five bits after the first one choose among 32 a power of two.
fn bucket(micros: u64) -> u32 {
    let shift = (u64::BITS - micros.leading_zeros()).saturating_sub(6);
    // `micros >> shift` is below 64, so the cast loses nothing.
    #[expect(clippy::cast_possible_truncation, reason = "six bits are left")]
    let mantissa = (micros >> shift) as u32;
    shift * 32 + mantissa
}

/// The largest value in a bucket.
fn upper(bucket: u32) -> u64 {
    let shift = (bucket / 32).saturating_sub(1);
    let mantissa = u64::from(bucket - shift * 32);
    ((mantissa + 1) << shift) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_what_it_says() {
        for micros in (0..5000).chain((0..40).map(|bit| (1_u64 << bit) + 1)).chain([123_456_789]) {
            let bucket = bucket(micros);
            assert!(upper(bucket) >= micros, "{micros}");
            assert!(upper(bucket) as f64 <= micros as f64 * 1.032, "{micros}: {}", upper(bucket));
            assert!(bucket <= self::bucket(micros + 1), "{micros}");
        }
    }

    #[test]
    fn quantiles_are_those_of_the_sorted_list() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile_ms(0.5), None);
        for micros in 1..=100 {
            histogram.record(Duration::from_micros(micros * 1000));
        }
        for (share, wanted) in [(0.0, 1.0), (0.5, 50.0), (0.99, 99.0), (1.0, 100.0)] {
            let found = histogram.quantile_ms(share).unwrap();
            assert!(found >= wanted && found <= wanted * 1.032, "{share}: {found}");
        }
    }
}
