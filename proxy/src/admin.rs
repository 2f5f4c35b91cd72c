//! HTTP for operators: the admin port on loopback, and the port of metrics and health.
//! Shape: one small router; every answer is made from [`View`] (`control`).
//!
//! | port | path | |
//! |---|---|---|
//! | admin | `GET /config_dump` | settings, configuration and endpoints as JSON |
//! | admin | `GET /connections` | open connections as JSON, oldest first |
//! | admin | `POST /drain` | refuse new connections, close idle ones, keep running |
//! | admin | `POST /undrain` | accept connections again |
//! | admin | `POST /quit` | drain, then exit, as SIGTERM does |
//! | metrics | `GET /metrics` | Prometheus text |
//! | metrics | `GET /readyz` | 200 when the proxy takes traffic, else 503 with the reasons |
//! | metrics | `GET /readyz/workload` | 200 when the workload does too, by its checks |
//! | metrics | `GET /livez` | 200 when every worker answers within a second |
//!
//! The admin port answers no web page: a request with `Origin` or `Sec-Fetch-Site`, or whose `Host` is a name other than
//! `localhost`, gets 403.
//!
//! # Defaults
//! 64 connections per port, and 16 from loopback besides: for one more the oldest is closed, so that silent ones keep nobody out.
//! 8 KiB and 5 s for a head, 60 s for a connection, 1,000 rows of connections. The body of a request is never read.

mod dump;
mod process;
mod samples;

use std::{collections::BTreeMap, convert::Infallible, net::IpAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header, uri::Authority};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{connection::Open, control::View, telemetry::exposition};

/// Most connections to a port at a time.
const CONNECTIONS: usize = 64;
/// The same from loopback, besides the others.
const LOOPBACK: usize = 16;
/// Longest time for a connection, which a caller that does not read would hold.
const CONNECTION_TIME: Duration = Duration::from_secs(60);
/// Largest head of a request, in bytes.
const HEAD: usize = 8 * 1024;
/// Longest time for a head.
const HEAD_TIME: Duration = Duration::from_secs(5);
/// Most rows of the list of connections.
const ROWS: usize = 1_000;

/// The port that was called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Door {
    Admin,
    Metrics,
}

/// Serves a port until the program ends.
pub(crate) async fn serve(view: Arc<View>, listener: TcpListener, door: Door) {
    let (outside, loopback) = (Places::new(CONNECTIONS), Places::new(LOOPBACK));
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, ?door, "accept failed");
                sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let place = if peer.ip().to_canonical().is_loopback() { loopback.take() } else { outside.take() };
        let view = view.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let view = view.clone();
                async move { Ok::<_, Infallible>(answer(&view, door, &request).await) }
            });
            let serving = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIME)
                .max_buf_size(HEAD)
                .serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                served = timeout(CONNECTION_TIME, serving) => match served {
                    Ok(Err(error)) => {
                        tracing::debug!(error = &error as &dyn std::error::Error, ?door, "connection ended");
                    }
                    Ok(Ok(())) => {}
                    Err(_elapsed) => tracing::debug!(?door, "connection closed: it took too long"),
                },
                () = place.leave.cancelled() => tracing::debug!(?door, "connection closed in favour of a new one"),
            }
        });
    }
}

/// The connections of a port, the oldest first; one too many makes the oldest give way.
#[derive(Debug)]
struct Places {
    most: usize,
    open: Mutex<(u64, BTreeMap<u64, CancellationToken>)>,
}

/// The place of one connection.
#[derive(Debug)]
struct Place {
    places: Arc<Places>,
    number: u64,
    leave: CancellationToken,
}

impl Places {
    fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, open: Mutex::default() })
    }

    fn take(self: &Arc<Self>) -> Place {
        let (next, open) = &mut *self.open.lock();
        if open.len() >= self.most
            && let Some((_, oldest)) = open.pop_first()
        {
            oldest.cancel();
        }
        let (number, leave) = (*next, CancellationToken::new());
        *next += 1;
        open.insert(number, leave.clone());
        Place { places: self.clone(), number, leave }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.open.lock().1.remove(&self.number);
    }
}

async fn answer(view: &Arc<View>, door: Door, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let method = request.method();
    if door == Door::Admin && !is_local_tool(request.headers()) {
        return json(
            StatusCode::FORBIDDEN,
            &json!({"error": "the admin port is not for web pages, nor for other hosts"}),
        );
    }
    match (door, request.uri().path()) {
        (Door::Admin, "/config_dump") => get(method, || json(StatusCode::OK, &dump::dump(view))),
        (Door::Admin, "/connections") => get(method, || json(StatusCode::OK, &connections(view))),
        (Door::Admin, "/drain") => {
            let drain = || {
                let view = view.clone();
                tokio::spawn(async move { view.drain().await });
            };
            post(method, view, drain)
        }
        (Door::Admin, "/undrain") => post(method, view, || view.undrain()),
        (Door::Admin, "/quit") => post(method, view, || view.control.quit.cancel()),
        (Door::Metrics, "/metrics") => {
            get(method, || text(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", metrics(view)))
        }
        (Door::Metrics, "/readyz") => get(method, || readiness(&view.reasons())),
        (Door::Metrics, "/readyz/workload") => get(method, || readiness(&view.workload_not_ready())),
        (Door::Metrics, "/livez") => {
            let alive = view.is_alive().await;
            let status = if alive { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            get(method, || json(status, &json!({"alive": alive})))
        }
        (Door::Admin, _) => unknown("/config_dump, /connections, /drain (POST), /undrain (POST), /quit (POST)"),
        (Door::Metrics, _) => unknown("/metrics, /readyz, /readyz/workload, /livez"),
    }
}

fn readiness(reasons: &[impl serde::Serialize]) -> Response<Full<Bytes>> {
    let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json(status, &json!({"ready": reasons.is_empty(), "reasons": reasons}))
}

/// Whether a request can come from a tool on this host. A web page can make a browser on this host call the admin port: such a
/// request has `Origin` or `Sec-Fetch-Site`, or, where a name was made to resolve to this host, that name in `Host`.
fn is_local_tool(fields: &HeaderMap) -> bool {
    if fields.contains_key(header::ORIGIN) || fields.contains_key("sec-fetch-site") {
        return false;
    }
    let mut hosts = fields.get_all(header::HOST).iter();
    let Some(host) = hosts.next() else { return true };
    let Some(host) = host.to_str().ok().and_then(|host| host.parse::<Authority>().ok()) else { return false };
    let name = host.host().trim_start_matches('[').trim_end_matches(']');
    hosts.next().is_none() && (name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok())
}

fn metrics(view: &View) -> String {
    let metrics: Vec<_> = view.workers.iter().map(|worker| worker.metrics.clone()).collect();
    exposition::render(&metrics, &samples::samples(view))
}

fn connections(view: &View) -> Value {
    let mut rows: Vec<Value> = Vec::new();
    for worker in &view.workers {
        for row in worker.connections.rows(ROWS.saturating_sub(rows.len())) {
            let mut row = serde_json::to_value(row).unwrap_or_default();
            if let Some(row) = row.as_object_mut() {
                row.insert("worker".into(), worker.index.into());
            }
            rows.push(row);
        }
    }
    let open = view.open();
    json!({"open": total(open), "by": open, "waits_for": open.waits_for(), "connections": rows})
}

fn get(method: &Method, answer: impl FnOnce() -> Response<Full<Bytes>>) -> Response<Full<Bytes>> {
    if *method == Method::GET || *method == Method::HEAD { answer() } else { not_allowed("GET") }
}

fn post(method: &Method, view: &View, act: impl FnOnce()) -> Response<Full<Bytes>> {
    if *method != Method::POST {
        return not_allowed("POST");
    }
    act();
    let open = view.open();
    json(StatusCode::OK, &json!({"open": total(open), "by": open, "waits_for": open.waits_for()}))
}

fn total(open: Open) -> usize {
    open.waits_for() + open.outbound_idle
}

fn not_allowed(allowed: &'static str) -> Response<Full<Bytes>> {
    let mut response = json(StatusCode::METHOD_NOT_ALLOWED, &json!({"error": format!("use {allowed}")}));
    response.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static(allowed));
    response
}

fn unknown(known: &str) -> Response<Full<Bytes>> {
    json(StatusCode::NOT_FOUND, &json!({"error": format!("there is {known}")}))
}

fn json(status: StatusCode, value: &Value) -> Response<Full<Bytes>> {
    text(status, "application/json", format!("{value}\n"))
}

fn text(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (32)
    #[test]
    fn the_oldest_connection_gives_way_to_one_too_many() {
        let places = Places::new(2);
        let (first, second) = (places.take(), places.take());
        let third = places.take();
        assert!(first.leave.is_cancelled() && !second.leave.is_cancelled());
        drop(first);
        drop(second);
        let fourth = places.take();
        assert!(!third.leave.is_cancelled() && !fourth.leave.is_cancelled(), "a place was free");
    }

    #[test]
    fn a_web_page_is_no_local_tool() {
        let local = |fields: &[(&'static str, &'static str)]| {
            let fields = fields.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
            is_local_tool(&fields.collect::<HeaderMap>())
        };
        for host in ["127.0.0.1:15000", "localhost:15000", "LOCALHOST", "[::1]:15000"] {
            assert!(local(&[("host", host)]), "{host}");
            assert!(!local(&[("host", host), ("origin", "http://evil.example")]), "{host}");
            assert!(!local(&[("host", host), ("sec-fetch-site", "cross-site")]), "{host}");
        }
        assert!(!local(&[("host", "rebound.example:15000")]));
        assert!(!local(&[("host", "127.0.0.1"), ("host", "127.0.0.1")]));
    }
}
