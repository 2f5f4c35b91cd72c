//! The answers of the API, as far as `weft` depends on them: the types of `weft_core::answer`, and here parts of those that the
//! control plane alone writes. Whatever else they contain is only printed.
//! An answer that is not of the expected shape is an error: another program answered, or another version.

use serde::Deserialize;
use serde_json::Value;
pub use weft_core::answer::{Changed, ChangedObject, Detail, Effect, List, Refused};
use weft_core::api::Kind;

/// One answer: the JSON as it came, and its meaning.
#[derive(Debug, Clone)]
pub struct Answer<T> {
    /// As it came, to be printed.
    pub json: Value,
    /// Its meaning.
    pub meaning: T,
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
