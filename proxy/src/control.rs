//! The running proxy as one value: [`View`] reads it, [`Control`] drains and quits it, a [`Command`] goes to one worker thread.
//! `app` makes it; `admin` answers from it. Both import this module, and not each other.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Mode, Settings, Source},
    connection::Open,
    drain::Drainer,
    listener::socket::Role,
    live::Live,
    status::{Status, WorkloadHealth},
    tls::{CurrentTls, unix_now},
    worker::Worker,
};

/// A worker that does not answer for this long is not alive.
const ALIVE: Duration = Duration::from_secs(1);
/// Between announcing draining to the control plane and refusing connections: the time for the endpoint's new health to reach
/// callers.
const ANNOUNCE: Duration = Duration::from_millis(500);

/// Why a proxy without a valid certificate takes no traffic.
const NO_CERTIFICATE: &str = "no certificate";
const CERTIFICATE_EXPIRED: &str = "the certificate has expired";

/// The parts of a running proxy, as the composition root, the admin port and shutdown see them.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) settings: Settings,
    pub(crate) live: Arc<Live>,
    pub(crate) status: Arc<Status>,
    pub(crate) tls: Arc<CurrentTls>,
    pub(crate) workers: Vec<Arc<Worker>>,
    /// By the checks of the workload.
    pub(crate) workload: watch::Receiver<WorkloadHealth>,
    /// By worker.
    pub(crate) commands: Vec<mpsc::Sender<Command>>,
    pub(crate) control: Control,
}

/// The commands to the whole proxy.
#[derive(Clone, Debug)]
pub(crate) struct Control {
    pub(crate) drainer: Drainer,
    pub(crate) quit: CancellationToken,
}

/// A command to a worker thread.
#[derive(Debug)]
pub(crate) enum Command {
    /// Serve this socket. The number is for [`Command::Close`].
    Listen(u16, std::net::TcpListener, Role),
    /// Stop accepting on the gateway port of this number.
    Close(u16),
    /// Answer, as a sign of life.
    Ping(oneshot::Sender<()>),
}

impl View {
    /// Why the proxy does not take traffic; empty when it does.
    pub(crate) fn not_ready(&self) -> Vec<&'static str> {
        let mut reasons = Vec::new();
        if *self.status.draining.borrow() {
            reasons.push("draining");
        }
        let identified = !matches!(self.settings.source, Source::File { identity: None, .. });
        match self.tls.load().as_ref() {
            None if identified => reasons.push(NO_CERTIFICATE),
            Some(tls) if tls.not_after <= unix_now() => reasons.push(CERTIFICATE_EXPIRED),
            None | Some(_) => {}
        }
        let live = self.live.load();
        let configured = match self.settings.mode {
            Mode::Sidecar => live.inbound.is_some(),
            Mode::Gateway(_) => live.gateway.is_some(),
        };
        if !configured {
            reasons.push("no configuration");
        }
        if !self.status.listening.load(Relaxed) {
            reasons.push("a listener is not open");
        }
        reasons.extend(self.status.captured.borrow().faults());
        reasons
    }

    /// Why the proxy and its workload do not take traffic together; empty when they do.
    pub(crate) fn workload_not_ready(&self) -> Vec<String> {
        let mut reasons = self.reasons();
        if let WorkloadHealth::Unhealthy(why) = &*self.workload.borrow() {
            reasons.push(format!("the workload: {why}"));
        }
        reasons
    }

    /// The same for people: why there is no certificate is known.
    pub(crate) fn reasons(&self) -> Vec<String> {
        let fault = self.status.certificate_fault.lock().clone();
        let told = |reason: &'static str| match &fault {
            Some(fault) if [NO_CERTIFICATE, CERTIFICATE_EXPIRED].contains(&reason) => format!("{reason}: {fault}"),
            _ => reason.to_owned(),
        };
        self.not_ready().into_iter().map(told).collect()
    }

    /// Open connections of all workers.
    pub(crate) fn open(&self) -> Open {
        self.workers.iter().map(|worker| worker.connections.open_now()).fold(Open::default(), Open::and)
    }

    /// Announces draining to the control plane, then refuses new connections and closes idle ones.
    pub(crate) async fn drain(&self) {
        let first = !self.status.draining.send_replace(true);
        if first {
            tracing::info!(open = ?self.open(), "draining");
            if self.status.agent.is_up() {
                sleep(ANNOUNCE).await;
            }
        }
        if *self.status.draining.borrow() {
            self.control.drainer.begin();
        }
    }

    /// Takes a drain back: accepts connections again, then tells the control plane.
    pub(crate) fn undrain(&self) {
        self.control.drainer.end();
        if self.status.draining.send_replace(false) {
            tracing::info!("no longer draining");
        }
    }

    /// Whether every worker answers within [`ALIVE`].
    pub(crate) async fn is_alive(&self) -> bool {
        for commands in &self.commands {
            let (answer, answered) = oneshot::channel();
            let asked = async {
                commands.send(Command::Ping(answer)).await.map_err(|_gone| ())?;
                answered.await.map_err(|_gone| ())
            };
            if !matches!(timeout(ALIVE, asked).await, Ok(Ok(()))) {
                return false;
            }
        }
        true
    }
}
