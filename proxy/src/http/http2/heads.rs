//! Memory for the heads of requests in flight. HPACK makes 16 KiB of a hundred bytes, and a request that is never finished keeps
//! them (an "HTTP bomb"), so their sum is bounded: for one connection, and for all connections of the proxy. A request above the
//! bound is refused with REFUSED_STREAM, so that its caller may send it again.
//!
//! # Defaults
//! A head counts with what is above 4 KiB. 16 MiB for the proxy, of which one connection takes at most an eighth of what is left; and
//! for one connection of a caller 64 KiB of what HPACK has added to the bytes that came, so that a channel of many calls with long
//! tokens is not taken for a bomb. A connection of another proxy, whose callers were bounded there, is bounded by the 16 MiB only.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use weft_http::fields::Fields;

/// Bytes of a head that do not count: what else a request in flight occupies is more, and tokens of honest callers fit.
const FREE: usize = 4 * 1024;
/// Most bytes that HPACK may add to the heads of the requests in flight on one connection.
const CONNECTION: usize = 64 * 1024;
/// Most bytes of the requests in flight on all connections.
const PROXY: usize = 16 * 1024 * 1024;
/// A connection takes at most this part of what is left for all.
const PART: usize = 8;

/// The memory of one head, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    size: usize,
    /// What HPACK has added to the bytes that came.
    added: usize,
}

/// The heads of one connection.
#[derive(Debug, Default)]
pub(super) struct Heads {
    /// Of all connections, in bytes.
    total: Arc<AtomicUsize>,
    /// What HPACK has added on this connection, in bytes.
    added: usize,
    /// The peer is a proxy.
    is_proxy: bool,
}

impl Heads {
    pub(super) fn new(total: Arc<AtomicUsize>, is_proxy: bool) -> Self {
        Self { total, added: 0, is_proxy }
    }

    /// Takes the memory of a head that came in `wire` bytes; `None` if it is above a bound. What was taken is to be released.
    pub(super) fn take(&mut self, fields: &mut Fields, wire: usize) -> Option<Held> {
        let size = fields.memory().saturating_sub(FREE);
        if size == 0 {
            return Some(Held::default());
        }
        let held = Held { size, added: size.saturating_sub(wire) };
        let left = PROXY.saturating_sub(self.total.load(Relaxed));
        let fits = if self.is_proxy {
            size <= left
        } else {
            size <= left / PART && held.added <= CONNECTION.saturating_sub(self.added)
        };
        if !fits {
            return None;
        }
        fields.shrink();
        self.added += held.added;
        self.total.fetch_add(size, Relaxed);
        Some(held)
    }

    pub(super) fn release(&mut self, held: Held) {
        if held.size > 0 {
            self.added = self.added.saturating_sub(held.added);
            self.total.fetch_sub(held.size, Relaxed);
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
            while let Some(size) = heads.take(&mut head(16_000), 100) {
                taken.push((number, size));
            }
            assert!(heads.added <= CONNECTION);
        }
        assert!((PROXY / 2..=PROXY).contains(&total.load(Relaxed)), "{total:?}");
        let mut honest = Heads::new(total.clone(), false);
        assert_eq!(honest.take(&mut head(1_000), 20), Some(Held::default()));
        let size = honest.take(&mut head(5_000), 100).expect("something is left");
        honest.release(size);
        for (number, size) in taken {
            connections[number].release(size);
        }
        assert_eq!(total.load(Relaxed), 0);
    }

    /// (31)
    #[test]
    fn a_channel_of_many_calls_with_long_tokens_is_no_bomb() {
        let mut heads = Heads::new(Arc::default(), false);
        for call in 0..100 {
            assert!(heads.take(&mut head(8_000), 8_000).is_some(), "call {call}");
        }
    }
}
