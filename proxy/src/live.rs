//! The configuration in force, and the memory beside it: one immutable [`Snapshot`] behind an atomic pointer, loaded once per
//! request, and the state of clusters (latencies, ejections, budgets, pools), keyed by name, which survives a swap.
//! Shape: [`Live::replace`] takes the whole model of a revision, [`Live::set_endpoints`] one endpoint set outside of revisions.
//! Invariant: a snapshot is complete: every route in it points at a cluster in it. Where the name of a cluster is missing,
//! `replace` fails, and the last good snapshot stays.
//! Invariant: an endpoint whose address was once announced with an identity is never called without one: it is withheld.
//!
//! - [`snapshot`]: the immutable view. [`apply`]: from a model to a snapshot, from an endpoint set to endpoints.
//! - [`authorize`]: whether a request or connection to the workload is allowed.
//! - [`meshed`]: addresses that were once announced with an identity. [`returning`]: endpoints that may come back.
//! - [`interest`]: the destinations that discovery is asked for.

mod apply;
pub(crate) mod authorize;
mod interest;
mod meshed;
mod returning;
mod snapshot;

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};
use weft_core::{endpoint::EndpointSet, names::ClusterName, retry::Behind};

pub use self::snapshot::Snapshot;
pub(crate) use self::snapshot::{GatewayListener, OutboundListener, Routes};
use self::{authorize::evadable::Reported, interest::Interest, meshed::Meshed, returning::Returning};
use crate::{
    connection::Proven,
    upstream::{cluster::ClusterState, pool::Pool},
};

/// The current snapshot and the memory beside it.
#[derive(Debug)]
pub struct Live {
    current: ArcSwap<Snapshot>,
    clusters: Mutex<HashMap<ClusterName, Arc<ClusterState>>>,
    /// By destination: whether the server was the first to speak there.
    server_first: Mutex<HashMap<SocketAddr, Arc<AtomicBool>>>,
    returning: Returning,
    meshed: Mutex<Meshed>,
    reported: Reported,
    /// The destinations that discovery is asked for.
    pub(crate) interest: Interest,
    /// How long the identities of peers are proven.
    pub(crate) proven: Arc<Proven>,
    /// Which failures of the workload come from what it calls.
    pub(crate) behind: Behind,
    /// Notified after each swap.
    pub(crate) swapped: Notify,
    start: Instant,
    workers: usize,
}

impl Live {
    /// Nothing configured yet.
    pub fn new(workers: usize) -> Self {
        Self {
            current: ArcSwap::default(),
            clusters: Mutex::default(),
            server_first: Mutex::default(),
            returning: Returning::default(),
            meshed: Mutex::default(),
            reported: Reported::default(),
            interest: Interest::default(),
            proven: Arc::default(),
            behind: Behind::default(),
            swapped: Notify::new(),
            start: Instant::now(),
            workers,
        }
    }

    /// The current snapshot, for a short look.
    pub fn load(&self) -> arc_swap::Guard<Arc<Snapshot>> {
        self.current.load()
    }

    /// The current snapshot, to keep: for a whole request.
    pub(crate) fn load_full(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Time since the start, for budgets, ejections and latencies.
    pub(crate) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// The same for a moment that is known already.
    pub(crate) fn at(&self, moment: Instant) -> Duration {
        moment - self.start
    }

    /// Closes the connections to endpoints that have left and not come back in time.
    pub(crate) fn expire_departed(&self) {
        self.returning.expire(self.now());
    }

    /// Closes the connections to the endpoints of one cluster that have left, so that its limit leaves room. Returns whether
    /// there was any such endpoint.
    pub(crate) fn release_departed(&self, cluster: &Arc<ClusterState>) -> bool {
        self.returning.release(cluster)
    }

    /// Whether an address was announced with an identity, and has not been gone for long since.
    pub(crate) fn was_meshed(&self, address: SocketAddr) -> bool {
        self.sweep_meshed(self.now());
        self.meshed.lock().contains(address)
    }

    fn sweep_meshed(&self, now: Duration) {
        if !self.meshed.lock().is_due(now) {
            return;
        }
        let clusters: Vec<_> = self.clusters.lock().values().cloned().collect();
        let current: HashSet<_> = clusters.iter().flat_map(|state| state.addresses()).collect();
        self.meshed.lock().sweep(&current, now);
    }

    /// Endpoints that are not called because they were in the mesh and have no identity now; clusters without any left out.
    pub fn withheld_sets(&self) -> Vec<EndpointSet> {
        let mut sets = self.sets_of(|state| state.withheld().to_vec());
        sets.retain(|set| !set.endpoints.is_empty());
        sets
    }

    /// The endpoint sets in force, by cluster.
    pub fn endpoint_sets(&self) -> Vec<EndpointSet> {
        self.sets_of(|state| state.endpoints().iter().map(|known| known.endpoint.clone()).collect())
    }

    fn sets_of(&self, endpoints: impl Fn(&ClusterState) -> Vec<weft_core::endpoint::Endpoint>) -> Vec<EndpointSet> {
        let clusters = self.clusters.lock();
        let sets =
            clusters.iter().map(|(name, state)| EndpointSet { cluster: name.clone(), endpoints: endpoints(state) });
        let mut sets: Vec<_> = sets.collect();
        sets.sort_by(|a, b| a.cluster.cmp(&b.cluster));
        sets
    }

    /// Visits every pool of one worker.
    pub(crate) fn each_pool(&self, worker: usize, mut visit: impl FnMut(&Pool)) {
        for cluster in self.clusters.lock().values() {
            cluster.each_pool(worker, &mut visit);
        }
    }
}
