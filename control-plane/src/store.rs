//! The store of desired state: everything that must survive a crash.
//! Shape: [`Store`] is the seam; it keeps JSON texts by key, revisions by number, addresses, and tokens, and does not
//! interpret them ([`crate::desired`] does). [`Embedded`] implements it with a redb file.
//! Every call is async and answers when its effect is on disk; [`Store::watch`] yields every committed revision, those of other replicas included.
//! Invariant: a batch is in the store whole or not at all, and a crash never undoes a call that returned `Ok`.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
    path::PathBuf,
    sync::Arc,
};

use futures_util::{future::BoxFuture, stream::BoxStream};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

mod embedded;

pub use embedded::{Embedded, Older};

/// Number of revisions that are kept; an older one cannot be read or rolled back to any more.
pub const MAX_REVISIONS: u64 = 10_000;

/// The answer of a [`Store`].
pub type Stored<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// Where desired state is kept. Small, so that others than [`Embedded`] can implement it.
/// A call that was made takes effect whole or not at all, even if its future is dropped.
pub trait Store: Send + Sync + 'static {
    /// Everything that is current.
    fn load(&self) -> Stored<'_, Loaded>;
    /// Writes a batch, whole or not at all.
    /// Errors: [`StoreError::Conflict`] if the newest revision is not the one before the batch.
    fn commit(&self, batch: Batch) -> Stored<'_, ()>;
    /// Every revision after `after`: those that are there already, then each one as it is committed, in order and without
    /// a gap. The stream ends with its first error.
    /// Errors: [`StoreError::Evicted`] if the next revision is not kept any more: load everything and watch from there.
    fn watch(&self, after: u64) -> BoxStream<'static, Result<Arc<Revision>, StoreError>>;
    /// One revision, if it is still kept.
    fn revision(&self, number: u64) -> Stored<'_, Option<Revision>>;
    /// The revisions of a range that are still kept, newest first, at most `limit`.
    fn revisions(&self, range: RangeInclusive<u64>, limit: usize) -> Stored<'_, Vec<Revision>>;
    /// Writes a token.
    fn put_token(&self, token: TokenRecord) -> Stored<'_, ()>;
    /// Every token.
    fn tokens(&self) -> Stored<'_, Vec<TokenRecord>>;
    /// One token.
    fn token(&self, id: &str) -> Stored<'_, Option<TokenRecord>>;
    /// Writes `new` if the token of its id still is `old`; returns whether it did. No other call comes between.
    fn replace_token(&self, old: TokenRecord, new: TokenRecord) -> Stored<'_, bool>;
    /// Removes a token; returns whether there was one.
    fn delete_token(&self, id: &str) -> Stored<'_, bool>;
}

/// The mesh that a store belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshIdentity {
    /// Random, made with the mesh; 32 lower-case hexadecimal digits.
    pub mesh: String,
    /// SHA-256 of the root's certificate, lower-case hexadecimal.
    pub root: String,
}

/// Where configuration comes from, as proxies compare it: they refuse another mesh, and an older generation or revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// [`MeshIdentity::mesh`].
    pub mesh: String,
    /// Grows when an operator declares an older store to be the one in force; then revisions may go back.
    pub generation: u64,
}

/// Everything that is current in a store.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The newest revision; 0 before the first.
    pub revision: u64,
    /// Objects by key, as JSON.
    pub objects: BTreeMap<String, Json>,
    /// The addresses of services, by `<namespace>/<name>`, also of those that are gone.
    pub addresses: BTreeMap<String, ServiceAddresses>,
}

/// A JSON text.
pub type Json = Box<RawValue>;

/// A revision and its addresses, written in one transaction.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The revision; its number must follow the newest one.
    pub revision: Arc<Revision>,
    /// Addresses that were allocated for it.
    pub addresses: BTreeMap<String, ServiceAddresses>,
}

/// One accepted change of desired state.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Revision {
    /// Its number; they follow each other without a gap.
    pub number: u64,
    /// When it was accepted.
    pub time: Timestamp,
    /// The name of the credential that made it, and of the author if the request had one.
    pub author: String,
    /// The author's reason; may be empty.
    pub message: String,
    /// The revision whose objects it restores, if it is a rollback.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback_to: Option<u64>,
    /// The changed objects, in the order of keys.
    pub changes: Vec<Change>,
}

/// The change of one object in a revision.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Change {
    /// The object.
    pub key: String,
    /// The object before; absent if it was created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Json>,
    /// The object after; absent if it was deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Json>,
}

/// The two addresses of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceAddresses {
    /// Of the mesh's IPv4 range.
    pub v4: Ipv4Addr,
    /// Of the mesh's IPv6 range.
    pub v6: Ipv6Addr,
}

/// A token as it is stored: its secret only as a hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenRecord {
    /// Its public name.
    pub id: String,
    /// SHA-256 of the secret, lower-case hexadecimal.
    pub hash: String,
    /// What it authorises.
    pub purpose: TokenPurpose,
    /// When it was created.
    pub created: Timestamp,
    /// When it expires; `None` for never.
    pub expires: Option<Timestamp>,
    /// The number of uses left; `None` for any number.
    pub uses_left: Option<u32>,
    /// The author of the request that created it.
    pub author: String,
    /// When it was last used, if the number of its uses is bounded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_use: Option<LastUse>,
}

/// A use of a join token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LastUse {
    /// SHA-256 of the public key that was certified, lower-case hexadecimal.
    pub key: String,
    /// When.
    pub at: Timestamp,
}

/// What a token authorises.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum TokenPurpose {
    /// The API.
    Admin {
        /// The author of the changes that it makes.
        name: String,
    },
    /// A workload's first certificate.
    Join {
        /// The workload's namespace.
        namespace: String,
        /// The workload's service account.
        service_account: String,
    },
}

/// Why the store failed. Nothing that was acknowledged is lost; the next call tries again.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk is full or fails.
    #[error("{path}: read or write failed")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Another process has the file open.
    #[error("{path} is in use by another process")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file was written by a version with another layout.
    #[error("{path} has format {found}; this version reads format {expected}")]
    Format {
        /// The file.
        path: PathBuf,
        /// The format of the file.
        found: u64,
        /// The format of this version.
        expected: u64,
    },
    /// The content of the file is not what was written, or cannot be read.
    #[error(
        "{path} is damaged; nothing was started. Restore ca.pem and store.redb from a backup, or begin anew with --new-mesh"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The file is a former state of the store.
    #[error(
        "{path} is older than the last store of this data directory ({found} writes, {expected} are known): restore a newer \
         copy, or start once with --accept-older-store if the older state is intended"
    )]
    Older {
        /// The file.
        path: PathBuf,
        /// The writes that the file contains.
        found: u64,
        /// The writes that were committed.
        expected: u64,
    },
    /// Another revision was committed meanwhile.
    #[error("the newest revision is {found}, not {expected}")]
    Conflict {
        /// The revision that the batch follows.
        expected: u64,
        /// The newest revision.
        found: u64,
    },
    /// A watch is behind the oldest revision that is kept.
    #[error("revision {0} is not kept any more")]
    Evicted(u64),
    /// The process is ending.
    #[error("the control plane is stopping")]
    Stopping,
}
