//! What the rooms of the control plane show each other.
//! Shape: [`Registered`] is an immutable snapshot behind a `watch` channel; [`ProxyTable`] is live state behind a lock.

mod proxies;
mod registered;

pub use proxies::{
    AgentStatus, AgentStream, DiscoveryStatus, DiscoveryStream, Nack, ProxyKey, ProxyStatus, ProxyTable, WorkloadHealth,
};
pub use registered::{Registered, RegisteredPort, RegisteredWorkload, WorkloadKey};
