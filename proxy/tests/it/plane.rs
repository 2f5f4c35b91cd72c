//! A fake control plane: real TLS and gRPC on loopback; what it says on its discovery streams is said by the test.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::stream::BoxStream;
use parking_lot::Mutex;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::{RootCertStore, ServerConfig, pki_types::CertificateDer, server::WebPkiClientVerifier};
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, transport::server::Connected};
use weft_core::wire::{self, Encoded, ResourceType, Revision, render_revision};
use weft_proto::{
    envoy::service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
        aggregated_discovery_service_server::{AggregatedDiscoveryService, AggregatedDiscoveryServiceServer},
    },
    weft::v1::{
        AgentMessage, ControlMessage, IssueRequest, IssueResponse, Registered, agent_server, control_message,
        identity_server,
    },
};

/// Longest wait for anything in a test.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// A certificate authority of the mesh.
pub(crate) struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    /// The token, empty when there was none.
    pub(crate) token: String,
    /// Whether the connection had a certificate.
    pub(crate) by_certificate: bool,
    /// The public key, DER.
    pub(crate) key: Vec<u8>,
}

/// What the identity service does.
#[derive(Clone, Debug)]
pub(crate) struct Issuing {
    /// Who gets a certificate, as an account.
    pub(crate) account: String,
    /// For how long.
    pub(crate) ttl: Duration,
    /// Refuse everything with this.
    pub(crate) refuse: Option<String>,
}

/// A running control plane; it ends with this, and so do its connections.
pub(crate) struct Plane {
    pub(crate) address: SocketAddr,
    pub(crate) ca: Arc<Ca>,
    pub(crate) asked: Arc<Mutex<Vec<Asked>>>,
    pub(crate) issuing: Arc<Mutex<Issuing>>,
    pub(crate) streams: mpsc::Receiver<Discovery>,
    pub(crate) agents: mpsc::Receiver<mpsc::Receiver<AgentMessage>>,
    runtime: Option<tokio::runtime::Runtime>,
}

/// One discovery stream, from the server's side.
pub(crate) struct Discovery {
    requests: Streaming<DeltaDiscoveryRequest>,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    /// Every request so far.
    pub(crate) seen: Vec<DeltaDiscoveryRequest>,
    /// What the client holds, by what was sent.
    pub(crate) held: BTreeMap<(ResourceType, String), String>,
    nonce: u32,
}

impl Ca {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().expect("a key");
        Self { issuer: CertifiedIssuer::self_signed(params, key).expect("a root") }
    }

    pub(crate) fn root(&self) -> CertificateDer<'static> {
        self.issuer.der().clone()
    }

    /// A join token for an account; it pins this root.
    pub(crate) fn token(&self, account: &str) -> String {
        format!("weft1.{account}.secret.{}", data_encoding::HEXLOWER.encode(&Sha256::digest(self.root())))
    }

    /// The root in PEM.
    pub(crate) fn root_pem(&self) -> String {
        self.issuer.pem()
    }

    /// A certificate and its key in PEM.
    pub(crate) fn pem(&self, id: &str, ttl: Duration) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let base64 = data_encoding::BASE64.encode(&self.sign(&key, id, ttl));
        let lines: Vec<&str> =
            base64.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).expect("ASCII")).collect();
        let chain = format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"));
        (chain, key.serialize_pem())
    }

    fn sign(&self, key: &impl rcgen::PublicKeyData, id: &str, ttl: Duration) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(id.try_into().expect("an ID"))];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let now = std::time::SystemTime::now();
        params.not_before = (now - Duration::from_secs(60)).into();
        params.not_after = (now + ttl).into();
        params.signed_by(key, &self.issuer).expect("a certificate").der().clone()
    }

    fn server(&self, id: &str) -> Arc<ServerConfig> {
        let key = KeyPair::generate().expect("a key");
        let leaf = self.sign(&key, id, Duration::from_secs(3600));
        let mut roots = RootCertStore::empty();
        roots.add(self.root()).expect("a root");
        let provider = weft_proxy::tls::provider();
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_client_cert_verifier(clients.allow_unauthenticated().build().expect("a verifier"))
            .with_single_cert(
                vec![leaf, self.root()],
                rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            )
            .expect("a certificate");
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    }
}

/// The control plane's identity.
pub(crate) const PLANE: &str = "spiffe://weft.local/ns/weft-system/sa/control-plane";

impl Plane {
    /// Starts one on a free port.
    pub(crate) async fn start() -> Self {
        Self::start_as(Arc::new(Ca::new()), 0, PLANE).await
    }

    /// Starts one with this authority, port and identity.
    pub(crate) async fn start_as(ca: Arc<Ca>, port: u16, id: &str) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("threads");
        let (streams_in, streams) = mpsc::channel(16);
        let (agents_in, agents) = mpsc::channel(16);
        let issuing = Issuing { account: "client".into(), ttl: Duration::from_secs(3600), refuse: None };
        let (asked, issuing) = (Arc::<Mutex<Vec<Asked>>>::default(), Arc::new(Mutex::new(issuing)));
        let service = Service {
            ca: ca.clone(),
            asked: asked.clone(),
            issuing: issuing.clone(),
            streams: streams_in,
            agents: agents_in,
        };
        let tls = TlsAcceptor::from(ca.server(id));
        let (bound, port) = (tokio::sync::oneshot::channel(), port);
        runtime.spawn(async move {
            let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("a port");
            bound.0.send(listener.local_addr().expect("an address")).expect("the test waits");
            let (accepted, incoming) = mpsc::channel(16);
            tokio::spawn(async move {
                loop {
                    let Ok((stream, _)) = listener.accept().await else { return };
                    let (tls, accepted) = (tls.clone(), accepted.clone());
                    tokio::spawn(async move {
                        if let Ok(stream) = tls.accept(stream).await {
                            let _gone = accepted.send(Ok::<_, std::io::Error>(Io(stream))).await;
                        }
                    });
                }
            });
            tonic::transport::Server::builder()
                .add_service(AggregatedDiscoveryServiceServer::new(service.clone()))
                .add_service(identity_server::IdentityServer::new(service.clone()))
                .add_service(agent_server::AgentServer::new(service))
                .serve_with_incoming(ReceiverStream::new(incoming))
                .await
                .expect("serving");
        });
        let address = bound.1.await.expect("it listens");
        Self { address, ca, asked, issuing, streams, agents, runtime: Some(runtime) }
    }

    /// The next discovery stream.
    pub(crate) async fn stream(&mut self) -> Discovery {
        timeout(PATIENCE, self.streams.recv()).await.expect("a discovery stream in time").expect("a stream")
    }

    /// The next agent stream.
    pub(crate) async fn agent(&mut self) -> mpsc::Receiver<AgentMessage> {
        timeout(PATIENCE, self.agents.recv()).await.expect("an agent stream in time").expect("a stream")
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Discovery {
    /// The next request.
    pub(crate) async fn request(&mut self) -> DeltaDiscoveryRequest {
        let request = timeout(PATIENCE, self.requests.message()).await.expect("a request in time");
        let request = request.expect("a whole request").expect("the stream is open");
        self.seen.push(request.clone());
        for name in &request.resource_names_unsubscribe {
            let kind = ResourceType::from_type_url(&request.type_url).expect("a known type");
            self.held.remove(&(kind, name.clone()));
        }
        if let Some(kind) = ResourceType::from_type_url(&request.type_url) {
            for (name, version) in &request.initial_resource_versions {
                self.held.insert((kind, name.clone()), version.clone());
            }
        }
        request
    }

    /// Reads until a request asks for this name.
    pub(crate) async fn subscribed(&mut self, kind: ResourceType, name: &str) {
        let asks = |request: &DeltaDiscoveryRequest| {
            request.type_url == kind.type_url() && request.resource_names_subscribe.iter().any(|asked| asked == name)
        };
        while !self.seen.iter().any(asks) {
            self.request().await;
        }
    }

    /// Reads until this message is answered; the text of a NACK, or none.
    pub(crate) async fn answer(&mut self, nonce: &str) -> Option<String> {
        loop {
            if let Some(answer) = self.seen.iter().find(|request| request.response_nonce == nonce) {
                return answer.error_detail.as_ref().map(|error| error.message.clone());
            }
            self.request().await;
        }
    }

    /// Sends resources and removals of one type; the nonce.
    pub(crate) async fn send(&mut self, kind: ResourceType, resources: &[Encoded], removed: &[&str]) -> String {
        for resource in resources {
            self.held.insert((kind, resource.name.clone()), resource.version.clone());
        }
        for name in removed {
            self.held.remove(&(kind, (*name).to_owned()));
        }
        self.nonce += 1;
        let response = DeltaDiscoveryResponse {
            type_url: kind.type_url().to_owned(),
            resources: resources.iter().map(Encoded::to_resource).collect(),
            removed_resources: removed.iter().map(|name| (*name).to_owned()).collect(),
            nonce: self.nonce.to_string(),
            ..DeltaDiscoveryResponse::default()
        };
        self.responses.send(Ok(response)).await.expect("the stream is open");
        self.nonce.to_string()
    }

    /// Sends resources of any types in the right order.
    pub(crate) async fn send_all(&mut self, resources: &[Encoded]) -> Vec<String> {
        let mut nonces = Vec::new();
        for kind in ResourceType::ALL {
            let of: Vec<Encoded> =
                resources.iter().filter(|resource| resource.resource_type == kind).cloned().collect();
            if !of.is_empty() {
                nonces.push(self.send(kind, &of, &[]).await);
            }
        }
        nonces
    }

    /// Sends the barrier of what was sent so far.
    pub(crate) async fn barrier(&mut self, number: u64) -> String {
        let held = self.held.iter().map(|((kind, name), version)| (*kind, name.as_str(), version.as_str()));
        let hash = wire::revision_hash(held);
        self.barrier_with(number, hash).await
    }

    /// Sends a barrier with this hash.
    pub(crate) async fn barrier_with(&mut self, number: u64, hash: [u8; 32]) -> String {
        let barrier = render_revision(&Revision { number, hash });
        let held = self.held.clone();
        let nonce = self.send(ResourceType::Revision, &[barrier], &[]).await;
        self.held = held;
        nonce
    }
}

#[derive(Clone)]
struct Service {
    ca: Arc<Ca>,
    asked: Arc<Mutex<Vec<Asked>>>,
    issuing: Arc<Mutex<Issuing>>,
    streams: mpsc::Sender<Discovery>,
    agents: mpsc::Sender<mpsc::Receiver<AgentMessage>>,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Service {
    type StreamAggregatedResourcesStream = BoxStream<'static, Result<DiscoveryResponse, Status>>;
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("delta only"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        if !by_certificate(&request) {
            return Err(Status::unauthenticated("no certificate"));
        }
        let (responses, receiver) = mpsc::channel(64);
        let stream =
            Discovery { requests: request.into_inner(), responses, seen: Vec::new(), held: BTreeMap::new(), nonce: 0 };
        self.streams.send(stream).await.map_err(|_gone| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

#[tonic::async_trait]
impl identity_server::Identity for Service {
    async fn issue(&self, request: Request<IssueRequest>) -> Result<Response<IssueResponse>, Status> {
        let by_certificate = by_certificate(&request);
        let IssueRequest { csr, join_token, .. } = request.into_inner();
        let csr = CertificateSigningRequestParams::from_der(&csr.to_vec().into())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let key = rcgen::PublicKeyData::subject_public_key_info(&csr.public_key);
        self.asked.lock().push(Asked { token: join_token, by_certificate, key });
        let issuing = self.issuing.lock().clone();
        if let Some(reason) = issuing.refuse {
            return Err(Status::unauthenticated(reason));
        }
        let id = format!("spiffe://weft.local/ns/shop/sa/{}", issuing.account);
        let leaf = self.ca.sign(&csr.public_key, &id, issuing.ttl);
        Ok(Response::new(IssueResponse {
            certificate_chain: vec![leaf.to_vec().into()],
            trust_bundle: vec![self.ca.root().to_vec().into()],
        }))
    }
}

#[tonic::async_trait]
impl agent_server::Agent for Service {
    type SessionStream = BoxStream<'static, Result<ControlMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (heard, receiver) = mpsc::channel(256);
        self.agents.send(receiver).await.map_err(|_gone| Status::unavailable("the test is over"))?;
        let mut messages = request.into_inner();
        let (answers, answered) = mpsc::channel(8);
        tokio::spawn(async move {
            let registered = Registered { heartbeat_interval_ms: 100, ..Registered::default() };
            let registered = ControlMessage { message: Some(control_message::Message::Registered(registered)) };
            let _gone = answers.send(Ok(registered)).await;
            while let Ok(Some(message)) = messages.message().await {
                let _full = heard.send(message).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answered))))
    }
}

fn by_certificate<T>(request: &Request<T>) -> bool {
    request.extensions().get::<HasCertificate>().is_some_and(|has| has.0)
}

#[derive(Clone, Copy)]
struct HasCertificate(bool);

struct Io(TlsStream<TcpStream>);

impl Connected for Io {
    type ConnectInfo = HasCertificate;

    fn connect_info(&self) -> HasCertificate {
        HasCertificate(self.0.get_ref().1.peer_certificates().is_some())
    }
}

impl AsyncRead for Io {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
