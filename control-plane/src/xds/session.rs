//! One stream: what its client asked for, what it holds, and what it is owed.
//! Shape: requests in; [`Session::collect`] decides the messages out; no task, no socket. Calls on one [`Cache`] lock.
//! Spec: xDS transport protocol, incremental; the numbered rules are those of the head of `xds.rs`.
//! Invariant: `Name::sent` is what the client holds once it has read everything up to the last message.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use weft_core::{
    api::{Kind as ObjectKind, ObjectKey, gateway::GATEWAY_ACCOUNT, proxy_config::ProxyMode},
    compile::World,
    identity::Identity,
    names::{ListenerName, RouteName},
    wire::{REVISION_NAME, revision_hash},
};
use weft_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};

use super::{
    Limits,
    cache::{Cache, Key, Slot},
    client::{Client, ClientError},
    content::{self, Absence, Answer, Class, Kind, revision_type},
    messages::{Messages, Outgoing},
};

/// Messages whose answer has not come; the oldest is forgotten beyond it.
const MAX_IN_FLIGHT: usize = 1024;
/// Longest name that is remembered, in bytes; a longer one cannot exist.
const MAX_NAME: usize = 1024;

/// The state of one stream.
#[derive(Debug)]
pub(super) struct Session {
    peer: Identity,
    limits: Limits,
    client: Option<Client>,
    lists: BTreeMap<Kind, List>,
    barrier: Option<Barrier>,
    /// What only this proxy gets: its `inbound` resources, with the generation and the client they were compiled for.
    own: BTreeMap<(Kind, Arc<str>), Arc<Answer>>,
    own_compiled: u64,
    nonce: u64,
    in_flight: VecDeque<InFlight>,
    refused: Vec<(String, Vec<String>)>,
    cursor: u64,
    dirty: bool,
}

/// What a client asked for of one kind.
#[derive(Debug, Default)]
struct List {
    started: bool,
    wildcard: bool,
    /// The generation of desired state that the wildcard was expanded from; 0: not yet.
    expanded: u64,
    /// Something has to be answered even if it is empty.
    owed: bool,
    names: BTreeMap<Arc<str>, Name>,
}

#[derive(Debug, Default)]
struct Name {
    /// Asked for by name.
    explicit: bool,
    /// Asked for by `*`.
    wildcard: bool,
    /// Needed by another resource that this client holds.
    implied: bool,
    /// To be sent whatever the client holds.
    owed: bool,
    /// The client says it holds this from an earlier stream, and nothing has asked for it on this one.
    carried_over: bool,
    sent: Sent,
    slot: Option<Arc<Slot>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Sent {
    #[default]
    Never,
    Absent,
    Version(Arc<str>),
}

/// The client takes the revision barrier.
#[derive(Debug, Default)]
struct Barrier {
    sent: Option<(u64, [u8; 32])>,
    owed: bool,
}

#[derive(Debug)]
struct InFlight {
    nonce: u64,
    type_url: &'static str,
    names: Vec<Arc<str>>,
    revision: Option<(u64, [u8; 32])>,
}

/// What a client said about a message it got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Report {
    /// It applied the revision: number and hash.
    Applied(u64, [u8; 32]),
    /// It took these resources.
    Accepted { type_url: &'static str, names: Vec<Arc<str>> },
    /// It refused a message: the resources that were in it, and its reason.
    Refused { type_url: &'static str, names: Vec<Arc<str>>, reason: String },
}

/// Why a stream is ended.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SessionError {
    #[error("the first request has no node")]
    NoNode,
    #[error("node.metadata: {0}")]
    Client(#[source] ClientError),
    #[error("more than {0} names are subscribed to on one stream")]
    TooManyNames(usize),
}

impl Session {
    pub(super) fn new(peer: Identity, limits: Limits) -> Self {
        Self {
            peer,
            limits,
            client: None,
            lists: Kind::ALL.into_iter().map(|kind| (kind, List::default())).collect(),
            barrier: None,
            own: BTreeMap::new(),
            own_compiled: 0,
            nonce: 0,
            in_flight: VecDeque::new(),
            refused: Vec::new(),
            cursor: 0,
            dirty: false,
        }
    }

    /// Who the client is, once its first request came.
    pub(super) fn client(&self) -> Option<&Client> {
        self.client.as_ref()
    }

    /// Who the client is by its certificate.
    pub(super) fn peer(&self) -> &Identity {
        &self.peer
    }

    /// How many names it is subscribed to or needs.
    pub(super) fn names(&self) -> usize {
        self.lists.values().map(|list| list.names.len()).sum()
    }

    /// How many names the client itself has brought up.
    fn asked(&self) -> usize {
        let names = self.lists.values().flat_map(|list| list.names.values());
        names.filter(|entry| entry.explicit || entry.carried_over).count()
    }

    /// The number of the last barrier that was sent.
    pub(super) fn revision(&self) -> Option<u64> {
        self.barrier.as_ref()?.sent.map(|(number, _)| number)
    }

    /// Takes one request in. Nothing is sent before [`Session::collect`].
    pub(super) fn request(&mut self, request: DeltaDiscoveryRequest) -> Result<Option<Report>, SessionError> {
        if self.client.is_none() {
            let node = request.node.as_ref().ok_or(SessionError::NoNode)?;
            self.client = Some(Client::new(node, &self.peer).map_err(SessionError::Client)?);
        }
        let report = self.report(&request);
        self.dirty = true;
        if request.type_url == revision_type() {
            self.request_barrier(&request);
        } else if let Some(kind) = Kind::parse(&request.type_url) {
            self.request_list(kind, request);
            if self.asked() > self.limits.names {
                return Err(SessionError::TooManyNames(self.limits.names));
            }
        } else if !request.resource_names_subscribe.is_empty() {
            let type_url: String = request.type_url.chars().take(MAX_NAME).collect();
            self.refused.push((type_url, request.resource_names_subscribe));
        }
        Ok(report)
    }

    fn report(&mut self, request: &DeltaDiscoveryRequest) -> Option<Report> {
        let nonce: u64 = request.response_nonce.parse().ok()?;
        let at = self.in_flight.iter().position(|sent| sent.nonce == nonce)?;
        let InFlight { type_url, names, revision, .. } = self.in_flight.remove(at)?;
        Some(match (&request.error_detail, revision) {
            (Some(error), _) => {
                let reason: String = error.message.chars().take(2000).collect();
                let named: Vec<Arc<str>> =
                    names.iter().filter(|name| reason.contains(name.as_ref())).cloned().collect();
                Report::Refused { type_url, names: if named.is_empty() { names } else { named }, reason }
            }
            (None, Some((number, hash))) => Report::Applied(number, hash),
            (None, None) => Report::Accepted { type_url, names },
        })
    }

    fn request_barrier(&mut self, request: &DeltaDiscoveryRequest) {
        let asks = |names: &[String]| names.iter().any(|name| name == REVISION_NAME || name == "*");
        if asks(&request.resource_names_subscribe) {
            self.barrier.get_or_insert_default().owed = true;
        }
        if asks(&request.resource_names_unsubscribe) {
            self.barrier = None;
        }
    }

    fn request_list(&mut self, kind: Kind, request: DeltaDiscoveryRequest) {
        let weft = self.client.as_ref().is_some_and(|client| client.class == Class::Weft);
        let Some(list) = self.lists.get_mut(&kind) else { return };
        let first = !std::mem::replace(&mut list.started, true);
        let legacy = first && !weft && request.resource_names_subscribe.is_empty() && kind.has_legacy_wildcard();
        if first {
            for (name, version) in request.initial_resource_versions {
                if name.len() <= MAX_NAME {
                    let entry = list.names.entry(name.into()).or_default();
                    entry.sent = Sent::Version(version.into());
                    entry.carried_over = true;
                }
            }
        }
        if legacy {
            list.subscribe_all();
        }
        for name in request.resource_names_subscribe {
            if name == "*" {
                list.subscribe_all();
            } else if name.len() > MAX_NAME {
                self.refused.push((kind.type_url().into(), vec![name.chars().take(200).collect()]));
            } else {
                let entry = list.names.entry(name.into()).or_default();
                // Rule 3: asking again is answered again; what the client said it holds is sent only if it differs.
                entry.owed = !entry.carried_over;
                entry.explicit = true;
            }
        }
        for name in request.resource_names_unsubscribe {
            if name == "*" {
                list.wildcard = false;
                list.names.values_mut().for_each(|entry| entry.wildcard = false);
                list.names.retain(|_, entry| entry.explicit || entry.implied);
            } else if let Some(entry) = list.names.get_mut(name.as_str()) {
                if !entry.explicit {
                    continue;
                }
                entry.explicit = false;
                if entry.wildcard || entry.implied {
                    entry.owed = true;
                } else {
                    list.names.remove(name.as_str());
                }
            }
        }
    }

    /// Whether there can be something to send: a request came, or the cache changed something that this client holds.
    pub(super) fn concerned(&mut self, cache: &Cache) -> bool {
        if self.client.is_none() {
            return false;
        }
        if self.dirty {
            return true;
        }
        if self.cursor < cache.objects_changed()
            && (self.barrier.is_some() || self.holds_own() || self.lists.values().any(|list| list.wildcard))
        {
            return true;
        }
        let concerned = cache.changed_since(self.cursor).is_none_or(|mut keys| {
            keys.any(|key| {
                self.client.as_ref().is_some_and(|client| client.class == key.class)
                    && self.lists.get(&key.kind).is_some_and(|list| list.names.contains_key(&key.name))
            })
        });
        if !concerned {
            self.cursor = cache.generation();
        }
        concerned
    }

    fn holds_own(&self) -> bool {
        self.lists.iter().any(|(kind, list)| list.names.keys().any(|name| is_own(*kind, name)))
    }

    /// The messages that bring the client to the cache's state, in the order in which they have to be sent.
    /// Cost: linear in the names that this client holds.
    pub(super) fn collect(&mut self, cache: &mut Cache) -> Vec<Outgoing> {
        let Some(client) = self.client.clone() else { return Vec::new() };
        if self.own_compiled < cache.objects_changed() {
            self.own.clear();
            self.own_compiled = cache.generation();
        }
        self.cursor = cache.generation();
        self.dirty = false;
        self.expand_wildcards(&client, cache);
        if self.barrier.is_some() {
            self.imply(&client, cache);
        }
        // Until a Weft proxy asked for the barrier it may still be telling what it holds of its dependency trees.
        let keep_carried_over = client.class == Class::Weft && self.barrier.is_none();
        let mut messages = Messages::default();
        for (type_url, names) in std::mem::take(&mut self.refused) {
            messages.refuse(type_url, names);
        }
        for kind in Kind::ALL {
            self.collect_kind(kind, &client, cache, keep_carried_over, &mut messages);
        }
        if let Some(barrier) = &mut self.barrier {
            // Also when the hash is that of the last one: let go and asked for again within one batch.
            barrier.owed |= messages.are_staged();
        }
        let mut out: Vec<Outgoing> = Vec::new();
        for (type_url, names, mut outgoing) in messages.build() {
            outgoing.message.nonce = self.sent(type_url, names, None);
            out.push(outgoing);
        }
        out.extend(self.barrier_message(cache).map(Outgoing::from));
        out
    }

    fn expand_wildcards(&mut self, client: &Client, cache: &Cache) {
        for (kind, list) in &mut self.lists {
            if !list.wildcard || list.expanded >= cache.objects_changed() {
                continue;
            }
            list.expanded = cache.objects_changed();
            list.names.values_mut().for_each(|entry| entry.wildcard = false);
            for name in kind.all_names(cache.world(), client.class) {
                list.names.entry(name).or_default().wildcard = true;
            }
        }
    }

    /// Marks what the client needs for what it asked for: listener -> routes -> clusters -> endpoints (rule 7).
    fn imply(&mut self, client: &Client, cache: &mut Cache) {
        for list in self.lists.values_mut() {
            list.names.values_mut().for_each(|entry| entry.implied = false);
        }
        for kind in Kind::BY_DEPENDENCY {
            let names: Vec<Arc<str>> = self.lists.get(&kind).map(List::wanted).unwrap_or_default();
            for name in names {
                let answer = self.answer(kind, &name, client, cache);
                let Answer::Found(content) = &*answer else { continue };
                for (kind, needed) in &content.needs {
                    if let Some(list) = self.lists.get_mut(kind) {
                        list.names.entry(Arc::clone(needed)).or_default().implied = true;
                    }
                }
            }
        }
    }

    fn collect_kind(
        &mut self,
        kind: Kind,
        client: &Client,
        cache: &mut Cache,
        keep_carried_over: bool,
        messages: &mut Messages,
    ) {
        let Some(list) = self.lists.get_mut(&kind) else { return };
        let mut names = std::mem::take(&mut list.names);
        let list_owed = std::mem::take(&mut list.owed);
        names.retain(|name, entry| {
            if !entry.is_wanted() {
                let keep = keep_carried_over && entry.carried_over;
                if !keep && matches!(entry.sent, Sent::Version(_)) {
                    messages.remove(kind, Arc::clone(name), None);
                }
                return keep;
            }
            entry.carried_over = false;
            let answer = self.own_answer(kind, name, client, cache).unwrap_or_else(|| {
                let key = || Key { kind, name: Arc::clone(name), class: client.class };
                entry.slot.get_or_insert_with(|| cache.slot(key())).answer()
            });
            let owed = std::mem::take(&mut entry.owed);
            match &*answer {
                Answer::Found(content) => {
                    if owed || entry.sent != Sent::Version(Arc::clone(&content.version)) {
                        entry.sent = Sent::Version(Arc::clone(&content.version));
                        messages.add(kind, Arc::clone(content));
                    }
                }
                Answer::Absent(absence) => {
                    if owed || entry.sent != Sent::Absent {
                        entry.sent = Sent::Absent;
                        if absence.is_denied() {
                            let reason = &absence.message;
                            tracing::warn!(peer = %self.peer, %name, reason, "a proxy asks for what it may not have");
                        }
                        // A name that only `*` asks for has simply gone, which is no error.
                        let reason = (entry.explicit || entry.implied).then(|| absence.clone());
                        messages.remove(kind, Arc::clone(name), reason);
                    }
                }
            }
            true
        });
        if list_owed {
            messages.answer(kind);
        }
        if let Some(list) = self.lists.get_mut(&kind) {
            list.names = names;
        }
    }

    fn answer(&mut self, kind: Kind, name: &Arc<str>, client: &Client, cache: &mut Cache) -> Arc<Answer> {
        if let Some(own) = self.own_answer(kind, name, client, cache) {
            return own;
        }
        let key = Key { kind, name: Arc::clone(name), class: client.class };
        match self.lists.get_mut(&kind).and_then(|list| list.names.get_mut(name)) {
            Some(entry) => entry.slot.get_or_insert_with(|| cache.slot(key)).answer(),
            None => cache.slot(key).answer(),
        }
    }

    /// What is not shared: resources rendered for who asks, and refusals.
    fn own_answer(&mut self, kind: Kind, name: &Arc<str>, client: &Client, cache: &Cache) -> Option<Arc<Answer>> {
        if let Some(absence) = forbidden(kind, name, client, cache.world()) {
            return Some(Arc::new(Answer::Absent(absence)));
        }
        if !is_own(kind, name) {
            return None;
        }
        let answer = self
            .own
            .entry((kind, Arc::clone(name)))
            .or_insert_with(|| Arc::new(Answer::compile_for(cache.world(), &client.who, client.class, kind, name)));
        Some(Arc::clone(answer))
    }

    fn barrier_message(&mut self, cache: &Cache) -> Option<DeltaDiscoveryResponse> {
        self.barrier.as_ref()?;
        let number = cache.world().revision();
        let hash = self.hash();
        let barrier = self.barrier.as_mut()?;
        if !std::mem::take(&mut barrier.owed) && barrier.sent == Some((number, hash)) {
            return None;
        }
        barrier.sent = Some((number, hash));
        let nonce = self.sent(revision_type(), vec![REVISION_NAME.into()], Some((number, hash)));
        Some(DeltaDiscoveryResponse {
            type_url: revision_type().into(),
            resources: vec![content::revision(number, hash).to_resource()],
            nonce,
            ..DeltaDiscoveryResponse::default()
        })
    }

    /// SHA-256 over everything the client holds, endpoint sets and the barrier left out (rule 8).
    pub(super) fn hash(&self) -> [u8; 32] {
        let mut held = Vec::new();
        for (kind, list) in &self.lists {
            for (name, entry) in &list.names {
                if let Sent::Version(version) = &entry.sent {
                    held.push((kind.resource_type(), name.as_ref(), version.as_ref()));
                }
            }
        }
        revision_hash(held)
    }

    fn sent(&mut self, type_url: &'static str, names: Vec<Arc<str>>, revision: Option<(u64, [u8; 32])>) -> String {
        self.nonce += 1;
        self.in_flight.push_back(InFlight { nonce: self.nonce, type_url, names, revision });
        if self.in_flight.len() > MAX_IN_FLIGHT {
            self.in_flight.pop_front();
        }
        self.nonce.to_string()
    }
}

impl List {
    fn subscribe_all(&mut self) {
        self.wildcard = true;
        self.expanded = 0;
        self.owed = true;
    }

    fn wanted(&self) -> Vec<Arc<str>> {
        self.names.iter().filter(|(_, entry)| entry.is_wanted()).map(|(name, _)| Arc::clone(name)).collect()
    }
}

impl Name {
    fn is_wanted(&self) -> bool {
        self.explicit || self.wildcard || self.implied
    }
}

/// Whether a resource is rendered for who asks.
fn is_own(kind: Kind, name: &str) -> bool {
    match kind {
        Kind::Listener => name == "inbound",
        Kind::Routes => name == "inbound" || name.starts_with("inbound:"),
        Kind::Cluster | Kind::Endpoints => false,
    }
}

/// Why this client may not have this resource: a gateway's belong to proxies at the edge, of the gateway's namespace, and of
/// its service account where the Gateway names one.
fn forbidden(kind: Kind, name: &str, client: &Client, world: &World) -> Option<Absence> {
    let (namespace, gateway) = match kind {
        Kind::Listener => match ListenerName::parse(name) {
            Ok(ListenerName::Gateway { namespace, name }) => (namespace, name),
            Ok(ListenerName::Inbound | ListenerName::OutboundDefault | ListenerName::Outbound(_)) | Err(_) => {
                return None;
            }
        },
        Kind::Routes => match RouteName::parse(name) {
            Ok(RouteName::Gateway { namespace, name, .. }) => (namespace, name),
            Ok(RouteName::Service(_) | RouteName::Direct(_) | RouteName::Inbound(_)) | Err(_) => return None,
        },
        Kind::Cluster | Kind::Endpoints => return None,
    };
    if namespace != client.who.namespace {
        return Some(Absence::denied(
            &format!("proxies of namespace {namespace}"),
            &format!("one of {}", client.who.namespace),
        ));
    }
    if client.who.mode != ProxyMode::Gateway {
        return Some(Absence::denied("proxies with `mode: gateway`", "a sidecar"));
    }
    let object = world.objects().find(&ObjectKey::new(ObjectKind::Gateway, &namespace, &gateway))?;
    let account = object.metadata().annotations.get(GATEWAY_ACCOUNT)?;
    let denied = || {
        let who = format!("one of {}", client.who.service_account);
        Absence::denied(&format!("proxies of service account {account}"), &who)
    };
    (*account != client.who.service_account).then(denied)
}
