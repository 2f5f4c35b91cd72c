//! The destinations that the workload calls, as discovery needs to know them: those that were called lately keep their
//! subscription, and those that were asked for in vain during an outage are not waited for again until discovery is back.
//!
//! # Defaults
//! At most 20,000 destinations of each kind.

use std::{
    collections::HashSet,
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use parking_lot::Mutex;

/// Most destinations noted between two looks of discovery.
const MAX_TOUCHED: usize = 20_000;
/// Most destinations remembered that were asked for during an outage and not answered.
const MAX_UNANSWERED: usize = 20_000;

/// The destinations that the workload calls, and whether discovery answers.
#[derive(Debug, Default)]
pub(crate) struct Interest {
    /// Called since discovery looked last.
    touched: Mutex<HashSet<SocketAddr>>,
    /// There is a discovery stream that answers.
    discovered: AtomicBool,
    /// Asked for during this outage, and not answered in time.
    unanswered: Mutex<HashSet<SocketAddr>>,
}

impl Interest {
    /// Notes that the workload calls a destination, so that its subscription is kept. Bounded: beyond [`MAX_TOUCHED`] a
    /// destination is noted at its next call.
    pub(crate) fn touch(&self, destination: SocketAddr) {
        let mut touched = self.touched.lock();
        if touched.len() < MAX_TOUCHED {
            touched.insert(destination);
        }
    }

    /// The destinations that were called since the last time.
    pub(crate) fn take_touched(&self) -> HashSet<SocketAddr> {
        std::mem::take(&mut *self.touched.lock())
    }

    /// Notes that the discovery stream answers, or is gone. A destination that was not answered during an outage is asked for
    /// again after it.
    pub(crate) fn set_discovered(&self, is_up: bool) {
        if self.discovered.swap(is_up, Relaxed) != is_up && is_up {
            self.unanswered.lock().clear();
        }
    }

    /// Notes that a destination was asked for and not answered in time. Bounded: beyond [`MAX_UNANSWERED`] a destination is
    /// waited for again.
    pub(crate) fn not_answered(&self, destination: SocketAddr) {
        if self.discovered.load(Relaxed) {
            return;
        }
        let mut unanswered = self.unanswered.lock();
        if unanswered.len() < MAX_UNANSWERED {
            unanswered.insert(destination);
        }
    }

    /// Whether waiting for discovery is pointless for this destination: there is no stream, and a request has waited for this
    /// destination since there was one.
    pub(crate) fn is_wait_pointless(&self, destination: SocketAddr) -> bool {
        !self.discovered.load(Relaxed) && self.unanswered.lock().contains(&destination)
    }
}
