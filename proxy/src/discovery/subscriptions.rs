//! The names subscribed to: the listeners that are always needed, and the destinations that the workload calls.
//! Bounded by [`MAX_DESTINATIONS`]; beyond, the destination that was not called for the longest time is evicted.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::SocketAddr,
    time::Duration,
};

use tokio::time::Instant;
use weft_core::names::ListenerName;

/// Most destinations subscribed to.
pub(super) const MAX_DESTINATIONS: usize = 10_000;
/// A destination that was not called for this long is unsubscribed from.
pub(super) const IDLE: Duration = Duration::from_secs(300);
/// A destination called within this time is not evicted.
const FRESH: Duration = Duration::from_secs(10);

/// The names subscribed to.
#[derive(Debug)]
pub(super) struct Subscriptions {
    names: BTreeMap<ListenerName, Subscription>,
    /// The names that do not exist, by the answer of the server.
    absent: BTreeSet<ListenerName>,
    /// Grows with each change of either.
    changes: u64,
}

#[derive(Debug)]
struct Subscription {
    /// When it was used last.
    last: Instant,
    /// Never unsubscribed from.
    always: bool,
}

/// The result of [`Subscriptions::add`].
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Added {
    /// The name is subscribed to already.
    Known,
    /// The name is to be requested.
    New,
    /// There are too many names.
    Full,
}

impl Subscriptions {
    pub(super) fn new(always: Vec<ListenerName>, now: Instant) -> Self {
        let names = always.into_iter().map(|name| (name, Subscription { last: now, always: true })).collect();
        Self { names, absent: BTreeSet::new(), changes: 0 }
    }

    /// Subscribes to a name.
    pub(super) fn add(&mut self, name: ListenerName, now: Instant) -> Added {
        if let Some(known) = self.names.get_mut(&name) {
            known.last = now;
            return Added::Known;
        }
        if self.names.len() >= MAX_DESTINATIONS {
            return Added::Full;
        }
        self.names.insert(name, Subscription { last: now, always: false });
        self.changes += 1;
        Added::New
    }

    /// Notes which destinations are in use.
    pub(super) fn used(&mut self, destinations: &HashSet<SocketAddr>, now: Instant) {
        for destination in destinations {
            if let Some(known) = self.names.get_mut(&ListenerName::Outbound(*destination)) {
                known.last = now;
            }
        }
    }

    /// Takes out the destinations that were not called for [`IDLE`].
    pub(super) fn take_idle(&mut self, now: Instant) -> Vec<ListenerName> {
        let idle = |entry: &Subscription| !entry.always && now.duration_since(entry.last) >= IDLE;
        let names: Vec<_> = self.names.iter().filter(|(_, entry)| idle(entry)).map(|(name, _)| name.clone()).collect();
        names.iter().for_each(|name| self.remove(name));
        names
    }

    /// Evicts the destination that was not called for the longest time, unless it was called within [`FRESH`].
    pub(super) fn take_oldest(&mut self, now: Instant) -> Option<ListenerName> {
        let (name, _) = self
            .names
            .iter()
            .filter(|(_, entry)| !entry.always && now.duration_since(entry.last) >= FRESH)
            .min_by_key(|(_, entry)| entry.last)?;
        let name = name.clone();
        self.remove(&name);
        Some(name)
    }

    /// Whether a name is subscribed to.
    pub(super) fn contains(&self, name: &ListenerName) -> bool {
        self.names.contains_key(name)
    }

    /// Notes that a name exists or not. Returns whether that is new.
    pub(super) fn set_absent(&mut self, name: &ListenerName, absent: bool) -> bool {
        let new =
            if absent && self.contains(name) { self.absent.insert(name.clone()) } else { self.absent.remove(name) };
        self.changes += u64::from(new);
        new
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &ListenerName> {
        self.names.keys()
    }

    pub(super) fn absent(&self) -> &BTreeSet<ListenerName> {
        &self.absent
    }

    /// A number that stays the same as long as the names and the absent ones do.
    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    fn remove(&mut self, name: &ListenerName) {
        self.names.remove(name);
        self.absent.remove(name);
        self.changes += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn destination(last: u16) -> SocketAddr {
        SocketAddr::from(([240, 0, 0, 1], last))
    }

    fn name(last: u16) -> ListenerName {
        ListenerName::Outbound(destination(last))
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_called_for_five_minutes_is_given_up_and_nothing_else() {
        let start = Instant::now();
        let mut all = Subscriptions::new(vec![ListenerName::Inbound], start);
        assert_eq!(
            (all.add(name(1), start), all.add(name(2), start), all.add(name(2), start)),
            (Added::New, Added::New, Added::Known)
        );
        all.used(&[destination(2), destination(9)].into(), start + IDLE / 2);
        assert_eq!(all.take_idle(start + IDLE - Duration::from_secs(1)), vec![]);
        assert_eq!(all.take_idle(start + IDLE), vec![name(1)]);
        assert_eq!(all.take_idle(start + IDLE * 2), vec![name(2)]);
        assert_eq!(all.names().collect::<Vec<_>>(), vec![&ListenerName::Inbound], "what is always needed stays");
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_table_makes_room_by_age_but_never_of_what_is_fresh() {
        let start = Instant::now();
        let mut all = Subscriptions::new(vec![ListenerName::Inbound], start);
        for port in 1..u16::try_from(MAX_DESTINATIONS).unwrap() {
            all.add(name(port), start + Duration::from_millis(u64::from(port)));
        }
        assert_eq!(all.add(name(60_000), start), Added::Full);
        assert_eq!(all.take_oldest(start + Duration::from_secs(5)), None);
        assert_eq!(all.take_oldest(start + Duration::from_secs(60)), Some(name(1)));
        assert_eq!(all.add(name(60_000), start), Added::New);
    }

    #[tokio::test(start_paused = true)]
    async fn absence_is_remembered_of_what_is_asked_for_only() {
        let mut all = Subscriptions::new(vec![], Instant::now());
        all.add(name(1), Instant::now());
        assert!(all.set_absent(&name(1), true) && !all.set_absent(&name(1), true) && !all.set_absent(&name(2), true));
        assert!(all.set_absent(&name(1), false) && all.absent().is_empty());
    }
}
