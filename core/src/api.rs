//! The shapes that people write, once, without Kubernetes: Gateway API and `weft.dev/v1alpha1`.
//!
//! - [`object`]: [`Object`] over all kinds, [`Kind`], [`ObjectKey`]; [`meta`]: metadata and status.
//! - [`service`], [`http_route`], [`gateway`], [`workload`], [`traffic_policy`], [`authorization_policy`],
//!   [`mesh_config`]: one kind each; [`proxy_config`]: the proxy's own file.
//! - [`duration`] such as `1m30s`.
//! - `parse`: text -> objects, all mistakes at once (`node`: a bounded tree; `shape`: tree -> type).
//! - [`mod@validate`]: the rules that concern one object alone.
//! - [`error`]: which document, object and field, and why.
//!
//! Values are kept as written; what is absent stays absent, and a method of the same name gives the default.

pub mod authorization_policy;
pub mod duration;
pub mod error;
pub mod gateway;
pub mod http_route;
mod locate;
pub mod mesh_config;
pub mod meta;
mod node;
pub mod object;
mod parse;
pub mod proxy_config;
pub mod service;
mod shape;
pub mod traffic_policy;
pub mod validate;
pub mod workload;

pub use duration::Duration;
pub use error::{ApiError, Fault, FieldError};
pub use locate::line_of;
pub use meta::{Condition, ConditionStatus, DEFAULT_NAMESPACE, ObjectMeta, Status};
pub use object::{
    AuthorizationPolicy, Gateway, HttpRoute, Kind, MeshConfig, Object, ObjectKey, Resource, Scope, Service,
    TrafficPolicy, Workload,
};
pub use parse::{
    MAX_DIRECTIVES, MAX_DOCUMENTS, MAX_ERRORS, MAX_PIECES, MAX_TEXT, line_in, line_of_error, parse_documents,
    parse_proxy_file,
};
pub use proxy_config::ProxyConfig;
pub use validate::validate;
