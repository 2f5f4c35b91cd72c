//! Which failures of a workload come from behind it: from a service that it called, and whose call its proxy has already
//! retried. Such an answer is marked, so that of the proxies on a chain only the one next to the failure retries.
//! How: a trace that the application passes on tells it exactly. Without one, a failing answer is taken for one from behind if a
//! call failed since its request came, and if at least every fourth such failure of late had a failing answer: a workload that
//! does without what it calls fails for other reasons. Shared by all workers, without a lock; only failures cost anything.
//! Docs: docs/adr/0037.

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Traces remembered, by their IDs; a further one replaces another.
const TRACES: usize = 256;
/// Failing calls for each failing answer, at most.
const CALLS: u32 = 4;

/// The failures behind one workload.
#[derive(Debug)]
pub struct Behind {
    /// Traces of calls that failed, by the last bits of their IDs.
    traces: [AtomicU64; TRACES],
    /// When a call failed last, in microseconds; 0: never.
    last: AtomicU64,
    /// The same of a call without a trace.
    last_untraced: AtomicU64,
    /// Calls that failed, halved each second.
    calls: AtomicU32,
    /// Failing answers since whose request a call failed, halved each second.
    answers: AtomicU32,
    /// The second in which both were halved last.
    halved: AtomicU64,
}

impl Default for Behind {
    fn default() -> Self {
        Self {
            traces: [const { AtomicU64::new(0) }; TRACES],
            last: AtomicU64::new(0),
            last_untraced: AtomicU64::new(0),
            calls: AtomicU32::new(0),
            answers: AtomicU32::new(0),
            halved: AtomicU64::new(0),
        }
    }
}

impl Behind {
    /// A call of the workload has failed, and it was retried or there was no budget for it. `traceparent`: that of the call.
    pub fn failed(&self, traceparent: Option<&[u8]>, now: Duration) {
        let trace = traceparent.and_then(trace_id);
        match trace {
            Some(trace) => {
                if let Some(slot) = self.slot(trace) {
                    slot.store(trace, Relaxed);
                }
            }
            None => {
                self.last_untraced.fetch_max(micros(now), Relaxed);
            }
        }
        self.last.fetch_max(micros(now), Relaxed);
        self.halve(now);
        self.calls.fetch_add(1, Relaxed);
    }

    /// Whether a failing answer of the workload comes from behind it. `traceparent` and `since`: of its request.
    pub fn explains(&self, traceparent: Option<&[u8]>, since: Duration, now: Duration) -> bool {
        let trace = traceparent.and_then(trace_id);
        if let Some(trace) = trace
            && self.slot(trace).is_some_and(|slot| slot.load(Relaxed) == trace)
        {
            return true;
        }
        // An application that passes on traces would have passed on this one.
        let last = if trace.is_some() { &self.last_untraced } else { &self.last };
        let last = last.load(Relaxed);
        if last == 0 || last < micros(since) {
            return false;
        }
        self.halve(now);
        let answers = self.answers.fetch_add(1, Relaxed).saturating_add(1);
        answers.saturating_mul(CALLS) >= self.calls.load(Relaxed)
    }

    fn slot(&self, trace: u64) -> Option<&AtomicU64> {
        self.traces.get(usize::try_from(trace % TRACES as u64).ok()?)
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
    fn without_traces_a_failure_since_the_request_came_explains_its_answer() {
        let behind = Behind::default();
        assert!(!behind.explains(None, ms(0), ms(1)), "nothing has failed");
        behind.failed(None, ms(10));
        assert!(behind.explains(None, ms(9), ms(11)));
        assert!(behind.explains(ONE, ms(9), ms(11)), "the application passes nothing on");
        assert!(!behind.explains(None, ms(11), ms(12)), "the request came later");
    }

    /// (27.8)
    #[test]
    fn a_trace_tells_exactly() {
        let behind = Behind::default();
        behind.failed(ONE, ms(10));
        assert!(behind.explains(ONE, ms(9), ms(11)));
        assert!(!behind.explains(OTHER, ms(9), ms(11)), "it passes traces on, and this one is another");
        assert!(behind.explains(None, ms(9), ms(11)), "the caller sends none, and the application begins them");
        assert_eq!(trace_id(b"00-zz"), None);
        assert_eq!(trace_id(b"00-00000000000000000000000000000000-00f067aa0ba902b7-01"), None);
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
