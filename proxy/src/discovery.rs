//! Discovery: the configuration of this proxy, from a control plane, over delta ADS.
//! Spec: xDS transport protocol, incremental; gRFC A46 (a bad resource is rejected alone). The rules of our own server are at
//! the head of control-plane/src/xds.rs; the numbers of rules below are theirs.
//!
//! Shape: [`Discovery::run`] connects, for ever; `stream` is one connection; `held` (pure) has the resources received;
//! `subscriptions` (pure) has the names subscribed to. The names `inbound` and `outbound`, or the gateway's, are subscribed to
//! at the start, `outbound/<ip>:<port>` when the workload calls it.
//! Resources other than endpoints are staged, and come into force in one step with the barrier (rule 9). A name that does not
//! exist changes nothing in force, so the answer to it applies at once.
//! A server that sends no barrier within a second of its first answer is not ours: then the proxy subscribes to the names of
//! the tree one level after the other, and each complete tree comes into force.
//! The last good content of destinations that were unsubscribed from is in `kept` (pure): without a stream they come into force
//! again when they are called.
//! Invariant: the configuration in force stays until its replacement is complete; while there is no connection nothing is
//! unsubscribed from or forgotten.
//!
//! # Defaults
//! 10,000 destinations; a destination not called for 5 min is unsubscribed from; 10 s to open a stream and 15 s for its first
//! answer; backoff as `control_plane`, cut short when the agent stream is back.

mod held;
mod kept;
mod node;
mod origin;
mod stream;
mod subscriptions;
#[cfg(test)]
mod tests;

use std::{collections::HashSet, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use weft_core::{
    names::ListenerName,
    snapshot::{IncompleteError, Resources},
};
use weft_proto::envoy::config::core::v3::Node;

use self::{
    held::{Held, TooManyError},
    kept::Kept,
    origin::Origin,
    subscriptions::Subscriptions,
};
use crate::{
    config::{Mode, Settings},
    control_plane::{Backoff, ConnectError, ControlPlane},
    live::Live,
    status::Status,
    tls::CurrentTls,
};

/// A stream that was up for this long resets the backoff; the time that it took to connect does not count.
const GOOD_STREAM: Duration = Duration::from_secs(5);

/// Gives the destinations of the workload's open connections.
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
    kept: Kept,
    /// The server is not ours: it sends no barrier.
    foreign: bool,
    /// A listener that is held was unsubscribed from, and no barrier since had our hash.
    unsubscribing: bool,
    /// The changes of resources and subscriptions that the configuration in force was made of, where all of them are good: a
    /// barrier without a further change brings only a number.
    in_force: Option<(u64, u64)>,
    /// Where the configuration in force comes from; `None` before the first barrier, and with a server that does not say.
    origin: Option<Origin>,
    /// What the server of this stream says.
    offered: Option<Origin>,
    /// The server of this stream is refused.
    refusing: bool,
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    /// There is no connection.
    #[error("no connection to the control plane")]
    Connect(#[from] ConnectError),
    /// The server ended the stream.
    #[error("the control plane ended the stream ({code}): {message}")]
    Ended {
        /// The gRPC status code.
        code: tonic::Code,
        /// The reason that the server gives.
        message: String,
    },
    /// No answer came in time.
    #[error("the control plane does not answer")]
    Silent,
    /// The queue of requests is full.
    #[error("the control plane does not read its requests")]
    Stuck,
    /// The hash of the barrier is not that of the resources held.
    #[error("revision {number}: the hash does not match the resources received; requesting everything again")]
    Hash {
        /// The revision.
        number: u64,
    },
    /// Too many resources were sent.
    #[error(transparent)]
    TooMany(#[from] TooManyError),
    /// A configuration that was checked turned out to be incomplete.
    #[error("the configuration is incomplete")]
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
            kept: Kept::default(),
            foreign: false,
            unsubscribing: false,
            in_force: None,
            origin: None,
            offered: None,
            refusing: false,
        }
    }

    /// Keeps a stream open, for ever.
    pub(crate) async fn run(mut self) {
        let mut backoff = Backoff::default();
        let mut certificates = self.status.certificates.subscribe();
        // The sender is in `self.status`: it cannot be gone.
        if certificates.wait_for(|count| *count > 0).await.is_err() {
            return;
        }
        loop {
            let error = match Box::pin(self.stream()).await {
                Err(error) => error,
                Ok(never) => match never {},
            };
            let up = self.status.discovery.down();
            self.live.interest.set_discovered(false);
            if matches!(error, StreamError::Hash { .. }) {
                self.held = Held::default();
            }
            if up >= GOOD_STREAM {
                backoff.reset();
            }
            let wait = backoff.next(fastrand::f64());
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
                "no discovery stream, keeping the current configuration"
            );
            self.pause(wait).await;
        }
    }

    /// Waits, at most until the agent stream is back: then the control plane is, too. Serves the destinations that are called
    /// meanwhile.
    async fn pause(&mut self, wait: Duration) {
        let until = Instant::now() + wait;
        let mut agent = self.status.agent.connects.subscribe();
        loop {
            tokio::select! {
                () = sleep_until(until) => return,
                // The sender is in `self.status`: it cannot be gone.
                _ = agent.changed() => return,
                Some(destination) = self.interest.recv() => self.called(destination),
            }
        }
    }

    /// Notes a destination that is called without a stream.
    fn called(&mut self, destination: SocketAddr) {
        self.subscriptions.add(ListenerName::Outbound(destination), Instant::now());
        self.restore(&[destination]);
    }

    /// Puts destinations that were unsubscribed from in force again, as they were. Only without a discovery stream.
    fn restore(&mut self, destinations: &[SocketAddr]) {
        if self.status.discovery.is_up() {
            return;
        }
        let mut resources = Resources::clone(&self.live.load().resources);
        let mut endpoints = Vec::new();
        for destination in destinations {
            let name = ListenerName::Outbound(*destination);
            if resources.listeners.contains_key(&name) {
                continue;
            }
            if let Some(sets) = self.kept.restore(&name, &mut resources) {
                tracing::info!(%destination, "no discovery stream; using the last good configuration of this destination");
                endpoints.extend(sets);
            }
        }
        // Nothing that is in force was changed, and every tree is complete.
        if let Err(error) = self.live.replace(resources) {
            tracing::warn!(error = &error as &dyn std::error::Error, "a kept destination cannot be used");
            return;
        }
        endpoints.iter().for_each(|set| self.live.set_endpoints(set));
    }
}
