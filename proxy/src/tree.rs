//! The dependency tree of a configuration: listener -> route tables -> clusters.

use std::collections::BTreeSet;

use weft_core::{
    listener::Listener,
    names::{ClusterName, RouteName},
    route::{Action, RouteTable},
};

/// The route tables that a listener names.
pub(crate) fn routes_of(listener: &Listener) -> BTreeSet<&RouteName> {
    match listener {
        Listener::Inbound(inbound) => {
            inbound.ports.values().chain([&inbound.default]).map(|port| &port.routes).collect()
        }
        Listener::OutboundDefault(_) => BTreeSet::new(),
        Listener::Outbound(outbound) => outbound.http.iter().collect(),
        Listener::Gateway(gateway) => gateway.ports.values().collect(),
    }
}

/// The clusters that a listener names itself, for opaque bytes.
pub(crate) fn clusters_of(listener: &Listener) -> BTreeSet<&ClusterName> {
    match listener {
        Listener::Outbound(outbound) => outbound.tcp.iter().map(|to| &to.cluster).collect(),
        Listener::Inbound(_) | Listener::OutboundDefault(_) | Listener::Gateway(_) => BTreeSet::new(),
    }
}

/// The clusters that a route table names.
pub(crate) fn clusters_of_table(table: &RouteTable) -> BTreeSet<&ClusterName> {
    let actions = table.hosts.iter().flat_map(|host| &host.rules).map(|rule| &rule.action);
    actions
        .filter_map(|action| match action {
            Action::Forward(forward) => Some(&forward.clusters),
            Action::Respond(_) | Action::Deliver => None,
        })
        .flatten()
        .map(|to| &to.cluster)
        .collect()
}
