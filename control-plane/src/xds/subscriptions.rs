//! What one client asks for and holds, of every type of resource. Pure: no stream, no task, no variant of the protocol.
//! Shape: requests change the subscriptions ([`Subscriptions::request`]); [`Subscriptions::collect`] compares them with the
//! cache and returns the resources that are due.
//! Spec: xDS transport protocol, "How the client specifies what resources to return"; the numbered rules are those of the
//! head of `xds.rs`.
//! Invariant: `Subscription::held` is what the client holds once it has read everything that was ever returned as due.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use weft_core::{identity::Identity, wire::revision_hash};

use super::{
    access::{forbidden, is_own},
    cache::{Cache, Key, Slot},
    client::Client,
    content::{Answer, Class, Kind},
    due::Due,
};

/// Longest name that is kept, in bytes; no resource has a longer one.
pub(super) const MAX_NAME: usize = 1024;

/// The subscriptions of one client.
#[derive(Debug)]
pub(super) struct Subscriptions {
    /// By the client's certificate, for logs.
    peer: Identity,
    client: Client,
    lists: BTreeMap<Kind, TypeSubscriptions>,
    /// Rule 7: everything that a subscribed resource needs is sent too.
    whole_trees: bool,
    /// Resources rendered for this client alone, compiled from the generation `own_compiled`.
    own: BTreeMap<(Kind, Arc<str>), Arc<Answer>>,
    own_compiled: u64,
    /// Names that cannot exist, by type URL.
    invalid: Vec<(String, Vec<String>)>,
    /// The generation of the cache that was last compared.
    cursor: u64,
    /// A request came since the last comparison.
    dirty: bool,
}

/// The subscriptions of one type.
#[derive(Debug, Default)]
struct TypeSubscriptions {
    /// The first request of this type came.
    started: bool,
    wildcard: bool,
    /// The generation of desired state that the wildcard was expanded from; 0: not yet.
    expanded: u64,
    /// The client waits for a response even if nothing is due.
    response_due: bool,
    names: BTreeMap<Arc<str>, Subscription>,
}

#[derive(Debug, Default)]
struct Subscription {
    /// Subscribed to by name.
    explicit: bool,
    /// Subscribed to by `*`.
    wildcard: bool,
    /// Needed by another resource that this client holds.
    implied: bool,
    /// To be sent even if the client holds this version.
    resend: bool,
    /// The client holds this from an earlier stream and has not subscribed to it on this one.
    carried_over: bool,
    held: Held,
    slot: Option<Arc<Slot>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Held {
    #[default]
    Unknown,
    Absent,
    Version(Arc<str>),
}

/// One request for resources of one type.
#[derive(Debug, Default)]
pub(super) struct Request {
    pub(super) subscribe: Vec<String>,
    pub(super) unsubscribe: Vec<String>,
    /// Versions by name that the client holds from an earlier stream; read in the first request of a type only.
    pub(super) held: BTreeMap<String, String>,
}

impl Subscriptions {
    pub(super) fn new(client: Client, peer: Identity) -> Self {
        Self {
            peer,
            client,
            lists: Kind::ALL.into_iter().map(|kind| (kind, TypeSubscriptions::default())).collect(),
            whole_trees: false,
            own: BTreeMap::new(),
            own_compiled: 0,
            invalid: Vec::new(),
            cursor: 0,
            dirty: true,
        }
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// The number of names that the client subscribes to or needs.
    pub(super) fn names(&self) -> usize {
        self.lists.values().map(|list| list.names.len()).sum()
    }

    /// The number of names that the client itself has sent.
    pub(super) fn requested(&self) -> usize {
        let names = self.lists.values().flat_map(|list| list.names.values());
        names.filter(|name| name.explicit || name.carried_over).count()
    }

    /// The listeners of gateways that the client has; only a gateway's proxy subscribes to one.
    pub(super) fn gateways(&self) -> BTreeSet<Arc<str>> {
        let listeners = self.lists.get(&Kind::Listener).into_iter().flat_map(|list| &list.names);
        let held = listeners.filter(|(name, entry)| {
            entry.explicit && matches!(entry.held, Held::Version(_)) && name.starts_with("gateway/")
        });
        held.map(|(name, _)| Arc::clone(name)).collect()
    }

    /// Whether rule 7 holds for this client from now on.
    pub(super) fn send_whole_trees(&mut self, whole_trees: bool) {
        self.whole_trees = whole_trees;
    }

    /// A request came, of whatever type: there may be something due.
    pub(super) fn mark_dirty(&mut self) {
        self.dirty = true;
    }

    /// Subscribes to names of a type that is not served: they are due as invalid.
    pub(super) fn request_unknown(&mut self, type_url: &str, names: Vec<String>) {
        if !names.is_empty() {
            self.invalid.push((type_url.chars().take(MAX_NAME).collect(), names));
        }
    }

    /// Takes one request in. Nothing is due before [`Subscriptions::collect`].
    pub(super) fn request(&mut self, kind: Kind, request: Request) {
        let weft = self.client.class == Class::Weft;
        let Some(list) = self.lists.get_mut(&kind) else { return };
        let first = !std::mem::replace(&mut list.started, true);
        // Rule 4: a Weft proxy that types nothing wants nothing yet; any other client wants everything.
        let legacy = first && !weft && request.subscribe.is_empty() && kind.has_legacy_wildcard();
        if first {
            for (name, version) in request.held {
                if name.len() <= MAX_NAME {
                    let entry = list.names.entry(name.into()).or_default();
                    entry.held = Held::Version(version.into());
                    entry.carried_over = true;
                }
            }
        }
        if legacy {
            list.subscribe_all();
        }
        for name in request.subscribe {
            if name == "*" {
                list.subscribe_all();
            } else if name.len() > MAX_NAME {
                self.invalid.push((kind.type_url().into(), vec![name.chars().take(200).collect()]));
            } else {
                let entry = list.names.entry(name.into()).or_default();
                // Rule 3: a repeated subscription gets a response again, but a version that the client has listed as held is
                // sent only if it differs.
                entry.resend = !entry.carried_over;
                entry.explicit = true;
            }
        }
        for name in request.unsubscribe {
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
                    entry.resend = true;
                } else {
                    list.names.remove(name.as_str());
                }
            }
        }
    }

    /// Whether something can be due: a request came, or the cache changed a resource that this client holds.
    /// Cost: the changes since the last call, without looking at what the client holds.
    pub(super) fn concerned(&mut self, cache: &Cache) -> bool {
        if self.dirty {
            return true;
        }
        if self.cursor < cache.objects_changed()
            && (self.whole_trees || self.holds_own() || self.lists.values().any(|list| list.wildcard))
        {
            return true;
        }
        let concerned = cache.changed_since(self.cursor).is_none_or(|mut keys| {
            keys.any(|key| {
                self.client.class == key.class
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

    /// The resources that are due to the client, as of the cache now.
    /// Cost: linear in the names that this client holds.
    pub(super) fn collect(&mut self, cache: &mut Cache) -> Due {
        let client = self.client.clone();
        if self.own_compiled < cache.objects_changed() {
            self.own.clear();
            self.own_compiled = cache.generation();
        }
        self.cursor = cache.generation();
        self.dirty = false;
        self.expand_wildcards(&client, cache);
        if self.whole_trees {
            self.imply(&client, cache);
        }
        // Before a Weft proxy subscribes to the barrier, its requests may still be listing the dependency trees that it holds.
        let keep_carried_over = client.class == Class::Weft && !self.whole_trees;
        let mut due = Due::default();
        for (type_url, names) in std::mem::take(&mut self.invalid) {
            due.invalid(type_url, names);
        }
        for kind in Kind::ALL {
            self.collect_kind(kind, &client, cache, keep_carried_over, &mut due);
        }
        due
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

    /// Marks the names that a subscribed resource needs: listener -> routes -> clusters -> endpoints (rule 7).
    fn imply(&mut self, client: &Client, cache: &mut Cache) {
        for list in self.lists.values_mut() {
            list.names.values_mut().for_each(|entry| entry.implied = false);
        }
        for kind in Kind::BY_DEPENDENCY {
            let names: Vec<Arc<str>> = self.lists.get(&kind).map(TypeSubscriptions::wanted).unwrap_or_default();
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

    /// Compares one type: what each wanted name is now with what the client holds under it.
    fn collect_kind(&mut self, kind: Kind, client: &Client, cache: &mut Cache, keep_carried_over: bool, due: &mut Due) {
        let Some(list) = self.lists.get_mut(&kind) else { return };
        let mut names = std::mem::take(&mut list.names);
        let response_due = std::mem::take(&mut list.response_due);
        names.retain(|name, entry| {
            if !entry.is_wanted() {
                // Only a name from an earlier stream, or one that was implied or covered by `*`, gets here: an explicit one
                // leaves with its unsubscription, and the client expects no removal for that.
                let keep = keep_carried_over && entry.carried_over;
                if !keep && matches!(entry.held, Held::Version(_)) {
                    due.remove(kind, Arc::clone(name), None);
                }
                return keep;
            }
            entry.carried_over = false;
            let answer = self.own_answer(kind, name, client, cache).unwrap_or_else(|| {
                let key = || Key { kind, name: Arc::clone(name), class: client.class };
                entry.slot.get_or_insert_with(|| cache.slot(key())).answer()
            });
            let resend = std::mem::take(&mut entry.resend);
            match &*answer {
                Answer::Found(content) => {
                    if resend || entry.held != Held::Version(Arc::clone(&content.version)) {
                        entry.held = Held::Version(Arc::clone(&content.version));
                        due.add(kind, Arc::clone(content));
                    }
                }
                Answer::Absent(absence) => {
                    if resend || entry.held != Held::Absent {
                        entry.held = Held::Absent;
                        if absence.is_denied() {
                            let reason = &absence.message;
                            tracing::warn!(peer = %self.peer, %name, reason, "a proxy subscribed to a resource that it may not have");
                        }
                        // A name that only `*` covers was deleted, which is no error.
                        let reason = (entry.explicit || entry.implied).then(|| absence.clone());
                        due.remove(kind, Arc::clone(name), reason);
                    }
                }
            }
            true
        });
        if response_due {
            due.response(kind);
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

    /// The answer that clients do not share: a resource rendered for this one, or a denial.
    fn own_answer(&mut self, kind: Kind, name: &Arc<str>, client: &Client, cache: &Cache) -> Option<Arc<Answer>> {
        if let Some(absence) = forbidden(kind, name, client, cache.world()) {
            return Some(Arc::new(Answer::Absent(absence)));
        }
        if !is_own(kind, name) {
            return None;
        }
        let answer = self.own.entry((kind, Arc::clone(name))).or_insert_with(|| {
            Arc::new(Answer::compile_for(cache.world(), &client.requester, client.class, kind, name))
        });
        Some(Arc::clone(answer))
    }

    /// SHA-256 over everything the client holds, endpoint sets and the barrier left out (rule 8).
    pub(super) fn hash(&self) -> [u8; 32] {
        let mut held = Vec::new();
        for (kind, list) in &self.lists {
            for (name, entry) in &list.names {
                if let Held::Version(version) = &entry.held {
                    held.push((kind.resource_type(), name.as_ref(), version.as_ref()));
                }
            }
        }
        revision_hash(held)
    }
}

impl TypeSubscriptions {
    fn subscribe_all(&mut self) {
        self.wildcard = true;
        self.expanded = 0;
        self.response_due = true;
    }

    fn wanted(&self) -> Vec<Arc<str>> {
        self.names.iter().filter(|(_, entry)| entry.is_wanted()).map(|(name, _)| Arc::clone(name)).collect()
    }
}

impl Subscription {
    fn is_wanted(&self) -> bool {
        self.explicit || self.wildcard || self.implied
    }
}
