//! SVIDs: the certificate, key and roots of one identity.
//! Spec: X.509-SVID §4 (leaf: not a CA, no keyCertSign) and §2 (exactly one URI SAN, a SPIFFE ID).

use std::{fs, io, ops::RangeInclusive, path::Path};

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject},
};
use weft_core::identity::{Identity, IdentityError};
use x509_parser::{extensions::GeneralName, prelude::*};

/// A certificate with its chain, key and the roots to trust.
#[derive(Debug)]
pub struct Svid {
    /// The identity in the certificate.
    pub identity: Identity,
    /// The leaf first, then intermediates.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key.
    pub key: PrivateKeyDer<'static>,
    /// The roots to trust.
    pub bundle: Vec<CertificateDer<'static>>,
    /// Start of validity, Unix seconds.
    pub not_before: i64,
    /// End of validity, Unix seconds.
    pub not_after: i64,
}

/// Why a certificate cannot be used in the mesh.
#[derive(Debug, thiserror::Error)]
pub enum SvidError {
    /// A file could not be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file holds no PEM of the expected kind.
    #[error("{path} holds no valid PEM {what}")]
    Pem {
        /// The file.
        path: String,
        /// `certificate` or `private key`.
        what: &'static str,
    },
    /// The chain is empty.
    #[error("the certificate chain is empty")]
    NoCertificate,
    /// No root to trust.
    #[error("the trust bundle is empty")]
    NoRoots,
    /// Not an X.509 v3 certificate in DER.
    #[error("not an X.509 certificate")]
    Malformed,
    /// There must be exactly one URI name.
    #[error("{found} URI names in the certificate, exactly one is needed")]
    UriNames {
        /// How many there are.
        found: usize,
    },
    /// The URI name is no SPIFFE ID.
    #[error("the URI name is no SPIFFE ID")]
    Identity(#[from] IdentityError),
    /// A CA certificate cannot be a workload's.
    #[error("the certificate is a CA's")]
    Authority,
    /// A workload is client and server of mesh TLS: its certificate has both usages, or names none (X.509-SVID 4.4).
    #[error("the certificate's extended key usage is not for both serverAuth and clientAuth")]
    Usage,
    /// Not valid yet, or not any more.
    #[error("a certificate of the chain is outside its dates")]
    NotCurrent,
    /// rustls refuses it.
    #[error("refused by TLS")]
    Tls(#[from] rustls::Error),
    /// A root cannot be used.
    #[error("the trust bundle cannot be used")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

impl Svid {
    /// Takes DER as the certificate authority sends it.
    /// Errors: see [`SvidError`]; the dates are not judged here.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        bundle: Vec<CertificateDer<'static>>,
    ) -> Result<Self, SvidError> {
        let Leaf { identity, validity } = leaf(chain.first().ok_or(SvidError::NoCertificate)?)?;
        let (not_before, not_after) = validity.into_inner();
        Ok(Self { identity, chain, key, bundle, not_before, not_after })
    }

    /// Reads the three PEM files of a proxy that has no control plane.
    pub fn read(certificate: &Path, key: &Path, bundle: &Path) -> Result<Self, SvidError> {
        let chain = certificates(certificate)?;
        let pem = read(key)?;
        let key = PrivateKeyDer::from_pem_slice(&pem)
            .map_err(|_malformed| SvidError::Pem { path: key.display().to_string(), what: "private key" })?;
        Self::new(chain, key, certificates(bundle)?)
    }

    /// The roots as a rustls store.
    pub fn roots(&self) -> Result<RootCertStore, SvidError> {
        let mut roots = RootCertStore::empty();
        for root in &self.bundle {
            roots.add(root.clone())?;
        }
        if roots.is_empty() { Err(SvidError::NoRoots) } else { Ok(roots) }
    }
}

/// The fields of a workload's certificate that the mesh uses.
#[derive(Clone, Debug)]
pub(crate) struct Leaf {
    pub(crate) identity: Identity,
    /// Unix seconds.
    pub(crate) validity: RangeInclusive<i64>,
}

/// Reads a workload's certificate; the dates are not judged.
/// Errors: malformed, a CA's, for one side of TLS only, or not exactly one URI name that is a SPIFFE ID.
pub(crate) fn leaf(certificate: &CertificateDer<'_>) -> Result<Leaf, SvidError> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_malformed| SvidError::Malformed)?;
    if parsed.is_ca() || parsed.key_usage().ok().flatten().is_some_and(|usage| usage.value.key_cert_sign()) {
        return Err(SvidError::Authority);
    }
    let usage = parsed.extended_key_usage().map_err(|_malformed| SvidError::Malformed)?;
    if usage.is_some_and(|usage| !(usage.value.server_auth && usage.value.client_auth)) {
        return Err(SvidError::Usage);
    }
    let names = parsed.subject_alternative_name().map_err(|_malformed| SvidError::Malformed)?;
    let names = names.iter().flat_map(|names| &names.value.general_names);
    // Another parser may take it for a URI name, or stop there and miss a later one.
    if names.clone().any(|name| matches!(name, GeneralName::Invalid(..))) {
        return Err(SvidError::Malformed);
    }
    let mut uris = names.filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None });
    match (uris.next(), uris.count()) {
        (Some(uri), 0) => Ok(Leaf { identity: Identity::parse(uri)?, validity: dates(&parsed) }),
        (first, more) => Err(SvidError::UriNames { found: usize::from(first.is_some()) + more }),
    }
}

/// The first and the last second of a certificate.
pub(crate) fn validity(certificate: &CertificateDer<'_>) -> Result<RangeInclusive<i64>, SvidError> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_malformed| SvidError::Malformed)?;
    Ok(dates(&parsed))
}

fn dates(certificate: &X509Certificate<'_>) -> RangeInclusive<i64> {
    certificate.validity().not_before.timestamp()..=certificate.validity().not_after.timestamp()
}

/// Unix seconds now.
pub(crate) fn unix_now() -> i64 {
    i64::try_from(UnixTime::now().as_secs()).unwrap_or(i64::MAX)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, SvidError> {
    let pem = read(path)?;
    let invalid = || SvidError::Pem { path: path.display().to_string(), what: "certificate" };
    let certificates: Vec<_> =
        CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().map_err(|_malformed| invalid())?;
    if certificates.is_empty() { Err(invalid()) } else { Ok(certificates) }
}

fn read(path: &Path) -> Result<Vec<u8>, SvidError> {
    fs::read(path).map_err(|source| SvidError::Read { path: path.display().to_string(), source })
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, CustomExtension, KeyPair};

    use super::*;

    /// A certificate with these names, each with its tag (RFC 5280 §4.2.1.6).
    fn certificate(names: &[(u8, &[u8])]) -> CertificateDer<'static> {
        let mut content = Vec::new();
        for (tag, name) in names {
            content.extend([*tag, u8::try_from(name.len()).unwrap()]);
            content.extend_from_slice(name);
        }
        let list = [&[0x30, u8::try_from(content.len()).unwrap()][..], &content].concat();
        let mut params = CertificateParams::default();
        params.custom_extensions = vec![CustomExtension::from_oid_content(&[2, 5, 29, 17], list)];
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    /// (37)
    #[test]
    fn a_certificate_is_for_both_sides_of_tls_or_says_nothing_of_them() {
        use rcgen::ExtendedKeyUsagePurpose::{Any, ClientAuth, ServerAuth};
        for (usages, good) in [
            (&[][..], true),
            (&[ServerAuth, ClientAuth], true),
            (&[ServerAuth, Any, ClientAuth], true),
            (&[ServerAuth], false),
            (&[ClientAuth], false),
            (&[Any], false),
        ] {
            let mut params = CertificateParams::default();
            params.subject_alt_names = vec![rcgen::SanType::URI("spiffe://weft.local/ns/a/sa/b".try_into().unwrap())];
            params.extended_key_usages = usages.to_vec();
            let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
            assert_eq!(leaf(certificate.der()).map_err(|error| error.to_string()).is_ok(), good, "{usages:?}");
        }
    }

    const URI: (u8, &[u8]) = (0x86, b"spiffe://weft.local/ns/shop/sa/order");

    #[test]
    fn a_name_that_cannot_be_read_beside_the_spiffe_id_makes_a_certificate_unfit() {
        assert_eq!(leaf(&certificate(&[(0x82, b"order"), URI])).unwrap().identity.service_account(), Some("order"));
        for name in [(0x89, &b"spiffe://weft.local/ns/shop/sa/bank"[..]), (0x86, b"spiffe://\xff"), (0x82, b"\xff")] {
            for names in [[name, URI], [URI, name]] {
                assert!(matches!(leaf(&certificate(&names)), Err(SvidError::Malformed)), "{names:?}");
            }
        }
    }
}
