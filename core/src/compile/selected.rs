//! Whom an object picks: the workloads of a selector, and the callers that a policy or an annotation names.
//! Shape: facts for the status of an object (`status`); nothing here changes what a proxy obeys.
//! Cost: with an index for labels and one for identities; linear in the workloads of the rarest label where none of them fits.

use std::collections::BTreeMap;

use super::{ROOT_NAMESPACE, World, cluster::target_port};
use crate::{
    api::{
        AuthorizationPolicy, Object, Service,
        gateway::GATEWAY_ACCOUNT,
        meta::EndpointCount,
        service::{SERVICE_ACCOUNTS, TargetPort},
    },
    endpoint::Health,
    identity::{Identity, TrustDomain},
};

/// Callers that an object names: one identity, or all that start alike.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Named {
    /// As the object names them: `shop/order`, `namespace shop`, or the text of an identity.
    pub text: String,
    id: String,
    is_prefix: bool,
}

impl Named {
    /// Whether these are or include the workload with this SPIFFE ID.
    pub fn includes(&self, id: &str) -> bool {
        if self.is_prefix { id.starts_with(&self.id) } else { id == self.id }
    }

    /// Namespace and service account, where these are the workloads of one.
    pub fn account(&self) -> Option<(String, String)> {
        let identity = (!self.is_prefix).then(|| Identity::parse(&self.id).ok()).flatten()?;
        Some((identity.namespace()?.to_owned(), identity.service_account()?.to_owned()))
    }

    fn of_account(domain: &TrustDomain, namespace: &str, name: &str) -> Self {
        let id = format!("spiffe://{}/ns/{namespace}/sa/{name}", domain.as_str());
        Self { text: format!("{namespace}/{name}"), id, is_prefix: false }
    }
}

impl World {
    /// The workloads of a service: those that its labels pick, and how many of them take new work at each of its ports.
    pub fn endpoint_count(&self, service: &Service) -> EndpointCount {
        let targets: Vec<TargetPort> = service.spec.ports.iter().map(|port| port.target()).collect();
        let mut count = EndpointCount::default();
        for instance in self.labelled(service) {
            count.total += 1;
            let is_endpoint = |target| self.service_endpoint(service, target, instance).is_some();
            if instance.health == Health::Healthy && Self::takes(service, instance) && targets.iter().all(is_endpoint) {
                count.healthy += 1;
            }
        }
        count
    }

    /// The accounts of the mesh that an object names, each once and in order. Identities of other trust domains are not looked
    /// at.
    pub fn named_accounts(&self, object: &Object) -> Vec<Named> {
        let mut named = named(object, self.objects.trust_domain());
        named.sort();
        named.dedup();
        named
    }

    /// Whether a workload, registered or applied, has one of these accounts.
    pub fn has_account(&self, named: &Named) -> bool {
        [&*self.registered, self.objects.workloads()].into_iter().any(|workloads| {
            if named.is_prefix {
                workloads.identities().any(|identity| named.includes(identity.as_str()))
            } else {
                Identity::parse(&named.id).is_ok_and(|identity| workloads.has_identity(&identity))
            }
        })
    }

    /// Why a service has no endpoint. A service without a selector may be there for its routes alone.
    pub(super) fn unselected_service(&self, service: &Service) -> Option<String> {
        let (namespace, selector) = (&service.metadata.namespace, &service.spec.selector);
        if selector.is_empty() {
            let routed = self.objects.service_routes(namespace, &service.metadata.name).next().is_some();
            return (!routed).then(|| "it has no selector, so no workload is its endpoint".to_owned());
        }
        if self.labelled(service).next().is_none() {
            return Some(format!("no workload of namespace {namespace} has the labels {}", pairs(selector)));
        }
        let mut own = self.labelled(service).filter(|instance| Self::takes(service, instance)).peekable();
        if own.peek().is_none() {
            let accounts = service.metadata.annotations.get(SERVICE_ACCOUNTS).map_or("", |text| text.as_str());
            return Some(format!(
                "no workload with the labels {} has a service account of {SERVICE_ACCOUNTS}: {accounts}",
                pairs(selector)
            ));
        }
        let named = service.spec.ports.iter().find_map(|port| {
            let target = port.target();
            let TargetPort::Name(name) = &target else { return None };
            let mut workloads = self.labelled(service).filter(|instance| Self::takes(service, instance));
            (!workloads.any(|instance| target_port(instance, &target).is_some())).then(|| (port.port, name.clone()))
        });
        let (port, name) = named?;
        Some(format!("no workload with the labels {} has a port named {name} for port {port}", pairs(selector)))
    }

    /// Why a policy guards no workload. One for a whole namespace, or the whole mesh, is there for those to come.
    pub(super) fn unselected_policy(&self, policy: &AuthorizationPolicy) -> Option<String> {
        let namespace = &policy.metadata.namespace;
        if let Some(target) = &policy.spec.target_ref {
            // That there is no such service is another problem.
            let service = self.objects.service(namespace, &target.name)?;
            let guarded = self.labelled(service).any(|instance| instance.identity.is_some());
            return (!guarded).then(|| {
                format!(
                    "no workload with a proxy has the labels of Service {namespace}/{}, so nothing is guarded",
                    target.name
                )
            });
        }
        let labels = &policy.spec.selector.as_ref().filter(|selector| !selector.match_labels.is_empty())?.match_labels;
        let guards = |namespace: &str| {
            let workloads = [&*self.registered, self.objects.workloads()];
            workloads.into_iter().any(|of| of.select(namespace, labels).any(|it| it.identity.is_some()))
        };
        let (guarded, place) = if namespace == ROOT_NAMESPACE {
            let mut all = self.registered.namespaces().chain(self.objects.workloads().namespaces());
            (all.any(guards), "the mesh".to_owned())
        } else {
            (guards(namespace), format!("namespace {namespace}"))
        };
        (!guarded).then(|| {
            format!("no workload with a proxy in {place} has the labels {}, so nothing is guarded", pairs(labels))
        })
    }
}

/// The accounts of the mesh that an object names.
fn named(object: &Object, domain: &TrustDomain) -> Vec<Named> {
    let of_mesh = format!("spiffe://{}/", domain.as_str());
    let annotated = |name: &str| {
        let metadata = object.metadata();
        let accounts = metadata.annotations.get(name).into_iter().flat_map(|text| text.split(','));
        accounts.map(|account| Named::of_account(domain, &metadata.namespace, account.trim())).collect()
    };
    match object {
        Object::Service(_) => annotated(SERVICE_ACCOUNTS),
        Object::Gateway(_) => annotated(GATEWAY_ACCOUNT),
        Object::AuthorizationPolicy(policy) => {
            let mut all = Vec::new();
            for source in policy.spec.rules.iter().flat_map(|rule| rule.from.iter().flatten()) {
                let identities = source.identities.iter().flatten().map(|text| {
                    let id = text.strip_suffix('*');
                    Named { text: text.clone(), id: id.unwrap_or(text).to_owned(), is_prefix: id.is_some() }
                });
                all.extend(identities.filter(|named| named.id.starts_with(&of_mesh)));
                let accounts = source.service_accounts.iter().flatten().filter_map(|text| text.split_once('/'));
                all.extend(accounts.map(|(namespace, name)| Named::of_account(domain, namespace, name)));
                all.extend(source.namespaces.iter().flatten().map(|namespace| Named {
                    text: format!("namespace {namespace}"),
                    id: format!("{of_mesh}ns/{namespace}/"),
                    is_prefix: true,
                }));
            }
            all
        }
        Object::MeshConfig(_) | Object::Workload(_) | Object::HttpRoute(_) | Object::TrafficPolicy(_) => Vec::new(),
    }
}

/// `a=b,c=d`.
fn pairs(labels: &BTreeMap<String, String>) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}
