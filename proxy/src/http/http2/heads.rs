//! Memory for the heads of requests in flight. HPACK makes 16 KiB of a hundred bytes, and a request that is never finished keeps
//! them (an "HTTP bomb"), so their sum is bounded: for one connection, and for all connections of the proxy. A request above the
//! bound is refused with REFUSED_STREAM, so that its caller may send it again.
//!
//! # Defaults
//! A head counts with what is above 4 KiB. 64 KiB for one connection of a caller; 16 MiB for the proxy, of which one connection takes
//! at most an eighth of what is left. The workload's own connections, which carry all calls of a process, know no 64 KiB; a connection
//! of another proxy, whose callers were bounded there, knows the 16 MiB only.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use weft_http::fields::Fields;

/// Bytes of a head that do not count: what else a request in flight occupies is more, and tokens of honest callers fit.
const FREE: usize = 4 * 1024;
/// Most bytes of the requests in flight on one connection.
const CONNECTION: usize = 64 * 1024;
/// Most bytes of the requests in flight on all connections.
const PROXY: usize = 16 * 1024 * 1024;
/// A connection takes at most this part of what is left for all.
const PART: usize = 8;

/// Whose requests a connection carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Sender {
    /// Those of a caller outside the mesh.
    #[default]
    Caller,
    /// Those of the workload beside the proxy.
    Workload,
    /// Those of another proxy's callers.
    Proxy,
}

/// The heads of one connection.
#[derive(Debug, Default)]
pub(super) struct Heads {
    /// Of all connections, in bytes.
    total: Arc<AtomicUsize>,
    own: usize,
    sender: Sender,
}

impl Heads {
    pub(super) fn new(total: Arc<AtomicUsize>, sender: Sender) -> Self {
        Self { total, own: 0, sender }
    }

    /// Takes the memory of a head; `None` if it is above a bound. What was taken is to be released.
    pub(super) fn take(&mut self, fields: &mut Fields) -> Option<usize> {
        let size = fields.memory().saturating_sub(FREE);
        if size == 0 {
            return Some(0);
        }
        let left = PROXY.saturating_sub(self.total.load(Relaxed));
        let most = match self.sender {
            Sender::Caller => CONNECTION.saturating_sub(self.own).min(left / PART),
            Sender::Workload => left / PART,
            Sender::Proxy => left,
        };
        if size > most {
            return None;
        }
        fields.shrink();
        self.own += size;
        self.total.fetch_add(size, Relaxed);
        Some(size)
    }

    pub(super) fn release(&mut self, size: usize) {
        if size > 0 {
            self.own = self.own.saturating_sub(size);
            self.total.fetch_sub(size, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(size: usize) -> Fields {
        [("x", "v".repeat(size).as_str())].into_iter().collect()
    }

    /// (31)
    #[test]
    fn connections_share_what_is_left_and_small_heads_always_pass() {
        let total = Arc::new(AtomicUsize::new(0));
        let mut connections: Vec<_> = (0..400).map(|_| Heads::new(total.clone(), Sender::Caller)).collect();
        let mut taken = Vec::new();
        for (number, heads) in connections.iter_mut().enumerate() {
            while let Some(size) = heads.take(&mut head(16_000)) {
                taken.push((number, size));
            }
            assert!(heads.own <= CONNECTION);
        }
        assert!((PROXY / 2..=PROXY).contains(&total.load(Relaxed)), "{total:?}");
        let mut honest = Heads::new(total.clone(), Sender::Caller);
        assert_eq!(honest.take(&mut head(1_000)), Some(0));
        let size = honest.take(&mut head(5_000)).expect("something is left");
        honest.release(size);
        for (number, size) in taken {
            connections[number].release(size);
        }
        assert_eq!(total.load(Relaxed), 0);
    }

    /// (31)
    #[test]
    fn one_channel_of_the_workload_carries_many_calls_with_large_heads() {
        let mut heads = Heads::new(Arc::default(), Sender::Workload);
        for call in 0..100 {
            assert!(heads.take(&mut head(8_000)).is_some(), "call {call}");
        }
    }
}
