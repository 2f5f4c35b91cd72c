//! Compile: desired state and workloads -> the model that a proxy obeys. Pure: the same input gives the same output,
//! in any order of insertion; no clock, socket or lock.
//!
//! - [`World`]: the two layers together, asked for one resource by name at a time. Nothing is computed before it is asked.
//! - [`Objects`]: the index of desired state at one revision. [`Workloads`]: the index of registered instances. A change of
//!   one does not rebuild the other.
//! - `route` (with `precedence`), `gateway`, `cluster`, `inbound`: one kind of resource each.
//! - `affected`: the names of the resources that an object has a part in.
//! - `status`: the status of an object, in the Gateway API's conditions; `selected`: whom its selectors and accounts pick;
//!   `shadowed`: rules that no request reaches.
//!
//! Spec: Gateway API v1 (HTTPRoute, Gateway), GAMMA (GEP-1226, GEP-1294: HTTPRoutes attached to a Service).

use std::{net::SocketAddr, num::NonZeroU16, sync::Arc};

use crate::{
    api::{
        Service,
        mesh_config::{AccessLogMode, InboundMode as InboundSetting, OutboundMode},
        proxy_config::ProxyMode,
        service::AppProtocol,
    },
    listener::{AccessLog, InboundMode, Listener, Outbound, OutboundDefault, OutboundPolicy, Protocol},
    names::{ClusterName, ListenerName, RouteName, ServicePort},
    route::{RouteTable, WeightedCluster},
};

mod affected;
mod cluster;
mod gateway;
mod inbound;
mod objects;
mod precedence;
mod route;
mod selected;
mod shadowed;
mod status;
mod workloads;

pub use affected::{NamePattern, resources_of};
pub use objects::Objects;
pub use selected::Named;
pub use status::CONTROLLER;
pub use workloads::{Instance, InstancePort, Workloads, selects};

/// The namespace whose AuthorizationPolicies guard the whole mesh.
pub const ROOT_NAMESPACE: &str = "weft-system";

/// Desired state and workloads at one moment.
#[derive(Clone, Debug)]
pub struct World {
    objects: Arc<Objects>,
    registered: Arc<Workloads>,
}

/// The proxy that a resource is compiled for. Only `inbound` resources depend on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requester {
    /// Its namespace.
    pub namespace: String,
    /// The workload's name.
    pub name: String,
    /// The workload's labels.
    pub labels: std::collections::BTreeMap<String, String>,
    /// As whom it runs.
    pub service_account: String,
    /// The workload's ports.
    pub ports: Vec<InstancePort>,
    /// Beside a workload or at the edge.
    pub mode: ProxyMode,
}

/// What is at an address.
enum Destination<'a> {
    Service(&'a Service, NonZeroU16),
    Workload(&'a Arc<Instance>),
}

impl World {
    /// From its two layers.
    pub fn new(objects: Arc<Objects>, registered: Arc<Workloads>) -> Self {
        Self { objects, registered }
    }

    /// Desired state.
    pub fn objects(&self) -> &Arc<Objects> {
        &self.objects
    }

    /// What is registered.
    pub fn registered(&self) -> &Arc<Workloads> {
        &self.registered
    }

    /// The revision of desired state.
    pub fn revision(&self) -> u64 {
        self.objects.revision()
    }

    /// A listener. `None`: there is none of that name for this proxy.
    pub fn listener(&self, name: &ListenerName, requester: &Requester) -> Option<Listener> {
        match name {
            ListenerName::Inbound => self.inbound(requester).map(Listener::Inbound),
            ListenerName::OutboundDefault => Some(Listener::OutboundDefault(self.outbound_default())),
            ListenerName::Outbound(address) => self.outbound(*address).map(Listener::Outbound),
            ListenerName::Gateway { namespace, name } => self.gateway(namespace, name).map(Listener::Gateway),
        }
    }

    /// A route table. `None`: there is none of that name for this proxy.
    pub fn routes(&self, name: &RouteName, requester: &Requester) -> Option<RouteTable> {
        match name {
            RouteName::Service(at) => self.service_routes(at),
            RouteName::Direct(address) => self.direct_routes(*address),
            RouteName::Gateway { namespace, name, port } => self.gateway_routes(namespace, name, *port),
            RouteName::Inbound(port) => self.inbound_routes(requester, *port),
        }
    }

    /// The clusters whose endpoints this instance belongs to, or did when it was like this; those of its own addresses
    /// aside.
    pub fn clusters_of(&self, instance: &Instance) -> Vec<ClusterName> {
        let services = self.objects.services_of(&instance.namespace);
        services
            .filter(|service| selects(&service.spec.selector, &instance.labels))
            .flat_map(|service| service.spec.ports.iter().map(|port| ClusterName::Service(name_of(service, port.port))))
            .collect()
    }

    /// Every port of every service, in the order of their names.
    pub fn service_ports(&self) -> impl Iterator<Item = ServicePort> {
        self.objects.services().flat_map(|service| service.spec.ports.iter().map(|port| name_of(service, port.port)))
    }

    /// Every address and port of every service, in the order of their names.
    pub fn service_addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.objects.services().flat_map(|service| {
            let ports = &service.spec.ports;
            service
                .spec
                .addresses()
                .into_iter()
                .flat_map(move |address| ports.iter().map(move |port| SocketAddr::new(address, port.port.get())))
        })
    }

    fn outbound_default(&self) -> OutboundDefault {
        let policy = match self.objects.mesh().outbound.unwrap_or_default() {
            OutboundMode::AllowAny => OutboundPolicy::AllowAny,
            OutboundMode::RegisteredOnly => OutboundPolicy::RegisteredOnly,
        };
        OutboundDefault { policy }
    }

    fn outbound(&self, address: SocketAddr) -> Option<Outbound> {
        let (protocol, http, cluster) = match self.destination(address)? {
            Destination::Service(service, port) => {
                let at = name_of(service, port);
                let protocol = protocol(service.spec.port(port)?.app());
                (protocol, RouteName::Service(at.clone()), ClusterName::Service(at))
            }
            Destination::Workload(instance) => {
                let port = NonZeroU16::new(address.port()).and_then(|port| instance.port(port));
                let protocol = port.map(|port| port.protocol).unwrap_or_default();
                (protocol, RouteName::Direct(address), ClusterName::Direct(address))
            }
        };
        let to = vec![WeightedCluster { cluster, weight: 1 }];
        let (http, tcp) = match protocol {
            Protocol::Detect => (Some(http), to),
            Protocol::Http | Protocol::Http2 => (Some(http), Vec::new()),
            Protocol::Tcp => (None, to),
        };
        Some(Outbound { address, protocol, http, tcp })
    }

    /// What is at an address: services go before workloads.
    fn destination(&self, address: SocketAddr) -> Option<Destination<'_>> {
        let port = NonZeroU16::new(address.port())?;
        if let Some(service) = self.objects.service_at(address.ip()) {
            return service.spec.port(port).map(|port| Destination::Service(service, port.port));
        }
        self.instance_at(address).map(Destination::Workload)
    }

    /// The instance at an address. A registered one goes before one that a person wrote down, unless that port was written
    /// down for another identity: no registration takes over a written address, whether it comes before or after.
    fn instance_at(&self, address: SocketAddr) -> Option<&Arc<Instance>> {
        let registered = self.registered.at(address);
        let written = self.objects.workloads().at(address).filter(|instance| !self.is_registered(instance));
        match (registered, written) {
            (Some(registered), Some(written)) => {
                let port = NonZeroU16::new(address.port()).is_some_and(|port| written.port(port).is_some());
                Some(if port && written.identity != registered.identity { written } else { registered })
            }
            (one, other) => one.or(other),
        }
    }

    /// Whether a written instance registered itself. One of its name with another identity is not it.
    fn is_registered(&self, written: &Instance) -> bool {
        let registered = self.registered.find(&written.namespace, &written.name);
        registered.is_some_and(|instance| written.identity.is_none() || written.identity == instance.identity)
    }

    fn service(&self, at: &ServicePort) -> Option<&Service> {
        self.objects.service(&at.namespace, &at.name).filter(|service| service.spec.port(at.port).is_some())
    }

    fn access_log(&self) -> AccessLog {
        match self.objects.mesh().access_log.unwrap_or_default() {
            AccessLogMode::Off => AccessLog::Off,
            AccessLogMode::Errors => AccessLog::Errors,
            AccessLogMode::All => AccessLog::All,
        }
    }

    /// Whether workloads with a proxy take plaintext too.
    pub fn takes_plaintext(&self) -> bool {
        self.inbound_mode() == InboundMode::Permissive
    }

    fn inbound_mode(&self) -> InboundMode {
        match self.objects.mesh().inbound.unwrap_or_default() {
            InboundSetting::Permissive => InboundMode::Permissive,
            InboundSetting::Strict => InboundMode::Strict,
        }
    }
}

/// What the model calls an application protocol.
pub fn protocol(app: AppProtocol) -> Protocol {
    match app {
        AppProtocol::Detect => Protocol::Detect,
        AppProtocol::Http => Protocol::Http,
        AppProtocol::Http2 | AppProtocol::Grpc => Protocol::Http2,
        AppProtocol::Tcp => Protocol::Tcp,
    }
}

fn name_of(service: &Service, port: NonZeroU16) -> ServicePort {
    ServicePort { namespace: service.metadata.namespace.clone(), name: service.metadata.name.clone(), port }
}

#[cfg(test)]
mod tests;
