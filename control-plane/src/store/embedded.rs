//! The embedded store: one redb file. redb is a B-tree with copy-on-write pages and checksums; a commit with
//! `Durability::Immediate` returns after the file is flushed, and a crash leaves the last commit.
//! After an error of the disk redb refuses everything until the file is opened anew, which the next call does here.

use std::path::{Path, PathBuf};

use parking_lot::RwLock;
use redb::{
    CommitError, Database, DatabaseError, Durability, ReadTransaction, ReadableDatabase, ReadableTable,
    SetDurabilityError, StorageError, TableDefinition, TableError, TransactionError, WriteTransaction,
};
use serde::{Serialize, de::DeserializeOwned};

use super::{Batch, Json, Loaded, MAX_REVISIONS, Revision, ServiceAddresses, Store, StoreError, TokenRecord};

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const OBJECTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("objects");
const REVISIONS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("revisions");
const ADDRESSES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("addresses");
const TOKENS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("tokens");

/// The version of the tables' layout.
const FORMAT: u64 = 1;
/// redb's page cache, in bytes.
const CACHE: usize = 8 << 20;

/// A redb file.
#[derive(Debug)]
pub struct Embedded {
    path: PathBuf,
    database: RwLock<Option<Database>>,
}

impl Embedded {
    /// Opens the file, or makes it.
    /// Errors: another process has it; it is damaged or of a later version; the disk fails.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let store = Self { path: path.to_owned(), database: RwLock::new(None) };
        store.write(|tx| {
            let mut meta = tx.open_table(META)?;
            let found = meta.get("format")?.map(|value| value.value());
            match found {
                None => drop(meta.insert("format", FORMAT)?),
                Some(FORMAT) => {}
                Some(other) => return Err(Failure::Damaged(format!("of format {other}; this version reads {FORMAT}"))),
            }
            drop(tx.open_table(OBJECTS)?);
            drop(tx.open_table(REVISIONS)?);
            drop(tx.open_table(ADDRESSES)?);
            drop(tx.open_table(TOKENS)?);
            Ok(())
        })?;
        Ok(store)
    }

    fn write<T>(&self, act: impl FnOnce(&WriteTransaction) -> Result<T, Failure>) -> Result<T, StoreError> {
        self.with(|database| {
            let mut tx = database.begin_write()?;
            tx.set_durability(Durability::Immediate)?;
            // Costs a little with each commit; without it a start after a crash reads the whole file.
            tx.set_quick_repair(true);
            let value = act(&tx)?;
            tx.commit()?;
            Ok(value)
        })
    }

    fn read<T>(&self, act: impl FnOnce(&ReadTransaction) -> Result<T, Failure>) -> Result<T, StoreError> {
        self.with(|database| act(&database.begin_read()?))
    }

    /// Lends the database, opened anew when it was given up.
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
            Failure::Disk(redb::Error::Corrupted(reason)) => StoreError::Damaged { path, reason },
            Failure::Disk(source) => StoreError::Io { path, source: Box::new(source) },
            Failure::Damaged(reason) => StoreError::Damaged { path, reason },
            Failure::Conflict { expected, found } => StoreError::Conflict { expected, found },
        }
    }
}

impl Store for Embedded {
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
        self.write(|tx| {
            let number = batch.revision.number;
            let mut revisions = tx.open_table(REVISIONS)?;
            let (found, expected) = (newest(&revisions)?, number.saturating_sub(1));
            if found != expected {
                return Err(Failure::Conflict { expected, found });
            }
            revisions.insert(number, render(&batch.revision)?.as_slice())?;
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
        })
    }

    fn revision(&self, number: u64) -> Result<Option<Revision>, StoreError> {
        self.read(|tx| tx.open_table(REVISIONS)?.get(number)?.map(|value| parse(value.value())).transpose())
    }

    fn revisions(&self, after: u64, limit: usize) -> Result<Vec<Revision>, StoreError> {
        self.read(|tx| {
            let table = tx.open_table(REVISIONS)?;
            let range = table.range(after.saturating_add(1)..)?.rev().take(limit);
            range.map(|entry| parse(entry?.1.value())).collect()
        })
    }

    fn put_token(&self, token: &TokenRecord) -> Result<(), StoreError> {
        self.write(|tx| {
            tx.open_table(TOKENS)?.insert(token.id.as_str(), render(token)?.as_slice())?;
            Ok(())
        })
    }

    fn tokens(&self) -> Result<Vec<TokenRecord>, StoreError> {
        self.read(|tx| tx.open_table(TOKENS)?.iter()?.map(|entry| parse(entry?.1.value())).collect())
    }

    fn delete_token(&self, id: &str) -> Result<bool, StoreError> {
        self.write(|tx| Ok(tx.open_table(TOKENS)?.remove(id)?.is_some()))
    }

    fn take_token(
        &self,
        id: &str,
        decide: &mut dyn FnMut(Option<TokenRecord>) -> Option<TokenRecord>,
    ) -> Result<(), StoreError> {
        // Looked at first without writing, so that a wrong token, and one that is reusable, cost no flush of the disk.
        let read: Option<TokenRecord> =
            self.read(|tx| tx.open_table(TOKENS)?.get(id)?.map(|value| parse(value.value())).transpose())?;
        match decide(read.clone()) {
            Some(kept) if Some(&kept) != read.as_ref() => {}
            Some(_) | None => return Ok(()),
        }
        self.write(|tx| {
            let mut table = tx.open_table(TOKENS)?;
            let found = table.get(id)?.map(|value| parse::<TokenRecord>(value.value())).transpose()?;
            if let Some(kept) = decide(found.clone())
                && Some(&kept) != found.as_ref()
            {
                table.insert(id, render(&kept)?.as_slice())?;
            }
            Ok(())
        })
    }
}

fn newest(revisions: &impl ReadableTable<u64, &'static [u8]>) -> Result<u64, Failure> {
    Ok(revisions.last()?.map_or(0, |(number, _)| number.value()))
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(bytes).map_err(|error| Failure::Damaged(error.to_string()))
}

fn render<T: Serialize>(value: &T) -> Result<Vec<u8>, Failure> {
    serde_json::to_vec(value).map_err(|error| Failure::Damaged(error.to_string()))
}

/// What can go wrong in a transaction.
enum Failure {
    Disk(redb::Error),
    Damaged(String),
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
