//! Lets the other threads on a worker's CPU run before the worker sleeps (docs/adr/0017, 0019). What they do meanwhile the worker then
//! finds together: where workers share a CPU each handles and writes more at a time than one that is woken for the first event.
//! Invariant: who computes on that CPU gets little more of it than without. He would keep it to the end of his slice, and no event
//! wakes a worker that does not sleep: so nobody is let go first for a while when the CPU too often comes back late.
//! Nor is anybody while there is little to find: then the others come sooner by a worker that sleeps.
//!
//! # Defaults
//! Late: after [`LATE`]. Too often: at [`LIMIT`] points, [`POINTS`] for each time that was late, one off for each that was not;
//! so more than one of five. For a while: [`PAUSE`]. Little: on average less than [`SEVERAL`] reads between two times of having
//! nothing to do; the last of these makes up one part in [`SHARE`] of the average.

use std::{cell::Cell, time::Duration};

use tokio::time::Instant;

use crate::buffer;

/// Of a hundred times among workers five to ten take longer on a slow machine; of a hundred beside one who computes, at least half.
const LATE: Duration = Duration::from_millis(1);
const POINTS: u8 = 4;
const LIMIT: u8 = 32;
const PAUSE: Duration = Duration::from_secs(10);
const SEVERAL: u32 = 2;
const SHARE: u32 = 8;
/// What the average counts a read as, so that parts of one are not lost.
const READ: u32 = 256;

thread_local! {
    static COURTESY: Cell<Courtesy> = const { Cell::new(Courtesy::NEW) };
}

/// To be called by a worker that has siblings when it has nothing to do.
pub(super) fn let_others_run() {
    let mut courtesy = COURTESY.get();
    if courtesy.finds_several(buffer::take_reads()) {
        let before = Instant::now();
        if courtesy.is_due(before) {
            rustix::thread::sched_yield();
            courtesy.came_back(before, Instant::now());
        }
    }
    COURTESY.set(courtesy);
}

#[derive(Debug, Clone, Copy)]
struct Courtesy {
    points: u8,
    /// Nobody is let go first until then.
    resumes: Option<Instant>,
    /// Reads between two times of having nothing to do, on average, times [`READ`].
    average: u32,
}

impl Courtesy {
    const NEW: Self = Self { points: 0, resumes: None, average: 0 };

    /// Takes into account how much was read since the last time.
    fn finds_several(&mut self, reads: u32) -> bool {
        // More at once is not counted: soon after a burst there may be little again.
        self.average = self.average - self.average / SHARE + reads.min(2 * SEVERAL * SHARE) * (READ / SHARE);
        self.average >= SEVERAL * READ
    }

    fn is_due(&self, now: Instant) -> bool {
        self.resumes.is_none_or(|resumes| now >= resumes)
    }

    fn came_back(&mut self, before: Instant, now: Instant) {
        if now.saturating_duration_since(before) < LATE {
            self.points = self.points.saturating_sub(1);
            return;
        }
        self.points = self.points.saturating_add(POINTS);
        if self.points >= LIMIT {
            (self.points, self.resumes) = (0, Some(now + PAUSE));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Is away for each of these times, one after the other, as long as it is due. Returns how many were.
    fn away(courtesy: &mut Courtesy, now: &mut Instant, times: impl IntoIterator<Item = Duration>) -> usize {
        times
            .into_iter()
            .take_while(|time| {
                let due = courtesy.is_due(*now);
                if due {
                    let before = *now;
                    *now += *time;
                    courtesy.came_back(before, *now);
                }
                due
            })
            .count()
    }

    #[test]
    fn siblings_are_always_let_go_first() {
        let (mut courtesy, mut now) = (Courtesy::NEW, Instant::now());
        let times = [900, 5_000, 200, 1_000, 900, 100, 300, 200, 400, 10, 200, 300].map(Duration::from_micros);
        assert_eq!(away(&mut courtesy, &mut now, times.into_iter().cycle().take(120_000)), 120_000);
    }

    #[test]
    fn who_computes_is_let_go_first_a_few_times_in_ten_seconds() {
        let (mut courtesy, mut now) = (Courtesy::NEW, Instant::now());
        for (times, count) in [(vec![LATE], 8), (vec![LATE * 4, Duration::ZERO], 21)] {
            for _ in 0..10 {
                assert_eq!(away(&mut courtesy, &mut now, times.iter().copied().cycle().take(100)), count);
                now += PAUSE - Duration::from_nanos(1);
                assert!(!courtesy.is_due(now));
                now += Duration::from_nanos(1);
            }
        }
        // When he has gone, siblings are let go first again.
        assert_eq!(away(&mut courtesy, &mut now, [Duration::ZERO; 100]), 100);
    }

    #[test]
    fn nobody_is_let_go_first_while_there_is_little_to_find() {
        // The last of `times` wakings with these reads in turn.
        let after = |courtesy: &mut Courtesy, reads: &[u32], times: usize| {
            reads.iter().cycle().take(times).map(|reads| courtesy.finds_several(*reads)).last().unwrap()
        };
        let mut courtesy = Courtesy::NEW;
        assert!(!after(&mut courtesy, &[1], 10_000));
        assert!(!after(&mut courtesy, &[1, 2], 10_000));
        assert!(after(&mut courtesy, &[2], 100));
        assert!(after(&mut courtesy, &[0, 5, 3], 9));
        // A burst is forgotten after a moment.
        assert!(after(&mut courtesy, &[u32::MAX], 1));
        assert!(!after(&mut courtesy, &[1], 30));
        assert!(!after(&mut courtesy, &[0], 10_000));
        assert_eq!(courtesy.average / READ, 0);
    }
}
