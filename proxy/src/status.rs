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
    /// Whether connections are redirected to the proxy.
    pub(crate) captured: watch::Sender<Captured>,
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

/// What is known of the redirection (`capture`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Captured {
    /// Connections of the workload.
    pub(crate) outbound: Redirected,
    /// Connections to it.
    pub(crate) inbound: Redirected,
}

/// Whether connections in one direction are redirected to the proxy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Redirected {
    /// Not known, or not expected.
    #[default]
    Unknown,
    Yes,
    /// A connection of one family did not arrive.
    NotIpv4,
    NotIpv6,
    /// The rules are not those that `weft-proxy redirect` wrote.
    Changed,
    No,
}

impl Redirected {
    /// 1 or 0; nothing if it is not known.
    pub(crate) fn known(self) -> Option<bool> {
        (self != Self::Unknown).then_some(self == Self::Yes)
    }
}

impl Captured {
    /// What is missing, and how to mend it; empty if nothing is known to be missing.
    pub(crate) fn faults(self) -> Vec<&'static str> {
        if self.outbound == Redirected::No && matches!(self.inbound, Redirected::No | Redirected::Unknown) {
            return vec!["nothing is redirected to the proxy: run weft-proxy redirect"];
        }
        let outbound = match self.outbound {
            Redirected::Unknown | Redirected::Yes => None,
            Redirected::NotIpv4 => {
                Some("outbound IPv4 connections are not redirected to the proxy: run weft-proxy redirect")
            }
            Redirected::NotIpv6 => {
                Some("outbound IPv6 connections are not redirected to the proxy: run weft-proxy redirect")
            }
            Redirected::Changed => {
                Some("the rules for outbound connections were changed: run weft-proxy redirect again, with its flags")
            }
            Redirected::No => Some("outbound connections are not redirected to the proxy: run weft-proxy redirect"),
        };
        let inbound = match self.inbound {
            Redirected::Unknown | Redirected::Yes => None,
            Redirected::Changed => {
                Some("the rules for inbound connections were changed: run weft-proxy redirect again, with its flags")
            }
            Redirected::NotIpv4 | Redirected::NotIpv6 | Redirected::No => {
                Some("inbound connections are not redirected to the proxy: run weft-proxy redirect")
            }
        };
        outbound.into_iter().chain(inbound).collect()
    }
}

/// The self-probe of a redirection (`capture`): where it connects to, one address of each family, and how often it arrived at the
/// outbound listener.
#[derive(Debug, Default)]
pub struct SelfProbe(Vec<(SocketAddr, AtomicU64)>);

impl SelfProbe {
    pub(crate) fn new(targets: Vec<SocketAddr>) -> Self {
        Self(targets.into_iter().map(|target| (target, AtomicU64::new(0))).collect())
    }

    pub(crate) fn targets(&self) -> impl Iterator<Item = SocketAddr> {
        self.0.iter().map(|(target, _)| *target)
    }

    /// Whether a captured connection is a probe; counts it.
    pub(crate) fn takes(&self, destination: SocketAddr) -> bool {
        let probe = self.0.iter().find(|(target, _)| *target == destination);
        probe.is_some_and(|(_, arrived)| {
            arrived.fetch_add(1, Relaxed);
            true
        })
    }

    pub(crate) fn arrived(&self, target: SocketAddr) -> u64 {
        self.0.iter().filter(|(other, _)| *other == target).map(|(_, arrived)| arrived.load(Relaxed)).sum()
    }
}

impl Default for Status {
    fn default() -> Self {
        Self {
            applied: watch::Sender::new(Applied::default()),
            certificates: watch::Sender::new(0),
            captured: watch::Sender::new(Captured::default()),
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
