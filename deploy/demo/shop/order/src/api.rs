//! The order service's HTTP side: routes, bounds, the log line of a request, and which error becomes which answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, RawQuery, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Serialize;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::config::Config;
use crate::payment::{ChargeError, Payment};
use crate::place::{PlaceError, place, plain};
use crate::shop::{ReadError, Shop};
use crate::store::{Store, StoreError};
use crate::trace::Trace;

const MAX_BODY: usize = 16 * 1024;
const MAX_REQUESTS: usize = 256;
const MAX_LISTED: i64 = 1000;

/// What a request needs.
pub(crate) struct App {
    instance: String,
    instance_header: HeaderValue,
    shop: Shop,
    payment: Payment,
    pub(crate) store: Store,
    pub(crate) draining: AtomicBool,
    requests: Semaphore,
}

impl App {
    /// Connects to nothing yet. Errors: an address or the instance's name is not usable.
    pub(crate) fn new(config: &Config) -> anyhow::Result<Self> {
        Ok(Self {
            instance: config.instance.clone(),
            instance_header: HeaderValue::from_str(&config.instance)?,
            shop: Shop::new(&config.user_addr, &config.product_addr),
            payment: Payment::new(&config.payment_addr, config.payment_attempts)?,
            store: Store::new(config)?,
            draining: AtomicBool::new(false),
            requests: Semaphore::new(MAX_REQUESTS),
        })
    }

    fn answer(&self, status: StatusCode, body: &impl Serialize) -> Response {
        #[derive(Serialize)]
        struct Body<'a, T> {
            #[serde(flatten)]
            body: &'a T,
            instance: &'a str,
        }
        match serde_json::to_vec(&Body { body, instance: &self.instance }) {
            Ok(bytes) => (status, [(header::CONTENT_TYPE, "application/json")], bytes).into_response(),
            Err(error) => {
                tracing::error!(service = "order", %error, "cannot serialize a response");
                StatusCode::INTERNAL_SERVER_ERROR.into_response()
            }
        }
    }

    fn refuse(&self, status: StatusCode, error: &str) -> Response {
        self.answer(status, &json!({ "error": error }))
    }

    fn fail(&self, error: &PlaceError) -> Response {
        self.refuse(status(error), &chain(error))
    }
}

/// The service's routes.
pub(crate) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/orders", post(create).get(list))
        .route("/orders/{id}", get(read))
        .fallback(async |State(app): State<Arc<App>>| app.refuse(StatusCode::NOT_FOUND, "no such path"))
        .method_not_allowed_fallback(async |State(app): State<Arc<App>>| {
            app.refuse(StatusCode::METHOD_NOT_ALLOWED, "method not allowed")
        })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(from_fn_with_state(Arc::clone(&app), observe))
        // Outside of the bound: a busy instance is still a healthy one.
        .route("/healthz", get(healthz))
        .with_state(app)
}

async fn create(State(app): State<Arc<App>>, headers: HeaderMap, body: Bytes) -> Response {
    let mut json = serde_json::Deserializer::from_slice(&body);
    let new = match serde_path_to_error::deserialize(&mut json).map_err(|error| error.to_string()).and_then(|new| {
        json.end().map_err(|error| error.to_string())?;
        Ok(new)
    }) {
        Ok(new) => new,
        Err(reason) => return app.refuse(StatusCode::BAD_REQUEST, &format!("body: {reason}")),
    };
    match place(&app.shop, &app.payment, &app.store, new, &Trace::of(&headers)).await {
        Ok(placed) => {
            let mut response = app.answer(StatusCode::CREATED, &placed);
            if let Ok(location) = HeaderValue::from_str(&format!("/orders/{}", placed.order.id)) {
                response.headers_mut().insert(header::LOCATION, location);
            }
            response
        }
        Err(error) => app.fail(&error),
    }
}

async fn read(State(app): State<Arc<App>>, Path(id): Path<String>) -> Response {
    if !plain(&id) {
        return app.refuse(StatusCode::NOT_FOUND, "no such order");
    }
    match app.store.read(&id).await {
        Ok(Some(order)) => app.answer(StatusCode::OK, &order),
        Ok(None) => app.refuse(StatusCode::NOT_FOUND, &format!("no order {id}")),
        Err(error) => app.fail(&error.into()),
    }
}

async fn list(State(app): State<Arc<App>>, RawQuery(query): RawQuery) -> Response {
    let limit = match query.as_deref() {
        None | Some("") => Some(100),
        Some(query) => query.strip_prefix("limit=").and_then(|limit| limit.parse().ok()),
    };
    let Some(limit) = limit.filter(|limit| (1..=MAX_LISTED).contains(limit)) else {
        return app.refuse(StatusCode::BAD_REQUEST, "limit: expected 1 to 1000");
    };
    match app.store.newest(limit).await {
        Ok(orders) => app.answer(StatusCode::OK, &json!({ "orders": orders })),
        Err(error) => app.fail(&error.into()),
    }
}

async fn healthz(State(app): State<Arc<App>>) -> Response {
    let ready = app.store.ready() && !app.draining.load(Ordering::Relaxed);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    app.answer(status, &json!({ "ready": ready }))
}

/// Bounds the requests at work, names the instance and writes one log line.
async fn observe(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let trace = Trace::of(request.headers());
    let mut response = match app.requests.try_acquire() {
        Ok(_slot) => next.run(request).await,
        Err(_full) => app.refuse(StatusCode::SERVICE_UNAVAILABLE, "too many concurrent requests"),
    };
    response.headers_mut().insert("x-instance", app.instance_header.clone());
    tracing::info!(
        target: "request",
        service = "order",
        instance = %app.instance,
        %method,
        path,
        status = response.status().as_u16(),
        ms = (started.elapsed().as_secs_f64() * 100_000.0).round() / 100.0,
        traceparent = trace.parent(),
        "request"
    );
    response
}

fn status(error: &PlaceError) -> StatusCode {
    match error {
        PlaceError::Field { .. } => StatusCode::BAD_REQUEST,
        PlaceError::KeyReused(_) => StatusCode::CONFLICT,
        PlaceError::Declined { .. } => StatusCode::PAYMENT_REQUIRED,
        PlaceError::Read(ReadError::Missing { .. }) => StatusCode::UNPROCESSABLE_ENTITY,
        PlaceError::Read(ReadError::Slow { .. }) => StatusCode::GATEWAY_TIMEOUT,
        PlaceError::Read(
            ReadError::Status { .. }
            | ReadError::Unreachable { .. }
            | ReadError::Body { .. }
            | ReadError::Shape { .. }
            | ReadError::Address { .. },
        )
        | PlaceError::Charge(ChargeError::Refused(_) | ChargeError::Unreachable { .. } | ChargeError::Address(_)) => {
            StatusCode::BAD_GATEWAY
        }
        PlaceError::Store(
            StoreError::Unreachable(_) | StoreError::Slow | StoreError::Statement(_) | StoreError::Vanished(_),
        ) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// The error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
