//! The REST API: objects, revisions, proxies, workloads, tokens. Its reference is docs/reference/api.md.
//! Shape: [`router`] makes the routes; the TLS listener and the Unix socket both serve them.
//! Everything but `/healthz` and `/readyz` needs a credential: an admin token, or a connection on the Unix socket.
//! Bounds: bodies 4 MiB, a request 30 s, 256 requests at once.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use axum::{
    Router,
    extract::{Request, State},
    http::StatusCode,
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing,
};
use jiff::Timestamp;
use tokio::sync::Semaphore;

use crate::{
    ca::Authority,
    desired::DesiredState,
    metrics::Metrics,
    state::Mesh,
    status::StatusBook,
    tokens::{TokenError, Tokens},
};

mod body;
mod failure;
mod mesh;
mod objects;
mod query;
mod revisions;
mod tokens;

use failure::Failure;

/// Timeout of a request, its body included.
const DEADLINE: Duration = Duration::from_secs(30);
/// Maximum number of requests in flight.
const AT_ONCE: usize = 256;
/// The field on every answer by which a client recognises this API, also on errors.
const API: (&str, &str) = ("weft-api", "v1");
/// Bodies that are parsed at once: parsing a hostile one can take much more memory than its size.
pub const PARSED_AT_ONCE: usize = 2;

/// The rooms that the API works on.
pub struct Api {
    /// Desired state.
    pub desired: DesiredState,
    /// The state of the mesh.
    pub mesh: Mesh,
    /// The status of objects.
    pub status: Arc<StatusBook>,
    /// Tokens.
    pub tokens: Tokens,
    /// The root.
    pub authority: Arc<Authority>,
    /// Counters of answers.
    pub metrics: Arc<Metrics>,
    /// Permits to parse a body, see [`PARSED_AT_ONCE`].
    pub parsing: Arc<Semaphore>,
}

type ApiState = State<Arc<Api>>;

/// The caller of a request.
#[derive(Clone, Debug)]
struct Caller {
    /// The name of the credential.
    name: String,
    /// It uses the Unix socket.
    local: bool,
}

/// The API's routes.
pub fn router(api: Arc<Api>) -> Router {
    let slots = Arc::new(Semaphore::new(AT_ONCE));
    let metrics = Arc::clone(&api.metrics);
    let guarded = Router::new()
        .route("/api/v1/apply", routing::post(objects::apply))
        .route("/api/v1/{kind}", routing::get(objects::list))
        .route(
            "/api/v1/{kind}/{namespace}/{name}",
            routing::get(objects::read).put(objects::put).delete(objects::delete),
        )
        .route("/api/v1/revisions", routing::get(revisions::list))
        .route("/api/v1/revisions/{number}", routing::get(revisions::read))
        .route("/api/v1/rollback/{number}", routing::post(revisions::rollback))
        .route("/api/v1/proxies", routing::get(mesh::proxies))
        .route("/api/v1/workloads", routing::get(mesh::workloads))
        .route("/api/v1/bundle", routing::get(mesh::bundle))
        .route("/api/v1/tokens", routing::get(tokens::list).post(tokens::create))
        .route("/api/v1/admin-token", routing::post(tokens::replace_admin))
        .route("/api/v1/tokens/{id}", routing::delete(tokens::delete))
        .fallback(|| async { Failure::NoPath })
        .method_not_allowed_fallback(|| async { Failure::Method })
        .layer(middleware::from_fn_with_state(Arc::clone(&api), authenticate));
    Router::new()
        .route("/healthz", routing::get(|| async { "ok\n" }))
        .route("/readyz", routing::get(ready))
        .merge(guarded)
        .layer(middleware::from_fn_with_state((slots, metrics), bound))
        .with_state(api)
}

async fn ready(State(api): ApiState) -> Response {
    match api.metrics.ready.load(Ordering::Acquire) {
        true => "ready\n".into_response(),
        false => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n").into_response(),
    }
}

/// Bounds the number of requests in flight and their time, and counts the answers.
async fn bound(
    State((slots, metrics)): State<(Arc<Semaphore>, Arc<Metrics>)>,
    request: Request,
    next: Next,
) -> Response {
    let mut response = match slots.try_acquire() {
        Err(_) => Failure::Busy.into_response(),
        Ok(_slot) => match tokio::time::timeout(DEADLINE, next.run(request)).await {
            Ok(response) => response,
            Err(_) => Failure::Slow.into_response(),
        },
    };
    metrics.api_answer(response.status());
    let (name, version) = API;
    response.headers_mut().insert(name, http::HeaderValue::from_static(version));
    response
}

/// Rejects requests without a credential.
async fn authenticate(State(api): ApiState, mut request: Request, next: Next) -> Result<Response, Failure> {
    let local = request.extensions().get::<crate::serve::Peer>().is_some_and(|peer| peer.local);
    let caller = if local { "local".to_owned() } else { admin(&api, request.headers()).await? };
    let name = match request.headers().get("x-weft-author").map(|value| value.to_str()) {
        None => caller,
        Some(Ok(author)) if (1..=128).contains(&author.len()) => format!("{author} ({caller})"),
        Some(_) => return Err(Failure::field("x-weft-author", "must be 1 to 128 printable ASCII characters")),
    };
    request.extensions_mut().insert(Caller { name, local });
    Ok(next.run(request).await)
}

async fn admin(api: &Api, headers: &http::HeaderMap) -> Result<String, Failure> {
    let header = headers.get(http::header::AUTHORIZATION).ok_or(Failure::NoCredential)?;
    let text = header.to_str().ok().and_then(|text| text.split_once(' '));
    let token = match text {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim().to_owned(),
        _ => return Err(Failure::NoCredential),
    };
    match api.tokens.admin(&token, Timestamp::now()).await {
        Ok(name) => Ok(name),
        Err(TokenError::Store(error)) => Err(Failure::Store(error)),
        Err(_) => Err(Failure::WrongCredential),
    }
}
