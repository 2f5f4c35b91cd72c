//! The status of objects, computed when it is read: the conditions from compile, and whether the proxies have applied it.
//! Shape: [`StatusBook`] keeps the two indexes that were last read, of objects and of workloads, and the time since which each
//! condition has its status (`times`). [`StatusBook::follow`] computes the status of all objects after a change, so that
//! these times do not depend on readers.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use weft_core::{
    api::{
        Condition, ConditionStatus, Object, Status,
        gateway::Listener,
        http_route::RefKind,
        meta::{Address, ListenerStatus},
        proxy_config::ProxyMode,
    },
    compile::{NamePattern, Named, Objects, Requester, Workloads, World, resources_of},
    identity::TrustDomain,
    names::{ListenerName, named_in},
    wire::REVISION_NAME,
};

use self::times::Times;
use crate::{
    ca::{OWN_NAMESPACE, OWN_SERVICE_ACCOUNT},
    desired::Desired,
    registry::Registered,
    state::{Mesh, ProxyStatus, ProxyTable, WorkloadIndex},
    tokens::Accounts,
};

mod times;

/// Interval in which changes are looked for.
const LOOK: Duration = Duration::from_secs(5);
/// Most addresses in the status of a Gateway, as in the Gateway API.
const MAX_ADDRESSES: usize = 16;
/// Objects that are computed before other tasks get a turn.
const TOGETHER: usize = 64;

/// Computes the status of objects.
pub struct StatusBook {
    trust_domain: TrustDomain,
    proxies: Arc<ProxyTable>,
    registered: watch::Receiver<Arc<Registered>>,
    accounts: Arc<Accounts>,
    compiled: Mutex<Compiled>,
    times: Arc<Mutex<Times>>,
}

/// What was compiled last.
#[derive(Default)]
struct Compiled {
    workloads: WorkloadIndex,
    objects: Option<Arc<Objects>>,
}

/// Computes the status of the objects of one snapshot.
pub struct StatusView {
    world: World,
    proxies: Proxies,
    /// The accounts that there is a join token for.
    accounts: Arc<BTreeSet<(String, String)>>,
    /// `None` for the snapshot of a dry run.
    times: Option<Arc<Mutex<Times>>>,
}

/// The revisions of the proxies, and their NACKs.
#[derive(Debug, Default, PartialEq)]
struct Proxies {
    /// The applied revision of each proxy that was sent one, sorted.
    applied: Vec<u64>,
    /// The proxies that serve each gateway, by the name of its listener.
    gateways: BTreeMap<Arc<str>, Vec<GatewayProxy>>,
    refusals: Vec<Refusal>,
}

#[derive(Clone, Debug, PartialEq)]
struct GatewayProxy {
    applied: u64,
    address: Option<IpAddr>,
}

#[derive(Debug, PartialEq)]
struct Refusal {
    proxy: Arc<str>,
    /// The applied revision of the proxy.
    applied: u64,
    /// What the resources of its own are rendered for.
    requester: Option<Arc<Requester>>,
    resource: String,
    message: String,
}

impl StatusBook {
    /// For a mesh. `accounts`: those that a workload may come with.
    pub fn new(trust_domain: TrustDomain, mesh: &Mesh, accounts: Arc<Accounts>) -> Self {
        Self {
            trust_domain,
            proxies: Arc::clone(&mesh.proxies),
            registered: mesh.registered.clone(),
            accounts,
            compiled: Mutex::default(),
            times: Arc::default(),
        }
    }

    /// For a snapshot that is or was current. Cost: linear in the workloads that changed since the last reading, and in the
    /// objects if another revision was read last.
    pub fn view(&self, desired: &Desired) -> StatusView {
        let mut compiled = self.compiled.lock();
        let workloads = self.workloads(&mut compiled);
        let objects = match compiled.objects.as_ref().filter(|objects| objects.revision() == desired.revision) {
            Some(objects) => Arc::clone(objects),
            None => Arc::clone(compiled.objects.insert(self.index(desired))),
        };
        drop(compiled);
        let (world, proxies) = (World::new(objects, workloads), Proxies::new(self.proxies.list()));
        StatusView { world, proxies, accounts: self.accounts.known(), times: Some(Arc::clone(&self.times)) }
    }

    /// For a snapshot that may never become current, as of a dry run.
    pub fn view_once(&self, desired: &Desired) -> StatusView {
        let workloads = self.workloads(&mut self.compiled.lock());
        let world = World::new(self.index(desired), workloads);
        StatusView { world, proxies: Proxies::default(), accounts: self.accounts.known(), times: None }
    }

    /// Follows changes, until `stop`. Cost: linear in the objects after a change of objects, proxies, workloads or tokens, every
    /// 5 s at most.
    pub async fn follow(&self, desired: watch::Receiver<Arc<Desired>>, stop: CancellationToken) {
        let mut last = None;
        loop {
            let now = desired.borrow().clone();
            let view = self.view(&now);
            if last.as_ref().is_none_or(|last: &StatusView| !view.is_like(last)) {
                for (at, object) in now.objects.values().enumerate() {
                    if at % TOGETHER == TOGETHER - 1 {
                        tokio::task::yield_now().await;
                    }
                    view.status(object);
                }
                self.times.lock().keep(&now);
                last = Some(view);
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    fn index(&self, desired: &Desired) -> Arc<Objects> {
        Arc::new(Objects::new(&desired.objects, self.trust_domain.clone(), desired.revision))
    }

    fn workloads(&self, compiled: &mut Compiled) -> Arc<Workloads> {
        let registered = Arc::clone(&self.registered.borrow());
        compiled.workloads.advance(registered);
        Arc::clone(compiled.workloads.index())
    }
}

impl StatusView {
    /// An object with its status.
    pub fn with_status(&self, object: &Object) -> Object {
        let mut status = self.status(object);
        if let Object::Service(service) = object {
            status.endpoints = Some(self.world.endpoint_count(service));
        }
        let mut object = object.clone();
        *object.status_mut() = Some(status);
        object
    }

    /// Whether it was made of the same snapshots as another one.
    fn is_like(&self, other: &Self) -> bool {
        self.world.revision() == other.world.revision()
            && Arc::ptr_eq(self.world.registered(), other.world.registered())
            && Arc::ptr_eq(&self.accounts, &other.accounts)
            && self.proxies == other.proxies
    }

    fn status(&self, object: &Object) -> Status {
        let mut status = self.world.status(&object.key()).unwrap_or_default();
        let generation = object.metadata().generation;
        status.conditions.extend(self.accounts_known(object));
        if !status.conditions.iter().any(|condition| condition.kind == "Accepted") && status.parents.is_empty() {
            status.conditions.push(condition("Accepted", ConditionStatus::True, "Accepted", String::new(), generation));
        }
        status.conditions.push(self.programmed(object, &resources_of(object)));
        if let Object::Gateway(gateway) = object {
            let name = gateway_listener(&gateway.metadata.namespace, &gateway.metadata.name);
            let serving = self.proxies.gateways.get(name.as_str()).into_iter().flatten();
            let addresses: BTreeSet<IpAddr> = serving.filter_map(|proxy| proxy.address).collect();
            status.addresses = addresses.into_iter().take(MAX_ADDRESSES).map(address).collect();
            for (listener, told) in gateway.spec.listeners.iter().zip(&mut status.listeners) {
                told.conditions.push(self.listener_programmed(object, &name, listener, told));
            }
        }
        if let Some(times) = &self.times {
            times.lock().note(object, &mut status, Timestamp::now());
        }
        status
    }

    /// Faults of an object that are no reason to reject it.
    pub fn warnings(&self, object: &Object) -> Vec<String> {
        let bad = |condition: &Condition| match condition.kind.as_str() {
            "Conflicted" | "Shadowed" => condition.status == ConditionStatus::True,
            _ => condition.status == ConditionStatus::False,
        };
        let conditions = self.world.conditions(&object.key()).into_iter().chain(self.accounts_known(object));
        let mut texts: Vec<String> =
            conditions.filter(bad).map(|it| format!("{}: {}", it.reason, it.message)).collect();
        texts.dedup();
        texts
    }

    /// Whether somebody has each account that an object names; `None` if it names none.
    fn accounts_known(&self, object: &Object) -> Option<Condition> {
        let named = self.world.named_accounts(object);
        if named.is_empty() {
            return None;
        }
        let domain = self.world.objects().trust_domain().as_str();
        let own = (OWN_NAMESPACE.to_owned(), OWN_SERVICE_ACCOUNT.to_owned());
        let is_issued =
            |named: &Named| match named.account() {
                Some(account) => account == own || self.accounts.contains(&account),
                None => self.accounts.iter().chain([&own]).any(|(namespace, account)| {
                    named.includes(&format!("spiffe://{domain}/ns/{namespace}/sa/{account}"))
                }),
            };
        let unknown = named.iter().filter(|named| !self.world.has_account(named) && !is_issued(named));
        let mut texts: Vec<&str> = unknown.map(|named| named.text.as_str()).collect();
        let generation = object.metadata().generation;
        if texts.is_empty() {
            let (reason, message) = ("AccountsKnown", String::new());
            return Some(condition("AccountsKnown", ConditionStatus::True, reason, message, generation));
        }
        let more = texts.len().saturating_sub(3);
        texts.truncate(3);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let message = format!("no workload and no join token is of {}{more}", texts.join(", "));
        Some(condition("AccountsKnown", ConditionStatus::False, "UnknownAccount", message, generation))
    }

    /// Whether a listener of a Gateway is in force at every proxy that serves the Gateway.
    fn listener_programmed(
        &self,
        object: &Object,
        name: &str,
        listener: &Listener,
        told: &ListenerStatus,
    ) -> Condition {
        let is_served = told.conditions.iter().all(|condition| match condition.kind.as_str() {
            "Conflicted" => condition.status == ConditionStatus::False,
            _ => condition.status == ConditionStatus::True,
        });
        if !is_served {
            let (generation, message) = (object.metadata().generation, "it is not served, see its other conditions");
            return condition("Programmed", ConditionStatus::False, "Invalid", message.to_owned(), generation);
        }
        let own = [name.to_owned(), format!("{name}:{}", listener.port)].map(NamePattern::Exact);
        self.programmed(object, &own)
    }

    /// Whether every proxy that these resources of an object are for has applied it: those that serve its Gateways, or all.
    fn programmed(&self, object: &Object, resources: &[NamePattern]) -> Condition {
        let metadata = object.metadata();
        let revision: u64 = metadata.resource_version.as_deref().and_then(|text| text.parse().ok()).unwrap_or(0);
        let generation = metadata.generation;
        let tell = |status, reason, message| condition("Programmed", status, reason, message, generation);
        let told = |it: &Refusal| format!("{} refuses {}: {}", it.proxy, it.resource, it.message);
        let concerns = |refusal: &&Refusal| self.concerns(refusal, object, resources, revision);
        let mut refusals: Vec<String> = self.proxies.refusals.iter().filter(concerns).map(told).collect();
        if !refusals.is_empty() {
            let more = refusals.len().saturating_sub(3);
            refusals.truncate(3);
            let more = if more > 0 { format!("; and {more} more") } else { String::new() };
            return tell(ConditionStatus::False, "Refused", format!("{}{more}", refusals.join("; ")));
        }
        let (all, behind) = match gateways_of(object) {
            Some(gateways) => {
                let serving = gateways.iter().filter_map(|name| self.proxies.gateways.get(name.as_str())).flatten();
                let applied: Vec<u64> = serving.map(|proxy| proxy.applied).collect();
                if applied.is_empty() {
                    let message =
                        "no proxy serves this Gateway: start one in its namespace with mode gateway and its name";
                    return tell(ConditionStatus::False, "NoProxy", message.to_owned());
                }
                (applied.len(), applied.iter().filter(|applied| **applied < revision).count())
            }
            None => (self.proxies.applied.len(), self.proxies.applied.partition_point(|applied| *applied < revision)),
        };
        match (all, behind) {
            (0, _) => tell(ConditionStatus::Unknown, "NoProxy", "no proxy is connected".to_owned()),
            (_, 0) => tell(ConditionStatus::True, "Programmed", String::new()),
            _ => tell(
                ConditionStatus::Unknown,
                "Pending",
                format!("{behind} of {all} proxies do not run revision {revision} yet"),
            ),
        }
    }

    /// Whether a refusal is about these resources of an object.
    fn concerns(&self, refusal: &Refusal, object: &Object, resources: &[NamePattern], revision: u64) -> bool {
        let is_one = |name: &str| resources.iter().any(|pattern| pattern.covers(name));
        let covered = if refusal.resource == REVISION_NAME {
            // A revision is refused for the resources that the text names, or, without any, as a whole.
            let mut named = named_in(&refusal.message).peekable();
            let edge = refusal.requester.as_ref().is_some_and(|requester| requester.mode == ProxyMode::Gateway);
            let has = edge || gateways_of(object).is_none();
            refusal.applied < revision && if named.peek().is_none() { has } else { named.any(is_one) }
        } else {
            is_one(&refusal.resource)
        };
        covered
            && match (object, &refusal.requester) {
                (Object::AuthorizationPolicy(policy), Some(requester)) => self.world.policy_concerns(policy, requester),
                _ => true,
            }
    }
}

/// The listeners of the Gateways without whose proxies an object has no effect; `None` for an object that every proxy may need.
fn gateways_of(object: &Object) -> Option<Vec<String>> {
    match object {
        Object::Gateway(gateway) => Some(vec![gateway_listener(&gateway.metadata.namespace, &gateway.metadata.name)]),
        Object::HttpRoute(route) => {
            let parents = route.spec.parent_refs.iter();
            let gateways = parents.map(|parent| match parent.target() {
                Some(RefKind::Gateway) => {
                    Some(gateway_listener(parent.namespace(&route.metadata.namespace), &parent.name))
                }
                Some(RefKind::Service) | None => None,
            });
            gateways.collect::<Option<Vec<_>>>().filter(|gateways| !gateways.is_empty())
        }
        Object::MeshConfig(_)
        | Object::Service(_)
        | Object::Workload(_)
        | Object::TrafficPolicy(_)
        | Object::AuthorizationPolicy(_) => None,
    }
}

fn gateway_listener(namespace: &str, name: &str) -> String {
    ListenerName::Gateway { namespace: namespace.to_owned(), name: name.to_owned() }.to_string()
}

fn address(address: IpAddr) -> Address {
    Address { kind: Some("IPAddress".to_owned()), value: Some(address.to_string()) }
}

impl Proxies {
    fn new(proxies: Vec<ProxyStatus>) -> Self {
        let mut summary = Self::default();
        for ProxyStatus { key, discovery, agent, .. } in proxies {
            let Some(discovery) = discovery else { continue };
            let applied = discovery.applied_revision.unwrap_or(0);
            if discovery.sent_revision.is_some() {
                summary.applied.push(applied);
            }
            let address = agent.and_then(|agent| agent.address);
            for gateway in discovery.gateways {
                summary.gateways.entry(gateway).or_default().push(GatewayProxy { applied, address });
            }
            let requester = discovery.requester;
            summary.refusals.extend(discovery.nacks.into_iter().map(|(resource, nack)| Refusal {
                proxy: Arc::clone(&key.name),
                applied,
                requester: requester.clone(),
                resource,
                message: nack.message,
            }));
        }
        summary.applied.sort_unstable();
        summary
    }
}

fn condition(kind: &str, status: ConditionStatus, reason: &str, message: String, generation: Option<u64>) -> Condition {
    Condition {
        kind: kind.to_owned(),
        status,
        reason: reason.to_owned(),
        message,
        observed_generation: generation,
        last_transition_time: None,
    }
}

#[cfg(test)]
mod tests;
