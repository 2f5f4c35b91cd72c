//! The registry: which workloads run where, as their proxies say. Not desired state: no revisions, untouched by rollback.
//! Shape: sessions write ([`Registry::register`], [`Registry::heartbeat`], …), [`Registry::watch`] shows snapshots, a few
//! milliseconds after a change and many changes at once. [`Registry::maintain`] is the long loop that expires the silent.
//! Kept in a file of its own, written behind, without a flush per heartbeat.
//!
//! Rules of expiry:
//! 1. A workload expires after three heartbeats were missed.
//! 2. Nothing expires until one full heartbeat window has passed since [`Registry::opened`].
//! 3. Of one service at most 30 % expires in one window, but one always may when another is left, unless connections to
//!    the workload are refused. The last one of a service never expires on silence alone.
//! 4. One whose connections are refused after its session broke expires at once.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use weft_core::endpoint::Health;

use self::{
    claims::Written,
    entries::{Entries, Entry},
};
use crate::{desired::Desired, metrics::Metrics};

mod claims;
mod entries;
mod expiry;
mod file;
mod probe;
mod snapshot;

pub use claims::RefusedClaim;
pub use file::{RegistryFile, RegistryFileError};
pub use probe::{Probe, TcpProbe};
pub use snapshot::{Registered, RegisteredPort, RegisteredWorkload, WorkloadKey, WorkloadMap};

/// How many heartbeats may be missed.
pub const MISSED: u32 = 3;
/// Most workloads that may be registered.
pub const MAX_WORKLOADS: usize = 50_000;
/// Part of a service that may expire in one window. Ratio 0..=1.
pub const MAX_EXPIRED: f64 = 0.3;
/// How long changes are gathered before they are shown.
const DEBOUNCE: Duration = Duration::from_millis(5);

/// The registry.
pub struct Registry {
    interval: Duration,
    state: Mutex<State>,
    shown: watch::Sender<Arc<Registered>>,
    desired: watch::Receiver<Arc<Desired>>,
    changed: Notify,
    broken: Notify,
    metrics: Arc<Metrics>,
}

/// One registration; later calls name it, and are ignored when another has taken its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session(u64);

/// Why a registration is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// The name belongs to a connected workload of another identity.
    #[error("name: {key} is registered and connected as {identity}")]
    Taken {
        /// The workload.
        key: WorkloadKey,
        /// Who has it.
        identity: String,
    },
    /// No address that it claims can be its own.
    #[error("addresses: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Claimed(Vec<RefusedClaim>),
    /// There are too many.
    #[error("there are {MAX_WORKLOADS} workloads already")]
    TooMany,
}

/// What a sign of life came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Beat {
    /// Another has taken the workload's place, or it has expired.
    Lost,
    /// All is as it was.
    Kept,
    /// The workload has other addresses than before; these are refused now.
    Claims(Vec<RefusedClaim>),
}

#[derive(Default)]
struct State {
    entries: Entries,
    written: Written,
    next_session: u64,
    /// When the listeners were opened; nothing expires before.
    opened: Option<Instant>,
    /// What expired under rule 3, for one window.
    expired: VecDeque<(Instant, Arc<RegisteredWorkload>)>,
}

impl Registry {
    /// A registry with what was loaded from the file. `interval`: how often a heartbeat is due.
    pub fn new(
        loaded: Vec<RegisteredWorkload>,
        interval: Duration,
        desired: watch::Receiver<Arc<Desired>>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let now = Instant::now();
        let mut state = State::default();
        for workload in loaded {
            let wish = workload.addresses.clone();
            let workload = Arc::new(workload);
            state.entries.put(Entry { workload, session: None, last_seen: now, wish, refused: Vec::new() });
        }
        let (workloads, changed) = state.entries.show();
        state.entries.take_unwritten();
        let shown = watch::Sender::new(Arc::new(Registered::default().next(workloads, changed)));
        let (changed, broken) = (Notify::new(), Notify::new());
        Arc::new(Self { interval, state: Mutex::new(state), shown, desired, changed, broken, metrics })
    }

    /// The current snapshot, and news of every later one.
    pub fn watch(&self) -> watch::Receiver<Arc<Registered>> {
        self.shown.subscribe()
    }

    /// How often a heartbeat is due.
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// After so long without a sign of life a workload expires.
    pub fn window(&self) -> Duration {
        self.interval * MISSED
    }

    /// Proxies can connect from now on: what was loaded has one full window to be heard of.
    pub fn opened(&self) {
        let now = Instant::now();
        let mut state = self.state.lock();
        state.opened = Some(now);
        state.entries.seen(now);
    }

    /// Registers a workload, or changes its registration. Where its session came from (`source`) proves the claim of that
    /// address. Another incarnation of the same name is replaced. Addresses that are another's (see `claims`) are
    /// left out of the registration, and returned; the rest is registered.
    /// Errors: the name belongs to another identity; every address is another's; too many workloads.
    pub fn register(&self, mut workload: RegisteredWorkload) -> Result<(Session, Vec<RefusedClaim>), RegisterError> {
        let desired = self.desired.borrow().clone();
        workload.source = workload.source.map(|address| address.to_canonical());
        let mut state = self.state.lock();
        let state = &mut *state;
        let key = workload.key.clone();
        match state.entries.find(&key) {
            Some(entry) if entry.keeps_name(&workload) => {
                let identity = entry.workload.identity.to_string();
                return Err(RegisterError::Taken { key, identity });
            }
            None if state.entries.len() >= MAX_WORKLOADS => return Err(RegisterError::TooMany),
            Some(_) | None => {}
        }
        let wish = workload.addresses.clone();
        state.written.follow(&desired);
        let verdict = state.judge(&workload, &wish, self.window());
        self.metrics.claims_refused.add(verdict.refused.len() as u64);
        workload.addresses.retain(|address| !verdict.refused.iter().any(|refused| refused.address == *address));
        if workload.addresses.is_empty() && !verdict.refused.is_empty() {
            return Err(RegisterError::Claimed(verdict.refused));
        }
        // Taken only from here on: a claim that is refused as a whole takes nothing.
        state.take(verdict.taken, &key);
        state.next_session += 1;
        let session = Session(state.next_session);
        let workload = match state.entries.find(&key) {
            Some(entry) if *entry.workload == workload => Arc::clone(&entry.workload),
            _ => Arc::new(workload),
        };
        let refused = verdict.refused.clone();
        state.entries.put(Entry { workload, session: Some(session), last_seen: Instant::now(), wish, refused });
        self.changed.notify_one();
        Ok((session, verdict.refused))
    }

    /// A sign of life, with what the workload says of itself. Addresses that were refused or lost are asked for again.
    /// Cost: constant, and that of judging what is missing.
    pub fn heartbeat(&self, key: &WorkloadKey, session: Session, health: Health) -> Beat {
        let mut state = self.state.lock();
        let state = &mut *state;
        let Some(entry) = state.entries.beat(key, session, Instant::now()) else { return Beat::Lost };
        let (workload, missing) = (Arc::clone(&entry.workload), entry.missing());
        if workload.health != health {
            state.entries.change(key, |workload| workload.health = health);
            self.changed.notify_one();
        }
        if missing.is_empty() {
            return Beat::Kept;
        }
        let desired = self.desired.borrow().clone();
        state.written.follow(&desired);
        let verdict = state.judge(&workload, &missing, self.window());
        let Some(entry) = state.entries.find(key) else { return Beat::Lost };
        if entry.refused == verdict.refused {
            return Beat::Kept;
        }
        let new = verdict.refused.iter().filter(|refused| !entry.refused.contains(refused)).count();
        self.metrics.claims_refused.add(new as u64);
        let mut addresses = entry.wish.clone();
        addresses.retain(|address| !verdict.refused.iter().any(|refused| refused.address == *address));
        state.take(verdict.taken, key);
        state.entries.change(key, |workload| workload.addresses = addresses);
        state.entries.refuse(key, verdict.refused.clone());
        self.changed.notify_one();
        Beat::Claims(verdict.refused)
    }

    /// The workload stops: it goes at once.
    pub fn deregister(&self, key: &WorkloadKey, session: Session) {
        let mut state = self.state.lock();
        if state.entries.find(key).is_some_and(|entry| entry.session == Some(session)) {
            state.entries.remove(key);
            self.changed.notify_one();
        }
    }

    /// The session ended without a word. The workload stays until it expires.
    pub fn disconnected(&self, key: &WorkloadKey, session: Session) {
        if self.state.lock().entries.leave(key, session) {
            self.broken.notify_one();
        }
    }

    /// Whether a session still is its workload's.
    pub fn holds(&self, key: &WorkloadKey, session: Session) -> bool {
        self.state.lock().entries.find(key).is_some_and(|entry| entry.session == Some(session))
    }

    /// Shows changes, for ever.
    pub async fn publish(&self) {
        loop {
            self.changed.notified().await;
            tokio::time::sleep(DEBOUNCE).await;
            let (workloads, changed) = self.state.lock().entries.show();
            let next = self.shown.borrow().next(workloads, changed);
            self.shown.send_replace(Arc::new(next));
        }
    }

    /// Writes to the file what it does not have yet, for ever. A failure is tried again.
    pub async fn persist(&self, file: Arc<RegistryFile>) {
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            if let Err(error) = self.flush(&file).await {
                tracing::error!(error = &error as &dyn std::error::Error, "the registry cannot be written");
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
        }
    }

    /// Writes to the file what it does not have yet.
    pub async fn flush(&self, file: &Arc<RegistryFile>) -> Result<(), RegistryFileError> {
        let changes: BTreeMap<WorkloadKey, Option<Arc<RegisteredWorkload>>> = {
            let mut state = self.state.lock();
            let keys = state.entries.take_unwritten();
            let now = |key: &WorkloadKey| state.entries.find(key).map(|entry| Arc::clone(&entry.workload));
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
            self.state.lock().entries.write_again(changes.into_keys());
        }
        result
    }
}

#[cfg(test)]
mod tests;
