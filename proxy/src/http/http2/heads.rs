//! Memory for the heads of requests in flight. HPACK makes 16 KiB of a hundred bytes, and a request that is never finished keeps
//! them (an "HTTP bomb"), so their sum is bounded: for one connection, and for all connections of the proxy. A request above the
//! bound is refused with REFUSED_STREAM, so that its caller may send it again.
//!
//! # Defaults
//! A head counts with what is above 4 KiB. 64 KiB for one connection of a caller; 16 MiB for the proxy, of which one connection takes
//! at most an eighth of what is left. A connection of another proxy, whose callers were bounded there, is bounded by the second only.

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

/// The heads of one connection.
#[derive(Debug, Default)]
pub(super) struct Heads {
    /// Of all connections, in bytes.
    total: Arc<AtomicUsize>,
    own: usize,
    /// The peer is a proxy.
    is_proxy: bool,
}

impl Heads {
    pub(super) fn new(total: Arc<AtomicUsize>, is_proxy: bool) -> Self {
        Self { total, own: 0, is_proxy }
    }

    /// Takes the memory of a head; `None` if it is above a bound. What was taken is to be released.
    pub(super) fn take(&mut self, fields: &mut Fields) -> Option<usize> {
        let size = fields.memory().saturating_sub(FREE);
        if size == 0 {
            return Some(0);
        }
        let left = PROXY.saturating_sub(self.total.load(Relaxed));
        let most = if self.is_proxy { left } else { CONNECTION.saturating_sub(self.own).min(left / PART) };
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
        let mut connections: Vec<_> = (0..400).map(|_| Heads::new(total.clone(), false)).collect();
        let mut taken = Vec::new();
        for (number, heads) in connections.iter_mut().enumerate() {
            while let Some(size) = heads.take(&mut head(16_000)) {
                taken.push((number, size));
            }
            assert!(heads.own <= CONNECTION);
        }
        assert!((PROXY / 2..=PROXY).contains(&total.load(Relaxed)), "{total:?}");
        let mut honest = Heads::new(total.clone(), false);
        assert_eq!(honest.take(&mut head(1_000)), Some(0));
        let size = honest.take(&mut head(5_000)).expect("something is left");
        honest.release(size);
        for (number, size) in taken {
            connections[number].release(size);
        }
        assert_eq!(total.load(Relaxed), 0);
    }
}
