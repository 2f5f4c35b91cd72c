//! Gateways: ports, and the route table of each from the routes that its listeners let in.
//! Spec: Gateway API Gateway and HTTPRoute: a request belongs to the listener with the most specific hostname alone; in
//! it, routes with a more specific hostname go first, and the others follow.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU16,
    sync::Arc,
};

use super::{World, precedence::ordered};
use crate::{
    api::{
        self, HttpRoute,
        gateway::{GATEWAY_CLASS, Listener, ListenerProtocol},
        http_route::{GATEWAY_GROUP, ParentReference, RefKind},
        mesh_config::EncodedSlashesMode,
    },
    listener::{EncodedSlashes, Gateway},
    names::RouteName,
    policy::Authorization,
    route::{RouteTable, VirtualHost},
};

/// The label that every namespace has.
const NAMESPACE_LABEL: &str = "kubernetes.io/metadata.name";

/// Why a route is not attached to a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum NotAttached {
    /// No such listener: another name, port or protocol.
    NoMatchingParent,
    /// The listener does not let it in.
    NotAllowedByListeners,
    /// No hostname in common.
    NoMatchingListenerHostname,
}

impl World {
    /// A gateway; `None` when there is no such object of our class.
    pub(super) fn gateway(&self, namespace: &str, name: &str) -> Option<Gateway> {
        let object = self.our_gateway(namespace, name)?;
        let ports = usable(object).map(|listener| {
            let (namespace, name, port) = (namespace.to_owned(), name.to_owned(), listener.port);
            (port, RouteName::Gateway { namespace, name, port })
        });
        Some(Gateway {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            ports: ports.collect(),
            access_log: self.access_log(),
            encoded_slashes: match self.objects.mesh().encoded_slashes.unwrap_or_default() {
                EncodedSlashesMode::Refuse => EncodedSlashes::Refuse,
                EncodedSlashesMode::Keep => EncodedSlashes::Keep,
            },
        })
    }

    /// The route table of a gateway's port.
    pub(super) fn gateway_routes(&self, namespace: &str, name: &str, port: NonZeroU16) -> Option<RouteTable> {
        let object = self.our_gateway(namespace, name)?;
        let listeners: Vec<&Listener> = usable(object).filter(|listener| listener.port == port).collect();
        if listeners.is_empty() {
            return None;
        }
        let mut hosts = Vec::new();
        for listener in &listeners {
            let own = listener.hostname.as_deref().unwrap_or("*");
            let mut routes: BTreeMap<String, Vec<&HttpRoute>> =
                BTreeMap::from([(own.to_ascii_lowercase(), Vec::new())]);
            for route in self.objects.gateway_routes(namespace, name) {
                for host in attached_hosts(object, listener, route) {
                    // What a more specific listener takes is not this one's.
                    let taken = |other: &&Listener| {
                        let other = other.hostname.as_deref().unwrap_or("*");
                        rank(other) > rank(own) && covers(other, &host)
                    };
                    if !listeners.iter().any(taken) {
                        routes.entry(host).or_default().push(route);
                    }
                }
            }
            hosts.extend(self.hosts(listener, &routes));
        }
        hosts.sort_by(|one, two| one.domains.cmp(&two.domains));
        let name = RouteName::Gateway { namespace: namespace.to_owned(), name: name.to_owned(), port };
        Some(RouteTable { name, hosts, authorization: Authorization::default() })
    }

    /// One host for each hostname of a listener: its own routes, then those of the hostnames that cover it.
    fn hosts(&self, listener: &Listener, routes: &BTreeMap<String, Vec<&HttpRoute>>) -> Vec<VirtualHost> {
        let mut out = Vec::new();
        for host in routes.keys() {
            let mut covering: Vec<&String> = routes.keys().filter(|other| covers(other, host)).collect();
            covering.sort_by_key(|other| Reverse(rank(other)));
            let mut rules = Vec::new();
            for other in covering {
                let candidates = routes.get(other).into_iter().flatten();
                rules.extend(ordered(candidates.flat_map(|route| self.candidates(route, None)).collect()));
            }
            let domain: Arc<str> = host.as_str().into();
            out.push(VirtualHost { name: format!("{}:{host}", listener.name).into(), domains: vec![domain], rules });
        }
        out
    }

    fn our_gateway(&self, namespace: &str, name: &str) -> Option<&api::Gateway> {
        self.objects.gateway(namespace, name).filter(|gateway| gateway.spec.gateway_class_name == GATEWAY_CLASS)
    }
}

/// The listeners that can be served: HTTP, and of two with one port and hostname the first.
pub(super) fn usable(gateway: &api::Gateway) -> impl Iterator<Item = &Listener> {
    let mut seen = BTreeSet::new();
    gateway.spec.listeners.iter().filter(move |listener| {
        let hostname = listener.hostname.as_deref().map(str::to_ascii_lowercase);
        listener.protocol == ListenerProtocol::Http && seen.insert((listener.port, hostname))
    })
}

/// The hostnames under which a route is attached to a listener; empty when it is not.
fn attached_hosts(gateway: &api::Gateway, listener: &Listener, route: &HttpRoute) -> BTreeSet<String> {
    let parents = &route.spec.parent_refs;
    let attached = parents.iter().filter_map(|parent| attach(gateway, listener, route, parent).ok());
    attached.flatten().collect()
}

/// Whether a parent reference names this gateway.
pub(super) fn names_gateway(parent: &ParentReference, gateway: &api::Gateway, route: &HttpRoute) -> bool {
    parent.target() == Some(RefKind::Gateway)
        && parent.name == gateway.metadata.name
        && parent.namespace(&route.metadata.namespace) == gateway.metadata.namespace
}

/// The hostnames under which one parent reference attaches a route to a listener.
pub(super) fn attach(
    gateway: &api::Gateway,
    listener: &Listener,
    route: &HttpRoute,
    parent: &ParentReference,
) -> Result<Vec<String>, NotAttached> {
    let section = parent.section_name.as_deref().is_none_or(|wanted| wanted == listener.name);
    let port = parent.port.is_none_or(|wanted| wanted == listener.port);
    if !names_gateway(parent, gateway, route) || !section || !port {
        return Err(NotAttached::NoMatchingParent);
    }
    let namespace = &route.metadata.namespace;
    let labels = BTreeMap::from([(NAMESPACE_LABEL.to_owned(), namespace.clone())]);
    if !allows_http_routes(listener) || !listener.allows_namespace(&gateway.metadata.namespace, namespace, &labels) {
        return Err(NotAttached::NotAllowedByListeners);
    }
    let own = listener.hostname.as_deref().unwrap_or("*");
    let any = ["*".to_owned()];
    let wanted = if route.spec.hostnames.is_empty() { &any[..] } else { &route.spec.hostnames };
    let common: Vec<String> = wanted.iter().filter_map(|host| intersection(own, host)).collect();
    if common.is_empty() { Err(NotAttached::NoMatchingListenerHostname) } else { Ok(common) }
}

/// Whether a listener takes HTTPRoutes at all.
pub(super) fn allows_http_routes(listener: &Listener) -> bool {
    let kinds = listener.allowed_routes.as_ref().map(|allowed| allowed.kinds.as_slice()).unwrap_or_default();
    kinds.is_empty()
        || kinds
            .iter()
            .any(|kind| kind.kind == "HTTPRoute" && kind.group.as_deref().unwrap_or(GATEWAY_GROUP) == GATEWAY_GROUP)
}

/// The hosts that two hostnames share, as a hostname: the more specific one, if the other covers it.
fn intersection(one: &str, two: &str) -> Option<String> {
    let (one, two) = (one.to_ascii_lowercase(), two.to_ascii_lowercase());
    if covers(&one, &two) {
        Some(two)
    } else if covers(&two, &one) {
        Some(one)
    } else {
        None
    }
}

/// Whether every host of `inner` is one of `outer`'s. Both `a.example`, `*.example` or `*`, in lower case.
fn covers(outer: &str, inner: &str) -> bool {
    if outer == "*" || outer.eq_ignore_ascii_case(inner) {
        return true;
    }
    let Some(suffix) = outer.strip_prefix('*') else { return false };
    let inner = inner.strip_prefix('*').unwrap_or(inner);
    inner.len() > suffix.len() && inner.to_ascii_lowercase().ends_with(&suffix.to_ascii_lowercase())
}

/// How specific a hostname is; larger is more.
fn rank(host: &str) -> (bool, usize) {
    (!host.starts_with('*'), host.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostnames_meet_in_the_more_specific_one() {
        for (one, two, common) in [
            ("*", "a.example", Some("a.example")),
            ("a.example", "a.example", Some("a.example")),
            ("a.example", "b.example", None),
            ("*.example", "a.example", Some("a.example")),
            ("*.example", "a.b.example", Some("a.b.example")),
            ("*.example", "example", None),
            ("*.example", "*.b.example", Some("*.b.example")),
            ("*.example", "*.example", Some("*.example")),
            ("*.example", "*.badexample", None),
            ("*.example", "badexample", None),
            ("A.Example", "a.example", Some("a.example")),
        ] {
            assert_eq!(intersection(one, two).as_deref(), common, "{one} {two}");
            assert_eq!(intersection(two, one).as_deref(), common, "{two} {one}");
        }
    }
}
