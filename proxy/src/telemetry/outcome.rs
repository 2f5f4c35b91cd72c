//! The outcome: the one record of how a request or a connection ended. Metrics and the access log are written from it and
//! from nothing else; a trace, a tap or an exporter would be one more sink here.
//! Shape: the request path fills an [`Outcome`] at the end and calls [`Outcome::record`] once.
//! Invariant: one outcome for each request, for each connection that carried opaque bytes to its end, and for each
//! connection that was refused.

use std::{net::SocketAddr, time::Duration};

use weft_core::{failure::Failure, identity::Identity, listener::AccessLog as LogPolicy};
use weft_http::{fields::Name, head::Request};

use super::{
    access_log::{self, AccessLog, Line},
    metrics::{Flow, Metrics, Protocol, RequestSeries, Security},
};

/// How a request or a connection ended.
#[derive(Debug)]
pub(crate) struct Outcome<'a> {
    pub(crate) subject: Subject<'a>,
    pub(crate) flow: Flow,
    pub(crate) protocol: Protocol,
    /// The HTTP status; 0 where no answer was sent.
    pub(crate) status: u16,
    /// Why it failed; none where it did not, or where the application's own answer says so.
    pub(crate) failure: Option<&'a Failure>,
    pub(crate) source_identity: Option<&'a Identity>,
    /// Empty where none was chosen.
    pub(crate) cluster: &'a str,
    /// The endpoint tried last.
    pub(crate) endpoint: Option<SocketAddr>,
    /// The rule's name; empty where none matched.
    pub(crate) route: &'a str,
    pub(crate) attempts: u32,
    pub(crate) security: Security,
    pub(crate) duration: Duration,
    /// Bytes of bodies, or of the connection, from the caller.
    pub(crate) sent: u64,
    /// The same towards the caller.
    pub(crate) received: u64,
}

/// The kind of thing that ended.
#[derive(Debug)]
pub(crate) enum Subject<'a> {
    /// A request; no head where it was not fit to be read further. `method`: the caller's, which the head of a tunnel over the hop
    /// has no more.
    Request { series: &'a RequestSeries, head: Option<&'a Request>, method: &'a str },
    /// A connection that carried opaque bytes.
    Connection,
    /// A connection that was closed without a byte.
    RefusedConnection,
}

impl Outcome<'_> {
    /// Hands the outcome to every sink. `policy`: which outcomes get a line in the access log.
    pub(crate) fn record(&self, policy: LogPolicy, metrics: &Metrics, log: &AccessLog) {
        self.count(metrics);
        if access_log::wanted(policy, self.status, self.failure.is_some()) {
            log.write(&self.line(), metrics);
        }
    }

    fn count(&self, metrics: &Metrics) {
        let direction = self.flow.direction.as_str();
        match &self.subject {
            Subject::Request { series, .. } => series.record(self.status, self.duration, self.sent, self.received),
            Subject::Connection => {
                for (way, bytes) in [("sent", self.sent), ("received", self.received)] {
                    let labels = [("direction", direction), ("cluster", self.cluster), ("way", way)];
                    metrics.events_by("weft_tcp_bytes_total", &labels, bytes);
                }
            }
            Subject::RefusedConnection => {}
        }
        let Some(failure) = self.failure else { return };
        let labels = [("direction", direction), ("destination", self.cluster), ("flag", failure.reply().flag)];
        metrics.event("weft_failures_total", &labels);
        if let Failure::Denied(rule) = failure {
            metrics.event("weft_denied_total", &[("rule", rule)]);
        } else if matches!(failure, Failure::NotAllowed) {
            metrics.event("weft_denied_total", &[("rule", "no rule allows it")]);
        }
    }

    fn line(&self) -> Line<'_> {
        let (head, method) = match &self.subject {
            Subject::Request { head, method, .. } => (*head, *method),
            Subject::Connection | Subject::RefusedConnection => (None, ""),
        };
        let traceparent = head.and_then(|head| head.fields.first(Name::Traceparent));
        Line {
            time: access_log::timestamp(),
            direction: self.flow.direction.as_str(),
            protocol: self.protocol.as_str(),
            method,
            authority: head.and_then(Request::authority).unwrap_or_default(),
            path: head.map_or("", Request::target),
            status: self.status,
            flag: self.failure.map_or("", |failure| failure.reply().flag),
            reason: self.failure.map(|failure| failure.report().to_string()).unwrap_or_default(),
            source: self.flow.peer.to_string(),
            source_identity: self.source_identity.map(Identity::as_str),
            destination: self.flow.destination.to_string(),
            cluster: self.cluster,
            endpoint: self.endpoint.map(|endpoint| endpoint.to_string()),
            route: self.route,
            attempts: self.attempts,
            security: self.security.as_str(),
            duration_us: access_log::micros(self.duration),
            bytes_sent: self.sent,
            bytes_received: self.received,
            traceparent: traceparent.and_then(|value| std::str::from_utf8(value).ok()).unwrap_or_default(),
        }
    }
}
