//! What fuzz targets call inside this crate (`fuzz/`, docs/adr/0024); no part of its interface.
//! Shape: thin functions over the code that reads what a peer sends, and nothing else.

use std::{io, net::Ipv4Addr, sync::Arc};

use bytes::Bytes;
use rustls::{
    ClientConfig, ServerConfig,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use weft_core::{api::proxy_config::TlsRecords, failure::Failure, identity::Identity, policy::Engine};

use crate::{
    live::authorize::{self, Operation},
    tls::{ALPN_TCP, MeshTls, Svid, SvidError, handshake},
};

pub use crate::tls::hello::{Hello, MAX_HELLO};

/// What the first bytes of TLS are.
pub fn hello(bytes: &[u8]) -> Hello {
    crate::tls::hello::sniff(bytes)
}

/// The protocol that the first bytes of a connection say, by its name; `None`: more are needed.
pub fn speaks(bytes: &[u8]) -> Option<String> {
    crate::listener::detect::sniff(bytes).map(|protocol| format!("{protocol:?}"))
}

/// Whether the rules of a port allow a GET by a caller without an identity.
/// Errors: as the request would be answered.
pub fn authorize(rules: &Engine, path: &str) -> Result<(), Failure> {
    let operation = Operation { method: "GET", path };
    authorize::by_rules(rules, 80, None, operation, crate::http::path::readings)
}

/// What else a path may mean.
/// Errors: why no rule on paths can judge it.
pub fn readings(path: &str) -> Result<Vec<String>, &'static str> {
    crate::http::path::readings(path)
}

/// The identity that a workload's certificate names; `None`: it cannot be used in the mesh.
pub fn leaf(der: &[u8]) -> Option<Identity> {
    crate::tls::svid::leaf(&CertificateDer::from(der)).ok().map(|leaf| leaf.identity)
}

/// Mesh TLS of one end, with a provider of cryptography of the target's own.
#[derive(Debug)]
pub struct Mesh(MeshTls);

impl Mesh {
    /// Errors: as for [`MeshTls::new`].
    pub fn new(svid: Svid, records: TlsRecords, provider: Arc<CryptoProvider>) -> Result<Self, SvidError> {
        MeshTls::with_provider(svid, records, provider).map(Self)
    }

    /// What rustls shakes hands with as the server.
    pub fn server(&self) -> Arc<ServerConfig> {
        self.0.server.clone()
    }

    /// What rustls shakes hands with as the client, for opaque bytes; nothing is resumed.
    pub fn client(&self) -> Arc<ClientConfig> {
        self.0.client(&[ALPN_TCP], (Ipv4Addr::LOCALHOST, 1).into(), &self.0.identity).0
    }

    /// Answers a handshake.
    /// Errors: IO, or the handshake's.
    pub async fn accept(&self, tcp: TcpStream) -> io::Result<impl AsyncRead + AsyncWrite + Unpin + use<>> {
        handshake::accept(self.0.records, self.server(), tcp, Bytes::new()).await.map(|established| established.session)
    }

    /// Begins a handshake.
    /// Errors: IO, or the handshake's.
    pub async fn connect(&self, tcp: TcpStream) -> io::Result<impl AsyncRead + AsyncWrite + Unpin + use<>> {
        let name = ServerName::IpAddress(Ipv4Addr::LOCALHOST.into());
        handshake::connect(self.0.records, self.client(), name, tcp).await.map(|established| established.session)
    }
}
