//! The tries of one request: pick an endpoint, send, judge, and try again where the policy and the budget allow it.
//! Invariant: a request that may have been seen is sent again only when the policy says so; one that was not seen, always.

use std::{net::SocketAddr, sync::Arc, sync::atomic::Ordering::Relaxed, time::Duration};

use tokio::time::{Instant, sleep, timeout, timeout_at};
use weft_core::{cluster::HttpVersion as ClusterVersion, failure::Failure, retry::Outcome, route::Forward};
use weft_http::head::Version as HttpVersion;

use super::cluster::{Cluster, EndpointState};
use super::pool::{Bounds, CONNECTIONS, SendError};
use crate::{
    http::{
        body::Body,
        exchange::{Answer, Exchange, Flight},
        head::Head,
    },
    inbound,
    telemetry::Direction,
    worker::Worker,
};

/// How long a request waits for the first endpoints of a cluster that was just learned of.
const FIRST_ENDPOINTS: Duration = Duration::from_secs(1);

/// How long connections that were just closed take to end.
const CLOSING: Duration = Duration::from_millis(1);

/// Sends a request to one of the cluster's endpoints, trying again as the rule says.
pub(crate) async fn run(
    worker: &Arc<Worker>,
    rule: &Forward,
    upstream: &Arc<Cluster>,
    body: Body,
    exchange: &mut Exchange,
) -> Result<Answer, Failure> {
    let (settings, state) = (&upstream.settings, &upstream.state);
    state.budget.deposit(&settings.budget);
    let deadline = rule.request_timeout.map(|limit| Instant::now() + limit);
    let mut body = if rule.retry.attempts > 1 { body.replayable() } else { body };
    let mut tried: Vec<SocketAddr> = Vec::new();
    exchange.head.version = version(&exchange.head, settings.http, exchange.direction());
    let mut started = exchange.started;
    loop {
        exchange.attempts += 1;
        let endpoint = pick(worker, upstream, &tried, started).await?;
        let endpoint = with_connection(worker, upstream, endpoint, &tried, exchange.head.version, started);
        let last = exchange.attempts >= rule.retry.attempts;
        let (now, again) = match (last, body.again()) {
            (false, Some(again)) => (again, body),
            _ => (body, Body::Empty),
        };
        body = again;
        exchange.endpoint = Some(endpoint.endpoint.address);
        let limit = [deadline, rule.try_timeout.map(|limit| Instant::now() + limit)].into_iter().flatten().min();
        let result = once(worker, upstream, &endpoint, now, exchange, started, limit).await;
        let failure = match result {
            Ok(response) => {
                let status = response.head.status;
                let method = exchange.head.request.method();
                let retry = !last && rule.retry.retries(Outcome::Status(status), method);
                if !retry || body.again().is_none() || !may_retry(worker, upstream, "status") {
                    return Ok(bounded(response, deadline, rule.idle_timeout));
                }
                drop(exchange.flight.take());
                None
            }
            Err(failure) => {
                let timed_out = deadline.is_some_and(|deadline| Instant::now() >= deadline);
                if timed_out {
                    return Err(Failure::RequestTimeout);
                }
                let retry =
                    failure.retry().is_some_and(|outcome| rule.retry.retries(outcome, exchange.head.request.method()));
                if last || !retry || body.again().is_none() || !may_retry(worker, upstream, failure.reply().flag) {
                    return Err(failure);
                }
                Some(failure)
            }
        };
        tracing::debug!(cluster = %upstream.name, endpoint = %endpoint.endpoint.address, ?failure, "trying again");
        tried.push(endpoint.endpoint.address);
        let wait = rule.retry.backoff(exchange.attempts + 1, fastrand::f64());
        match deadline {
            Some(deadline) if Instant::now() + wait >= deadline => return Err(Failure::RequestTimeout),
            _ => sleep(wait).await,
        }
        started = Instant::now();
    }
}

/// The HTTP version that the application is given. A gateway translates: its callers' version is no sign of what an
/// application speaks, except for gRPC.
fn version(head: &Head, cluster: ClusterVersion, direction: Direction) -> HttpVersion {
    match (cluster, direction) {
        _ if head.upgrade.is_some() => HttpVersion::Http11,
        (ClusterVersion::Http2, _) => HttpVersion::Http2,
        (ClusterVersion::AsReceived, Direction::Gateway) if head.is_grpc() => HttpVersion::Http2,
        (ClusterVersion::AsReceived, Direction::Gateway) => HttpVersion::Http11,
        (ClusterVersion::AsReceived, Direction::Outbound | Direction::Inbound) => head.version,
    }
}

/// One try.
async fn once(
    worker: &Arc<Worker>,
    upstream: &Arc<Cluster>,
    endpoint: &Arc<EndpointState>,
    body: Body,
    exchange: &mut Exchange,
    started: Instant,
    limit: Option<Instant>,
) -> Result<Answer, Failure> {
    let (settings, state) = (&upstream.settings, &upstream.state);
    if state.requests.fetch_add(1, Relaxed) >= settings.limits.requests {
        state.requests.fetch_sub(1, Relaxed);
        return Err(Failure::Overloaded("requests"));
    }
    endpoint.memory.load.start();
    let mut flight = Flight { lease: None, far: None, upstream: Some((upstream.clone(), endpoint.clone())) };
    let send = send(worker, upstream, endpoint, &mut exchange.head, body, &mut flight);
    let result = match limit {
        None => send.await,
        Some(limit) => timeout_at(limit, send).await.unwrap_or(Err(Failure::TryTimeout)),
    };
    let ended = Instant::now();
    let now = worker.shared.state.at(ended);
    let failed = match &result {
        Ok(response) => matches!(response.head.status, 502..=504),
        Err(failure) => failure.retry().is_some(),
    };
    if failed {
        endpoint.memory.load.observe(ended - started, now);
        count_failure(worker, upstream, endpoint, now);
    } else if result.is_ok() {
        endpoint.memory.load.observe(ended - started, now);
        endpoint.memory.record.succeeded();
    }
    let response = result?;
    exchange.flight = Some(flight);
    Ok(response)
}

async fn send(
    worker: &Arc<Worker>,
    upstream: &Arc<Cluster>,
    endpoint: &Arc<EndpointState>,
    head: &mut Head,
    body: Body,
    flight: &mut Flight,
) -> Result<Answer, Failure> {
    let target = &endpoint.endpoint;
    if worker.is_local(target.address, target.identity.as_ref()) {
        return Box::pin(inbound::from_self(worker, target.address, head, body, flight)).await;
    }
    let bounds = bounds(upstream);
    let mesh = target.identity.is_some();
    head.write_for_hop(mesh);
    let pool = endpoint.pool(worker.index, head.version).ok_or(Failure::NotConfigured)?;
    if !mesh && head.version != HttpVersion::Http2 {
        head.request.version = head.version;
    }
    let (request, upgrade, far) = (&head.request, head.upgrade.as_deref(), &mut flight.far);
    let mut sent = pool.send(worker.opener(), bounds, request, upgrade, body, far).await;
    // Connections that are idle in another endpoint's pool, or to one that has left, must not keep this one from opening any.
    if let Err(SendError { failure: Failure::Overloaded(CONNECTIONS), unsent: Some(body), .. }) = &mut sent
        && (worker.shared.state.forget_left_of(&upstream.state) | upstream.state.close_idle(worker.index))
    {
        let body = std::mem::take(body);
        sleep(CLOSING).await;
        sent = pool.send(worker.opener(), bounds, request, upgrade, body, far).await;
    }
    let (response, body, lease) = sent.map_err(|error| error.failure)?;
    flight.lease = Some(lease);
    Ok(Answer::new(response, body))
}

fn bounds(upstream: &Cluster) -> Bounds {
    let settings = &upstream.settings;
    Bounds {
        connect: settings.connect_timeout,
        connections: settings.limits.connections,
        pending: settings.limits.pending,
        idle: settings.http_idle,
    }
}

/// Counts a failure of an endpoint, and tells when that ejects it.
fn count_failure(worker: &Worker, upstream: &Cluster, endpoint: &EndpointState, now: Duration) {
    if upstream.state.failed(endpoint, &upstream.settings, now) {
        let address = endpoint.endpoint.address.to_string();
        worker.metrics.event("weft_ejections_total", &[("cluster", &upstream.name)]);
        tracing::info!(cluster = %upstream.name, endpoint = address, "endpoint ejected");
    }
}

/// The picked endpoint where a connection to it is open or no good one with an open connection is found soon. Else that
/// other one: this request does not wait for a connection, which is opened meanwhile for those to come (docs/adr/0011).
fn with_connection(
    worker: &Arc<Worker>,
    upstream: &Arc<Cluster>,
    picked: Arc<EndpointState>,
    tried: &[SocketAddr],
    version: HttpVersion,
    now: Instant,
) -> Arc<EndpointState> {
    let is_ready = |known: &EndpointState| {
        known.pool(worker.index, version).is_some_and(|pool| pool.is_ready())
            || worker.is_local(known.endpoint.address, known.endpoint.identity.as_ref())
    };
    if is_ready(&picked) {
        return picked;
    }
    let Some(other) = upstream.state.pick_where(tried, worker.shared.state.at(now), is_ready) else { return picked };
    if picked.pool(worker.index, version).is_some_and(|pool| !pool.is_opening()) {
        tokio::spawn(warm(worker.clone(), upstream.clone(), picked, version));
    }
    other
}

/// Opens a connection to an endpoint for requests to come. That it cannot be counts as a failed request would.
async fn warm(worker: Arc<Worker>, upstream: Arc<Cluster>, endpoint: Arc<EndpointState>, version: HttpVersion) {
    let Some(pool) = endpoint.pool(worker.index, version) else { return };
    let Err(failure) = pool.warm(worker.opener(), bounds(&upstream)).await else { return };
    tracing::debug!(cluster = %upstream.name, endpoint = %endpoint.endpoint.address, ?failure, "not connected");
    if failure.retry().is_some() {
        count_failure(&worker, &upstream, &endpoint, worker.shared.state.now());
    }
}

/// The next endpoint; waits a moment when the cluster's endpoints have not arrived yet.
pub(crate) async fn pick(
    worker: &Worker,
    upstream: &Cluster,
    tried: &[SocketAddr],
    now: Instant,
) -> Result<Arc<EndpointState>, Failure> {
    let state = &upstream.state;
    if !state.known.load(Relaxed) {
        let changed = state.changed.notified();
        if !state.known.load(Relaxed) && timeout(FIRST_ENDPOINTS, changed).await.is_err() {
            return Err(Failure::NoEndpoint);
        }
    }
    state.pick(tried, worker.shared.state.at(now)).ok_or_else(|| state.none())
}

/// Whether the budget has a retry left; counts it either way.
fn may_retry(worker: &Worker, upstream: &Cluster, cause: &str) -> bool {
    let granted = upstream.state.budget.withdraw(&upstream.settings.budget, worker.shared.state.now());
    let result = if granted { "tried" } else { "over_budget" };
    worker.metrics.event("weft_retries_total", &[("cluster", &upstream.name), ("cause", cause), ("result", result)]);
    granted
}

/// Cuts an answer whose body is not done by the deadline of the request, or does not move for the idle time.
fn bounded(answer: Answer, deadline: Option<Instant>, idle: Option<Duration>) -> Answer {
    match (deadline, idle) {
        (None, None) => answer,
        (deadline, idle) => Answer { body: answer.body.bounded(deadline, idle), ..answer },
    }
}
