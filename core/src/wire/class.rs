//! Classes of clients: every difference between them on the wire is in here.
//! Shape: [`ClientClass`] names a class, [`ClientClass::form`] gives its [`Form`]: one field for each difference. Renderers
//! look at the form and never at the class, so another class is one more file beside [`weft`] and [`envoy`].

mod envoy;
mod weft;

use std::time::Duration;

use weft_proto::envoy::config::cluster::v3::{LoadBalancingPolicy, cluster::LbPolicy};

/// The class of the clients that a resource is rendered for. (gRPC is none yet: it needs forms of its own, above all for
/// TLS.)
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

/// The differences between classes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Form {
    /// Whether it is given listeners: they carry mesh TLS and authorization.
    pub(super) listeners: bool,
    /// Whether it enforces the authorization of a route table.
    pub(super) authorization: bool,
    /// Whether it reads `metadata["weft.dev"]`.
    pub(super) metadata: bool,
    /// The name of a virtual host that has none.
    pub(super) unnamed_host: &'static str,
    /// The least of a duration for which 0 makes no sense.
    pub(super) least_duration: Duration,
    /// The balancing of a cluster.
    pub(super) balancing: fn() -> (LbPolicy, Option<LoadBalancingPolicy>),
    /// Whether endpoints with an identity are given to it.
    pub(super) mesh_endpoints: bool,
    /// Whether the weights of all endpoints of a set have to add up to less than 2^32.
    pub(super) sums_weights: bool,
}

impl ClientClass {
    /// The differences of this class.
    pub(super) fn form(self) -> Form {
        match self {
            Self::Weft => weft::form(),
            Self::Envoy { plaintext_to_mesh } => envoy::form(plaintext_to_mesh),
        }
    }
}

impl Form {
    /// A duration that the client takes.
    pub(super) fn duration(&self, duration: Duration) -> Duration {
        duration.max(self.least_duration)
    }
}
