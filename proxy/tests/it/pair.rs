//! Two proxies in one process: requests enter the outbound one as if captured on their way to a service, cross the hop with
//! mesh TLS, and reach applications through inbound ones.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::{NonZeroU16, NonZeroU32},
    sync::Arc,
    time::Duration,
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::{
    DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime},
};
use weft_core::{
    cluster::Cluster,
    endpoint::{Endpoint, EndpointSet, Health},
    identity::Identity,
    listener::{AccessLog as LogPolicy, Inbound, InboundMode, InboundPort, Listener, Outbound, Protocol},
    names::{ClusterName, ListenerName, RouteName, ServicePort},
    policy::Authorization,
    route::{Action, Forward, RouteTable, Rule, VirtualHost, WeightedCluster},
    snapshot::Resources,
};
use weft_proxy::{
    drain::Drainer,
    listener::{
        socket::{Role, bind},
        spread::Spread,
    },
    live::Live,
    serve::serve,
    telemetry::{AccessLog, exposition},
    tls::{CurrentTls, MeshTls, Svid},
    worker::{Shared, Worker},
};

/// A certificate authority.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// A certificate for an account, good or expired.
    pub(crate) fn svid(&self, account: &str, good: bool) -> MeshTls {
        self.mesh_tls(self.leaf(account, good))
    }

    /// A certificate for an account that ends after a time.
    pub(crate) fn svid_for(&self, account: &str, time: Duration) -> MeshTls {
        let end = UnixTime::now().as_secs() + time.as_secs();
        self.mesh_tls(self.leaf_with(account, |params| {
            params.not_after = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(end);
        }))
    }

    fn mesh_tls(&self, (leaf, key): (CertificateDer<'static>, PrivateKeyDer<'static>)) -> MeshTls {
        MeshTls::new(Svid::new(vec![leaf], key, vec![self.0.der().clone()]).unwrap(), crate::records::used()).unwrap()
    }

    /// The client's side of mesh TLS without a proxy around it, for an account or a whole SPIFFE ID. It does not look at who
    /// answers.
    pub(crate) fn client(&self, account: &str, alpn: &[u8]) -> Arc<rustls::ClientConfig> {
        let (leaf, key) = self.leaf(account, true);
        let mut config = rustls::ClientConfig::builder_with_provider(weft_proxy::tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anyone))
            .with_client_auth_cert(vec![leaf], key)
            .unwrap();
        config.alpn_protocols = vec![alpn.to_vec()];
        Arc::new(config)
    }

    fn leaf(&self, account: &str, good: bool) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        self.leaf_with(account, |params| params.not_after = rcgen::date_time_ymd(if good { 4000 } else { 2020 }, 1, 1))
    }

    fn leaf_with(
        &self,
        account: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        let name = if account.contains("://") { Identity::parse(account).unwrap() } else { identity(account) };
        params.subject_alt_names = vec![SanType::URI(name.as_str().try_into().unwrap())];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let leaf = params.signed_by(&key, &self.0).unwrap();
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        (leaf.der().clone(), key)
    }
}

/// A connection with mesh TLS, made by a test itself.
pub(crate) type MeshClient = tokio_rustls::client::TlsStream<tokio::net::TcpStream>;

/// Takes every server for the right one.
#[derive(Debug)]
pub(crate) struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        weft_proxy::tls::provider().signature_verification_algorithms.supported_schemes()
    }
}

pub(crate) fn identity(account: &str) -> Identity {
    Identity::parse(&format!("spiffe://weft.local/ns/shop/sa/{account}")).unwrap()
}

/// A running proxy; everything ends with it.
pub(crate) struct Proxy {
    pub(crate) shared: Arc<Shared>,
    pub(crate) worker: Arc<Worker>,
    pub(crate) drainer: Drainer,
    log: Arc<parking_lot::Mutex<Vec<u8>>>,
}

impl Proxy {
    pub(crate) fn start(tls: Option<MeshTls>) -> Self {
        Self::start_with(tls, |_| {})
    }

    /// The same with changes to what its workers share.
    pub(crate) fn start_with(tls: Option<MeshTls>, change: impl FnOnce(&mut Shared)) -> Self {
        let current = Arc::new(CurrentTls::empty());
        current.store(tls.map(Arc::new));
        let mut shared = Shared {
            live: Arc::new(Live::new(1)),
            tls: current,
            interest: None,
            mark: None,
            own_addresses: Vec::new(),
            own_ports: Vec::new(),
            declared: Vec::new(),
            mesh_ranges: vec!["240.0.0.0/4".parse().unwrap()],
            access_log: Some(LogPolicy::Off),
            spread: Spread::new(1, 1000, 1000).0,
            max_streams: None,
            heads: Arc::default(),
            stalled: Duration::from_secs(60),
            paused: Duration::ZERO,
            half_closed: Duration::from_secs(30),
            discovery_wait: Duration::from_secs(3),
            self_probe: Arc::default(),
        };
        change(&mut shared);
        let shared = Arc::new(shared);
        let (drainer, drain) = Drainer::new();
        let (output, mut input) = tokio::io::duplex(64 * 1024);
        let log = Arc::new(parking_lot::Mutex::new(Vec::new()));
        let written = log.clone();
        tokio::spawn(async move {
            let mut part = Vec::new();
            while tokio::io::AsyncReadExt::read_buf(&mut input, &mut part).await.unwrap_or(0) > 0 {
                written.lock().append(&mut part);
            }
        });
        let worker = Worker::new(0, shared.clone(), AccessLog::to(output), drain);
        worker.start();
        Self { shared, worker, drainer, log }
    }

    /// Listens on a free port of loopback.
    pub(crate) fn listen(&self, role: Role) -> SocketAddr {
        let listener = bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(self.worker.clone(), listener, role));
        address
    }

    pub(crate) fn metrics(&self) -> String {
        exposition::render(std::slice::from_ref(&self.worker.metrics), &[])
    }

    /// The value of a metric whose line starts with `name` and holds every one of `labels`.
    pub(crate) fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        self.metrics()
            .lines()
            .filter(|line| line.starts_with(name) && labels.iter().all(|label| line.contains(label)))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// What was written to the access log so far.
    pub(crate) fn log(&self) -> String {
        String::from_utf8(self.log.lock().clone()).unwrap()
    }
}

/// An inbound proxy before one application.
pub(crate) fn inbound(
    tls: MeshTls,
    application: SocketAddr,
    mode: InboundMode,
    authorization: Authorization,
) -> (Proxy, SocketAddr) {
    let proxy = Proxy::start(Some(tls));
    proxy.shared.live.replace(inbound_model(mode, authorization)).unwrap();
    let address = proxy.listen(Role::Inbound(Some(application)));
    (proxy, address)
}

/// The configuration of an inbound proxy with one policy for all.
pub(crate) fn inbound_model(mode: InboundMode, authorization: Authorization) -> Resources {
    let name = RouteName::Inbound(None);
    let listener = Inbound {
        ports: BTreeMap::new(),
        default: InboundPort {
            mode,
            protocol: Protocol::Detect,
            routes: name.clone(),
            authorization: authorization.clone(),
        },
        access_log: LogPolicy::Off,
    };
    let rule = Rule::all("inbound", Action::Deliver);
    let host = VirtualHost { name: "*".into(), domains: vec!["*".into()], rules: vec![rule] };
    let table = RouteTable { name: name.clone(), hosts: vec![host], authorization };
    Resources {
        listeners: [(ListenerName::Inbound, Listener::Inbound(listener))].into(),
        routes: [(name, table)].into(),
        ..Resources::default()
    }
}

/// A proxy beside `application`, which calls the service whose only endpoint it is itself. The service's identity is `product`.
pub(crate) fn both(tls: MeshTls, application: SocketAddr, authorization: Authorization) -> (Proxy, SocketAddr) {
    let proxy = Proxy::start_with(Some(tls), |shared| shared.own_addresses = vec![application.ip()]);
    let mut resources = inbound_model(InboundMode::Strict, authorization);
    let outbound = outbound_model(|_, _| {});
    resources.listeners.extend(outbound.listeners);
    resources.routes.extend(outbound.routes);
    resources.clusters.extend(outbound.clusters);
    proxy.shared.live.replace(resources).unwrap();
    proxy.shared.live.set_endpoints(&endpoint_set(&[(application, Some(identity("product")))]));
    let address = proxy.listen(Role::Outbound(Some(service())));
    (proxy, address)
}

/// The service's address as the application sees it.
pub(crate) fn service() -> SocketAddr {
    (IpAddr::from([240, 0, 0, 1]), 80).into()
}

pub(crate) fn cluster_name() -> ClusterName {
    let port = NonZeroU16::new(80).unwrap();
    ClusterName::Service(ServicePort { namespace: "shop".into(), name: "product".into(), port })
}

/// An outbound proxy with one service behind which are `endpoints`.
pub(crate) fn outbound(
    tls: Option<MeshTls>,
    endpoints: &[(SocketAddr, Option<Identity>)],
    change: impl FnOnce(&mut Cluster, &mut Forward),
) -> (Proxy, SocketAddr) {
    let proxy = Proxy::start(tls);
    proxy.shared.live.replace(outbound_model(change)).unwrap();
    proxy.shared.live.set_endpoints(&endpoint_set(endpoints));
    let address = proxy.listen(Role::Outbound(Some(service())));
    (proxy, address)
}

/// The configuration of an outbound proxy with one service.
pub(crate) fn outbound_model(change: impl FnOnce(&mut Cluster, &mut Forward)) -> Resources {
    let name = cluster_name();
    let ClusterName::Service(port) = name.clone() else { unreachable!() };
    let route = RouteName::Service(port);
    let (mut cluster, mut forward) = (Cluster::new(name.clone()), Forward::to(name.clone()));
    change(&mut cluster, &mut forward);
    let rule = Rule::all("shop/product#0", Action::Forward(forward));
    let host = VirtualHost { name: "*".into(), domains: vec!["*".into()], rules: vec![rule] };
    let table = RouteTable { name: route.clone(), hosts: vec![host], authorization: Authorization::default() };
    let listener = Outbound {
        address: service(),
        protocol: Protocol::Detect,
        http: Some(route.clone()),
        tcp: vec![WeightedCluster { cluster: name.clone(), weight: 1 }],
    };
    Resources {
        listeners: [(ListenerName::Outbound(service()), Listener::Outbound(listener))].into(),
        routes: [(route, table)].into(),
        clusters: [(name.clone(), cluster)].into(),
        ..Resources::default()
    }
}

pub(crate) fn endpoint_set(endpoints: &[(SocketAddr, Option<Identity>)]) -> EndpointSet {
    let endpoints = endpoints
        .iter()
        .map(|(address, identity)| Endpoint {
            address: *address,
            workload: "shop/product".into(),
            identity: identity.clone(),
            weight: NonZeroU32::MIN,
            zone: String::new(),
            health: Health::Healthy,
        })
        .collect();
    EndpointSet { cluster: cluster_name(), endpoints }
}
