//! The embedded store: one redb file. redb is a B-tree with copy-on-write pages and checksums; a commit with
//! `Durability::Immediate` returns after the file is flushed, and a crash leaves the last commit.
//! [`Embedded::open`] reads every page and compares its checksum, so a damaged file is never served; `mark` notices an older one.
//! After an error of the disk redb rejects every transaction until the file is opened again, which the next call does.

use std::{
    collections::VecDeque,
    io,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures_util::stream::{self, BoxStream};
use parking_lot::RwLock;
use redb::{
    CommitError, Database, DatabaseError, Durability, ReadTransaction, ReadableDatabase, ReadableTable,
    SetDurabilityError, StorageError, TableDefinition, TableError, TransactionError, WriteTransaction,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::watch;

use self::mark::Mark;
use super::{
    Batch, Json, Loaded, MAX_REVISIONS, MeshIdentity, Origin, Revision, ServiceAddresses, Store, StoreError, Stored,
    TokenRecord,
};

mod mark;

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const OBJECTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("objects");
const REVISIONS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("revisions");
const ADDRESSES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("addresses");
const TOKENS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("tokens");
const IDENTITY: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("identity");

/// The version of the tables' layout.
const FORMAT: u64 = 1;
/// redb's page cache, in bytes.
const CACHE: usize = 8 << 20;

/// Revisions that a watch reads at a time.
const WATCH_BATCH: u64 = 100;

/// A store in a redb file. Every call runs on a thread for blocking work.
#[derive(Debug)]
pub struct Embedded {
    file: Arc<File>,
}

/// The file, as the blocking threads use it.
#[derive(Debug)]
struct File {
    path: PathBuf,
    database: RwLock<Option<Database>>,
    newest: watch::Sender<Newest>,
    mark: Mark,
}

/// Whether a store that is older than the last one of its directory may be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Older {
    /// It is an error.
    Refuse,
    /// An operator has said that it is intended.
    Accept,
}

/// The newest revision: its number, and the revision itself if this process committed it.
#[derive(Clone, Debug, Default)]
struct Newest {
    number: u64,
    revision: Option<Arc<Revision>>,
}

/// One [`Store::watch`].
struct Watch {
    file: Arc<File>,
    newest: watch::Receiver<Newest>,
    after: u64,
    /// Read and not yet yielded, in order.
    pending: VecDeque<Arc<Revision>>,
}

impl Embedded {
    /// Opens the file, or creates it. Blocks.
    /// Errors: another process has it open; it is damaged, older than the last one here, or of another format; the disk fails.
    /// Cost: reads the whole file once.
    pub fn open(path: &Path, older: Older) -> Result<Self, StoreError> {
        let mark =
            Mark::open(path).map_err(|source| StoreError::Io { path: path.to_owned(), source: source.into() })?;
        let file = File { path: path.to_owned(), database: RwLock::new(None), newest: watch::Sender::default(), mark };
        file.check()?;
        let (found, expected) = (file.writes()?, file.mark.writes());
        match older {
            Older::Refuse if found < expected => return Err(StoreError::Older { path: file.path, found, expected }),
            Older::Refuse => {}
            Older::Accept => file.mark.reset(found),
        }
        let number = file.write(|tx| {
            let mut meta = tx.open_table(META)?;
            let found = meta.get("format")?.map(|value| value.value());
            match found {
                None => drop(meta.insert("format", FORMAT)?),
                Some(FORMAT) => {}
                Some(found) => return Err(Failure::Format(found)),
            }
            drop(tx.open_table(OBJECTS)?);
            drop(tx.open_table(ADDRESSES)?);
            drop(tx.open_table(TOKENS)?);
            drop(tx.open_table(IDENTITY)?);
            newest(&tx.open_table(REVISIONS)?)
        })?;
        file.newest.send_replace(Newest { number, revision: None });
        Ok(Self { file: Arc::new(file) })
    }

    /// The mesh that the store belongs to; `None` in a new one, and in one of a version without identities. Blocks.
    pub fn identity(&self) -> Result<Option<MeshIdentity>, StoreError> {
        self.file.read(|tx| tx.open_table(IDENTITY)?.get("mesh")?.map(|value| parse(value.value())).transpose())
    }

    /// Writes the mesh that the store belongs to. Blocks.
    pub fn set_identity(&self, identity: &MeshIdentity) -> Result<(), StoreError> {
        self.file.write(|tx| {
            tx.open_table(IDENTITY)?.insert("mesh", render(identity)?.as_slice())?;
            Ok(())
        })
    }

    /// The generation of the store; `now` (seconds since 1970) begins a new one. Blocks.
    /// The time makes two restorations of one copy differ.
    pub fn generation(&self, now: Option<u64>) -> Result<u64, StoreError> {
        self.file.write(|tx| {
            let mut meta = tx.open_table(META)?;
            let found = meta.get("generation")?.map_or(1, |value| value.value());
            let generation = now.map_or(found, |now| now.max(found + 1));
            meta.insert("generation", generation)?;
            Ok(generation)
        })
    }

    /// What proxies compare. Blocks.
    pub fn origin(&self, identity: MeshIdentity, renew: Option<u64>) -> Result<Origin, StoreError> {
        Ok(Origin { mesh: identity.mesh, generation: self.generation(renew)? })
    }

    /// Runs a call on a thread for blocking work. Once it has begun, it runs to its end even if the future is dropped.
    fn call<T: Send + 'static>(
        &self,
        act: impl FnOnce(&File) -> Result<T, StoreError> + Send + 'static,
    ) -> Stored<'_, T> {
        Box::pin(blocking(Arc::clone(&self.file), act))
    }
}

async fn blocking<T: Send + 'static>(
    file: Arc<File>,
    act: impl FnOnce(&File) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(move || act(&file)).await.map_err(|_cause| StoreError::Stopping)?
}

impl File {
    fn write<T>(&self, act: impl FnOnce(&WriteTransaction) -> Result<T, Failure>) -> Result<T, StoreError> {
        self.with(|database| {
            let mut tx = database.begin_write()?;
            tx.set_durability(Durability::Immediate)?;
            // Costs a little with each commit; without it a start after a crash reads the whole file.
            tx.set_quick_repair(true);
            let value = act(&tx)?;
            let writes = {
                let mut meta = tx.open_table(META)?;
                let writes = meta.get("writes")?.map_or(0, |value| value.value()) + 1;
                meta.insert("writes", writes)?;
                writes
            };
            tx.commit()?;
            self.mark.committed(writes);
            Ok(value)
        })
    }

    /// Compares the checksum of every page. Damage that redb repaired (of its list of free pages) loses no content; if it
    /// took a former commit instead, the mark tells.
    fn check(&self) -> Result<(), StoreError> {
        let check = || -> Result<(), Failure> {
            let mut database = Database::builder().set_cache_size(CACHE).create(&self.path)?;
            if !database.check_integrity()? {
                tracing::warn!(path = %self.path.display(), "the store's list of free pages was repaired");
            }
            *self.database.write() = Some(database);
            Ok(())
        };
        // redb asserts what it reads here and there.
        match std::panic::catch_unwind(std::panic::AssertUnwindSafe(check)) {
            Ok(result) => result.map_err(|failure| self.error(failure)),
            Err(_panic) => {
                let source = io::Error::new(io::ErrorKind::InvalidData, "its structure is broken").into();
                Err(StoreError::Damaged { path: self.path.clone(), source })
            }
        }
    }

    /// The number of committed writes; 0 in a store of a version that did not count.
    fn writes(&self) -> Result<u64, StoreError> {
        self.read(|tx| match tx.open_table(META) {
            Ok(meta) => Ok(meta.get("writes")?.map_or(0, |value| value.value())),
            Err(TableError::TableDoesNotExist(_)) => Ok(0),
            Err(error) => Err(error.into()),
        })
    }

    fn read<T>(&self, act: impl FnOnce(&ReadTransaction) -> Result<T, Failure>) -> Result<T, StoreError> {
        self.with(|database| act(&database.begin_read()?))
    }

    /// Lends the database, opened again if it was closed after a failure.
    fn with<T>(&self, act: impl FnOnce(&Database) -> Result<T, Failure>) -> Result<T, StoreError> {
        if self.database.read().is_none() {
            let mut slot = self.database.write();
            if slot.is_none() {
                let opened = Database::builder().set_cache_size(CACHE).create(&self.path);
                *slot = Some(opened.map_err(|error| self.error(error.into()))?);
            }
        }
        let result = match self.database.read().as_ref() {
            Some(database) => act(database),
            None => Err(Failure::Disk(redb::Error::PreviousIo)),
        };
        result.map_err(|failure| {
            if matches!(failure, Failure::Disk(_)) {
                *self.database.write() = None;
            }
            self.error(failure)
        })
    }

    fn error(&self, failure: Failure) -> StoreError {
        let path = self.path.clone();
        match failure {
            Failure::Disk(redb::Error::DatabaseAlreadyOpen) => StoreError::InUse { path },
            Failure::Disk(source) if damaged(&source) => StoreError::Damaged { path, source: source.into() },
            Failure::Disk(source) => StoreError::Io { path, source: source.into() },
            Failure::Format(found) => StoreError::Format { path, found, expected: FORMAT },
            Failure::Record(source) => StoreError::Damaged { path, source: source.into() },
            Failure::Conflict { expected, found } => StoreError::Conflict { expected, found },
        }
    }

    fn load(&self) -> Result<Loaded, StoreError> {
        self.read(|tx| {
            let mut loaded = Loaded { revision: newest(&tx.open_table(REVISIONS)?)?, ..Loaded::default() };
            for entry in tx.open_table(OBJECTS)?.iter()? {
                let (key, value) = entry?;
                loaded.objects.insert(key.value().to_owned(), parse::<Json>(value.value())?);
            }
            for entry in tx.open_table(ADDRESSES)?.iter()? {
                let (key, value) = entry?;
                loaded.addresses.insert(key.value().to_owned(), parse::<ServiceAddresses>(value.value())?);
            }
            Ok(loaded)
        })
    }

    fn commit(&self, batch: &Batch) -> Result<(), StoreError> {
        let number = batch.revision.number;
        self.write(|tx| {
            let mut revisions = tx.open_table(REVISIONS)?;
            let (found, expected) = (newest(&revisions)?, number.saturating_sub(1));
            if found != expected {
                return Err(Failure::Conflict { expected, found });
            }
            revisions.insert(number, render(&*batch.revision)?.as_slice())?;
            if let Some(last) = number.checked_sub(MAX_REVISIONS) {
                revisions.retain_in(..=last, |_, _| false)?;
            }
            let mut objects = tx.open_table(OBJECTS)?;
            for change in &batch.revision.changes {
                match &change.after {
                    Some(json) => drop(objects.insert(change.key.as_str(), json.get().as_bytes())?),
                    None => drop(objects.remove(change.key.as_str())?),
                }
            }
            let mut addresses = tx.open_table(ADDRESSES)?;
            for (service, pair) in &batch.addresses {
                addresses.insert(service.as_str(), render(pair)?.as_slice())?;
            }
            Ok(())
        })?;
        self.newest.send_if_modified(|newest| {
            // The thread of a later commit may have got here first.
            let newer = number > newest.number;
            if newer {
                *newest = Newest { number, revision: Some(Arc::clone(&batch.revision)) };
            }
            newer
        });
        Ok(())
    }

    fn revision(&self, number: u64) -> Result<Option<Revision>, StoreError> {
        self.read(|tx| tx.open_table(REVISIONS)?.get(number)?.map(|value| parse(value.value())).transpose())
    }

    fn revisions(&self, range: RangeInclusive<u64>, limit: usize) -> Result<Vec<Revision>, StoreError> {
        self.read(|tx| {
            let table = tx.open_table(REVISIONS)?;
            let range = table.range(range)?.rev().take(limit);
            range.map(|entry| parse(entry?.1.value())).collect()
        })
    }

    fn token(&self, id: &str) -> Result<Option<TokenRecord>, StoreError> {
        self.read(|tx| tx.open_table(TOKENS)?.get(id)?.map(|value| parse(value.value())).transpose())
    }

    fn put_token(&self, token: &TokenRecord) -> Result<(), StoreError> {
        self.write(|tx| {
            tx.open_table(TOKENS)?.insert(token.id.as_str(), render(token)?.as_slice())?;
            Ok(())
        })
    }

    fn replace_token(&self, old: &TokenRecord, new: &TokenRecord) -> Result<bool, StoreError> {
        self.write(|tx| {
            let mut table = tx.open_table(TOKENS)?;
            let found = table.get(new.id.as_str())?.map(|value| parse::<TokenRecord>(value.value())).transpose()?;
            let same = found.as_ref() == Some(old);
            if same {
                table.insert(new.id.as_str(), render(new)?.as_slice())?;
            }
            Ok(same)
        })
    }
}

impl Store for Embedded {
    fn load(&self) -> Stored<'_, Loaded> {
        self.call(File::load)
    }

    fn commit(&self, batch: Batch) -> Stored<'_, ()> {
        self.call(move |file| file.commit(&batch))
    }

    fn watch(&self, after: u64) -> BoxStream<'static, Result<Arc<Revision>, StoreError>> {
        let newest = self.file.newest.subscribe();
        let watch = Watch { file: Arc::clone(&self.file), newest, after, pending: VecDeque::new() };
        let next = |mut watch: Watch| async move {
            let revision = watch.next().await?;
            Ok(Some((revision, watch)))
        };
        Box::pin(stream::try_unfold(watch, next))
    }

    fn revision(&self, number: u64) -> Stored<'_, Option<Revision>> {
        self.call(move |file| file.revision(number))
    }

    fn revisions(&self, range: RangeInclusive<u64>, limit: usize) -> Stored<'_, Vec<Revision>> {
        self.call(move |file| file.revisions(range, limit))
    }

    fn put_token(&self, token: TokenRecord) -> Stored<'_, ()> {
        self.call(move |file| file.put_token(&token))
    }

    fn tokens(&self) -> Stored<'_, Vec<TokenRecord>> {
        self.call(|file| file.read(|tx| tx.open_table(TOKENS)?.iter()?.map(|entry| parse(entry?.1.value())).collect()))
    }

    fn token(&self, id: &str) -> Stored<'_, Option<TokenRecord>> {
        let id = id.to_owned();
        self.call(move |file| file.token(&id))
    }

    fn replace_token(&self, old: TokenRecord, new: TokenRecord) -> Stored<'_, bool> {
        self.call(move |file| file.replace_token(&old, &new))
    }

    fn delete_token(&self, id: &str) -> Stored<'_, bool> {
        let id = id.to_owned();
        self.call(move |file| file.write(|tx| Ok(tx.open_table(TOKENS)?.remove(id.as_str())?.is_some())))
    }
}

impl Watch {
    /// The revision after `after`; waits for it.
    async fn next(&mut self) -> Result<Arc<Revision>, StoreError> {
        loop {
            let expected = self.after.saturating_add(1);
            if let Some(revision) = self.pending.pop_front() {
                if revision.number != expected {
                    return Err(StoreError::Evicted(expected));
                }
                self.after = revision.number;
                return Ok(revision);
            }
            let newest = self.newest.borrow_and_update().clone();
            if newest.number < expected {
                self.newest.changed().await.map_err(|_cause| StoreError::Stopping)?;
                continue;
            }
            match newest.revision {
                // The usual case: this process committed it a moment ago.
                Some(revision) if revision.number == expected => self.pending.push_back(revision),
                Some(_) | None => {
                    let until = newest.number.min(self.after.saturating_add(WATCH_BATCH));
                    let read = move |file: &File| file.revisions(expected..=until, usize::MAX);
                    let read = blocking(Arc::clone(&self.file), read).await?;
                    if read.is_empty() {
                        return Err(StoreError::Evicted(expected));
                    }
                    self.pending.extend(read.into_iter().rev().map(Arc::new));
                }
            }
        }
    }
}

fn newest(revisions: &impl ReadableTable<u64, &'static [u8]>) -> Result<u64, Failure> {
    Ok(revisions.last()?.map_or(0, |(number, _)| number.value()))
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(bytes).map_err(Failure::Record)
}

fn render<T: Serialize>(value: &T) -> Result<Vec<u8>, Failure> {
    serde_json::to_vec(value).map_err(Failure::Record)
}

/// Whether the content is at fault, not the disk or the system.
fn damaged(error: &redb::Error) -> bool {
    if let redb::Error::Io(error) = error {
        return matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof);
    }
    matches!(
        error,
        redb::Error::Corrupted(_)
            | redb::Error::UpgradeRequired(_)
            | redb::Error::TableTypeMismatch { .. }
            | redb::Error::TypeDefinitionChanged { .. }
            | redb::Error::TableIsMultimap(_)
            | redb::Error::TableDoesNotExist(_)
    )
}

/// Why a transaction failed; [`File::error`] adds the path.
enum Failure {
    Disk(redb::Error),
    Format(u64),
    Record(serde_json::Error),
    Conflict { expected: u64, found: u64 },
}

macro_rules! from_redb {
    ($($error:ty),*) => {
        $(impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self::Disk(error.into())
            }
        })*
    };
}
from_redb!(CommitError, DatabaseError, SetDurabilityError, StorageError, TableError, TransactionError);

#[cfg(test)]
mod tests;
