//! `v1 Service`: a name and address for the workloads that a selector picks.
//! Spec: Kubernetes core/v1 ServiceSpec; the parts that the mesh uses.

use std::{collections::BTreeMap, fmt, net::IpAddr, num::NonZeroU16};

use serde::{Deserialize, Deserializer, Serialize, de};

/// The annotation of a Service with the service accounts, separated by commas, whose workloads alone are its endpoints.
/// Without it every workload with its labels is.
pub const SERVICE_ACCOUNTS: &str = "weft.dev/service-accounts";

/// What a Service is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceSpec {
    /// Which workloads of its namespace: those that have all these labels. Empty: none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub selector: BTreeMap<String, String>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// `ClusterIP` (the default); others are not supported yet.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Its first address. Absent: the control plane gives it one.
    #[serde(
        rename = "clusterIP",
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "one_cluster_ip"
    )]
    pub cluster_ip: Option<IpAddr>,
    /// All its addresses, the first one included: at most one of each family.
    #[serde(rename = "clusterIPs", default, skip_serializing_if = "Vec::is_empty", deserialize_with = "cluster_ips")]
    pub cluster_ips: Vec<IpAddr>,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServicePort {
    /// Its name; required when there is more than one port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The port that clients call.
    pub port: NonZeroU16,
    /// The workloads' port, by number or name. Default: the same number as `port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_port: Option<TargetPort>,
    /// What is spoken there; see [`ServicePort::app`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_protocol: Option<String>,
    /// The transport. Default TCP, and others are not supported yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Transport>,
}

/// A port of a workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum TargetPort {
    /// By number.
    Number(NonZeroU16),
    /// By the name that the workload gives it.
    Name(String),
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP: not supported yet.
    Udp,
    /// SCTP: not supported yet.
    Sctp,
}

/// What an application speaks on a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AppProtocol {
    /// The first bytes decide.
    #[default]
    Detect,
    /// HTTP; the application is given the version of the caller.
    Http,
    /// HTTP; the application is given HTTP/2 always.
    Http2,
    /// gRPC: HTTP/2 always.
    Grpc,
    /// Opaque bytes.
    Tcp,
}

impl AppProtocol {
    /// Its name in objects and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Detect => "detect",
            Self::Http => "http",
            Self::Http2 => "http2",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
        }
    }
}

impl ServiceSpec {
    /// Its addresses, each once, the first one first.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let mut all: Vec<IpAddr> = Vec::new();
        for address in self.cluster_ip.iter().chain(&self.cluster_ips) {
            if !all.contains(address) {
                all.push(*address);
            }
        }
        all
    }

    /// The port of this number.
    pub fn port(&self, number: NonZeroU16) -> Option<&ServicePort> {
        self.ports.iter().find(|port| port.port == number)
    }

    /// The port of this name.
    pub fn port_named(&self, name: &str) -> Option<&ServicePort> {
        self.ports.iter().find(|port| port.name.as_deref() == Some(name))
    }
}

impl ServicePort {
    /// The workloads' port: `targetPort`, or the same number.
    pub fn target(&self) -> TargetPort {
        self.target_port.clone().unwrap_or(TargetPort::Number(self.port))
    }

    /// What is spoken there, by `appProtocol`. A text that the mesh does not know says nothing: the bytes decide.
    pub fn app(&self) -> AppProtocol {
        match self.app_protocol.as_deref() {
            Some("http" | "kubernetes.io/ws") => AppProtocol::Http,
            Some("http2" | "h2c" | "kubernetes.io/h2c") => AppProtocol::Http2,
            Some("grpc") => AppProtocol::Grpc,
            Some("tcp" | "tls" | "https" | "kubernetes.io/wss") => AppProtocol::Tcp,
            _ => AppProtocol::Detect,
        }
    }
}

impl fmt::Display for TargetPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(port) => port.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl<'de> Deserialize<'de> for TargetPort {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = TargetPort;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port number from 1 to 65535 or a port name")
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<TargetPort, E> {
                let port = u16::try_from(value).ok().and_then(NonZeroU16::new);
                port.map(TargetPort::Number).ok_or_else(|| E::invalid_value(de::Unexpected::Unsigned(value), &self))
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<TargetPort, E> {
                match u64::try_from(value) {
                    Ok(value) => self.visit_u64(value),
                    Err(_) => Err(E::invalid_value(de::Unexpected::Signed(value), &self)),
                }
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<TargetPort, E> {
                Ok(TargetPort::Name(value.to_owned()))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// An address of a Service: what `IpAddr` reads, and a clear word about headless services.
struct ClusterIp(IpAddr);

impl<'de> Deserialize<'de> for ClusterIp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "None" {
            return Err(de::Error::custom("headless services are not supported yet"));
        }
        let address = text.parse().ok();
        address.map(Self).ok_or_else(|| de::Error::custom(format_args!("{text:?} is not an IP address")))
    }
}

fn one_cluster_ip<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<IpAddr>, D::Error> {
    ClusterIp::deserialize(deserializer).map(|ip| Some(ip.0))
}

fn cluster_ips<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpAddr>, D::Error> {
    Vec::<ClusterIp>::deserialize(deserializer).map(|all| all.into_iter().map(|ip| ip.0).collect())
}
