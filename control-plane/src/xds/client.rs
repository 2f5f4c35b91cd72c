//! The client of a stream: namespace and service account come from its certificate, everything else from its node.
//! The node decides only about resources that are rendered for this client: its inbound ports, and the policies that select
//! its labels.
//!
//! `node.metadata["weft.dev"]` of a Weft proxy: `name` (the workload's), `labels` (texts by name), `ports` (a list of
//! `name`, `port`, `protocol` as in the proxy's file), `mode` (`sidecar` or `gateway`). Every part is optional.

use std::{collections::BTreeMap, num::NonZeroU16};

use prost_types::{Struct, Value, value::Kind};
use weft_core::{
    api::proxy_config::ProxyMode,
    compile::{InstancePort, Requester},
    identity::Identity,
    listener::Protocol,
};
use weft_proto::envoy::config::core::v3::Node;

use super::content::Class;

/// The key of our own metadata.
const METADATA: &str = "weft.dev";
/// `node.user_agent_name` of Weft's own proxy.
pub const WEFT_USER_AGENT: &str = "weft-proxy";
/// Maximum number of labels, and of ports.
const MAX_ENTRIES: usize = 256;

/// The client of one stream.
#[derive(Clone, Debug)]
pub(super) struct Client {
    /// `node.id`: a label for logs, never trusted.
    pub(super) id: String,
    /// The class of client that resources are rendered for.
    pub(super) class: Class,
    /// `user_agent_name` and version, for display.
    pub(super) agent: String,
    /// The proxy, as far as resources depend on it.
    pub(super) requester: Requester,
}

/// Why a node is rejected.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ClientError {
    #[error("the certificate's identity {0} names no namespace and service account")]
    Identity(String),
    #[error("{field}: {expected} expected")]
    Type { field: &'static str, expected: &'static str },
    #[error("{0}: more than 256 entries")]
    TooMany(&'static str),
}

impl Client {
    pub(super) fn new(node: &Node, peer: &Identity) -> Result<Self, ClientError> {
        let (Some(namespace), Some(account)) = (peer.namespace(), peer.service_account()) else {
            return Err(ClientError::Identity(peer.to_string()));
        };
        let class = if node.user_agent_name == WEFT_USER_AGENT { Class::Weft } else { Class::Envoy };
        let id: String = node.id.chars().take(253).collect();
        let mut requester = Requester {
            namespace: namespace.into(),
            name: id.clone(),
            labels: BTreeMap::new(),
            service_account: account.into(),
            ports: Vec::new(),
            mode: ProxyMode::Sidecar,
        };
        let ours = node.metadata.as_ref().and_then(|metadata| metadata.fields.get(METADATA));
        if let Some(ours) = ours {
            read(structure(ours, METADATA)?, &mut requester)?;
        }
        let agent: String = format!("{} {}", node.user_agent_name, node.user_agent_version).chars().take(200).collect();
        Ok(Self { id, class, agent, requester })
    }
}

fn read(metadata: &Struct, requester: &mut Requester) -> Result<(), ClientError> {
    let part = |name: &str| metadata.fields.get(name);
    if let Some(name) = part("name") {
        requester.name = text(name, "name")?.to_owned();
    }
    if let Some(labels) = part("labels") {
        let labels = structure(labels, "labels")?;
        if labels.fields.len() > MAX_ENTRIES {
            return Err(ClientError::TooMany("labels"));
        }
        for (label, value) in &labels.fields {
            requester.labels.insert(label.clone(), text(value, "labels")?.to_owned());
        }
    }
    if let Some(ports) = part("ports") {
        let Some(Kind::ListValue(ports)) = &ports.kind else {
            return Err(ClientError::Type { field: "ports", expected: "a list" });
        };
        if ports.values.len() > MAX_ENTRIES {
            return Err(ClientError::TooMany("ports"));
        }
        for entry in &ports.values {
            requester.ports.push(port(structure(entry, "ports")?)?);
        }
    }
    if let Some(mode) = part("mode") {
        requester.mode = match text(mode, "mode")? {
            "sidecar" => ProxyMode::Sidecar,
            "gateway" => ProxyMode::Gateway,
            _ => return Err(ClientError::Type { field: "mode", expected: "sidecar or gateway" }),
        };
    }
    Ok(())
}

fn port(entry: &Struct) -> Result<InstancePort, ClientError> {
    let name = entry.fields.get("name").map_or(Ok(""), |name| text(name, "ports.name"))?.to_owned();
    let protocol = match entry.fields.get("protocol").map_or(Ok("detect"), |name| text(name, "ports.protocol"))? {
        "detect" => Protocol::Detect,
        "http" => Protocol::Http,
        "http2" | "grpc" => Protocol::Http2,
        "tcp" => Protocol::Tcp,
        _ => return Err(ClientError::Type { field: "ports.protocol", expected: "http, http2, grpc, tcp or detect" }),
    };
    let port = match entry.fields.get("port").map(|port| &port.kind) {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a whole number of 1..=65535")]
        Some(Some(Kind::NumberValue(port))) if port.fract() == 0.0 && (1.0..=65535.0).contains(port) => {
            NonZeroU16::new(*port as u16)
        }
        _ => None,
    };
    let port = port.ok_or(ClientError::Type { field: "ports.port", expected: "a port of 1 to 65535" })?;
    Ok(InstancePort { name, port, protocol, proxy_port: None })
}

fn structure<'a>(value: &'a Value, field: &'static str) -> Result<&'a Struct, ClientError> {
    match &value.kind {
        Some(Kind::StructValue(inner)) => Ok(inner),
        _ => Err(ClientError::Type { field, expected: "a structure" }),
    }
}

fn text<'a>(value: &'a Value, field: &'static str) -> Result<&'a str, ClientError> {
    match &value.kind {
        Some(Kind::StringValue(text)) => Ok(text),
        _ => Err(ClientError::Type { field, expected: "a text" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(metadata: &serde_json::Value) -> Node {
        let value = |json: &serde_json::Value| value(json);
        let Some(Kind::StructValue(metadata)) = value(metadata).kind else { panic!("a structure") };
        Node { id: "me".into(), user_agent_name: WEFT_USER_AGENT.into(), metadata: Some(metadata), ..Node::default() }
    }

    fn value(json: &serde_json::Value) -> Value {
        use serde_json::Value as Json;
        let kind = match json {
            Json::Null => Kind::NullValue(0),
            Json::Bool(bool) => Kind::BoolValue(*bool),
            Json::Number(number) => Kind::NumberValue(number.as_f64().unwrap()),
            Json::String(text) => Kind::StringValue(text.clone()),
            Json::Array(values) => {
                Kind::ListValue(prost_types::ListValue { values: values.iter().map(value).collect() })
            }
            Json::Object(fields) => Kind::StructValue(Struct {
                fields: fields.iter().map(|(name, field)| (name.clone(), value(field))).collect(),
            }),
        };
        Value { kind: Some(kind) }
    }

    fn peer() -> Identity {
        Identity::parse("spiffe://weft.local/ns/shop/sa/product").unwrap()
    }

    #[test]
    fn namespace_and_account_come_from_the_certificate_and_nothing_else() {
        let node = node(&serde_json::json!({"weft.dev": {
            "namespace": "bank", "service_account": "admin", "name": "product-1", "labels": {"app": "product"},
            "ports": [{"name": "http", "port": 8080, "protocol": "http"}], "mode": "sidecar",
        }}));
        let requester = Client::new(&node, &peer()).unwrap().requester;
        assert_eq!((requester.namespace.as_str(), requester.service_account.as_str()), ("shop", "product"));
        assert_eq!((requester.name.as_str(), requester.labels["app"].as_str()), ("product-1", "product"));
        assert_eq!((requester.ports[0].port.get(), requester.ports[0].protocol), (8080, Protocol::Http));
    }

    #[test]
    fn malformed_metadata_is_refused_with_the_field() {
        for (metadata, field) in [
            (serde_json::json!({"weft.dev": 1}), "weft.dev"),
            (serde_json::json!({"weft.dev": {"labels": {"a": 1}}}), "labels"),
            (serde_json::json!({"weft.dev": {"ports": {}}}), "ports"),
            (serde_json::json!({"weft.dev": {"ports": [{"port": 0}]}}), "ports.port"),
            (serde_json::json!({"weft.dev": {"ports": [{"port": 80.5}]}}), "ports.port"),
            (serde_json::json!({"weft.dev": {"ports": [{"port": 80, "protocol": "udp"}]}}), "ports.protocol"),
            (serde_json::json!({"weft.dev": {"mode": "both"}}), "mode"),
        ] {
            match Client::new(&node(&metadata), &peer()) {
                Err(ClientError::Type { field: found, .. }) => assert_eq!(found, field),
                other => panic!("{metadata}: {other:?}"),
            }
        }
        let other = Identity::parse("spiffe://weft.local/machine/a").unwrap();
        assert!(matches!(Client::new(&node(&serde_json::json!({})), &other), Err(ClientError::Identity(_))));
    }
}
