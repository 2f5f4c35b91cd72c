//! TLS to the control plane, before and after the proxy has a certificate of its own.
//! Before: the chain must contain the root whose hash the join token names. After: it must lead to a root of our bundle.
//! Invariant: either way the SPIFFE ID is the control plane's, so that no workload of the mesh can impersonate it.

use std::sync::Arc;

use rustls::{
    ClientConfig, Error, RootCertStore,
    client::Resumption,
    pki_types::{CertificateDer, UnixTime},
};
use sha2::{Digest, Sha256};

use super::{
    MeshTls, provider,
    svid::{SvidError, leaf},
    verify::{ChainVerifier, RootChain, Verifier},
};

/// ALPN of gRPC.
const ALPN: &[u8] = b"h2";
/// Namespace of the control plane's identity.
const NAMESPACE: &str = "weft-system";
/// Service account of the control plane's identity.
const ACCOUNT: &str = "control-plane";

/// TLS for the first connection: no certificate of our own, a root that is known by its hash.
pub(crate) fn joining(root: [u8; 32]) -> Result<Arc<ClientConfig>, SvidError> {
    let provider = provider();
    let verifier = Verifier::new(ControlPlane { trust: Trust::Pinned(root), domain: None }, &provider);
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    Ok(finish(builder.with_no_client_auth()))
}

/// TLS with our current certificate.
pub(crate) fn joined(tls: &MeshTls) -> Result<Arc<ClientConfig>, SvidError> {
    let provider = provider();
    let trust = Trust::Bundle(RootChain::new(Arc::new(tls.svid.roots()?), &provider));
    let plane = ControlPlane { trust, domain: Some(tls.identity.trust_domain().to_owned()) };
    let verifier = Verifier::new(plane, &provider);
    let builder = ClientConfig::builder_with_provider(provider)
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

/// Verifies the control plane's certificate.
#[derive(Debug)]
struct ControlPlane {
    trust: Trust,
    domain: Option<String>,
}

#[derive(Debug)]
enum Trust {
    Pinned([u8; 32]),
    Bundle(RootChain),
}

impl ChainVerifier for ControlPlane {
    fn verify_chain(
        &self,
        first: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        match &self.trust {
            Trust::Bundle(chain) => chain.verify_chain(first, rest, now)?,
            Trust::Pinned(hash) => {
                let root = rest.iter().find(|certificate| is_root(certificate, hash));
                let root = root.ok_or_else(|| {
                    Error::General("the root that the join token names is not in the control plane's chain".to_owned())
                })?;
                let mut roots = RootCertStore::empty();
                roots.add(root.clone().into_owned())?;
                RootChain::new(Arc::new(roots), &provider()).verify_chain(first, rest, now)?;
            }
        }
        let identity = leaf(first).map_err(|error| Error::General(error.to_string()))?.identity;
        let is_plane = identity.namespace() == Some(NAMESPACE) && identity.service_account() == Some(ACCOUNT);
        let ours = self.domain.as_ref().is_none_or(|domain| identity.trust_domain() == domain);
        if is_plane && ours {
            return Ok(());
        }
        Err(Error::General(format!("{identity} answers where the control plane should")))
    }
}
