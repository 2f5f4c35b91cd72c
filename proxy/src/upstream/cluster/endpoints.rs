//! The endpoints of a cluster, and what is remembered of each: load, failures, and the pools of every worker.
//! Invariant: [`EndpointMemory`] survives a change of weight or health; an endpoint is the same one as long as its address
//! and identity are.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::time::Instant;
use weft_core::{
    balancer::{Cost, Load},
    endpoint::{Endpoint, Health},
    identity::Identity,
    outlier::Record,
};
use weft_http::head::Version as HttpVersion;

use crate::upstream::pool::{Counts, Pool, Target, Transport, Version};

/// The endpoints of a cluster, the healthy ones first.
#[derive(Debug, Default)]
pub(crate) struct Endpoints {
    all: Vec<Arc<EndpointState>>,
    healthy: usize,
}

impl Endpoints {
    pub(super) fn new(mut all: Vec<Arc<EndpointState>>) -> Self {
        all.sort_by_key(|known| known.endpoint.health != Health::Healthy);
        let healthy = all.partition_point(|known| known.endpoint.health == Health::Healthy);
        Self { all, healthy }
    }

    /// How many of them are healthy.
    pub(super) fn healthy(&self) -> usize {
        self.healthy
    }
}

impl std::ops::Deref for Endpoints {
    type Target = [Arc<EndpointState>];
    fn deref(&self) -> &Self::Target {
        &self.all
    }
}

/// An endpoint and what is remembered of it.
#[derive(Debug)]
pub(crate) struct EndpointState {
    pub(crate) endpoint: Endpoint,
    pub(crate) memory: Arc<EndpointMemory>,
}

impl EndpointState {
    /// An endpoint that was not known before. `counts`: those of its cluster.
    pub(crate) fn new(endpoint: Endpoint, counts: &Counts, workers: usize) -> Self {
        let memory = Arc::new(EndpointMemory::new(&endpoint, counts, workers));
        Self { endpoint, memory }
    }

    /// The same endpoint with another weight or health, or of another workload. That it has become healthy, or that a workload
    /// has registered there, is a sign of life.
    pub(crate) fn updated(&self, endpoint: Endpoint) -> Self {
        let before = &self.endpoint;
        if endpoint.health == Health::Healthy
            && (before.health != Health::Healthy || before.workload != endpoint.workload)
        {
            self.memory.revived();
        }
        Self { endpoint, memory: self.memory.clone() }
    }

    /// An endpoint with the same key after an update is the same one.
    pub(crate) fn key(&self) -> (SocketAddr, Option<&Identity>) {
        (self.endpoint.address, self.endpoint.identity.as_ref())
    }

    /// Whether it may get requests while there are others.
    pub(super) fn is_usable(&self, now: Duration) -> bool {
        self.endpoint.health == Health::Healthy && !self.memory.record.is_ejected(now)
    }

    /// What one more request there would cost.
    pub(super) fn cost(&self, now: Duration) -> Cost {
        self.memory.load.cost(self.endpoint.weight.get(), now)
    }

    /// What is preferred when no usable endpoint was found quickly; the lowest first. An ejected endpoint that is healthy by its
    /// own account may have recovered; one that was tried has just failed (panic routing).
    pub(super) fn rank(&self, tried: &[SocketAddr], now: Duration) -> u8 {
        let ejected = self.memory.record.is_ejected(now);
        match (self.endpoint.health, ejected, self.is_untried(tried)) {
            (Health::Healthy, false, true) => 0,
            (Health::Healthy, true, true) => 1,
            (Health::Healthy, false, false) => 2,
            (Health::Unhealthy, _, true) => 3,
            (Health::Healthy, true, false) => 4,
            (Health::Unhealthy, _, false) => 5,
            (Health::Draining, _, true) => 6,
            (Health::Draining, _, false) => 7,
        }
    }

    pub(super) fn is_untried(&self, tried: &[SocketAddr]) -> bool {
        !tried.contains(&self.endpoint.address)
    }

    /// The pool of one worker for requests of a version; an endpoint in the mesh takes them all by HTTP/2.
    pub(crate) fn pool(&self, worker: usize, version: HttpVersion) -> Option<&Arc<Pool>> {
        let pools = self.memory.pools.get(worker)?;
        let is_http2 = self.endpoint.identity.is_some() || version == HttpVersion::Http2;
        Some(if is_http2 { &pools.http2 } else { &pools.http1 })
    }

    /// All pools of one worker.
    pub(super) fn pools(&self, worker: usize) -> impl Iterator<Item = &Pool> {
        self.memory.pools.get(worker).into_iter().flat_map(|pools| [&*pools.http1, &*pools.http2])
    }
}

/// A request or connection at an endpoint, counted in its load until it is dropped. One that is dropped before
/// [`Counted::answered`] has waited in vain.
#[derive(Debug)]
pub(crate) struct Counted {
    pub(crate) endpoint: Arc<EndpointState>,
    started: Instant,
    /// The same as a time since the start of the proxy.
    at: Duration,
    answered: bool,
}

impl Counted {
    pub(crate) fn start(endpoint: &Arc<EndpointState>, started: Instant, at: Duration) -> Self {
        endpoint.memory.load.start(at);
        Self { endpoint: endpoint.clone(), started, at, answered: false }
    }

    /// It was answered, or connected. `good`: by no failure so far.
    pub(crate) fn answered(&mut self, ended: Instant, good: bool) {
        self.answered = true;
        let latency = ended - self.started;
        let (load, now) = (&self.endpoint.memory.load, self.at + latency);
        if good { load.answered(latency, now) } else { load.waited(latency, now) }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if !self.answered {
            self.answered(Instant::now(), false);
        }
        self.endpoint.memory.load.end();
    }
}

/// The memory of an endpoint; shared by all workers.
#[derive(Debug)]
pub(crate) struct EndpointMemory {
    pub(crate) load: Load,
    pub(crate) record: Record,
    /// By worker.
    pools: Vec<WorkerPools>,
}

impl EndpointMemory {
    /// A sign of life other than an answer.
    pub(crate) fn revived(&self) {
        self.record.revived();
        self.load.revived();
    }

    fn new(endpoint: &Endpoint, counts: &Counts, workers: usize) -> Self {
        let transport = match &endpoint.identity {
            Some(identity) => Transport::Mesh(identity.clone()),
            None => Transport::Plain,
        };
        let pool = |version| {
            let target = Target { address: endpoint.address, transport: transport.clone(), near: false };
            Arc::new(Pool::new(target, version, counts.clone()))
        };
        let pools =
            (0..workers).map(|_| WorkerPools { http1: pool(Version::Http1), http2: pool(Version::Http2) }).collect();
        Self { load: Load::default(), record: Record::default(), pools }
    }
}

/// The pools of one worker to one endpoint.
#[derive(Debug)]
struct WorkerPools {
    http1: Arc<Pool>,
    http2: Arc<Pool>,
}
