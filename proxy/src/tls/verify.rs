//! Who the peer is: the chain is verified during a full handshake, the identity and the dates right after every handshake.
//! Invariant: no application byte is sent before [`expect`] or [`peer`] has succeeded.
//! A resumed handshake calls no verifier of rustls. Its certificates were verified against the same roots (see
//! `resumption`); what may have changed since are the dates, which are looked at here for the whole chain.

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

/// Whether a server's certificate may be trusted. Names are not looked at: mesh certificates have a SPIFFE ID.
pub(crate) trait Judge: Debug + Send + Sync {
    /// Judges a chain.
    /// Errors: why it is not trusted.
    fn judge(&self, leaf: &CertificateDer<'_>, rest: &[CertificateDer<'_>], now: UnixTime) -> Result<(), Error>;
}

/// A [`Judge`] of the chain, and the signature of the handshake.
#[derive(Debug)]
pub(crate) struct Verifier<J> {
    judge: J,
    algorithms: WebPkiSupportedAlgorithms,
}

/// Demands that a chain leads to one of these roots and is within its dates. [`expect`] compares the SPIFFE ID afterwards.
#[derive(Debug)]
pub(crate) struct Chain {
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Chain {
    pub(crate) fn new(roots: Arc<RootCertStore>, provider: &CryptoProvider) -> Self {
        Self { roots, algorithms: provider.signature_verification_algorithms }
    }
}

impl Judge for Chain {
    fn judge(&self, leaf: &CertificateDer<'_>, rest: &[CertificateDer<'_>], now: UnixTime) -> Result<(), Error> {
        let parsed = ParsedCertificate::try_from(leaf)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, rest, now, self.algorithms.all)
    }
}

impl<J: Judge> Verifier<J> {
    pub(crate) fn new(judge: J, provider: &CryptoProvider) -> Self {
        Self { judge, algorithms: provider.signature_verification_algorithms }
    }
}

impl<J: Judge> ServerCertVerifier for Verifier<J> {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.judge.judge(end_entity, intermediates, now).map(|()| ServerCertVerified::assertion())
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
    /// Who it is.
    pub(crate) identity: Identity,
    /// When the first certificate of its chain ends, Unix seconds.
    pub(crate) not_after: i64,
}

impl Peer {
    /// How long its certificates are still valid.
    pub(crate) fn valid_for(&self) -> std::time::Duration {
        std::time::Duration::from_secs(u64::try_from(self.not_after - unix_now()).unwrap_or(0))
    }
}

/// The verified peer of a finished handshake, full or resumed.
/// Errors: no certificate, one that is not fit for the mesh, or one that is outside its dates by now.
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
        // In a full handshake the verifier has found a way to a root; what is not on that way may be as it likes.
        if connection.handshake_kind() == Some(HandshakeKind::Resumed) && !dates.contains(&now) {
            return Err(SvidError::NotCurrent);
        }
        not_after = not_after.min(*dates.end());
    }
    Ok(Peer { identity: leaf.identity, not_after })
}

/// Checks that the peer is who is expected at this endpoint; the text says who it is instead.
pub(crate) fn expect(peer: Result<Peer, SvidError>, expected: &Identity) -> Result<Peer, String> {
    match peer {
        Ok(peer) if peer.identity == *expected => Ok(peer),
        Ok(peer) => Err(format!("expected {expected}, found {}", peer.identity)),
        Err(error) => Err(format!("expected {expected}, found a certificate that is not fit: {error}")),
    }
}

/// How a finished handshake went, as metrics name it.
pub(crate) fn kind(connection: &CommonState) -> &'static str {
    match connection.handshake_kind() {
        Some(HandshakeKind::Resumed) => "resumed",
        Some(HandshakeKind::Full | HandshakeKind::FullWithHelloRetryRequest) | None => "full",
    }
}
