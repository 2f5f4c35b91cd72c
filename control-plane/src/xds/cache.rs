//! The cache that all streams share: one world, and one encoding of each subscribed resource.
//! Shape: [`Cache`] is behind one lock, which is held while new subscriptions are compiled and never over an await; a [`Slot`]
//! is one resource for one class of client, kept alive by the subscriptions that refer to it.
//! Invariant: under the lock every slot's content is that of [`Cache::world`], so that a stream reads one consistent view.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    ops::Bound,
    sync::Arc,
};

use arc_swap::ArcSwap;
use weft_core::compile::World;

use super::content::{Answer, Class, Kind};

/// Number of changes in the log; a stream that is further behind compares every subscription.
const LOG: usize = 1024;

/// A resource of one class of client.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) kind: Kind,
    pub(super) name: Arc<str>,
    pub(super) class: Class,
}

/// One resource, or the reason why there is none of that name.
#[derive(Debug)]
pub(super) struct Slot {
    answer: ArcSwap<Answer>,
}

/// The cache.
#[derive(Debug)]
pub(super) struct Cache {
    world: Arc<World>,
    generation: u64,
    objects_changed: u64,
    slots: BTreeMap<Key, Arc<Slot>>,
    /// Slots added since [`Cache::begin`] of the last change.
    born: Vec<Key>,
    /// Number of slots added since unsubscribed ones were last dropped.
    unchecked: usize,
    log: VecDeque<(u64, BTreeSet<Key>)>,
}

impl Slot {
    pub(super) fn answer(&self) -> Arc<Answer> {
        self.answer.load_full()
    }
}

impl Cache {
    pub(super) fn new(world: Arc<World>) -> Self {
        Self {
            world,
            generation: 1,
            objects_changed: 1,
            slots: BTreeMap::new(),
            born: Vec::new(),
            unchecked: 0,
            log: VecDeque::new(),
        }
    }

    pub(super) fn world(&self) -> &Arc<World> {
        &self.world
    }

    /// Number of changes; a stream keeps the last one it has compared as its cursor.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// The generation in which desired state last changed.
    pub(super) fn objects_changed(&self) -> u64 {
        self.objects_changed
    }

    /// The slot of a resource, compiled now if it is new.
    pub(super) fn slot(&mut self, key: Key) -> Arc<Slot> {
        if let Some(slot) = self.slots.get(&key) {
            return Arc::clone(slot);
        }
        let answer = Answer::compile(&self.world, key.class, key.kind, &key.name);
        let slot = Arc::new(Slot { answer: ArcSwap::from_pointee(answer) });
        self.born.push(key.clone());
        self.slots.insert(key, Arc::clone(&slot));
        slot
    }

    /// The resources that changed after `cursor`; `None` if the log does not reach back to it.
    pub(super) fn changed_since(&self, cursor: u64) -> Option<impl Iterator<Item = &Key>> {
        let known = cursor == self.generation
            || self.log.front().is_some_and(|(oldest, _)| *oldest <= cursor.saturating_add(1));
        known.then(|| self.log.iter().filter(move |(at, _)| *at > cursor).flat_map(|(_, keys)| keys))
    }

    /// Starts a change, which [`Cache::switch`] ends; there is one at a time. Drops unsubscribed resources once enough slots were
    /// added to pay for it. Cost: constant on average.
    pub(super) fn begin(&mut self) {
        self.unchecked += self.born.len();
        self.born.clear();
        if self.unchecked > self.slots.len() / 2 {
            self.drop_unheld();
        }
    }

    /// Every subscribed resource.
    pub(super) fn held(&mut self) -> BTreeSet<Key> {
        self.drop_unheld();
        self.slots.keys().cloned().collect()
    }

    fn drop_unheld(&mut self) {
        self.unchecked = 0;
        self.slots.retain(|_, slot| Arc::strong_count(slot) > 1);
    }

    /// Whether a resource is subscribed to.
    pub(super) fn holds(&self, key: &Key) -> bool {
        self.slots.contains_key(key)
    }

    /// The subscribed resources whose name has this prefix.
    pub(super) fn held_below<'a>(&'a self, kind: Kind, prefix: &'a str) -> impl Iterator<Item = &'a Key> {
        let from = Key { kind, name: prefix.into(), class: Class::MIN };
        self.slots
            .range((Bound::Included(from), Bound::Unbounded))
            .map(|(key, _)| key)
            .take_while(move |key| key.kind == kind && key.name.starts_with(prefix))
    }

    /// The subscribed resources whose name contains this address: destinations that are not a service.
    pub(super) fn held_at(&self, address: IpAddr) -> Vec<Key> {
        let shown = match address {
            IpAddr::V4(v4) => format!("{v4}:"),
            IpAddr::V6(v6) => format!("[{v6}]:"),
        };
        let mut keys = Vec::new();
        for kind in Kind::ALL {
            let prefix = match kind {
                Kind::Listener => format!("outbound/{shown}"),
                Kind::Routes | Kind::Cluster | Kind::Endpoints => format!("direct/{shown}"),
            };
            keys.extend(self.held_below(kind, &prefix).cloned());
        }
        keys
    }

    /// Switches to another world. `answers`: the resources compiled from it that it may change; slots added since
    /// [`Cache::begin`] are compiled here. `objects`: whether desired state changed.
    /// Returns the number of resources whose content changed.
    pub(super) fn switch(&mut self, world: Arc<World>, answers: BTreeMap<Key, Answer>, objects: bool) -> usize {
        self.generation += 1;
        if objects {
            self.objects_changed = self.generation;
        }
        self.world = world;
        let mut answers = answers;
        let born = std::mem::take(&mut self.born);
        self.unchecked += born.len();
        for key in born {
            let answer = Answer::compile(&self.world, key.class, key.kind, &key.name);
            answers.entry(key).or_insert(answer);
        }
        let mut changed = BTreeSet::new();
        for (key, answer) in answers {
            let Some(slot) = self.slots.get(&key) else { continue };
            if *slot.answer() != answer {
                slot.answer.store(Arc::new(answer));
                changed.insert(key);
            }
        }
        let count = changed.len();
        self.log.push_back((self.generation, changed));
        if self.log.len() > LOG {
            self.log.pop_front();
        }
        count
    }
}
