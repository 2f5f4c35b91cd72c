//! Certificate requests: of a PKCS#10 request only the key is used; names and extensions are ignored.
//! Shape: untrusted DER in, [`RequestedKey`] or a reason out. Spec: RFC 2986; X509-SVID 4.
//! Accepted keys: P-256, P-384, Ed25519, RSA of 2048 to 4096 bits with exponent 65537.

use rcgen::{PublicKeyData, SignatureAlgorithm, SubjectPublicKeyInfo};
use x509_parser::{
    certification_request::X509CertificationRequest, oid_registry, prelude::FromDer, public_key::PublicKey,
};

/// Maximum length of a request, in bytes.
pub const MAX_CSR_BYTES: usize = 16 * 1024;

/// A public key whose private key has signed the request.
#[derive(Clone, Debug)]
pub struct RequestedKey(SubjectPublicKeyInfo);

/// Why a request is rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// The request is empty.
    #[error("empty")]
    Empty,
    /// It is too long.
    #[error("{0} bytes, longer than {MAX_CSR_BYTES}")]
    TooLong(usize),
    /// It is no PKCS#10 request.
    #[error("not a PKCS#10 request in DER")]
    Malformed,
    /// Bytes follow it.
    #[error("{0} bytes after the request")]
    Trailing(usize),
    /// It is signed with something outdated or unknown.
    #[error("signed with {0}; must be ECDSA, Ed25519 or RSA with SHA-256, SHA-384 or SHA-512")]
    SignatureAlgorithm(String),
    /// The signature is not of the key in it.
    #[error("the signature does not verify with the request's own key")]
    Signature,
    /// An RSA key of another length.
    #[error("an RSA key of {0} bits; must be 2048 to 4096")]
    RsaBits(usize),
    /// An RSA key with an exponent that is not 65537.
    #[error("an RSA key with an exponent other than 65537")]
    RsaExponent,
    /// A key of another kind.
    #[error("unsupported kind of key; must be P-256, P-384, Ed25519 or RSA")]
    KeyKind,
}

impl PublicKeyData for RequestedKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.0.algorithm()
    }
}

impl RequestedKey {
    /// Checks a request and takes its key.
    /// Errors: too long, malformed, badly signed, or a weak or unknown kind of key.
    pub fn from_csr(der: &[u8]) -> Result<Self, CsrError> {
        if der.is_empty() {
            return Err(CsrError::Empty);
        }
        if der.len() > MAX_CSR_BYTES {
            return Err(CsrError::TooLong(der.len()));
        }
        let (rest, request) = X509CertificationRequest::from_der(der).map_err(|_cause| CsrError::Malformed)?;
        if !rest.is_empty() {
            return Err(CsrError::Trailing(rest.len()));
        }
        check_signature_algorithm(&request)?;
        let info = &request.certification_request_info.subject_pki;
        match info.parsed().map_err(|_cause| CsrError::KeyKind)? {
            PublicKey::RSA(rsa) => {
                let bits = rsa.key_size();
                if !(2048..=4096).contains(&bits) {
                    return Err(CsrError::RsaBits(bits));
                }
                if rsa.try_exponent() != Ok(65_537) {
                    return Err(CsrError::RsaExponent);
                }
            }
            PublicKey::EC(_) => {}
            PublicKey::Unknown(_) if info.algorithm.algorithm == oid_registry::OID_SIG_ED25519 => {}
            PublicKey::DSA(_) | PublicKey::GostR3410(_) | PublicKey::GostR3410_2012(_) | PublicKey::Unknown(_) => {
                return Err(CsrError::KeyKind);
            }
        }
        request.verify_signature().map_err(|_cause| CsrError::Signature)?;
        let key = SubjectPublicKeyInfo::from_der(info.raw).map_err(|_cause| CsrError::KeyKind)?;
        let known = [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519];
        let accepted =
            known.contains(&key.algorithm()) || info.algorithm.algorithm == oid_registry::OID_PKCS1_RSAENCRYPTION;
        accepted.then_some(Self(key)).ok_or(CsrError::KeyKind)
    }
}

fn check_signature_algorithm(request: &X509CertificationRequest<'_>) -> Result<(), CsrError> {
    let algorithm = &request.signature_algorithm.algorithm;
    let accepted = [
        oid_registry::OID_SIG_ECDSA_WITH_SHA256,
        oid_registry::OID_SIG_ECDSA_WITH_SHA384,
        oid_registry::OID_SIG_ECDSA_WITH_SHA512,
        oid_registry::OID_SIG_ED25519,
        oid_registry::OID_PKCS1_SHA256WITHRSA,
        oid_registry::OID_PKCS1_SHA384WITHRSA,
        oid_registry::OID_PKCS1_SHA512WITHRSA,
    ];
    if accepted.contains(algorithm) {
        return Ok(());
    }
    Err(CsrError::SignatureAlgorithm(algorithm.to_id_string()))
}
