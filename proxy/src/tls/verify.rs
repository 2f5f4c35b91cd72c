//! The peer's identity: the chain is verified during a full handshake, the identity and the dates right after every handshake.
//! Invariant: no application byte is sent before [`expect`] or [`peer`] has succeeded.
//! rustls calls no verifier when a handshake resumes. The certificates were verified against the same roots (see `resumption`);
//! only the dates may have changed since, so they are checked here for the whole chain.

use std::{fmt::Debug, sync::Arc};

use rustls::{
    CertificateError, CommonState, DigitallySignedStruct, Error, HandshakeKind, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};
use weft_core::identity::Identity;

use super::svid::{SvidError, leaf, unix_now, validity};

/// Decides whether a server's chain is trusted. DNS names are ignored: mesh certificates have a SPIFFE ID.
pub(crate) trait ChainVerifier: Debug + Send + Sync {
    /// Verifies a chain.
    /// Errors: why it is not trusted.
    fn verify_chain(&self, leaf: &CertificateDer<'_>, rest: &[CertificateDer<'_>], now: UnixTime) -> Result<(), Error>;
}

/// A [`ChainVerifier`] of the chain, and the signature of the handshake.
#[derive(Debug)]
pub(crate) struct Verifier<V> {
    chain: V,
    algorithms: WebPkiSupportedAlgorithms,
}

/// Requires that a chain leads to one of these roots and is within its dates. [`expect`] compares the SPIFFE ID afterwards.
#[derive(Debug)]
pub(crate) struct RootChain {
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl RootChain {
    pub(crate) fn new(roots: Arc<RootCertStore>, provider: &CryptoProvider) -> Self {
        Self { roots, algorithms: provider.signature_verification_algorithms }
    }
}

impl ChainVerifier for RootChain {
    fn verify_chain(&self, leaf: &CertificateDer<'_>, rest: &[CertificateDer<'_>], now: UnixTime) -> Result<(), Error> {
        let parsed = ParsedCertificate::try_from(leaf)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, rest, now, self.algorithms.all)
    }
}

impl<V: ChainVerifier> Verifier<V> {
    pub(crate) fn new(chain: V, provider: &CryptoProvider) -> Self {
        Self { chain, algorithms: provider.signature_verification_algorithms }
    }
}

impl<V: ChainVerifier> ServerCertVerifier for Verifier<V> {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.chain.verify_chain(end_entity, intermediates, now).map(|()| ServerCertVerified::assertion())
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

/// The verified peer of a finished handshake.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// Its SPIFFE ID.
    pub(crate) identity: Identity,
    /// When the first certificate of its chain ends, Unix seconds.
    pub(crate) not_after: i64,
}

impl Peer {
    /// Time until the first certificate of its chain ends.
    pub(crate) fn valid_for(&self) -> std::time::Duration {
        std::time::Duration::from_secs(u64::try_from(self.not_after - unix_now()).unwrap_or(0))
    }
}

/// The verified peer of a finished handshake, full or resumed.
/// Errors: no certificate, one that cannot be used in the mesh, or one that is outside its dates by now.
pub(crate) fn peer(connection: &CommonState) -> Result<Peer, SvidError> {
    let chain = connection.peer_certificates().unwrap_or_default();
    let (first, rest) = chain.split_first().ok_or(SvidError::NoCertificate)?;
    let now = unix_now();
    let leaf = leaf(first)?;
    if !leaf.validity.contains(&now) {
        return Err(SvidError::NotCurrent);
    }
    let mut not_after = *leaf.validity.end();
    for certificate in rest {
        let dates = validity(certificate)?;
        // In a full handshake the verifier has checked the certificates on the path to a root; others do not matter.
        if connection.handshake_kind() == Some(HandshakeKind::Resumed) && !dates.contains(&now) {
            return Err(SvidError::NotCurrent);
        }
        not_after = not_after.min(*dates.end());
    }
    Ok(Peer { identity: leaf.identity, not_after })
}

/// Checks that the peer has the identity expected at this endpoint.
/// Errors: text with the identity found, or why there is none.
pub(crate) fn expect(peer: Result<Peer, SvidError>, expected: &Identity) -> Result<Peer, String> {
    match peer {
        Ok(peer) if peer.identity == *expected => Ok(peer),
        Ok(peer) => Err(format!("expected {expected}, found {}", peer.identity)),
        Err(error) => Err(format!("expected {expected}, found no usable certificate: {error}")),
    }
}

/// How a finished handshake went, as metrics name it.
pub(crate) fn kind(connection: &CommonState) -> &'static str {
    match connection.handshake_kind() {
        Some(HandshakeKind::Resumed) => "resumed",
        Some(HandshakeKind::Full | HandshakeKind::FullWithHelloRetryRequest) | None => "full",
    }
}
