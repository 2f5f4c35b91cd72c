//! A cluster that requests are sent to: its settings in one snapshot, and the state beside the snapshots: endpoints, limits,
//! retry budget, ejections.
//! Shape: [`ClusterState::pick`] gives the endpoint for one attempt; [`ClusterState::failed`] counts a failure of it.
//! Invariant: a [`ClusterState`] outlives snapshots. It is keyed by the cluster's name, and shared by all workers.
//! Invariant: at most `max_ejected` of the endpoints are ejected at any moment (`weft_core::outlier`).
//!
//! - [`endpoints`]: the endpoints, and what is remembered of each.

mod endpoints;

use std::{
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::Notify;
use weft_core::{
    balancer,
    cluster::Cluster as Settings,
    endpoint::Endpoint,
    failure::Failure,
    outlier::{self, Failed},
    retry::Budget,
};

pub(crate) use self::endpoints::{Counted, EndpointState, Endpoints};
use super::pool::{Counts, Pool};
use crate::telemetry::{RequestSeries, Security};

/// A cluster as one snapshot sees it: its settings there, and its state, which outlives the snapshot.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) name: Arc<str>,
    pub(crate) settings: Settings,
    pub(crate) state: Arc<ClusterState>,
    /// The metrics of requests to it, by worker, in plaintext and by mesh TLS; made at the first request.
    series: Vec<[OnceLock<Arc<RequestSeries>>; 2]>,
}

impl Cluster {
    pub(crate) fn new(name: Arc<str>, settings: Settings, state: Arc<ClusterState>, workers: usize) -> Self {
        Self { name, settings, state, series: (0..workers).map(|_| Default::default()).collect() }
    }

    /// Whether every endpoint is reached by mesh TLS; false as long as there is none.
    pub(crate) fn is_meshed(&self) -> bool {
        self.state.meshed.load(Relaxed)
    }

    /// The metrics of requests to it, looked up once per worker and snapshot.
    pub(crate) fn series(
        &self,
        worker: usize,
        security: Security,
        make: impl FnOnce() -> Arc<RequestSeries>,
    ) -> Arc<RequestSeries> {
        match self.series.get(worker) {
            Some([plain, mtls]) => {
                let series = if security == Security::Mtls { mtls } else { plain };
                series.get_or_init(make).clone()
            }
            None => make(),
        }
    }
}

/// The memory of a cluster: it survives snapshots, and all workers share it.
#[derive(Debug)]
pub(crate) struct ClusterState {
    endpoints: ArcSwap<Endpoints>,
    /// Endpoints that were in the mesh and are now announced without an identity: never called.
    withheld: ArcSwap<Vec<Endpoint>>,
    /// Set once an endpoint set arrived.
    pub(crate) known: AtomicBool,
    /// Notified at each change of the endpoints.
    pub(crate) changed: Notify,
    /// Whether every endpoint has an identity.
    meshed: AtomicBool,
    pub(crate) budget: Budget,
    /// Requests in flight.
    pub(crate) requests: AtomicU32,
    /// Open connections, and requests that wait for one.
    pub(crate) counts: Counts,
    /// Held while deciding on an ejection: two workers that decide at once would exceed the limit.
    ejecting: Mutex<()>,
}

impl ClusterState {
    /// A cluster whose endpoints are not known yet. `now`: time since the start of the proxy.
    pub(crate) fn new(settings: &Settings, now: Duration) -> Self {
        Self {
            endpoints: ArcSwap::default(),
            withheld: ArcSwap::default(),
            known: AtomicBool::new(false),
            changed: Notify::new(),
            meshed: AtomicBool::new(false),
            budget: Budget::new(&settings.budget, now),
            requests: AtomicU32::new(0),
            counts: Counts::default(),
            ejecting: Mutex::new(()),
        }
    }

    /// The endpoints as they are now.
    pub(crate) fn endpoints(&self) -> Arc<Endpoints> {
        self.endpoints.load_full()
    }

    /// The endpoints that are not called because they lost their identity.
    pub(crate) fn withheld(&self) -> Arc<Vec<Endpoint>> {
        self.withheld.load_full()
    }

    /// The addresses of all endpoints, those that are withheld too.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        let (endpoints, withheld) = (self.endpoints.load(), self.withheld.load());
        endpoints.iter().map(|known| &known.endpoint).chain(withheld.iter()).map(|endpoint| endpoint.address).collect()
    }

    /// Replaces the endpoint set.
    pub(crate) fn set_endpoints(&self, endpoints: Vec<Arc<EndpointState>>, withheld: Vec<Endpoint>) {
        let meshed = endpoints.iter().all(|known| known.endpoint.identity.is_some());
        self.meshed.store(meshed && !endpoints.is_empty(), Relaxed);
        self.endpoints.store(Arc::new(Endpoints::new(endpoints)));
        self.withheld.store(Arc::new(withheld));
        self.known.store(true, Relaxed);
        self.changed.notify_waiters();
    }

    /// The endpoint for the next attempt: a usable one that was not `tried` before and is not avoided by the balancer, or one that is,
    /// or the best that is left, by [`EndpointState::rank`].
    pub(crate) fn pick(&self, tried: &[SocketAddr], now: Duration) -> Option<Arc<EndpointState>> {
        // The common case looks at two healthy endpoints, or some more; only when none of them is usable are all looked at.
        self.pick_where(tried, now, |_| true)
            .or_else(|| self.pick_usable(tried, now, |_| true))
            .or_else(|| self.pick_among_all(tried, now))
    }

    /// A healthy endpoint that was not tried, is not avoided and is as the caller wants it, if one is found among a few.
    pub(crate) fn pick_where(
        &self,
        tried: &[SocketAddr],
        now: Duration,
        wanted: impl Fn(&EndpointState) -> bool,
    ) -> Option<Arc<EndpointState>> {
        self.pick_usable(tried, now, |known| !known.memory.load.is_avoided(now) && wanted(known))
    }

    fn pick_usable(
        &self,
        tried: &[SocketAddr],
        now: Duration,
        wanted: impl Fn(&EndpointState) -> bool,
    ) -> Option<Arc<EndpointState>> {
        let endpoints = self.endpoints.load();
        let cost = |index: usize| {
            let known = endpoints.get(index)?;
            (known.is_usable(now) && known.is_untried(tried) && wanted(known)).then(|| known.cost(now))
        };
        let picked = balancer::pick(endpoints.healthy(), |below| fastrand::usize(..below), cost)?;
        endpoints.get(picked).cloned()
    }

    /// The cheaper of two of the best there is, by [`EndpointState::rank`].
    fn pick_among_all(&self, tried: &[SocketAddr], now: Duration) -> Option<Arc<EndpointState>> {
        let endpoints = self.endpoints.load();
        let ranked = || endpoints.iter().map(|known| (known.rank(tried, now), known));
        let best = ranked().map(|(rank, _)| rank).min()?;
        let candidates: Vec<_> = ranked().filter(|(rank, _)| *rank == best).map(|(_, known)| known).collect();
        let cost = |index: usize| candidates.get(index).map(|known| known.cost(now));
        let picked = balancer::pick(candidates.len(), |below| fastrand::usize(..below), cost)?;
        candidates.get(picked).map(|known| Arc::clone(known))
    }

    /// Why there is no endpoint to pick.
    pub(crate) fn none(&self) -> Failure {
        if self.withheld.load().is_empty() { Failure::NoEndpoint } else { Failure::LostIdentity }
    }

    /// Visits the pools of one worker.
    pub(crate) fn each_pool(&self, worker: usize, mut visit: impl FnMut(&Pool)) {
        for endpoint in self.endpoints.load().iter() {
            endpoint.pools(worker).for_each(&mut visit);
        }
    }

    /// Closes the idle connections of one worker, so that the limit leaves room for a new one. Returns whether any was.
    pub(crate) fn close_idle(&self, worker: usize) -> bool {
        let mut closed = false;
        self.each_pool(worker, |pool| closed |= pool.close_idle());
        closed
    }

    /// Counts a failure of an endpoint, for the balancer too, and ejects it if the settings call for that. Returns whether it did.
    pub(crate) fn failed(&self, endpoint: &EndpointState, failed: Failed, settings: &Settings, now: Duration) -> bool {
        endpoint.memory.load.failed(now);
        let Some(detection) = &settings.outlier else { return false };
        if endpoint.memory.record.failed(detection, failed) == outlier::Verdict::Keep {
            return false;
        }
        let _one_at_a_time = self.ejecting.lock();
        let endpoints = self.endpoints.load();
        let ejected = endpoints.iter().filter(|known| known.memory.record.is_ejected(now)).count();
        if endpoint.memory.record.is_ejected(now) || !outlier::may_eject(detection, ejected, endpoints.len()) {
            return false;
        }
        endpoint.memory.record.eject(detection, now);
        true
    }
}
