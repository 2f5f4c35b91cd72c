//! When conditions last changed their status, as far as this process has seen. Kept in memory only: nothing is written when
//! a status is made, and after a restart every time begins anew.

use std::collections::BTreeMap;

use jiff::Timestamp;
use weft_core::api::{Condition, ConditionStatus, Object, ObjectKey, Status};

use crate::desired::Desired;

/// What was last seen of each object.
#[derive(Debug, Default)]
pub(super) struct Times {
    objects: BTreeMap<ObjectKey, Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// Another object of the same name begins anew.
    uid: Option<String>,
    conditions: Vec<Known>,
}

#[derive(Debug)]
struct Known {
    place: Place,
    kind: String,
    status: ConditionStatus,
    since: Timestamp,
}

/// Whose condition it is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Object,
    /// The parent at this place of the route's list.
    Parent(usize),
    Listener(String),
}

impl Times {
    /// Writes into each condition since when it has its status: `now` where it is another one than was last seen.
    pub(super) fn note(&mut self, object: &Object, status: &mut Status, now: Timestamp) {
        // As Kubernetes writes times.
        let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
        let uid = &object.metadata().uid;
        let seen = self.objects.entry(object.key()).or_default();
        if seen.uid != *uid {
            *seen = Seen { uid: uid.clone(), conditions: Vec::new() };
        }
        let old = std::mem::take(&mut seen.conditions);
        for (place, condition) in all(status) {
            let known = old.iter().find(|it| it.place == place && it.kind == condition.kind);
            let since = known.filter(|it| it.status == condition.status).map_or(now, |it| it.since);
            condition.last_transition_time = Some(since);
            let (kind, status) = (condition.kind.clone(), condition.status);
            seen.conditions.push(Known { place, kind, status, since });
        }
    }

    /// Since when an object's own condition has its status.
    #[cfg(test)]
    pub(super) fn since(&self, object: &Object, kind: &str) -> Option<Timestamp> {
        let mut conditions = self.objects.get(&object.key())?.conditions.iter();
        conditions.find(|it| it.place == Place::Object && it.kind == kind).map(|it| it.since)
    }

    /// Forgets objects that are gone.
    pub(super) fn keep(&mut self, desired: &Desired) {
        self.objects.retain(|key, _| desired.objects.contains_key(key));
    }
}

/// Every condition of a status.
fn all(status: &mut Status) -> impl Iterator<Item = (Place, &mut Condition)> {
    let own = status.conditions.iter_mut().map(|it| (Place::Object, it));
    let parents = status.parents.iter_mut().enumerate();
    let parents =
        parents.flat_map(|(index, parent)| parent.conditions.iter_mut().map(move |it| (Place::Parent(index), it)));
    let listeners = status.listeners.iter_mut().flat_map(|listener| {
        let name = listener.name.clone();
        listener.conditions.iter_mut().map(move |it| (Place::Listener(name.clone()), it))
    });
    own.chain(parents).chain(listeners)
}
