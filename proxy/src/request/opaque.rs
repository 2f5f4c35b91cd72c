//! A connection whose bytes are not HTTP: relayed between caller and callee until both directions have ended.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::time::Instant;
use weft_core::{failure::Failure, identity::Identity};

use crate::{
    stream::Duplex,
    tcp::{Relay, RelayError},
    telemetry::{Flow, Outcome, Protocol, Security, Subject},
    worker::Worker,
};

/// An opaque connection that both sides have agreed to.
pub(crate) struct Opaque<'a> {
    pub(crate) worker: &'a Arc<Worker>,
    pub(crate) flow: Flow,
    /// The caller's verified identity; none for the workload beside this proxy.
    pub(crate) identity: Option<Identity>,
    /// On the side away from the workload.
    pub(crate) security: Security,
    /// How long the caller's certificate stays valid; the connection ends with it.
    pub(crate) valid_for: Option<Duration>,
    pub(crate) cluster: &'a str,
    pub(crate) endpoint: Option<SocketAddr>,
    /// The connection is closed after this time without a byte in either direction.
    pub(crate) idle: Duration,
    pub(crate) started: Instant,
}

impl Opaque<'_> {
    /// Relays until both directions have ended, and records the outcome. `revoked`: ends when policy no longer allows it.
    /// Whatever ends it before breaks both sides off.
    pub(crate) async fn relay(self, caller: impl Duplex, callee: impl Duplex, revoked: impl Future<Output = Failure>) {
        let Self { worker, flow, identity, security, valid_for, cluster, endpoint, idle, started } = self;
        let row = worker.connections.open(flow, identity, Protocol::Tcp);
        let _open = worker.metrics.connection(flow.direction);
        if let Some(valid_for) = valid_for {
            row.connection.valid_for(valid_for);
        }
        let identity = row.connection.identity.as_ref();
        let mut relay = Relay::new(caller, callee);
        let failure = tokio::select! {
            result = relay.run(idle, row.connection.moved()) => result.err().map(RelayError::into_failure),
            failure = row.connection.cut() => Some(failure),
            failure = revoked => Some(failure),
        };
        let relayed = relay.relayed();
        if failure.is_some() {
            relay.abort().await;
        }
        worker.record(&Outcome {
            subject: Subject::Connection,
            flow,
            protocol: Protocol::Tcp,
            status: 0,
            failure: failure.as_ref(),
            source_identity: identity,
            cluster,
            endpoint,
            route: "",
            attempts: 1,
            security,
            duration: started.elapsed(),
            sent: relayed.sent,
            received: relayed.received,
        });
    }
}
