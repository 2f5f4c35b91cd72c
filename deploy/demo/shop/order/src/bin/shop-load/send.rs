//! One request over kept HTTP/1.1 connections, and what became of it.
//!
//! A kept connection that the server closed before the request was written is replaced without counting a failure,
//! as every HTTP client does; a request that may have reached the server is never sent twice.

use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::Deserialize;
use tokio::time::Instant;

use crate::plan::{Planned, Route};
use crate::unix_ms;

const MAX_BODY: usize = 1 << 20;
const MAX_DETAIL: usize = 300;

/// Sends requests to the edge. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Sender {
    client: Client<HttpConnector, Full<Bytes>>,
    edge: Uri,
    host: Option<HeaderValue>,
    timeout: Duration,
}

/// What became of one request.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) route: Route,
    pub(crate) path: String,
    /// The idempotency key of a POST.
    pub(crate) key: Option<String>,
    /// Unix milliseconds: when the request really left, and when its outcome was known.
    pub(crate) started_at: u64,
    pub(crate) ended_at: u64,
    /// Since the request was due.
    pub(crate) latency: Duration,
    /// Of the answer, if there was one.
    pub(crate) status: Option<u16>,
    /// Why it failed: a word from a closed set (`connect`, `closed`, `timeout`, `body`) or a status.
    pub(crate) failure: Option<String>,
    /// More about the failure, for people.
    pub(crate) detail: Option<String>,
    pub(crate) instance: Option<String>,
    pub(crate) version: Option<String>,
    /// The id of an order that was just acknowledged.
    pub(crate) order: Option<String>,
}

impl Outcome {
    pub(crate) fn ok(&self) -> bool {
        self.failure.is_none()
    }
}

/// What the shop's services say about themselves in every answer.
#[derive(Debug, Default, Deserialize)]
struct Answer {
    id: Option<String>,
    instance: Option<String>,
    version: Option<String>,
    error: Option<String>,
}

struct Failure {
    reason: &'static str,
    detail: String,
}

impl Sender {
    /// Errors: `host` is not a header value.
    pub(crate) fn new(edge: &Uri, host: Option<&str>, timeout: Duration) -> anyhow::Result<Self> {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(timeout));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(20))
            .build(connector);
        let host = host.map(HeaderValue::from_str).transpose().context("--host")?;
        Ok(Self { client, edge: edge.clone(), host, timeout })
    }

    /// Makes one request that was due at `due`. Ends within the timeout.
    pub(crate) async fn send(self, planned: Planned, due: Instant) -> Outcome {
        let started_at = unix_ms();
        let (key, body) = planned.post.unzip();
        let result = match tokio::time::timeout(self.timeout, self.exchange(&planned.path, body)).await {
            Ok(result) => result,
            Err(_elapsed) => {
                Err(Failure { reason: "timeout", detail: format!("no response within {:?}", self.timeout) })
            }
        };
        let mut outcome = Outcome {
            route: planned.route,
            path: planned.path,
            key,
            started_at,
            ended_at: unix_ms(),
            latency: due.elapsed(),
            status: None,
            failure: None,
            detail: None,
            instance: None,
            version: None,
            order: None,
        };
        match result {
            Ok((status, body)) => outcome.judge(status, &body),
            Err(Failure { reason, detail }) => {
                outcome.failure = Some(reason.to_owned());
                outcome.detail = Some(detail);
            }
        }
        outcome
    }

    async fn exchange(&self, path: &str, body: Option<String>) -> Result<(StatusCode, Bytes), Failure> {
        let mut parts = self.edge.clone().into_parts();
        parts.path_and_query = path.parse().ok();
        let mut request = Request::new(Full::default());
        *request.uri_mut() =
            Uri::from_parts(parts).map_err(|error| Failure { reason: "body", detail: error.to_string() })?;
        if let Some(host) = &self.host {
            request.headers_mut().insert(header::HOST, host.clone());
        }
        if let Some(body) = body {
            *request.method_mut() = Method::POST;
            request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            *request.body_mut() = Full::from(body);
        }
        let response = self.client.request(request).await.map_err(|error| Failure {
            reason: if error.is_connect() { "connect" } else { "closed" },
            detail: chain(&error),
        })?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_BODY)
            .collect()
            .await
            .map_err(|error| Failure { reason: "body", detail: chain(&*error) })?;
        Ok((status, body.to_bytes()))
    }
}

impl Outcome {
    fn judge(&mut self, status: StatusCode, body: &[u8]) {
        let wanted = if self.route == Route::Place { StatusCode::CREATED } else { StatusCode::OK };
        let answer = serde_json::from_slice::<Answer>(body);
        self.status = Some(status.as_u16());
        match answer {
            Ok(answer) if status == wanted => {
                self.order = answer.id.filter(|_| self.route == Route::Place);
                self.instance = answer.instance;
                self.version = answer.version;
            }
            Ok(answer) => {
                self.failure = Some(status.as_u16().to_string());
                self.instance = answer.instance;
                self.detail = answer.error.map(|error| error.chars().take(MAX_DETAIL).collect());
            }
            Err(error) if status == wanted => {
                self.failure = Some("body".to_owned());
                self.detail = Some(error.to_string());
            }
            // Not from the shop: a proxy's own words.
            Err(_) => {
                self.failure = Some(status.as_u16().to_string());
                self.detail = Some(String::from_utf8_lossy(body).chars().take(MAX_DETAIL).collect());
            }
        }
    }
}

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
