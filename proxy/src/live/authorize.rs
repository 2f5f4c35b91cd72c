//! Whether policy allows a request or connection to the workload.
//! Shape: the snapshot, the port and the caller's verified identity in; `Ok`, or the [`Failure`] that refuses it. Pure.
//! Invariant: before the first configuration everything is refused; a denial names its rule.
//!
//! - [`evadable`]: deny rules that a caller in plaintext steps around.

pub(super) mod evadable;

use weft_core::{
    failure::Failure,
    identity::Identity,
    listener::InboundMode,
    policy::{self, Decision},
};

use super::snapshot::{InboundListener, Snapshot};

/// The operation that a request asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operation<'a> {
    pub(crate) method: &'a str,
    /// As sent, without the query.
    pub(crate) path: &'a str,
}

/// Whether a request is allowed. `readings`: the other ways in which an application may read the path (`http::path`); called
/// only where a rule asks for a path.
pub(crate) fn request(
    snapshot: &Snapshot,
    port: u16,
    identity: Option<&Identity>,
    operation: Operation<'_>,
    readings: impl FnOnce(&str) -> Result<Vec<String>, &'static str>,
) -> Result<(), Failure> {
    let inbound = admit(snapshot, port, identity)?;
    let settings = inbound.listener.port(port);
    let requests = inbound.requests.get(&settings.routes).ok_or(Failure::NotConfigured)?;
    by_rules(requests, port, identity, operation, readings)
}

/// Whether the rules of a port allow a request; arguments as for [`request`].
pub(crate) fn by_rules(
    rules: &policy::Engine,
    port: u16,
    identity: Option<&Identity>,
    operation: Operation<'_>,
    readings: impl FnOnce(&str) -> Result<Vec<String>, &'static str>,
) -> Result<(), Failure> {
    if rules.allows_all() {
        return Ok(());
    }
    let check = |path: &str| {
        let request = policy::Request { identity, port, http: Some((operation.method, path)) };
        result(rules.check(&request))
    };
    check(operation.path)?;
    // A rule on paths must hold however the application reads the path.
    if rules.reads_paths() {
        for reading in readings(operation.path).map_err(Failure::BadRequest)? {
            check(&reading)?;
        }
    }
    Ok(())
}

/// Whether a connection that is not HTTP is allowed.
pub(crate) fn connection(snapshot: &Snapshot, port: u16, identity: Option<&Identity>) -> Result<(), Failure> {
    let inbound = admit(snapshot, port, identity)?;
    result(inbound.connections(port).check(&policy::Request { identity, port, http: None }))
}

/// The inbound listener, if it takes callers like this one at all.
fn admit<'a>(snapshot: &'a Snapshot, port: u16, identity: Option<&Identity>) -> Result<&'a InboundListener, Failure> {
    let inbound = snapshot.inbound.as_ref().ok_or(Failure::NotConfigured)?;
    if inbound.listener.port(port).mode == InboundMode::Strict && identity.is_none() {
        return Err(Failure::PlaintextRefused);
    }
    Ok(inbound)
}

fn result(decision: Decision<'_>) -> Result<(), Failure> {
    match decision {
        Decision::Allow(_) => Ok(()),
        Decision::DeniedBy(rule) => Err(Failure::Denied(rule.into())),
        Decision::NotAllowed => Err(Failure::NotAllowed),
    }
}
