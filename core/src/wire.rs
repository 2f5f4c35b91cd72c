//! The wire: model <-> xDS messages. The only code that knows both.
//! Shape: `render_*` makes an [`Encoded`] resource of a model value, `parse_*` the model value of a resource, or a
//! [`WireError`] with the path of every field that is wrong, which is the text of the NACK.
//! Invariants: `parse(render(model)) == model`; nothing that a peer sends panics or recurses without bound; a field
//! that would change authorization or routing is obeyed or refused, never skipped.
//!
//! - [`listener`], [`route`], [`cluster`], [`endpoint`], [`revision`]: one resource each, with its table of fields; `render`
//!   and `read` below them are the two directions.
//! - `authorization`: policies, used by listeners and routes.
//! - [`class`]: every difference between classes of clients.
//! - [`error`]: the errors of a resource, with their paths.
//! - [`hash`]: the hash of the revision barrier.
//! - `read`: the common part of every parser. `walk`: the check of raw tags against our descriptors.

pub mod class;
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
mod read;
mod source;
mod types;
mod walk;

#[cfg(test)]
mod tests;

use prost::{Message, bytes::Bytes};
use prost_types::Any;
use sha2::{Digest, Sha256};
use weft_proto::envoy::service::discovery::v3::Resource;

use self::types::Typed;
pub use self::{
    class::{ClientClass, NotForClient},
    cluster::{parse_cluster, render_cluster},
    endpoint::{parse_endpoints, render_endpoints},
    error::{FieldError, Reason, WireError},
    hash::revision_hash,
    listener::{listener_name, parse_listener, render_listener},
    revision::{REVISION_NAME, Revision, parse_revision, render_revision},
    route::{parse_route, render_route},
};
use crate::{cluster::Cluster, endpoint::EndpointSet, listener::Listener, names::ListenerName, route::RouteTable};

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

impl Parsed {
    /// The same with its policies confined to a trust domain ([`Authorization::confine`]).
    pub fn confined(mut self, trust_domain: &str) -> Self {
        match &mut self {
            Self::Listener(_, Listener::Inbound(inbound)) => {
                for port in inbound.ports.values_mut().chain([&mut inbound.default]) {
                    port.authorization.confine(trust_domain);
                }
            }
            Self::Route(table) => table.authorization.confine(trust_domain),
            Self::Listener(..) | Self::Cluster(_) | Self::Endpoints(_) | Self::Revision(_) => {}
        }
        self
    }
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
