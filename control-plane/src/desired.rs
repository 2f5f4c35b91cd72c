//! Desired state: changes are admitted, numbered, stored and then published, one after another.
//! Shape: a [`Request`] in, an [`Outcome`] or [`ChangeError`] out; [`DesiredState::watch`] gives snapshots.
//! A change is whole or not at all, and on disk before it is published or answered.
//! Invariant: the published snapshot is always one of the store's revisions; a caller that disconnects never leaves half a
//! change.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt;
use jiff::Timestamp;
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;
use weft_core::{
    answer::Effect,
    api::{FieldError, Object, ObjectKey},
};

use crate::{
    crypto::RandomError,
    store::{Batch, Loaded, Revision, Store, StoreError},
};

mod addresses;
mod admission;
mod history;
mod snapshot;

pub use addresses::AddressBook;
pub(crate) use addresses::in_mesh_range;
use admission::{Plan, plan_apply, plan_delete, plan_restore};
pub use snapshot::Desired;

/// Maximum number of objects.
pub const MAX_OBJECTS: usize = 50_000;
/// Maximum length of the author and of the message of a revision, in bytes.
pub const MAX_TEXT: usize = 1024;
/// Pause before a failed watch of the store is tried again.
const WATCH_RETRY: Duration = Duration::from_secs(1);

/// A request to change desired state.
#[derive(Clone, Debug)]
pub struct Request {
    /// The change.
    pub action: Action,
    /// The author, for the revision.
    pub author: String,
    /// The reason, for the revision; may be empty.
    pub message: String,
    /// Admit and answer as usual, but change nothing.
    pub dry_run: bool,
}

/// A change.
#[derive(Clone, Debug)]
pub enum Action {
    /// Create these objects, or replace those of the same names.
    Apply(Vec<Object>),
    /// Delete an object.
    Delete {
        /// The object.
        key: ObjectKey,
        /// Delete it only if it has this resource version.
        resource_version: Option<String>,
    },
    /// Restore all objects as of this revision.
    Rollback(u64),
}

/// The result of a change.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The current revision; for a dry run the number that it would have.
    pub revision: u64,
    /// The effect on each object of the request, in the order of the request.
    pub objects: Vec<(ObjectKey, Effect)>,
    /// The snapshot with the change in it.
    pub desired: Arc<Desired>,
}

/// One reason to reject a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The index of the object in the request.
    pub index: Option<usize>,
    /// The object.
    pub object: Option<ObjectKey>,
    /// The field and the reason.
    pub error: FieldError,
}

/// Why a change was rejected or failed. Desired state is the same as before.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// It conflicts with desired state or with itself.
    #[error("the change conflicts with desired state")]
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
    #[error("storing the change failed")]
    Store(#[source] StoreError),
    /// A stored object cannot be read.
    #[error("{key} is stored in a form that cannot be read")]
    Stored {
        /// The object's key.
        key: String,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// No random numbers for a new object's uid.
    #[error("generating a uid failed")]
    Random(#[from] RandomError),
    /// The process is ending.
    #[error("the control plane is stopping")]
    Stopping,
}

impl From<StoreError> for ChangeError {
    fn from(error: StoreError) -> Self {
        if matches!(error, StoreError::Stopping) { Self::Stopping } else { Self::Store(error) }
    }
}

/// Desired state. A clone is the same one.
#[derive(Clone)]
pub struct DesiredState {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<dyn Store>,
    current: watch::Sender<Arc<Desired>>,
    /// The queue of changes: first come, first served. Its guard is held while the store commits, which is what makes one
    /// change follow another; nothing else waits for it.
    writer: Mutex<Writer>,
}

/// State of the change that is being made.
struct Writer {
    addresses: AddressBook,
    /// The store may be ahead of memory: a commit failed, or another replica committed.
    stale: bool,
}

impl DesiredState {
    /// Loads the content of the store.
    pub async fn open(store: Arc<dyn Store>) -> Result<Self, ChangeError> {
        let (desired, addresses) = load(store.load().await?)?;
        let writer = Mutex::new(Writer { addresses, stale: false });
        Ok(Self { inner: Arc::new(Inner { store, current: watch::Sender::new(Arc::new(desired)), writer }) })
    }

    /// The current snapshot, and a wake-up for every later one.
    pub fn watch(&self) -> watch::Receiver<Arc<Desired>> {
        self.inner.current.subscribe()
    }

    /// The current snapshot.
    pub fn current(&self) -> Arc<Desired> {
        self.inner.current.borrow().clone()
    }

    /// Makes a change. It runs to its end even if the caller stops waiting.
    pub async fn change(&self, request: Request) -> Result<Outcome, ChangeError> {
        let inner = Arc::clone(&self.inner);
        let task = tokio::spawn(async move { inner.change(request).await });
        task.await.map_err(|_cause| ChangeError::Stopping)?
    }

    /// Publishes the revisions that other replicas commit to the store, until `stop`.
    pub async fn follow(&self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.inner.follow() => {}
        }
    }

    /// One revision, if it is still kept.
    pub async fn revision(&self, number: u64) -> Result<Option<Revision>, ChangeError> {
        Ok(self.inner.store.revision(number).await?)
    }

    /// The newest revisions, newest first.
    pub async fn revisions(&self, limit: usize) -> Result<Vec<Revision>, ChangeError> {
        Ok(self.inner.store.revisions(1..=u64::MAX, limit).await?)
    }

    /// Every object as it was at a revision.
    pub async fn at(&self, number: u64) -> Result<Desired, ChangeError> {
        history::at(&*self.inner.store, &self.current(), number).await
    }
}

impl Inner {
    async fn change(&self, request: Request) -> Result<Outcome, ChangeError> {
        let mut writer = self.writer.lock().await;
        if writer.stale {
            self.reload(&mut writer).await?;
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
                let then = history::at(&*self.store, &current, number).await?;
                plan_restore(&current, &writer.addresses, then)?
            }
        };
        let Plan { effects, objects, allocated } = plan;
        // A change of nothing is no revision.
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
        let revision = Arc::new(revision);
        // Until the commit has returned, its outcome is unknown: a failure leaves the flag set, and the next change reloads.
        writer.stale = true;
        self.store.commit(Batch { revision: Arc::clone(&revision), addresses: allocated.clone() }).await?;
        writer.stale = false;
        writer.addresses.extend(allocated);
        tracing::info!(
            revision = number,
            author = revision.author,
            changes = revision.changes.len(),
            "desired state changed"
        );
        // Only now, so that no proxy ever has a revision that a crash could undo.
        self.current.send_replace(next);
        Ok(outcome)
    }

    /// Takes the state of the store for that in memory.
    async fn reload(&self, writer: &mut Writer) -> Result<(), ChangeError> {
        let (desired, addresses) = load(self.store.load().await?)?;
        *writer = Writer { addresses, stale: false };
        if self.current.borrow().revision != desired.revision {
            self.current.send_replace(Arc::new(desired));
        }
        Ok(())
    }

    async fn follow(&self) {
        loop {
            let after = self.current.borrow().revision;
            let mut revisions = self.store.watch(after);
            let error = loop {
                match revisions.next().await {
                    Some(Ok(revision)) => {
                        if let Err(error) = self.take(&revision).await {
                            break Some(error);
                        }
                    }
                    Some(Err(StoreError::Evicted(_))) => break self.reload(&mut *self.writer.lock().await).await.err(),
                    Some(Err(error)) => break Some(error.into()),
                    None => break None,
                }
            };
            if let Some(error) = error {
                tracing::warn!(error = &error as &dyn std::error::Error, "the store cannot be watched; trying again");
            }
            tokio::time::sleep(WATCH_RETRY).await;
        }
    }

    /// Publishes one revision of the store, if it is not the work of this process.
    async fn take(&self, revision: &Revision) -> Result<(), ChangeError> {
        // A change of this process holds the lock until it has published its own revision.
        let mut writer = self.writer.lock().await;
        let current = self.current.borrow().clone();
        if revision.number <= current.revision {
            return Ok(());
        }
        if revision.number > current.revision.saturating_add(1) {
            return self.reload(&mut writer).await;
        }
        let next = history::apply(&current, revision)?;
        // The addresses that the other replica allocated are in the store only.
        writer.stale = true;
        self.current.send_replace(Arc::new(next));
        Ok(())
    }
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
