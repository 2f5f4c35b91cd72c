//! The whole configuration of a proxy as a model, and the dependency tree inside it: listener -> route tables -> clusters.
//! Shape: [`Resources`] by name; [`Listener::routes`], [`Listener::clusters`] and [`RouteTable::clusters`] are the edges of
//! the tree, the same for everything that walks it (the control plane, a discovery client, a proxy that runs from a file).
//! Invariant: [`Resources::add`] adds a listener together with everything below it, or nothing.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::{
    cluster::Cluster,
    listener::Listener,
    names::{ClusterName, ListenerName, RouteName},
    route::{Action, RouteTable},
};

/// The whole configuration of a proxy as a model: the output of discovery, or of a file.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Resources {
    /// Listeners by name.
    pub listeners: BTreeMap<ListenerName, Listener>,
    /// Listeners that were asked for and do not exist.
    pub absent: BTreeSet<ListenerName>,
    /// Route tables by name.
    pub routes: BTreeMap<RouteName, RouteTable>,
    /// Clusters by name.
    pub clusters: BTreeMap<ClusterName, Cluster>,
}

/// A model that refers to something it does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IncompleteError {
    /// A listener names a route table that is missing.
    #[error("listener {listener:?}: route table {route:?} is missing")]
    Route {
        /// The listener.
        listener: String,
        /// The route table.
        route: String,
    },
    /// A listener or route table names a cluster that is missing.
    #[error("{user:?}: cluster {cluster:?} is missing")]
    Cluster {
        /// The listener or route table.
        user: String,
        /// The cluster.
        cluster: String,
    },
}

impl Resources {
    /// Adds a listener with the route tables and clusters below it, which are looked up by name.
    /// Errors: one of them is not found; then nothing is added.
    pub fn add<'a>(
        &mut self,
        name: &ListenerName,
        listener: &'a Listener,
        find_table: impl Fn(&RouteName) -> Option<&'a RouteTable>,
        find_cluster: impl Fn(&ClusterName) -> Option<&'a Cluster>,
    ) -> Result<(), IncompleteError> {
        let mut tables = Vec::new();
        let mut clusters = Vec::new();
        let mut seen = BTreeSet::new();
        let mut add_clusters = |user: &dyn std::fmt::Display, names: BTreeSet<&'a ClusterName>| {
            for name in names {
                if seen.insert(name) {
                    clusters.push(find_cluster(name).ok_or_else(|| IncompleteError::Cluster {
                        user: user.to_string(),
                        cluster: name.to_string(),
                    })?);
                }
            }
            Ok(())
        };
        add_clusters(name, listener.clusters())?;
        for route in listener.routes() {
            let table = find_table(route)
                .ok_or_else(|| IncompleteError::Route { listener: name.to_string(), route: route.to_string() })?;
            add_clusters(route, table.clusters())?;
            tables.push(table);
        }
        // Everything was found: only now is anything written.
        for table in tables {
            self.routes.entry(table.name.clone()).or_insert_with(|| table.clone());
        }
        for cluster in clusters {
            self.clusters.entry(cluster.name.clone()).or_insert_with(|| cluster.clone());
        }
        self.listeners.insert(name.clone(), listener.clone());
        Ok(())
    }
}

impl Listener {
    /// The route tables that it names.
    pub fn routes(&self) -> BTreeSet<&RouteName> {
        match self {
            Self::Inbound(inbound) => {
                inbound.ports.values().chain([&inbound.default]).map(|port| &port.routes).collect()
            }
            Self::OutboundDefault(_) => BTreeSet::new(),
            Self::Outbound(outbound) => outbound.http.iter().collect(),
            Self::Gateway(gateway) => gateway.ports.values().collect(),
        }
    }

    /// The clusters that it names itself, for opaque bytes.
    pub fn clusters(&self) -> BTreeSet<&ClusterName> {
        match self {
            Self::Outbound(outbound) => outbound.tcp.iter().map(|to| &to.cluster).collect(),
            Self::Inbound(_) | Self::OutboundDefault(_) | Self::Gateway(_) => BTreeSet::new(),
        }
    }
}

impl RouteTable {
    /// The clusters that its rules name.
    pub fn clusters(&self) -> BTreeSet<&ClusterName> {
        let actions = self.hosts.iter().flat_map(|host| &host.rules).map(|rule| &rule.action);
        actions
            .filter_map(|action| match action {
                Action::Forward(forward) => Some(&forward.clusters),
                Action::Respond(_) | Action::Deliver => None,
            })
            .flatten()
            .map(|to| &to.cluster)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        listener::{Outbound, Protocol},
        policy::Authorization,
        route::{Forward, Rule, VirtualHost, WeightedCluster},
    };

    fn parts() -> (ListenerName, Listener, RouteTable, [Cluster; 2]) {
        let names = ["svc/shop/product:80", "svc/shop/other:80"].map(|name| ClusterName::parse(name).unwrap());
        let route = RouteName::parse("svc/shop/product:80").unwrap();
        let rule = Rule::all("shop/product#0", Action::Forward(Forward::to(names[0].clone())));
        let table = RouteTable {
            name: route.clone(),
            hosts: vec![VirtualHost { name: Arc::from("*"), domains: vec![Arc::from("*")], rules: vec![rule] }],
            authorization: Authorization::default(),
        };
        let address = "240.0.0.1:80".parse().unwrap();
        let listener = Listener::Outbound(Outbound {
            address,
            protocol: Protocol::Detect,
            http: Some(route),
            tcp: vec![WeightedCluster { cluster: names[1].clone(), weight: 1 }],
        });
        (ListenerName::Outbound(address), listener, table, names.map(Cluster::new))
    }

    #[test]
    fn a_listener_comes_with_everything_below_it() {
        let (name, listener, table, clusters) = parts();
        let mut resources = Resources::default();
        let find = |wanted: &ClusterName| clusters.iter().find(|cluster| cluster.name == *wanted);
        resources.add(&name, &listener, |wanted| (table.name == *wanted).then_some(&table), find).unwrap();
        assert_eq!((resources.listeners.len(), resources.routes.len(), resources.clusters.len()), (1, 1, 2));
    }

    #[test]
    fn a_listener_with_a_gap_below_it_is_not_added_at_all() {
        let (name, listener, table, clusters) = parts();
        let mut resources = Resources::default();
        let error = resources.add(&name, &listener, |_| None, |_| clusters.first()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "listener \"outbound/240.0.0.1:80\": route table \"svc/shop/product:80\" is missing"
        );
        let find = |wanted: &ClusterName| clusters[1..].iter().find(|cluster| cluster.name == *wanted);
        let error = resources.add(&name, &listener, |_| Some(&table), find).unwrap_err();
        assert_eq!(error.to_string(), "\"svc/shop/product:80\": cluster \"svc/shop/product:80\" is missing");
        assert_eq!(resources, Resources::default());
    }
}
