//! Objects: read, list, put, delete, and apply of many in one revision.

use axum::{
    Extension, Json,
    body::Body,
    extract::{Path, State},
    http::StatusCode,
};
use weft_core::{
    answer::{Changed, ChangedObject, Effect, List},
    api::{Kind, Object, ObjectKey},
};

use super::{ApiState, Caller, Failure, body, mesh, query::Parameters};
use crate::desired::{Action, Outcome, Request};

pub(super) async fn apply(
    State(api): ApiState,
    Extension(caller): Extension<Caller>,
    query: Parameters,
    content: Body,
) -> Result<Json<Changed>, Failure> {
    query.only(&["dryRun", "message"])?;
    let dry_run = query.flag("dryRun")?;
    let message = query.message()?;
    let objects = body::objects(&api, content).await?;
    if objects.is_empty() {
        return Err(Failure::field("body", "has no object"));
    }
    let (objects, registered) = mesh::stated(objects);
    let request = Request { action: Action::Apply(objects), author: caller.name, message, dry_run };
    let outcome = api.desired.change(request).await?;
    let mut changed = changed(&api, outcome, dry_run);
    changed.objects.extend(registered.into_iter().map(|key| ChangedObject {
        kind: key.kind,
        namespace: key.namespace,
        name: key.name,
        result: Effect::Unchanged,
        warnings: vec!["it is registered by its proxy and was not applied".to_owned()],
    }));
    Ok(Json(changed))
}

pub(super) async fn list(
    State(api): ApiState,
    Path(kind): Path<String>,
    query: Parameters,
) -> Result<Json<List<Object>>, Failure> {
    query.only(&["namespace", "label"])?;
    let kind = kind_of(&kind)?;
    let labels = labels(&query)?;
    let namespace = query.one("namespace");
    let desired = api.desired.current();
    let view = api.status.view(&desired);
    let items = desired
        .of(kind)
        .filter(|(key, _)| namespace.is_none_or(|wanted| key.namespace == wanted))
        .filter(|(_, object)| has(object, &labels))
        .map(|(_, object)| view.with_status(object))
        .collect();
    Ok(Json(List { revision: desired.revision, items }))
}

pub(super) async fn read(
    State(api): ApiState,
    Path((kind, namespace, name)): Path<(String, String, String)>,
    query: Parameters,
) -> Result<Json<Object>, Failure> {
    query.only(&["revision"])?;
    let key = ObjectKey::new(kind_of(&kind)?, &namespace, &name);
    if let Some(number) = query.number("revision")? {
        let then = api.desired.at(number).await?;
        let object = then.objects.get(&key).ok_or(Failure::NoObject(key))?;
        return Ok(Json((**object).clone()));
    }
    let desired = api.desired.current();
    let object = desired.objects.get(&key).ok_or(Failure::NoObject(key))?;
    Ok(Json(api.status.view(&desired).with_status(object)))
}

pub(super) async fn put(
    State(api): ApiState,
    Extension(caller): Extension<Caller>,
    Path((kind, namespace, name)): Path<(String, String, String)>,
    query: Parameters,
    content: Body,
) -> Result<(StatusCode, Json<Object>), Failure> {
    query.only(&["dryRun", "message"])?;
    let key = ObjectKey::new(kind_of(&kind)?, &namespace, &name);
    let dry_run = query.flag("dryRun")?;
    let message = query.message()?;
    let (objects, registered) = mesh::stated(body::objects(&api, content).await?);
    if let Some(key) = registered.first() {
        return Err(Failure::field("body", format!("{key} is registered by its proxy and cannot be changed")));
    }
    let [object] = objects.as_slice() else {
        return Err(Failure::field("body", format!("must be one object, and has {}", objects.len())));
    };
    let found = object.key();
    for (field, found, wanted) in [
        ("kind", found.kind.as_str(), key.kind.as_str()),
        ("metadata.namespace", found.namespace.as_str(), key.namespace.as_str()),
        ("metadata.name", found.name.as_str(), key.name.as_str()),
    ] {
        if found != wanted {
            return Err(Failure::field(field, format!("is {found:?}, and the path says {wanted:?}")));
        }
    }
    let request = Request { action: Action::Apply(objects), author: caller.name, message, dry_run };
    let outcome = api.desired.change(request).await?;
    let status = match outcome.objects.first() {
        Some((_, Effect::Created)) => StatusCode::CREATED,
        _ => StatusCode::OK,
    };
    let view = if dry_run { api.status.view_once(&outcome.desired) } else { api.status.view(&outcome.desired) };
    let object = outcome.desired.objects.get(&key).ok_or(Failure::NoObject(key))?;
    Ok((status, Json(view.with_status(object))))
}

pub(super) async fn delete(
    State(api): ApiState,
    Extension(caller): Extension<Caller>,
    Path((kind, namespace, name)): Path<(String, String, String)>,
    query: Parameters,
) -> Result<Json<Changed>, Failure> {
    query.only(&["dryRun", "message", "resourceVersion"])?;
    let key = ObjectKey::new(kind_of(&kind)?, &namespace, &name);
    let resource_version = query.one("resourceVersion").map(str::to_owned);
    let dry_run = query.flag("dryRun")?;
    let action = Action::Delete { key, resource_version };
    let outcome =
        api.desired.change(Request { action, author: caller.name, message: query.message()?, dry_run }).await?;
    Ok(Json(changed(&api, outcome, dry_run)))
}

/// The answer to a change.
pub(super) fn changed(api: &super::Api, outcome: Outcome, dry_run: bool) -> Changed {
    let view = if dry_run { api.status.view_once(&outcome.desired) } else { api.status.view(&outcome.desired) };
    let objects = outcome.objects.into_iter().map(|(key, result)| ChangedObject {
        warnings: outcome.desired.objects.get(&key).map(|object| view.warnings(object)).unwrap_or_default(),
        kind: key.kind,
        namespace: key.namespace,
        name: key.name,
        result,
    });
    Changed { revision: outcome.revision, dry_run, objects: objects.collect() }
}

/// The kind of a path, by its plural.
fn kind_of(plural: &str) -> Result<Kind, Failure> {
    Kind::from_plural(plural).ok_or_else(|| Failure::NoKind(plural.to_owned()))
}

/// The labels asked for: `label=app=order`, any number of times.
pub(super) fn labels(query: &Parameters) -> Result<Vec<(String, String)>, Failure> {
    let pair = |text: &str| {
        let (name, value) = text.split_once('=')?;
        Some((name.to_owned(), value.to_owned()))
    };
    let labels = query.all("label").flat_map(|text| text.split(','));
    labels
        .map(|text| pair(text).ok_or_else(|| Failure::field("query.label", "must be of the form name=value")))
        .collect()
}

/// Whether an object has all these labels.
pub(super) fn has(object: &Object, labels: &[(String, String)]) -> bool {
    labels.iter().all(|(name, value)| object.metadata().labels.get(name) == Some(value))
}
