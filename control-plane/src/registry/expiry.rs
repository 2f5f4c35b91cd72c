//! Expiry: the long loop that finds workloads without heartbeats or without a session, and the rules by which they expire.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, stream};
use tokio::time::Instant;
use weft_core::api::{Kind, Object, ObjectKey};

use super::{
    Inner, MAX_EXPIRED, Probe, RegisteredWorkload, Registry, WorkloadKey, claims::same_port,
    registrations::Registration,
};
use crate::desired::Desired;

/// Probes at once.
const PROBES: usize = 64;

/// A workload that may expire.
struct Candidate {
    workload: Arc<RegisteredWorkload>,
    last_seen: Instant,
}

/// The workloads left of each service, counted once per pass.
struct Budget<'a> {
    desired: &'a Desired,
    services: BTreeMap<&'a ObjectKey, Count<'a>>,
}

struct Count<'a> {
    selector: &'a BTreeMap<String, String>,
    /// Expired under rule 3 in this window.
    expired: usize,
    left: usize,
}

impl Registry {
    /// Expires workloads; never returns.
    pub async fn maintain(&self, probe: &dyn Probe) {
        let pause = (self.interval / 4).max(Duration::from_millis(10));
        // A loop of its own, as a pass lasts as long as its probes.
        let look = async {
            loop {
                self.inner.lock().look(Instant::now(), self.interval);
                tokio::time::sleep(pause).await;
            }
        };
        tokio::join!(look, self.expire_in_turn(probe, pause));
    }

    async fn expire_in_turn(&self, probe: &dyn Probe, pause: Duration) {
        loop {
            let all = tokio::select! {
                () = tokio::time::sleep(pause) => true,
                () = self.broken.notified() => false,
            };
            self.expire(probe, all).await;
        }
    }

    /// One pass over the workloads that lost their session, and with `all` over the silent ones too.
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
            let mut inner = self.inner.lock();
            let inner = &mut *inner;
            inner.notice_pause(now, self.interval);
            while inner.expired.front().is_some_and(|(at, _)| now.duration_since(*at) >= window) {
                inner.expired.pop_front();
            }
            let mut budget = Budget { desired: &desired, services: BTreeMap::new() };
            for (candidate, refused) in judged {
                let workload = &candidate.workload;
                let Some(registration) = inner.registrations.find(&workload.key) else { continue };
                let silent = now.duration_since(candidate.last_seen) >= window;
                // It had a heartbeat or reconnected while it was probed.
                if registration.last_seen != candidate.last_seen || (!silent && registration.session.is_some()) {
                    continue;
                }
                inner.registrations.probed(&workload.key);
                // A connection that succeeded was to another workload that has this address now.
                let taken =
                    workload.addresses.iter().flat_map(|address| inner.registrations.at(*address)).any(|other| {
                        other.session.is_some()
                            && other.workload.key != workload.key
                            && same_port(&other.workload, workload)
                    });
                let refused = refused || taken;
                // Nobody is sent to a workload without a proven address, so nobody misses it.
                let refused = refused || (silent && workload.addresses.is_empty());
                let goes = refused || (silent && budget.allows(inner, workload));
                if !goes {
                    continue;
                }
                if !refused {
                    inner.expired.push_back((now, Arc::clone(workload)));
                }
                budget.spend(workload, !refused);
                tracing::warn!(workload = %workload.key, refused, silent, "a workload expired");
                inner.registrations.remove(&workload.key);
                gone += 1;
            }
        }
        if gone > 0 {
            self.metrics.workloads_expired.add(gone);
            self.changed.notify_one();
        }
    }

    /// The workloads that lost their session, and with `all` the silent ones.
    fn candidates(&self, all: bool) -> Vec<Candidate> {
        let (now, window) = (Instant::now(), self.window());
        let mut inner = self.inner.lock();
        inner.notice_pause(now, self.interval);
        let Some(opened) = inner.opened else { return Vec::new() };
        if now.duration_since(opened) < window {
            return Vec::new();
        }
        let candidate = |registration: &Registration| Candidate {
            workload: Arc::clone(&registration.workload),
            last_seen: registration.last_seen,
        };
        let silent = |registration: &&Registration| now.duration_since(registration.last_seen) >= window;
        let mut found: Vec<Candidate> = inner.registrations.suspects().map(candidate).collect();
        if all {
            let known: BTreeSet<WorkloadKey> = found.iter().map(|candidate| candidate.workload.key.clone()).collect();
            let silent = inner
                .registrations
                .iter()
                .filter(silent)
                .filter(|registration| !known.contains(&registration.workload.key));
            found.extend(silent.map(candidate));
        }
        // In the order of names, so that the outcome of rule 3 does not depend on the order of disconnections.
        found.sort_by(|one, two| one.workload.key.cmp(&two.workload.key));
        found
    }
}

impl Inner {
    /// Looks at the clock, which the loop of [`Registry::maintain`] does four times in an interval.
    fn look(&mut self, now: Instant, interval: Duration) {
        self.notice_pause(now, interval);
        self.looked = Some(now);
    }

    /// Rule 5: if nothing looked at the clock for an interval, heartbeats could not be read meanwhile either. To be called before
    /// time is judged. Cost: constant without a pause.
    pub(super) fn notice_pause(&mut self, now: Instant, interval: Duration) {
        let Some(pause) = self.looked.map(|looked| now.duration_since(looked)).filter(|pause| *pause >= interval)
        else {
            return;
        };
        self.looked = Some(now);
        if self.opened.is_some() {
            tracing::warn!(
                ?pause,
                "the control plane did not run for a while; every workload has a full window for its next heartbeat"
            );
            self.opened = Some(now);
            self.registrations.seen(now);
        }
    }
}

impl<'a> Budget<'a> {
    /// Rule 3: whether one more workload may expire of each service that selects this one.
    /// Cost: linear in the namespace for a service that was not counted yet.
    fn allows(&mut self, inner: &Inner, workload: &RegisteredWorkload) -> bool {
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
                let expired = inner.expired.iter().filter(|(_, other)| of(other)).count();
                let left = inner.registrations.of(namespace).filter(|registration| of(&registration.workload)).count();
                Count { selector, expired, left }
            });
            #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
            let (next, all) = ((count.expired + 1) as f64, (count.expired + count.left) as f64);
            // One may always expire if another is left; the last one never does on silence alone.
            if count.left < 2 || (count.expired > 0 && next > all * MAX_EXPIRED) {
                return false;
            }
        }
        true
    }

    /// Counts an expired workload; `silence`: under rule 3.
    fn spend(&mut self, workload: &RegisteredWorkload, silence: bool) {
        let namespace = &workload.key.namespace;
        for (key, count) in &mut self.services {
            if key.namespace == *namespace && picks(count.selector, workload) {
                count.left = count.left.saturating_sub(1);
                count.expired += usize::from(silence);
            }
        }
    }
}

fn picks(selector: &BTreeMap<String, String>, workload: &RegisteredWorkload) -> bool {
    !workload.gateway
        && !workload.addresses.is_empty()
        && !selector.is_empty()
        && selector.iter().all(|(label, value)| workload.labels.get(label) == Some(value))
}
