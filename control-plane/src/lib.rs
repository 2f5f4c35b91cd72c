//! The control plane of Weft: from desired state, registered workloads and identities to the configuration of proxies.
//!
//! From the highest floor to the lowest (`tests/it/layers.rs` holds the order):
//! - [`app`]: assembles the rooms; the listeners, the order of start and stop.
//! - [`api`]: the REST API. [`xds`]: the ADS server. [`agent`], [`identity`]: the gRPC services of these names.
//! - [`status`]: the status of objects. [`serve`], [`tls`]: listeners.
//! - [`state`]: the state of the mesh, read from its sources; the connected proxies.
//! - [`registry`], [`desired`]: the sources: registered workloads, and desired state as numbered revisions.
//! - [`tokens`], [`ca`]: join and admin tokens, the certificate authority. [`data_dir`]: its parts belong together.
//! - [`store`]: desired state on disk. [`config`]: settings, the only reader of flags and environment. [`metrics`],
//!   [`files`], [`crypto`], [`quota`].

pub mod agent;
pub mod api;
pub mod app;
pub mod ca;
pub mod config;
pub mod crypto;
pub mod data_dir;
pub mod desired;
pub mod files;
pub mod identity;
pub mod metrics;
pub mod quota;
pub mod registry;
pub mod serve;
pub mod state;
pub mod status;
pub mod store;
pub mod tls;
pub mod tokens;
pub mod xds;
