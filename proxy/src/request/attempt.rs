//! Attempts: pick an endpoint, send the request, judge, and try again where the policy and the budget allow it.
//! Invariant: a request that may have been seen is sent again only when the policy says so; one that was not seen, always.

use std::{net::SocketAddr, sync::Arc, sync::atomic::Ordering::Relaxed, time::Duration};

use tokio::time::{Instant, sleep, timeout, timeout_at};
use weft_core::{
    cluster::{CONNECT_TIMEOUT, HttpVersion as ClusterVersion},
    failure::{Failure, Limit},
    outlier::Failed,
    retry::Outcome,
    route::Forward,
};
use weft_http::{fields::Fields, head::Version as HttpVersion};

use super::{deliver, verdict};
use crate::{
    http::{answer::Answer, body::Body, head::Head, hop, upgrade::Switched},
    telemetry::Direction,
    upstream::{
        cluster::{Cluster, Counted, EndpointState},
        pool::{Bounds, Lease, SendError},
    },
    worker::Worker,
};

/// How long a request waits for the first endpoints of a cluster that was just learned of: longer than a lost segment costs.
const FIRST_ENDPOINTS: Duration = Duration::from_secs(3);

/// The time that connections which were just closed take to end.
const CLOSING: Duration = Duration::from_millis(1);

/// The longest pause before a retry that an endpoint can ask for; if it asks for a longer one, its answer is the caller's.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Where a request is sent, and under which rule.
#[derive(Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) worker: &'a Arc<Worker>,
    pub(crate) forward: &'a Forward,
    pub(crate) cluster: &'a Arc<Cluster>,
    pub(crate) direction: Direction,
    /// The request's start.
    pub(crate) started: Instant,
}

/// Facts of a request's tries, known however they end.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Progress {
    pub(crate) attempts: u32,
    /// The endpoint tried last.
    pub(crate) endpoint: Option<SocketAddr>,
    /// Whether it is in the mesh.
    pub(crate) meshed: bool,
    /// Another try was due, and the cluster's budget had none left.
    pub(crate) over_budget: bool,
    /// It failed, and tries elsewhere have not helped or were not to be had, here or behind: the caller need not try.
    pub(crate) retried: bool,
}

impl Progress {
    /// Whether a failure that the rule retries was retried, or would have been with a budget.
    fn is_retried(&self, wanted: bool) -> bool {
        wanted && (self.attempts > 1 || self.over_budget)
    }
}

/// An attempt in flight at its endpoint, until its answer has ended. Each attempt owns its own.
#[derive(Default)]
pub(crate) struct Flight {
    pub(crate) lease: Option<Lease>,
    /// The connection, where the answer switched it to another protocol.
    pub(crate) switched: Option<Switched>,
    /// Counted as in flight there.
    at: Option<Place>,
}

/// Where an attempt is in flight.
struct Place {
    cluster: Arc<Cluster>,
    counted: Counted,
    /// Whether outlier detection has counted how it went.
    judged: bool,
}

impl Flight {
    /// Counted as in flight at an endpoint.
    fn at(cluster: &Arc<Cluster>, counted: Counted) -> Self {
        Self { lease: None, switched: None, at: Some(Place { cluster: cluster.clone(), counted, judged: false }) }
    }

    /// The head of an answer came.
    fn answered(&mut self, ended: Instant, good: bool) {
        if let Some(place) = &mut self.at {
            place.counted.answered(ended, good);
        }
    }

    /// Judges an answer that failed by its head or trailers, whose fields these are; a good one is judged at its end.
    pub(crate) fn judge_failed(&mut self, worker: &Worker, failed: Failed, fields: &Fields) {
        self.judge(worker, Some(failed));
        if let (Some(place), Some(wait)) = (&self.at, verdict::push_back(fields)) {
            place.counted.endpoint.memory.load.push_back(wait, worker.shared.live.now());
        }
    }

    /// Counts for outlier detection how the answer went, once: the first word counts. An answer is good only at its end; one that
    /// the caller leaves is neither.
    pub(crate) fn judge(&mut self, worker: &Worker, failed: Option<Failed>) {
        let Some(place) = self.at.as_mut().filter(|place| !place.judged) else { return };
        place.judged = true;
        match failed {
            None => {
                place.counted.endpoint.memory.record.succeeded();
                place.counted.endpoint.memory.load.succeeded();
            }
            Some(failed) => {
                count_failure(worker, &place.cluster, &place.counted.endpoint, failed, worker.shared.live.now());
            }
        }
    }

    /// The same, counted as in flight where `other` is.
    fn counted_at(mut self, mut other: Self) -> Self {
        self.at = other.at.take();
        self
    }
}

impl Flight {
    /// The cluster where it is counted.
    pub(crate) fn cluster(&self) -> Option<&Cluster> {
        self.at.as_ref().map(|place| &*place.cluster)
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if let Some(place) = &self.at {
            place.cluster.state.requests.fetch_sub(1, Relaxed);
        }
    }
}

/// Sends a request to one of the cluster's endpoints, trying again as the rule says. The head and the body are the caller's
/// own: another call with a copy of the head can run beside this one.
pub(crate) async fn run(
    target: Target<'_>,
    head: &mut Head,
    body: Body,
    progress: &mut Progress,
) -> Result<(Answer, Flight), Failure> {
    let Target { worker, forward: rule, cluster, .. } = target;
    let (settings, state) = (&cluster.settings, &cluster.state);
    state.budget.deposit(&settings.budget, state.requests.load(Relaxed));
    let deadline = rule.request_timeout.map(|limit| Instant::now() + limit);
    let mut body = if rule.retry.attempts > 1 { body.replayable() } else { body };
    let mut tried: Vec<SocketAddr> = Vec::new();
    head.version = version(head, settings.http, target.direction);
    let mut started = target.started;
    loop {
        progress.attempts += 1;
        let endpoint = pick(worker, cluster, &tried, started).await?;
        let endpoint = with_connection(worker, cluster, endpoint, &tried, head.version, started);
        // The last try sends the body itself; others send what can be sent again.
        let last = progress.attempts >= rule.retry.attempts;
        let (now, again) = match (last, body.again()) {
            (false, Some(again)) => (again, body),
            _ => (body, Body::Empty),
        };
        body = again;
        progress.endpoint = Some(endpoint.endpoint.address);
        progress.meshed = endpoint.endpoint.identity.is_some();
        let limit = [deadline, rule.try_timeout.map(|limit| Instant::now() + limit)].into_iter().flatten().min();
        let mut asked = Duration::ZERO;
        let failure = match once(worker, cluster, &endpoint, head, now, started, limit).await {
            Ok((answer, mut flight)) => {
                let outcome = Outcome::Status(answer.head.status);
                let wanted = rule.retry.retries(outcome, head.request.method()) && !head.has_half_closed();
                let behind = hop::is_retried(&answer.head);
                let retry = wanted && !last && body.again().is_some();
                if retry && behind {
                    count_retry(worker, cluster, "status", "behind");
                }
                if retry && !behind {
                    asked = pause(worker, cluster, &tried, &endpoint, &answer.head.fields);
                }
                let fits = asked <= LONGEST_PAUSE && deadline.is_none_or(|deadline| Instant::now() + asked < deadline);
                if !retry || behind || !fits || !may_retry(worker, cluster, outcome, "status", progress) {
                    progress.retried = behind || progress.is_retried(wanted);
                    return Ok((bounded(answer, deadline, rule.idle_timeout), flight));
                }
                flight.judge(worker, None);
                // The connection goes back before the unread answer is dropped.
                drop(flight);
                None
            }
            Err(failure) => {
                let timed_out = deadline.is_some_and(|deadline| Instant::now() >= deadline);
                if timed_out {
                    progress.retried = progress.is_retried(true);
                    return Err(Failure::RequestTimeout);
                }
                let Some(outcome) = failure.retry() else { return Err(failure) };
                // A caller that has closed its sending side may be gone, and the application, which was told, may have ended the request.
                let awaited = outcome.is_unreached() || !head.has_half_closed();
                let wanted = rule.retry.retries(outcome, head.request.method()) && awaited;
                let retry = wanted && !last && body.again().is_some();
                let cause = failure.reply().flag;
                if !retry || !may_retry(worker, cluster, outcome, cause, progress) {
                    progress.retried = progress.is_retried(wanted);
                    return Err(failure);
                }
                Some(failure)
            }
        };
        tracing::debug!(cluster = %cluster.name, endpoint = %endpoint.endpoint.address, ?failure, "trying again");
        tried.push(endpoint.endpoint.address);
        let wait = rule.retry.backoff(progress.attempts + 1, fastrand::f64()).max(asked);
        match deadline {
            Some(deadline) if Instant::now() + wait >= deadline => {
                progress.retried = true;
                return Err(Failure::RequestTimeout);
            }
            _ => sleep(wait).await,
        }
        started = Instant::now();
    }
}

/// For how long an endpoint asks not to be tried again; it does not matter while there is another one.
fn pause(
    worker: &Worker,
    cluster: &Cluster,
    tried: &[SocketAddr],
    endpoint: &EndpointState,
    answer: &Fields,
) -> Duration {
    let Some(asked) = verdict::push_back(answer) else { return Duration::ZERO };
    let is_other = |known: &EndpointState| known.endpoint.address != endpoint.endpoint.address;
    let other = cluster.state.pick_where(tried, worker.shared.live.now(), is_other);
    if other.is_some() { Duration::ZERO } else { asked }
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

/// One try: sends, judges the endpoint by the outcome, and returns the answer with its flight.
async fn once(
    worker: &Arc<Worker>,
    cluster: &Arc<Cluster>,
    endpoint: &Arc<EndpointState>,
    head: &mut Head,
    body: Body,
    started: Instant,
    limit: Option<Instant>,
) -> Result<(Answer, Flight), Failure> {
    let (settings, state) = (&cluster.settings, &cluster.state);
    if state.requests.fetch_add(1, Relaxed) >= settings.limits.requests {
        state.requests.fetch_sub(1, Relaxed);
        return Err(Failure::Overloaded(Limit::Requests));
    }
    let flight = Flight::at(cluster, Counted::start(endpoint, started, worker.shared.live.at(started)));
    let send = send(worker, cluster, endpoint, head, body, flight);
    let mut result = match limit {
        None => send.await,
        Some(limit) => timeout_at(limit, send).await.unwrap_or(Err(Failure::TryTimeout)),
    };
    let ended = Instant::now();
    match &mut result {
        Ok((answer, flight)) => {
            let failed = verdict::failed(answer.head.status, &head.request.fields, &answer.head.fields);
            flight.answered(ended, failed.is_none());
            if let Some(failed) = failed {
                flight.judge_failed(worker, failed, &answer.head.fields);
            } else if flight.switched.is_some() {
                flight.judge(worker, None);
            }
        }
        Err(failure) => {
            if let Some(failed) = failure.failed() {
                count_failure(worker, cluster, endpoint, failed, worker.shared.live.at(ended));
            }
        }
    }
    result
}

async fn send(
    worker: &Arc<Worker>,
    cluster: &Arc<Cluster>,
    endpoint: &Arc<EndpointState>,
    head: &mut Head,
    body: Body,
    mut flight: Flight,
) -> Result<(Answer, Flight), Failure> {
    let target = &endpoint.endpoint;
    let connect = cluster.settings.connect_timeout;
    head.connect = (connect != CONNECT_TIMEOUT).then_some(connect);
    // The workload itself: no hop.
    if worker.is_local(target.address, target.identity.as_ref()) {
        let delivered = Box::pin(deliver::request_to_self(worker, target.address, head, body));
        let (answer, local) = delivered.await?;
        return Ok((answer, local.counted_at(flight)));
    }
    let bounds = bounds(cluster);
    let mesh = target.identity.is_some();
    head.write_for_hop(mesh);
    let pool = endpoint.pool(worker.index, head.version).ok_or(Failure::NotConfigured)?;
    if !mesh && head.version != HttpVersion::Http2 {
        head.request.version = head.version;
    }
    let switched = &mut flight.switched;
    let mut sent = pool.send(worker.opener(), bounds, head, body, switched).await;
    // Connections that are idle in another endpoint's pool, or to one that has left, must not keep this one from opening any.
    if let Err(SendError { failure: Failure::Overloaded(Limit::Connections), unsent: Some(body), .. }) = &mut sent
        && (worker.shared.live.release_departed(&cluster.state) | cluster.state.close_idle(worker.index))
    {
        let body = std::mem::take(body);
        sleep(CLOSING).await;
        sent = pool.send(worker.opener(), bounds, head, body, switched).await;
    }
    let (mut response, body, lease) = sent.map_err(|error| error.failure)?;
    if !mesh {
        // Only another proxy says anything in reserved fields.
        hop::strip(&mut response.fields);
    }
    flight.lease = Some(lease);
    Ok((Answer::new(response, body), flight))
}

fn bounds(cluster: &Cluster) -> Bounds {
    let settings = &cluster.settings;
    Bounds {
        connect: settings.connect_timeout,
        connections: settings.limits.connections,
        pending: settings.limits.pending,
        idle: settings.http_idle,
    }
}

/// Counts a failure of an endpoint, and tells when that ejects it.
pub(crate) fn count_failure(
    worker: &Worker,
    cluster: &Cluster,
    endpoint: &EndpointState,
    failed: Failed,
    now: Duration,
) {
    if cluster.state.failed(endpoint, failed, &cluster.settings, now) {
        let address = endpoint.endpoint.address.to_string();
        worker.metrics.event("weft_ejections_total", &[("cluster", &cluster.name)]);
        tracing::info!(cluster = %cluster.name, endpoint = address, "endpoint ejected");
    }
}

/// The picked endpoint where a connection to it is open or no good one with an open connection is found soon. Else that
/// other one: this request does not wait for a connection, which is opened meanwhile for those to come (docs/adr/0011).
fn with_connection(
    worker: &Arc<Worker>,
    cluster: &Arc<Cluster>,
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
    let Some(other) = cluster.state.pick_where(tried, worker.shared.live.at(now), is_ready) else { return picked };
    if picked.pool(worker.index, version).is_some_and(|pool| !pool.is_opening()) {
        tokio::spawn(warm(worker.clone(), cluster.clone(), picked, version));
    }
    other
}

/// Opens a connection to an endpoint for requests to come. That it cannot be counts as a failed request would.
async fn warm(worker: Arc<Worker>, cluster: Arc<Cluster>, endpoint: Arc<EndpointState>, version: HttpVersion) {
    let Some(pool) = endpoint.pool(worker.index, version) else { return };
    let Err(failure) = pool.warm(worker.opener(), bounds(&cluster)).await else { return };
    tracing::debug!(cluster = %cluster.name, endpoint = %endpoint.endpoint.address, ?failure, "not connected");
    if let Some(failed) = failure.failed() {
        count_failure(&worker, &cluster, &endpoint, failed, worker.shared.live.now());
    }
}

/// The next endpoint; waits a moment when the cluster's endpoints have not arrived yet.
pub(crate) async fn pick(
    worker: &Worker,
    cluster: &Cluster,
    tried: &[SocketAddr],
    now: Instant,
) -> Result<Arc<EndpointState>, Failure> {
    let state = &cluster.state;
    if !state.known.load(Relaxed) {
        let changed = state.changed.notified();
        if !state.known.load(Relaxed) && timeout(FIRST_ENDPOINTS, changed).await.is_err() {
            return Err(Failure::NoEndpoint);
        }
    }
    state.pick(tried, worker.shared.live.at(now)).ok_or_else(|| state.none())
}

/// Whether the budget has a retry left; counts it either way. A request that did not reach the application needs none.
fn may_retry(worker: &Worker, cluster: &Cluster, outcome: Outcome, cause: &str, progress: &mut Progress) -> bool {
    let granted =
        outcome.is_unreached() || cluster.state.budget.withdraw(&cluster.settings.budget, worker.shared.live.now());
    progress.over_budget = !granted;
    count_retry(worker, cluster, cause, if granted { "tried" } else { "over_budget" });
    granted
}

fn count_retry(worker: &Worker, cluster: &Cluster, cause: &str, result: &str) {
    worker.metrics.event("weft_retries_total", &[("cluster", &cluster.name), ("cause", cause), ("result", result)]);
}

/// Cuts an answer whose body is not done by the deadline of the request, or does not move for the idle time.
fn bounded(answer: Answer, deadline: Option<Instant>, idle: Option<Duration>) -> Answer {
    match (deadline, idle) {
        (None, None) => answer,
        (deadline, idle) => Answer { body: answer.body.bounded(deadline, idle), ..answer },
    }
}

#[cfg(test)]
mod tests;
