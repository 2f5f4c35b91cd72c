//! Who the peer is: the chain is verified during the handshake, the identity right after it.
//! Invariant: no application byte is sent before [`expect`] or [`peer_identity`] has succeeded.

use std::sync::Arc;

use rustls::{
    CertificateError, CommonState, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};
use weft_core::identity::Identity;

use super::svid::{SvidError, identity_of};

/// Verifies that a server's certificate leads to one of our roots and is within its dates. It does not look at names:
/// mesh certificates have a SPIFFE ID, which [`expect`] compares after the handshake.
#[derive(Debug)]
pub(crate) struct ChainVerifier {
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ChainVerifier {
    pub(crate) fn new(roots: Arc<RootCertStore>, provider: &CryptoProvider) -> Self {
        Self { roots, algorithms: provider.signature_verification_algorithms }
    }
}

impl ServerCertVerifier for ChainVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, self.algorithms.all)?;
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

/// The verified identity of the peer of a finished handshake.
/// Errors: no certificate, or one that is not fit for the mesh.
pub(crate) fn peer_identity(connection: &CommonState) -> Result<Identity, SvidError> {
    identity_of(connection.peer_certificates().and_then(<[_]>::first).ok_or(SvidError::NoCertificate)?)
}

/// Checks that the peer is who is expected at this endpoint; the text says who it is instead.
pub(crate) fn expect(connection: &CommonState, expected: &Identity) -> Result<(), String> {
    match peer_identity(connection) {
        Ok(identity) if identity == *expected => Ok(()),
        Ok(identity) => Err(format!("expected {expected}, found {identity}")),
        Err(error) => Err(format!("expected {expected}, found a certificate that is not fit: {error}")),
    }
}
