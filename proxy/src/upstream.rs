//! Upstreams: clusters and their endpoints, connections to them, and pools of connections.

pub(crate) mod cluster;
pub(crate) mod dial;
pub(crate) mod pool;
pub(crate) mod verdict;
