//! One request from its head to the end of its answer: exactly one set of metrics and at most one access log line,
//! written when the exchange ends, however it ends.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;
use weft_core::{failure::Failure, listener::AccessLog as LogPolicy, outlier::Failed};
use weft_http::fields::{Fields, Name};

use super::{
    attempt::{Flight, Progress},
    tunnel, verdict,
};
use crate::{
    connection::{Connection, InFlight},
    http::{
        answer::{Answer, Switch},
        body::{Body, Watcher},
        head::{Head, is_grpc},
        hop, http2, respond, upgrade,
    },
    live::Snapshot,
    tcp::{IDLE, IDLE_HOP, Relayed},
    telemetry::{Direction, Outcome, Protocol, RequestLabels, RequestSeries, Security, Subject},
    upstream::cluster::Cluster,
    worker::Worker,
};

/// An answer with its flight, or why there is none.
pub(crate) type Attempted = Result<(Answer, Flight), Failure>;

/// A request on its way.
pub(crate) struct Exchange {
    pub(super) worker: Arc<Worker>,
    pub(super) connection: Arc<Connection>,
    _in_flight: InFlight,
    /// Which outcomes get a line in the access log.
    policy: LogPolicy,
    pub(crate) security: Security,
    pub(crate) started: Instant,
    pub(crate) head: Head,
    protocol: Protocol,
    /// Bytes of the request's body; none when it has none.
    sent: Option<Arc<AtomicU64>>,
    received: u64,
    status: u16,
    failure: Option<Failure>,
    pub(crate) series: Option<Arc<RequestSeries>>,
    /// The cluster that the request is sent to.
    pub(crate) called: Option<Arc<Cluster>>,
    pub(crate) route: Option<Arc<str>>,
    pub(crate) progress: Progress,
    flight: Option<Flight>,
    ended: bool,
}

impl Exchange {
    /// Begins with a head.
    pub(crate) fn start(
        worker: &Arc<Worker>,
        connection: &Arc<Connection>,
        in_flight: InFlight,
        live: &Snapshot,
        security: Security,
        head: Head,
    ) -> Box<Self> {
        let grpc = head.is_grpc();
        Box::new(Self {
            worker: worker.clone(),
            connection: connection.clone(),
            _in_flight: in_flight,
            policy: worker.log_policy(live.access_log),
            security,
            started: Instant::now(),
            head,
            protocol: if grpc { Protocol::Grpc } else { connection.protocol },
            sent: None,
            received: 0,
            status: 0,
            failure: None,
            series: None,
            called: None,
            route: None,
            progress: Progress::default(),
            flight: None,
            ended: false,
        })
    }

    /// Direction at the workload.
    pub(crate) fn direction(&self) -> Direction {
        self.connection.flow.direction
    }

    /// Whether failures are answered with a gRPC status.
    pub(crate) fn is_grpc(&self) -> bool {
        self.protocol == Protocol::Grpc
    }

    /// Counts the body of the request.
    pub(crate) fn count_request(&mut self, body: Body) -> Body {
        if body.is_end() {
            return body;
        }
        let sent = self.sent.insert(Arc::default()).clone();
        body.counted(Box::new(Sent(sent)))
    }

    /// Keeps the answer's flight until the exchange ends.
    pub(crate) fn hold(&mut self, attempted: Attempted) -> Result<Answer, Failure> {
        let (answer, flight) = attempted?;
        self.flight = Some(flight);
        Ok(answer)
    }

    /// Hands the exchange to the answer's body: both end together.
    pub(crate) fn answer(mut self: Box<Self>, answer: Answer) -> Answer {
        self.status = answer.head.status;
        if self.is_grpc() && is_grpc(&answer.head.fields) {
            self.grpc_status(&answer.head.fields);
        }
        Answer { body: answer.body.counted(self), ..answer }
    }

    /// Ends with a switch to another protocol, in which the caller is joined with the other side.
    pub(crate) fn switch(mut self: Box<Self>, mut answer: Answer, to: upgrade::To) -> Answer {
        let switched = self.flight.as_mut().and_then(|flight| flight.switched.take());
        let Some(switched) = switched else {
            return self.fail(Failure::BadAnswer("a switch of protocols that was not asked for"));
        };
        let protocol = upgrade::head(&mut answer.head, self.head.upgrade.as_deref(), to);
        let join = Box::new(|caller| Box::pin(tunnel::join(self, switched, caller)) as _);
        answer.switch = Some(Box::new(Switch { protocol, join }));
        answer
    }

    /// What the caller is told of what its request was sent to. A workload may know the service that it calls and its endpoints, or
    /// else where it has connected to; a caller at the edge may not, and an answer of the inbound side may travel on to the edge.
    fn told(&self) -> respond::Called<'_> {
        match (self.direction(), &self.called) {
            (Direction::Outbound, Some(cluster)) => {
                respond::Called::Service { cluster: &cluster.name, endpoint: self.progress.endpoint }
            }
            (Direction::Outbound, None) => respond::Called::Destination {
                host: self.head.request.authority(),
                address: self.connection.flow.destination,
            },
            (Direction::Inbound | Direction::Gateway, _) => respond::Called::Unnamed,
        }
    }

    /// Ends with an answer of our own.
    pub(crate) fn fail(mut self: Box<Self>, failure: Failure) -> Answer {
        let answer = respond::at(&failure, self.is_grpc(), self.told());
        // That of gRPC is 200, whatever has failed.
        self.status = failure.reply().status;
        self.failure = Some(failure);
        self.finish();
        answer
    }

    /// Ends without an answer: a reset allows the peer to retry elsewhere.
    pub(crate) fn refuse(mut self: Box<Self>, failure: Failure) {
        self.failure = Some(failure);
        self.finish();
    }

    /// How long a tunnel may be silent: as the policy of its service says, or the caller's proxy, which knows it.
    pub(crate) fn tunnel_idle(&self) -> Duration {
        match self.flight.as_ref().and_then(Flight::cluster) {
            Some(cluster) => cluster.settings.tcp_idle,
            None if self.connection.identity.is_some() => IDLE_HOP,
            None => IDLE,
        }
    }

    /// Ends a tunnel after a protocol switch; `failure`: why before its end.
    pub(crate) fn tunnelled(mut self: Box<Self>, relayed: Relayed, failure: Option<Failure>) {
        self.status = 101;
        self.failure = failure;
        self.sent.insert(Arc::default()).store(relayed.sent, Relaxed);
        self.received = relayed.received;
        self.finish();
    }

    /// Outlier detection learns how the answer went.
    fn judge(&mut self, failed: Option<Failed>) {
        if let Some(flight) = &mut self.flight {
            flight.judge(&self.worker, failed);
        }
    }

    /// Counts a gRPC status as one of HTTP (google/rpc/code.proto).
    fn grpc_status(&mut self, fields: &Fields) {
        if let Some(status) = fields.first(Name::GrpcStatus).and_then(verdict::http_status) {
            self.status = status;
        }
    }

    /// The protection on the side away from the workload: that of the endpoint, once there is one.
    fn security(&self) -> Security {
        let meshed = match (&self.called, self.progress.endpoint) {
            (None, _) => return self.security,
            (Some(cluster), None) => cluster.is_meshed(),
            (Some(_), Some(_)) => self.progress.meshed,
        };
        if meshed { Security::Mtls } else { Security::Plain }
    }

    fn finish(&mut self) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let duration = self.started.elapsed();
        let sent = self.sent.as_ref().map_or(0, |sent| sent.load(Relaxed));
        let security = self.security();
        let cluster = self.called.as_ref().map_or("", |cluster| &cluster.name);
        let new = || {
            self.worker.metrics.series(&RequestLabels {
                direction: self.direction(),
                destination: cluster.into(),
                source: "".into(),
                security,
            })
        };
        let series = match (&self.series, &self.called) {
            (Some(series), _) => series.clone(),
            (None, Some(called)) => called.series(self.worker.index, security, new),
            (None, None) => new(),
        };
        self.worker.record_as(
            self.policy,
            &Outcome {
                subject: Subject::Request {
                    series: &series,
                    head: Some(&self.head.request),
                    method: self.head.callers_method(),
                },
                flow: self.connection.flow,
                protocol: self.protocol,
                status: self.status,
                failure: self.failure.as_ref(),
                source_identity: self.connection.identity.as_ref(),
                cluster,
                endpoint: self.progress.endpoint,
                route: self.route.as_deref().unwrap_or_default(),
                attempts: self.progress.attempts,
                security,
                duration,
                sent,
                received: self.received,
            },
        );
    }
}

impl Watcher for Exchange {
    fn has_half_closed(&self) -> bool {
        self.head.has_half_closed()
    }

    fn bytes(&mut self, count: usize) {
        self.received += count as u64;
    }

    fn trailers(&mut self, trailers: &mut Fields) {
        hop::strip(trailers);
        if self.is_grpc() {
            self.grpc_status(trailers);
            if let Some(flight) = &mut self.flight
                && let Some(failed) = verdict::failed(200, &self.head.request.fields, trailers)
            {
                flight.judge_failed(&self.worker, failed, trailers);
            }
        }
    }

    fn end(mut self: Box<Self>) {
        self.judge(None);
        if let Some(flight) = &mut self.flight
            && let Some(lease) = flight.lease.take()
        {
            lease.finish();
        }
        self.finish();
    }

    fn error(mut self: Box<Self>, error: &Failure) -> Option<Fields> {
        if let Some(failed) = error.failed() {
            self.judge(Some(failed));
        }
        self.failure = Some(error.clone());
        // A caller of gRPC is told the status that its library gives for a lost connection. Another proxy tells its own caller, but
        // for trailers that were too large here, and a stream that the application itself has reset is reset.
        let told = self.is_grpc()
            && self.connection.protocol == Protocol::Http2
            && (self.connection.identity.is_none() || error.is_too_large())
            && http2::reset_code(error).is_none();
        let trailers = told.then(|| respond::trailers(error, self.told()));
        self.finish();
        trailers
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if !self.ended {
            let cut = self.connection.why_cut();
            self.failure.get_or_insert_with(|| cut.unwrap_or(Failure::CallerGone));
            self.finish();
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
        hop::strip(trailers);
    }
    fn end(self: Box<Self>) {}
    fn error(self: Box<Self>, _error: &Failure) -> Option<Fields> {
        None
    }
}
