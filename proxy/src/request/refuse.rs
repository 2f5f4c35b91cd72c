//! Refusing a connection without a byte, or a request whose head is not fit to be read further: the answer and the outcome.

use std::time::Duration;

use tokio::{io::AsyncWriteExt, time::timeout};
use weft_core::{failure::Failure, identity::Identity};

use crate::{
    connection::Connection,
    http::{answer::Answer, respond},
    stream::{self, Duplex, Stream},
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

/// SETTINGS, and GOAWAY with NO_ERROR and no stream: every request is safe to send elsewhere (RFC 9113 §6.8).
const GOAWAY: [u8; 26] = *b"\0\0\0\x04\0\0\0\0\0\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\0";
/// The longest time that a refusal takes.
const REFUSAL: Duration = Duration::from_millis(2_500);

/// Refuses a connection of another proxy for HTTP/2 so that its requests may go elsewhere.
pub(crate) async fn http2(mut stream: Stream) {
    let refusal = async {
        stream.write_all(&GOAWAY).await?;
        stream.shutdown().await?;
        // Closed with unread bytes, the kernel would reset it in front of the refusal.
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
    };
    if !matches!(timeout(REFUSAL, refusal).await, Ok(Ok(_))) {
        tracing::debug!("a peer did not take the refusal of its connection");
    }
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
