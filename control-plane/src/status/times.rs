//! The time of the last change of each condition's status, as observed by this process. Kept in memory only: reading a status
//! writes nothing, and after a restart every time begins anew.

use std::collections::BTreeMap;

use jiff::Timestamp;
use weft_core::api::{Condition, ConditionStatus, Object, ObjectKey, Status};

use crate::desired::Desired;

/// The conditions of each object, as last seen.
#[derive(Debug, Default)]
pub(super) struct Times {
    objects: BTreeMap<ObjectKey, Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// The times of another object of the same name begin anew.
    uid: Option<String>,
    conditions: Vec<SeenCondition>,
}

#[derive(Debug)]
struct SeenCondition {
    owner: Owner,
    kind: String,
    status: ConditionStatus,
    since: Timestamp,
}

/// The part of an object that a condition is about.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Owner {
    Object,
    /// A parent of a route, by its position in the list.
    Parent(usize),
    Listener(String),
}

impl Times {
    /// Sets the transition time of each condition: `now` if its status is another one than last seen.
    pub(super) fn note(&mut self, object: &Object, status: &mut Status, now: Timestamp) {
        // Whole seconds, as Kubernetes writes times.
        let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
        let uid = &object.metadata().uid;
        let seen = self.objects.entry(object.key()).or_default();
        if seen.uid != *uid {
            *seen = Seen { uid: uid.clone(), conditions: Vec::new() };
        }
        let old = std::mem::take(&mut seen.conditions);
        for (owner, condition) in all(status) {
            let known = old.iter().find(|it| it.owner == owner && it.kind == condition.kind);
            let since = known.filter(|it| it.status == condition.status).map_or(now, |it| it.since);
            condition.last_transition_time = Some(since);
            let (kind, status) = (condition.kind.clone(), condition.status);
            seen.conditions.push(SeenCondition { owner, kind, status, since });
        }
    }

    /// The time since which an object's own condition has its status.
    #[cfg(test)]
    pub(super) fn since(&self, object: &Object, kind: &str) -> Option<Timestamp> {
        let mut conditions = self.objects.get(&object.key())?.conditions.iter();
        conditions.find(|it| it.owner == Owner::Object && it.kind == kind).map(|it| it.since)
    }

    /// Drops deleted objects.
    pub(super) fn keep(&mut self, desired: &Desired) {
        self.objects.retain(|key, _| desired.objects.contains_key(key));
    }
}

/// Every condition of a status.
fn all(status: &mut Status) -> impl Iterator<Item = (Owner, &mut Condition)> {
    let own = status.conditions.iter_mut().map(|it| (Owner::Object, it));
    let parents = status.parents.iter_mut().enumerate();
    let parents =
        parents.flat_map(|(index, parent)| parent.conditions.iter_mut().map(move |it| (Owner::Parent(index), it)));
    let listeners = status.listeners.iter_mut().flat_map(|listener| {
        let name = listener.name.clone();
        listener.conditions.iter_mut().map(move |it| (Owner::Listener(name.clone()), it))
    });
    own.chain(parents).chain(listeners)
}
