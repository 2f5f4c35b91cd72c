//! The state of the mesh, as xDS, the API and the status of objects read it.
//! Shape: [`Mesh`] has the newest snapshot of each [`Source`] (what users apply, what registers) and the [`ProxyTable`], which
//! is live state behind a lock: the proxies that are connected.

use std::sync::Arc;

use tokio::sync::watch;

use crate::{desired::Desired, registry::Registered};

mod index;
mod proxies;
mod source;

pub use index::{WorkloadChange, WorkloadIndex};
pub use proxies::{
    AgentStatus, AgentStream, DiscoveryStatus, DiscoveryStream, Nack, ProxyKey, ProxyStatus, ProxyTable, WorkloadHealth,
};
pub use source::Source;

/// The state of the mesh. A clone reads the same.
#[derive(Clone, Debug)]
pub struct Mesh {
    /// The objects that users apply.
    pub desired: watch::Receiver<Arc<Desired>>,
    /// The workloads that register.
    pub registered: watch::Receiver<Arc<Registered>>,
    /// The connected proxies.
    pub proxies: Arc<ProxyTable>,
}

impl Mesh {
    /// Reads these sources.
    pub fn new(
        desired: &impl Source<Snapshot = Desired>,
        registered: &impl Source<Snapshot = Registered>,
        proxies: Arc<ProxyTable>,
    ) -> Self {
        Self { desired: desired.watch(), registered: registered.watch(), proxies }
    }
}
