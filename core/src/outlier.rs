//! Outlier detection: stop picking an endpoint that keeps failing.
//! Shape: one [`Record`] per endpoint, without a lock; outcomes in, a [`Verdict`] out.
//! Spec: Envoy `outlier_detection` (consecutive gateway failures, consecutive local-origin failures); differs: a ratio,
//! not a percentage; gateway errors and failed connects are counted together, and an ejection for failed connects alone ends
//! with the first sign of life.
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
    /// Failures in a row, with [`ANSWERED`] and [`UNREACHED`].
    streak: AtomicU32,
    ejections: AtomicU32,
    /// Milliseconds since the caller's fixed point; 0 = not ejected since the last sign of life.
    ejected_until_ms: AtomicU64,
}

/// Of a streak: one of its failures was not a failed connect.
const ANSWERED: u32 = 1 << 31;
/// Of a streak: the endpoint was ejected for failed connects alone.
const UNREACHED: u32 = 1 << 30;
const COUNT: u32 = UNREACHED - 1;

/// What failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failed {
    /// The application was not reached: a sign of life says that it can be again.
    Connect,
    /// The application was reached: a gateway error, gRPC's UNAVAILABLE, a reset, or an answer that is malformed, cut or late.
    Answer,
    /// The application answered that it failed on this request or is at its limit (500, 429 and the like): for outlier detection a
    /// sign of life, for the balancer a failure.
    Status,
}

impl Failed {
    /// What a status says of the endpoint; `None`: nothing bad. `status`: of HTTP, or that which stands for one of gRPC.
    pub fn of_status(status: u16) -> Option<Self> {
        match status {
            502..=504 => Some(Self::Answer),
            // 501 is about the request.
            501 => None,
            429 | 500..=599 => Some(Self::Status),
            _ => None,
        }
    }
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
    /// Counts an answer that was good to its end; a sign of life. Cost: one load when nothing failed before.
    pub fn succeeded(&self) {
        let streak = self.streak.load(Ordering::Relaxed);
        if streak != 0 {
            self.streak.store(0, Ordering::Relaxed);
            if streak & UNREACHED != 0 {
                self.ejected_until_ms.store(0, Ordering::Relaxed);
            }
        }
    }

    /// A sign of life other than an answer, such as a new registration: ends an ejection for failed connects.
    pub fn revived(&self) {
        if self.streak.load(Ordering::Relaxed) & ANSWERED == 0 {
            self.succeeded();
        }
    }

    /// Counts a failure.
    pub fn failed(&self, settings: &OutlierDetection, failed: Failed) -> Verdict {
        if failed == Failed::Status {
            self.succeeded();
            return Verdict::Keep;
        }
        let kind = if failed == Failed::Answer { ANSWERED } else { 0 };
        let count = |streak: u32| Some(((streak & COUNT) + 1).min(COUNT) | (streak & !COUNT) | kind);
        let before = self.streak.fetch_update(Ordering::Relaxed, Ordering::Relaxed, count).unwrap_or_else(|same| same);
        let failures = (before & COUNT).saturating_add(1);
        if failures >= settings.consecutive_failures.get() { Verdict::Eject } else { Verdict::Keep }
    }

    /// Ejects it from `now` for the base time times a factor, at most [`MAX_EJECTION`]. The factor is the number of its
    /// ejections, less one for each base time that passed between them. The count starts anew, so that the first answers after
    /// the return decide again. Returns the length.
    pub fn eject(&self, settings: &OutlierDetection, now: Duration) -> Duration {
        let until = self.ejected_until_ms.load(Ordering::Relaxed);
        let base = millis(settings.base_ejection).max(1);
        // Never more than the longest ejection needs, so that it comes down as soon as it went up.
        let most = u32::try_from(millis(MAX_EJECTION).div_ceil(base)).unwrap_or(u32::MAX);
        let forgiven = u32::try_from(millis(now).saturating_sub(until) / base).unwrap_or(u32::MAX);
        let times = self.ejections.load(Ordering::Relaxed).min(most).saturating_sub(forgiven).saturating_add(1);
        self.ejections.store(times, Ordering::Relaxed);
        let length = settings.base_ejection.saturating_mul(times).min(MAX_EJECTION);
        let reached = self.streak.load(Ordering::Relaxed) & ANSWERED != 0;
        self.streak.store(if reached { 0 } else { UNREACHED }, Ordering::Relaxed);
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
            assert_eq!(record.failed(&settings, Failed::Answer), Verdict::Keep);
        }
        record.succeeded();
        for _ in 0..4 {
            assert_eq!(record.failed(&settings, Failed::Answer), Verdict::Keep);
        }
        assert_eq!(record.failed(&settings, Failed::Answer), Verdict::Eject);
    }

    #[test]
    fn an_ejection_ends_and_the_next_one_lasts_longer() {
        let (settings, record) = (OutlierDetection::default(), Record::default());
        let second = Duration::from_secs(1);
        assert!(!record.is_ejected(second));
        record.eject(&settings, second);
        assert!(record.is_ejected(second * 30));
        assert!(!record.is_ejected(second * 31));
        assert_eq!(record.eject(&settings, second * 40), second * 60);
        for _ in 0..20 {
            assert!(record.eject(&settings, second) <= MAX_EJECTION);
        }
    }

    /// (4)
    #[test]
    fn the_factor_of_an_ejection_decays_with_the_time_between_two() {
        let (settings, record) = (OutlierDetection::default(), Record::default());
        let second = Duration::from_secs(1);
        for _ in 0..100 {
            record.eject(&settings, second);
        }
        assert_eq!(record.eject(&settings, second), MAX_EJECTION);
        assert_eq!(record.eject(&settings, second * (301 + 8 * 30)), second * 90, "eleven less eight");
        assert_eq!(record.eject(&settings, second * 10_000), second * 30);
    }

    /// (27.2)
    #[test]
    fn a_status_of_one_request_is_a_sign_of_life() {
        let (settings, record) = (OutlierDetection::default(), Record::default());
        for failed in [Failed::Answer, Failed::Answer, Failed::Answer, Failed::Answer, Failed::Status, Failed::Answer] {
            assert_eq!(record.failed(&settings, failed), Verdict::Keep, "{failed:?}");
        }
        for (status, failed) in [
            (200, None),
            (404, None),
            (429, Some(Failed::Status)),
            (500, Some(Failed::Status)),
            (501, None),
            (503, Some(Failed::Answer)),
        ] {
            assert_eq!(Failed::of_status(status), failed, "{status}");
        }
    }

    /// (4)
    #[test]
    fn a_sign_of_life_ends_an_ejection_for_failed_connects_and_no_other() {
        let (settings, second) = (OutlierDetection::default(), Duration::from_secs(1));
        for (failures, sign, ends) in [
            ([Failed::Connect; 5], Record::revived as fn(&Record), true),
            ([Failed::Connect; 5], Record::succeeded, true),
            ([Failed::Answer; 5], Record::revived, false),
            ([Failed::Answer; 5], Record::succeeded, false),
            (
                [Failed::Connect, Failed::Answer, Failed::Connect, Failed::Connect, Failed::Connect],
                Record::revived,
                false,
            ),
        ] {
            let record = Record::default();
            let verdicts = failures.map(|failed| record.failed(&settings, failed));
            assert_eq!(verdicts.last(), Some(&Verdict::Eject));
            record.eject(&settings, second);
            sign(&record);
            assert_eq!(!record.is_ejected(second * 2), ends, "{failures:?}");
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
