//! One immutable view of the configuration, with its references resolved: a route points at its clusters.
//! Shape: the model ([`Resources`]) and the clusters by name in, [`Snapshot`] out. Pure.
//! Invariant: every route table and cluster that is named is there; else there is no snapshot.

use std::{
    collections::HashMap,
    net::SocketAddr,
    num::NonZeroU16,
    sync::{Arc, atomic::AtomicBool},
};

use weft_core::{
    listener::{AccessLog, EncodedSlashes, Inbound, Listener, Outbound, OutboundPolicy},
    names::{ClusterName, ListenerName, RouteName},
    policy::Engine,
    route::{Action, Matcher, RouteTable, WeightedCluster},
    snapshot::{IncompleteError, Resources},
};

use crate::upstream::cluster::Cluster;

/// One immutable snapshot.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The listener of connections to the workload; none before the first configuration.
    pub(crate) inbound: Option<Arc<InboundListener>>,
    /// The policy for addresses outside the mesh; none before the first configuration.
    pub(crate) outbound_default: Option<OutboundPolicy>,
    /// By destination address. `None`: discovery has answered that the destination is not in the mesh.
    pub(crate) outbound: HashMap<SocketAddr, Option<Arc<OutboundListener>>>,
    pub(crate) gateway: Option<Arc<GatewayListener>>,
    pub(crate) access_log: AccessLog,
    /// The model, for the config dump.
    pub resources: Arc<Resources>,
}

/// The inbound listener with its authorization.
#[derive(Debug)]
pub(crate) struct InboundListener {
    pub(crate) listener: Inbound,
    /// Of requests, by the route table that holds it.
    pub(super) requests: HashMap<RouteName, Engine>,
    /// Of connections that are not HTTP, by port.
    connections: HashMap<NonZeroU16, Engine>,
    other_connections: Engine,
}

/// The listener of a destination in the mesh.
#[derive(Debug)]
pub(crate) struct OutboundListener {
    pub(crate) listener: Outbound,
    pub(crate) routes: Option<Arc<Routes>>,
    /// Clusters for opaque bytes, with their weights.
    pub(crate) tcp: Vec<(Arc<Cluster>, u32)>,
    /// Whether the server was the first to speak here, as the last connection showed; survives snapshots.
    pub(crate) server_first: Arc<AtomicBool>,
}

/// A gateway's route tables by port.
#[derive(Debug)]
pub(crate) struct GatewayListener {
    pub(crate) encoded_slashes: EncodedSlashes,
    pub(crate) routes: HashMap<u16, Arc<Routes>>,
}

/// A route table, compiled, with its clusters resolved: `targets[host][rule]` in the order of the model.
#[derive(Debug)]
pub(crate) struct Routes {
    pub(crate) matcher: Matcher,
    pub(crate) targets: Vec<Vec<Vec<Arc<Cluster>>>>,
}

/// Clusters by name.
type Clusters<'a> = HashMap<&'a ClusterName, Arc<Cluster>>;

impl OutboundListener {
    /// Whether an authority names this service: its address or its name (`product`, `product.shop`, `product.shop.svc…`),
    /// without a port or with its own. What an application calls as its forward proxy is named otherwise.
    pub(crate) fn is_named(&self, authority: &str) -> bool {
        let own = self.listener.address;
        let port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit()) && !port.is_empty();
        let host = match authority.rsplit_once(':') {
            Some((host, text)) if port(text) && text.parse() != Ok(own.port()) && !host.is_empty() => return false,
            Some((host, text)) if port(text) => host,
            _ => authority,
        };
        let host = host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        let Some(RouteName::Service(service)) = &self.listener.http else { return host.parse() == Ok(own.ip()) };
        let rest = host.strip_prefix(&service.name);
        let namespace = rest.and_then(|rest| rest.strip_prefix('.')).and_then(|rest| rest.split('.').next());
        host.parse() == Ok(own.ip()) || rest == Some("") || namespace == Some(service.namespace.as_str())
    }
}

impl Snapshot {
    /// Resolves the references of a model. `server_first`: what is remembered of a destination.
    /// Errors: it names a route table or cluster that is missing.
    pub(super) fn resolve(
        resources: &Arc<Resources>,
        clusters: &Clusters<'_>,
        server_first: impl Fn(SocketAddr) -> Arc<AtomicBool>,
    ) -> Result<Self, IncompleteError> {
        let mut snapshot = Self { resources: resources.clone(), ..Self::default() };
        // Compiled once each, however many listeners use the same table.
        let mut tables: HashMap<&RouteName, Arc<Routes>> = HashMap::new();
        for (name, table) in &resources.routes {
            tables.insert(name, Arc::new(Routes::resolve(table, clusters)?));
        }
        let find_table = |listener: &ListenerName, route: &RouteName| {
            let missing = || IncompleteError::Route { listener: listener.to_string(), route: route.to_string() };
            tables.get(route).cloned().ok_or_else(missing)
        };
        // A destination that is known to be absent is not asked for again.
        for name in &resources.absent {
            if let ListenerName::Outbound(address) = name {
                snapshot.outbound.insert(*address, None);
            }
        }
        for (name, listener) in &resources.listeners {
            match listener {
                Listener::Inbound(inbound) => {
                    snapshot.access_log = inbound.access_log;
                    let inbound = InboundListener::resolve(inbound, |route| find_table(name, route))?;
                    snapshot.inbound = Some(Arc::new(inbound));
                }
                Listener::OutboundDefault(default) => snapshot.outbound_default = Some(default.policy),
                Listener::Outbound(outbound) => {
                    let routes = outbound.http.as_ref().map(|route| find_table(name, route)).transpose()?;
                    let tcp = resolve_clusters(&name.to_string(), &outbound.tcp, clusters)?;
                    let tcp = tcp.into_iter().zip(&outbound.tcp).map(|(cluster, to)| (cluster, to.weight)).collect();
                    // Learned by connections, so it comes from beside the snapshots.
                    let server_first = server_first(outbound.address);
                    let destination = OutboundListener { listener: outbound.clone(), routes, tcp, server_first };
                    snapshot.outbound.insert(outbound.address, Some(Arc::new(destination)));
                }
                Listener::Gateway(gateway) => {
                    let mut routes = HashMap::new();
                    for (port, route) in &gateway.ports {
                        routes.insert(port.get(), find_table(name, route)?);
                    }
                    snapshot.access_log = gateway.access_log;
                    snapshot.gateway =
                        Some(Arc::new(GatewayListener { routes, encoded_slashes: gateway.encoded_slashes }));
                }
            }
        }
        Ok(snapshot)
    }
}

impl InboundListener {
    fn resolve(
        listener: &Inbound,
        find_table: impl Fn(&RouteName) -> Result<Arc<Routes>, IncompleteError>,
    ) -> Result<Self, IncompleteError> {
        let mut requests = HashMap::new();
        for port in listener.ports.values().chain([&listener.default]) {
            let table = find_table(&port.routes)?;
            let engine = || Engine::new(&table.matcher.table().authorization);
            requests.entry(port.routes.clone()).or_insert_with(engine);
        }
        let connections = listener.ports.iter().map(|(port, of)| (*port, Engine::new(&of.authorization))).collect();
        let other_connections = Engine::new(&listener.default.authorization);
        Ok(Self { listener: listener.clone(), requests, connections, other_connections })
    }

    /// The authorization of connections to a port that are not HTTP.
    pub(super) fn connections(&self, port: u16) -> &Engine {
        NonZeroU16::new(port).and_then(|port| self.connections.get(&port)).unwrap_or(&self.other_connections)
    }
}

impl Routes {
    fn resolve(table: &RouteTable, clusters: &Clusters<'_>) -> Result<Self, IncompleteError> {
        let user = table.name.to_string();
        let mut targets = Vec::with_capacity(table.hosts.len());
        for host in &table.hosts {
            let mut rules = Vec::with_capacity(host.rules.len());
            for rule in &host.rules {
                rules.push(match &rule.action {
                    Action::Forward(forward) => resolve_clusters(&user, &forward.clusters, clusters)?,
                    Action::Respond(_) | Action::Deliver => Vec::new(),
                });
            }
            targets.push(rules);
        }
        Ok(Self { matcher: Matcher::new(Arc::new(table.clone())), targets })
    }
}

fn resolve_clusters(
    user: &str,
    to: &[WeightedCluster],
    clusters: &Clusters<'_>,
) -> Result<Vec<Arc<Cluster>>, IncompleteError> {
    let missing = |name: &ClusterName| IncompleteError::Cluster { user: user.to_owned(), cluster: name.to_string() };
    to.iter().map(|to| clusters.get(&to.cluster).cloned().ok_or_else(|| missing(&to.cluster))).collect()
}
