//! `gateway.networking.k8s.io/v1 Gateway`: where traffic enters the mesh.
//! Spec: Gateway API v1 GatewaySpec. Fields that the mesh does not support yet are refused by name, see `parse/words.rs`.

use std::{collections::BTreeMap, num::NonZeroU16};

use serde::{Deserialize, Serialize};

use super::meta::{Address, RouteKind};

/// The class of the Gateways that Weft serves.
pub const GATEWAY_CLASS: &str = "weft";

/// The annotation of a Gateway with the service account whose proxies alone may serve it.
pub const GATEWAY_ACCOUNT: &str = "weft.dev/service-account";

/// What a Gateway is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GatewaySpec {
    /// Always `weft`.
    pub gateway_class_name: String,
    /// Where it listens; at least one.
    pub listeners: Vec<Listener>,
    /// The addresses that it is wanted at.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<Address>,
}

/// A port and host of a Gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Listener {
    /// Its name, unique in the Gateway.
    pub name: String,
    /// Which hosts: `a.example` or `*.example`. Absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// The port it listens on.
    pub port: NonZeroU16,
    /// What it takes.
    pub protocol: ListenerProtocol,
    /// Which routes may attach. Default: HTTPRoutes of the Gateway's own namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_routes: Option<AllowedRoutes>,
}

/// What a listener takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum ListenerProtocol {
    /// HTTP/1 and HTTP/2 in plaintext.
    Http,
    /// Not supported yet.
    Https,
    /// Not supported yet.
    Tls,
    /// Not supported yet.
    Tcp,
    /// Not supported yet.
    Udp,
}

/// Which routes may attach to a listener.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AllowedRoutes {
    /// From which namespaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<RouteNamespaces>,
    /// Which kinds. Empty: all that the listener's protocol takes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kinds: Vec<RouteKind>,
}

/// The namespaces whose routes may attach.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RouteNamespaces {
    /// Default `Same`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<FromNamespaces>,
    /// With `Selector`: the namespaces' labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
}

/// From where routes may attach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromNamespaces {
    /// Every namespace.
    All,
    /// The Gateway's own.
    #[default]
    Same,
    /// Those with the selector's labels; outside Kubernetes a namespace has the one label
    /// `kubernetes.io/metadata.name`, its name.
    Selector,
    /// None.
    None,
}

/// Labels to have: all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LabelSelector {
    /// The labels. Empty: everything is selected.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
}

impl LabelSelector {
    /// Whether labels have all that is asked for.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
    }
}

impl Listener {
    /// Whether routes of a namespace may attach, given the Gateway's own namespace and the labels of the other.
    pub fn allows_namespace(&self, own: &str, other: &str, labels: &BTreeMap<String, String>) -> bool {
        let namespaces = self.allowed_routes.as_ref().and_then(|allowed| allowed.namespaces.as_ref());
        match namespaces.and_then(|namespaces| namespaces.from).unwrap_or_default() {
            FromNamespaces::All => true,
            FromNamespaces::Same => own == other,
            FromNamespaces::None => false,
            FromNamespaces::Selector => {
                namespaces.and_then(|n| n.selector.as_ref()).is_some_and(|selector| selector.matches(labels))
            }
        }
    }
}
