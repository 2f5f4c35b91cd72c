//! Revisions: the list, one revision with its changes, and rollback.

use axum::{
    Extension, Json,
    extract::{Path, State},
};
use jiff::Timestamp;
use serde::Serialize;
use weft_core::answer::{Changed, Effect, List};

use super::{ApiState, Caller, Failure, objects::changed, query::Parameters};
use crate::{
    desired::{Action, Request},
    store::Revision,
};

/// Revisions in an answer: default and maximum.
const LIMIT: (u64, u64) = (100, 1_000);

/// A revision without the objects.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Summary {
    number: u64,
    time: Timestamp,
    author: String,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    rollback_to: Option<u64>,
    changes: Vec<ChangedKey>,
}

#[derive(Serialize)]
struct ChangedKey {
    key: String,
    result: Effect,
}

pub(super) async fn list(State(api): ApiState, query: Parameters) -> Result<Json<List<Summary>>, Failure> {
    query.only(&["limit"])?;
    let limit = query.number("limit")?.unwrap_or(LIMIT.0);
    if !(1..=LIMIT.1).contains(&limit) {
        return Err(Failure::field("query.limit", format!("must be 1 to {}", LIMIT.1)));
    }
    let revision = api.desired.current().revision;
    let items = api.desired.revisions(usize::try_from(limit).unwrap_or(usize::MAX)).await?;
    Ok(Json(List { revision, items: items.into_iter().map(summary).collect() }))
}

pub(super) async fn read(
    State(api): ApiState,
    Path(number): Path<String>,
    query: Parameters,
) -> Result<Json<Revision>, Failure> {
    query.only(&[])?;
    let revision = api.desired.revision(parse(&number)?).await?;
    revision.map(Json).ok_or(Failure::NoRevision(number))
}

pub(super) async fn rollback(
    State(api): ApiState,
    Extension(caller): Extension<Caller>,
    Path(number): Path<String>,
    query: Parameters,
) -> Result<Json<Changed>, Failure> {
    query.only(&["dryRun", "message"])?;
    let action = Action::Rollback(parse(&number)?);
    let dry_run = query.flag("dryRun")?;
    let request = Request { action, author: caller.name, message: query.message()?, dry_run };
    let outcome = api.desired.change(request).await?;
    Ok(Json(changed(&api, outcome, dry_run)))
}

fn parse(number: &str) -> Result<u64, Failure> {
    number.parse().map_err(|_cause| Failure::field("path.number", "must be the number of a revision"))
}

fn summary(revision: Revision) -> Summary {
    let changes = revision.changes.into_iter().map(|change| ChangedKey {
        result: match (change.before, change.after) {
            (None, _) => Effect::Created,
            (Some(_), Some(_)) => Effect::Configured,
            (Some(_), None) => Effect::Deleted,
        },
        key: change.key,
    });
    Summary {
        number: revision.number,
        time: revision.time,
        author: revision.author,
        message: revision.message,
        rollback_to: revision.rollback_to,
        changes: changes.collect(),
    }
}
