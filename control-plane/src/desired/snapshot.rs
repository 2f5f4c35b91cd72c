//! Desired state as a snapshot: every object at one revision.

use std::{collections::BTreeMap, sync::Arc};

use weft_core::api::{Kind, Object, ObjectKey};

/// Every object at one revision.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    /// The revision; 0 before the first.
    pub revision: u64,
    /// The objects. An unchanged one is the same `Arc` as in the snapshot before.
    pub objects: BTreeMap<ObjectKey, Arc<Object>>,
}

impl Desired {
    /// The objects of one kind, in the order of namespace and name.
    pub fn of(&self, kind: Kind) -> impl Iterator<Item = (&ObjectKey, &Arc<Object>)> {
        self.objects.range(ObjectKey::new(kind, "", "")..).take_while(move |(key, _)| key.kind == kind)
    }
}
