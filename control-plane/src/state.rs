//! What the rooms of the control plane show each other.
//! Shape: [`Desired`] and [`Registered`] are immutable snapshots behind `watch` channels; [`ProxyTable`] is live state
//! behind a lock. [`Mesh`] has all three.

use std::sync::Arc;

use tokio::sync::watch;

mod desired;
mod proxies;
mod registered;

pub use desired::Desired;
pub use proxies::{
    AgentStatus, AgentStream, DiscoveryStatus, DiscoveryStream, Nack, ProxyKey, ProxyStatus, ProxyTable, WorkloadHealth,
};
pub use registered::{Registered, RegisteredPort, RegisteredWorkload, WorkloadKey, WorkloadMap};

/// Everything there is to see of the mesh. A clone sees the same.
#[derive(Clone, Debug)]
pub struct Mesh {
    /// What people ask for.
    pub desired: watch::Receiver<Arc<Desired>>,
    /// What has registered.
    pub registered: watch::Receiver<Arc<Registered>>,
    /// Which proxies are connected.
    pub proxies: Arc<ProxyTable>,
}
