//! The probe of a claimed address: a mesh TLS handshake as proxies do it, in which the workload's own identity must answer. The
//! server proves that it has the key of its certificate (RFC 8446 §4.4.3), so nobody but the workload's proxy passes. No byte
//! follows the handshake.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    sync::Arc,
    time::Duration,
};

use futures_util::future::BoxFuture;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        ResolvesClientCert,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature},
    server::ParsedCertificate,
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

use super::{Certificates, TlsError, peer_of};
use crate::registry::{Finding, Prover, RegisteredWorkload, TcpProbe};

/// Longest wait for a connection, and for the handshake on it.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Ports that are tried at an address, as one answer proves it.
const PORTS: usize = 3;
/// Where a workload is probed that declares no port, or only ports that its redirection leaves out. The redirection of its host hands every port to the proxy.
const ANY_PORT: NonZeroU16 = NonZeroU16::new(15012).unwrap();

/// Proves addresses by mesh TLS, as the control plane's own identity.
pub struct TlsProver {
    tcp: TcpProbe,
    connector: TlsConnector,
}

impl TlsProver {
    /// `tcp`: how connections are made.
    /// Errors: rustls rejects the settings.
    pub fn new(certificates: &Arc<Certificates>, tcp: TcpProbe) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        roots.add(certificates.authority.root().clone())?;
        let algorithms = certificates.provider.signature_verification_algorithms;
        let mut config = ClientConfig::builder_with_provider(certificates.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnySvid { roots, algorithms }))
            .with_client_cert_resolver(certificates.clone());
        config.alpn_protocols = vec![b"weft-h2".to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Self { tcp, connector: TlsConnector::from(Arc::new(config)) })
    }

    async fn handshake(&self, stream: TcpStream, target: SocketAddr, workload: &RegisteredWorkload) -> Finding {
        let handshake = self.connector.connect(ServerName::from(target.ip()), stream);
        match timeout(TIMEOUT, handshake).await {
            Ok(Ok(stream)) => {
                let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
                match certificate.and_then(peer_of) {
                    Some((identity, _)) if identity == workload.identity => Finding::Proven,
                    _ => Finding::Contradicted("another identity answers there"),
                }
            }
            Ok(Err(_)) => Finding::Contradicted("no proxy of this mesh answers there"),
            Err(_) => Finding::Unknown("nothing answers there"),
        }
    }
}

impl Prover for TlsProver {
    fn probe<'a>(&'a self, workload: &'a RegisteredWorkload, address: IpAddr) -> BoxFuture<'a, Finding> {
        Box::pin(async move {
            let mut finding = Finding::Unknown("nothing answers there");
            for port in probed(workload) {
                let target = SocketAddr::new(address, port.get());
                finding = match timeout(TIMEOUT, self.tcp.connect(target)).await {
                    Ok(Ok(stream)) => self.handshake(stream, target, workload).await,
                    Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => {
                        Finding::Contradicted("connections to its ports are refused there")
                    }
                    Ok(Err(_)) => Finding::Unknown("the control plane has no route there"),
                    Err(_) => Finding::Unknown("nothing answers there"),
                };
                if finding == Finding::Proven {
                    break;
                }
            }
            finding
        })
    }
}

/// The ports to probe.
fn probed(workload: &RegisteredWorkload) -> Vec<NonZeroU16> {
    let captured = workload.ports.iter().filter(|port| !workload.skipped_ports.contains(&port.port));
    let mut ports: Vec<_> = captured.map(|port| port.proxy_port.unwrap_or(port.port)).take(PORTS).collect();
    if ports.is_empty() {
        ports.push(ANY_PORT);
    }
    ports
}

impl ResolvesClientCert for Certificates {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load().key.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Requires a chain to the mesh's root; the identity is compared afterwards.
#[derive(Debug)]
struct AnySvid {
    roots: RootCertStore,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for AnySvid {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::InvalidCertificate(CertificateError::BadSignature))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
