//! The store of desired state: what must survive anything.
//! Shape: [`Store`] is the seam; it keeps JSON texts by key, revisions by number, addresses, and join tokens, and knows
//! nothing of their meaning ([`crate::desired`] does). [`Embedded`] is the one here: a redb file.
//! Every call blocks until what it did is on disk; async callers use `spawn_blocking`.
//! Invariant: a batch is in the store whole or not at all, and a call that returned `Ok` is never undone by a crash.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

mod embedded;

pub use embedded::Embedded;

/// How many revisions are kept; an older one cannot be read or rolled back to any more.
pub const MAX_REVISIONS: u64 = 10_000;

/// Where desired state is kept. Small, so that other places can follow.
pub trait Store: Send + Sync + 'static {
    /// Everything that is current.
    fn load(&self) -> Result<Loaded, StoreError>;
    /// Writes a batch, whole or not at all.
    /// Errors: [`StoreError::Conflict`] when the newest revision is not the one that the batch was made for.
    fn commit(&self, batch: &Batch) -> Result<(), StoreError>;
    /// One revision, if it is still kept.
    fn revision(&self, number: u64) -> Result<Option<Revision>, StoreError>;
    /// The revisions above `after`, newest first, at most `limit`.
    fn revisions(&self, after: u64, limit: usize) -> Result<Vec<Revision>, StoreError>;
    /// Writes a join token, or the API's own.
    fn put_token(&self, token: &TokenRecord) -> Result<(), StoreError>;
    /// Every token.
    fn tokens(&self) -> Result<Vec<TokenRecord>, StoreError>;
    /// Removes a token; says whether there was one.
    fn delete_token(&self, id: &str) -> Result<bool, StoreError>;
    /// Reads a token and writes what `decide` makes of it, in one step that no other call can come between.
    /// `decide` returns the token as it is to be kept, or an error that leaves it as it is.
    fn take_token(
        &self,
        id: &str,
        decide: &mut dyn FnMut(Option<TokenRecord>) -> Option<TokenRecord>,
    ) -> Result<(), StoreError>;
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

/// What is written in one step.
#[derive(Debug)]
pub struct Batch {
    /// The revision; its number must follow the newest one.
    pub revision: Revision,
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
    /// Who made it.
    pub author: String,
    /// Why, in the author's words; may be empty.
    pub message: String,
    /// The revision that it goes back to, if it is a rollback.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback_to: Option<u64>,
    /// What changed, in the order of keys.
    pub changes: Vec<Change>,
}

/// What a revision did to one object.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Change {
    /// The object.
    pub key: String,
    /// What it was; absent when it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Json>,
    /// What it is; absent when it was deleted.
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

/// A token as it is kept: its secret only as a hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenRecord {
    /// Its public name.
    pub id: String,
    /// SHA-256 of the secret, lower-case hexadecimal.
    pub hash: String,
    /// What it is good for.
    pub purpose: TokenPurpose,
    /// When it was made.
    pub created: Timestamp,
    /// When it ends; `None` for never.
    pub expires: Option<Timestamp>,
    /// How often it can still be used; `None` for any number of times.
    pub uses_left: Option<u32>,
    /// Who made it.
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

/// What a token is good for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum TokenPurpose {
    /// The API.
    Admin {
        /// The author of what is done with it.
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

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk is full or fails. Nothing is lost that was acknowledged; the next call tries anew.
    #[error("{path} cannot be read or written")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: Box<redb::Error>,
    },
    /// Another process has the file.
    #[error("{path} is in use by another process")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file holds what this version cannot read.
    #[error("{path} is damaged: {reason}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Something else was written meanwhile.
    #[error("the newest revision is {found}, not {expected}")]
    Conflict {
        /// What the batch was made for.
        expected: u64,
        /// What is there.
        found: u64,
    },
}
