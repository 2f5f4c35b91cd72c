//! What the proxy obeys right now: one immutable [`Live`] behind arc-swap, loaded once per request, and beside it the state
//! with a memory (latencies, ejections, budgets, pools), keyed by name, which survives a swap.
//! Shape: [`State::replace`] takes the whole model of a revision, [`State::endpoints`] one endpoint set at once.
//! Invariant: a snapshot is complete: every route in it points at a cluster in it. Names of clusters that are missing make
//! `replace` fail, and the last good snapshot stays.
//! Invariant: an endpoint whose address was once announced with an identity is never called without one: it is withheld.
//!
//! - [`meshed`]: which addresses those are. [`evadable`]: deny rules that plaintext steps around.

mod evadable;
mod meshed;

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    net::SocketAddr,
    num::NonZeroU16,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};
use weft_core::{
    cluster::Cluster as Settings,
    endpoint::{Endpoint, EndpointSet},
    listener::{AccessLog, Inbound, Listener, Outbound, OutboundPolicy},
    names::{ClusterName, ListenerName, RouteName},
    policy::Judge,
    route::{Action, Matcher, RouteTable, WeightedCluster},
    snapshot::{IncompleteError, Resources},
};

use self::meshed::Meshed;
use crate::upstream::{
    cluster::{Cluster, ClusterState, EndpointState},
    pool::Pool,
};

/// Most destinations noted between two looks of discovery.
const MAX_TOUCHED: usize = 20_000;
/// How long an endpoint that has left is remembered: one that only came and went keeps its connections and its ejection.
const RETURN: Duration = Duration::from_secs(2);
/// Most endpoints remembered that have left.
const MAX_LEFT: usize = 1_000;
/// Most destinations remembered that were asked for during an outage and not answered.
const MAX_UNANSWERED: usize = 20_000;

/// One immutable snapshot with its references resolved.
#[derive(Clone, Debug, Default)]
pub struct Live {
    /// What arrives here; none before the first configuration.
    pub(crate) inbound: Option<Arc<InboundLive>>,
    /// What to do with addresses outside the mesh; none before the first configuration.
    pub(crate) outbound_default: Option<OutboundPolicy>,
    /// By destination address; `None`: asked for, and not in the mesh.
    pub(crate) outbound: HashMap<SocketAddr, Option<Arc<OutboundLive>>>,
    pub(crate) gateway: Option<Arc<GatewayLive>>,
    pub(crate) access_log: AccessLog,
    /// The model, for the config dump.
    pub resources: Arc<Resources>,
}

/// The inbound listener with its authorization.
#[derive(Debug)]
pub(crate) struct InboundLive {
    pub(crate) listener: Inbound,
    /// Of requests, by the route table that holds it.
    pub(crate) requests: HashMap<RouteName, Judge>,
    /// Of connections that are not HTTP, by port.
    connections: HashMap<NonZeroU16, Judge>,
    other_connections: Judge,
}

/// A destination in the mesh.
#[derive(Debug)]
pub(crate) struct OutboundLive {
    pub(crate) listener: Outbound,
    pub(crate) routes: Option<Arc<Routes>>,
    pub(crate) tcp: Vec<(Arc<Cluster>, u32)>,
    /// Learned: here the server speaks first.
    pub(crate) server_first: Arc<AtomicBool>,
}

/// A gateway's route tables by port.
#[derive(Debug)]
pub(crate) struct GatewayLive {
    pub(crate) routes: HashMap<u16, Arc<Routes>>,
}

/// A route table, compiled, with its clusters resolved: `targets[host][rule]` in the order of the model.
#[derive(Debug)]
pub(crate) struct Routes {
    pub(crate) matcher: Matcher,
    pub(crate) targets: Vec<Vec<Vec<Arc<Cluster>>>>,
}

/// An endpoint that has left its cluster's set, and may come back.
#[derive(Debug)]
struct Left {
    cluster: Arc<ClusterState>,
    known: Arc<EndpointState>,
    since: Duration,
}

/// The snapshot and the memory beside it.
#[derive(Debug)]
pub struct State {
    live: ArcSwap<Live>,
    clusters: Mutex<HashMap<ClusterName, Arc<ClusterState>>>,
    learned: Mutex<HashMap<SocketAddr, Arc<AtomicBool>>>,
    /// Those that left first come first.
    left: Mutex<VecDeque<Left>>,
    meshed: Mutex<Meshed>,
    /// Deny rules that were warned of.
    evadable: Mutex<BTreeSet<Arc<str>>>,
    /// There is a discovery stream that answers.
    discovered: AtomicBool,
    /// Destinations that were asked for during this outage and not answered in time.
    unanswered: Mutex<HashSet<SocketAddr>>,
    /// Destinations called since discovery looked last.
    touched: Mutex<HashSet<SocketAddr>>,
    /// Notified after each swap.
    pub(crate) swapped: Notify,
    start: Instant,
    workers: usize,
}

impl State {
    /// Nothing configured yet.
    pub fn new(workers: usize) -> Self {
        Self {
            live: ArcSwap::default(),
            clusters: Mutex::default(),
            learned: Mutex::default(),
            left: Mutex::default(),
            meshed: Mutex::default(),
            evadable: Mutex::default(),
            discovered: AtomicBool::new(false),
            unanswered: Mutex::default(),
            touched: Mutex::default(),
            swapped: Notify::new(),
            start: Instant::now(),
            workers,
        }
    }

    /// The current snapshot.
    pub fn live(&self) -> arc_swap::Guard<Arc<Live>> {
        self.live.load()
    }

    /// The current snapshot, to keep.
    pub(crate) fn live_full(&self) -> Arc<Live> {
        self.live.load_full()
    }

    /// Time since the start, for budgets, ejections and latencies.
    pub(crate) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// The same for a moment that is known already.
    pub(crate) fn at(&self, moment: Instant) -> Duration {
        moment - self.start
    }

    /// Notes that the workload calls a destination, so that its subscription is kept. Bounded: beyond
    /// [`MAX_TOUCHED`] a destination is noted at its next call.
    pub(crate) fn touch(&self, destination: SocketAddr) {
        let mut touched = self.touched.lock();
        if touched.len() < MAX_TOUCHED {
            touched.insert(destination);
        }
    }

    /// The destinations that were called since the last time.
    pub(crate) fn take_touched(&self) -> HashSet<SocketAddr> {
        std::mem::take(&mut *self.touched.lock())
    }

    /// Switches to a model in one step; nothing is done where it says what is in force already.
    /// Errors: it refers to something it does not hold; then nothing changes.
    pub fn replace(&self, resources: Resources) -> Result<(), IncompleteError> {
        let resources = Arc::new(resources);
        let before = self.live.load_full();
        if before.resources == resources {
            return Ok(());
        }
        let upstreams: HashMap<&ClusterName, Arc<Cluster>> = resources
            .clusters
            .iter()
            .map(|(name, settings)| {
                let state = self.cluster(name, settings);
                let text: Arc<str> = name.to_string().into();
                (name, Arc::new(Cluster::new(text, settings.clone(), state, self.workers)))
            })
            .collect();
        let mut tables: HashMap<&RouteName, Arc<Routes>> = HashMap::new();
        for (name, table) in &resources.routes {
            tables.insert(name, Arc::new(Routes::resolve(table, &upstreams)?));
        }
        let routes_of = |listener: &ListenerName, route: &RouteName| {
            tables
                .get(route)
                .cloned()
                .ok_or_else(|| IncompleteError::Route { listener: listener.to_string(), route: route.to_string() })
        };
        let mut live = Live { resources: resources.clone(), ..Live::default() };
        for name in &resources.absent {
            if let ListenerName::Outbound(address) = name {
                live.outbound.insert(*address, None);
            }
        }
        for (name, listener) in &resources.listeners {
            match listener {
                Listener::Inbound(inbound) => {
                    let mut requests = HashMap::new();
                    for port in inbound.ports.values().chain([&inbound.default]) {
                        let table = routes_of(name, &port.routes)?;
                        let judge = || Judge::new(&table.matcher.table().authorization);
                        requests.entry(port.routes.clone()).or_insert_with(judge);
                    }
                    live.access_log = inbound.access_log;
                    live.inbound = Some(Arc::new(InboundLive::new(inbound, requests)));
                }
                Listener::OutboundDefault(default) => live.outbound_default = Some(default.policy),
                Listener::Outbound(outbound) => {
                    let routes = outbound.http.as_ref().map(|route| routes_of(name, route)).transpose()?;
                    let tcp = resolve_clusters(&name.to_string(), &outbound.tcp, &upstreams)?;
                    let tcp = tcp.into_iter().zip(&outbound.tcp).map(|(up, to)| (up, to.weight)).collect();
                    let server_first = self.learned.lock().entry(outbound.address).or_default().clone();
                    let entry = OutboundLive { listener: outbound.clone(), routes, tcp, server_first };
                    live.outbound.insert(outbound.address, Some(Arc::new(entry)));
                }
                Listener::Gateway(gateway) => {
                    let mut routes = HashMap::new();
                    for (port, route) in &gateway.ports {
                        routes.insert(port.get(), routes_of(name, route)?);
                    }
                    live.access_log = gateway.access_log;
                    live.gateway = Some(Arc::new(GatewayLive { routes }));
                }
            }
        }
        let gone: Vec<_> = {
            let mut clusters = self.clusters.lock();
            clusters.extract_if(|name, _| !resources.clusters.contains_key(name)).map(|(_, state)| state).collect()
        };
        for state in gone {
            self.meshed.lock().still(state.addresses().into_iter(), self.now());
        }
        self.learned.lock().retain(|address, _| live.outbound.contains_key(address));
        self.live.store(Arc::new(live));
        self.swapped.notify_waiters();
        self.warn_of_evadable(&resources);
        Ok(())
    }

    /// Takes an endpoint set; what is known of endpoints that stay is kept. An endpoint without an identity at an address
    /// that had one is withheld.
    pub fn endpoints(&self, set: &EndpointSet) {
        let Some(state) = self.clusters.lock().get(&set.cluster).cloned() else { return };
        let old = state.endpoints();
        let withheld = self.withheld(set, &state);
        let kept: HashMap<_, &Arc<EndpointState>> = old.iter().map(|known| (known.key(), known)).collect();
        let mut left = self.left.lock();
        let new: Vec<Arc<EndpointState>> = set
            .endpoints
            .iter()
            .filter(|endpoint| !withheld.contains(endpoint))
            .map(|endpoint| {
                let key = (endpoint.address, endpoint.identity.as_ref());
                let returned = || {
                    let at =
                        left.iter().position(|left| Arc::ptr_eq(&left.cluster, &state) && left.known.key() == key)?;
                    left.remove(at).map(|left| left.known)
                };
                match kept.get(&key).map(|known| Arc::clone(known)).or_else(returned) {
                    Some(known) if known.endpoint == *endpoint => known,
                    Some(known) => Arc::new(known.updated(endpoint.clone())),
                    None => Arc::new(EndpointState::new(endpoint.clone(), &state.counts, self.workers)),
                }
            })
            .collect();
        let stay: HashSet<_> = new.iter().map(|known| known.key()).collect();
        let since = self.now();
        left.extend(old.iter().filter(|known| !stay.contains(&known.key())).map(|known| Left {
            cluster: state.clone(),
            known: known.clone(),
            since,
        }));
        let beyond = left.len().saturating_sub(MAX_LEFT);
        let forgotten: Vec<_> = left.drain(..beyond).collect();
        drop(left);
        drop(forgotten);
        state.set_endpoints(new, withheld);
    }

    /// Closes the connections to endpoints that have left and not come back.
    pub(crate) fn forget_left(&self) {
        let now = self.now();
        let mut left = self.left.lock();
        let gone = left.partition_point(|left| left.since + RETURN <= now);
        let forgotten: Vec<_> = left.drain(..gone).collect();
        drop(left);
        drop(forgotten);
    }

    /// The same at once for those of one cluster, so that its limit leaves room. Returns whether there was any.
    pub(crate) fn forget_left_of(&self, cluster: &Arc<ClusterState>) -> bool {
        let forgotten = {
            let mut left = self.left.lock();
            let (gone, stay): (VecDeque<_>, _) = left.drain(..).partition(|left| Arc::ptr_eq(&left.cluster, cluster));
            *left = stay;
            gone
        };
        !forgotten.is_empty()
    }

    /// Says, once for each set of them, which deny rules can be stepped around by calling in plaintext.
    fn warn_of_evadable(&self, resources: &Resources) {
        let found = match resources.listeners.get(&ListenerName::Inbound) {
            Some(Listener::Inbound(inbound)) => evadable::evadable(inbound, |name| resources.routes.get(name)),
            Some(Listener::OutboundDefault(_) | Listener::Outbound(_) | Listener::Gateway(_)) | None => BTreeSet::new(),
        };
        let mut known = self.evadable.lock();
        if *known == found {
            return;
        }
        if !found.is_empty() {
            let rules = found.iter().map(AsRef::as_ref).collect::<Vec<&str>>().join(", ");
            tracing::warn!(
                rules,
                "deny rules by identity can be stepped around: this workload takes plaintext, whose callers have no \
                 identity; make inbound strict, or allow by identity"
            );
        }
        *known = found;
    }

    /// The endpoints of a set that are not to be called, because they were in the mesh and come without an identity now.
    /// Learns from the set what is in the mesh.
    fn withheld(&self, set: &EndpointSet, state: &ClusterState) -> Vec<Endpoint> {
        let now = self.now();
        self.sweep_meshed(now);
        let before = state.withheld();
        let mut meshed = self.meshed.lock();
        meshed.still(state.addresses().into_iter(), now);
        for endpoint in set.endpoints.iter().filter(|endpoint| endpoint.identity.is_some()) {
            meshed.learn(endpoint.address, now);
        }
        let fell = |endpoint: &&Endpoint| endpoint.identity.is_none() && meshed.contains(endpoint.address);
        let withheld: Vec<Endpoint> = set.endpoints.iter().filter(fell).cloned().collect();
        for endpoint in &withheld {
            if !before.iter().any(|known| known.address == endpoint.address) {
                tracing::warn!(
                    cluster = %set.cluster, endpoint = %endpoint.address, workload = endpoint.workload,
                    "an endpoint that was in the mesh is announced without an identity; it is not called, as that would \
                     be in plaintext"
                );
            }
        }
        withheld
    }

    /// Whether an address was announced with an identity and has not been gone for long since.
    pub(crate) fn was_meshed(&self, address: SocketAddr) -> bool {
        self.sweep_meshed(self.now());
        self.meshed.lock().contains(address)
    }

    fn sweep_meshed(&self, now: Duration) {
        if !self.meshed.lock().is_due(now) {
            return;
        }
        let clusters: Vec<_> = self.clusters.lock().values().cloned().collect();
        let mut current = HashSet::new();
        for state in clusters {
            current.extend(state.addresses());
        }
        self.meshed.lock().sweep(&current, now);
    }

    /// The discovery stream answers, or is gone. What was not answered during an outage is asked for again after it.
    pub(crate) fn set_discovered(&self, is_up: bool) {
        if self.discovered.swap(is_up, Relaxed) != is_up && is_up {
            self.unanswered.lock().clear();
        }
    }

    /// Notes that a destination was asked for and not answered in time. Bounded: beyond [`MAX_UNANSWERED`] a destination
    /// is waited for again.
    pub(crate) fn not_answered(&self, destination: SocketAddr) {
        if self.discovered.load(Relaxed) {
            return;
        }
        let mut unanswered = self.unanswered.lock();
        if unanswered.len() < MAX_UNANSWERED {
            unanswered.insert(destination);
        }
    }

    /// Whether to wait for an answer about a destination is in vain: there is no discovery stream, and it was waited for
    /// since there was one.
    pub(crate) fn waits_in_vain(&self, destination: SocketAddr) -> bool {
        !self.discovered.load(Relaxed) && self.unanswered.lock().contains(&destination)
    }

    /// Endpoints that are not called because they were in the mesh and have no identity now, by cluster.
    pub fn withheld_sets(&self) -> Vec<EndpointSet> {
        let mut sets: Vec<EndpointSet> = self
            .clusters
            .lock()
            .iter()
            .map(|(name, state)| EndpointSet { cluster: name.clone(), endpoints: state.withheld().to_vec() })
            .filter(|set| !set.endpoints.is_empty())
            .collect();
        sets.sort_by(|a, b| a.cluster.cmp(&b.cluster));
        sets
    }

    /// The endpoint sets as they are, for the config dump.
    pub fn endpoint_sets(&self) -> Vec<EndpointSet> {
        let mut sets: Vec<EndpointSet> = self
            .clusters
            .lock()
            .iter()
            .map(|(name, state)| EndpointSet {
                cluster: name.clone(),
                endpoints: state.endpoints().iter().map(|known| known.endpoint.clone()).collect(),
            })
            .collect();
        sets.sort_by(|a, b| a.cluster.cmp(&b.cluster));
        sets
    }

    /// Visits every pool of one worker.
    pub(crate) fn each_pool(&self, worker: usize, mut visit: impl FnMut(&Pool)) {
        for cluster in self.clusters.lock().values() {
            cluster.each_pool(worker, &mut visit);
        }
    }

    fn cluster(&self, name: &ClusterName, settings: &Settings) -> Arc<ClusterState> {
        let mut clusters = self.clusters.lock();
        let state = clusters.entry(name.clone()).or_insert_with(|| Arc::new(ClusterState::new(settings, self.now())));
        state.clone()
    }
}

fn resolve_clusters(
    user: &str,
    clusters: &[WeightedCluster],
    upstreams: &HashMap<&ClusterName, Arc<Cluster>>,
) -> Result<Vec<Arc<Cluster>>, IncompleteError> {
    clusters
        .iter()
        .map(|to| {
            upstreams
                .get(&to.cluster)
                .cloned()
                .ok_or_else(|| IncompleteError::Cluster { user: user.to_owned(), cluster: to.cluster.to_string() })
        })
        .collect()
}

impl Routes {
    fn resolve(table: &RouteTable, upstreams: &HashMap<&ClusterName, Arc<Cluster>>) -> Result<Self, IncompleteError> {
        let user = table.name.to_string();
        let mut targets = Vec::with_capacity(table.hosts.len());
        for host in &table.hosts {
            let mut rules = Vec::with_capacity(host.rules.len());
            for rule in &host.rules {
                rules.push(match &rule.action {
                    Action::Forward(forward) => resolve_clusters(&user, &forward.clusters, upstreams)?,
                    Action::Respond(_) | Action::Deliver => Vec::new(),
                });
            }
            targets.push(rules);
        }
        Ok(Self { matcher: Matcher::new(Arc::new(table.clone())), targets })
    }
}

impl InboundLive {
    fn new(listener: &Inbound, requests: HashMap<RouteName, Judge>) -> Self {
        let connections = listener.ports.iter().map(|(port, of)| (*port, Judge::new(&of.authorization))).collect();
        let other_connections = Judge::new(&listener.default.authorization);
        Self { listener: listener.clone(), requests, connections, other_connections }
    }

    /// Who may open a connection that is not HTTP to a port.
    pub(crate) fn connections(&self, port: u16) -> &Judge {
        NonZeroU16::new(port).and_then(|port| self.connections.get(&port)).unwrap_or(&self.other_connections)
    }
}
