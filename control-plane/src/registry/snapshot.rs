//! Registered workloads as a snapshot. Static Workload objects are not in here: they are desired state.
//! Shape: a persistent map, so that a snapshot shares every unchanged part with the one before, and the names that changed
//! in the last snapshots, so that readers need not compare two of them.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    net::IpAddr,
    num::{NonZeroU16, NonZeroU32},
    sync::Arc,
};

use rpds::RedBlackTreeMapSync;
use weft_core::{endpoint::Health, identity::Identity, listener::Protocol};

/// Namespace and name of a workload.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkloadKey {
    /// Its namespace.
    pub namespace: String,
    /// Its name, unique in the namespace.
    pub name: String,
}

/// Workloads by name. A clone shares everything; a change copies what leads to it.
pub type WorkloadMap = RedBlackTreeMapSync<WorkloadKey, Arc<RegisteredWorkload>>;

/// Number of snapshots whose changed names are kept.
const REMEMBERED: usize = 64;

/// Every registered workload at one moment.
#[derive(Clone, Debug, Default)]
pub struct Registered {
    /// Grows by one with each snapshot.
    pub version: u64,
    /// The workloads. One that did not change is the same `Arc` as in the snapshot before.
    pub workloads: WorkloadMap,
    /// The names that changed in each version, oldest first and without a gap up to `version`.
    recent: VecDeque<(u64, Arc<BTreeSet<WorkloadKey>>)>,
}

/// A workload that its proxy has registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegisteredWorkload {
    /// Its name.
    pub key: WorkloadKey,
    /// Its identity, by its certificate.
    pub identity: Identity,
    /// The service account of [`RegisteredWorkload::identity`].
    pub service_account: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its proven addresses; may be empty.
    pub addresses: Vec<IpAddr>,
    /// Addresses that it claims without a proof: nobody is sent there.
    pub unproven: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<RegisteredPort>,
    /// Ports at which its host is reached without its proxy, sorted.
    pub skipped_ports: Vec<NonZeroU16>,
    /// Its share of traffic relative to others.
    pub weight: NonZeroU32,
    /// Its zone; empty if unknown.
    pub zone: String,
    /// A gateway at the edge, which no service selects.
    pub gateway: bool,
    /// Whether it accepts new work.
    pub health: Health,
    /// The process; another one of the same name replaces it.
    pub incarnation: String,
    /// The address that its last session came from, which proves the claim of that address. Survives a restart of the control
    /// plane; `None` only in files of versions without it.
    pub source: Option<IpAddr>,
}

/// A port of a registered workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegisteredPort {
    /// Its name; empty if it has none.
    pub name: String,
    /// The application's port.
    pub port: NonZeroU16,
    /// Its protocol.
    pub protocol: Protocol,
    /// The proxy's port for this port's traffic where there is no redirection.
    pub proxy_port: Option<NonZeroU16>,
}

impl Registered {
    /// The next snapshot. `changed`: the names that are different. Cost: constant.
    pub fn next(&self, workloads: WorkloadMap, changed: BTreeSet<WorkloadKey>) -> Self {
        let version = self.version + 1;
        let mut recent = self.recent.clone();
        recent.push_back((version, Arc::new(changed)));
        if recent.len() > REMEMBERED {
            recent.pop_front();
        }
        Self { version, workloads, recent }
    }

    /// The names that may be different from an earlier version; `None` if that version is too old.
    pub fn changed_since(&self, version: u64) -> Option<BTreeSet<&WorkloadKey>> {
        let known = version == self.version || self.recent.front().is_some_and(|(first, _)| *first <= version + 1);
        let newer = self.recent.iter().filter(|(at, _)| *at > version);
        known.then(|| newer.flat_map(|(_, changed)| changed.iter()).collect())
    }
}

impl WorkloadKey {
    /// From its two parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for WorkloadKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}
