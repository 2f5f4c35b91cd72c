//! Refusing a connection without a byte, or a request whose head is not fit to be read further: the answer and the outcome.

use std::time::Duration;

use weft_core::{failure::Failure, identity::Identity};

use crate::{
    connection::Connection,
    http::{answer::Answer, respond},
    stream::{self, Duplex},
    telemetry::{Flow, Outcome, Protocol, RequestLabels, Security, Subject},
    worker::Worker,
};

/// Refuses a connection without a byte: it is reset, as one is that nobody listens for. `cluster`: empty where none was chosen.
pub(crate) fn connection(
    worker: &Worker,
    stream: impl Duplex,
    flow: Flow,
    identity: Option<&Identity>,
    cluster: &str,
    failure: &Failure,
) {
    stream::refuse(stream);
    outcome(worker, flow, identity, cluster, failure);
}

/// The outcome of a connection that was refused.
pub(crate) fn outcome(worker: &Worker, flow: Flow, identity: Option<&Identity>, cluster: &str, failure: &Failure) {
    worker.record(&Outcome {
        subject: Subject::RefusedConnection,
        flow,
        protocol: Protocol::Tcp,
        status: 0,
        failure: Some(failure),
        source_identity: identity,
        cluster,
        endpoint: None,
        route: "",
        attempts: 0,
        security: Security::of(identity),
        duration: Duration::ZERO,
        sent: 0,
        received: 0,
    });
}

/// The answer to a request whose head is malformed or over a limit, and its outcome.
pub(crate) fn head(worker: &Worker, connection: &Connection, failure: &Failure) -> Answer {
    let answer = respond::to(failure, false);
    let (flow, security) = (connection.flow, Security::of(connection.identity.as_ref()));
    let labels = RequestLabels { direction: flow.direction, destination: "".into(), source: "".into(), security };
    worker.record(&Outcome {
        subject: Subject::Request { series: &worker.metrics.series(&labels), head: None, method: "" },
        flow,
        protocol: connection.protocol,
        status: answer.head.status,
        failure: Some(failure),
        source_identity: connection.identity.as_ref(),
        cluster: "",
        endpoint: None,
        route: "",
        attempts: 0,
        security,
        duration: Duration::ZERO,
        sent: 0,
        received: 0,
    });
    answer
}
