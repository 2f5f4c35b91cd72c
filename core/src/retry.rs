//! Retries: when to try again, how long to wait, and how many retries there may be.
//! Shape: [`RetryPolicy`] belongs to a rule; [`Budget`] to a cluster, shared by all workers of a proxy; [`Behind`] to a workload.
//! Spec: Envoy `retry_policy`; Linkerd's retry budget (ratio plus a minimum per second).
//! Invariant: in any span of t seconds with n requests at most `ratio * n + min_per_second * t + capacity` retries of requests
//! that may have reached an application, and at most [`SHARE`] of the requests, [`BURST`] and one for each request in flight;
//! others cost no budget and are bounded by the attempts of their rule.

mod behind;

use std::{
    sync::atomic::{AtomicI64, AtomicU64, Ordering},
    time::Duration,
};

use serde::Serialize;

pub use self::behind::Behind;
use crate::cluster::RetryBudget;

/// Largest request body that is kept for another try, in bytes; a longer one is sent once.
pub const MAX_REPLAY: usize = 64 * 1024;

/// When to try again.
///
/// # Defaults
/// 2 tries; after a failed connect or REFUSED_STREAM for every method (nothing was sent), and for idempotent methods
/// also on 502, 503, 504 and reset; the back-off is at least 25 ms, doubled each time up to 250 ms.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RetryPolicy {
    /// Tries in all, the first one included; 1 switches retries off.
    pub attempts: u32,
    /// What is tried again.
    pub on: RetryOn,
    /// Further statuses that are tried again.
    pub status_codes: Vec<u16>,
    /// Whether methods that are not idempotent are tried again although the request may have been seen.
    pub any_method: bool,
    /// The least wait before the second try; doubled for each further one. The wait is up to twice as long, at random.
    pub backoff_base: Duration,
    /// The longest wait, but at least `backoff_base`.
    pub backoff_max: Duration,
}

/// Kinds of failure that are tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct RetryOn {
    /// No connection was made: any method.
    pub connect_failure: bool,
    /// The peer said it did not process the request: any method.
    pub refused_stream: bool,
    /// 502, 503, 504.
    pub gateway_error: bool,
    /// The connection or stream broke before the answer's head.
    pub reset: bool,
    /// Any 5xx.
    pub server_error: bool,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 2,
            on: RetryOn::default(),
            status_codes: Vec::new(),
            any_method: false,
            backoff_base: Duration::from_millis(25),
            backoff_max: Duration::from_millis(250),
        }
    }
}

impl Default for RetryOn {
    fn default() -> Self {
        Self { connect_failure: true, refused_stream: true, gateway_error: true, reset: true, server_error: false }
    }
}

/// How one attempt ended, as far as a retry is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// No connection was made, nothing was sent.
    ConnectFailure,
    /// The peer did not process it.
    RefusedStream,
    /// It broke after it may have been seen.
    Reset,
    /// No head of an answer in the time for one try.
    TryTimeout,
    /// An answer with this status.
    Status(u16),
}

impl Outcome {
    /// Whether the request did not reach the application. Then another try costs the service nothing, and no budget.
    pub fn is_unreached(self) -> bool {
        match self {
            Self::ConnectFailure | Self::RefusedStream => true,
            Self::Reset | Self::TryTimeout | Self::Status(_) => false,
        }
    }
}

impl RetryPolicy {
    /// Lets these statuses, and no others, be tried again (Gateway API, `HTTPRouteRetry.codes`).
    pub fn only_codes(&mut self, codes: &[u16]) {
        self.on.gateway_error = false;
        self.on.server_error = false;
        self.status_codes = codes.to_vec();
    }

    /// Whether an attempt that ended so is worth another one. `method` decides when the request may have been seen.
    pub fn retries(&self, outcome: Outcome, method: &str) -> bool {
        let may_repeat = self.any_method || is_idempotent(method);
        match outcome {
            Outcome::ConnectFailure => self.on.connect_failure,
            Outcome::RefusedStream => self.on.refused_stream,
            Outcome::Reset => self.on.reset && may_repeat,
            Outcome::TryTimeout => (self.on.reset || self.on.gateway_error) && may_repeat,
            Outcome::Status(status) => {
                may_repeat
                    && ((self.on.gateway_error && matches!(status, 502..=504))
                        || (self.on.server_error && (500..600).contains(&status))
                        || self.status_codes.contains(&status))
            }
        }
    }

    /// The wait before try number `next` (2 is the second); `random` is uniform in 0..1. Never shorter than `backoff_base`
    /// (Gateway API, `HTTPRouteRetry.backoff`: a minimum).
    pub fn backoff(&self, next: u32, random: f64) -> Duration {
        let most = self.backoff_max.max(self.backoff_base);
        let least = self.backoff_base.saturating_mul(1 << next.saturating_sub(2).min(16)).min(most);
        (least + least.mul_f64(random.clamp(0.0, 1.0))).min(most)
    }
}

/// Whether a method may be repeated without harm (RFC 9110 §9.2.2).
pub fn is_idempotent(method: &str) -> bool {
    matches!(method, "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE")
}

/// How many retries a cluster may have: a token bucket in thousandths of a retry, without a lock.
#[derive(Debug)]
pub struct Budget {
    balance: AtomicI64,
    refilled_ms: AtomicU64,
    /// What requests alone have given, whatever the time: at a low rate `min_per_second` would allow a retry of each.
    share: AtomicI64,
}

/// Retries for each request, at most, whatever `min_per_second` says; `ratio` where that is more.
pub const SHARE: f64 = 0.5;
/// Retries beyond [`SHARE`], so that the first requests have the tries that their rule promises.
pub const BURST: i64 = 10;

const RETRY: i64 = 1000;
/// The bucket holds what this many seconds of `min_per_second` give.
const CAPACITY_SECONDS: i64 = 10;

impl Budget {
    /// A full bucket, so that the first requests have the tries that their rule promises. `now`: since any fixed point,
    /// monotonic.
    pub fn new(settings: &RetryBudget, now: Duration) -> Self {
        Self {
            balance: AtomicI64::new(capacity(settings)),
            refilled_ms: AtomicU64::new(millis(now)),
            share: AtomicI64::new(BURST * RETRY),
        }
    }

    /// Counts a request. `in_flight`: the others to the cluster; they may all fail at once. Cost: two to four atomic operations.
    pub fn deposit(&self, settings: &RetryBudget, in_flight: u32) {
        let ratio = settings.ratio.clamp(0.0, 1.0);
        if self.balance.load(Ordering::Relaxed) < capacity(settings) {
            self.balance.fetch_add(thousandths(ratio), Ordering::Relaxed);
        }
        if self.share.load(Ordering::Relaxed) < (BURST + i64::from(in_flight)) * RETRY {
            self.share.fetch_add(thousandths(ratio.max(SHARE)), Ordering::Relaxed);
        }
    }

    /// Takes one retry out, or says that there is none.
    pub fn withdraw(&self, settings: &RetryBudget, now: Duration) -> bool {
        let now = millis(now);
        let last = self.refilled_ms.load(Ordering::Relaxed);
        if now > last && self.refilled_ms.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            let passed = i64::try_from(now - last).unwrap_or(i64::MAX);
            let refill = passed.saturating_mul(i64::from(settings.min_per_second)); // per ms: thousandths of a retry
            let limit = capacity(settings);
            let add = |balance: i64| Some(balance.saturating_add(refill).min(limit.max(balance)));
            self.balance.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).ok();
        }
        let take = |balance: i64| (balance >= RETRY).then(|| balance - RETRY);
        if self.share.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_err() {
            return false;
        }
        let granted = self.balance.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok();
        if !granted {
            self.share.fetch_add(RETRY, Ordering::Relaxed);
        }
        granted
    }
}

fn capacity(settings: &RetryBudget) -> i64 {
    (i64::from(settings.min_per_second) * RETRY * CAPACITY_SECONDS).max(RETRY)
}

#[expect(clippy::cast_possible_truncation, reason = "a ratio of 0..=1 in thousandths")]
fn thousandths(ratio: f64) -> i64 {
    (ratio * RETRY as f64) as i64
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_was_never_sent_is_retried_for_every_method_and_the_rest_for_idempotent_ones() {
        let policy = RetryPolicy::default();
        for (outcome, get, post) in [
            (Outcome::ConnectFailure, true, true),
            (Outcome::RefusedStream, true, true),
            (Outcome::Reset, true, false),
            (Outcome::TryTimeout, true, false),
            (Outcome::Status(503), true, false),
            (Outcome::Status(500), false, false),
            (Outcome::Status(429), false, false),
        ] {
            assert_eq!(policy.retries(outcome, "GET"), get, "GET {outcome:?}");
            assert_eq!(policy.retries(outcome, "POST"), post, "POST {outcome:?}");
        }
        let asked = RetryPolicy { any_method: true, status_codes: vec![500], ..RetryPolicy::default() };
        assert!(asked.retries(Outcome::Status(500), "POST"));
    }

    #[test]
    fn backoff_doubles_up_to_its_maximum() {
        let policy = RetryPolicy::default();
        for (random, expected) in [(0.0, [25, 50, 100, 200, 250]), (1.0, [50, 100, 200, 250, 250])] {
            let waits: Vec<u128> = (2..7).map(|next| policy.backoff(next, random).as_millis()).collect();
            assert_eq!(waits, expected);
        }
    }

    /// (9)
    #[test]
    fn backoff_is_a_least_wait() {
        let second = Duration::from_secs(1);
        let policy = RetryPolicy { backoff_base: second, backoff_max: Duration::ZERO, ..RetryPolicy::default() };
        for random in [0.0, 0.5, 1.0] {
            assert!((2..9).all(|next| policy.backoff(next, random) >= second));
        }
    }

    /// (9)
    #[test]
    fn a_budget_starts_full() {
        let settings = RetryBudget { ratio: 0.0, min_per_second: 10 };
        let granted = |requests: u32| {
            let budget = Budget::new(&settings, Duration::ZERO);
            (0..requests).for_each(|in_flight| budget.deposit(&settings, in_flight));
            (0..1000).filter(|_| budget.withdraw(&settings, Duration::ZERO)).count()
        };
        assert_eq!(granted(0), 10);
        assert_eq!(granted(100), 59, "of the others every second one, and ten");
        assert_eq!(granted(1000), 100, "that of ten seconds is all that it holds");
    }

    /// (27.8)
    #[test]
    fn at_a_low_rate_at_most_every_second_request_is_tried_again() {
        let settings = RetryBudget::default();
        for (rate, most) in [(1, 0.67), (5, 0.67), (20, 0.67), (200, 0.35)] {
            let budget = Budget::new(&settings, Duration::ZERO);
            let (calls, mut granted) = (60 * rate, 0);
            for n in 0..calls {
                budget.deposit(&settings, 0);
                granted += u32::from(budget.withdraw(&settings, Duration::from_secs(1) * n / rate));
            }
            let share = f64::from(granted) / f64::from(calls);
            assert!(share <= most && share >= 0.2, "{share} at {rate}/s");
        }
    }

    proptest! {
        #[test]
        fn the_budget_is_never_exceeded(
            ratio in 0.0f64..=1.0,
            min in 0u32..50,
            steps in prop::collection::vec((0u64..500, 0u32..50, 0u32..50), 1..60),
        ) {
            let settings = RetryBudget { ratio, min_per_second: min };
            let budget = Budget::new(&settings, Duration::ZERO);
            let (mut now, mut requests, mut granted) = (0u64, 0u64, 0u64);
            for (wait, deposits, asks) in steps {
                now += wait;
                for in_flight in 0..deposits {
                    budget.deposit(&settings, in_flight);
                    requests += 1;
                }
                for _ in 0..asks {
                    granted += u64::from(budget.withdraw(&settings, Duration::from_millis(now)));
                }
                let allowed = ratio * requests as f64 + f64::from(min) * (now as f64 / 1000.0) + capacity(&settings) as f64 / RETRY as f64;
                prop_assert!(granted as f64 <= allowed + 1e-6, "{granted} retries, {allowed} allowed");
                let share = ratio.max(SHARE) * requests as f64 + BURST as f64;
                prop_assert!(granted as f64 <= share + 1e-6, "{granted} retries, a share of {share}");
            }
        }
    }
}
