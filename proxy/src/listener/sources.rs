//! Open connections by source, so that one source cannot take all of them.
//! A source is an address, of IPv6 the /64 that it is in: a host may use every address of it. On the outbound side there is
//! one source, the workload, and so no share. One identity has a share of its own: its workloads may have many addresses.
//! Shape: [`Sources::take`] counts a connection, [`Sources::release`] its end. A lock is shared by a few sources, and held for one
//! look-up.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, RandomState},
    net::{IpAddr, Ipv6Addr},
};

use parking_lot::Mutex;

const SHARDS: usize = 64;

/// By address.
#[derive(Debug)]
pub(super) struct Sources(Shares<IpAddr>);

/// By any key.
#[derive(Debug)]
pub(super) struct Shares<K> {
    /// Most connections under one key.
    share: u32,
    hasher: RandomState,
    shards: [Mutex<HashMap<K, u32>>; SHARDS],
}

impl Sources {
    pub(super) fn new(share: usize) -> Self {
        Self(Shares::new(share))
    }

    /// Counts one more connection; `false` where the source has its share already.
    pub(super) fn take(&self, caller: IpAddr) -> bool {
        self.0.take(&source(caller))
    }

    /// Counts the end of one.
    pub(super) fn release(&self, caller: IpAddr) {
        self.0.release(&source(caller));
    }
}

impl<K: Clone + Eq + Hash> Shares<K> {
    pub(super) fn new(share: usize) -> Self {
        let share = u32::try_from(share).unwrap_or(u32::MAX);
        Self { share, hasher: RandomState::new(), shards: std::array::from_fn(|_| Mutex::default()) }
    }

    /// Counts one more connection; `false` where the key has its share already.
    pub(super) fn take(&self, key: &K) -> bool {
        let Some(shard) = self.shard(key) else { return false };
        let mut counts = shard.lock();
        let count = counts.entry(key.clone()).or_default();
        let granted = *count < self.share;
        *count += u32::from(granted);
        granted
    }

    /// Counts the end of one.
    pub(super) fn release(&self, key: &K) {
        let Some(shard) = self.shard(key) else { return };
        let mut counts = shard.lock();
        if let Some(count) = counts.get_mut(key) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                counts.remove(key);
            }
        }
    }

    fn shard(&self, key: &K) -> Option<&Mutex<HashMap<K, u32>>> {
        self.shards.get(usize::try_from(self.hasher.hash_one(key) % SHARDS as u64).unwrap_or(0))
    }
}

fn source(caller: IpAddr) -> IpAddr {
    match caller {
        IpAddr::V4(_) => caller,
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (33)
    #[test]
    fn a_source_has_its_share_and_what_has_ended_is_forgotten() {
        let sources = Sources::new(2);
        let [one, same, other]: [IpAddr; 3] =
            ["2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"].map(|text| text.parse().unwrap());
        assert_eq!([one, same, one, other].map(|caller| sources.take(caller)), [true, true, false, true]);
        sources.release(same);
        assert!(sources.take(one));
        [one, one, other].into_iter().for_each(|caller| sources.release(caller));
        assert!(sources.0.shards.iter().all(|shard| shard.lock().is_empty()), "a scan by many leaves nothing");
    }
}
