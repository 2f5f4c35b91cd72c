//! A control plane of its own for each test, and clients for it.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, KeyPair};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint, Uri};
use weft_control_plane::{
    app::{self, Running},
    config::{Config, Flags},
};
use weft_proto::weft::v1::{IssueRequest, IssueResponse, identity_client::IdentityClient};

/// A control plane; dropped without [`Mesh::stop`] it just ends with the test's runtime.
pub(crate) struct Mesh {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) running: Option<Running>,
    /// Of the first start.
    pub(crate) admin: String,
}

/// A workload's key and certificate.
pub(crate) struct Svid {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: Vec<u8>,
}

pub(crate) fn config(dir: &std::path::Path, more: &[&str]) -> Config {
    let data = dir.join("data").display().to_string();
    let mut flags = vec!["weft-control-plane", "--data-dir", &data];
    for flag in ["--grpc", "--api", "--metrics"] {
        flags.extend([flag, "127.0.0.1:0"]);
    }
    flags.extend(more);
    <Flags as clap::Parser>::try_parse_from(flags).unwrap().check().unwrap()
}

impl Mesh {
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    pub(crate) async fn start_with(more: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let running = app::start(config(dir.path(), more)).await.unwrap();
        let admin = std::fs::read_to_string(running.admin_token().unwrap()).unwrap().trim().to_owned();
        Self { dir, running: Some(running), admin }
    }

    /// Stops it and starts it again on the same data.
    pub(crate) async fn restart(&mut self, more: &[&str]) {
        self.running.take().unwrap().stop().await;
        self.running = Some(app::start(config(self.dir.path(), more)).await.unwrap());
    }

    pub(crate) fn running(&self) -> &Running {
        self.running.as_ref().unwrap()
    }

    pub(crate) fn root(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.dir.path().join("data/root.pem")).unwrap()
    }

    /// A request over the Unix socket: status and JSON.
    pub(crate) async fn local(&self, method: Method, path: &str, body: impl Into<Bytes>) -> (StatusCode, Value) {
        let stream = UnixStream::connect(&self.running().addresses().api_socket).await.unwrap();
        exchange(stream, request(method, path, None, body)).await
    }

    /// A request over TLS with this text after `Authorization: `.
    pub(crate) async fn remote(
        &self,
        method: Method,
        path: &str,
        credential: Option<&str>,
        body: impl Into<Bytes>,
    ) -> (StatusCode, Value) {
        let stream = self.tls(self.running().addresses().api, None, b"http/1.1").await.unwrap();
        exchange(stream, request(method, path, credential, body)).await
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let (status, value) = self.local(Method::GET, path, "").await;
        assert_eq!(status, 200, "{path}: {value}");
        value
    }

    pub(crate) async fn apply(&self, text: &str) -> Value {
        let (status, value) = self.local(Method::POST, "/api/v1/apply", text.to_owned()).await;
        assert_eq!(status, 200, "{value}");
        value
    }

    /// A TLS connection that trusts this mesh's root and shows a certificate if there is one.
    pub(crate) async fn tls(
        &self,
        address: std::net::SocketAddr,
        svid: Option<&Svid>,
        alpn: &[u8],
    ) -> std::io::Result<TlsStream<TcpStream>> {
        self.tls_from("127.0.0.1", address, svid, alpn).await
    }

    /// The same from an address of loopback.
    async fn tls_from(
        &self,
        source: &str,
        address: std::net::SocketAddr,
        svid: Option<&Svid>,
        alpn: &[u8],
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let builder = builder.with_root_certificates(roots);
        let mut config = match svid {
            None => builder.with_no_client_auth(),
            Some(svid) => builder
                .with_client_auth_cert(svid.chain.clone(), PrivateKeyDer::Pkcs8(svid.key.clone().into()))
                .unwrap(),
        };
        config.alpn_protocols = vec![alpn.to_vec()];
        let socket = TcpSocket::new_v4()?;
        socket.bind(std::net::SocketAddr::new(source.parse().unwrap(), 0))?;
        let stream = socket.connect(address).await?;
        let name = ServerName::try_from(address.ip().to_string()).unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    /// A gRPC channel on one connection.
    pub(crate) async fn grpc(&self, svid: Option<&Svid>) -> Result<Channel, tonic::transport::Error> {
        self.grpc_from("127.0.0.1", svid).await
    }

    /// The same from an address of loopback.
    pub(crate) async fn grpc_from(
        &self,
        source: &str,
        svid: Option<&Svid>,
    ) -> Result<Channel, tonic::transport::Error> {
        let stream = self.tls_from(source, self.running().addresses().grpc, svid, b"h2").await.unwrap();
        let mut stream = Some(stream);
        let connector = tower::service_fn(move |_: Uri| {
            let stream = stream.take();
            async move { stream.map(TokioIo::new).ok_or_else(|| std::io::Error::other("one connection only")) }
        });
        Endpoint::from_static("http://control-plane").connect_with_connector(connector).await
    }

    /// A join token for `shop/<account>`.
    pub(crate) async fn join_token(&self, account: &str, more: Value) -> String {
        let mut wish = json!({"namespace": "shop", "serviceAccount": account});
        wish.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let (status, answer) = self.local(Method::POST, "/api/v1/tokens", wish.to_string()).await;
        assert_eq!(status, 201, "{answer}");
        answer["token"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn issue(
        &self,
        svid: Option<&Svid>,
        csr: Vec<u8>,
        join_token: &str,
    ) -> Result<IssueResponse, tonic::Status> {
        let channel = self.grpc(svid).await.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
        let request = IssueRequest { csr: csr.into(), join_token: join_token.to_owned(), ..Default::default() };
        IdentityClient::new(channel).issue(request).await.map(tonic::Response::into_inner)
    }

    /// TLS of a proxy with this certificate.
    pub(crate) fn server(&self, svid: &Svid) -> Arc<rustls::ServerConfig> {
        let key = PrivateKeyDer::try_from(svid.key.clone()).unwrap();
        let mut config =
            rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(svid.chain.clone(), key)
                .unwrap();
        config.alpn_protocols = vec![b"weft-h2".to_vec()];
        Arc::new(config)
    }

    /// A certificate for `shop/<account>`, by a fresh join token.
    pub(crate) async fn svid(&self, account: &str) -> Svid {
        let token = self.join_token(account, json!({})).await;
        let (key, csr) = key_and_csr();
        let issued = self.issue(None, csr, &token).await.unwrap();
        Svid { chain: vec![CertificateDer::from(issued.certificate_chain[0].to_vec())], key }
    }
}

/// A key in PKCS#8 and a request for it.
pub(crate) fn key_and_csr() -> (Vec<u8>, Vec<u8>) {
    let key = KeyPair::generate().unwrap();
    let csr = CertificateParams::default().serialize_request(&key).unwrap().der().to_vec();
    (key.serialize_der(), csr)
}

pub(crate) fn request(
    method: Method,
    path: &str,
    credential: Option<&str>,
    body: impl Into<Bytes>,
) -> Request<Full<Bytes>> {
    let mut request = Request::builder().method(method).uri(path).header("host", "control-plane");
    if let Some(credential) = credential {
        request = request.header("authorization", credential);
    }
    request.body(Full::new(body.into())).unwrap()
}

/// One request over HTTP/1.1 on a fresh stream.
pub(crate) async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> (StatusCode, Value)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let response = sender.send_request(request).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    connection.abort();
    let text = String::from_utf8_lossy(&body).into_owned();
    (status, serde_json::from_slice(&body).unwrap_or(Value::String(text)))
}

/// Waits for something that happens soon.
pub(crate) async fn soon<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..500 {
        if let Some(value) = look().await {
            return value;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{what}: not within 10 s");
}
