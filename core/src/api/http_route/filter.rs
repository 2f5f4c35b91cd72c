//! Filters of an HTTPRoute's rule.
//! Spec: Gateway API v1 `HTTPRouteFilter`, `HTTPHeaderFilter`. Types that the mesh does not do yet are refused by name.

use serde::{Deserialize, Serialize};

/// One change to the requests of a rule, or to their answers. Each type at most once in a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRouteFilter {
    /// Its type, which says which one of the other fields is there.
    #[serde(rename = "type")]
    pub kind: FilterType,
    /// Of type `RequestHeaderModifier`: changes to the header fields of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_header_modifier: Option<HttpHeaderFilter>,
    /// Of type `ResponseHeaderModifier`: changes to the header fields of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_header_modifier: Option<HttpHeaderFilter>,
}

/// The types of filters in the Gateway API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FilterType {
    /// Changes to the header fields of the request.
    RequestHeaderModifier,
    /// Changes to the header fields of the answer.
    ResponseHeaderModifier,
    /// Not supported yet.
    RequestMirror,
    /// Not supported yet.
    RequestRedirect,
    /// Not supported yet.
    #[serde(rename = "URLRewrite")]
    UrlRewrite,
    /// Not supported yet.
    #[serde(rename = "CORS")]
    Cors,
    /// Not supported yet.
    ExternalAuth,
    /// Not supported yet.
    ExtensionRef,
}

/// Changes to header fields. A name may be both in `set` and in `add`, but not in `remove` and one of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpHeaderFilter {
    /// Fields that replace those of the same name, at most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub set: Vec<HttpHeader>,
    /// Fields that come beside those of the same name, at most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub add: Vec<HttpHeader>,
    /// Names of fields that are removed, at most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<String>,
}

/// A header field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpHeader {
    /// Its name, in any case.
    pub name: String,
    /// Its value, 1 to 4096 bytes.
    pub value: String,
}
