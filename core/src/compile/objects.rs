//! The index of desired state at one revision: services by name and address, routes by parent, policies by
//! target.
//! Order: every list is in the order of age, namespace and name, so that the oldest object wins a conflict.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    num::NonZeroU32,
    sync::{Arc, OnceLock},
};

use jiff::Timestamp;

use super::{
    protocol,
    shadowed::Shadows,
    workloads::{Instance, InstancePort, Workloads},
};
use crate::{
    api::{
        AuthorizationPolicy, Gateway, HttpRoute, Object, ObjectKey, ObjectMeta, Service, TrafficPolicy, Workload,
        http_route::RefKind,
        mesh_config::{MESH_CONFIG_NAME, MeshConfigSpec},
        workload::WorkloadHealth,
    },
    endpoint::Health,
    identity::{Identity, TrustDomain},
};

/// Namespace and name.
type Name = (String, String);

/// Desired state, indexed.
#[derive(Clone, Debug)]
pub struct Objects {
    revision: u64,
    trust_domain: TrustDomain,
    all: BTreeMap<ObjectKey, Arc<Object>>,
    mesh: MeshConfigSpec,
    addresses: BTreeMap<IpAddr, Name>,
    services: BTreeMap<Name, ServiceEntry>,
    gateways: BTreeMap<Name, GatewayEntry>,
    authorization: BTreeMap<String, Vec<Arc<Object>>>,
    workloads: Workloads,
    /// Made when a status is first asked for: no resource needs it.
    shadows: OnceLock<Shadows>,
}

#[derive(Clone, Debug)]
struct ServiceEntry {
    object: Arc<Object>,
    routes: Vec<Arc<Object>>,
    policies: Vec<Arc<Object>>,
}

#[derive(Clone, Debug)]
struct GatewayEntry {
    object: Arc<Object>,
    routes: Vec<Arc<Object>>,
}

impl Objects {
    /// Indexes desired state. Cost: linear.
    pub fn new(all: &BTreeMap<ObjectKey, Arc<Object>>, trust_domain: TrustDomain, revision: u64) -> Self {
        let mut index = Self {
            revision,
            trust_domain,
            all: all.clone(),
            mesh: MeshConfigSpec::default(),
            addresses: BTreeMap::new(),
            services: BTreeMap::new(),
            gateways: BTreeMap::new(),
            authorization: BTreeMap::new(),
            workloads: Workloads::default(),
            shadows: OnceLock::new(),
        };
        let mut by_age: Vec<&Arc<Object>> = all.values().collect();
        by_age.sort_by_key(|object| age(object.metadata()));
        for object in &by_age {
            index.add_target(object);
        }
        for object in by_age {
            index.attach(object);
        }
        index
    }

    /// What others attach to, and what stands alone.
    fn add_target(&mut self, object: &Arc<Object>) {
        let name = || (object.metadata().namespace.clone(), object.metadata().name.clone());
        match &**object {
            Object::MeshConfig(config) if config.metadata.name == MESH_CONFIG_NAME => self.mesh = config.spec,
            Object::Service(service) => {
                for address in service.spec.addresses() {
                    self.addresses.entry(address).or_insert_with(name);
                }
                let entry = ServiceEntry { object: Arc::clone(object), routes: Vec::new(), policies: Vec::new() };
                self.services.insert(name(), entry);
            }
            Object::Gateway(_) => {
                self.gateways.insert(name(), GatewayEntry { object: Arc::clone(object), routes: Vec::new() });
            }
            Object::Workload(workload) => {
                self.workloads.insert(Arc::new(instance(workload, &self.trust_domain)));
            }
            Object::AuthorizationPolicy(policy) => {
                self.authorization.entry(policy.metadata.namespace.clone()).or_default().push(Arc::clone(object));
            }
            Object::MeshConfig(_) | Object::HttpRoute(_) | Object::TrafficPolicy(_) => {}
        }
    }

    fn attach(&mut self, object: &Arc<Object>) {
        if let Object::TrafficPolicy(policy) = &**object {
            let target = (policy.metadata.namespace.clone(), policy.spec.target_ref.name.clone());
            if let Some(service) = self.services.get_mut(&target) {
                service.policies.push(Arc::clone(object));
            }
        }
        let Object::HttpRoute(route) = &**object else { return };
        for parent in &route.spec.parent_refs {
            let name = (parent.namespace(&route.metadata.namespace).to_owned(), parent.name.clone());
            let routes = match parent.target() {
                Some(RefKind::Service) => self.services.get_mut(&name).map(|entry| &mut entry.routes),
                Some(RefKind::Gateway) => self.gateways.get_mut(&name).map(|entry| &mut entry.routes),
                None => None,
            };
            if let Some(routes) = routes
                && !routes.iter().any(|known| Arc::ptr_eq(known, object))
            {
                routes.push(Arc::clone(object));
            }
        }
    }

    /// The revision.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The mesh's trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// An object.
    pub fn find(&self, key: &ObjectKey) -> Option<&Arc<Object>> {
        self.all.get(key)
    }

    /// Every object.
    pub fn iter(&self) -> impl Iterator<Item = (&ObjectKey, &Arc<Object>)> {
        self.all.iter()
    }

    pub(super) fn mesh(&self) -> &MeshConfigSpec {
        &self.mesh
    }

    pub(super) fn workloads(&self) -> &Workloads {
        &self.workloads
    }

    pub(super) fn service(&self, namespace: &str, name: &str) -> Option<&Service> {
        self.service_entry(namespace, name).and_then(|entry| as_service(&entry.object))
    }

    pub(super) fn service_at(&self, address: IpAddr) -> Option<&Service> {
        let (namespace, name) = self.addresses.get(&address)?;
        self.service(namespace, name)
    }

    pub(super) fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values().filter_map(|entry| as_service(&entry.object))
    }

    pub(super) fn services_of<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a Service> {
        self.services
            .range((namespace.to_owned(), String::new())..)
            .take_while(move |((of, _), _)| of == namespace)
            .filter_map(|(_, entry)| as_service(&entry.object))
    }

    /// The HTTPRoutes that name a service as a parent, of whatever namespace.
    pub(super) fn service_routes(&self, namespace: &str, name: &str) -> impl Iterator<Item = &HttpRoute> {
        let entry = self.service_entry(namespace, name);
        entry.into_iter().flat_map(|entry| entry.routes.iter().filter_map(|object| as_route(object)))
    }

    /// The TrafficPolicies of a service.
    pub(super) fn service_policies(&self, namespace: &str, name: &str) -> impl Iterator<Item = &TrafficPolicy> {
        let entry = self.service_entry(namespace, name);
        entry
            .into_iter()
            .flat_map(|entry| &entry.policies)
            .filter_map(|object| if let Object::TrafficPolicy(policy) = &**object { Some(policy) } else { None })
    }

    pub(super) fn gateway(&self, namespace: &str, name: &str) -> Option<&Gateway> {
        let entry = self.gateways.get(&(namespace.to_owned(), name.to_owned()))?;
        if let Object::Gateway(gateway) = &*entry.object { Some(gateway) } else { None }
    }

    /// The HTTPRoutes that name a gateway as a parent, of whatever namespace.
    pub(super) fn gateway_routes(&self, namespace: &str, name: &str) -> impl Iterator<Item = &HttpRoute> {
        let entry = self.gateways.get(&(namespace.to_owned(), name.to_owned()));
        entry.into_iter().flat_map(|entry| entry.routes.iter().filter_map(|object| as_route(object)))
    }

    /// The Services and Gateways that HTTPRoutes name as a parent: namespace, name and kind.
    pub(super) fn parents(&self) -> impl Iterator<Item = (&str, &str, RefKind)> {
        let services = self.services.iter().filter(|(_, entry)| !entry.routes.is_empty());
        let services = services.map(|((namespace, name), _)| (namespace.as_str(), name.as_str(), RefKind::Service));
        let gateways = self.gateways.iter().filter(|(_, entry)| !entry.routes.is_empty());
        services.chain(gateways.map(|((namespace, name), _)| (namespace.as_str(), name.as_str(), RefKind::Gateway)))
    }

    /// The rules that no request can reach, as `find` finds them at the first call.
    pub(super) fn shadows(&self, find: impl FnOnce() -> Shadows) -> &Shadows {
        self.shadows.get_or_init(find)
    }

    /// The AuthorizationPolicies of a namespace.
    pub(super) fn authorization_of(&self, namespace: &str) -> impl Iterator<Item = &AuthorizationPolicy> {
        let policies = self.authorization.get(namespace).into_iter().flatten();
        policies
            .filter_map(|object| if let Object::AuthorizationPolicy(policy) = &**object { Some(policy) } else { None })
    }

    fn service_entry(&self, namespace: &str, name: &str) -> Option<&ServiceEntry> {
        self.services.get(&(namespace.to_owned(), name.to_owned()))
    }
}

/// Oldest first, then by namespace and name. What has no time is being made now, so it is the youngest.
pub(super) fn age(metadata: &ObjectMeta) -> (Timestamp, String, String) {
    let made = metadata.creation_timestamp.unwrap_or(Timestamp::MAX);
    (made, metadata.namespace.clone(), metadata.name.clone())
}

fn as_service(object: &Object) -> Option<&Service> {
    if let Object::Service(service) = object { Some(service) } else { None }
}

fn as_route(object: &Object) -> Option<&HttpRoute> {
    if let Object::HttpRoute(route) = object { Some(route) } else { None }
}

/// A workload that a person wrote down. One whose names are no SPIFFE ID counts as outside the mesh; validation refuses
/// it before.
fn instance(workload: &Workload, trust_domain: &TrustDomain) -> Instance {
    let spec = &workload.spec;
    let identity = || Identity::new(trust_domain, &workload.metadata.namespace, spec.service_account()).ok();
    Instance {
        namespace: workload.metadata.namespace.clone(),
        name: workload.metadata.name.clone(),
        labels: workload.metadata.labels.clone(),
        identity: spec.in_mesh().then(identity).flatten(),
        addresses: spec.addresses.clone(),
        ports: spec
            .ports
            .iter()
            .map(|port| InstancePort {
                name: port.name.clone().unwrap_or_default(),
                port: port.port,
                protocol: protocol(port.protocol()),
                proxy_port: port.proxy_port,
            })
            .collect(),
        skipped_ports: spec.skip_inbound_ports.clone(),
        weight: spec.weight.unwrap_or(NonZeroU32::MIN),
        zone: spec.zone.clone().unwrap_or_default(),
        health: match spec.health.unwrap_or_default() {
            WorkloadHealth::Healthy => Health::Healthy,
            WorkloadHealth::Draining => Health::Draining,
            WorkloadHealth::Unhealthy => Health::Unhealthy,
        },
    }
}
