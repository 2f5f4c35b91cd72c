//! The state of the proxy's control side: written by discovery, identity and agent, read by readiness, metrics and the heartbeat.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};

/// The status of a proxy.
#[derive(Debug)]
pub(crate) struct Status {
    /// The revision that came into force last.
    pub(crate) applied: watch::Sender<Applied>,
    /// Certificates that came into force; there is no connection to a control plane before the first.
    pub(crate) certificates: watch::Sender<u64>,
    /// Whether connections of this host are redirected to the proxy; `None` if that is not known, or not expected.
    pub(crate) captured: watch::Sender<Option<bool>>,
    /// Draining has been asked for.
    pub(crate) draining: watch::Sender<bool>,
    /// The discovery stream.
    pub(crate) discovery: Link,
    /// The agent stream.
    pub(crate) agent: Link,
    /// Addresses of the proxy's file that the control plane refuses, and why.
    pub(crate) missing: Mutex<BTreeMap<String, String>>,
    /// Why the control plane's configuration is refused as a whole, if it is.
    pub(crate) refused_origin: Mutex<Option<String>>,
    /// Names subscribed to.
    pub(crate) subscriptions: AtomicUsize,
    /// Resources rejected.
    pub(crate) refused: AtomicU64,
    /// Configurations put in force.
    pub(crate) swaps: AtomicU64,
    /// Why the last attempt to get a certificate failed, if it did.
    pub(crate) certificate_fault: Mutex<Option<String>>,
    /// Failed attempts to get a certificate.
    pub(crate) certificate_failures: AtomicU64,
    /// Every listener is open.
    pub(crate) listening: AtomicBool,
}

/// Whether the workload takes traffic, by its checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum WorkloadHealth {
    /// As many checks pass as have to.
    Healthy,
    /// Too many fail; with the reason of each.
    Unhealthy(String),
}

/// A revision, and the hash of the resources held at it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Applied {
    pub(crate) revision: u64,
    pub(crate) hash: Option<[u8; 32]>,
}

/// A stream to the control plane.
#[derive(Debug)]
pub(crate) struct Link {
    connected: AtomicBool,
    /// How often the other side has answered a new stream.
    pub(crate) connects: watch::Sender<u64>,
    /// When that changed last.
    changed: Mutex<Instant>,
}

/// The self-probe of a redirection (`capture`): where it connects to, and how often it arrived at the outbound listener.
#[derive(Debug, Default)]
pub struct SelfProbe {
    pub(crate) target: Option<SocketAddr>,
    arrived: AtomicU64,
}

impl SelfProbe {
    pub(crate) fn new(target: Option<SocketAddr>) -> Self {
        Self { target, arrived: AtomicU64::new(0) }
    }

    /// Whether a captured connection is a probe; counts it.
    pub(crate) fn takes(&self, destination: SocketAddr) -> bool {
        let is_probe = self.target == Some(destination);
        if is_probe {
            self.arrived.fetch_add(1, Relaxed);
        }
        is_probe
    }

    pub(crate) fn arrived(&self) -> u64 {
        self.arrived.load(Relaxed)
    }
}

impl Default for Status {
    fn default() -> Self {
        Self {
            applied: watch::Sender::new(Applied::default()),
            certificates: watch::Sender::new(0),
            captured: watch::Sender::new(None),
            draining: watch::Sender::new(false),
            discovery: Link::default(),
            agent: Link::default(),
            missing: Mutex::default(),
            refused_origin: Mutex::default(),
            subscriptions: AtomicUsize::new(0),
            refused: AtomicU64::new(0),
            swaps: AtomicU64::new(0),
            certificate_fault: Mutex::default(),
            certificate_failures: AtomicU64::new(0),
            listening: AtomicBool::new(false),
        }
    }
}

impl Default for Link {
    fn default() -> Self {
        let connects = watch::Sender::new(0);
        Self { connected: AtomicBool::new(false), connects, changed: Mutex::new(Instant::now()) }
    }
}

impl Link {
    /// The other side has answered.
    pub(crate) fn up(&self) {
        if !self.connected.swap(true, Relaxed) {
            *self.changed.lock() = Instant::now();
            self.connects.send_modify(|connects| *connects += 1);
        }
    }

    /// The stream has ended. Returns how long it was up; nothing if the other side never answered.
    pub(crate) fn down(&self) -> Duration {
        if !self.connected.swap(false, Relaxed) {
            return Duration::ZERO;
        }
        std::mem::replace(&mut *self.changed.lock(), Instant::now()).elapsed()
    }

    pub(crate) fn is_up(&self) -> bool {
        self.connected.load(Relaxed)
    }

    /// Seconds without a stream; 0 while there is one.
    pub(crate) fn age(&self) -> f64 {
        if self.is_up() { 0.0 } else { self.changed.lock().elapsed().as_secs_f64() }
    }
}
