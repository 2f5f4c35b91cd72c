//! Endpoints: the addresses behind a cluster, with the identity that is expected there.
//! Wire: `envoy.config.endpoint.v3.ClusterLoadAssignment`; identity in the endpoint's `metadata["weft.dev"]`.

use std::{net::SocketAddr, num::NonZeroU32};

use serde::Serialize;

use crate::{identity::Identity, names::ClusterName};

/// The endpoints of one cluster, in the order of their addresses.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EndpointSet {
    /// The cluster's name.
    pub cluster: ClusterName,
    /// The endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// One address that takes traffic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Endpoint {
    /// Where to connect.
    pub address: SocketAddr,
    /// The workload's name, `<namespace>/<name>`.
    pub workload: String,
    /// The identity that must answer there: with it the hop is mesh TLS, without it plaintext.
    pub identity: Option<Identity>,
    /// Share of the traffic relative to the other endpoints.
    pub weight: NonZeroU32,
    /// Where it runs; empty when not known.
    pub zone: String,
    /// Whether it takes new work.
    pub health: Health,
}

/// Whether an endpoint takes new work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// It does.
    #[default]
    Healthy,
    /// It finishes what it has.
    Draining,
    /// Its own checks fail: used only when no endpoint is healthy.
    Unhealthy,
}
