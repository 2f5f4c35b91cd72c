//! The answers of the API, as far as `weft` depends on them. Whatever else they contain is only printed.
//! An answer that is not of the expected shape is an error: another program answered, or another version.

use serde::Deserialize;
use serde_json::Value;
use weft_core::api::Kind;

/// One answer: the JSON as it came, and its meaning.
#[derive(Debug, Clone)]
pub struct Answer<T> {
    /// As it came, to be printed.
    pub json: Value,
    /// Its meaning.
    pub meaning: T,
}

/// `{"revision": N, "items": […]}`.
#[derive(Debug, Clone, Deserialize)]
pub struct List<T> {
    /// The revision of desired state to which the items belong.
    pub revision: u64,
    /// Its items.
    pub items: Vec<T>,
}

/// An object.
#[derive(Debug, Clone, Deserialize)]
pub struct Object {
    /// Its kind.
    pub kind: Kind,
    /// Its metadata.
    pub metadata: Metadata,
}

/// The metadata of an object.
#[derive(Debug, Clone, Deserialize)]
pub struct Metadata {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
}

/// A proxy.
#[derive(Debug, Clone, Deserialize)]
pub struct Proxy {
    /// Its key in the control plane.
    pub key: ProxyKey,
}

/// The key of a proxy in the control plane.
#[derive(Debug, Clone, Deserialize)]
pub struct ProxyKey {
    /// `<namespace>/<name>`.
    pub name: String,
}

/// A revision.
#[derive(Debug, Clone, Deserialize)]
pub struct Revision {
    /// Its number.
    pub number: u64,
}

/// A join token.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JoinToken {
    /// Its id.
    pub id: String,
    /// The namespace of its workload.
    pub namespace: String,
    /// The service account of its workload.
    pub service_account: String,
    /// The whole token; only in the answer to its creation.
    pub token: Option<String>,
}

/// A new admin token.
#[derive(Debug, Clone, Deserialize)]
pub struct AdminToken {
    /// The whole token.
    pub token: String,
}

/// The result of a change.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Changed {
    /// The revision that is in force now.
    pub revision: u64,
    /// Nothing was changed: this is what would be.
    #[serde(default)]
    pub dry_run: bool,
    /// One per object.
    pub objects: Vec<ChangedObject>,
}

/// The result of a change for one object.
#[derive(Debug, Clone, Deserialize)]
pub struct ChangedObject {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The effect on it.
    pub result: Effect,
    /// Problems that are no errors.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// The effect of a change on an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// The object is new.
    Created,
    /// The object was replaced.
    Configured,
    /// The object was the same already.
    Unchanged,
    /// The object was deleted.
    Deleted,
}

impl Effect {
    /// Its name: `created`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Configured => "configured",
            Self::Unchanged => "unchanged",
            Self::Deleted => "deleted",
        }
    }
}
