//! One request from its head to the end of its answer: exactly one set of metrics and at most one access log line,
//! written when the exchange ends, however it ends.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tokio::time::Instant;
use weft_core::{failure::Failure, listener::AccessLog as LogPolicy};
use weft_http::{
    fields::{Fields, Name},
    head::Response,
};

use super::{
    body::{Body, Watcher},
    head::{Head, is_grpc},
    upgrade::{Far, Switch},
};
use crate::{
    connection::{Connection, Running},
    telemetry::{Direction, Entry, RequestLabels, RequestSeries, Security, access_log},
    upstream::{
        cluster::{Cluster, EndpointState},
        pool::Lease,
    },
    worker::Worker,
};

/// A request on its way.
pub(crate) struct Exchange {
    pub(super) worker: Arc<Worker>,
    pub(super) connection: Arc<Connection>,
    _running: Running,
    policy: LogPolicy,
    pub(crate) security: Security,
    pub(crate) started: Instant,
    pub(crate) head: Head,
    protocol: &'static str,
    /// Bytes of the request's body; none when it has none.
    sent: Option<Arc<AtomicU64>>,
    received: u64,
    status: u16,
    failure: Option<Failure>,
    pub(crate) series: Option<Arc<RequestSeries>>,
    pub(crate) cluster: Option<Arc<str>>,
    pub(crate) route: Option<Arc<str>>,
    pub(crate) endpoint: Option<SocketAddr>,
    pub(crate) attempts: u32,
    pub(crate) flight: Option<Flight>,
    ended: bool,
}

/// An answer on its way.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) head: Response,
    pub(crate) body: Body,
    /// The other side has switched to another protocol, and the caller is to be joined with it.
    pub(crate) switch: Option<Box<Switch>>,
}

impl Answer {
    pub(crate) fn new(head: Response, body: Body) -> Self {
        Self { head, body, switch: None }
    }
}

/// What a request holds at its endpoint until its answer has ended.
#[derive(Default)]
pub(crate) struct Flight {
    pub(crate) lease: Option<Lease>,
    /// The connection, where the answer switched it to another protocol.
    pub(crate) far: Option<Far>,
    pub(crate) upstream: Option<(Arc<Cluster>, Arc<EndpointState>)>,
}

impl Exchange {
    /// Begins with a head.
    pub(crate) fn start(
        worker: &Arc<Worker>,
        connection: &Arc<Connection>,
        running: Running,
        policy: LogPolicy,
        security: Security,
        head: Head,
    ) -> Box<Self> {
        let grpc = head.is_grpc();
        Box::new(Self {
            worker: worker.clone(),
            connection: connection.clone(),
            _running: running,
            policy,
            security,
            started: Instant::now(),
            head,
            protocol: if grpc { "grpc" } else { connection.protocol },
            sent: None,
            received: 0,
            status: 0,
            failure: None,
            series: None,
            cluster: None,
            route: None,
            endpoint: None,
            attempts: 0,
            flight: None,
            ended: false,
        })
    }

    /// Direction at the workload.
    pub(crate) fn direction(&self) -> Direction {
        self.connection.direction
    }

    /// Whether errors are to be told in the way of gRPC.
    pub(crate) fn is_grpc(&self) -> bool {
        self.protocol == "grpc"
    }

    /// Counts the body of the request.
    pub(crate) fn count_request(&mut self, body: Body) -> Body {
        if body.is_end() {
            return body;
        }
        let sent = self.sent.insert(Arc::default()).clone();
        body.counted(Box::new(Sent(sent)))
    }

    /// Hands the exchange to the answer's body, whose end is its end.
    pub(crate) fn answer(mut self: Box<Self>, answer: Answer) -> Answer {
        self.status = answer.head.status;
        if self.is_grpc() && is_grpc(&answer.head.fields) {
            self.grpc_status(&answer.head.fields);
        }
        Answer { body: answer.body.counted(self), ..answer }
    }

    /// Ends with a switch to another protocol, in which the caller is joined with the other side.
    pub(crate) fn switch(mut self: Box<Self>, mut answer: Answer, http2: bool) -> Answer {
        let far = self.flight.as_mut().and_then(|flight| flight.far.take());
        let Some(far) = far else {
            return self.fail(Failure::BadAnswer("a switch of protocols that was not asked for"));
        };
        let protocol = super::upgrade::head(&mut answer.head, self.head.upgrade.as_deref(), http2);
        answer.switch = Some(Box::new(Switch { exchange: self, far, protocol }));
        answer
    }

    /// Ends with an answer of our own.
    pub(crate) fn fail(mut self: Box<Self>, failure: Failure) -> Answer {
        let answer = super::respond::to(&failure, self.is_grpc());
        self.failure = Some(failure);
        self.status = answer.head.status;
        self.finish();
        answer
    }

    /// Ends without an answer: the peer is told by a reset that it may try elsewhere.
    pub(crate) fn refuse(mut self: Box<Self>, failure: Failure) {
        self.failure = Some(failure);
        self.finish();
    }

    /// Ends a tunnel after a protocol switch.
    pub(crate) fn tunnelled(mut self: Box<Self>, sent: u64, received: u64) {
        self.status = 101;
        self.sent.insert(Arc::default()).store(sent, Relaxed);
        self.received = received;
        self.finish();
    }

    /// A gRPC call's own status counts as one of HTTP in metrics: what is the server's fault is a 5xx.
    fn grpc_status(&mut self, fields: &Fields) {
        self.status = match fields.first(Name::GrpcStatus) {
            Some(b"2" | b"13" | b"15") => 500,
            Some(b"4") => 504,
            Some(b"14") => 503,
            Some(b"12") => 501,
            _ => self.status,
        };
    }

    fn finish(&mut self) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let duration = self.started.elapsed();
        let sent = self.sent.as_ref().map_or(0, |sent| sent.load(Relaxed));
        let cluster = self.cluster.as_deref().unwrap_or_default();
        let metrics = &self.worker.metrics;
        let series = self.series.take().unwrap_or_else(|| {
            metrics.series(&RequestLabels {
                direction: self.connection.direction,
                destination: cluster.into(),
                source: "".into(),
                security: self.security,
            })
        });
        series.record(self.status, duration, sent, self.received);
        let reply = self.failure.as_ref().map(Failure::reply);
        if let (Some(failure), Some(reply)) = (&self.failure, reply) {
            metrics.event(
                "weft_failures_total",
                &[("direction", self.connection.direction.as_str()), ("destination", cluster), ("flag", reply.flag)],
            );
            if let Failure::Denied(rule) = failure {
                metrics.event("weft_denied_total", &[("rule", rule)]);
            } else if matches!(failure, Failure::NotAllowed) {
                metrics.event("weft_denied_total", &[("rule", "no rule allows it")]);
            }
        }
        if access_log::wanted(self.policy, self.status, self.failure.is_some()) {
            let reason = self.failure.as_ref().map(ToString::to_string).unwrap_or_default();
            let entry = Entry {
                time: access_log::timestamp(),
                direction: self.connection.direction.as_str(),
                protocol: self.protocol,
                method: self.head.request.method(),
                authority: self.head.request.authority().unwrap_or_default(),
                path: self.head.request.target(),
                status: self.status,
                flag: reply.map_or("", |reply| reply.flag),
                reason: &reason,
                source: &self.connection.peer.to_string(),
                source_identity: self.connection.identity.as_ref().map(weft_core::identity::Identity::as_str),
                destination: self.connection.destination.to_string(),
                cluster,
                endpoint: self.endpoint.map(|endpoint| endpoint.to_string()),
                route: self.route.as_deref().unwrap_or_default(),
                attempts: self.attempts,
                security: self.security.as_str(),
                duration_us: access_log::micros(duration),
                bytes_sent: sent,
                bytes_received: self.received,
                traceparent: self
                    .head
                    .request
                    .fields
                    .first(Name::Traceparent)
                    .and_then(|value| std::str::from_utf8(value).ok())
                    .unwrap_or_default(),
            };
            self.worker.log.write(&entry, metrics);
        }
    }
}

impl Watcher for Exchange {
    fn bytes(&mut self, count: usize) {
        self.received += count as u64;
    }

    fn trailers(&mut self, trailers: &mut Fields) {
        super::hop::strip(trailers);
        if self.is_grpc() {
            self.grpc_status(trailers);
        }
    }

    fn end(mut self: Box<Self>) {
        if let Some(flight) = &mut self.flight
            && let Some(lease) = flight.lease.take()
        {
            lease.finish();
        }
        self.finish();
    }

    fn error(mut self: Box<Self>, error: &Failure) {
        self.failure = Some(error.clone());
        self.finish();
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if !self.ended {
            self.failure.get_or_insert(Failure::CallerGone);
            self.finish();
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if let Some((upstream, endpoint)) = &self.upstream {
            endpoint.memory.load.end();
            upstream.state.requests.fetch_sub(1, Relaxed);
        }
    }
}

/// Counts the bytes of a request's body.
struct Sent(Arc<AtomicU64>);

impl Watcher for Sent {
    fn bytes(&mut self, count: usize) {
        self.0.fetch_add(count as u64, Relaxed);
    }
    fn trailers(&mut self, trailers: &mut Fields) {
        super::hop::strip(trailers);
    }
    fn end(self: Box<Self>) {}
    fn error(self: Box<Self>, _error: &Failure) {}
}
