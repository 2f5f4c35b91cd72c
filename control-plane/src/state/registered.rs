//! Registered workloads as a snapshot. Static Workload objects are not in here: they are desired state.

use std::{
    collections::BTreeMap,
    fmt,
    net::IpAddr,
    num::{NonZeroU16, NonZeroU32},
    sync::Arc,
};

use weft_core::{endpoint::Health, identity::Identity, listener::Protocol};

/// Namespace and name of a workload.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkloadKey {
    /// Its namespace.
    pub namespace: String,
    /// Its name, unique in the namespace.
    pub name: String,
}

/// Every registered workload at one moment.
#[derive(Clone, Debug, Default)]
pub struct Registered {
    /// Grows by one with each snapshot.
    pub version: u64,
    /// The workloads. One that did not change is the same `Arc` as in the snapshot before.
    pub workloads: BTreeMap<WorkloadKey, Arc<RegisteredWorkload>>,
}

/// A workload that its proxy has registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegisteredWorkload {
    /// Its name.
    pub key: WorkloadKey,
    /// Who it is, by its certificate.
    pub identity: Identity,
    /// Who it is: the service account of [`RegisteredWorkload::identity`].
    pub service_account: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Where it is; empty for a gateway.
    pub addresses: Vec<IpAddr>,
    /// What it listens on.
    pub ports: Vec<RegisteredPort>,
    /// Its share of traffic relative to others.
    pub weight: NonZeroU32,
    /// Where it runs; empty when not known.
    pub zone: String,
    /// It is a gateway at the edge, which no service selects.
    pub gateway: bool,
    /// Whether it takes new work.
    pub health: Health,
    /// The process; another one of the same name replaces it.
    pub incarnation: String,
}

/// A port of a registered workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegisteredPort {
    /// Its name; empty when it has none.
    pub name: String,
    /// The application's port.
    pub port: NonZeroU16,
    /// What it speaks.
    pub protocol: Protocol,
    /// Where the proxy takes this port's traffic when there is no redirection.
    pub proxy_port: Option<NonZeroU16>,
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
