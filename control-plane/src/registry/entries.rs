//! What is registered, and its indices: by address, what nobody has been shown yet, what the file does not have, whose
//! session broke. Every change goes through here and keeps them all. Cost of a change: logarithmic, no copy of the whole.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use tokio::time::Instant;

use super::{RefusedClaim, RegisteredWorkload, Session, WorkloadKey, WorkloadMap};

/// A workload, and what is known of its session.
pub(super) struct Entry {
    pub(super) workload: Arc<RegisteredWorkload>,
    pub(super) session: Option<Session>,
    pub(super) last_seen: Instant,
    /// The addresses that it asked for; those that the workload does not have were refused or lost.
    pub(super) wish: Vec<IpAddr>,
    /// What its proxy was told of the missing ones.
    pub(super) refused: Vec<RefusedClaim>,
}

/// The registered workloads.
#[derive(Default)]
pub(super) struct Entries {
    all: BTreeMap<WorkloadKey, Entry>,
    at: BTreeMap<IpAddr, BTreeSet<WorkloadKey>>,
    /// The workloads of `all`, as they are shown.
    workloads: WorkloadMap,
    unshown: BTreeSet<WorkloadKey>,
    unwritten: BTreeSet<WorkloadKey>,
    /// Whose session broke and to whom nobody has tried to connect since.
    suspects: BTreeSet<WorkloadKey>,
}

impl Entry {
    /// The addresses that it asked for and does not have.
    pub(super) fn missing(&self) -> Vec<IpAddr> {
        self.wish.iter().filter(|address| !self.workload.addresses.contains(address)).copied().collect()
    }
}

impl Entries {
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn find(&self, key: &WorkloadKey) -> Option<&Entry> {
        self.all.get(key)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.all.values()
    }

    /// Those of one namespace.
    pub(super) fn of<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a Entry> {
        let from = WorkloadKey::new(namespace, "");
        self.all.range(from..).take_while(move |(key, _)| key.namespace == namespace).map(|(_, entry)| entry)
    }

    /// Those that have an address, in the order of their names.
    pub(super) fn at(&self, address: IpAddr) -> impl Iterator<Item = &Entry> {
        self.at.get(&address).into_iter().flatten().filter_map(|key| self.all.get(key))
    }

    /// Adds one, or replaces the one of its name.
    pub(super) fn put(&mut self, entry: Entry) {
        let key = entry.workload.key.clone();
        let same = self.all.get(&key).is_some_and(|old| Arc::ptr_eq(&old.workload, &entry.workload));
        if !same {
            self.unindex(&key);
            self.index(&key, Arc::clone(&entry.workload));
        }
        self.suspects.remove(&key);
        self.all.insert(key, entry);
    }

    /// Changes a workload; its name stays.
    pub(super) fn change(&mut self, key: &WorkloadKey, change: impl FnOnce(&mut RegisteredWorkload)) {
        let Some(entry) = self.all.get(key) else { return };
        let mut workload = RegisteredWorkload::clone(&entry.workload);
        change(&mut workload);
        let workload = Arc::new(workload);
        self.unindex(key);
        self.index(key, Arc::clone(&workload));
        if let Some(entry) = self.all.get_mut(key) {
            entry.workload = workload;
        }
    }

    pub(super) fn remove(&mut self, key: &WorkloadKey) {
        self.unindex(key);
        self.suspects.remove(key);
        if self.all.remove(key).is_some() {
            self.workloads.remove_mut(key);
            self.unshown.insert(key.clone());
            self.unwritten.insert(key.clone());
        }
    }

    /// Writes down what its proxy is told.
    pub(super) fn refuse(&mut self, key: &WorkloadKey, refused: Vec<RefusedClaim>) {
        if let Some(entry) = self.all.get_mut(key) {
            entry.refused = refused;
        }
    }

    /// A sign of life; `None` when the session is another one.
    pub(super) fn beat(&mut self, key: &WorkloadKey, session: Session, now: Instant) -> Option<&Entry> {
        let entry = self.all.get_mut(key).filter(|entry| entry.session == Some(session))?;
        entry.last_seen = now;
        Some(entry)
    }

    /// The session broke; whether it was the workload's.
    pub(super) fn leave(&mut self, key: &WorkloadKey, session: Session) -> bool {
        let Some(entry) = self.all.get_mut(key).filter(|entry| entry.session == Some(session)) else { return false };
        entry.session = None;
        self.suspects.insert(key.clone());
        true
    }

    /// Whose session broke.
    pub(super) fn suspects(&self) -> impl Iterator<Item = &Entry> {
        self.suspects.iter().filter_map(|key| self.all.get(key))
    }

    /// Somebody has tried to connect to it.
    pub(super) fn judged(&mut self, key: &WorkloadKey) {
        self.suspects.remove(key);
    }

    /// Gives every one a sign of life.
    pub(super) fn seen(&mut self, now: Instant) {
        self.all.values_mut().for_each(|entry| entry.last_seen = now);
    }

    /// The workloads, and what changed since this was last called.
    pub(super) fn show(&mut self) -> (WorkloadMap, BTreeSet<WorkloadKey>) {
        (self.workloads.clone(), std::mem::take(&mut self.unshown))
    }

    /// What the file does not have, which it is now given.
    pub(super) fn take_unwritten(&mut self) -> BTreeSet<WorkloadKey> {
        std::mem::take(&mut self.unwritten)
    }

    /// The file could not be written.
    pub(super) fn write_again(&mut self, keys: impl IntoIterator<Item = WorkloadKey>) {
        self.unwritten.extend(keys);
    }

    fn unindex(&mut self, key: &WorkloadKey) {
        let Some(old) = self.all.get(key) else { return };
        for address in &old.workload.addresses {
            if let Some(there) = self.at.get_mut(address) {
                there.remove(key);
                if there.is_empty() {
                    self.at.remove(address);
                }
            }
        }
    }

    fn index(&mut self, key: &WorkloadKey, workload: Arc<RegisteredWorkload>) {
        for address in &workload.addresses {
            self.at.entry(*address).or_default().insert(key.clone());
        }
        self.workloads.insert_mut(key.clone(), workload);
        self.unshown.insert(key.clone());
        self.unwritten.insert(key.clone());
    }
}
