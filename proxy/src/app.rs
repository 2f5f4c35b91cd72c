//! The composition root: one control thread, which this runs on, and worker threads that carry traffic.
//! Shape: [`App::start`] opens every port and starts everything; [`App::run`] stays until it is told to stop;
//! [`App::shutdown`] drains. In a test the control thread is the test's own.
//!
//! Shutdown: readiness goes first, then the control plane is told, then listeners close and idle connections end; the workload
//! leaves the registry when the last connection has ended or the drain timeout is over.
//!
//! - [`ports`]: opening listening sockets. `threads`: the workers.
//!   `edge`: the ports of a gateway come and go.

mod edge;
mod ports;
mod threads;

use std::{
    collections::HashSet,
    io,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use weft_core::snapshot::IncompleteError;

pub use self::ports::Addresses;
use self::{
    ports::{PortError, Ports},
    threads::Threads,
};
use crate::{
    admin::{Door, serve},
    agent::{Agent, OwnPorts, health::Checks},
    capture::{self, Capture},
    config::{Join, LoopError, Mode, Settings, SettingsArgs, Source},
    connection::Open,
    control::{Control, View},
    control_plane::{ControlPlane, check_mark},
    discovery::Discovery,
    drain::Drainer,
    file::{FileSource, IdentityFilesError, read_identity, watch_identity},
    identity::Issuer,
    listener::spread::Spread,
    live::Live,
    status::{SelfProbe, Status},
    telemetry::AccessLog,
    tls::CurrentTls,
    worker::{Shared, Worker},
};

/// Destinations that may wait for discovery.
const INTEREST: usize = 4_096;
/// Longest time to deregister from the control plane.
const LEAVE: Duration = Duration::from_millis(1_500);
/// Longest time to write the end of the access log.
const LOG: Duration = Duration::from_secs(1);
/// Longest time for open connections to be reset and logged at the end.
const STOP: Duration = Duration::from_secs(1);
/// Longest time for the workload's idle HTTP connections to be closed in order.
const CLOSE: Duration = Duration::from_millis(250);
/// How often open connections are counted while draining.
const COUNT: Duration = Duration::from_millis(25);

/// A running proxy.
pub struct App {
    /// Where it listens.
    pub addresses: Addresses,
    view: Arc<View>,
    threads: Threads,
    log: AccessLog,
    tasks: JoinSet<()>,
    file: Option<FileSource>,
    agent: Option<JoinHandle<()>>,
    leave: CancellationToken,
    _checks: Checks,
}

/// Why a proxy does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A port cannot be opened.
    #[error(transparent)]
    Port(#[from] PortError),
    /// A forward listener leads to one of the ports that were opened.
    #[error(transparent)]
    Loop(#[from] LoopError),
    /// The mark cannot be set.
    #[error("spec.mark: {mark:#x} cannot be set, which needs CAP_NET_ADMIN; where nothing is redirected, set mark: 0")]
    Mark {
        /// The mark.
        mark: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The certificate's files are not valid.
    #[error(transparent)]
    Identity(#[from] IdentityFilesError),
    /// The objects are incomplete.
    #[error("the configuration made from the objects is incomplete")]
    Incomplete(#[from] IncompleteError),
    /// A thread cannot be started.
    #[error("cannot start a worker thread")]
    Thread(#[source] io::Error),
    /// No signals.
    #[error("cannot listen for signals")]
    Signal(#[source] io::Error),
}

/// The signals that the proxy handles.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

/// The meaning of a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Stop,
    Reload,
}

impl Signals {
    /// Registers the handlers. Errors: the kernel refuses.
    pub fn listen() -> Result<Self, StartError> {
        let listen = |kind| signal(kind).map_err(StartError::Signal);
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    /// The next one.
    async fn next(&mut self) -> Order {
        tokio::select! {
            _ = self.terminate.recv() => Order::Stop,
            _ = self.interrupt.recv() => Order::Stop,
            _ = self.hangup.recv() => Order::Reload,
        }
    }

    async fn stop(&mut self) {
        while self.next().await != Order::Stop {}
    }
}

impl App {
    /// Opens every port and starts everything on the current runtime and new threads.
    pub async fn start(settings: Settings) -> Result<Self, StartError> {
        // All that can be refused comes first: a proxy that does not start leaves nothing behind.
        if let Some(mark) = settings.mark {
            check_mark(mark).map_err(|source| StartError::Mark { mark, source })?;
        }
        let Ports { addresses, admin, metrics, data } = Ports::open(&settings).await?;
        addresses.loops(&settings)?;
        let (live, status) = (Arc::new(Live::new(settings.workers)), Arc::new(Status::default()));
        let tls = Arc::new(CurrentTls::empty());
        let mut tasks = JoinSet::new();
        // From a file everything is in force before the first connection; from a control plane nothing is yet.
        let file = match &settings.source {
            Source::File { identity, objects } => {
                if let Some(files) = identity {
                    tls.store(Some(Arc::new(read_identity(files, settings.tls.records)?)));
                    status.certificates.send_replace(1);
                    let (tls, status) = (tls.clone(), status.clone());
                    tasks.spawn(watch_identity(files.clone(), settings.tls.records, move |new| {
                        tls.store(Some(Arc::new(new)));
                        status.certificates.send_modify(|count| *count += 1);
                    }));
                }
                let parts = (live.clone(), status.clone(), tls.clone());
                let file = FileSource::new(settings.clone(), objects.clone(), parts.0, parts.1, parts.2);
                file.apply()?;
                Some(file)
            }
            Source::ControlPlane(_) => None,
        };
        // The workers, and all that they share.
        let (interest, wanted) = mpsc::channel(INTEREST);
        let limit = (settings.max_connections / settings.workers).max(1);
        let (source, identity) = (settings.max_connections_per_source, settings.max_connections_per_identity);
        let (spread, handed) = Spread::with_shares(settings.workers, limit, source, identity);
        let shared = Arc::new(Shared {
            live: live.clone(),
            tls: tls.clone(),
            interest: file.is_none().then_some(interest),
            mark: settings.mark,
            own_addresses: settings.workload.addresses.clone(),
            own_ports: addresses.own_ports(),
            declared: settings.declared_ports(),
            mesh_ranges: settings.mesh_ranges.clone(),
            access_log: settings.access_log,
            spread,
            max_streams: settings.max_streams,
            heads: Arc::default(),
            stalled: settings.stalled,
            paused: settings.paused,
            half_closed: settings.half_closed,
            discovery_wait: settings.discovery_wait,
            self_probe: Arc::new(SelfProbe::new(capture::targets(&settings))),
        });
        let capture = Capture { probe: shared.self_probe.clone(), status: status.clone() };
        let (drainer, drain) = Drainer::new();
        let log = AccessLog::start();
        let workers: Vec<Arc<Worker>> =
            (0..settings.workers).map(|index| Worker::new(index, shared.clone(), log.clone(), drain.clone())).collect();
        let threads = Threads::start(&workers, handed).map_err(StartError::Thread)?;
        threads.listen(data).await;
        // A gateway listens once its Gateway object says where.
        let edge = match settings.mode {
            Mode::Sidecar => false,
            Mode::Gateway(_) => true,
        };
        status.listening.store(!edge, Relaxed);
        let checks =
            Checks::start(settings.workload.checks(), settings.workload.addresses.first().copied(), settings.mark);
        let leave = CancellationToken::new();
        let view = Arc::new(View {
            live,
            status,
            tls,
            workers,
            commands: threads.commands.clone(),
            workload: checks.health.clone(),
            control: Control { drainer, quit: CancellationToken::new() },
            settings,
        });
        if capture::expected(&view.settings) {
            tasks.spawn(capture.watch());
        }
        if edge {
            tasks.spawn(edge::follow(view.clone()));
        }
        // The control side: everything from here on may fail without stopping traffic.
        let agent = match &view.settings.source {
            Source::ControlPlane(join) => {
                let ports = addresses.of_agent();
                Some(start_control(&view, join, wanted, &checks, ports, &leave, &mut tasks))
            }
            Source::File { .. } => None,
        };
        tasks.spawn(serve(view.clone(), admin, Door::Admin));
        tasks.spawn(serve(view.clone(), metrics, Door::Metrics));
        tracing::debug!(settings = %view.settings.effective, "effective settings");
        tracing::info!(
            name = view.settings.name,
            namespace = view.settings.namespace,
            workers = view.settings.workers,
            ports = %addresses,
            "started"
        );
        Ok(Self { addresses, view, threads, log, tasks, file, agent, leave, _checks: checks })
    }

    /// The reasons why the proxy is not ready; empty when it is.
    pub fn not_ready(&self) -> Vec<&'static str> {
        self.view.not_ready()
    }

    /// The same, with the causes that are known.
    pub fn reasons(&self) -> Vec<String> {
        self.view.reasons()
    }

    /// The snapshot in force and the memory beside it.
    pub fn live(&self) -> &Arc<Live> {
        &self.view.live
    }

    /// The revision of the desired state that is wholly in force; 0 when it comes from a file.
    pub fn revision(&self) -> u64 {
        self.view.status.applied.borrow().revision
    }

    /// Reads the file again. An error is logged, and the current configuration stays.
    pub fn reload(&mut self, args: &SettingsArgs) {
        let Some(file) = &mut self.file else {
            return tracing::info!("nothing to reload: the configuration comes from the control plane");
        };
        match args.read() {
            Ok(new) => match new.source.clone() {
                Source::File { objects, .. } => file.reload(new, objects),
                Source::ControlPlane(_) => {
                    tracing::error!(
                        "new file rejected, keeping the current configuration: it names a control plane, which needs a restart"
                    );
                }
            },
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "new file rejected, keeping the current configuration");
            }
        }
    }

    /// Runs until SIGTERM, SIGINT or `POST /quit`, then drains; a second signal ends it at once. SIGHUP reads the file again.
    pub async fn run(mut self, args: &SettingsArgs, mut signals: Signals) {
        let quit = self.view.control.quit.clone();
        loop {
            tokio::select! {
                order = signals.next() => match order {
                    Order::Stop => break,
                    Order::Reload => self.reload(args),
                },
                () = quit.cancelled() => break,
                // None of them ends by itself: this is a bug, and traffic goes on without that part.
                Some(ended) = self.tasks.join_next() => {
                    tracing::error!(panicked = ended.is_err(), "a control task has ended; this is a bug, traffic continues");
                }
            }
        }
        tokio::select! {
            drained = Box::pin(self.shutdown()) => tracing::info!(drained, "stopped"),
            () = signals.stop() => tracing::warn!("stopped at once by a second signal"),
        }
    }

    /// Stops: not ready, the control plane told, no new connections from outside, then waits until those that are open have ended
    /// and the workload no longer calls. Returns whether that came in time.
    pub async fn shutdown(mut self) -> bool {
        let deadline = Instant::now() + self.view.settings.drain;
        self.view.drain().await;
        let drained = self.ended(deadline).await;
        if drained {
            self.view.workers.iter().for_each(|worker| worker.connections.end());
            self.closed(Instant::now() + CLOSE).await;
        } else {
            tracing::warn!(open = ?self.view.open(), "drain timeout; closing open connections");
        }
        self.view.workers.iter().for_each(|worker| worker.connections.stop());
        self.closed(Instant::now() + STOP).await;
        self.leave.cancel();
        if let Some(agent) = self.agent.take()
            && timeout(LEAVE, agent).await.is_err()
        {
            tracing::warn!("deregistration timed out; the control plane will notice by the missing heartbeat");
        }
        self.tasks.abort_all();
        self.threads.stop().await;
        if timeout(LOG, self.log.end()).await.is_err() {
            tracing::warn!("the end of the access log was not written: its reader is too slow");
        }
        drained
    }

    /// Waits until no connection is open.
    async fn closed(&self, deadline: Instant) {
        while self.view.open() != Open::default() && Instant::now() < deadline {
            sleep(COUNT).await;
        }
    }

    /// Waits until there is no connection to wait for, several times in a row: one that is just being accepted is in no table yet.
    async fn ended(&self, deadline: Instant) -> bool {
        let mut quiet = 0;
        loop {
            quiet = if self.view.open().waits_for() == 0 { quiet + 1 } else { 0 };
            if quiet > 2 {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            sleep(COUNT).await;
        }
    }
}

/// Starts the tasks that talk to the control plane.
fn start_control(
    view: &Arc<View>,
    join: &Join,
    wanted: mpsc::Receiver<SocketAddr>,
    checks: &Checks,
    ports: OwnPorts,
    leave: &CancellationToken,
    tasks: &mut JoinSet<()>,
) -> JoinHandle<()> {
    let settings = &view.settings;
    let plane = ControlPlane { address: join.address.clone(), mark: settings.mark };
    let account = settings.workload.service_account();
    let issuer =
        Issuer::new(join.clone(), settings.mark, settings.tls.records, view.tls.clone(), &settings.namespace, account);
    let status = view.status.clone();
    tasks.spawn(issuer.keep(move |outcome| match outcome {
        Ok(_) => {
            *status.certificate_fault.lock() = None;
            status.certificates.send_modify(|count| *count += 1);
        }
        Err(error) => {
            *status.certificate_fault.lock() = Some(error.chain());
            status.certificate_failures.fetch_add(1, Relaxed);
        }
    }));
    let looked_at = view.clone();
    let open = move || -> HashSet<SocketAddr> {
        looked_at.workers.iter().flat_map(|worker| worker.connections.destinations()).collect()
    };
    let (tls, live, status) = (view.tls.clone(), view.live.clone(), view.status.clone());
    let discovery = Discovery::new(settings, plane.clone(), tls, live, status, wanted, Box::new(open));
    tasks.spawn(discovery.run());
    let agent = Agent::new(settings, plane, view.tls.clone(), view.status.clone(), checks.health.clone(), ports);
    tokio::spawn(agent.run(leave.clone()))
}
