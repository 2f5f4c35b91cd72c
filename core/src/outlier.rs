//! Outlier detection: stop picking an endpoint that keeps failing.
//! Shape: one [`Record`] per endpoint, without a lock; outcomes in, a [`Verdict`] out.
//! Spec: Envoy `outlier_detection` (consecutive gateway failures, consecutive local-origin failures); differs: a ratio,
//! not a percentage, and gateway errors and failed connects are counted together.
//! Invariant: [`may_eject`] keeps at most `max_ejected` of the endpoints ejected; callers ask it under one lock per cluster.

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::Duration,
};

use crate::cluster::OutlierDetection;

/// Longest ejection (Envoy `max_ejection_time`).
pub const MAX_EJECTION: Duration = Duration::from_secs(300);

/// The record of one endpoint.
#[derive(Debug, Default)]
pub struct Record {
    consecutive: AtomicU32,
    ejections: AtomicU32,
    /// Milliseconds since the caller's fixed point; 0 = never ejected.
    ejected_until_ms: AtomicU64,
}

/// What a failure means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not enough in a row.
    Keep,
    /// Too many in a row: eject it, if [`may_eject`] allows it.
    Eject,
}

impl Record {
    /// Counts a good answer. Cost: one load when nothing failed before.
    pub fn succeeded(&self) {
        if self.consecutive.load(Ordering::Relaxed) != 0 {
            self.consecutive.store(0, Ordering::Relaxed);
        }
    }

    /// Counts a gateway error, a reset or a failed connect.
    pub fn failed(&self, settings: &OutlierDetection) -> Verdict {
        let failures = self.consecutive.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if failures >= settings.consecutive_failures.get() { Verdict::Eject } else { Verdict::Keep }
    }

    /// Ejects it from `now` for the base time times the number of its ejections, at most [`MAX_EJECTION`].
    /// The count starts anew, so that the first answers after the return decide again. Returns the length.
    pub fn eject(&self, settings: &OutlierDetection, now: Duration) -> Duration {
        let times = self.ejections.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        let length = settings.base_ejection.saturating_mul(times).min(MAX_EJECTION);
        self.consecutive.store(0, Ordering::Relaxed);
        self.ejected_until_ms.store(millis(now.saturating_add(length)), Ordering::Relaxed);
        length
    }

    /// Whether it is out at this moment.
    pub fn is_ejected(&self, now: Duration) -> bool {
        let until = self.ejected_until_ms.load(Ordering::Relaxed);
        until != 0 && millis(now) < until
    }
}

/// Whether one more endpoint may be ejected when `ejected` of `total` are: at most `max_ejected` (ratio) of them rounded
/// down, but at least one where there are two or more.
pub fn may_eject(settings: &OutlierDetection, ejected: usize, total: usize) -> bool {
    if total < 2 {
        return false;
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a ratio of 0..=1 of a number of endpoints"
    )]
    let limit = (total as f64 * settings.max_ejected.clamp(0.0, 1.0)) as usize;
    ejected < limit.max(1)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_consecutive_failures_eject() {
        let (settings, record) = (OutlierDetection::default(), Record::default());
        for _ in 0..4 {
            assert_eq!(record.failed(&settings), Verdict::Keep);
        }
        record.succeeded();
        for _ in 0..4 {
            assert_eq!(record.failed(&settings), Verdict::Keep);
        }
        assert_eq!(record.failed(&settings), Verdict::Eject);
    }

    #[test]
    fn an_ejection_ends_and_the_next_one_lasts_longer() {
        let (settings, record) = (OutlierDetection::default(), Record::default());
        let second = Duration::from_secs(1);
        assert!(!record.is_ejected(second));
        record.eject(&settings, second);
        assert!(record.is_ejected(second * 30));
        assert!(!record.is_ejected(second * 31));
        assert_eq!(record.eject(&settings, second * 100), second * 60);
        for _ in 0..20 {
            assert!(record.eject(&settings, second) <= MAX_EJECTION);
        }
    }

    #[test]
    fn never_more_than_the_ratio_and_never_the_only_one() {
        let settings = OutlierDetection::default();
        assert!(!may_eject(&settings, 0, 1));
        assert!(may_eject(&settings, 0, 2) && !may_eject(&settings, 1, 2));
        assert!(may_eject(&settings, 0, 3) && !may_eject(&settings, 1, 3));
        assert!(may_eject(&settings, 4, 10) && !may_eject(&settings, 5, 10));
        let none = OutlierDetection { max_ejected: 0.0, ..settings };
        assert!(may_eject(&none, 0, 10) && !may_eject(&none, 1, 10));
    }
}
