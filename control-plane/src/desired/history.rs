//! The history of desired state: the changes of a revision, and all objects as of a revision.
//! Cost: reading revision `n` undoes every later revision, newest first.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::value::RawValue;
use weft_core::api::{Object, ObjectKey};

use super::{ChangeError, Desired};
use crate::store::{Change, Json, Revision, Store};

/// Revisions that are read at a time.
const BATCH: u64 = 100;

/// Every object as it was at a revision.
pub(super) async fn at(store: &dyn Store, current: &Desired, number: u64) -> Result<Desired, ChangeError> {
    let missing = || ChangeError::NoRevision(number);
    if number > current.revision || (number > 0 && store.revision(number).await?.is_none()) {
        return Err(missing());
    }
    let mut objects: BTreeMap<ObjectKey, Arc<Object>> = current.objects.clone();
    let mut from = current.revision;
    while from > number {
        // The store may be ahead of `current`; newer revisions are left out.
        let after = from.saturating_sub(BATCH).max(number);
        let revisions = store.revisions(after + 1..=from, usize::MAX).await?;
        if revisions.len() as u64 != from - after {
            return Err(missing());
        }
        for change in revisions.into_iter().flat_map(|revision| revision.changes) {
            put(&mut objects, &change.key, change.before.as_ref())?;
        }
        from = after;
    }
    Ok(Desired { revision: number, objects })
}

/// The snapshot after a revision that follows `current`.
pub(super) fn apply(current: &Desired, revision: &Revision) -> Result<Desired, ChangeError> {
    let mut objects = current.objects.clone();
    for change in &revision.changes {
        put(&mut objects, &change.key, change.after.as_ref())?;
    }
    Ok(Desired { revision: revision.number, objects })
}

/// Writes one stored object, or removes it.
fn put(objects: &mut BTreeMap<ObjectKey, Arc<Object>>, key: &str, json: Option<&Json>) -> Result<(), ChangeError> {
    match json {
        Some(json) => {
            let object = object(key, json)?;
            objects.insert(object.key(), Arc::new(object));
        }
        None => {
            if let Ok(key) = key.parse::<ObjectKey>() {
                objects.remove(&key);
            }
        }
    }
    Ok(())
}

/// The changes of a revision, before and after.
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
