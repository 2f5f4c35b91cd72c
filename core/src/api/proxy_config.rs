//! `weft.dev/v1alpha1 ProxyConfig`: the proxy's own settings, the first document of its file. Never stored in the
//! control plane. Shape: see "The proxy's file" in ARCHITECTURE.md.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    num::{NonZeroU16, NonZeroU32, NonZeroUsize},
    path::PathBuf,
};

use serde::{Deserialize, Deserializer, Serialize, de};

use super::{
    duration::Duration,
    mesh_config::AccessLogMode,
    meta::ObjectMeta,
    workload::{DEFAULT_SERVICE_ACCOUNT, WorkloadPort},
};

/// A proxy and what it is beside.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProxyConfig {
    /// Its name (what the control plane and `weft status` call it) and namespace.
    pub metadata: ObjectMeta,
    /// Its settings.
    pub spec: ProxyConfigSpec,
}

/// The proxy's own settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProxyConfigSpec {
    /// Beside a workload, or at the edge.
    pub mode: ProxyMode,
    /// Mode `gateway`: the name of the Gateway object, in the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// The workload beside this proxy; required for a sidecar. For a gateway it may give the service account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<ProxyWorkload>,
    /// Where configuration and identity come from. Absent: from this file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control_plane: Option<ControlPlane>,
    /// The identity's files; only without a control plane. Absent too: no identity, plaintext only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<IdentityFiles>,
    /// `SO_MARK` on the proxy's own connections; 0 sets none. Default 0x77656674.
    #[serde(default = "default_mark")]
    pub mark: u32,
    /// Threads that carry traffic. Default 1.
    #[serde(default = "default_workers")]
    pub workers: NonZeroUsize,
    /// Mesh TLS between proxies.
    #[serde(default)]
    pub tls: ProxyTls,
    /// Where it listens.
    #[serde(default)]
    pub ports: ProxyPorts,
    /// The address of the metrics port. Default: all addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bind: Option<IpAddr>,
    /// Explicit listeners, for places without redirection.
    #[serde(default, skip_serializing_if = "Forward::is_empty")]
    pub forward: Forward,
    /// Whether connections must be redirected to this proxy: if they are not, it is not ready. Default true for a sidecar with a mark
    /// and without `forward`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect_redirect: Option<bool>,
    /// How long open requests and connections are given when it stops. Default 30 s.
    #[serde(default = "default_drain")]
    pub drain: Duration,
    /// Which requests and connections are logged. Absent: what the mesh says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_log: Option<AccessLogMode>,
    /// What it takes at once.
    #[serde(default)]
    pub limits: ProxyLimits,
}

/// What a proxy is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProxyMode {
    /// Beside one workload: captures what it sends and receives.
    Sidecar,
    /// At the edge of the mesh: listens where a Gateway object says.
    Gateway,
}

/// The workload beside a proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProxyWorkload {
    /// Its service account, within the proxy's namespace. Default `default`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account: Option<String>,
    /// Its labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Where others reach it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// Its ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<WorkloadPort>,
    /// Ports at which peers reach its host without the proxy, besides those that the redirection in force leaves out and the
    /// proxy's own: callers in the mesh connect in plaintext there, without identity and policy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skip_inbound_ports: Vec<NonZeroU16>,
    /// Its share of the traffic relative to others. Default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<NonZeroU32>,
    /// Where it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Checks that it must pass to take traffic: one, or a list; an empty list: none. Default: one of its ports must be open.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "one_or_many")]
    pub health: Option<Vec<HealthCheck>>,
}

/// A check that the proxy makes of its workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HealthCheck {
    /// The workload's port.
    pub port: NonZeroU16,
    /// What is done. Default `tcp`.
    #[serde(rename = "type", default)]
    pub kind: HealthCheckType,
    /// With `http`: the path of the GET; 200 to 399 is healthy. Default `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// From one check to the next. Default 1 s.
    #[serde(default = "one_second")]
    pub interval: Duration,
    /// How long one check may take. Default 1 s.
    #[serde(default = "one_second")]
    pub timeout: Duration,
}

/// How many of a workload's checks have to pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passing {
    /// Every one.
    All,
    /// One, if there is any.
    Any,
}

/// What a health check does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthCheckType {
    /// Opens a connection.
    #[default]
    Tcp,
    /// Sends a GET.
    Http,
}

/// Where the control plane is and how to join it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ControlPlane {
    /// `host:port` of its gRPC listener.
    pub address: String,
    /// A file with a join token. This or `joinToken`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join_token_file: Option<PathBuf>,
    /// A join token. This or `joinTokenFile`. A secret: not shown by `Debug`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join_token: Option<String>,
}

/// PEM files; read again when they change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IdentityFiles {
    /// The certificate chain, leaf first.
    pub certificate_file: PathBuf,
    /// The leaf's key, PKCS #8.
    pub private_key_file: PathBuf,
    /// The roots that peers are verified by.
    pub trust_bundle_file: PathBuf,
}

/// Where a proxy listens; 0 picks a free port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ProxyPorts {
    /// Outbound capture. Default 15001.
    pub outbound: u16,
    /// Inbound capture. Default 15006.
    pub inbound: u16,
    /// Admin, on loopback. Default 15000.
    pub admin: u16,
    /// Metrics and health. Default 15020.
    pub metrics: u16,
}

/// Explicit listeners, for places without redirection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Forward {
    /// As if captured on its way out to `destination`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outbound: Vec<ForwardListener>,
    /// As if captured on its way in to `destination`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inbound: Vec<ForwardListener>,
}

/// One explicit listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ForwardListener {
    /// Where it listens.
    pub listen: SocketAddr,
    /// What counts as the original destination.
    pub destination: SocketAddr,
}

/// Mesh TLS between proxies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ProxyTls {
    /// The record layer of connections between proxies. Default `weft`.
    pub records: TlsRecords,
}

/// A record layer of TLS: both speak the same protocol, and proxies with either talk to each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TlsRecords {
    /// The proxy's own, with less CPU for each byte and less memory for each connection.
    #[default]
    Weft,
    /// That of rustls, for the case of a fault in the proxy's own.
    Rustls,
}

/// What a proxy takes at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ProxyLimits {
    /// Connections from the workload, and as many to it. Default 10,000.
    pub connections: NonZeroU32,
    /// Of those to the workload or the gateway, from one source: an IPv4 address, or a /64 of IPv6. Default: half of `connections`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections_per_source: Option<NonZeroU32>,
    /// Of those to the workload, by mesh TLS under one identity. Default: half of `connections`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections_per_identity: Option<NonZeroU32>,
    /// Requests in flight on one HTTP/2 connection from a caller. Default 1,000; for a gateway 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub streams: Option<NonZeroU32>,
    /// How long bytes of a body may wait for a reader that has read none; zero: for ever. Default 60 s.
    pub stalled: Duration,
    /// The same for a reader that has read some before. Default zero: for ever.
    pub paused: Duration,
    /// How long a caller over HTTP/1 that has closed its sending side waits for an application that speaks HTTP/2 while nothing of
    /// the answer comes; zero: for ever. Default 30 s.
    pub half_closed: Duration,
}

/// The mark on a proxy's own connections when its file says none: `weft` in ASCII.
pub const DEFAULT_MARK: u32 = 0x7765_6674;

fn default_mark() -> u32 {
    DEFAULT_MARK
}

fn default_workers() -> NonZeroUsize {
    NonZeroUsize::MIN
}

fn default_drain() -> Duration {
    Duration::from_secs(30)
}

fn one_second() -> Duration {
    Duration::from_secs(1)
}

impl ProxyWorkload {
    /// Its service account: `serviceAccount`, or `default`.
    pub fn service_account(&self) -> &str {
        self.service_account.as_deref().unwrap_or(DEFAULT_SERVICE_ACCOUNT)
    }
}

impl HealthCheck {
    /// The path: `path`, or `/`.
    pub fn path(&self) -> &str {
        self.path.as_deref().unwrap_or("/")
    }
}

impl Forward {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.outbound.is_empty() && self.inbound.is_empty()
    }
}

impl Default for ProxyPorts {
    fn default() -> Self {
        Self { outbound: 15001, inbound: 15006, admin: 15000, metrics: 15020 }
    }
}

impl Default for ProxyLimits {
    fn default() -> Self {
        Self {
            connections: NonZeroU32::MIN.saturating_add(9_999),
            streams: None,
            connections_per_source: None,
            connections_per_identity: None,
            stalled: Duration::from_secs(60),
            paused: Duration::ZERO,
            half_closed: Duration::from_secs(30),
        }
    }
}

impl ProxyWorkload {
    /// Its checks, and how many have to pass: those of the file, or else a connection to each of its ports every 5 s.
    pub fn checks(&self) -> (Vec<HealthCheck>, Passing) {
        if let Some(checks) = &self.health {
            return (checks.clone(), Passing::All);
        }
        let check = |port: &WorkloadPort| HealthCheck {
            port: port.port,
            kind: HealthCheckType::Tcp,
            path: None,
            interval: Duration::from_secs(5),
            timeout: one_second(),
        };
        (self.ports.iter().map(check).collect(), Passing::Any)
    }
}

impl ProxyLimits {
    /// Most connections from one source.
    pub fn per_source(self) -> u32 {
        self.share(self.connections_per_source)
    }

    /// Most connections of one identity.
    pub fn per_identity(self) -> u32 {
        self.share(self.connections_per_identity)
    }

    fn share(self, limit: Option<NonZeroU32>) -> u32 {
        limit.map_or_else(|| (self.connections.get() / 2).max(1), NonZeroU32::get)
    }
}

impl fmt::Debug for ControlPlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlPlane")
            .field("address", &self.address)
            .field("join_token_file", &self.join_token_file)
            .field("join_token", &self.join_token.as_ref().map(|_| "(hidden)"))
            .finish()
    }
}

/// One check or a list of them.
fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<HealthCheck>>, D::Error> {
    struct Visitor;
    impl<'de> de::Visitor<'de> for Visitor {
        type Value = Vec<HealthCheck>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a health check or a list of them")
        }

        fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
            HealthCheck::deserialize(de::value::MapAccessDeserializer::new(map)).map(|check| vec![check])
        }

        fn visit_seq<A: de::SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
            Vec::deserialize(de::value::SeqAccessDeserializer::new(seq))
        }
    }
    deserializer.deserialize_any(Visitor).map(Some)
}
