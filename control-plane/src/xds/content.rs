//! Resources as they are sent: compiled, rendered for a class of client and encoded once.
//! Shape: a name and a world in, an [`Answer`] out.

use std::{collections::BTreeMap, sync::Arc};

use weft_core::{
    api::proxy_config::ProxyMode,
    compile::{Requester, World},
    listener::Listener,
    names::{ClusterName, ListenerName, NameError, RouteName},
    route::RouteTable,
    wire::{self, ClientClass, Encoded, NotForClient, ResourceType, Revision},
};

/// The type of the barrier.
pub(super) fn revision_type() -> &'static str {
    ResourceType::Revision.type_url()
}

/// A type of resource that is subscribed to by name, in the order in which they are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Cluster,
    Endpoints,
    Listener,
    Routes,
}

/// A class of clients that get the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    Weft,
    Envoy,
}

/// The resource of a name, or the reason why there is none.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Answer {
    Found(Arc<Content>),
    Absent(Absence),
}

/// A resource, encoded.
#[derive(Debug, PartialEq)]
pub(super) struct Content {
    pub(super) name: Arc<str>,
    pub(super) version: Arc<str>,
    /// Shared bytes; cheap to clone.
    pub(super) encoded: Encoded,
    /// The resources that it refers to: the next step of the dependency tree.
    pub(super) needs: Vec<(Kind, Arc<str>)>,
}

/// Why there is no resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Absence {
    /// A code of `google.rpc.Code`.
    pub(super) code: i32,
    pub(super) message: String,
}

/// `google.rpc.Code`.
pub(super) const INVALID_ARGUMENT: i32 = 3;
const NOT_FOUND: i32 = 5;
const PERMISSION_DENIED: i32 = 7;
const UNIMPLEMENTED: i32 = 12;

impl Kind {
    pub(super) const ALL: [Self; 4] = [Self::Cluster, Self::Endpoints, Self::Listener, Self::Routes];
    /// A type comes before those that it refers to.
    pub(super) const BY_DEPENDENCY: [Self; 3] = [Self::Listener, Self::Routes, Self::Cluster];

    pub(super) fn resource_type(self) -> ResourceType {
        match self {
            Self::Cluster => ResourceType::Cluster,
            Self::Endpoints => ResourceType::Endpoints,
            Self::Listener => ResourceType::Listener,
            Self::Routes => ResourceType::Route,
        }
    }

    pub(super) fn type_url(self) -> &'static str {
        self.resource_type().type_url()
    }

    pub(super) fn parse(type_url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == type_url)
    }

    /// Whether an empty first request means everything (xDS transport protocol, "How the client specifies what resources
    /// to return").
    pub(super) fn has_legacy_wildcard(self) -> bool {
        matches!(self, Self::Cluster | Self::Listener)
    }

    /// The names that `*` covers.
    pub(super) fn all_names(self, world: &World, class: Class) -> Vec<Arc<str>> {
        match (self, class) {
            (Self::Listener, Class::Envoy) => Vec::new(),
            (Self::Listener, Class::Weft) => {
                let fixed = [ListenerName::Inbound, ListenerName::OutboundDefault];
                let services = world.service_addresses().map(ListenerName::Outbound);
                fixed.into_iter().chain(services).map(|name| name.to_string().into()).collect()
            }
            (Self::Routes, _) => world.service_ports().map(|at| RouteName::Service(at).to_string().into()).collect(),
            (Self::Cluster | Self::Endpoints, _) => {
                world.service_ports().map(|at| ClusterName::Service(at).to_string().into()).collect()
            }
        }
    }
}

impl Class {
    pub(super) const ALL: [Self; 2] = [Self::Weft, Self::Envoy];
    pub(super) const MIN: Self = Self::Weft;

    fn client_class(self, world: &World) -> ClientClass {
        match self {
            Self::Weft => ClientClass::Weft,
            // An Envoy has no mesh TLS yet, so it gets only addresses that take plaintext.
            Self::Envoy => ClientClass::Envoy { plaintext_to_mesh: world.takes_plaintext() },
        }
    }
}

impl Answer {
    /// The resource that every client of a class shares.
    pub(super) fn compile(world: &World, class: Class, kind: Kind, name: &str) -> Self {
        let nobody = Requester {
            namespace: String::new(),
            name: String::new(),
            labels: BTreeMap::new(),
            service_account: String::new(),
            ports: Vec::new(),
            mode: ProxyMode::Sidecar,
        };
        Self::compile_for(world, &nobody, class, kind, name)
    }

    /// The resource for one client.
    pub(super) fn compile_for(world: &World, requester: &Requester, class: Class, kind: Kind, name: &str) -> Self {
        match content(world, requester, class, kind, name) {
            Ok(content) => Self::Found(Arc::new(content)),
            Err(absence) => Self::Absent(absence),
        }
    }
}

fn content(world: &World, requester: &Requester, class: Class, kind: Kind, name: &str) -> Result<Content, Absence> {
    let for_class = class.client_class(world);
    let missing =
        || Absence { code: NOT_FOUND, message: format!("there is no {} {name}", kind.resource_type().noun()) };
    let (encoded, needs) = match kind {
        Kind::Listener => {
            let listener = world.listener(&ListenerName::parse(name)?, requester).ok_or_else(missing)?;
            (wire::render_listener(&listener, for_class)?, listener_needs(&listener))
        }
        Kind::Routes => {
            let table = world.routes(&RouteName::parse(name)?, requester).ok_or_else(missing)?;
            (wire::render_route(&table, for_class)?, table_needs(&table))
        }
        Kind::Cluster => {
            let cluster = world.cluster(&ClusterName::parse(name)?).ok_or_else(missing)?;
            (wire::render_cluster(&cluster, for_class), vec![(Kind::Endpoints, name.into())])
        }
        Kind::Endpoints => {
            let set = world.endpoints(&ClusterName::parse(name)?).ok_or_else(missing)?;
            (wire::render_endpoints(&set, for_class), Vec::new())
        }
    };
    Ok(Content { name: name.into(), version: encoded.version.as_str().into(), encoded, needs })
}

/// The names below a listener.
fn listener_needs(listener: &Listener) -> Vec<(Kind, Arc<str>)> {
    let routes = listener.routes().into_iter().map(|name| (Kind::Routes, name.to_string().into()));
    let clusters = listener.clusters().into_iter().map(|name| (Kind::Cluster, name.to_string().into()));
    routes.chain(clusters).collect()
}

/// The names below a route table.
fn table_needs(table: &RouteTable) -> Vec<(Kind, Arc<str>)> {
    table.clusters().into_iter().map(|name| (Kind::Cluster, name.to_string().into())).collect()
}

impl Absence {
    /// A gateway's resource that is for `whom`, and not for a proxy that `is` this.
    pub(super) fn denied(whom: &str, is: &str) -> Self {
        Self { code: PERMISSION_DENIED, message: format!("only {whom} get this, and this is {is}") }
    }

    /// Whether the resource may exist, but not for this client.
    pub(super) fn is_denied(&self) -> bool {
        self.code == PERMISSION_DENIED
    }
}

impl From<NameError> for Absence {
    fn from(error: NameError) -> Self {
        Self { code: INVALID_ARGUMENT, message: error.to_string() }
    }
}

impl From<NotForClient> for Absence {
    fn from(error: NotForClient) -> Self {
        Self { code: UNIMPLEMENTED, message: error.to_string() }
    }
}

/// The barrier's resource.
pub(super) fn revision(number: u64, hash: [u8; 32]) -> Encoded {
    wire::render_revision(&Revision { number, hash })
}
