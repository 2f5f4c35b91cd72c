//! Expiry: the long loop that looks for the silent and the broken, and the rules by which they go.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};
use tokio::time::Instant;
use weft_core::api::{Kind, Object};

use super::{MAX_EXPIRED, Probe, Registry, State, overlap};
use crate::state::{Desired, RegisteredWorkload};

/// Probes at once.
const PROBES: usize = 64;

/// A workload that may have to go.
struct Candidate {
    workload: Arc<RegisteredWorkload>,
    last_seen: Instant,
}

impl Registry {
    /// Expires workloads, for ever.
    pub async fn maintain(&self, probe: &dyn Probe) {
        let pause = (self.interval / 4).max(Duration::from_millis(10));
        loop {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.broken.notified() => {}
            }
            self.expire(probe).await;
        }
    }

    async fn expire(&self, probe: &dyn Probe) {
        let candidates = self.candidates();
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
            for (candidate, refused) in judged {
                let key = &candidate.workload.key;
                let Some(entry) = state.entries.get_mut(key) else { continue };
                let silent = now.duration_since(candidate.last_seen) >= window;
                // Whoever was heard of meanwhile, or is connected again, stays.
                if entry.last_seen != candidate.last_seen || (!silent && entry.session.is_some()) {
                    continue;
                }
                entry.suspect = false;
                // Whoever answers at the address of a workload that is gone is another one.
                let taken = state.entries.values().any(|other| {
                    other.session.is_some()
                        && other.workload.key != *key
                        && overlap(&other.workload, &candidate.workload)
                });
                let refused = refused || taken;
                if !refused {
                    if !silent || !state.may_expire(&desired, &candidate.workload) {
                        continue;
                    }
                    state.expired.push_back((now, Arc::clone(&candidate.workload)));
                }
                tracing::warn!(workload = %key, refused, silent, "a workload expired");
                state.entries.remove(key);
                state.unwritten.insert(key.clone());
                gone += 1;
            }
        }
        if gone > 0 {
            self.metrics.workloads_expired.add(gone);
            self.changed.notify_one();
        }
    }

    /// The silent, and those whose session just broke.
    fn candidates(&self) -> Vec<Candidate> {
        let (now, window) = (Instant::now(), self.window());
        let state = self.state.lock();
        let Some(opened) = state.opened else { return Vec::new() };
        if now.duration_since(opened) < window {
            return Vec::new();
        }
        let due = |entry: &&super::Entry| entry.suspect || now.duration_since(entry.last_seen) >= window;
        let candidate =
            |entry: &super::Entry| Candidate { workload: Arc::clone(&entry.workload), last_seen: entry.last_seen };
        state.entries.values().filter(due).map(candidate).collect()
    }
}

impl State {
    /// Rule 3: whether one more may expire of each service that picks this workload.
    fn may_expire(&self, desired: &Desired, workload: &RegisteredWorkload) -> bool {
        let services = desired.of(Kind::Service).filter(|(key, _)| key.namespace == workload.key.namespace);
        let services = services.filter_map(|(_, object)| {
            if let Object::Service(service) = &**object { Some(&service.spec.selector) } else { None }
        });
        services.filter(|selector| picks(selector, workload)).all(|selector| {
            let of =
                |other: &RegisteredWorkload| other.key.namespace == workload.key.namespace && picks(selector, other);
            let expired = self.expired.iter().filter(|(_, other)| of(other)).count();
            let there = self.entries.values().filter(|entry| of(&entry.workload)).count();
            #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
            let (next, all) = ((expired + 1) as f64, (expired + there) as f64);
            // One may always go when another is left; the last one never goes on silence alone.
            there >= 2 && (expired == 0 || next <= all * MAX_EXPIRED)
        })
    }
}

fn picks(selector: &BTreeMap<String, String>, workload: &RegisteredWorkload) -> bool {
    !workload.gateway
        && !selector.is_empty()
        && selector.iter().all(|(label, value)| workload.labels.get(label) == Some(value))
}
