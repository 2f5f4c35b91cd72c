//! The agent stream: registration and health of this proxy and its workload, and no configuration.
//! Shape: [`Agent::run`] registers, sends a heartbeat at the interval that the control plane gives and at every change, and
//! deregisters the workload at the end. A lost stream is opened again, with the registration first.
//!
//! - [`health`]: the checks of the workload.
//!
//! # Defaults
//! 2 s between heartbeats until the control plane gives another interval; 100 ms until a new revision is reported; 10 s for the
//! registration; 1 s to deregister; backoff as `control_plane`, but never longer than one interval: a control plane that comes
//! back expects a heartbeat within three intervals, however long it was away.

pub(crate) mod health;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use weft_proto::weft::v1::{
    AgentMessage, Deregister, Health, Heartbeat, Port, RefusedAddress, Register, Registered, agent_client::AgentClient,
    agent_message::Message, control_message,
};
use weft_redirect::Redirect;

use crate::{
    config::{Mode, Settings},
    control_plane::{Backoff, ConnectError, ControlPlane},
    status::{Status, WorkloadHealth},
    tls::CurrentTls,
};

/// Between heartbeats, until the control plane gives an interval.
const INTERVAL: Duration = Duration::from_secs(2);
/// Longest wait for the answer to a registration.
const REGISTRATION: Duration = Duration::from_secs(10);
/// Longest wait until a deregistration is read.
const DEREGISTRATION: Duration = Duration::from_secs(1);
/// A stream that was up for this long resets the backoff; the time that it took to connect does not count.
const GOOD_STREAM: Duration = Duration::from_secs(5);
/// Bounds of the interval that the control plane gives, in milliseconds.
const INTERVALS: std::ops::RangeInclusive<u32> = 50..=300_000;
/// Messages that wait to be sent.
const MESSAGES: usize = 16;
/// The mode of a gateway.
const GATEWAY: &str = "gateway";
/// Most ports that are registered as reached without the proxy.
const MAX_SKIPPED: usize = 64;
/// Longest delay of the report of a new revision, so that one message reports many.
const APPLIED: Duration = Duration::from_millis(100);

/// The client.
pub(crate) struct Agent {
    plane: ControlPlane,
    tls: Arc<CurrentTls>,
    status: Arc<Status>,
    register: Register,
    health: watch::Receiver<WorkloadHealth>,
    /// Ports at which peers reach this host without the proxy, whatever the redirection says.
    skipped: Vec<u16>,
    /// Ports of the proxy that are for nobody else.
    hidden: Vec<u16>,
    /// Between heartbeats.
    interval: Duration,
}

/// The proxy's own ports.
pub(crate) struct OwnPorts {
    /// That of metrics, if peers reach it.
    pub(crate) metrics: Option<u16>,
    /// The others, which nobody is told about.
    pub(crate) hidden: Vec<u16>,
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum AgentError {
    #[error("no connection to the control plane")]
    Connect(#[from] ConnectError),
    #[error("the control plane ended the agent stream ({code}): {message}")]
    Ended { code: tonic::Code, message: String },
    #[error("the control plane refuses the registration: {0}")]
    Refused(String),
    #[error("the control plane does not answer")]
    Silent,
    #[error("the control plane does not read its messages")]
    Stuck,
}

impl Agent {
    pub(crate) fn new(
        settings: &Settings,
        plane: ControlPlane,
        tls: Arc<CurrentTls>,
        status: Arc<Status>,
        health: watch::Receiver<WorkloadHealth>,
        ports: OwnPorts,
    ) -> Self {
        let OwnPorts { metrics, hidden } = ports;
        let skipped = settings.workload.skip_inbound_ports.iter().map(|port| port.get()).chain(metrics).collect();
        Self { plane, tls, status, register: registration(settings), health, skipped, hidden, interval: INTERVAL }
    }

    /// Keeps a stream open until `leave`, then deregisters the workload.
    pub(crate) async fn run(mut self, leave: CancellationToken) {
        let mut backoff = Backoff::default();
        let mut certificates = self.status.certificates.subscribe();
        tokio::select! {
            // The sender is in `self.status`: it cannot be gone.
            _ = certificates.wait_for(|count| *count > 0) => {}
            () = leave.cancelled() => return,
        }
        loop {
            let ended = Box::pin(self.stream(&leave)).await;
            let up = self.status.agent.down();
            let Err(error) = ended else { return };
            if up >= GOOD_STREAM {
                backoff.reset();
            }
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "no agent stream, retrying; the control plane does not know the health of this workload"
            );
            tokio::select! {
                () = sleep(backoff.next_within(self.interval, fastrand::f64())) => {}
                () = leave.cancelled() => return,
            }
        }
    }

    /// One stream; `Ok` after the deregistration.
    async fn stream(&mut self, leave: &CancellationToken) -> Result<(), AgentError> {
        let channel = tokio::select! {
            channel = self.plane.connect(&self.tls) => channel?,
            () = leave.cancelled() => return Ok(()),
        };
        self.register.skipped_ports = self.skipped_ports().await;
        let (messages, receiver) = mpsc::channel(MESSAGES);
        send(&messages, Message::Register(self.register.clone()))?;
        let mut client = AgentClient::new(channel);
        let opened = timeout(REGISTRATION, client.session(ReceiverStream::new(receiver))).await;
        let mut answers = opened.map_err(|_elapsed| AgentError::Silent)?.map_err(ended)?.into_inner();
        let mut registered = false;
        let silent_at = Instant::now() + REGISTRATION;
        let mut due = Instant::now();
        let mut report_due = false;
        let mut applied = self.status.applied.subscribe();
        let mut draining = self.status.draining.subscribe();
        let mut captured = self.status.captured.subscribe();
        let mut certificates = self.status.certificates.subscribe();
        loop {
            tokio::select! {
                answer = answers.message() => match answer.map_err(ended)? {
                    None => return Err(ended(tonic::Status::ok("closed"))),
                    Some(answer) => {
                        if let Some(control_message::Message::Registered(answer)) = answer.message {
                            self.interval = interval(&answer)?;
                            self.missing(&answer);
                            if !registered {
                                tracing::info!(interval_ms = answer.heartbeat_interval_ms, "registered");
                            }
                            registered = true;
                            self.status.agent.up();
                            // The registration carries no health: the first heartbeat follows at once.
                            due = Instant::now();
                        }
                    }
                },
                () = leave.cancelled() => {
                    send(&messages, Message::Deregister(Deregister {}))?;
                    drop(messages);
                    // The server ends the stream when it has read the message.
                    let read = timeout(DEREGISTRATION, async { while let Ok(Some(_)) = answers.message().await {} }).await;
                    if read.is_err() {
                        tracing::debug!("the deregistration was not acknowledged in time");
                    }
                    return Ok(());
                }
                () = tokio::time::sleep_until(silent_at), if !registered => return Err(AgentError::Silent),
                () = tokio::time::sleep_until(due), if registered => {
                    due = Instant::now() + self.interval;
                    report_due = false;
                    // This heartbeat reports the revision; it needs no other.
                    applied.mark_unchanged();
                    send(&messages, Message::Heartbeat(self.heartbeat()))?;
                }
                Ok(()) = self.health.changed(), if registered => due = Instant::now(),
                Ok(()) = applied.changed(), if registered && !report_due => {
                    report_due = true;
                    due = due.min(Instant::now() + APPLIED);
                }
                Ok(()) = draining.changed(), if registered => due = Instant::now(),
                Ok(()) = captured.changed(), if registered => {
                    // Another redirection may leave out other ports.
                    self.register.skipped_ports = self.skipped_ports().await;
                    send(&messages, Message::Register(self.register.clone()))?;
                }
                Ok(()) = certificates.changed(), if registered => due = Instant::now(),
            }
        }
    }

    /// The ports at which peers reach this host without the proxy: those of the file, the proxy's port of metrics, and those that
    /// the redirection in force leaves out.
    async fn skipped_ports(&self) -> Vec<u32> {
        if self.register.mode == GATEWAY {
            return Vec::new();
        }
        let redirected = tokio::task::spawn_blocking(Redirect::skipped_inbound).await;
        let redirected = match redirected {
            Ok(Ok(ports)) => ports,
            Ok(Err(error)) => {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "the rules of the redirection cannot be read"
                );
                Vec::new()
            }
            Err(_stopping) => Vec::new(),
        };
        let all: BTreeSet<u16> =
            self.skipped.iter().copied().chain(redirected).filter(|port| !self.hidden.contains(port)).collect();
        all.into_iter().take(MAX_SKIPPED).map(u32::from).collect()
    }

    /// Notes the addresses of the proxy's file that the control plane refuses.
    fn missing(&self, answer: &Registered) {
        let missing = answer.refused_addresses.iter().map(|it| (it.address.clone(), it.reason.clone())).collect();
        let before = std::mem::replace(&mut *self.status.missing.lock(), missing);
        for RefusedAddress { address, reason } in &answer.refused_addresses {
            if before.get(address) != Some(reason) {
                tracing::warn!(address, reason, "the control plane refuses this address of the proxy's file");
            }
        }
        for address in before.keys().filter(|address| answer.refused_addresses.iter().all(|it| it.address != **address))
        {
            tracing::info!(address, "the control plane accepts this address now");
        }
    }

    fn heartbeat(&mut self) -> Heartbeat {
        let not_captured = self.status.captured.borrow().faults();
        let (health, reason) = match &*self.health.borrow_and_update() {
            _ if *self.status.draining.borrow() => (Health::Draining, String::new()),
            _ if !not_captured.is_empty() => (Health::Unhealthy, not_captured.join("; ")),
            WorkloadHealth::Healthy => (Health::Healthy, String::new()),
            WorkloadHealth::Unhealthy(reason) => (Health::Unhealthy, reason.clone()),
        };
        let applied = *self.status.applied.borrow();
        let not_after = self.tls.load().as_ref().map(|tls| tls.not_after);
        Heartbeat {
            health: health.into(),
            reason,
            certificate_expiry: not_after.map(|seconds| prost_types::Timestamp { seconds, nanos: 0 }),
            revision: applied.revision,
            revision_hash: applied.hash.map(|hash| hash.to_vec().into()).unwrap_or_default(),
        }
    }
}

fn send(messages: &mpsc::Sender<AgentMessage>, message: Message) -> Result<(), AgentError> {
    messages.try_send(AgentMessage { message: Some(message) }).map_err(|_full| AgentError::Stuck)
}

/// The heartbeat interval that the control plane gives.
/// Errors: it refuses the registration.
fn interval(answer: &Registered) -> Result<Duration, AgentError> {
    if !answer.refused.is_empty() {
        return Err(AgentError::Refused(answer.refused.clone()));
    }
    let millis = answer.heartbeat_interval_ms;
    let bounded = u64::from(millis.clamp(*INTERVALS.start(), *INTERVALS.end()));
    Ok(if millis == 0 { INTERVAL } else { Duration::from_millis(bounded) })
}

fn ended(status: tonic::Status) -> AgentError {
    AgentError::Ended { code: status.code(), message: status.message().to_owned() }
}

fn registration(settings: &Settings) -> Register {
    let workload = &settings.workload;
    let ports = workload.ports.iter().map(|port| Port {
        name: port.name.clone().unwrap_or_default(),
        port: port.port.get().into(),
        protocol: port.protocol().as_str().to_owned(),
        proxy_port: port.proxy_port.map(|port| port.get().into()).unwrap_or_default(),
    });
    let gateway = matches!(settings.mode, Mode::Gateway(_));
    Register {
        namespace: settings.namespace.clone(),
        name: settings.name.clone(),
        labels: workload.labels.clone(),
        addresses: if gateway { Vec::new() } else { workload.addresses.iter().map(ToString::to_string).collect() },
        ports: if gateway { Vec::new() } else { ports.collect() },
        weight: workload.weight.map(std::num::NonZero::get).unwrap_or_default(),
        zone: workload.zone.clone().unwrap_or_default(),
        mode: if gateway { GATEWAY } else { "sidecar" }.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        incarnation: format!("{:032x}", fastrand::u128(..)),
        skipped_ports: Vec::new(),
    }
}
