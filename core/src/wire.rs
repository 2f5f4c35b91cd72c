//! The wire: model <-> xDS messages. The only code that knows both.
//! Shape: `render_*` makes an [`Encoded`] resource of a model value, `parse_*` the model value of a resource, or a
//! [`WireError`] with the path of every field that is wrong, which is the text of the NACK.
//! Invariants: `parse(render(model)) == model`; nothing that a peer sends panics or recurses without bound; a field
//! that would change who may pass or where a request goes is obeyed or refused, never skipped.
//!
//! - [`listener`], [`route`], [`cluster`], [`endpoint`], [`revision`]: one file a resource, with its table of fields.
//! - `authorization`: policies, used by listeners and routes.
//! - [`error`]: what is wrong, and where.
//! - [`hash`]: the hash of the revision barrier.
//! - `walk`: the check of raw tags against our descriptors.

pub mod cluster;
pub mod endpoint;
pub mod error;
pub mod hash;
pub mod listener;
pub mod revision;
pub mod route;

mod authorization;
mod duration;
mod metadata;
mod types;
mod walk;

#[cfg(test)]
mod tests;

use std::time::Duration;

use prost::{Message, bytes::Bytes};
use prost_types::Any;
use sha2::{Digest, Sha256};
use weft_proto::envoy::service::discovery::v3::Resource;

pub use self::{
    cluster::{parse_cluster, render_cluster},
    endpoint::{parse_endpoints, render_endpoints},
    error::{FieldError, Reason, WireError},
    hash::revision_hash,
    listener::{listener_name, parse_listener, render_listener},
    revision::{REVISION_NAME, Revision, parse_revision, render_revision},
    route::{parse_route, render_route},
};
use self::{
    error::{At, Errors},
    types::Typed,
};
use crate::{
    cluster::Cluster,
    endpoint::EndpointSet,
    listener::Listener,
    names::{ClusterName, ListenerName},
    route::RouteTable,
};

/// The types of resources that Weft speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResourceType {
    /// `envoy.config.cluster.v3.Cluster`
    Cluster,
    /// `envoy.config.endpoint.v3.ClusterLoadAssignment`
    Endpoints,
    /// `envoy.config.listener.v3.Listener`
    Listener,
    /// `envoy.config.route.v3.RouteConfiguration`
    Route,
    /// `weft.v1.Revision`
    Revision,
}

/// Who a resource is rendered for. (gRPC follows later; it needs forms of its own, above all for TLS.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClientClass {
    /// Weft's own proxy: everything.
    Weft,
    /// Envoy: routes, clusters and endpoints in plaintext; no TLS, so no listeners and no policies.
    Envoy {
        /// Whether endpoints that speak mesh TLS are named too, as plain addresses: only right where their inbound
        /// mode is permissive.
        plaintext_to_mesh: bool,
    },
}

/// A resource as it is sent. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// Its type.
    pub resource_type: ResourceType,
    /// Its name.
    pub name: String,
    /// The first 16 hex digits of the SHA-256 of `value`, so every replica gives the same.
    pub version: String,
    /// The encoded message.
    pub value: Bytes,
}

/// A model value that a class of clients cannot be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotForClient {
    /// Listeners carry TLS and authorization, which are rendered for Weft only so far.
    #[error("listeners are not rendered for this class of client")]
    Listener,
    /// A client that does not enforce the policy must not get the table without it.
    #[error("a route table with an authorization is not rendered for this class of client")]
    Authorization,
}

/// A parsed resource.
#[derive(Clone, Debug, PartialEq)]
pub enum Parsed {
    /// A listener.
    Listener(ListenerName, Listener),
    /// A route table.
    Route(RouteTable),
    /// A cluster.
    Cluster(Cluster),
    /// An endpoint set.
    Endpoints(EndpointSet),
    /// The revision barrier.
    Revision(Revision),
}

impl ResourceType {
    /// Every type, in the order in which a server sends them (make before break).
    pub const ALL: [Self; 5] = [Self::Cluster, Self::Endpoints, Self::Listener, Self::Route, Self::Revision];

    /// The type URL.
    pub fn type_url(self) -> &'static str {
        use weft_proto::{envoy::config, weft::v1};
        match self {
            Self::Cluster => config::cluster::v3::Cluster::TYPE_URL,
            Self::Endpoints => config::endpoint::v3::ClusterLoadAssignment::TYPE_URL,
            Self::Listener => config::listener::v3::Listener::TYPE_URL,
            Self::Route => config::route::v3::RouteConfiguration::TYPE_URL,
            Self::Revision => v1::Revision::TYPE_URL,
        }
    }

    /// The type of a type URL.
    pub fn from_type_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == url)
    }

    /// What it is called in messages.
    pub fn noun(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Endpoints => "endpoint set",
            Self::Listener => "listener",
            Self::Route => "route table",
            Self::Revision => "revision",
        }
    }
}

impl ClientClass {
    /// A duration that the client takes: Envoy refuses 0 where none makes sense.
    fn above_zero(self, duration: Duration) -> Duration {
        match self {
            Self::Weft => duration,
            Self::Envoy { .. } => duration.max(Duration::from_millis(1)),
        }
    }
}

impl Encoded {
    fn new(resource_type: ResourceType, name: String, message: &impl Message) -> Self {
        let value = Bytes::from(message.encode_to_vec());
        Self { resource_type, name, version: version(&value), value }
    }

    /// The message with its type URL.
    pub fn to_any(&self) -> Any {
        Any { type_url: self.resource_type.type_url().into(), value: self.value.to_vec() }
    }

    /// The entry of a delta response.
    pub fn to_resource(&self) -> Resource {
        Resource {
            name: self.name.clone(),
            version: self.version.clone(),
            resource: Some(self.to_any()),
            ..Resource::default()
        }
    }
}

/// The version of encoded bytes: the first 16 hex digits of their SHA-256.
pub fn version(value: &[u8]) -> String {
    Sha256::digest(value).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Parses a resource of any type.
/// Errors: every field that is wrong.
pub fn parse(resource_type: ResourceType, name: &str, any: &Any) -> Result<Parsed, WireError> {
    match resource_type {
        ResourceType::Listener => parse_listener(name, any).map(|(name, listener)| Parsed::Listener(name, listener)),
        ResourceType::Route => parse_route(name, any).map(Parsed::Route),
        ResourceType::Cluster => parse_cluster(name, any).map(Parsed::Cluster),
        ResourceType::Endpoints => parse_endpoints(name, any).map(Parsed::Endpoints),
        ResourceType::Revision => parse_revision(name, any).map(Parsed::Revision),
    }
}

/// The common part of every parser: the type, the raw tags, the decoding; then `read` makes the model value.
fn parse_with<M: Typed, T>(
    resource_type: ResourceType,
    name: &str,
    any: &Any,
    read: impl FnOnce(&M, &At<'_>, &mut Errors) -> Option<T>,
) -> Result<T, WireError> {
    let mut errors = Errors::default();
    let at = At::root();
    let model = types::check_type::<M>(any, &at, &mut errors).and_then(|()| {
        walk::walk(M::TYPE_URL, &any.value, &at, &mut errors);
        // What the walk refused may also be undecodable; one error is enough.
        let message: M = if errors.is_empty() {
            types::decode(&any.value, &at, &mut errors)?
        } else {
            M::decode(&*any.value).ok()?
        };
        read(&message, &at, &mut errors)
    });
    match model {
        Some(model) if errors.is_empty() => Ok(model),
        _ => Err(errors.finish(resource_type, name)),
    }
}

/// The name inside a resource must be the one it was sent under.
fn check_name(inner: &str, name: &str, at: &At<'_>, errors: &mut Errors) {
    if inner != name {
        errors.add(at, Reason::expected(inner, "the resource's name"));
    }
}

fn read_cluster_name(text: &str, at: &At<'_>, errors: &mut Errors) -> Option<ClusterName> {
    if text.is_empty() {
        return errors.refuse(at, Reason::Required);
    }
    ClusterName::parse(text).map_err(|error| errors.add(at, error.into())).ok()
}
