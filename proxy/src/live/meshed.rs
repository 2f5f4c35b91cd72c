//! Addresses that were once announced with an identity. An endpoint once known as meshed never falls back to plaintext.
//! Shape: one table for the whole proxy, whatever service an address belongs to, so that it outlives snapshots, clusters and
//! endpoint sets. Time is an argument. The table is not on disk: a restart forgets it.
//!
//! # Defaults
//! An address is forgotten when it has been in no endpoint set for 10 min. At most 65,536 addresses that are in no set are
//! kept; beyond, the one that left first is evicted first.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    time::Duration,
};

/// How long an address is remembered after it has left every endpoint set.
const REMEMBERED: Duration = Duration::from_secs(600);
/// Most addresses in no set that are kept.
const MAX: usize = 65_536;
/// Least time between two sweeps.
const SWEEP: Duration = Duration::from_secs(60);

/// The table: address -> when it was seen in an endpoint set last.
#[derive(Debug, Default)]
pub(super) struct Meshed {
    seen: HashMap<SocketAddr, Duration>,
    swept: Duration,
}

impl Meshed {
    /// Notes the address of an endpoint with an identity.
    pub(super) fn learn(&mut self, address: SocketAddr, now: Duration) {
        self.seen.insert(address, now);
    }

    /// Notes that these addresses are in a set, or were until now.
    pub(super) fn still(&mut self, addresses: impl Iterator<Item = SocketAddr>, now: Duration) {
        for address in addresses {
            if let Some(seen) = self.seen.get_mut(&address) {
                *seen = now;
            }
        }
    }

    /// Whether it was in the mesh.
    pub(super) fn contains(&self, address: SocketAddr) -> bool {
        self.seen.contains_key(&address)
    }

    /// Whether it is time for [`Meshed::sweep`].
    pub(super) fn is_due(&self, now: Duration) -> bool {
        now.saturating_sub(self.swept) >= SWEEP || self.seen.len() > MAX
    }

    /// Forgets addresses that have been in no set for [`REMEMBERED`]. `current`: every address of every set.
    pub(super) fn sweep(&mut self, current: &HashSet<SocketAddr>, now: Duration) {
        self.swept = now;
        self.still(current.iter().copied(), now);
        self.seen.retain(|_, seen| now.saturating_sub(*seen) < REMEMBERED);
        let mut gone: Vec<(Duration, SocketAddr)> = self
            .seen
            .iter()
            .filter(|(address, _)| !current.contains(address))
            .map(|(address, seen)| (*seen, *address))
            .collect();
        gone.sort_unstable();
        for (_, address) in gone.iter().take(gone.len().saturating_sub(MAX)) {
            self.seen.remove(address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn address(port: u16) -> SocketAddr {
        ([10, 0, 0, 1], port).into()
    }

    #[test]
    fn an_address_is_forgotten_ten_minutes_after_it_left_every_set_and_not_before() {
        let mut meshed = Meshed::default();
        meshed.learn(address(1), Duration::ZERO);
        let (here, gone) = (HashSet::from([address(1)]), HashSet::new());
        meshed.sweep(&here, MINUTE * 100);
        assert!(meshed.contains(address(1)), "it is in a set, however long nothing was said of it");
        meshed.sweep(&gone, MINUTE * 109);
        assert!(meshed.contains(address(1)));
        meshed.sweep(&gone, MINUTE * 110);
        assert!(!meshed.contains(address(1)));
    }

    #[test]
    fn what_was_never_meshed_is_not_learned_by_being_seen() {
        let mut meshed = Meshed::default();
        meshed.still([address(1)].into_iter(), MINUTE);
        assert!(!meshed.contains(address(1)));
    }

    #[test]
    fn the_table_is_bounded_and_drops_what_left_first() {
        let mut meshed = Meshed::default();
        let of = |n: usize| {
            SocketAddr::from(([10, 0, u8::try_from(n >> 16).unwrap(), 1], u16::try_from(n & 0xffff).unwrap()))
        };
        for n in 0..=MAX {
            meshed.learn(of(n), Duration::from_millis(u64::try_from(n).unwrap()));
        }
        assert!(meshed.is_due(Duration::ZERO));
        let current = HashSet::from([of(0)]);
        meshed.sweep(&current, MINUTE * 2);
        assert!(meshed.contains(of(0)), "what is in a set is never dropped");
        meshed.learn(of(MAX + 1), MINUTE * 2);
        meshed.sweep(&current, MINUTE * 2);
        assert!(!meshed.contains(of(1)) && meshed.contains(of(2)) && meshed.contains(of(MAX)));
    }
}
