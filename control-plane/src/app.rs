//! Assembles the rooms: the order of start and stop, the listeners, the long loops.
//! Start: lock the data directory, load the root, desired state and the registry, compile the first world, open the
//! listeners, and only then be ready. Stop: not ready, no new connections, 5 s for requests in flight, write the registry.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use anyhow::Context;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::{sync::Semaphore, task::JoinSet};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::service::Routes;
use weft_core::identity::Identity;
use weft_proto::weft::v1::{agent_server::AgentServer, identity_server::IdentityServer};

use crate::{
    agent,
    api::{self, Api},
    ca::{Authority, OWN_NAMESPACE, OWN_SERVICE_ACCOUNT},
    config::Config,
    data_dir,
    desired::DesiredState,
    files::{self, DataDirLock},
    identity,
    metrics::{self, Gauges, Metrics, Readings},
    registry::{Registry, RegistryFile, TcpProbe},
    serve::{self, Settings},
    state::{Mesh, ProxyTable},
    status::StatusBook,
    store::{Embedded, Older, Store},
    tls::{self, Certificates, TlsProver},
    tokens::Tokens,
    xds::{Feed, Limits},
};

/// Time for requests in flight when the program stops.
const DRAIN: Duration = Duration::from_secs(5);
/// Maximum size of a message of the identity and agent services, in bytes.
const MAX_MESSAGE: usize = 256 * 1024;

/// The addresses that the program listens on; also in `<data-dir>/addresses.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Addresses {
    /// gRPC on TLS.
    pub grpc: SocketAddr,
    /// REST on TLS.
    pub api: SocketAddr,
    /// REST on the Unix socket.
    pub api_socket: PathBuf,
    /// Metrics and health.
    pub metrics: SocketAddr,
}

/// A running control plane.
pub struct Running {
    addresses: Addresses,
    admin_token: Option<PathBuf>,
    mesh: Mesh,
    metrics: Arc<Metrics>,
    registry: Arc<Registry>,
    file: Arc<RegistryFile>,
    stop: CancellationToken,
    connections: TaskTracker,
    loops: JoinSet<()>,
    _lock: DataDirLock,
}

/// Files that connections never take: the store, the registry, listeners, probes, 16 connections of loopback per TCP port.
const OTHER_FILES: usize = 192;

/// The number of connections of each listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Places {
    grpc: usize,
    api: usize,
    socket: usize,
    metrics: usize,
}

impl Places {
    /// The places of a process that may open this many files. Each port has files of its own: however many proxies connect, the
    /// API, health and metrics answer, and the store is written.
    fn of(files: usize) -> Self {
        let free = files.saturating_sub(OTHER_FILES).max(32);
        Self {
            grpc: (free / 4 * 3).min(20_000),
            api: (free / 8).min(1_024),
            socket: (free / 16).min(1_024),
            metrics: (free / 16).min(128),
        }
    }
}

/// Starts everything. Returns once the listeners are open.
pub async fn start(config: Config) -> anyhow::Result<Running> {
    // Before anything else, so that a second process never opens the files of a running one.
    let now = SystemTime::now();
    let files = files::raise_file_limit().context("raising the limit of open files failed")?;
    let places = Places::of(files);
    tracing::info!(
        files,
        grpc = places.grpc,
        api = places.api,
        metrics = places.metrics,
        "limit of open files, and of connections"
    );
    let lock = files::lock_data_dir(&config.data_dir)?;
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    if config.new_mesh
        && let Some(aside) = data_dir::move_aside(&config.data_dir, seconds)?
    {
        tracing::warn!(old = %aside.display(), "a new mesh begins; the files of the former one were moved, none was deleted");
    }
    let found = data_dir::inspect(&config.data_dir)?;
    let authority = Arc::new(Authority::open(&config.data_dir, &config.trust_domain, now)?);
    for name in ["store.redb", "registry.redb"] {
        files::touch_private(&config.data_dir.join(name)).with_context(|| format!("creating {name} failed"))?;
    }
    let older = if config.accept_older_store { Older::Accept } else { Older::Refuse };
    let store = Embedded::open(&config.data_dir.join("store.redb"), older)?;
    let root = data_encoding::HEXLOWER.encode(authority.root_hash());
    let origin = data_dir::bind(&config.data_dir, found, &store, &root, older, seconds)?;
    let store: Arc<dyn Store> = Arc::new(store);
    let desired = DesiredState::open(Arc::clone(&store)).await?;
    let admin_file = config.data_dir.join("admin-token");
    let tokens = Tokens::new(store, *authority.root_hash(), admin_file.clone());
    tokens.read_accounts().await?;
    let admin_token = tokens.first_admin(Timestamp::now()).await?.map(|_in_the_file| admin_file);
    let (file, loaded) = RegistryFile::open(&config.data_dir.join("registry.redb"))?;
    let file = Arc::new(file);
    let metrics = Arc::new(Metrics::default());
    let registry = Registry::new(loaded, config.heartbeat_interval, desired.watch(), Arc::clone(&metrics));
    let proxies = Arc::new(ProxyTable::default());
    let mesh = Mesh::new(&desired, &*registry, Arc::clone(&proxies));

    // TLS before the listeners: a listener never accepts a connection that it cannot serve.
    let own = Identity::new(&config.trust_domain, OWN_NAMESPACE, OWN_SERVICE_ACCOUNT)?;
    let certificates = Certificates::new(Arc::clone(&authority), own, config.advertise.clone(), now)?;
    let (grpc_tls, api_tls) = (tls::grpc(&certificates)?, tls::api(&certificates)?);
    let probe = TcpProbe { mark: config.probe_mark };
    let prover = TlsProver::new(&certificates, probe)?;

    let stop = CancellationToken::new();
    let connections = TaskTracker::new();
    let mut loops = JoinSet::new();
    let feed = Feed::new(mesh.clone(), config.trust_domain.clone());
    let ads = feed.server(Limits::default(), Some(origin));
    let issue = identity::Service::new(Arc::clone(&authority), tokens.clone(), config.svid_ttl, Arc::clone(&metrics));
    let bind = async |flag: &str, address| {
        serve::bind(address).await.with_context(|| format!("{flag} {address}: cannot listen"))
    };
    let (grpc_listener, grpc_address) = bind("--grpc", config.grpc).await?;
    let (api_listener, api_address) = bind("--api", config.api).await?;
    let (metrics_listener, metrics_address) = bind("--metrics", config.metrics).await?;
    let socket = serve::bind_unix(&config.api_socket)
        .with_context(|| format!("--api-socket {}: cannot listen", config.api_socket.display()))?;
    // The ports are known only now, as a flag may ask for port 0.
    let own = agent::OwnEndpoints {
        addresses: config.advertise.iter().filter_map(|name| name.parse().ok()).collect(),
        ports: [grpc_address, api_address, metrics_address].iter().map(SocketAddr::port).collect(),
    };
    let agent = agent::Service::new(Arc::clone(&registry), Arc::clone(&proxies), own, stop.clone());
    let grpc = Routes::new(IdentityServer::new(issue).max_decoding_message_size(MAX_MESSAGE))
        .add_service(AgentServer::new(agent).max_decoding_message_size(MAX_MESSAGE))
        .add_service(ads.service())
        .prepare()
        .into_axum_router();
    let status = Arc::new(StatusBook::new(config.trust_domain.clone(), &mesh, Arc::clone(tokens.accounts())));
    let rest = api::router(Arc::new(Api {
        desired: desired.clone(),
        mesh: mesh.clone(),
        status: Arc::clone(&status),
        tokens,
        authority: Arc::clone(&authority),
        metrics: Arc::clone(&metrics),
        parsing: Arc::new(Semaphore::new(api::PARSED_AT_ONCE)),
    }));
    let gauges = Arc::new(Figures { mesh: mesh.clone(), authority, certificates: Arc::clone(&certificates) });
    let figures = metrics::router(Arc::clone(&metrics), gauges);

    let addresses = Addresses {
        grpc: grpc_address,
        api: api_address,
        api_socket: config.api_socket.clone(),
        metrics: metrics_address,
    };
    let text = serde_json::to_vec(&addresses)?;
    files::write_public(&config.data_dir.join("addresses.json"), &text).context("writing addresses.json failed")?;

    // Callers of gRPC get a certificate first and come back with it; the other ports have long-lived anonymous callers.
    let settings = |name, tls, connections, anonymous| Settings { name, tls, connections, anonymous };
    let (short, long) = (Duration::from_secs(30), Duration::from_secs(600));
    loops.spawn(serve::tcp(
        grpc_listener,
        settings("grpc", Some(grpc_tls), places.grpc, short),
        grpc,
        stop.clone(),
        connections.clone(),
    ));
    loops.spawn(serve::tcp(
        api_listener,
        settings("api", Some(api_tls), places.api, long),
        rest.clone(),
        stop.clone(),
        connections.clone(),
    ));
    loops.spawn(serve::unix(
        socket,
        settings("api-socket", None, places.socket, long),
        rest,
        stop.clone(),
        connections.clone(),
    ));
    loops.spawn(serve::tcp(
        metrics_listener,
        settings("metrics", None, places.metrics, long),
        figures,
        stop.clone(),
        connections.clone(),
    ));
    loops.spawn(feed.run(ads, config.publish_interval, stop.clone()));
    let (replicas, ended) = (desired.clone(), stop.clone());
    loops.spawn(async move { replicas.follow(ended).await });
    let (stated, ended) = (mesh.desired.clone(), stop.clone());
    loops.spawn(async move { status.follow(stated, ended).await });
    loops.spawn(certificates.keep_fresh(stop.clone()));
    let (one, two, three) = (Arc::clone(&registry), Arc::clone(&registry), Arc::clone(&registry));
    loops.spawn(async move { one.publish().await });
    loops.spawn(async move { two.maintain(&probe).await });
    let four = Arc::clone(&registry);
    loops.spawn(async move { four.prove(&prover).await });
    let target = Arc::clone(&file);
    loops.spawn(async move { three.persist(target).await });
    // Expiry waits for this: a restart must not expire workloads whose proxies could not connect.
    registry.opened();
    metrics.ready.store(true, Ordering::Release);
    Ok(Running { addresses, admin_token, mesh, metrics, registry, file, stop, connections, loops, _lock: lock })
}

impl Running {
    /// The addresses that it listens on.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// The file with the admin token, if this was the first start.
    pub fn admin_token(&self) -> Option<&Path> {
        self.admin_token.as_deref()
    }

    /// The state of the mesh.
    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// Waits until one of the long loops ends, which is a fault.
    pub async fn failed(&mut self) {
        if let Some(Err(error)) = self.loops.join_next().await {
            tracing::error!(error = &error as &dyn std::error::Error, "a part of the control plane failed");
        }
    }

    /// Stops: no new connections, requests in flight may complete, the registry is written.
    pub async fn stop(mut self) {
        self.metrics.ready.store(false, Ordering::Release);
        self.stop.cancel();
        self.connections.close();
        if tokio::time::timeout(DRAIN, self.connections.wait()).await.is_err() {
            tracing::warn!(open = self.connections.len(), "requests were still in flight; closing their connections");
        }
        self.loops.shutdown().await;
        if let Err(error) = self.registry.flush(&self.file).await {
            tracing::error!(error = &error as &dyn std::error::Error, "writing the registry failed");
        }
        if let Err(error) = std::fs::remove_file(&self.addresses.api_socket) {
            tracing::debug!(error = &error as &dyn std::error::Error, "the Unix socket was removed already");
        }
    }
}

/// The figures that the metrics port reads on a scrape.
struct Figures {
    mesh: Mesh,
    authority: Arc<Authority>,
    certificates: Arc<Certificates>,
}

impl Gauges for Figures {
    fn read(&self) -> Readings {
        let (revision, objects) = {
            let desired = self.mesh.desired.borrow();
            (desired.revision, desired.objects.len())
        };
        Readings {
            revision,
            objects,
            workloads: self.mesh.registered.borrow().workloads.size(),
            proxies: self.mesh.proxies.connected(),
            nacks: self.mesh.proxies.nack_count(),
            standing_nacks: self.mesh.proxies.standing_nacks().len(),
            root_expires: Some(self.authority.expires()),
            serving_expires: Some(self.certificates.expires()),
        }
    }
}
