//! The registrations and their indices: by address, not yet published, not yet in the file, without a session. Every change
//! goes through here and updates all of them. Cost of a change: logarithmic, no copy of the whole.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use tokio::time::Instant;
use weft_core::identity::Identity;

use super::{RefusedClaim, RegisteredWorkload, Session, WorkloadKey, WorkloadMap, proofs::Proofs};

/// A workload and its session.
pub(super) struct Registration {
    pub(super) workload: Arc<RegisteredWorkload>,
    pub(super) session: Option<Session>,
    pub(super) last_seen: Instant,
    /// The addresses that it claims; those that the workload does not have are unproven, or were rejected or lost.
    pub(super) claimed: Vec<IpAddr>,
    /// The missing ones and the reasons, as sent to its proxy.
    pub(super) refused: Vec<RefusedClaim>,
    /// What probes of its addresses found.
    pub(super) proofs: Proofs,
}

/// The registered workloads.
#[derive(Default)]
pub(super) struct Registrations {
    all: BTreeMap<WorkloadKey, Registration>,
    at: BTreeMap<IpAddr, BTreeSet<WorkloadKey>>,
    /// The workloads of `all`, as they are published.
    workloads: WorkloadMap,
    unpublished: BTreeSet<WorkloadKey>,
    unwritten: BTreeSet<WorkloadKey>,
    /// Workloads that lost their session and were not probed since.
    suspects: BTreeSet<WorkloadKey>,
    /// Number of workloads of each identity.
    of_identity: BTreeMap<Identity, usize>,
}

impl Registration {
    /// The addresses that it claims and does not have.
    pub(super) fn missing(&self) -> Vec<IpAddr> {
        self.claimed.iter().filter(|address| !self.workload.addresses.contains(address)).copied().collect()
    }
}

impl Registrations {
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// Number of workloads of an identity.
    pub(super) fn count_of(&self, identity: &Identity) -> usize {
        self.of_identity.get(identity).copied().unwrap_or(0)
    }

    pub(super) fn find(&self, key: &WorkloadKey) -> Option<&Registration> {
        self.all.get(key)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Registration> {
        self.all.values()
    }

    /// The registrations of one namespace.
    pub(super) fn of<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a Registration> {
        let from = WorkloadKey::new(namespace, "");
        self.all
            .range(from..)
            .take_while(move |(key, _)| key.namespace == namespace)
            .map(|(_, registration)| registration)
    }

    /// The registrations with an address, in the order of their names.
    pub(super) fn at(&self, address: IpAddr) -> impl Iterator<Item = &Registration> {
        self.at.get(&address).into_iter().flatten().filter_map(|key| self.all.get(key))
    }

    /// Adds a registration, or replaces the one of its name.
    pub(super) fn put(&mut self, registration: Registration) {
        let key = registration.workload.key.clone();
        let same = self.all.get(&key).is_some_and(|old| Arc::ptr_eq(&old.workload, &registration.workload));
        if !same {
            self.unindex(&key);
            self.index(&key, Arc::clone(&registration.workload));
        }
        self.suspects.remove(&key);
        *self.of_identity.entry(registration.workload.identity.clone()).or_default() += 1;
        if let Some(old) = self.all.insert(key, registration) {
            self.forget(&old.workload.identity);
        }
    }

    /// Changes a workload; its name stays.
    pub(super) fn change(&mut self, key: &WorkloadKey, change: impl FnOnce(&mut RegisteredWorkload)) {
        let Some(registration) = self.all.get(key) else { return };
        let mut workload = RegisteredWorkload::clone(&registration.workload);
        change(&mut workload);
        let workload = Arc::new(workload);
        self.unindex(key);
        self.index(key, Arc::clone(&workload));
        if let Some(registration) = self.all.get_mut(key) {
            registration.workload = workload;
        }
    }

    pub(super) fn remove(&mut self, key: &WorkloadKey) {
        self.unindex(key);
        self.suspects.remove(key);
        if let Some(old) = self.all.remove(key) {
            self.forget(&old.workload.identity);
            self.workloads.remove_mut(key);
            self.unpublished.insert(key.clone());
            self.unwritten.insert(key.clone());
        }
    }

    /// Records the rejected addresses that its proxy is sent.
    pub(super) fn refuse(&mut self, key: &WorkloadKey, refused: Vec<RefusedClaim>) {
        if let Some(registration) = self.all.get_mut(key) {
            registration.refused = refused;
        }
    }

    /// Records a heartbeat; `None` if the session is not the current one.
    pub(super) fn beat(&mut self, key: &WorkloadKey, session: Session, now: Instant) -> Option<&Registration> {
        let registration = self.all.get_mut(key).filter(|registration| registration.session == Some(session))?;
        registration.last_seen = now;
        Some(registration)
    }

    /// Records the end of a session; returns whether it was the current one.
    pub(super) fn leave(&mut self, key: &WorkloadKey, session: Session) -> bool {
        let Some(registration) = self.all.get_mut(key).filter(|registration| registration.session == Some(session))
        else {
            return false;
        };
        registration.session = None;
        self.suspects.insert(key.clone());
        true
    }

    /// The workloads that lost their session and were not probed since.
    pub(super) fn suspects(&self) -> impl Iterator<Item = &Registration> {
        self.suspects.iter().filter_map(|key| self.all.get(key))
    }

    /// Records that a workload was probed.
    pub(super) fn probed(&mut self, key: &WorkloadKey) {
        self.suspects.remove(key);
    }

    /// Counts as a heartbeat of every workload.
    pub(super) fn seen(&mut self, now: Instant) {
        self.all.values_mut().for_each(|registration| registration.last_seen = now);
    }

    /// The workloads to publish, and the names that changed since the last call.
    pub(super) fn publish(&mut self) -> (WorkloadMap, BTreeSet<WorkloadKey>) {
        (self.workloads.clone(), std::mem::take(&mut self.unpublished))
    }

    /// The names that are not in the file yet; the caller writes them.
    pub(super) fn take_unwritten(&mut self) -> BTreeSet<WorkloadKey> {
        std::mem::take(&mut self.unwritten)
    }

    /// The write failed: these names are still not in the file.
    pub(super) fn write_again(&mut self, keys: impl IntoIterator<Item = WorkloadKey>) {
        self.unwritten.extend(keys);
    }

    /// Takes in what a probe found about an address.
    pub(super) fn proofs(&mut self, key: &WorkloadKey) -> Option<&mut Proofs> {
        self.all.get_mut(key).map(|registration| &mut registration.proofs)
    }

    fn forget(&mut self, identity: &Identity) {
        if let Some(count) = self.of_identity.get_mut(identity) {
            *count -= 1;
            if *count == 0 {
                self.of_identity.remove(identity);
            }
        }
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
        self.unpublished.insert(key.clone());
        self.unwritten.insert(key.clone());
    }
}
