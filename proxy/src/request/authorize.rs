//! The authorize phase at the workload: whether policy allows a request or an opaque connection, now and while it lasts.

use weft_core::{
    failure::Failure,
    identity::Identity,
    listener::InboundMode,
    policy::{self, Verdict},
};

use crate::{
    connection::Connection,
    http::{head::Head, path},
    live::{InboundLive, Live},
    telemetry::Direction,
    worker::Worker,
};

/// Judges a request: pure.
pub(crate) fn request(live: &Live, port: u16, identity: Option<&Identity>, head: &Head) -> Result<(), Failure> {
    let inbound = live.inbound.as_ref().ok_or(Failure::NotConfigured)?;
    let settings = inbound.listener.port(port);
    if settings.mode == InboundMode::Strict && identity.is_none() {
        return Err(Failure::PlaintextRefused);
    }
    let requests = inbound.requests.get(&settings.routes).ok_or(Failure::NotConfigured)?;
    if requests.allows_all() {
        return Ok(());
    }
    let judge = |path: &str| {
        let request = policy::Request { identity, port, http: Some((head.request.method(), path)) };
        verdict(requests.check(&request))
    };
    judge(head.request.path())?;
    // A rule on paths must hold however the application reads the path.
    if requests.judges_paths() {
        for reading in path::readings(head.request.path()).map_err(Failure::BadRequest)? {
            judge(&reading)?;
        }
    }
    Ok(())
}

/// Judges a connection that is not HTTP: pure.
pub(crate) fn connection(inbound: &InboundLive, port: u16, identity: Option<&Identity>) -> Result<(), Failure> {
    verdict(inbound.connections(port).check(&policy::Request { identity, port, http: None }))
}

fn verdict(verdict: Verdict<'_>) -> Result<(), Failure> {
    match verdict {
        Verdict::Allow(_) => Ok(()),
        Verdict::DeniedBy(rule) => Err(Failure::Denied(rule.into())),
        Verdict::NotAllowed => Err(Failure::NotAllowed),
    }
}

/// Ends when a new configuration no longer allows this opaque connection. Requests are judged one by one; here there are none.
pub(crate) async fn connection_revoked(worker: &Worker, port: u16, identity: Option<Identity>) -> Failure {
    let state = &worker.shared.state;
    loop {
        let swapped = state.swapped.notified();
        if let Some(inbound) = &state.live().inbound {
            if identity.is_none() && inbound.listener.port(port).mode == InboundMode::Strict {
                return Failure::PlaintextRefused;
            }
            if let Err(failure) = connection(inbound, port, identity.as_ref()) {
                return failure;
            }
        }
        swapped.await;
    }
}

/// Ends when a new configuration no longer allows a request that has become a tunnel.
pub(crate) async fn request_revoked(worker: &Worker, connection: &Connection, head: &Head) -> Failure {
    if connection.flow.direction != Direction::Inbound {
        return std::future::pending().await;
    }
    let state = &worker.shared.state;
    let port = connection.flow.destination.port();
    loop {
        let swapped = state.swapped.notified();
        if let Err(failure) = request(&state.live(), port, connection.identity.as_ref(), head) {
            return failure;
        }
        swapped.await;
    }
}
