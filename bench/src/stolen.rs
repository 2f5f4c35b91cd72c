//! Detects when the hypervisor takes a CPU away. `/proc/stat` reports this only if the hypervisor does, and in ticks of 10 ms;
//! on the machines on which this project is measured it reports nothing, while a CPU is away for 0.2 to 15 ms, 1 to 5 % of the
//! time: more than the one request in a hundred that a p99 is about.
//!
//! On each CPU a thread with the highest priority (SCHED_FIFO) wakes every millisecond. When it wakes late, no other thread ran
//! either. Its cost, some microseconds of each millisecond, is the same for all contestants.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::process::{go_first, pin};

/// Between two looks at the clock.
const EVERY: Duration = Duration::from_millis(1);
/// Later than this is no delay of the kernel's own.
const LATE: Duration = Duration::from_micros(200);

/// Looks out for as long as it lives.
#[derive(Debug)]
pub struct Lookout {
    spans: Arc<Mutex<Vec<Span>>>,
    ended: Arc<AtomicBool>,
}

/// A time in which a CPU was away for a part.
#[derive(Clone, Copy, Debug)]
struct Span {
    from: Instant,
    to: Instant,
}

/// Times in which a CPU was away, in order and apart.
#[derive(Clone, Debug, Default)]
pub struct Stolen(Vec<Span>);

impl Lookout {
    /// Begins on these CPUs.
    ///
    /// # Errors
    /// A thread cannot be started, or may not go before all others, which takes root.
    pub fn begin(cpus: &[usize]) -> Result<Self> {
        let lookout = Self { spans: Arc::default(), ended: Arc::default() };
        for &cpu in cpus {
            let (spans, ended) = (Arc::clone(&lookout.spans), Arc::clone(&lookout.ended));
            let (tell, told) = std::sync::mpsc::channel();
            thread::Builder::new().name("lookout".to_owned()).spawn(move || {
                let ready = pin(cpu).and_then(|()| go_first());
                let failed = ready.is_err();
                // Nobody hears it when another CPU's thread failed.
                drop(tell.send(ready));
                if failed {
                    return;
                }
                let mut from = Instant::now();
                while !ended.load(Ordering::Relaxed) {
                    thread::sleep(EVERY);
                    let to = Instant::now();
                    if to - from > EVERY + LATE {
                        spans.lock().push(Span { from, to });
                    }
                    from = to;
                }
            })?;
            told.recv()??;
        }
        Ok(lookout)
    }

    /// What was seen so far.
    #[must_use]
    pub fn seen(&self) -> Stolen {
        Stolen::new(self.spans.lock().clone())
    }
}

impl Drop for Lookout {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

impl Stolen {
    fn new(mut spans: Vec<Span>) -> Self {
        spans.sort_by_key(|span| span.from);
        let mut apart: Vec<Span> = Vec::new();
        for span in spans {
            match apart.last_mut() {
                Some(last) if span.from <= last.to => last.to = last.to.max(span.to),
                _ => apart.push(span),
            }
        }
        Self(apart)
    }

    /// What a request took that was under way from `from` to `to`, as far as no CPU was away. `None` where one was and the
    /// rest is so short that the edges, known to a millisecond, matter: of that request nothing is known.
    #[must_use]
    pub fn without(&self, from: Instant, to: Instant) -> Option<Duration> {
        let first = self.0.partition_point(|span| span.to < from);
        let within = self.0.iter().skip(first).take_while(|span| span.from <= to);
        let mut away = within.map(|span| span.to.min(to) - span.from.max(from)).peekable();
        let untouched = away.peek().is_none();
        let left = (to - from).saturating_sub(away.sum());
        (untouched || left > 2 * EVERY).then_some(left)
    }
}

#[cfg(test)]
mod tests {
    use rustix::thread::{CpuSet, sched_getaffinity};

    use super::*;

    #[test]
    fn spans_of_several_cpus_are_joined_and_found() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let span = |from, to| Span { from: at(from), to: at(to) };
        let stolen = Stolen::new(vec![span(50, 60), span(10, 20), span(15, 30), span(16, 18)]);
        assert_eq!(stolen.0.len(), 2);
        let without = |from, to| stolen.without(at(from), at(to)).map(|left| left.as_millis());
        assert_eq!([without(0, 9), without(31, 49), without(61, 99)], [Some(9), Some(18), Some(38)]);
        assert_eq!([without(0, 10), without(12, 13), without(9, 31), without(30, 30)], [Some(10), None, None, None]);
        // What stalls for another reason is not hidden.
        assert_eq!([without(25, 70), without(5, 45)], [Some(30), Some(20)]);
        assert_eq!(Stolen::default().without(at(0), at(99)), Some(Duration::from_millis(99)));
    }

    /// Who goes before all others is late only where the machine is.
    #[test]
    fn work_beside_it_is_no_theft() {
        let allowed = sched_getaffinity(None).unwrap();
        let cpu = (0..CpuSet::MAX_CPU).find(|&cpu| allowed.is_set(cpu)).unwrap();
        let Ok(lookout) = Lookout::begin(&[cpu]) else {
            // Not root. Then nothing is looked out for, and the bench says so.
            assert!(!rustix::process::geteuid().is_root(), "root may go before all others");
            return;
        };
        let busy = thread::spawn(move || {
            pin(cpu).unwrap();
            let start = Instant::now();
            let mut sum = 0_u64;
            while start.elapsed() < Duration::from_millis(400) {
                sum = std::hint::black_box(sum.wrapping_add(1));
            }
        });
        let start = Instant::now();
        busy.join().unwrap();
        let away: Duration = lookout.seen().0.iter().map(|span| span.to - span.from).sum();
        // A thread of the kernel's fair class would be away for half of the time.
        assert!(away < start.elapsed() / 3, "away for {away:?}");
    }
}
