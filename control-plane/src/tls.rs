//! TLS of the listeners: the control plane's own certificate, renewed without a restart, and those of callers.
//! Shape: [`Certificates`] holds the current certificate; [`grpc`] and [`api`] make rustls configurations from it.
//! TLS 1.3 only, without resumption, so that every connection's certificate is verified.
//! Invariant: a caller's certificate is either verified (chain, time, purpose, exactly one SPIFFE ID of this trust
//! domain) or its handshake fails; no certificate means no identity.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{CryptoProvider, aws_lc_rs},
    server::{
        ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio_util::sync::CancellationToken;
use weft_core::identity::{Identity, TrustDomain};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::ca::{self, Authority, CaError};

mod prove;

pub use prove::TlsProver;

/// Lifetime of the control plane's own certificate.
pub const SERVING_TTL: Duration = Duration::from_secs(24 * 3600);

/// Why there is no TLS configuration.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The certificate authority failed.
    #[error("no certificate for the control plane")]
    Ca(#[from] CaError),
    /// rustls rejects the certificate or settings.
    #[error("no TLS configuration")]
    Rustls(#[from] Error),
    /// The root cannot verify others.
    #[error("the root cannot verify callers")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// The control plane's own certificate.
pub struct Certificates {
    authority: Arc<Authority>,
    identity: Identity,
    advertised: Vec<String>,
    current: ArcSwap<Current>,
    provider: Arc<CryptoProvider>,
}

struct Current {
    key: Arc<CertifiedKey>,
    expires: SystemTime,
}

impl Certificates {
    /// Issues the first certificate.
    pub fn new(
        authority: Arc<Authority>,
        identity: Identity,
        advertised: Vec<String>,
        now: SystemTime,
    ) -> Result<Arc<Self>, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let current = make(&authority, &identity, &advertised, &provider, now)?;
        Ok(Arc::new(Self { authority, identity, advertised, current: ArcSwap::from_pointee(current), provider }))
    }

    /// When the current certificate expires.
    pub fn expires(&self) -> SystemTime {
        self.current.load().expires
    }

    /// Issues a new certificate; new connections get it.
    pub fn renew(&self, now: SystemTime) -> Result<(), TlsError> {
        self.current.store(Arc::new(make(&self.authority, &self.identity, &self.advertised, &self.provider, now)?));
        Ok(())
    }

    /// Renews at half of the certificate's lifetime until `stop`; a failure is tried again after a minute.
    pub async fn keep_fresh(self: Arc<Self>, stop: CancellationToken) {
        loop {
            let left = self.expires().duration_since(SystemTime::now()).unwrap_or_default();
            // A sleep is at most an hour, so that a clock that was set forward takes effect.
            let due = left.saturating_sub(SERVING_TTL / 2);
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(due.min(Duration::from_secs(3600))) => {}
            }
            if !due.is_zero() {
                continue;
            }
            if let Err(error) = self.renew(SystemTime::now()) {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "renewing the control plane's certificate failed"
                );
                tokio::time::sleep(Duration::from_secs(60)).await;
            }
        }
    }
}

fn make(
    authority: &Authority,
    identity: &Identity,
    advertised: &[String],
    provider: &CryptoProvider,
    now: SystemTime,
) -> Result<Current, TlsError> {
    let serving = authority.issue_serving(identity, advertised, SERVING_TTL, now)?;
    let key = provider.key_provider.load_private_key(serving.key.clone_key())?;
    Ok(Current { key: Arc::new(CertifiedKey::new(serving.chain, key)), expires: serving.expires })
}

impl std::fmt::Debug for Certificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificates").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load().key.clone())
    }
}

/// TLS of the gRPC listener: ALPN `h2`; a caller may show a certificate.
pub fn grpc(certificates: &Arc<Certificates>) -> Result<Arc<ServerConfig>, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add(certificates.authority.root().clone())?;
    let inner = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), certificates.provider.clone())
        .allow_unauthenticated()
        .build()?;
    let verifier = SvidVerifier { inner, trust_domain: certificates.authority.trust_domain().clone() };
    configuration(certificates, Some(Arc::new(verifier)), &[b"h2"])
}

/// TLS of the REST API: ALPN `h2` and `http/1.1`; no certificate is asked for.
pub fn api(certificates: &Arc<Certificates>) -> Result<Arc<ServerConfig>, TlsError> {
    configuration(certificates, None, &[b"h2", b"http/1.1"])
}

fn configuration(
    certificates: &Arc<Certificates>,
    verifier: Option<Arc<dyn ClientCertVerifier>>,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, TlsError> {
    let builder = ServerConfig::builder_with_provider(certificates.provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?;
    let builder = match verifier {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(certificates.clone());
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// The identity of a certificate that was verified in the handshake, and when it expires.
pub fn peer_of(certificate: &CertificateDer<'_>) -> Option<(Identity, SystemTime)> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    Some((ca::spiffe_id(&certificate)?, ca::system_time(certificate.validity().not_after.timestamp())))
}

/// webpki's checks, and on top exactly one SPIFFE ID, of this trust domain.
#[derive(Debug)]
struct SvidVerifier {
    inner: Arc<dyn ClientCertVerifier>,
    trust_domain: TrustDomain,
}

impl ClientCertVerifier for SvidVerifier {
    fn offer_client_auth(&self) -> bool {
        self.inner.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now)?;
        match peer_of(end_entity) {
            Some((identity, _)) if identity.trust_domain() == self.trust_domain.as_str() => Ok(verified),
            _ => Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
