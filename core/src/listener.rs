//! Listeners: where traffic enters a proxy, and which route tables and clusters then apply.
//! Shape: one [`Listener`] per [`ListenerName`](crate::names::ListenerName).
//! Wire: `envoy.config.listener.v3.Listener`; see `wire::listener`.

use std::{collections::BTreeMap, net::SocketAddr, num::NonZeroU16};

use serde::Serialize;

use crate::{names::RouteName, policy::Authorization, route::WeightedCluster};

/// A listener of one of the four kinds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum Listener {
    /// What arrives at this workload.
    Inbound(Inbound),
    /// What this workload sends to an address outside the mesh.
    OutboundDefault(OutboundDefault),
    /// What this workload sends to an address of the mesh.
    Outbound(Outbound),
    /// A gateway at the edge.
    Gateway(Gateway),
}

/// What arrives at this workload, by destination port.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Inbound {
    /// Ports with settings of their own.
    pub ports: BTreeMap<NonZeroU16, InboundPort>,
    /// Every other port.
    pub default: InboundPort,
    /// Which requests and connections get an access log line, both directions.
    pub access_log: AccessLog,
}

/// How one port of the workload is guarded and understood.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct InboundPort {
    /// Whether plaintext is let in.
    pub mode: InboundMode,
    /// What plaintext on this port speaks. Mesh TLS says it by ALPN instead.
    pub protocol: Protocol,
    /// The route table that holds the authorization of requests.
    pub routes: RouteName,
    /// Authorization of connections that are not HTTP, by caller and port.
    pub authorization: Authorization,
}

/// Whether a workload takes traffic that is not mesh TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum InboundMode {
    /// Mesh TLS and plaintext (and the application's own TLS).
    #[default]
    Permissive,
    /// Mesh TLS only.
    Strict,
}

/// What bytes on a port are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// Decided by the first bytes, from whichever side they come.
    #[default]
    Detect,
    /// HTTP of any version; other bytes are refused.
    Http,
    /// HTTP/2 (gRPC) towards the application, whatever the caller speaks; other bytes are refused.
    Http2,
    /// Opaque bytes, never looked at.
    Tcp,
}

/// Which requests and connections are written to the access log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AccessLog {
    /// None.
    Off,
    /// Those that failed: status 5xx, refused, reset.
    #[default]
    Errors,
    /// Every one.
    All,
}

/// What happens to traffic that leaves for an address outside the mesh.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OutboundDefault {
    /// Pass it through untouched, or refuse it.
    pub policy: OutboundPolicy,
}

/// Whether a workload may call what the mesh does not know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OutboundPolicy {
    /// Pass it through to its original destination in plaintext, as without a mesh.
    #[default]
    AllowAny,
    /// Refuse it.
    RegisteredOnly,
}

/// What this workload sends to one address of the mesh.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outbound {
    /// The address and port that the application calls.
    pub address: SocketAddr,
    /// What the application speaks there.
    pub protocol: Protocol,
    /// Where HTTP goes; absent when `protocol` is [`Protocol::Tcp`].
    pub http: Option<RouteName>,
    /// Where opaque bytes go; empty when they are refused.
    pub tcp: Vec<WeightedCluster>,
}

/// A gateway: listeners on ports of its own, with no capture.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Gateway {
    /// The object's namespace.
    pub namespace: String,
    /// The object's name.
    pub name: String,
    /// The ports it listens on, with the route table of each (HTTP/1 and HTTP/2 by detection).
    pub ports: BTreeMap<NonZeroU16, RouteName>,
    /// Which requests get an access log line.
    pub access_log: AccessLog,
    /// What is done with a path that holds an escaped slash.
    pub encoded_slashes: EncodedSlashes,
}

/// What a gateway does with a path that holds `%2f`, which some applications read as `/` and others do not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum EncodedSlashes {
    /// Refuse the request: 400.
    #[default]
    Refuse,
    /// Pass it on as it came; routes see a part of a segment in it, never its end.
    Keep,
}

impl Inbound {
    /// The settings of a port.
    pub fn port(&self, port: u16) -> &InboundPort {
        NonZeroU16::new(port).and_then(|port| self.ports.get(&port)).unwrap_or(&self.default)
    }
}
