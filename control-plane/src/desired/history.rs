//! The past of desired state: what a revision changed, and how everything was then.
//! Cost: a look at revision `n` undoes every later revision, newest first.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::value::RawValue;
use weft_core::api::{Object, ObjectKey};

use super::ChangeError;
use crate::{
    state::Desired,
    store::{Change, Json, Store},
};

/// How many revisions are read at once.
const TOGETHER: usize = 100;

/// Every object as it was at a revision.
pub(super) fn at(store: &dyn Store, current: &Desired, number: u64) -> Result<Desired, ChangeError> {
    let missing = ChangeError::NoRevision(number);
    if number > current.revision || (number > 0 && store.revision(number)?.is_none()) {
        return Err(missing);
    }
    let mut objects: BTreeMap<ObjectKey, Arc<Object>> = current.objects.clone();
    let mut from = current.revision;
    while from > number {
        let after = from.saturating_sub(TOGETHER as u64).max(number);
        // A store may be ahead of `current`; what is newer is left out.
        let revisions: Vec<_> = (after + 1..=from).rev().map(|n| store.revision(n)).collect::<Result<_, _>>()?;
        for revision in revisions {
            let revision = revision.ok_or(ChangeError::NoRevision(number))?;
            for change in revision.changes {
                match change.before {
                    Some(json) => {
                        let before = object(&change.key, &json)?;
                        objects.insert(before.key(), Arc::new(before));
                    }
                    None => {
                        if let Ok(key) = change.key.parse::<ObjectKey>() {
                            objects.remove(&key);
                        }
                    }
                }
            }
        }
        from = after;
    }
    Ok(Desired { revision: number, objects })
}

/// What a revision changes, before and after.
pub(super) fn changes(
    current: &Desired,
    objects: &BTreeMap<ObjectKey, Option<Arc<Object>>>,
) -> Result<Vec<Change>, ChangeError> {
    objects
        .iter()
        .map(|(key, after)| {
            let name = key.to_string();
            let before = current.objects.get(key).map(|object| json(&name, object)).transpose()?;
            let after = after.as_ref().map(|object| json(&name, object)).transpose()?;
            Ok(Change { key: name, before, after })
        })
        .collect()
}

/// Reads a stored object.
pub(super) fn object(key: &str, json: &Json) -> Result<Object, ChangeError> {
    serde_json::from_str(json.get()).map_err(|source| ChangeError::Stored { key: key.to_owned(), source })
}

fn json(key: &str, object: &Object) -> Result<Json, ChangeError> {
    let text = serde_json::to_string(object).and_then(RawValue::from_string);
    text.map_err(|source| ChangeError::Stored { key: key.to_owned(), source })
}
