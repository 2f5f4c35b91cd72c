//! Admission of a change: pure, from the current snapshot and the request to the writes.
//! `weft_core::api` has validated each object by itself; the checks here take other objects into account. A reference to an
//! object that does not exist is no reason to reject, so that the order of applying does not matter; the status reports it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use jiff::Timestamp;
use weft_core::{
    answer::Effect,
    api::{FieldError, Kind, Object, ObjectKey},
};

use super::{AddressBook, ChangeError, Desired, Refusal, addresses::in_mesh_range};
use crate::{crypto, store::ServiceAddresses};

/// The writes of a change.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// The effect on each object of the request.
    pub(super) effects: Vec<(ObjectKey, Effect)>,
    /// The objects to write; `None` deletes.
    pub(super) objects: BTreeMap<ObjectKey, Option<Arc<Object>>>,
    /// New addresses.
    pub(super) allocated: BTreeMap<String, ServiceAddresses>,
}

/// Creates or replaces objects.
pub(super) fn plan_apply(
    current: &Desired,
    addresses: &AddressBook,
    objects: Vec<Object>,
    now: Timestamp,
) -> Result<Plan, ChangeError> {
    let mut refusals = stale(current, &objects);
    let named: BTreeSet<ObjectKey> = objects.iter().map(Object::key).collect();
    let mut in_use: BTreeSet<IpAddr> = objects.iter().flat_map(given).collect();
    in_use.extend(
        current.of(Kind::Service).filter(|(key, _)| !named.contains(key)).flat_map(|(_, object)| given(object)),
    );
    let mut plan = Plan::default();
    let mut cursor = 0;
    let next = current.revision.saturating_add(1).to_string();
    for mut object in objects {
        let key = object.key();
        if let Object::Service(service) = &mut object {
            let name = format!("{}/{}", key.namespace, key.name);
            let mut all = service.spec.addresses();
            // A service without an address gets the one it had before, even if it was deleted meanwhile.
            if all.is_empty() {
                let pair = match addresses.find(&name) {
                    Some(pair) => pair,
                    None => {
                        let pair = addresses.allocate(&mut cursor, |address| in_use.contains(&address));
                        let pair = pair.ok_or(ChangeError::NoAddress)?;
                        plan.allocated.insert(name, pair);
                        pair
                    }
                };
                all = vec![pair.v4.into(), pair.v6.into()];
            }
            service.spec.cluster_ip = all.first().copied();
            service.spec.cluster_ips = all;
        }
        // The status is computed, never stored.
        *object.status_mut() = None;
        let old = current.objects.get(&key);
        let effect = match old {
            None => Effect::Created,
            Some(old) if same(old, &object) => Effect::Unchanged,
            Some(_) => Effect::Configured,
        };
        plan.effects.push((key.clone(), effect));
        if effect == Effect::Unchanged {
            continue;
        }
        let generation = old.and_then(|old| old.metadata().generation).unwrap_or(0);
        let grows = old.is_none_or(|old| !old.same_spec(&object));
        let metadata = object.metadata_mut();
        metadata.uid = Some(match old.and_then(|old| old.metadata().uid.clone()) {
            Some(uid) => uid,
            None => crypto::uuid()?,
        });
        metadata.creation_timestamp = old.and_then(|old| old.metadata().creation_timestamp).or(Some(now));
        metadata.generation = Some(generation + u64::from(grows));
        metadata.resource_version = Some(next.clone());
        plan.objects.insert(key, Some(Arc::new(object)));
    }
    refusals.extend(together(current, addresses, &plan));
    finish(plan, refusals)
}

/// Deletes an object.
pub(super) fn plan_delete(
    current: &Desired,
    key: ObjectKey,
    resource_version: Option<&str>,
) -> Result<Plan, ChangeError> {
    let Some(object) = current.objects.get(&key) else { return Err(ChangeError::NoObject(key)) };
    let found = object.metadata().resource_version.as_deref();
    if let Some(expected) = resource_version
        && found != Some(expected)
    {
        let error = FieldError::invalid("metadata.resourceVersion", changed_meanwhile(expected, found));
        return Err(ChangeError::Conflict(vec![Refusal { index: None, object: Some(key), error }]));
    }
    Ok(Plan { effects: vec![(key.clone(), Effect::Deleted)], objects: [(key, None)].into(), ..Plan::default() })
}

/// Restores all objects as of a revision.
pub(super) fn plan_restore(current: &Desired, addresses: &AddressBook, then: Desired) -> Result<Plan, ChangeError> {
    let mut plan = Plan::default();
    let next = current.revision.saturating_add(1).to_string();
    for (key, old) in &then.objects {
        let now = current.objects.get(key);
        if now.is_some_and(|now| same(now, old)) {
            continue;
        }
        let mut object = (**old).clone();
        let grows = now.is_some_and(|now| !now.same_spec(old));
        let metadata = object.metadata_mut();
        if let Some(now) = now {
            metadata.uid.clone_from(&now.metadata().uid);
            metadata.creation_timestamp = now.metadata().creation_timestamp;
            metadata.generation = now.metadata().generation.map(|generation| generation + u64::from(grows));
        }
        metadata.resource_version = Some(next.clone());
        plan.effects.push((key.clone(), if now.is_some() { Effect::Configured } else { Effect::Created }));
        plan.objects.insert(key.clone(), Some(Arc::new(object)));
    }
    for key in current.objects.keys().filter(|key| !then.objects.contains_key(*key)) {
        plan.effects.push((key.clone(), Effect::Deleted));
        plan.objects.insert(key.clone(), None);
    }
    let refusals = together(current, addresses, &plan);
    finish(plan, refusals)
}

fn finish(plan: Plan, refusals: Vec<Refusal>) -> Result<Plan, ChangeError> {
    if refusals.is_empty() { Ok(plan) } else { Err(ChangeError::Conflict(refusals)) }
}

/// Rejects objects that are based on another resource version or uid than the current one, and repeated ones.
fn stale(current: &Desired, objects: &[Object]) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    let mut seen: BTreeMap<ObjectKey, usize> = BTreeMap::new();
    for (index, object) in objects.iter().enumerate() {
        let key = object.key();
        let metadata = object.metadata();
        let old = current.objects.get(&key).map(|old| old.metadata());
        let mut refuse = |path: &str, reason: String| {
            refusals.push(Refusal {
                index: Some(index),
                object: Some(key.clone()),
                error: FieldError::invalid(path, reason),
            });
        };
        if let Some(expected) = &metadata.resource_version {
            let found = old.and_then(|old| old.resource_version.as_deref());
            if found != Some(expected) {
                refuse("metadata.resourceVersion", changed_meanwhile(expected, found));
            }
        }
        if let Some(expected) = &metadata.uid
            && old.and_then(|old| old.uid.as_ref()) != Some(expected)
        {
            refuse("metadata.uid", "belongs to another object of this name, or to a deleted one".to_owned());
        }
        if let Some(first) = seen.get(&key) {
            refuse("metadata.name", format!("the same object as number {} of this request", first + 1));
        }
        seen.entry(key).or_insert(index);
    }
    refusals
}

fn changed_meanwhile(expected: &str, found: Option<&str>) -> String {
    match found {
        Some(found) => format!("changed meanwhile: is {found}, not {expected}"),
        None => format!("there is no such object any more, or not yet; {expected} was expected"),
    }
}

/// Conflicts between objects after the change.
fn together(current: &Desired, addresses: &AddressBook, plan: &Plan) -> Vec<Refusal> {
    let kept = current.objects.iter().filter(|(key, _)| !plan.objects.contains_key(*key));
    let written = plan.objects.iter().filter_map(|(key, object)| Some((key, object.as_ref()?)));
    // Current objects first, so that a conflict is reported on the object of the request.
    let all: Vec<(&ObjectKey, &Arc<Object>, bool)> =
        kept.map(|(k, o)| (k, o, false)).chain(written.map(|(k, o)| (k, o, true))).collect();
    let mut refusals = Vec::new();
    let mut by_address: BTreeMap<IpAddr, &ObjectKey> = BTreeMap::new();
    let mut mesh_config: Option<&ObjectKey> = None;
    let mut targets: BTreeMap<(&str, String), &ObjectKey> = BTreeMap::new();
    for (key, object, new) in all {
        let mut refuse = |path: String, reason: String| {
            if new {
                let index = plan.effects.iter().position(|(named, _)| named == key);
                refusals.push(Refusal { index, object: Some(key.clone()), error: FieldError::invalid(path, reason) });
            }
        };
        match &**object {
            Object::Service(service) => {
                let own = format!("{}/{}", key.namespace, key.name);
                for (index, address) in service.spec.addresses().into_iter().enumerate() {
                    let path = || format!("spec.clusterIPs[{index}]");
                    if let Some(other) = by_address.insert(address, key) {
                        refuse(path(), format!("{address} is the address of {other}"));
                    } else if let Some(owner) = addresses.owner(address).filter(|owner| *owner != own) {
                        refuse(path(), format!("{address} is kept for the service {owner}"));
                    } else if in_mesh_range(address) && (address.is_multicast() || is_last(address)) {
                        refuse(path(), format!("{address} cannot be the address of a service"));
                    }
                }
            }
            Object::MeshConfig(_) => {
                if let Some(other) = mesh_config.replace(key) {
                    refuse(
                        "metadata.name".to_owned(),
                        format!("there is one MeshConfig for the whole mesh, and {other} is there"),
                    );
                }
            }
            Object::TrafficPolicy(policy) => {
                let target = serde_json::to_string(&policy.spec.target_ref).unwrap_or_default();
                if let Some(other) = targets.insert((key.namespace.as_str(), target), key) {
                    refuse(
                        "spec.targetRef".to_owned(),
                        format!("{other} is for the same target; put both into one policy"),
                    );
                }
            }
            Object::Workload(_) | Object::Gateway(_) | Object::HttpRoute(_) | Object::AuthorizationPolicy(_) => {}
        }
    }
    refusals
}

fn is_last(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(v4) if v4.is_broadcast())
}

fn given(object: &Object) -> Vec<IpAddr> {
    if let Object::Service(service) = object { service.spec.addresses() } else { Vec::new() }
}

/// Whether two objects have the same spec, labels and annotations.
fn same(one: &Object, two: &Object) -> bool {
    let (a, b) = (one.metadata(), two.metadata());
    one.same_spec(two) && a.labels == b.labels && a.annotations == b.annotations
}
