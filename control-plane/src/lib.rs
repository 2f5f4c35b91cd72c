//! The control plane of Weft: what people ask for, what runs where, and who is who, turned into what proxies obey.
//!
//! - [`config`]: settings; the only reader of flags and environment.
//! - [`app`]: puts the rooms together; the listeners, the order of start and stop.
//! - [`state`]: what the rooms show each other: desired state, registered workloads, connected proxies.
//! - [`store`], [`desired`]: desired state as numbered revisions, crash-safe on disk; admission of changes.
//! - [`registry`], [`agent`]: registered workloads, fed by the agent stream; expiry.
//! - [`xds`]: the ADS server.
//! - [`ca`], [`identity`], [`tokens`]: certificates, and who may have one.
//! - [`api`]: the REST API. [`serve`], [`tls`]: listeners. [`metrics`]: health and figures.

pub mod agent;
pub mod api;
pub mod app;
pub mod ca;
pub mod config;
pub mod crypto;
pub mod desired;
pub mod duration;
pub mod files;
pub mod identity;
pub mod metrics;
pub mod registry;
pub mod serve;
pub mod state;
pub mod status;
pub mod store;
pub mod tls;
pub mod tokens;
pub mod xds;
