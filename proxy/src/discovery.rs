//! Discovery: what this proxy obeys, from a control plane, over delta ADS.
//! Spec: xDS transport protocol, incremental; gRFC A46 (one bad resource does not spoil the others). The rules of our own
//! server are at the head of control-plane/src/xds.rs; the numbers below are those.
//!
//! Shape: [`Discovery::run`] connects, for ever; `stream` is one connection; `held` (pure) is what was sent;
//! `subscriptions` (pure) is what we ask for. The names `inbound` and `outbound`, or the gateway's, are asked for at the
//! start, `outbound/<ip>:<port>` when the workload calls it.
//! Everything but endpoints is staged, and comes into force in one step with the barrier (rule 9). A name that does not
//! exist changes nothing that is in force, so the answer to it applies at once.
//! A server that sends no barrier within a second of its first answer is not ours: then the names of the tree are asked for
//! one level after the other, and what is complete comes into force.
//! Invariant: what is in force stays in force until something better is complete; while there is no connection nothing is
//! unsubscribed or forgotten.
//!
//! # Defaults
//! 10,000 destinations; one not called for 5 min is unsubscribed from; 10 s to open a stream and 15 s for its first answer;
//! waits between tries as `control_plane`.

mod held;
mod node;
mod stream;
mod subscriptions;
#[cfg(test)]
mod tests;

use std::{collections::HashSet, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use weft_core::{names::ListenerName, snapshot::IncompleteError};
use weft_proto::envoy::config::core::v3::Node;

use self::{
    held::{Held, TooManyError},
    subscriptions::Subscriptions,
};
use crate::{
    config::{Mode, Settings},
    control_plane::{Backoff, ConnectError, ControlPlane},
    live::Live,
    status::Status,
    tls::CurrentTls,
};

/// A stream that lasted so long was a good one: the next try comes soon.
const GOOD_STREAM: Duration = Duration::from_secs(5);

/// Where open connections of the workload lead; asked now and then.
pub(crate) type OpenDestinations = Box<dyn Fn() -> HashSet<SocketAddr> + Send>;

/// The client.
pub(crate) struct Discovery {
    plane: ControlPlane,
    tls: Arc<CurrentTls>,
    live: Arc<Live>,
    status: Arc<Status>,
    node: Node,
    interest: mpsc::Receiver<SocketAddr>,
    open: OpenDestinations,
    subscriptions: Subscriptions,
    held: Held,
    /// The server is not ours: it has no barrier.
    foreign: bool,
    /// A listener that is held was unsubscribed from, and no barrier since agreed with us.
    unsubscribing: bool,
    /// What the configuration in force was made of, where all of it is good: a barrier after which this is the same only
    /// brings a number.
    in_force: Option<(u64, u64)>,
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    /// No connection.
    #[error("no connection to the control plane")]
    Connect(#[from] ConnectError),
    /// The server ended it.
    #[error("the control plane ended the stream ({code}): {message}")]
    Ended {
        /// gRPC's code.
        code: tonic::Code,
        /// Its reason.
        message: String,
    },
    /// Nothing came.
    #[error("the control plane does not answer")]
    Silent,
    /// It does not take our requests.
    #[error("the control plane does not read")]
    Stuck,
    /// We and the server do not agree on what we hold.
    #[error("revision {number}: the control plane's hash of what we hold is not ours; asking for everything again")]
    Hash {
        /// The revision.
        number: u64,
    },
    /// Too much was sent.
    #[error(transparent)]
    TooMany(#[from] TooManyError),
    /// A configuration that was checked turned out to be incomplete.
    #[error("the configuration is not complete")]
    Incomplete(#[from] IncompleteError),
}

impl Discovery {
    /// A client for a proxy with these settings.
    pub(crate) fn new(
        settings: &Settings,
        plane: ControlPlane,
        tls: Arc<CurrentTls>,
        live: Arc<Live>,
        status: Arc<Status>,
        interest: mpsc::Receiver<SocketAddr>,
        open: OpenDestinations,
    ) -> Self {
        let always = match &settings.mode {
            Mode::Sidecar => vec![ListenerName::Inbound, ListenerName::OutboundDefault],
            Mode::Gateway(name) => {
                vec![ListenerName::Gateway { namespace: settings.namespace.clone(), name: name.clone() }]
            }
        };
        Self {
            plane,
            tls,
            live,
            status,
            node: node::node(settings),
            interest,
            open,
            subscriptions: Subscriptions::new(always, Instant::now()),
            held: Held::default(),
            foreign: false,
            unsubscribing: false,
            in_force: None,
        }
    }

    /// Stays connected.
    pub(crate) async fn run(mut self) {
        let mut backoff = Backoff::default();
        let mut certificates = self.status.certificates.subscribe();
        // The sender lives in our own status.
        if certificates.wait_for(|count| *count > 0).await.is_err() {
            return;
        }
        loop {
            let started = Instant::now();
            let error = match Box::pin(self.stream()).await {
                Err(error) => error,
                Ok(never) => match never {},
            };
            self.status.discovery.down();
            self.live.interest.set_discovered(false);
            if matches!(error, StreamError::Hash { .. }) {
                self.held = Held::default();
            }
            if started.elapsed() >= GOOD_STREAM {
                backoff.reset();
            }
            let wait = backoff.next(fastrand::f64());
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
                "no discovery; the last good configuration stays in force"
            );
            self.pause(wait).await;
        }
    }

    /// Waits, and notes what is asked for meanwhile.
    async fn pause(&mut self, wait: Duration) {
        let until = Instant::now() + wait;
        loop {
            tokio::select! {
                () = sleep_until(until) => return,
                Some(destination) = self.interest.recv() => {
                    self.subscriptions.add(ListenerName::Outbound(destination), Instant::now());
                }
            }
        }
    }
}
