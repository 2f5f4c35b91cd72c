//! Sending to an application or to another proxy: clusters and their endpoints, tries, pooled connections, and opening them.

pub(crate) mod attempt;
pub(crate) mod cluster;
pub(crate) mod dial;
pub(crate) mod pool;
