//! Which failures of a workload come from behind it: from a service that it called, and whose call its proxy has already
//! retried. Such an answer is marked, so that of the proxies on a chain only the one next to the failure retries.
//! How: a call that failed since the request came explains one failing answer, that of its trace where the application passes
//! traces on. Without a trace it has to have failed just before the answer, and at least every fourth such failure of late must
//! have had a failing answer: a workload that does without what it calls fails for other reasons.
//! Shared by all workers, without a lock; only failures cost anything.
//! Docs: docs/adr/0037.

use std::{
    sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

/// Failing calls remembered; a further one replaces the oldest.
const CALLS: usize = 256;
/// How long before an answer a call without its trace has to have failed at most. Most applications answer at once; one that takes
/// longer is retried once more than it needs to be.
const JUST_BEFORE: Duration = Duration::from_millis(100);
/// Failing calls for each failing answer, at most.
const CALLS_PER_ANSWER: u32 = 4;

/// The failures behind one workload.
#[derive(Debug)]
pub struct Behind {
    failed: [Call; CALLS],
    /// Calls that failed in all.
    next: AtomicUsize,
    /// Calls that failed, halved each second.
    calls: AtomicU32,
    /// Failing answers since whose request a call failed, halved each second.
    answers: AtomicU32,
    /// The second in which both were halved last.
    halved: AtomicU64,
}

/// A call that failed and explains no answer yet.
#[derive(Debug, Default)]
struct Call {
    /// When, in microseconds; 0: none.
    time: AtomicU64,
    /// The last bits of its trace's ID; 0: without a trace.
    trace: AtomicU64,
}

impl Default for Behind {
    fn default() -> Self {
        Self {
            failed: std::array::from_fn(|_| Call::default()),
            next: AtomicUsize::new(0),
            calls: AtomicU32::new(0),
            answers: AtomicU32::new(0),
            halved: AtomicU64::new(0),
        }
    }
}

impl Behind {
    /// A call of the workload has failed, and it was retried or there was no budget for it. `traceparent`: that of the call.
    pub fn failed(&self, traceparent: Option<&[u8]>, now: Duration) {
        let next = self.next.fetch_add(1, Relaxed);
        if let Some(call) = self.failed.get(next % CALLS) {
            call.trace.store(traceparent.and_then(trace_id).unwrap_or(0), Relaxed);
            call.time.store(micros(now).max(1), Relaxed);
        }
        self.halve(now);
        self.calls.fetch_add(1, Relaxed);
    }

    /// Whether a failing answer of the workload comes from behind it. `traceparent` and `since`: of its request.
    pub fn explains(&self, traceparent: Option<&[u8]>, since: Duration, now: Duration) -> bool {
        let trace = traceparent.and_then(trace_id).unwrap_or(0);
        if trace != 0 && self.take(since, |call| call == trace) {
            return true;
        }
        // An application that passes on traces would have passed on this one.
        let just_before = since.max(now.saturating_sub(JUST_BEFORE));
        if !self.take(just_before, |call| trace == 0 || call == 0) {
            return false;
        }
        self.halve(now);
        let answers = self.answers.fetch_add(1, Relaxed).saturating_add(1);
        answers.saturating_mul(CALLS_PER_ANSWER) >= self.calls.load(Relaxed)
    }

    /// Takes the last call that failed since a time, with such a trace.
    fn take(&self, since: Duration, wanted: impl Fn(u64) -> bool) -> bool {
        let (since, next) = (micros(since), self.next.load(Relaxed));
        (1..=CALLS.min(next)).filter_map(|back| self.failed.get((next - back) % CALLS)).any(|call| {
            let time = call.time.load(Relaxed);
            time != 0
                && time >= since
                && wanted(call.trace.load(Relaxed))
                && call.time.compare_exchange(time, 0, Relaxed, Relaxed).is_ok()
        })
    }

    fn halve(&self, now: Duration) {
        let (now, last) = (now.as_secs(), self.halved.load(Relaxed));
        if now > last && self.halved.compare_exchange(last, now, Relaxed, Relaxed).is_ok() {
            let times = u32::try_from(now - last).unwrap_or(u32::MAX);
            for count in [&self.calls, &self.answers] {
                count.store(count.load(Relaxed).checked_shr(times).unwrap_or(0), Relaxed);
            }
        }
    }
}

/// The last eight bytes of a trace's ID, which are random (W3C Trace Context §3.2.2.3); `None` for what is no ID.
fn trace_id(traceparent: &[u8]) -> Option<u64> {
    let id = std::str::from_utf8(traceparent.get(3..35)?).ok()?;
    let last = id.get(16..)?;
    u64::from_str_radix(last, 16).ok().filter(|id| *id != 0)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Option<&[u8]> = Some(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    const OTHER: Option<&[u8]> = Some(b"00-4bf92f3577b34da6a3ce929d0e0e4737-00f067aa0ba902b7-01");

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// (27.8)
    #[test]
    fn without_traces_a_call_that_failed_just_before_explains_one_answer() {
        let behind = Behind::default();
        assert!(!behind.explains(None, ms(0), ms(1)), "nothing has failed");
        behind.failed(None, ms(10));
        assert!(!behind.explains(None, ms(11), ms(12)), "the request came later");
        assert!(!behind.explains(None, ms(0), ms(500)), "long before the answer");
        assert!(behind.explains(None, ms(9), ms(11)));
        assert!(!behind.explains(None, ms(9), ms(11)), "it explains another answer");
        behind.failed(None, ms(20));
        assert!(behind.explains(ONE, ms(19), ms(21)), "the application passes nothing on");
    }

    /// (27.8)
    #[test]
    fn a_trace_tells_exactly() {
        let behind = Behind::default();
        behind.failed(ONE, ms(10));
        assert!(!behind.explains(OTHER, ms(9), ms(11)), "it passes traces on, and this one is another");
        assert!(!behind.explains(ONE, ms(11), ms(12)), "a request of the same trace that came later");
        behind.failed(None, ms(20));
        assert!(behind.explains(ONE, ms(9), ms(5_000)), "however long the application takes");
        assert!(!behind.explains(ONE, ms(9), ms(5_000)));
        behind.failed(ONE, ms(6_000));
        assert!(behind.explains(None, ms(5_999), ms(6_001)), "the caller sends none, and the application begins them");
        assert_eq!(trace_id(b"00-zz"), None);
        assert_eq!(trace_id(b"00-00000000000000000000000000000000-00f067aa0ba902b7-01"), None);
    }

    /// (27.8) A path whose calls always fail does not take the retries from answers that fail for reasons of their own.
    #[test]
    fn failures_of_one_path_explain_few_of_another_one() {
        let behind = Behind::default();
        let mut marked = 0;
        for n in 1..1_000 {
            let now = ms(n * 10);
            behind.failed(None, now);
            assert!(behind.explains(None, now - ms(5), now + ms(1)));
            // An answer of the workload's own, of a request that came long before.
            marked += u32::from(behind.explains(None, now.saturating_sub(ms(400)), now + ms(5)));
        }
        assert_eq!(marked, 0);
    }

    /// (27.8)
    #[test]
    fn more_calls_than_are_remembered_replace_the_oldest() {
        let behind = Behind::default();
        for n in 0..1_000 {
            behind.failed(None, ms(10) + Duration::from_micros(n));
        }
        let explained = (0..1_000).filter(|_| behind.explains(None, ms(1), ms(20))).count();
        assert!((1..=CALLS).contains(&explained), "{explained}");
    }

    /// (27.8)
    #[test]
    fn a_workload_that_does_without_what_it_calls_fails_for_other_reasons() {
        // Of 100 calls per second all fail, and so do 2 answers: the workload's own.
        let behind = Behind::default();
        let mut marked = 0;
        for second in 1..20 {
            for n in 0..100 {
                let now = ms(second * 1000 + n * 10);
                behind.failed(None, now);
                if n % 50 == 49 {
                    marked += u32::from(behind.explains(None, now - ms(5), now));
                }
            }
        }
        assert_eq!(marked, 0);
        // From now on every answer fails with its call.
        let explained = (0..100).filter(|n| {
            let now = ms(30_000 + n * 10);
            behind.failed(None, now);
            behind.explains(None, now - ms(5), now)
        });
        assert_eq!(explained.count(), 100);
    }
}
