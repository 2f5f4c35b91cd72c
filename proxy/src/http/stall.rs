//! Bodies whose reader takes nothing although bytes wait for it: an exchange with one ends. A silent body is none: nothing of it
//! waits.
//! A reader that has taken bytes after some had to wait is only pausing, and has a time of its own. HTTP/2 says by credit what was
//! taken; of HTTP/1 only the kernel is known, which takes bytes that no reader has asked for, so that there a reader counts as one
//! that reads once more was taken than sockets hold, or some after a while without any.
//! HTTP/2 counts the ticks of `muxes`, HTTP/1 has a [`Watch`]. Its timer starts when a body first waits.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep};

/// Bytes of a body that the sockets of both sides may hold.
const SOCKETS: u64 = 4 * 1024 * 1024;
/// A timeout is watched in so many steps.
const STEPS: u32 = 8;

/// How long bytes of a body may wait without any being taken; `None`: for ever.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Timeouts {
    /// By a reader that has taken none that had to wait.
    unread: Option<Duration>,
    /// By one that has.
    paused: Option<Duration>,
}

/// Watches one body over HTTP/1 from its first wait on.
#[derive(Debug)]
pub(crate) struct Watch {
    timeouts: Timeouts,
    timer: Option<Pin<Box<Sleep>>>,
    /// Bytes written at the last step.
    seen: u64,
    /// Steps since without any.
    steps: u32,
    taken: bool,
}

impl Timeouts {
    /// Zero means for ever.
    pub(crate) fn new(unread: Duration, paused: Duration) -> Self {
        let some = |timeout: Duration| (!timeout.is_zero()).then_some(timeout);
        Self { unread: some(unread), paused: some(paused) }
    }

    fn of(self, taken: bool) -> Option<Duration> {
        if taken { self.paused } else { self.unread }
    }

    /// In ticks of a second. `taken`: the reader has taken bytes that had to wait.
    pub(crate) fn ticks(self, taken: bool) -> u32 {
        let ticks = |timeout: Duration| u32::try_from(timeout.as_millis().div_ceil(1000)).unwrap_or(u32::MAX);
        self.of(taken).map_or(u32::MAX, ticks)
    }
}

impl Watch {
    pub(crate) fn new(timeouts: Timeouts) -> Self {
        Self { timeouts, timer: None, seen: 0, steps: 0, taken: false }
    }

    /// To be polled while bytes wait. Ready when none was taken for the timeout, at most an eighth of it too early. `written`:
    /// bytes of the body that the connection has taken.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, written: u64) -> Poll<()> {
        loop {
            let timeout = self.timeouts.of(self.taken);
            // Even if no timeout is in force, it must be seen that the reader reads, for the one of a pause.
            let Some(watched) = timeout.or(self.timeouts.paused.filter(|_| !self.taken)) else { return Poll::Pending };
            let step = watched / STEPS;
            let timer = match &mut self.timer {
                Some(timer) => timer,
                none => {
                    self.seen = written;
                    none.insert(Box::pin(sleep(step)))
                }
            };
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if written == self.seen {
                self.steps = self.steps.saturating_add(1);
            } else {
                self.taken |= self.steps > 0 || written > SOCKETS;
                (self.seen, self.steps) = (written, 0);
            }
            let next = self.timeouts.of(self.taken).map_or(step, |timeout| timeout / STEPS);
            timer.as_mut().reset(Instant::now() + next);
            if timeout.is_some() && self.steps >= STEPS - 1 {
                return Poll::Ready(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::time::timeout;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// How long a watch lasts while the bytes of `takes` are taken at their times.
    async fn lasts(timeouts: Timeouts, takes: &[(u64, u64)]) -> Option<u64> {
        let (started, mut watch) = (Instant::now(), Watch::new(timeouts));
        for (at, written) in takes.iter().chain([&(100_000, 0)]) {
            let most = started + SECOND * u32::try_from(*at).unwrap() - Instant::now();
            let written = if *written > 0 {
                takes[..].iter().filter(|(then, _)| then < at).map(|take| take.1).sum()
            } else {
                takes.iter().map(|take| take.1).sum()
            };
            if timeout(most, poll_fn(|cx| watch.poll(cx, written))).await.is_ok() {
                return Some(started.elapsed().as_secs());
            }
        }
        None
    }

    /// (32)
    #[tokio::test(start_paused = true)]
    async fn a_body_of_which_nothing_is_taken_ends_and_one_that_is_read_does_not() {
        let default = Timeouts::new(SECOND * 60, Duration::ZERO);
        assert!((52..=60).contains(&lasts(default, &[]).await.unwrap()));
        let drip: Vec<_> = (1..200).map(|i| (i * 50, 1)).collect();
        assert_eq!(lasts(default, &drip).await, None, "it has read, and may pause");
        assert_eq!(lasts(default, &[(5, 5 << 20)]).await, None, "no socket holds as much");
        let end = lasts(default, &[(5, 1 << 20)]).await.unwrap();
        assert!((57..=70).contains(&end), "a socket may have taken it: {end}");
        let both = Timeouts::new(SECOND * 60, SECOND * 300);
        let end = lasts(both, &[(50, 1)]).await.unwrap();
        assert!((300..=360).contains(&end), "{end}");
        assert_eq!(lasts(Timeouts::new(Duration::ZERO, Duration::ZERO), &[]).await, None);
        assert_eq!(lasts(Timeouts::new(Duration::ZERO, SECOND * 60), &[]).await, None);
    }
}
