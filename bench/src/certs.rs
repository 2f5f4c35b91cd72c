//! Certificates of one run: a CA created for it, three SPIFFE identities, as PEM files (for the proxies)
//! and as rustls configurations (for the floor and for the bench's own probes).
//!
//! The rustls side checks the chain, not a name: SPIFFE certificates carry none. The proxies under test check identity
//! themselves; the floor checks the chain both ways.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WantsClientCert, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CipherSuite, ClientConfig, ConfigBuilder, DigitallySignedStruct, Error as TlsError, RootCertStore, ServerConfig,
    SignatureScheme,
};

/// The trust domain of a run.
pub const TRUST_DOMAIN: &str = "weft.local";
/// The namespace of every identity of a run.
pub const NAMESPACE: &str = "bench";

/// The holder of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// The outbound proxy: the caller that the policy allows.
    Client,
    /// The inbound proxy.
    Server,
    /// Signed by the same CA, allowed nowhere.
    Stranger,
}

impl Identity {
    /// The SPIFFE service account.
    #[must_use]
    pub fn service_account(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
            Self::Stranger => "stranger",
        }
    }

    /// `spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>`.
    #[must_use]
    pub fn spiffe_id(self) -> String {
        format!("spiffe://{TRUST_DOMAIN}/ns/{NAMESPACE}/sa/{}", self.service_account())
    }
}

/// The directory that holds the PEM files of one run.
#[derive(Clone, Debug)]
pub struct Certs {
    dir: PathBuf,
}

impl Certs {
    /// Makes the CA and all identities (ECDSA P-256) and writes them to `dir`.
    ///
    /// # Errors
    /// A key or certificate cannot be made, or a file cannot be written.
    pub fn create(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "weft-bench root");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let certs = Self { dir: dir.to_owned() };
        write(&certs.ca(), &issuer.pem())?;
        for identity in [Identity::Client, Identity::Server, Identity::Stranger] {
            let mut params = CertificateParams::default();
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(identity.spiffe_id())?)];
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            params.use_authority_key_identifier_extension = true;
            let key = KeyPair::generate()?;
            let certificate = params.signed_by(&key, &issuer)?;
            write(&certs.certificate(identity), &certificate.pem())?;
            write(&certs.key(identity), &key.serialize_pem())?;
        }
        Ok(certs)
    }

    /// Opens a directory that [`Certs::create`] filled.
    #[must_use]
    pub fn open(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The trust bundle, PEM.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// The leaf of `identity`, PEM.
    #[must_use]
    pub fn certificate(&self, identity: Identity) -> PathBuf {
        self.dir.join(format!("{}.pem", identity.service_account()))
    }

    /// The private key of `identity`, PKCS #8 PEM.
    #[must_use]
    pub fn key(&self, identity: Identity) -> PathBuf {
        self.dir.join(format!("{}.key", identity.service_account()))
    }

    /// A TLS 1.3 client that presents `identity`, offers `alpn`, checks the server's chain, and does not resume.
    ///
    /// # Errors
    /// A file is missing or does not parse.
    pub fn client_config(&self, identity: Identity, alpn: &[&str]) -> Result<ClientConfig> {
        let (chain, key) = self.load(identity)?;
        let mut config =
            self.client(rustls::crypto::aws_lc_rs::default_provider())?.with_client_auth_cert(chain, key)?;
        config.resumption = Resumption::disabled();
        config.enable_sni = false;
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Ok(config)
    }

    /// The same with X25519 as the only key exchange.
    ///
    /// # Errors
    /// A file is missing or does not parse.
    pub fn x25519_client_config(&self, identity: Identity, alpn: &[&str]) -> Result<ClientConfig> {
        let mut provider = rustls::crypto::aws_lc_rs::default_provider();
        provider.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::X25519];
        // As both programs' own outbound halves have it; rustls by itself likes AES-256-GCM with SHA-384 better.
        provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
        let (chain, key) = self.load(identity)?;
        let mut config = self.client(provider)?.with_client_auth_cert(chain, key)?;
        config.resumption = Resumption::disabled();
        config.enable_sni = false;
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Ok(config)
    }

    /// A TLS 1.3 client without a certificate.
    ///
    /// # Errors
    /// The trust bundle is missing or does not parse.
    pub fn nameless_client_config(&self) -> Result<ClientConfig> {
        Ok(self.client(rustls::crypto::aws_lc_rs::default_provider())?.with_no_client_auth())
    }

    fn client(&self, provider: CryptoProvider) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>> {
        let verifier = ChainVerifier { roots: self.roots()?, algorithms: provider.signature_verification_algorithms };
        Ok(ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier)))
    }

    /// A TLS 1.3 server that presents `identity`, demands a client certificate of the run's CA, and does not resume.
    ///
    /// # Errors
    /// A file is missing or does not parse.
    pub fn server_config(&self, identity: Identity) -> Result<ServerConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots()?), Arc::clone(&provider)).build()?;
        let (chain, key) = self.load(identity)?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(clients)
            .with_single_cert(chain, key)?;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    fn roots(&self) -> Result<RootCertStore> {
        let path = self.ca();
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(&path).with_context(|| format!("read {}", path.display()))? {
            roots.add(certificate?)?;
        }
        Ok(roots)
    }

    fn load(&self, identity: Identity) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
        let path = self.certificate(identity);
        let chain = CertificateDer::pem_file_iter(&path)
            .and_then(Iterator::collect)
            .with_context(|| format!("read {}", path.display()))?;
        let path = self.key(identity);
        let key = PrivateKeyDer::from_pem_file(&path).with_context(|| format!("read {}", path.display()))?;
        Ok((chain, key))
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

/// Checks the server's chain up to the run's CA, and no name.
#[derive(Debug)]
struct ChainVerifier {
    roots: RootCertStore,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for ChainVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let leaf = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&leaf, &self.roots, intermediates, now, self.algorithms.all)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
