//! The registry: which workloads run where, as their proxies report. Not desired state: no revisions, untouched by rollback.
//! Shape: sessions write ([`Registry::register`], [`Registry::heartbeat`], …); [`Registry::watch`] gives snapshots, a few
//! milliseconds after a change and with many changes at once. [`Registry::maintain`] is the long loop of expiry.
//! Kept in a file of its own, written behind, without a flush per heartbeat.
//!
//! Rules of expiry:
//! 1. A workload expires after three heartbeats were missed.
//! 2. Nothing expires until one full heartbeat window has passed since [`Registry::opened`].
//! 3. At most 30 % of a service's workloads expire in one window on silence alone, though one always may if another is
//!    left. The last workload of a service never expires on silence alone.
//!    A workload without a proven address, which nobody is sent to, is not counted and expires on silence.
//! 4. A workload whose session was closed without deregistration, and which refuses connections, expires at once.
//! 5. Time in which the control plane did not run counts for nobody: after a pause of at least one interval (the process or its
//!    machine was stopped) every workload has a full window again, as after a start.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use weft_core::{endpoint::Health, identity::Identity};

use self::{
    claims::StaticWorkloads,
    proofs::Proofs,
    registrations::{Registration, Registrations},
};
use crate::{desired::Desired, metrics::Metrics};

mod claims;
mod expiry;
mod file;
mod probe;
mod proofs;
mod registrations;
mod snapshot;

pub use claims::RefusedClaim;
pub use file::{RegistryFile, RegistryFileError};
pub use probe::{Probe, TcpProbe};
pub use proofs::{Finding, Prover};
pub use snapshot::{Registered, RegisteredPort, RegisteredWorkload, WorkloadKey, WorkloadMap};

/// Number of heartbeats that may be missed.
pub const MISSED: u32 = 3;
/// Maximum number of registered workloads.
pub const MAX_WORKLOADS: usize = 50_000;
/// Maximum number of registered workloads of one identity.
pub const MAX_WORKLOADS_OF_IDENTITY: usize = 1_000;
/// Part of a service's workloads that may expire in one window. Ratio 0..=1.
pub const MAX_EXPIRED: f64 = 0.3;
/// How long changes are collected before they are published.
const DEBOUNCE: Duration = Duration::from_millis(5);
/// How long changes are collected before they are written to the file; also the first backoff after a failed write.
const WRITE_EVERY: Duration = Duration::from_millis(200);
/// Longest backoff after failed writes.
const MAX_BACKOFF: Duration = Duration::from_secs(5);

/// The registry.
pub struct Registry {
    interval: Duration,
    inner: Mutex<Inner>,
    published: watch::Sender<Arc<Registered>>,
    desired: watch::Receiver<Arc<Desired>>,
    changed: Notify,
    broken: Notify,
    claimed: Notify,
    metrics: Arc<Metrics>,
}

/// One registration; later calls pass it, and are ignored if another registration of the workload has replaced it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session(u64);

/// Why a registration is rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// The name belongs to a connected workload of another identity.
    #[error("name: {key} is registered and connected as {identity}")]
    Taken {
        /// The workload.
        key: WorkloadKey,
        /// The identity of that workload.
        identity: String,
    },
    /// Every address that it claims was rejected.
    #[error("addresses: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Claimed(Vec<RefusedClaim>),
    /// The registry is full.
    #[error("there are {MAX_WORKLOADS} workloads already")]
    TooMany,
    /// The identity has too many workloads.
    #[error("{0} has {MAX_WORKLOADS_OF_IDENTITY} workloads already: use another service account for more")]
    TooManyOfIdentity(Identity),
}

/// The result of a heartbeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeartbeatResult {
    /// The registration was replaced by another process, or has expired.
    Lost,
    /// The addresses are the same as before.
    Unchanged,
    /// The addresses of the workload changed; these are rejected now.
    Changed(Vec<RefusedClaim>),
}

#[derive(Default)]
struct Inner {
    registrations: Registrations,
    statics: StaticWorkloads,
    next_session: u64,
    /// When the listeners were opened; nothing expires before.
    opened: Option<Instant>,
    /// When the clock was last looked at; `None` before [`Registry::maintain`].
    looked: Option<Instant>,
    /// Workloads that expired under rule 3, for one window.
    expired: VecDeque<(Instant, Arc<RegisteredWorkload>)>,
}

impl Registry {
    /// A registry with the workloads that were loaded from the file. `interval`: of heartbeats.
    pub fn new(
        loaded: Vec<RegisteredWorkload>,
        interval: Duration,
        desired: watch::Receiver<Arc<Desired>>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let now = Instant::now();
        let mut inner = Inner::default();
        for workload in loaded {
            let claimed = workload.addresses.iter().chain(&workload.unproven).copied().collect();
            let proofs = Proofs::loaded(&workload.addresses, now);
            let workload = Arc::new(workload);
            inner.registrations.put(Registration {
                workload,
                session: None,
                last_seen: now,
                claimed,
                refused: Vec::new(),
                proofs,
            });
        }
        let (workloads, changed) = inner.registrations.publish();
        inner.registrations.take_unwritten();
        let published = watch::Sender::new(Arc::new(Registered::default().next(workloads, changed)));
        let (changed, broken, claimed) = (Notify::new(), Notify::new(), Notify::new());
        Arc::new(Self { interval, inner: Mutex::new(inner), published, desired, changed, broken, claimed, metrics })
    }

    /// The current snapshot, and a wake-up for every later one.
    pub fn watch(&self) -> watch::Receiver<Arc<Registered>> {
        self.published.subscribe()
    }

    /// Interval of heartbeats.
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// Time without a heartbeat after which a workload expires.
    pub fn window(&self) -> Duration {
        self.interval * MISSED
    }

    /// Proxies can connect from now on: every loaded workload has one full window for its first heartbeat.
    pub fn opened(&self) {
        let now = Instant::now();
        let mut inner = self.inner.lock();
        inner.opened = Some(now);
        inner.registrations.seen(now);
    }

    /// Registers a workload, or changes its registration. The address that its session comes from (`source`) proves the claim
    /// of that address; other claims wait for a proof (see `proofs`). Another incarnation of the same name is replaced. Rejected
    /// addresses (see `claims`) are left out of the registration, and returned; the rest is registered.
    /// Errors: the name belongs to another identity; every address is rejected; too many workloads, of all or of one identity.
    pub fn register(&self, mut workload: RegisteredWorkload) -> Result<(Session, Vec<RefusedClaim>), RegisterError> {
        let desired = self.desired.borrow().clone();
        workload.source = workload.source.map(|address| address.to_canonical());
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        let key = workload.key.clone();
        let claimed = std::mem::take(&mut workload.addresses);
        let now = Instant::now();
        inner.notice_pause(now, self.interval);
        let mut proofs = Proofs::default();
        let known = inner.registrations.find(&key);
        if let Some(registration) = known {
            let identity = &registration.workload.identity;
            if registration.keeps_name(&workload, &claimed) {
                return Err(RegisterError::Taken { key, identity: identity.to_string() });
            }
            if *identity == workload.identity {
                proofs = registration.proofs.again(&claimed, now);
            }
        } else if inner.registrations.len() >= MAX_WORKLOADS {
            return Err(RegisterError::TooMany);
        }
        if known.is_none_or(|registration| registration.workload.identity != workload.identity)
            && inner.registrations.count_of(&workload.identity) >= MAX_WORKLOADS_OF_IDENTITY
        {
            return Err(RegisterError::TooManyOfIdentity(workload.identity));
        }
        inner.statics.follow(&desired);
        let decision = inner.decide(&workload, &claimed, &proofs, self.window());
        self.metrics.claims_refused.add(decision.refused.len() as u64);
        workload.addresses = decision.granted(&claimed);
        workload.unproven = decision.unproven;
        if workload.addresses.is_empty() && workload.unproven.is_empty() && !decision.refused.is_empty() {
            return Err(RegisterError::Claimed(decision.refused));
        }
        // Addresses are taken only from here on: a registration that is rejected as a whole takes none.
        inner.take(decision.taken, &key);
        inner.next_session += 1;
        let session = Session(inner.next_session);
        let workload = match inner.registrations.find(&key) {
            Some(registration) if *registration.workload == workload => Arc::clone(&registration.workload),
            _ => Arc::new(workload),
        };
        let refused = decision.refused.clone();
        inner.registrations.put(Registration {
            workload,
            session: Some(session),
            last_seen: now,
            claimed,
            refused,
            proofs,
        });
        self.changed.notify_one();
        self.claimed.notify_one();
        Ok((session, decision.refused))
    }

    /// A heartbeat, with the health that the workload reports. Addresses that were rejected or lost are claimed again.
    /// Cost: constant, plus the decision on the missing addresses.
    pub fn heartbeat(&self, key: &WorkloadKey, session: Session, health: Health) -> HeartbeatResult {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        let now = Instant::now();
        inner.notice_pause(now, self.interval);
        let Some(registration) = inner.registrations.beat(key, session, now) else {
            return HeartbeatResult::Lost;
        };
        let complete = registration.refused.is_empty() && registration.missing().is_empty();
        if registration.workload.health != health {
            inner.registrations.change(key, |workload| workload.health = health);
            self.changed.notify_one();
        }
        if complete {
            return HeartbeatResult::Unchanged;
        }
        let refused = self.reconsider(inner, key);
        let Some(registration) = inner.registrations.find(key) else { return HeartbeatResult::Lost };
        if registration.refused == refused {
            return HeartbeatResult::Unchanged;
        }
        let new = refused.iter().filter(|refused| !registration.refused.contains(refused)).count();
        self.metrics.claims_refused.add(new as u64);
        inner.registrations.refuse(key, refused.clone());
        HeartbeatResult::Changed(refused)
    }

    /// Decides again on the addresses that a workload has not, and on those without a proof. Returns what it is told about the
    /// missing ones.
    fn reconsider(&self, inner: &mut Inner, key: &WorkloadKey) -> Vec<RefusedClaim> {
        let desired = self.desired.borrow().clone();
        inner.statics.follow(&desired);
        let Some(Registration { workload, claimed, proofs, .. }) = inner.registrations.find(key) else {
            return Vec::new();
        };
        let has = |address: &IpAddr| {
            workload.addresses.contains(address)
                && (proofs.prove(*address) || inner.proven_otherwise(workload, *address))
        };
        let wanted: Vec<IpAddr> = claimed.iter().filter(|address| !has(address)).copied().collect();
        let decision = inner.decide(workload, &wanted, proofs, self.window());
        let (addresses, unproven) = (decision.granted(claimed), decision.unproven);
        let mut refused = decision.refused;
        refused.extend(unproven.iter().filter_map(|address| proofs.unproven(*address)));
        if workload.addresses != addresses || workload.unproven != unproven {
            inner.take(decision.taken, key);
            inner.registrations.change(key, |workload| {
                (workload.addresses, workload.unproven) = (addresses, unproven);
            });
            self.changed.notify_one();
        }
        refused
    }

    /// The workload stops: it is removed at once.
    pub fn deregister(&self, key: &WorkloadKey, session: Session) {
        let mut inner = self.inner.lock();
        if inner.registrations.find(key).is_some_and(|registration| registration.session == Some(session)) {
            inner.registrations.remove(key);
            self.changed.notify_one();
        }
    }

    /// The session ended without deregistration. The workload stays until it expires.
    pub fn disconnected(&self, key: &WorkloadKey, session: Session) {
        if self.inner.lock().registrations.leave(key, session) {
            self.broken.notify_one();
        }
    }

    /// Publishes changes; never returns.
    pub async fn publish(&self) {
        loop {
            self.changed.notified().await;
            tokio::time::sleep(DEBOUNCE).await;
            let (workloads, changed) = self.inner.lock().registrations.publish();
            let next = self.published.borrow().next(workloads, changed);
            self.published.send_replace(Arc::new(next));
        }
    }

    /// Writes changes to the file; never returns. A failed write is tried again, with backoff.
    pub async fn persist(&self, file: Arc<RegistryFile>) {
        let mut backoff = Duration::ZERO;
        loop {
            tokio::time::sleep(WRITE_EVERY + backoff).await;
            let failed = self.flush(&file).await.err();
            let before = self.metrics.registry_file_failing.swap(failed.is_some(), Ordering::Relaxed);
            let Some(error) = failed else {
                if before {
                    tracing::info!("the registry's file is written again");
                }
                backoff = Duration::ZERO;
                continue;
            };
            self.metrics.registry_write_failures.add(1);
            if !before {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "the registry's file cannot be written; trying again until it can");
            }
            backoff = (backoff * 2).clamp(WRITE_EVERY, MAX_BACKOFF);
        }
    }

    /// Writes the changes that are not in the file yet.
    pub async fn flush(&self, file: &Arc<RegistryFile>) -> Result<(), RegistryFileError> {
        let changes: BTreeMap<WorkloadKey, Option<Arc<RegisteredWorkload>>> = {
            let mut inner = self.inner.lock();
            let keys = inner.registrations.take_unwritten();
            let now = |key: &WorkloadKey| {
                inner.registrations.find(key).map(|registration| Arc::clone(&registration.workload))
            };
            keys.into_iter().map(|key| (key.clone(), now(&key))).collect()
        };
        if changes.is_empty() {
            return Ok(());
        }
        let file = Arc::clone(file);
        let (changes, result) = tokio::task::spawn_blocking(move || {
            let result = file.write(&changes);
            (changes, result)
        })
        .await
        .map_err(|_cause| RegistryFileError::Stopping)?;
        if result.is_err() {
            self.inner.lock().registrations.write_again(changes.into_keys());
        }
        result
    }
}

#[cfg(test)]
mod tests;
