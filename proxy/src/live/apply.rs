//! How a configuration comes into force: a model becomes a snapshot in one swap; an endpoint set becomes the endpoints of a
//! cluster at once, outside of revisions.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use weft_core::{
    cluster::Cluster as Settings,
    endpoint::{Endpoint, EndpointSet},
    names::ClusterName,
    snapshot::{IncompleteError, Resources},
};

use super::{Live, snapshot::Snapshot};
use crate::upstream::cluster::{Cluster, ClusterState, EndpointState};

impl Live {
    /// Switches to a model in one step; does nothing where the model is in force already.
    /// Errors: it refers to something it does not hold; then the snapshot in force stays.
    pub fn replace(&self, resources: Resources) -> Result<(), IncompleteError> {
        let resources = Arc::new(resources);
        if self.current.load().resources == resources {
            return Ok(());
        }
        let clusters = resources.clusters.iter().map(|(name, settings)| (name, Arc::new(self.cluster(name, settings))));
        let clusters: HashMap<_, _> = clusters.collect();
        let server_first = |address| self.server_first.lock().entry(address).or_default().clone();
        let snapshot = Snapshot::resolve(&resources, &clusters, server_first)?;
        // Everything was found: only from here on is anything forgotten.
        let gone: Vec<_> = {
            let mut known = self.clusters.lock();
            known.extract_if(|name, _| !resources.clusters.contains_key(name)).map(|(_, state)| state).collect()
        };
        for state in gone {
            // The addresses outlive their cluster: another one may announce them without an identity.
            self.meshed.lock().still(state.addresses().into_iter(), self.now());
        }
        self.server_first.lock().retain(|address, _| snapshot.outbound.contains_key(address));
        self.current.store(Arc::new(snapshot));
        self.swapped.notify_waiters();
        self.reported.report(&resources);
        Ok(())
    }

    /// A cluster of the next snapshot, with the state that it has already.
    fn cluster(&self, name: &ClusterName, settings: &Settings) -> Cluster {
        let state = {
            let mut clusters = self.clusters.lock();
            let new = || Arc::new(ClusterState::new(settings, self.now()));
            clusters.entry(name.clone()).or_insert_with(new).clone()
        };
        Cluster::new(name.to_string().into(), settings.clone(), state, self.workers)
    }

    /// Takes an endpoint set; the memory of endpoints that stay is kept. An endpoint without an identity at an address that
    /// had one is withheld. A set of a cluster that is not in the snapshot is ignored.
    pub fn set_endpoints(&self, set: &EndpointSet) {
        let Some(state) = self.clusters.lock().get(&set.cluster).cloned() else { return };
        let old = state.endpoints();
        let withheld = self.withhold(set, &state);
        let kept: HashMap<_, &Arc<EndpointState>> = old.iter().map(|known| (known.key(), known)).collect();
        let new: Vec<Arc<EndpointState>> = set
            .endpoints
            .iter()
            .filter(|endpoint| !withheld.contains(endpoint))
            .map(|endpoint| {
                let key = (endpoint.address, endpoint.identity.as_ref());
                let known = kept.get(&key).map(|known| Arc::clone(known));
                let returned = || {
                    let known = self.returning.take(&state, key)?;
                    // It has registered anew.
                    known.memory.revived();
                    Some(known)
                };
                match known.or_else(returned) {
                    Some(known) if known.endpoint == *endpoint => known,
                    Some(known) => Arc::new(known.updated(endpoint.clone())),
                    None => Arc::new(EndpointState::new(endpoint.clone(), &state.counts, self.workers)),
                }
            })
            .collect();
        let stay: HashSet<_> = new.iter().map(|known| known.key()).collect();
        let departed = old.iter().filter(|known| !stay.contains(&known.key()));
        self.returning.keep(&state, departed, self.now());
        state.set_endpoints(new, withheld);
    }

    /// The endpoints of a set that were in the mesh and come without an identity now. Learns from the set which addresses are
    /// in the mesh.
    fn withhold(&self, set: &EndpointSet, state: &ClusterState) -> Vec<Endpoint> {
        let now = self.now();
        self.sweep_meshed(now);
        let before = state.withheld();
        let mut meshed = self.meshed.lock();
        meshed.still(state.addresses().into_iter(), now);
        for endpoint in set.endpoints.iter().filter(|endpoint| endpoint.identity.is_some()) {
            meshed.learn(endpoint.address, now);
        }
        let fell = |endpoint: &&Endpoint| endpoint.identity.is_none() && meshed.contains(endpoint.address);
        let withheld: Vec<Endpoint> = set.endpoints.iter().filter(fell).cloned().collect();
        for endpoint in &withheld {
            if !before.iter().any(|known| known.address == endpoint.address) {
                tracing::warn!(
                    cluster = %set.cluster, endpoint = %endpoint.address, workload = endpoint.workload,
                    "an endpoint that was in the mesh is announced without an identity; the proxy does not call it, as that \
                     would be in plaintext"
                );
            }
        }
        withheld
    }
}
