//! The resources that the control plane has sent, each with the version sent last and the last good value.
//! Pure: responses in, changes out; [`Held::resources`] makes the configuration of them.
//! Invariants: a bad resource is rejected alone, and its last good value stays; a listener whose tree is incomplete stays as
//! it was in force before; the hash covers the versions sent, rejected ones too.

use std::collections::{BTreeMap, BTreeSet};

use weft_core::{
    cluster::Cluster,
    endpoint::EndpointSet,
    listener::Listener,
    names::{ClusterName, ListenerName, RouteName},
    route::RouteTable,
    snapshot::{IncompleteError, Resources},
    wire::{self, Parsed, ResourceType, Revision},
};
use weft_proto::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource as Sent};

/// Most resources held; more end the stream.
const MAX_HELD: usize = 100_000;
/// Longest NACK, in bytes.
const MAX_NACK: usize = 8 * 1024;

/// The resources sent and not removed.
#[derive(Debug, Default)]
pub(super) struct Held {
    entries: BTreeMap<(ResourceType, String), Resource>,
    /// Grows with each change of the resources that [`Held::resources`] is made of.
    changes: u64,
}

/// One resource, by the versions of it.
#[derive(Debug, Default)]
struct Resource {
    /// The version sent last: the one that the server counts as held.
    sent: String,
    /// The last good version and its value.
    good: Option<(String, Parsed)>,
    /// Why `sent` was rejected.
    refused: Option<String>,
}

/// The changes that one response brought.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// Why resources were rejected; each text names its resource.
    pub(super) refused: Vec<String>,
    /// Endpoint sets, which apply at once.
    pub(super) endpoints: Vec<EndpointSet>,
    /// Listeners that do not exist, or no longer.
    pub(super) absent: Vec<ListenerName>,
    /// The barrier.
    pub(super) revision: Option<Revision>,
    /// The server answers that it has no barrier.
    pub(super) no_revision: bool,
}

/// The control plane sent more resources than a proxy holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the control plane sent more than {MAX_HELD} resources")]
pub(crate) struct TooManyError;

impl Held {
    /// Stages a response. A good resource is kept even if others are bad (gRFC A46). `trust_domain`: that of this proxy, to which
    /// policies are confined.
    pub(super) fn take(
        &mut self,
        kind: ResourceType,
        response: DeltaDiscoveryResponse,
        trust_domain: Option<&str>,
    ) -> Result<Taken, TooManyError> {
        let mut taken = Taken::default();
        if !matches!(kind, ResourceType::Endpoints | ResourceType::Revision) {
            self.changes += 1;
        }
        for resource in response.resources {
            self.add(kind, resource, trust_domain, &mut taken);
        }
        for name in response.removed_resources {
            if kind == ResourceType::Revision {
                taken.no_revision = true;
            }
            self.entries.remove(&(kind, name.clone()));
            // A removed endpoint set belongs to a cluster that goes with the next barrier: until then it stays in force.
            if kind == ResourceType::Listener {
                taken.absent.extend(ListenerName::parse(&name));
            }
        }
        if self.entries.len() > MAX_HELD { Err(TooManyError) } else { Ok(taken) }
    }

    fn add(&mut self, kind: ResourceType, sent: Sent, trust_domain: Option<&str>, taken: &mut Taken) {
        let Sent { version, resource: value, name, .. } = sent;
        // Without a value it renews the time to live of a resource, which the proxy does not use.
        let Some(any) = value else { return };
        let parsed = wire::parse(kind, &name, &any).map(|parsed| match trust_domain {
            Some(domain) => parsed.confined(domain),
            None => parsed,
        });
        if let (ResourceType::Revision, Ok(Parsed::Revision(revision))) = (kind, &parsed) {
            taken.revision = Some(*revision);
            return;
        }
        let entry = self.entries.entry((kind, name)).or_default();
        entry.sent.clone_from(&version);
        match parsed {
            Ok(value) => {
                if let Parsed::Endpoints(set) = &value {
                    taken.endpoints.push(set.clone());
                }
                entry.good = Some((version, value));
                entry.refused = None;
            }
            Err(error) => {
                let text = error.to_string();
                taken.refused.push(text.clone());
                entry.refused = Some(text);
            }
        }
    }

    /// Forgets a resource that we unsubscribed from. Returns whether it was there.
    pub(super) fn forget(&mut self, kind: ResourceType, name: &str) -> bool {
        self.changes += 1;
        self.entries.remove(&(kind, name.to_owned())).is_some()
    }

    /// Goes back to the last good versions, for a new stream; a resource that never was good is forgotten.
    pub(super) fn rewind(&mut self) {
        self.changes += 1;
        self.entries.retain(|_, entry| match &entry.good {
            Some((version, _)) => {
                entry.sent.clone_from(version);
                entry.refused = None;
                true
            }
            None => false,
        });
    }

    /// The versions of one kind that a new stream announces as held.
    pub(super) fn versions(&self, kind: ResourceType) -> BTreeMap<String, String> {
        let of_kind = self.entries.iter().filter(|((held, _), _)| *held == kind);
        of_kind.map(|((_, name), entry)| (name.clone(), entry.sent.clone())).collect()
    }

    /// A number that stays the same as long as [`Held::resources`] gives the same for the same question.
    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    /// The hash of the versions that the server counts as held.
    pub(super) fn hash(&self) -> [u8; 32] {
        let entries = self.entries.iter();
        wire::revision_hash(entries.map(|((kind, name), entry)| (*kind, name.as_str(), entry.sent.as_str())))
    }

    /// Why resources that are held are not in force.
    pub(super) fn refused(&self) -> Vec<String> {
        self.entries.values().filter_map(|entry| entry.refused.clone()).collect()
    }

    /// The endpoints of a cluster.
    pub(super) fn endpoints(&self, cluster: &ClusterName) -> Option<&EndpointSet> {
        if let Parsed::Endpoints(set) = self.good(ResourceType::Endpoints, &cluster.to_string())? {
            Some(set)
        } else {
            None
        }
    }

    /// The configuration: the trees of these listeners, with gaps filled from the configuration in force, and what is missing.
    pub(super) fn resources<'a>(
        &self,
        wanted: impl Iterator<Item = &'a ListenerName>,
        absent: &BTreeSet<ListenerName>,
        before: &Resources,
    ) -> (Resources, Vec<IncompleteError>) {
        let mut out = Resources { absent: absent.clone(), ..Resources::default() };
        let mut incomplete = Vec::new();
        for name in wanted.filter(|name| !absent.contains(name)) {
            if let Some(listener) = self.listener(name) {
                match self.add_tree(name, listener, before, &mut out) {
                    Ok(()) => continue,
                    Err(missing) => incomplete.push(missing),
                }
            }
            // The listener in force stays, with the new versions of its route tables, or with those in force where the new ones
            // have gaps.
            let Some(listener) = before.listeners.get(name) else { continue };
            if self.add_tree(name, listener, before, &mut out).is_ok() {
                continue;
            }
            let cluster = |cluster: &ClusterName| self.cluster(cluster).or_else(|| before.clusters.get(cluster));
            if let Err(gap) = out.add(name, listener, |route| before.routes.get(route), cluster) {
                tracing::debug!(%gap, "a listener in force has become incomplete");
            }
        }
        (out, incomplete)
    }

    /// Every name that these listeners need, for a server that does not send it unasked: as they were sent last, and as they are in
    /// force, which they stay until their new versions are complete.
    pub(super) fn needs<'a>(
        &self,
        wanted: impl Iterator<Item = &'a ListenerName>,
        in_force: &Resources,
    ) -> BTreeSet<(ResourceType, String)> {
        let mut needs = BTreeSet::new();
        let versions = |name| self.listener(name).into_iter().chain(in_force.listeners.get(name));
        for listener in wanted.flat_map(versions) {
            let mut clusters = listener.clusters();
            for route in listener.routes() {
                needs.insert((ResourceType::Route, route.to_string()));
                for table in self.route(route).into_iter().chain(in_force.routes.get(route)) {
                    clusters.extend(table.clusters());
                }
            }
            for cluster in clusters {
                needs.insert((ResourceType::Cluster, cluster.to_string()));
                needs.insert((ResourceType::Endpoints, cluster.to_string()));
            }
        }
        needs
    }

    /// Adds a listener and everything below it to `out`, with the gaps filled from `before`.
    /// Errors: something is missing in both; then nothing is added.
    fn add_tree(
        &self,
        name: &ListenerName,
        listener: &Listener,
        before: &Resources,
        out: &mut Resources,
    ) -> Result<(), IncompleteError> {
        out.add(
            name,
            listener,
            |route| self.route(route).or_else(|| before.routes.get(route)),
            |cluster| self.cluster(cluster).or_else(|| before.clusters.get(cluster)),
        )
    }

    fn good(&self, kind: ResourceType, name: &str) -> Option<&Parsed> {
        let (_, value) = self.entries.get(&(kind, name.to_owned()))?.good.as_ref()?;
        Some(value)
    }

    fn listener(&self, name: &ListenerName) -> Option<&Listener> {
        if let Parsed::Listener(_, listener) = self.good(ResourceType::Listener, &name.to_string())? {
            Some(listener)
        } else {
            None
        }
    }

    fn route(&self, name: &RouteName) -> Option<&RouteTable> {
        if let Parsed::Route(table) = self.good(ResourceType::Route, &name.to_string())? { Some(table) } else { None }
    }

    fn cluster(&self, name: &ClusterName) -> Option<&Cluster> {
        if let Parsed::Cluster(cluster) = self.good(ResourceType::Cluster, &name.to_string())? {
            Some(cluster)
        } else {
            None
        }
    }
}

/// The text of a NACK.
pub(super) fn nack(reasons: &[String]) -> String {
    let mut text = reasons.join("; ");
    if text.len() > MAX_NACK {
        let end = (0..=MAX_NACK).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
        text.truncate(end);
        text.push('…');
    }
    text
}
