//! `weft.dev/v1alpha1 Workload`: something that takes traffic. Applied by a person it is a static registration; the
//! registry keeps registered instances in the same shape.

use std::{
    net::IpAddr,
    num::{NonZeroU16, NonZeroU32},
};

use serde::{Deserialize, Serialize};

use super::service::AppProtocol;

/// The service account of a workload that names none.
pub const DEFAULT_SERVICE_ACCOUNT: &str = "default";

/// What a Workload is. Its labels are `metadata.labels`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadSpec {
    /// Its service account, within its namespace. Default `default`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account: Option<String>,
    /// Where it is; at least one.
    pub addresses: Vec<IpAddr>,
    /// Its ports. A port that is called but not listed is taken as it is, with the protocol detected.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<WorkloadPort>,
    /// Ports at which peers reach its host without the proxy, as `weft-proxy redirect --skip-inbound-ports` leaves them out:
    /// callers in the mesh connect in plaintext there, without identity and policy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skip_inbound_ports: Vec<NonZeroU16>,
    /// Its share of the traffic relative to others. Default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<NonZeroU32>,
    /// Where it runs, such as a rack or an availability zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Whether it takes new work. Default `healthy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<WorkloadHealth>,
    /// Whether there is a Weft proxy beside it: then it is reached by mesh TLS, else in plaintext. Default true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mesh: Option<bool>,
}

/// A port of a workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadPort {
    /// Its name; what a Service's `targetPort` may say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The port that the application listens on.
    pub port: NonZeroU16,
    /// What is spoken there. Default `detect`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<AppProtocol>,
    /// Where others connect to reach this port, when the workload's proxy listens elsewhere because nothing redirects
    /// to it (`forward.inbound`). Default: `port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy_port: Option<NonZeroU16>,
}

/// Whether a workload takes new work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkloadHealth {
    /// It does.
    #[default]
    Healthy,
    /// It finishes what it has.
    Draining,
    /// Its checks fail: used only when no other is healthy.
    Unhealthy,
}

impl WorkloadSpec {
    /// Its service account: `serviceAccount`, or `default`.
    pub fn service_account(&self) -> &str {
        self.service_account.as_deref().unwrap_or(DEFAULT_SERVICE_ACCOUNT)
    }

    /// Its share: `weight`, or 1.
    pub fn weight(&self) -> NonZeroU32 {
        self.weight.unwrap_or(NonZeroU32::MIN)
    }

    /// Whether there is a Weft proxy beside it: `mesh`, or true.
    pub fn in_mesh(&self) -> bool {
        self.mesh.unwrap_or(true)
    }

    /// The port of this number, if it is listed.
    pub fn port(&self, number: NonZeroU16) -> Option<&WorkloadPort> {
        self.ports.iter().find(|port| port.port == number)
    }

    /// The port of this name.
    pub fn port_named(&self, name: &str) -> Option<&WorkloadPort> {
        self.ports.iter().find(|port| port.name.as_deref() == Some(name))
    }
}

impl WorkloadPort {
    /// What is spoken there: `protocol`, or [`AppProtocol::Detect`].
    pub fn protocol(&self) -> AppProtocol {
        self.protocol.unwrap_or_default()
    }

    /// Where others connect: `proxyPort`, or `port`.
    pub fn reached_at(&self) -> NonZeroU16 {
        self.proxy_port.unwrap_or(self.port)
    }
}
