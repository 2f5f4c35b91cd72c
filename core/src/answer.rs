//! Answers of the REST API that the control plane writes and `weft` reads.
//! Unknown fields are ignored, so that a program reads the answers of a newer one.

use serde::{Deserialize, Serialize};

use crate::api::Kind;

/// `{"revision": N, "items": […]}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct List<T> {
    /// The revision of desired state to which the items belong.
    pub revision: u64,
    /// Its items.
    pub items: Vec<T>,
}

/// The result of a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Changed {
    /// The revision that is in force now; for a dry run the number that it would have.
    pub revision: u64,
    /// Nothing was changed: this is what would be.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    /// One per object.
    pub objects: Vec<ChangedObject>,
}

/// The result of a change for one object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// The effect of a change on an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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

/// The reason for which a request was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// In one line.
    pub error: String,
    /// One per mistake.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<Detail>,
}

/// One mistake in a request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Detail {
    /// Path such as `spec.rules[0].matches[0].path.value`.
    pub field: String,
    /// The reason, without the field.
    pub reason: String,
    /// `Kind/namespace/name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// Index of the document in the request, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub document: Option<usize>,
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// (20.26)
    #[test]
    fn what_is_written_is_read_and_what_a_newer_program_adds_is_ignored() {
        let object = json!({"kind": "Service", "namespace": "shop", "name": "a", "result": "created"});
        let mut written = json!({"revision": 4, "objects": [object]});
        let changed: Changed = serde_json::from_value(written.clone()).unwrap();
        assert_eq!(serde_json::to_value(&changed).unwrap(), written);
        written["new"] = json!({});
        written["objects"][0]["new"] = Value::Null;
        assert_eq!(serde_json::from_value::<Changed>(written).unwrap(), changed);
        for effect in [Effect::Created, Effect::Configured, Effect::Unchanged, Effect::Deleted] {
            assert_eq!(serde_json::to_value(effect).unwrap(), effect.as_str());
        }
        let refused = json!({"error": "no", "details": [{"field": "ttl", "reason": "must be short"}]});
        let read: Refused = serde_json::from_value(refused.clone()).unwrap();
        assert_eq!(serde_json::to_value(&read).unwrap(), refused);
        let newer = json!({"error": "no", "details": [{"reason": "x", "new": 1}], "new": 1});
        assert_eq!(serde_json::from_value::<Refused>(newer).unwrap().details[0].reason, "x");
    }
}
