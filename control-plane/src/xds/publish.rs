//! Publication of a change: the subscribed resources that it touches are compiled again, compared, and announced.
//! Two kinds: desired state changed (every subscribed resource is compiled), or workloads changed (only what they touch).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use weft_core::compile::World;

use super::{
    Ads,
    cache::{Cache, Key},
    content::{Answer, Class, Kind},
};
use crate::state::WorkloadChange;

/// Resources that are compiled before other tasks get a turn.
const TOGETHER: usize = 32;

/// The difference between one world and the one before.
#[derive(Clone, Debug)]
pub enum Change {
    /// Desired state, and possibly workloads too.
    Objects,
    /// Only these workloads.
    Workloads(Vec<WorkloadChange>),
}

impl Ads {
    /// Switches every stream to another world. One call at a time, in the order of the worlds.
    /// Returns the number of subscribed resources whose content changed.
    /// Cost: for [`Change::Workloads`] the resources that these workloads touch, for [`Change::Objects`] all subscribed ones.
    pub async fn publish(&self, world: Arc<World>, change: Change) -> usize {
        // The lock is held for the bookkeeping only: streams are served from the old world while the new one is compiled.
        let keys = {
            let mut cache = self.server.cache.lock();
            cache.begin();
            match &change {
                Change::Objects => cache.held(),
                Change::Workloads(changed) => touched(&cache, &world, changed),
            }
        };
        let mut answers = BTreeMap::new();
        for (at, key) in keys.into_iter().enumerate() {
            if at % TOGETHER == TOGETHER - 1 {
                tokio::task::yield_now().await;
            }
            let answer = Answer::compile(&world, key.class, key.kind, &key.name);
            answers.insert(key, answer);
        }
        let (generation, changed) = {
            let mut cache = self.server.cache.lock();
            let changed = cache.switch(world, answers, matches!(change, Change::Objects));
            (cache.generation(), changed)
        };
        self.server.changed.send_replace(generation);
        changed
    }
}

/// The subscribed resources that these workloads may change.
fn touched(cache: &Cache, world: &World, changed: &[WorkloadChange]) -> BTreeSet<Key> {
    let mut keys = BTreeSet::new();
    for instance in changed.iter().flat_map(|(before, after)| [before, after]).flatten() {
        for cluster in world.clusters_of(instance) {
            let name: Arc<str> = cluster.to_string().into();
            for class in Class::ALL {
                let key = Key { kind: Kind::Endpoints, name: Arc::clone(&name), class };
                if cache.holds(&key) {
                    keys.insert(key);
                }
            }
        }
        for address in &instance.addresses {
            keys.extend(cache.held_at(*address));
        }
    }
    keys
}
