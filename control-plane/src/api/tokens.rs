//! Tokens: join tokens are created, listed without their secrets, deleted; the admin token is replaced.

use axum::{
    Extension, Json,
    body::Body,
    extract::{Path, State},
    http::StatusCode,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use weft_core::{
    answer::List,
    api::{Object, ObjectMeta, Workload, duration::parse_time, validate, workload::WorkloadSpec},
};

use super::{ApiState, Caller, Failure, body, query::Parameters};
use crate::{
    ca::{OWN_NAMESPACE, OWN_SERVICE_ACCOUNT},
    store::{TokenPurpose, TokenRecord},
    tokens::{DEFAULT_TTL, JoinTokenRequest, MAX_TTL},
};

/// The body of a request for a join token.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct CreateToken {
    namespace: String,
    service_account: String,
    #[serde(default)]
    ttl: Option<String>,
    #[serde(default)]
    reusable: bool,
}

/// A token without its secret.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct JoinToken {
    id: String,
    namespace: String,
    service_account: String,
    created: Timestamp,
    expires: Option<Timestamp>,
    /// `null`: any number of times.
    uses_left: Option<u32>,
    author: String,
    /// The whole token; only in the answer that creates it.
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
}

pub(super) async fn create(
    State(api): ApiState,
    Extension(caller): Extension<Caller>,
    query: Parameters,
    content: Body,
) -> Result<(StatusCode, Json<JoinToken>), Failure> {
    query.only(&[])?;
    let text = body::text(content).await?;
    let request: CreateToken =
        serde_json::from_str(&text).map_err(|error| Failure::field("body", error.to_string()))?;
    check_names(&request)?;
    if (request.namespace.as_str(), request.service_account.as_str()) == (OWN_NAMESPACE, OWN_SERVICE_ACCOUNT) {
        return Err(Failure::field("serviceAccount", "is the control plane's own, which no workload can be"));
    }
    let ttl = match &request.ttl {
        None => DEFAULT_TTL,
        Some(text) => parse_time(text).map_err(|error| Failure::field("ttl", error.to_string()))?,
    };
    if ttl.is_zero() || ttl > MAX_TTL {
        return Err(Failure::field("ttl", "must be more than 0s and at most 365d"));
    }
    let CreateToken { namespace, service_account, reusable, .. } = request;
    let request = JoinTokenRequest { namespace, service_account, ttl, reusable, author: caller.name };
    let (record, secret) = api.tokens.create(&request, Timestamp::now()).await?;
    let token = token(record).ok_or(Failure::Stopping)?;
    tracing::info!(
        id = token.id,
        namespace = token.namespace,
        account = token.service_account,
        author = token.author,
        "join token created"
    );
    Ok((StatusCode::CREATED, Json(JoinToken { token: Some(secret.reveal().to_owned()), ..token })))
}

/// A token is for a workload that could exist: its names are judged as those of a Workload object.
fn check_names(request: &CreateToken) -> Result<(), Failure> {
    let spec = WorkloadSpec { service_account: Some(request.service_account.clone()), ..WorkloadSpec::default() };
    let workload = Object::Workload(Workload::new(ObjectMeta::new(&request.namespace, "token"), spec));
    let names = [("metadata.namespace", "namespace"), ("spec.serviceAccount", "serviceAccount")];
    let wrong = validate(&workload).into_iter().find_map(|error| {
        let (_, field) = names.iter().find(|(path, _)| *path == error.path)?;
        Some(Failure::field(field, error.reason))
    });
    wrong.map_or(Ok(()), Err)
}

/// Replaces the admin token. Only over the Unix socket, whose users own the data anyway: a stolen token cannot lock its owner
/// out.
pub(super) async fn replace_admin(
    State(api): ApiState,
    Extension(caller): Extension<Caller>,
    query: Parameters,
) -> Result<(StatusCode, Json<serde_json::Value>), Failure> {
    query.only(&[])?;
    if !caller.local {
        return Err(Failure::NotLocal);
    }
    let (tokens, author) = (api.tokens.clone(), caller.name.clone());
    // A task of its own, so that a caller that disconnects never leaves two tokens.
    let replaced = tokio::spawn(async move { tokens.replace_admin(&author, Timestamp::now()).await }).await;
    let secret = replaced.map_err(|_cause| Failure::Stopping)??;
    tracing::warn!(author = caller.name, "the admin token was replaced; the old one is invalid from now on");
    Ok((StatusCode::CREATED, Json(serde_json::json!({"token": secret.reveal()}))))
}

pub(super) async fn list(State(api): ApiState, query: Parameters) -> Result<Json<List<JoinToken>>, Failure> {
    query.only(&[])?;
    let all = api.tokens.list().await?;
    let revision = api.desired.current().revision;
    Ok(Json(List { revision, items: all.into_iter().filter_map(token).collect() }))
}

pub(super) async fn delete(
    State(api): ApiState,
    Path(id): Path<String>,
    query: Parameters,
) -> Result<StatusCode, Failure> {
    query.only(&[])?;
    if api.tokens.delete(&id).await? { Ok(StatusCode::NO_CONTENT) } else { Err(Failure::NoToken(id)) }
}

/// `None` for a token that is no join token.
fn token(record: TokenRecord) -> Option<JoinToken> {
    let TokenPurpose::Join { namespace, service_account } = record.purpose else { return None };
    Some(JoinToken {
        id: record.id,
        namespace,
        service_account,
        created: record.created,
        expires: record.expires,
        uses_left: record.uses_left,
        author: record.author,
        token: None,
    })
}
