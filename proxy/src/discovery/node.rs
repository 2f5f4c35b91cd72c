//! The `node` of this proxy with `metadata["weft.dev"]`, as control-plane/src/xds/client.rs reads it. It decides only how
//! resources are rendered for this proxy; identity is that of the certificate.

use prost_types::{ListValue, Struct, Value, value::Kind};
use weft_proto::envoy::config::core::v3::Node;

use crate::config::{Mode, Settings};

/// The name of this program in `node`.
const USER_AGENT: &str = "weft-proxy";

/// The node of a proxy with these settings.
pub(super) fn node(settings: &Settings) -> Node {
    let mode = match settings.mode {
        Mode::Sidecar => "sidecar",
        Mode::Gateway(_) => "gateway",
    };
    let labels = settings.workload.labels.iter().map(|(name, value)| (name.as_str(), text(value)));
    let ports = settings.workload.ports.iter().map(|port| {
        structure([
            ("name", text(port.name.as_deref().unwrap_or_default())),
            ("port", Kind::NumberValue(f64::from(port.port.get()))),
            ("protocol", text(port.protocol().as_str())),
        ])
    });
    let ours = structure([
        ("name", text(&settings.name)),
        ("labels", structure(labels)),
        ("ports", Kind::ListValue(ListValue { values: ports.map(value).collect() })),
        ("mode", text(mode)),
    ]);
    let Kind::StructValue(metadata) = structure([("weft.dev", ours)]) else { return Node::default() };
    Node {
        id: format!("{}/{}", settings.namespace, settings.name),
        cluster: settings.namespace.clone(),
        metadata: Some(metadata),
        user_agent_name: USER_AGENT.to_owned(),
        user_agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        client_features: vec!["weft.v1.Revision".to_owned()],
        ..Node::default()
    }
}

fn text(text: &str) -> Kind {
    Kind::StringValue(text.to_owned())
}

fn value(kind: Kind) -> Value {
    Value { kind: Some(kind) }
}

fn structure<'a>(fields: impl IntoIterator<Item = (&'a str, Kind)>) -> Kind {
    let fields = fields.into_iter().map(|(name, kind)| (name.to_owned(), value(kind))).collect();
    Kind::StructValue(Struct { fields })
}
