//! Desired state: changes are judged, numbered, stored and then shown, one after another.
//! Shape: a [`Request`] in, an [`Outcome`] or [`ChangeError`] out; snapshots come out of [`DesiredState::watch`].
//! A change is whole or not at all, and is on disk before it is shown or answered.
//! Invariant: the snapshot shown is always one of the store's revisions; a caller that goes away stops nothing half way.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::{Mutex, watch};
use weft_core::api::{FieldError, Object, ObjectKey};

use crate::{
    random::RandomError,
    state::Desired,
    store::{Batch, Loaded, Revision, Store, StoreError},
};

mod addresses;
mod admission;
mod history;

pub use addresses::AddressBook;
pub(crate) use addresses::in_mesh_range;
use admission::{Plan, plan_apply, plan_delete, plan_restore};

/// Most objects there may be.
pub const MAX_OBJECTS: usize = 50_000;
/// Longest author and message of a revision, in bytes.
pub const MAX_TEXT: usize = 1024;

/// A wish to change desired state.
#[derive(Clone, Debug)]
pub struct Request {
    /// What.
    pub action: Action,
    /// Who.
    pub author: String,
    /// Why.
    pub message: String,
    /// Judge, and answer as if, but change nothing.
    pub dry_run: bool,
}

/// What is to change.
#[derive(Clone, Debug)]
pub enum Action {
    /// These objects are to be as they are here.
    Apply(Vec<Object>),
    /// This object is to be gone.
    Delete {
        /// Which.
        key: ObjectKey,
        /// Only if it still has this resource version.
        resource_version: Option<String>,
    },
    /// All objects are to be as they were at this revision.
    Rollback(u64),
}

/// What came of a change.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The revision that holds now; for a dry run the one that it would be.
    pub revision: u64,
    /// What became of each object that was named, in the order of naming.
    pub objects: Vec<(ObjectKey, Effect)>,
    /// The snapshot with the change in it.
    pub desired: Arc<Desired>,
}

/// What became of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// There was none of this name.
    Created,
    /// It is different now.
    Configured,
    /// It was so already.
    Unchanged,
    /// It is gone.
    Deleted,
}

/// One reason to refuse a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Which object of the request, from 0.
    pub index: Option<usize>,
    /// The object.
    pub object: Option<ObjectKey>,
    /// Which field, and why.
    pub error: FieldError,
}

/// Why a change was not made. Nothing is different then.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// It contradicts what is there or itself.
    #[error("the change conflicts with what is there")]
    Conflict(Vec<Refusal>),
    /// There is no such object.
    #[error("there is no {0}")]
    NoObject(ObjectKey),
    /// There is no such revision, or it is not kept any more.
    #[error("there is no revision {0}, or it is not kept any more")]
    NoRevision(u64),
    /// There would be too many objects.
    #[error("there would be more than {MAX_OBJECTS} objects")]
    TooMany,
    /// The mesh's address range is used up.
    #[error("no address is left for a service")]
    NoAddress,
    /// The store failed.
    #[error("the change cannot be stored")]
    Store(#[from] StoreError),
    /// What is stored cannot be read.
    #[error("{key} is stored in a form that cannot be read")]
    Stored {
        /// The object's key.
        key: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// No random numbers for a new object's uid.
    #[error("no uid can be made")]
    Random(#[from] RandomError),
    /// The process is ending.
    #[error("the control plane is stopping")]
    Stopping,
}

/// Desired state. A clone is the same one.
#[derive(Clone)]
pub struct DesiredState {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<dyn Store>,
    current: watch::Sender<Arc<Desired>>,
    writer: Mutex<Writer>,
}

/// What only the one that makes a change looks at.
struct Writer {
    addresses: AddressBook,
    /// The store failed: what is in memory may be behind it.
    stale: bool,
}

impl DesiredState {
    /// Loads what is stored. Blocks on the store.
    pub fn open(store: Arc<dyn Store>) -> Result<Self, ChangeError> {
        let (desired, addresses) = load(store.load()?)?;
        let writer = Mutex::new(Writer { addresses, stale: false });
        Ok(Self { inner: Arc::new(Inner { store, current: watch::Sender::new(Arc::new(desired)), writer }) })
    }

    /// The current snapshot, and news of every later one.
    pub fn watch(&self) -> watch::Receiver<Arc<Desired>> {
        self.inner.current.subscribe()
    }

    /// The current snapshot.
    pub fn current(&self) -> Arc<Desired> {
        self.inner.current.borrow().clone()
    }

    /// Makes a change. It runs to its end even when the caller stops waiting.
    pub async fn change(&self, request: Request) -> Result<Outcome, ChangeError> {
        let inner = Arc::clone(&self.inner);
        let task = tokio::spawn(async move { inner.change(request).await });
        task.await.map_err(|_cause| ChangeError::Stopping)?
    }

    /// One revision, if it is still kept.
    pub async fn revision(&self, number: u64) -> Result<Option<Revision>, ChangeError> {
        self.blocking(move |store| Ok(store.revision(number)?)).await
    }

    /// The newest revisions, newest first.
    pub async fn revisions(&self, limit: usize) -> Result<Vec<Revision>, ChangeError> {
        self.blocking(move |store| Ok(store.revisions(0, limit)?)).await
    }

    /// Every object as it was at a revision.
    pub async fn at(&self, number: u64) -> Result<Desired, ChangeError> {
        let current = self.current();
        self.blocking(move |store| history::at(store, &current, number)).await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        act: impl FnOnce(&dyn Store) -> Result<T, ChangeError> + Send + 'static,
    ) -> Result<T, ChangeError> {
        blocking(&self.inner.store, act).await
    }
}

impl Inner {
    async fn change(&self, request: Request) -> Result<Outcome, ChangeError> {
        let mut writer = self.writer.lock().await;
        if writer.stale {
            let (desired, addresses) = blocking(&self.store, |store| load(store.load()?)).await?;
            *writer = Writer { addresses, stale: false };
            if self.current.borrow().revision != desired.revision {
                self.current.send_replace(Arc::new(desired));
            }
        }
        let current = self.current.borrow().clone();
        let Request { action, author, message, dry_run } = request;
        let now = Timestamp::now();
        let mut rollback_to = None;
        let plan = match action {
            Action::Apply(objects) => plan_apply(&current, &writer.addresses, objects, now)?,
            Action::Delete { key, resource_version } => plan_delete(&current, key, resource_version.as_deref())?,
            Action::Rollback(number) => {
                rollback_to = Some(number);
                let snapshot = Arc::clone(&current);
                let then = blocking(&self.store, move |store| history::at(store, &snapshot, number)).await?;
                plan_restore(&current, &writer.addresses, then)?
            }
        };
        let Plan { effects, objects, allocated } = plan;
        if objects.is_empty() {
            return Ok(Outcome { revision: current.revision, objects: effects, desired: current });
        }
        let number = current.revision.saturating_add(1);
        let mut next = Desired { revision: number, objects: current.objects.clone() };
        for (key, object) in &objects {
            match object {
                Some(object) => drop(next.objects.insert(key.clone(), Arc::clone(object))),
                None => drop(next.objects.remove(key)),
            }
        }
        if next.objects.len() > MAX_OBJECTS {
            return Err(ChangeError::TooMany);
        }
        let next = Arc::new(next);
        let outcome = Outcome { revision: number, objects: effects, desired: Arc::clone(&next) };
        if dry_run {
            return Ok(outcome);
        }
        let changes = history::changes(&current, &objects)?;
        let revision = Revision { number, time: now, author: cut(author), message: cut(message), rollback_to, changes };
        let batch = Batch { revision, addresses: allocated };
        // Until the store has answered, nobody knows what it holds.
        writer.stale = true;
        let batch = blocking(&self.store, move |store| {
            store.commit(&batch)?;
            Ok(batch)
        })
        .await?;
        writer.stale = false;
        writer.addresses.extend(batch.addresses);
        tracing::info!(
            revision = number,
            author = batch.revision.author,
            changes = batch.revision.changes.len(),
            "desired state changed"
        );
        self.current.send_replace(next);
        Ok(outcome)
    }
}

async fn blocking<T: Send + 'static>(
    store: &Arc<dyn Store>,
    act: impl FnOnce(&dyn Store) -> Result<T, ChangeError> + Send + 'static,
) -> Result<T, ChangeError> {
    let store = Arc::clone(store);
    tokio::task::spawn_blocking(move || act(&*store)).await.map_err(|_cause| ChangeError::Stopping)?
}

fn load(loaded: Loaded) -> Result<(Desired, AddressBook), ChangeError> {
    let mut desired = Desired { revision: loaded.revision, ..Desired::default() };
    for (key, json) in &loaded.objects {
        let object = history::object(key, json)?;
        desired.objects.insert(object.key(), Arc::new(object));
    }
    Ok((desired, AddressBook::new(loaded.addresses)))
}

fn cut(mut text: String) -> String {
    let end = (0..=MAX_TEXT.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text.truncate(end);
    text
}

#[cfg(test)]
mod tests;
