//! `gateway.networking.k8s.io/v1 HTTPRoute`: where requests to a Service or a Gateway go.
//! Spec: Gateway API v1 HTTPRouteSpec. Fields that the mesh does not support yet are refused by name, see `parse/words.rs`.

mod filter;

use std::num::NonZeroU16;

use serde::{Deserialize, Serialize};

pub use self::filter::{FilterType, HttpHeader, HttpHeaderFilter, HttpRouteFilter};
use super::duration::Duration;

/// The group of the Gateway API.
pub const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";

/// What an HTTPRoute is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRouteSpec {
    /// The Services and Gateways whose requests it routes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parent_refs: Vec<ParentReference>,
    /// Hosts: `a.example` or `*.example`. Empty: every host. Not looked at for a Service.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hostnames: Vec<String>,
    /// Its rules. Absent: one rule for everything, without a backend.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<HttpRouteRule>,
}

/// A Service or a Gateway, or one port or listener of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ParentReference {
    /// Its group: empty for a Service. Default `gateway.networking.k8s.io`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// `Gateway` (the default) or `Service`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Its namespace. Default: the route's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// The listener of a Gateway or the named port of a Service. Absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
    /// The port of a Gateway's listeners or of a Service. Absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<NonZeroU16>,
}

/// Matches, and what happens to the requests that match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRouteRule {
    /// What logs call it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Which requests: those that fall under any of these. Empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub matches: Vec<HttpRouteMatch>,
    /// What is changed about them and their answers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<HttpRouteFilter>,
    /// Where they go. Empty: they are answered with 500.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backend_refs: Vec<BackendRef>,
    /// How long they may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<HttpRouteTimeouts>,
    /// When they are tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<HttpRouteRetry>,
}

/// Which requests: every part has to match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRouteMatch {
    /// The path without the query. Default: every path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<HttpPathMatch>,
    /// Headers; of several entries with one name the first counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HttpHeaderMatch>,
    /// The method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
}

/// A match on the path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpPathMatch {
    /// How. Default `PathPrefix`.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<PathMatchType>,
    /// The path. Default `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

/// How a path is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PathMatchType {
    /// The whole path.
    Exact,
    /// By segments: `/v2` matches `/v2` and `/v2/x`, not `/v2x`.
    #[default]
    PathPrefix,
    /// The whole path, by a regular expression.
    RegularExpression,
}

/// A match on a header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpHeaderMatch {
    /// How. Default `Exact`.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<HeaderMatchType>,
    /// The header's name, in any case.
    pub name: String,
    /// The value.
    pub value: String,
}

/// How a header's value is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum HeaderMatchType {
    /// The whole value.
    #[default]
    Exact,
    /// The whole value, by a regular expression.
    RegularExpression,
}

/// A place that requests go to, and its share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackendRef {
    /// Its group. Default: the core group, which is the empty text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Its kind. Default `Service`. Requests to a kind that the mesh does not know are answered with 500.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Its name.
    pub name: String,
    /// Its namespace. Default: the route's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The Service's port; required for a Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<NonZeroU16>,
    /// Its share relative to the other backends. Default 1; 0 gets nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
}

/// How long a request may take. `0s` switches a timeout off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRouteTimeouts {
    /// From the request's first byte to the answer's last, all tries together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Duration>,
    /// Each try, until the head of the answer. At most `request`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend_request: Option<Duration>,
}

/// When a request is tried again (GEP-1731).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRouteRetry {
    /// Statuses, 400 to 599, that are tried again, and no others. Empty: those of the TrafficPolicy, or 502 to 504.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub codes: Vec<u16>,
    /// Further tries after the first. 0 switches retries off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    /// The least wait between tries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Duration>,
}

/// What a reference names, of the kinds that the mesh knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefKind {
    /// `gateway.networking.k8s.io` Gateway.
    Gateway,
    /// Core Service.
    Service,
}

impl ParentReference {
    /// What it names; `None` for what the mesh does not know.
    pub fn target(&self) -> Option<RefKind> {
        ref_kind(self.group.as_deref().unwrap_or(GATEWAY_GROUP), self.kind.as_deref().unwrap_or("Gateway"))
    }

    /// Its namespace, given the route's.
    pub fn namespace<'a>(&'a self, route: &'a str) -> &'a str {
        self.namespace.as_deref().unwrap_or(route)
    }
}

impl BackendRef {
    /// What it names; `None` for what the mesh does not know.
    pub fn target(&self) -> Option<RefKind> {
        ref_kind(self.group.as_deref().unwrap_or(""), self.kind.as_deref().unwrap_or("Service"))
    }

    /// Its namespace, given the route's.
    pub fn namespace<'a>(&'a self, route: &'a str) -> &'a str {
        self.namespace.as_deref().unwrap_or(route)
    }

    /// Its share: `weight`, or 1.
    pub fn weight(&self) -> u32 {
        self.weight.unwrap_or(1)
    }
}

impl HttpPathMatch {
    /// How it compares: `type`, or [`PathMatchType::PathPrefix`].
    pub fn kind(&self) -> PathMatchType {
        self.kind.unwrap_or_default()
    }

    /// The path: `value`, or `/`.
    pub fn value(&self) -> &str {
        self.value.as_deref().unwrap_or("/")
    }
}

impl HttpHeaderMatch {
    /// How it compares: `type`, or [`HeaderMatchType::Exact`].
    pub fn kind(&self) -> HeaderMatchType {
        self.kind.unwrap_or_default()
    }
}

fn ref_kind(group: &str, kind: &str) -> Option<RefKind> {
    match (group, kind) {
        (GATEWAY_GROUP, "Gateway") => Some(RefKind::Gateway),
        ("" | "core", "Service") => Some(RefKind::Service),
        _ => None,
    }
}
