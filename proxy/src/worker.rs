//! A worker: one thread with a runtime, listeners, pools, connections and metrics of its own.
//! Workers share [`Shared`]; a request takes none of its locks.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    panic::AssertUnwindSafe,
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use futures_util::FutureExt;
use ipnet::IpNet;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use weft_core::{identity::Identity, listener::AccessLog as LogPolicy};

use crate::{
    connection::Table,
    drain::Drain,
    http::{muxes::Muxes, stall::Timeouts},
    listener::spread::Spread,
    live::Live,
    status::SelfProbe,
    telemetry::{AccessLog, Metrics, Outcome},
    tls::CurrentTls,
    upstream::{
        dial::Dialer,
        pool::{Bounds, Counts, Opener, Pool, Target, Transport, Version},
    },
};

/// Shared by all workers.
#[derive(Debug)]
pub struct Shared {
    /// The configuration in force.
    pub live: Arc<Live>,
    /// The current certificate.
    pub tls: Arc<CurrentTls>,
    /// The queue to discovery for destinations that the snapshot does not know. `None`: the configuration comes from a file, and
    /// a destination that it does not know is not in the mesh.
    pub interest: Option<mpsc::Sender<SocketAddr>>,
    /// SO_MARK of our own connections.
    pub mark: Option<u32>,
    /// The workload's own addresses: endpoints there are served in the process.
    pub own_addresses: Vec<IpAddr>,
    /// The proxy's own ports: a connection whose destination is one of them is a loop.
    pub own_ports: Vec<u16>,
    /// The workload's declared ports, by which its metrics are labelled.
    pub declared: Vec<u16>,
    /// Addresses that can only be services of the mesh.
    pub mesh_ranges: Vec<IpNet>,
    /// Overrides the configuration's policy.
    pub access_log: Option<LogPolicy>,
    /// The connections from callers, and which worker has them.
    pub spread: Arc<Spread>,
    /// Requests in flight on one HTTP/2 connection from a caller; `None`: the defaults.
    pub max_streams: Option<NonZeroU32>,
    /// Bytes of the heads of requests in flight on HTTP/2 connections from callers.
    pub heads: Arc<AtomicUsize>,
    /// How long bytes of a body may wait for a reader that has read none; zero: for ever.
    pub stalled: Duration,
    /// The same for a reader that has read some.
    pub paused: Duration,
    /// How long a half-closed caller waits for an application that speaks HTTP/2; zero: for ever.
    pub half_closed: Duration,
    /// Longest wait for discovery of a destination.
    pub discovery_wait: Duration,
    /// The self-probe of the redirection.
    pub self_probe: Arc<SelfProbe>,
}

/// One worker.
#[derive(Debug)]
pub struct Worker {
    /// Its index, from 0.
    pub index: usize,
    /// Shared by all workers.
    pub shared: Arc<Shared>,
    /// Its metrics.
    pub metrics: Arc<Metrics>,
    /// Its open connections.
    pub connections: Arc<Table>,
    pub(crate) log: AccessLog,
    pub(crate) drain: Drain,
    pub(crate) dialer: Dialer,
    pub(crate) muxes: Muxes,
    application: Mutex<HashMap<(SocketAddr, Version), Arc<Pool>>>,
    /// Connections to the workload.
    pub(crate) application_counts: Counts,
}

/// Bounds of connections to the workload itself. The time to connect, where the caller's policy says none, has room for an
/// application that stands still for a moment.
pub(crate) const APPLICATION: Bounds =
    Bounds { connect: Duration::from_secs(10), connections: 10_000, pending: 1_024, idle: Duration::from_secs(300) };
/// How often timeouts of connections are checked.
const SWEEP: Duration = Duration::from_millis(500);
/// Pools are checked once in so many sweeps.
const POOL_SWEEP: u32 = 20;

impl Worker {
    /// A worker; [`Worker::start`] makes it run.
    pub fn new(index: usize, shared: Arc<Shared>, log: AccessLog, drain: Drain) -> Arc<Self> {
        let metrics: Arc<Metrics> = Arc::default();
        let stall = Timeouts::new(shared.stalled, shared.paused);
        let half_closed = Some(shared.half_closed).filter(|wait| !wait.is_zero());
        let muxes = Muxes::new(shared.heads.clone(), stall, half_closed);
        let dialer =
            Dialer { mark: shared.mark, tls: shared.tls.clone(), metrics: metrics.clone(), shown: Arc::default() };
        Arc::new(Self {
            index,
            metrics,
            connections: Arc::new(Table::new(shared.live.proven.clone())),
            shared,
            log,
            drain,
            dialer,
            muxes,
            application: Mutex::default(),
            application_counts: Counts::default(),
        })
    }

    /// Starts the worker's clock on the current runtime, which need not be the worker's. Listeners are started by `serve`.
    pub fn start(self: &Arc<Self>) {
        let (drain, connections) = (self.drain.clone(), self.connections.clone());
        tokio::spawn(async move {
            loop {
                drain.begun().await;
                connections.drain();
                drain.ended().await;
                connections.undrain();
            }
        });
        let worker = Arc::downgrade(self);
        tokio::spawn(async move {
            let mut tick = tokio::time::interval(SWEEP);
            let mut count = 0u32;
            loop {
                tick.tick().await;
                let Some(worker) = worker.upgrade() else { return };
                worker.connections.sweep();
                worker.shared.live.expire_departed();
                worker.application.lock().retain(|_, pool| {
                    pool.sweep();
                    Arc::strong_count(pool) > 1 || !pool.is_empty()
                });
                count = count.wrapping_add(1);
                if count.is_multiple_of(2) {
                    worker.muxes.tick();
                }
                if count.is_multiple_of(POOL_SWEEP) {
                    worker.shared.live.each_pool(worker.index, Pool::sweep);
                }
            }
        });
    }

    /// Runs a connection's task; a panic in it is counted and hurts nothing else.
    pub(crate) fn spawn(self: &Arc<Self>, task: impl Future<Output = ()> + Send + 'static) {
        let metrics = self.metrics.clone();
        // No async block: it would hold the task twice.
        tokio::spawn(AssertUnwindSafe(task).catch_unwind().map(move |result| {
            if result.is_err() {
                metrics.event("weft_panics_total", &[("where", "connection")]);
            }
        }));
    }

    /// The pool of connections to the workload at this address.
    pub(crate) fn application(&self, address: SocketAddr, version: Version) -> Arc<Pool> {
        let make = || {
            let target = Target { address, transport: Transport::Plain, near: true };
            Arc::new(Pool::new(target, version, self.application_counts.clone()))
        };
        self.application.lock().entry((address, version)).or_insert_with(make).clone()
    }

    /// How to open connections.
    pub(crate) fn opener(&self) -> Opener<'_> {
        Opener { dialer: &self.dialer, muxes: &self.muxes }
    }

    /// Records how a request or connection ended, under the access log's policy of now.
    pub(crate) fn record(&self, outcome: &Outcome<'_>) {
        self.record_as(self.log_policy(self.shared.live.load().access_log), outcome);
    }

    /// The same under the policy that the request began with.
    pub(crate) fn record_as(&self, policy: LogPolicy, outcome: &Outcome<'_>) {
        outcome.record(policy, &self.metrics, &self.log);
    }

    /// Which outcomes get a line in the access log.
    pub(crate) fn log_policy(&self, from_snapshot: LogPolicy) -> LogPolicy {
        self.shared.access_log.unwrap_or(from_snapshot)
    }

    /// Whether an endpoint is the workload beside us: its address, and our own identity.
    pub(crate) fn is_local(&self, address: SocketAddr, identity: Option<&Identity>) -> bool {
        self.shared.own_addresses.contains(&address.ip())
            && identity
                .is_some_and(|identity| self.shared.tls.load().as_ref().is_some_and(|tls| tls.identity == *identity))
    }

    /// Whether an address can only be a service of the mesh.
    pub(crate) fn in_mesh_ranges(&self, address: IpAddr) -> bool {
        self.shared.mesh_ranges.iter().any(|range| range.contains(&address))
    }
}
