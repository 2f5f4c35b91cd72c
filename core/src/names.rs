//! Names of resources on the wire and in metrics. One name always means one content, except `inbound`, which differs from
//! proxy to proxy.
//!
//! | resource | name |
//! |---|---|
//! | listener | `inbound`, `outbound` (what is not in the mesh), `outbound/<ip>:<port>`, `gateway/<ns>/<name>` |
//! | routes | `svc/<ns>/<name>:<port>`, `direct/<ip>:<port>`, `gateway/<ns>/<name>:<port>`, `inbound:<port>`, `inbound` |
//! | cluster, endpoints | `svc/<ns>/<name>:<port>`, `direct/<ip>:<port>` |

use std::{fmt, net::SocketAddr, num::NonZeroU16};

use serde::Serialize;

/// The addresses that the mesh hands out to services outside Kubernetes: IPv4.
pub const MESH_RANGE_V4: &str = "240.0.0.0/4";
/// The addresses that the mesh hands out to services outside Kubernetes: IPv6 (`weft` in ASCII below `fd`).
pub const MESH_RANGE_V6: &str = "fd77:6566:7400::/48";

/// One port of one service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ServicePort {
    /// The service's namespace.
    pub namespace: String,
    /// The service's name.
    pub name: String,
    /// The service's port (not the workload's).
    pub port: NonZeroU16,
}

/// A listener's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum ListenerName {
    /// What arrives at this workload.
    Inbound,
    /// What this workload sends to an address that is not in the mesh.
    OutboundDefault,
    /// What this workload sends to this address.
    Outbound(SocketAddr),
    /// A gateway at the edge.
    Gateway {
        /// The Gateway object's namespace.
        namespace: String,
        /// The Gateway object's name.
        name: String,
    },
}

/// A route table's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum RouteName {
    /// Requests to a service, from everywhere.
    Service(ServicePort),
    /// Requests to a workload's own address: no routes, one cluster.
    Direct(SocketAddr),
    /// Requests to a port of a gateway.
    Gateway {
        /// The Gateway object's namespace.
        namespace: String,
        /// The Gateway object's name.
        name: String,
        /// The listener's port.
        port: NonZeroU16,
    },
    /// Requests to a port of the asking proxy's own workload; `None` for every port without one of its own.
    Inbound(Option<NonZeroU16>),
}

/// A cluster's name, which is also the name of its endpoint set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum ClusterName {
    /// The workloads of a service.
    Service(ServicePort),
    /// One workload by its own address.
    Direct(SocketAddr),
}

/// A text that is no name of that resource.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {what} name")]
pub struct NameError {
    /// What was expected: `listener`, `route` or `cluster`.
    pub what: &'static str,
    /// The text, cut to 200 characters.
    pub text: String,
}

/// The names of resources in a text for people, such as the reason of a refusal: whole words, quoted or not.
pub fn named_in(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | ',' | ';' | '(' | ')'));
    let bare = words.map(|word| word.trim_end_matches([':', '.']));
    bare.filter(|word| {
        ListenerName::parse(word).is_ok() || RouteName::parse(word).is_ok() || ClusterName::parse(word).is_ok()
    })
}

impl ListenerName {
    /// Parses a listener name; the inverse of `Display`.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        match text {
            "inbound" => return Ok(Self::Inbound),
            "outbound" => return Ok(Self::OutboundDefault),
            _ => {}
        }
        let parsed = match text.split_once('/') {
            Some(("outbound", address)) => address.parse().ok().map(Self::Outbound),
            Some(("gateway", rest)) => pair(rest).map(|(namespace, name)| Self::Gateway { namespace, name }),
            _ => None,
        };
        canonical(parsed, "listener", text)
    }
}

impl RouteName {
    /// Parses a route table name; the inverse of `Display`.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        if text == "inbound" {
            return Ok(Self::Inbound(None));
        }
        if let Some(port) = text.strip_prefix("inbound:") {
            return canonical(port.parse().ok().map(|port| Self::Inbound(Some(port))), "route", text);
        }
        let parsed = match text.split_once('/') {
            Some(("svc", rest)) => service_port(rest).map(Self::Service),
            Some(("direct", address)) => address.parse().ok().map(Self::Direct),
            Some(("gateway", rest)) => {
                service_port(rest).map(|at| Self::Gateway { namespace: at.namespace, name: at.name, port: at.port })
            }
            _ => None,
        };
        canonical(parsed, "route", text)
    }
}

impl ClusterName {
    /// Parses a cluster name; the inverse of `Display`.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let parsed = match text.split_once('/') {
            Some(("svc", rest)) => service_port(rest).map(Self::Service),
            Some(("direct", address)) => address.parse().ok().map(Self::Direct),
            _ => None,
        };
        canonical(parsed, "cluster", text)
    }
}

impl fmt::Display for ServicePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}:{}", self.namespace, self.name, self.port)
    }
}

impl fmt::Display for ListenerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inbound => f.write_str("inbound"),
            Self::OutboundDefault => f.write_str("outbound"),
            Self::Outbound(address) => write!(f, "outbound/{address}"),
            Self::Gateway { namespace, name } => write!(f, "gateway/{namespace}/{name}"),
        }
    }
}

impl fmt::Display for RouteName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(service) => write!(f, "svc/{service}"),
            Self::Direct(address) => write!(f, "direct/{address}"),
            Self::Gateway { namespace, name, port } => write!(f, "gateway/{namespace}/{name}:{port}"),
            Self::Inbound(None) => f.write_str("inbound"),
            Self::Inbound(Some(port)) => write!(f, "inbound:{port}"),
        }
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(service) => write!(f, "svc/{service}"),
            Self::Direct(address) => write!(f, "direct/{address}"),
        }
    }
}

fn pair(text: &str) -> Option<(String, String)> {
    let (namespace, name) = text.split_once('/')?;
    let valid = |s: &str| !s.is_empty() && !s.contains(['/', ':']);
    (valid(namespace) && valid(name)).then(|| (namespace.to_owned(), name.to_owned()))
}

fn service_port(text: &str) -> Option<ServicePort> {
    let (path, port) = text.rsplit_once(':')?;
    let (namespace, name) = pair(path)?;
    Some(ServicePort { namespace, name, port: port.parse().ok()? })
}

/// Accepts a parsed name only when it prints as it was written, so that one thing has one name.
fn canonical<T: fmt::Display>(parsed: Option<T>, what: &'static str, text: &str) -> Result<T, NameError> {
    parsed
        .filter(|name| Remainder(text).is(name))
        .ok_or_else(|| NameError { what, text: text.chars().take(200).collect() })
}

/// The rest of a text, while a value is printed that must print the same.
struct Remainder<'a>(&'a str);

impl Remainder<'_> {
    fn is(mut self, printed: &impl fmt::Display) -> bool {
        fmt::write(&mut self, format_args!("{printed}")).is_ok() && self.0.is_empty()
    }
}

impl fmt::Write for Remainder<'_> {
    fn write_str(&mut self, printed: &str) -> fmt::Result {
        self.0 = self.0.strip_prefix(printed).ok_or(fmt::Error)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (18)
    #[test]
    fn names_in_a_text_are_whole_words() {
        let text = r#"listener "gateway/shop/edge2": route table "gateway/shop/edge2:80" is missing; svc/a/b:80: bad, \
                      outbound/[fd77::1]:80."#;
        let found: Vec<_> = named_in(text).collect();
        assert_eq!(found, ["gateway/shop/edge2", "gateway/shop/edge2:80", "svc/a/b:80", "outbound/[fd77::1]:80"]);
    }

    #[test]
    fn names_print_as_they_were_written() {
        for text in ["inbound", "outbound", "outbound/240.0.0.1:80", "outbound/[fd77::1]:80", "gateway/shop/edge"] {
            assert_eq!(ListenerName::parse(text).unwrap().to_string(), text);
        }
        for text in ["svc/shop/product:80", "direct/10.0.0.1:8080", "gateway/shop/edge:80", "inbound:8080", "inbound"] {
            assert_eq!(RouteName::parse(text).unwrap().to_string(), text);
        }
        for text in ["svc/shop/product:80", "direct/[fd00::1]:8080"] {
            assert_eq!(ClusterName::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn other_texts_and_other_spellings_are_refused() {
        for text in [
            "",
            "inbound/",
            "outbound/",
            "outbound/a:1",
            "outbound/240.0.0.1",
            "gateway/a",
            "gateway/a/b/c",
            "gateway//b",
        ] {
            assert!(ListenerName::parse(text).is_err(), "{text}");
        }
        for text in
            ["svc/a:1", "svc/a/b", "svc/a/b:0", "svc/a/b:080", "svc/a/b:99999", "inbound:0", "direct/[FD00::1]:1"]
        {
            assert!(RouteName::parse(text).is_err(), "{text}");
        }
        assert!(ClusterName::parse("gateway/a/b:1").is_err());
    }
}
