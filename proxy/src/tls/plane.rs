//! TLS to the control plane: who it has to be, before and after we have a certificate of our own.
//! Before: its chain must hold the root whose hash the join token names. After: it must lead to a root of our bundle.
//! Invariant: either way its SPIFFE ID is that of the control plane, so that no workload of the mesh can pose as it.

use std::sync::Arc;

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use sha2::{Digest, Sha256};

use super::{
    MeshTls, provider,
    svid::{SvidError, identity_of},
    verify::ChainVerifier,
};

/// ALPN of gRPC.
const ALPN: &[u8] = b"h2";
/// Namespace of the control plane's identity.
const NAMESPACE: &str = "weft-system";
/// Service account of the control plane's identity.
const ACCOUNT: &str = "control-plane";

/// TLS for the first contact: no certificate of our own, a root that is known by its hash.
pub(crate) fn joining(root: [u8; 32]) -> Result<Arc<ClientConfig>, SvidError> {
    let algorithms = provider().signature_verification_algorithms.supported_schemes();
    let verifier = Plane { trust: Trust::Pinned(root), domain: None, schemes: algorithms };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    Ok(finish(builder.with_no_client_auth()))
}

/// TLS with our current certificate.
pub(crate) fn joined(tls: &MeshTls) -> Result<Arc<ClientConfig>, SvidError> {
    let chain = ChainVerifier::new(Arc::new(tls.svid.roots()?), &provider());
    let schemes = chain.supported_verify_schemes();
    let verifier = Plane { trust: Trust::Bundle(chain), domain: Some(tls.identity.trust_domain().to_owned()), schemes };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    Ok(finish(builder.with_client_auth_cert(tls.svid.chain.clone(), tls.svid.key.clone_key())?))
}

fn finish(mut config: ClientConfig) -> Arc<ClientConfig> {
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Arc::new(config)
}

/// Whether a root is the one with this SHA-256.
pub(crate) fn is_root(certificate: &[u8], hash: &[u8; 32]) -> bool {
    Sha256::digest(certificate).as_slice() == hash
}

/// Judges the control plane's certificate.
#[derive(Debug)]
struct Plane {
    trust: Trust,
    domain: Option<String>,
    schemes: Vec<SignatureScheme>,
}

#[derive(Debug)]
enum Trust {
    Pinned([u8; 32]),
    Bundle(ChainVerifier),
}

impl ServerCertVerifier for Plane {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verify = |chain: &ChainVerifier| {
            chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
        };
        match &self.trust {
            Trust::Bundle(chain) => verify(chain)?,
            Trust::Pinned(hash) => {
                let root = intermediates.iter().find(|certificate| is_root(certificate, hash));
                let root = root.ok_or_else(|| {
                    Error::General("the root that the join token names is not in the control plane's chain".to_owned())
                })?;
                let mut roots = RootCertStore::empty();
                roots.add(root.clone().into_owned())?;
                verify(&ChainVerifier::new(Arc::new(roots), &provider()))?
            }
        };
        let identity = identity_of(end_entity).map_err(|error| Error::General(error.to_string()))?;
        let is_plane = identity.namespace() == Some(NAMESPACE) && identity.service_account() == Some(ACCOUNT);
        let ours = self.domain.as_ref().is_none_or(|domain| identity.trust_domain() == domain);
        if is_plane && ours {
            return Ok(ServerCertVerified::assertion());
        }
        Err(Error::General(format!("{identity} answers where the control plane should")))
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
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &provider().signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.clone()
    }
}
