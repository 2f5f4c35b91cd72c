//! The registry: which workloads run where, as their proxies say. Not desired state: no revisions, untouched by rollback.
//! Shape: sessions write ([`Registry::register`], [`Registry::heartbeat`], …), [`Registry::watch`] shows snapshots, a few
//! milliseconds after a change and many changes at once. [`Registry::maintain`] is the long loop that expires the silent.
//! Kept in a file of its own, written behind, without a flush per heartbeat.
//!
//! Rules of expiry (DESIGN.md "Desired state is not the registry"):
//! 1. A workload expires after three heartbeats were missed.
//! 2. Nothing expires until one full heartbeat window has passed since [`Registry::opened`].
//! 3. Of one service at most 30 % expires in one window, but one always may when another is left, unless connections to
//!    the workload are refused. The last one of a service never expires on silence alone.
//! 4. One whose connections are refused after its session broke expires at once.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use weft_core::endpoint::Health;

use crate::{
    metrics::Metrics,
    state::{Desired, Registered, RegisteredWorkload, WorkloadKey},
};

mod claims;
mod expiry;
mod file;
mod probe;

pub use claims::RefusedClaim;
pub use file::{RegistryFile, RegistryFileError};
pub use probe::{Probe, TcpProbe};

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

#[derive(Default)]
struct State {
    entries: BTreeMap<WorkloadKey, Entry>,
    next_session: u64,
    version: u64,
    /// When the listeners were opened; nothing expires before.
    opened: Option<Instant>,
    /// What expired under rule 3, for one window.
    expired: VecDeque<(Instant, Arc<RegisteredWorkload>)>,
    /// What the file does not have yet.
    unwritten: BTreeSet<WorkloadKey>,
}

struct Entry {
    workload: Arc<RegisteredWorkload>,
    session: Option<Session>,
    /// Where its session came from; the claim of this address is proven.
    source: Option<IpAddr>,
    last_seen: Instant,
    /// The session broke, and nobody has tried to connect since.
    suspect: bool,
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
            let entry =
                Entry { workload: Arc::new(workload), session: None, source: None, last_seen: now, suspect: false };
            state.entries.insert(entry.workload.key.clone(), entry);
        }
        let shown = watch::Sender::new(Arc::new(state.snapshot()));
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
        for entry in state.entries.values_mut() {
            entry.last_seen = now;
        }
    }

    /// Registers a workload, or changes its registration. `source`: where its session came from, which proves the claim
    /// of that address. Another incarnation of the same name is replaced. Addresses that are another's (see `claims`) are
    /// left out of the registration, and returned; the rest is registered.
    /// Errors: the name belongs to another identity; every address is another's; too many workloads.
    pub fn register(
        &self,
        mut workload: RegisteredWorkload,
        source: Option<IpAddr>,
    ) -> Result<(Session, Vec<RefusedClaim>), RegisterError> {
        let desired = self.desired.borrow().clone();
        let source = source.map(|address| address.to_canonical());
        let mut state = self.state.lock();
        let state = &mut *state;
        let key = workload.key.clone();
        match state.entries.get(&key) {
            Some(entry) if entry.keeps_name(&workload, source) => {
                let identity = entry.workload.identity.to_string();
                return Err(RegisterError::Taken { key, identity });
            }
            None if state.entries.len() >= MAX_WORKLOADS => return Err(RegisterError::TooMany),
            Some(_) | None => {}
        }
        let verdict = state.judge(&workload, source, &desired, self.window());
        self.metrics.claims_refused.add(verdict.refused.len() as u64);
        workload.addresses.retain(|address| !verdict.refused.iter().any(|refused| refused.address == *address));
        if workload.addresses.is_empty() && !verdict.refused.is_empty() {
            return Err(RegisterError::Claimed(verdict.refused));
        }
        for (other, address) in verdict.taken {
            // Taken only from here on: a claim that is refused as a whole takes nothing.
            state.take(&other, address, &key);
        }
        state.next_session += 1;
        let session = Session(state.next_session);
        let workload = match state.entries.get(&key) {
            Some(entry) if *entry.workload == workload => Arc::clone(&entry.workload),
            _ => Arc::new(workload),
        };
        let entry = Entry { workload, session: Some(session), source, last_seen: Instant::now(), suspect: false };
        state.entries.insert(key.clone(), entry);
        state.unwritten.insert(key);
        self.changed.notify_one();
        Ok((session, verdict.refused))
    }

    /// A sign of life, with what the workload says of itself.
    /// Returns whether the session still is the workload's; `false` means that another has taken its place.
    pub fn heartbeat(&self, key: &WorkloadKey, session: Session, health: Health) -> bool {
        let mut state = self.state.lock();
        let State { entries, unwritten, .. } = &mut *state;
        let Some(entry) = entries.get_mut(key).filter(|entry| entry.session == Some(session)) else { return false };
        entry.last_seen = Instant::now();
        if entry.workload.health != health {
            Arc::make_mut(&mut entry.workload).health = health;
            unwritten.insert(key.clone());
            self.changed.notify_one();
        }
        true
    }

    /// The workload stops: it goes at once.
    pub fn deregister(&self, key: &WorkloadKey, session: Session) {
        let mut state = self.state.lock();
        if state.entries.get(key).is_some_and(|entry| entry.session == Some(session)) {
            state.entries.remove(key);
            state.unwritten.insert(key.clone());
            self.changed.notify_one();
        }
    }

    /// The session ended without a word. The workload stays until it expires.
    pub fn disconnected(&self, key: &WorkloadKey, session: Session) {
        let mut state = self.state.lock();
        if let Some(entry) = state.entries.get_mut(key).filter(|entry| entry.session == Some(session)) {
            entry.session = None;
            entry.suspect = true;
            self.broken.notify_one();
        }
    }

    /// Whether a session still is its workload's.
    pub fn holds(&self, key: &WorkloadKey, session: Session) -> bool {
        self.state.lock().entries.get(key).is_some_and(|entry| entry.session == Some(session))
    }

    /// Shows changes, for ever.
    pub async fn publish(&self) {
        loop {
            self.changed.notified().await;
            tokio::time::sleep(DEBOUNCE).await;
            let snapshot = {
                let mut state = self.state.lock();
                state.version += 1;
                state.snapshot()
            };
            self.shown.send_replace(Arc::new(snapshot));
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
            let keys = std::mem::take(&mut state.unwritten);
            let now = |key: &WorkloadKey| state.entries.get(key).map(|entry| Arc::clone(&entry.workload));
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
            self.state.lock().unwritten.extend(changes.into_keys());
        }
        result
    }
}

impl State {
    fn snapshot(&self) -> Registered {
        let workloads = self.entries.iter().map(|(key, entry)| (key.clone(), Arc::clone(&entry.workload))).collect();
        Registered { version: self.version, workloads }
    }
}

/// Whether two workloads claim the same address and port.
fn overlap(one: &RegisteredWorkload, two: &RegisteredWorkload) -> bool {
    one.addresses.iter().any(|address| two.addresses.contains(address))
        && one.ports.iter().any(|port| two.ports.iter().any(|other| other.port == port.port))
}

#[cfg(test)]
mod tests;
