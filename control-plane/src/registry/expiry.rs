//! Expiry: the long loop that looks for the silent and the broken, and the rules by which they go.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, stream};
use tokio::time::Instant;
use weft_core::api::{Kind, Object, ObjectKey};

use super::{MAX_EXPIRED, Probe, RegisteredWorkload, Registry, State, WorkloadKey, claims::same_port, entries::Entry};
use crate::desired::Desired;

/// Probes at once.
const PROBES: usize = 64;

/// A workload that may have to go.
struct Candidate {
    workload: Arc<RegisteredWorkload>,
    last_seen: Instant,
}

/// The services that candidates belong to, counted once a pass.
struct Budget<'a> {
    desired: &'a Desired,
    services: BTreeMap<&'a ObjectKey, Count<'a>>,
}

struct Count<'a> {
    selector: &'a BTreeMap<String, String>,
    /// Under rule 3, in this window.
    expired: usize,
    there: usize,
}

impl Registry {
    /// Expires workloads, for ever.
    pub async fn maintain(&self, probe: &dyn Probe) {
        let pause = (self.interval / 4).max(Duration::from_millis(10));
        loop {
            let all = tokio::select! {
                () = tokio::time::sleep(pause) => true,
                () = self.broken.notified() => false,
            };
            self.expire(probe, all).await;
        }
    }

    /// Looks at all, or at those whose session broke.
    async fn expire(&self, probe: &dyn Probe, all: bool) {
        let candidates = self.candidates(all);
        if candidates.is_empty() {
            return;
        }
        let judged: Vec<(Candidate, bool)> = stream::iter(candidates)
            .map(|candidate| async move {
                let refused = probe.refused(&candidate.workload).await;
                (candidate, refused)
            })
            .buffer_unordered(PROBES)
            .collect()
            .await;
        let desired = self.desired.borrow().clone();
        let (now, window) = (Instant::now(), self.window());
        let mut gone = 0;
        {
            let mut state = self.state.lock();
            let state = &mut *state;
            while state.expired.front().is_some_and(|(at, _)| now.duration_since(*at) >= window) {
                state.expired.pop_front();
            }
            let mut budget = Budget { desired: &desired, services: BTreeMap::new() };
            for (candidate, refused) in judged {
                let workload = &candidate.workload;
                let Some(entry) = state.entries.find(&workload.key) else { continue };
                let silent = now.duration_since(candidate.last_seen) >= window;
                // Whoever was heard of meanwhile, or is connected again, stays.
                if entry.last_seen != candidate.last_seen || (!silent && entry.session.is_some()) {
                    continue;
                }
                state.entries.judged(&workload.key);
                // Whoever answers at the address of a workload that is gone is another one.
                let taken = workload.addresses.iter().flat_map(|address| state.entries.at(*address)).any(|other| {
                    other.session.is_some()
                        && other.workload.key != workload.key
                        && same_port(&other.workload, workload)
                });
                let refused = refused || taken;
                let goes = refused || (silent && budget.allows(state, workload));
                if !goes {
                    continue;
                }
                if !refused {
                    state.expired.push_back((now, Arc::clone(workload)));
                }
                budget.spend(workload, !refused);
                tracing::warn!(workload = %workload.key, refused, silent, "a workload expired");
                state.entries.remove(&workload.key);
                gone += 1;
            }
        }
        if gone > 0 {
            self.metrics.workloads_expired.add(gone);
            self.changed.notify_one();
        }
    }

    /// Those whose session just broke, and with `all` the silent.
    fn candidates(&self, all: bool) -> Vec<Candidate> {
        let (now, window) = (Instant::now(), self.window());
        let state = self.state.lock();
        let Some(opened) = state.opened else { return Vec::new() };
        if now.duration_since(opened) < window {
            return Vec::new();
        }
        let candidate = |entry: &Entry| Candidate { workload: Arc::clone(&entry.workload), last_seen: entry.last_seen };
        let silent = |entry: &&Entry| now.duration_since(entry.last_seen) >= window;
        let mut found: Vec<Candidate> = state.entries.suspects().map(candidate).collect();
        if all {
            let known: BTreeSet<WorkloadKey> = found.iter().map(|candidate| candidate.workload.key.clone()).collect();
            let silent = state.entries.iter().filter(silent).filter(|entry| !known.contains(&entry.workload.key));
            found.extend(silent.map(candidate));
        }
        // In the order of names, so that the same ones go under rule 3 whoever broke first.
        found.sort_by(|one, two| one.workload.key.cmp(&two.workload.key));
        found
    }
}

impl<'a> Budget<'a> {
    /// Rule 3: whether one more may expire of each service that picks this workload.
    /// Cost: linear in the namespace for a service that was not asked about before.
    fn allows(&mut self, state: &State, workload: &RegisteredWorkload) -> bool {
        let namespace = &workload.key.namespace;
        let services = self.desired.objects.range(ObjectKey::new(Kind::Service, namespace, "")..);
        let services = services.take_while(|(key, _)| key.kind == Kind::Service && key.namespace == *namespace);
        for (key, object) in services {
            let Object::Service(service) = &**object else { continue };
            let selector = &service.spec.selector;
            if !picks(selector, workload) {
                continue;
            }
            let count = self.services.entry(key).or_insert_with(|| {
                let of = |other: &RegisteredWorkload| other.key.namespace == *namespace && picks(selector, other);
                let expired = state.expired.iter().filter(|(_, other)| of(other)).count();
                let there = state.entries.of(namespace).filter(|entry| of(&entry.workload)).count();
                Count { selector, expired, there }
            });
            #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
            let (next, all) = ((count.expired + 1) as f64, (count.expired + count.there) as f64);
            // One may always go when another is left; the last one never goes on silence alone.
            if count.there < 2 || (count.expired > 0 && next > all * MAX_EXPIRED) {
                return false;
            }
        }
        true
    }

    /// Counts one that goes; `silence`: under rule 3.
    fn spend(&mut self, workload: &RegisteredWorkload, silence: bool) {
        let namespace = &workload.key.namespace;
        for (key, count) in &mut self.services {
            if key.namespace == *namespace && picks(count.selector, workload) {
                count.there = count.there.saturating_sub(1);
                count.expired += usize::from(silence);
            }
        }
    }
}

fn picks(selector: &BTreeMap<String, String>, workload: &RegisteredWorkload) -> bool {
    !workload.gateway
        && !selector.is_empty()
        && selector.iter().all(|(label, value)| workload.labels.get(label) == Some(value))
}
