//! Which resources an object goes into, so that a refusal of a resource by a proxy shows on the object.
//! Shape: an object in, patterns of names out. Wider than exact where the object alone does not tell: a policy counts for
//! `inbound` of every workload; [`World::policy_concerns`](super::World::policy_concerns) says of which.

use std::net::IpAddr;

use crate::{
    api::{Object, http_route::RefKind},
    names::ListenerName,
};

/// Names of resources, of whatever type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamePattern {
    /// This name.
    Exact(String),
    /// Every name that starts with this text.
    Prefix(String),
    /// The listeners of every gateway.
    Gateways,
}

impl NamePattern {
    /// Whether a name is one of them.
    pub fn covers(&self, name: &str) -> bool {
        match self {
            Self::Exact(wanted) => wanted == name,
            Self::Prefix(prefix) => name.starts_with(prefix.as_str()),
            Self::Gateways => matches!(ListenerName::parse(name), Ok(ListenerName::Gateway { .. })),
        }
    }
}

/// The names of the resources that an object has a part in.
pub fn resources_of(object: &Object) -> Vec<NamePattern> {
    let (namespace, name) = (object.metadata().namespace.as_str(), object.metadata().name.as_str());
    match object {
        Object::Service(service) => {
            let addresses = service.spec.addresses();
            let listeners = service.spec.ports.iter().flat_map(|port| {
                let listener = |address: &IpAddr| ListenerName::Outbound((*address, port.port.get()).into());
                addresses.iter().map(move |address| NamePattern::Exact(listener(address).to_string()))
            });
            std::iter::once(of_service(namespace, name)).chain(listeners).collect()
        }
        Object::TrafficPolicy(policy) => vec![of_service(namespace, &policy.spec.target_ref.name)],
        Object::Gateway(_) => of_gateway(namespace, name).into(),
        Object::HttpRoute(route) => {
            let parents = route.spec.parent_refs.iter().flat_map(|parent| match parent.target() {
                Some(RefKind::Service) => vec![of_service(parent.namespace(namespace), &parent.name)],
                Some(RefKind::Gateway) => of_gateway(parent.namespace(namespace), &parent.name).into(),
                None => Vec::new(),
            });
            parents.collect()
        }
        Object::Workload(workload) => workload.spec.addresses.iter().flat_map(of_workload).collect(),
        // `inbound`, and `inbound:<port>` of the route tables.
        Object::AuthorizationPolicy(_) => vec![NamePattern::Prefix(ListenerName::Inbound.to_string())],
        Object::MeshConfig(_) => vec![
            NamePattern::Prefix(ListenerName::Inbound.to_string()),
            NamePattern::Exact(ListenerName::OutboundDefault.to_string()),
            NamePattern::Gateways,
        ],
    }
}

/// Route tables, clusters and endpoint sets of every port.
fn of_service(namespace: &str, name: &str) -> NamePattern {
    NamePattern::Prefix(format!("svc/{namespace}/{name}:"))
}

/// The listener, and the route table of every port.
fn of_gateway(namespace: &str, name: &str) -> [NamePattern; 2] {
    let listener = ListenerName::Gateway { namespace: namespace.to_owned(), name: name.to_owned() };
    [NamePattern::Exact(listener.to_string()), NamePattern::Prefix(format!("{listener}:"))]
}

/// Listeners, route tables, clusters and endpoint sets of every port of one address.
fn of_workload(address: &IpAddr) -> [NamePattern; 2] {
    // As in the name of a socket address: IPv6 in brackets.
    let host = match address {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    };
    ["direct", "outbound"].map(|prefix| NamePattern::Prefix(format!("{prefix}/{host}:")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::parse_documents,
        names::{ClusterName, RouteName, ServicePort},
    };

    fn covers(object: &str, name: &str) -> bool {
        let object = parse_documents(object).unwrap().remove(0);
        resources_of(&object).iter().any(|pattern| pattern.covers(name))
    }

    #[test]
    fn a_service_goes_into_its_own_names_and_the_listeners_of_its_addresses() {
        let service = "{apiVersion: v1, kind: Service, metadata: {name: a, namespace: shop}, \
                       spec: {ports: [{port: 80}], clusterIPs: [240.0.0.1, 'fd77::1']}}";
        let at = ServicePort { namespace: "shop".into(), name: "a".into(), port: 80.try_into().unwrap() };
        assert!(covers(service, &ClusterName::Service(at.clone()).to_string()));
        assert!(covers(service, &RouteName::Service(at).to_string()));
        for listener in ["outbound/240.0.0.1:80", "outbound/[fd77::1]:80"] {
            assert!(covers(service, listener), "{listener}");
        }
        for other in ["svc/shop/ab:80", "svc/shopa/a:80", "outbound/240.0.0.1:8080", "outbound", "inbound"] {
            assert!(!covers(service, other), "{other}");
        }
    }

    #[test]
    fn a_route_goes_into_the_tables_of_its_parents() {
        let route = "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: r, namespace: shop}, \
                     spec: {parentRefs: [{group: '', kind: Service, name: a}, {name: edge, namespace: infra}]}}";
        for name in ["svc/shop/a:80", "gateway/infra/edge", "gateway/infra/edge:80"] {
            assert!(covers(route, name), "{name}");
        }
        assert!(!covers(route, "gateway/infra/edges") && !covers(route, "svc/shop/b:80"));
    }

    #[test]
    fn a_workload_goes_into_what_is_named_by_its_addresses() {
        let workload = "{apiVersion: weft.dev/v1alpha1, kind: Workload, metadata: {name: a-1, namespace: shop}, \
                        spec: {serviceAccount: a, addresses: [10.0.0.1, 'fd00::1'], ports: [{port: 80}]}}";
        for name in ["direct/10.0.0.1:80", "outbound/10.0.0.1:81", "direct/[fd00::1]:80"] {
            assert!(covers(workload, name), "{name}");
        }
        assert!(!covers(workload, "direct/10.0.0.10:80"));
    }

    #[test]
    fn policies_and_the_mesh_go_into_inbound() {
        let policy = "{apiVersion: weft.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {name: a, namespace: shop}, \
                      spec: {selector: {matchLabels: {app: a}}, action: Deny, rules: [{}]}}";
        assert!(covers(policy, "inbound") && covers(policy, "inbound:80") && !covers(policy, "outbound"));
        let mesh = "{apiVersion: weft.dev/v1alpha1, kind: MeshConfig, metadata: {name: default}, spec: {}}";
        assert!(covers(mesh, "inbound") && covers(mesh, "outbound") && !covers(mesh, "outbound/240.0.0.1:80"));
        assert!(covers(mesh, "gateway/shop/edge") && !covers(mesh, "gateway/shop/edge:80"), "the access log");
    }
}
