//! The certificate authority: a persisted root and the short-lived certificates that it signs.
//! Shape: [`Authority`] holds the root; [`Authority::issue`] signs a certificate for a key and an [`Identity`].
//! Files: `<data-dir>/ca.pem` (key and certificate, mode 0600), `<data-dir>/root.pem` (certificate, for others to read).
//! Spec: SPIFFE X509-SVID 3-5 (one URI SAN, CA=false, digitalSignature), RFC 5280 §4.2.
//! Invariant: the names in a certificate come from the caller's proven identity, never from its request.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};
use weft_core::identity::{Identity, TrustDomain};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::{
    crypto::{self, sha256},
    files,
};

mod csr;

pub use csr::{CsrError, MAX_CSR_BYTES, RequestedKey};

/// The namespace of the control plane's own identity.
pub const OWN_NAMESPACE: &str = "weft-system";
/// The service account of the control plane's own identity.
pub const OWN_SERVICE_ACCOUNT: &str = "control-plane";
/// Age of a certificate when it is issued, for clocks that are behind.
pub const BACKDATE: Duration = Duration::from_secs(60);
/// Lifetime of the root.
pub const ROOT_TTL: Duration = Duration::from_secs(10 * 365 * 86_400);

/// The mesh's root certificate and its key.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
    root_hash: [u8; 32],
    expires: SystemTime,
    trust_domain: TrustDomain,
}

/// A certificate that was just issued.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The certificate.
    pub certificate: CertificateDer<'static>,
    /// Its serial number, in lower-case hexadecimal.
    pub serial: String,
    /// When it expires.
    pub expires: SystemTime,
}

/// Why there is no usable root, or no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The file of the root cannot be read or written.
    #[error("{path}: read or write failed")]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A part of the root's file cannot be parsed.
    #[error("{path}: {part} is missing or damaged")]
    Parse {
        /// The file.
        path: PathBuf,
        /// The part.
        part: &'static str,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The root cannot be used.
    #[error("{path}: {reason}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// The root has expired.
    #[error("the root certificate has expired")]
    Expired,
    /// Signing failed.
    #[error("signing a certificate failed")]
    Sign(#[from] rcgen::Error),
    /// The system has no random numbers.
    #[error("no random numbers")]
    Random(#[from] crypto::RandomError),
}

impl Authority {
    /// Loads the root of this data directory, or creates it if there is none.
    /// Errors: a file that cannot be read, is damaged, is of another trust domain, has expired or has name constraints.
    pub fn open(data_dir: &Path, trust_domain: &TrustDomain, now: SystemTime) -> Result<Self, CaError> {
        let path = data_dir.join("ca.pem");
        let at = |source| CaError::File { path: path.clone(), source };
        let pem = match std::fs::read(&path) {
            Ok(pem) => pem,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let pem = generate(trust_domain, now)?;
                files::write_private(&path, pem.as_bytes()).map_err(at)?;
                pem.into_bytes()
            }
            Err(error) => return Err(at(error)),
        };
        let authority = Self::parse(&path, &pem, trust_domain, now)?;
        let public = data_dir.join("root.pem");
        files::write_public(&public, authority.root_pem().as_bytes())
            .map_err(|source| CaError::File { path: public, source })?;
        Ok(authority)
    }

    fn parse(path: &Path, pem: &[u8], trust_domain: &TrustDomain, now: SystemTime) -> Result<Self, CaError> {
        let unusable = |reason: &str| CaError::Unusable { path: path.to_owned(), reason: reason.to_owned() };
        let parse = |part, source| CaError::Parse { path: path.to_owned(), part, source };
        let root = CertificateDer::from_pem_slice(pem).map_err(|error| parse("the PEM certificate", error.into()))?;
        let key = PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(|error| parse("the PKCS#8 PEM key", error.into()))?;
        let key = KeyPair::try_from(&key).map_err(|error| parse("the signing key", error.into()))?;
        let (rest, parsed) =
            X509Certificate::from_der(&root).map_err(|error| parse("the certificate", error.into()))?;
        if !rest.is_empty() {
            return Err(unusable("bytes follow its certificate"));
        }
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(unusable("its key and its certificate do not belong together"));
        }
        if !parsed.is_ca() {
            return Err(unusable("its certificate is not one of a certificate authority"));
        }
        if matches!(parsed.name_constraints(), Ok(Some(_)) | Err(_)) {
            return Err(unusable(
                "its certificate has name constraints, with which TLS libraries reject every SPIFFE ID",
            ));
        }
        let expires = system_time(parsed.validity().not_after.timestamp());
        if expires <= now {
            return Err(CaError::Expired);
        }
        let expected = format!("spiffe://{trust_domain}");
        let uris = uris(&parsed);
        if uris.first().is_some_and(|uri| *uri != expected) {
            let found = uris.first().copied().unwrap_or_default();
            return Err(unusable(&format!("is the root of {found}, not of {expected}; see --trust-domain")));
        }
        let issuer = Issuer::from_ca_cert_der(&root, key)?;
        Ok(Self { issuer, root_hash: sha256(&root), root, expires, trust_domain: trust_domain.clone() })
    }

    /// The root's certificate.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// The root's certificate in PEM.
    pub fn root_pem(&self) -> String {
        to_pem("CERTIFICATE", &self.root)
    }

    /// SHA-256 of the root's certificate in DER, which join tokens pin.
    pub fn root_hash(&self) -> &[u8; 32] {
        &self.root_hash
    }

    /// When the root expires.
    pub fn expires(&self) -> SystemTime {
        self.expires
    }

    /// The mesh's trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Signs a workload's key: exactly one URI SAN, for client and server, not an authority.
    /// It never outlives the root.
    pub fn issue(
        &self,
        key: &RequestedKey,
        identity: &Identity,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Issued, CaError> {
        let names = vec![SanType::URI(identity.as_str().try_into()?)];
        self.sign(key, names, ttl, now)
    }

    /// Creates a key and a certificate for the control plane's own listeners; the chain includes the root.
    pub fn issue_serving(
        &self,
        identity: &Identity,
        advertised: &[String],
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Serving, CaError> {
        let key = KeyPair::generate()?;
        let mut names = vec![SanType::URI(identity.as_str().try_into()?)];
        let loopback = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
        for name in loopback.iter().chain(advertised) {
            let name = match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.as_str().try_into()?),
            };
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let issued = self.sign(&key, names, ttl, now)?;
        Ok(Serving {
            chain: vec![issued.certificate, self.root.clone()],
            key: Arc::new(PrivateKeyDer::Pkcs8(key.serialize_der().into())),
            expires: issued.expires,
        })
    }

    fn sign(
        &self,
        key: &impl PublicKeyData,
        names: Vec<SanType>,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Issued, CaError> {
        if self.expires <= now {
            return Err(CaError::Expired);
        }
        let serial = serial()?;
        let expires = (now + ttl).min(self.expires);
        let mut params = CertificateParams::default();
        params.serial_number = Some(SerialNumber::from(serial.to_vec()));
        params.not_before = (now - BACKDATE).into();
        params.not_after = expires.into();
        params.distinguished_name = organisation("weft");
        params.subject_alt_names = names;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(key, &self.issuer)?.der().clone();
        Ok(Issued { certificate, serial: data_encoding::HEXLOWER.encode(&serial), expires })
    }
}

/// The control plane's own key and certificate.
pub struct Serving {
    /// The certificate, then the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The key.
    pub key: Arc<PrivateKeyDer<'static>>,
    /// When the certificate expires.
    pub expires: SystemTime,
}

/// The one SPIFFE ID of a certificate.
/// Errors: `None` when there is not exactly one URI SAN or it is no SPIFFE ID (X509-SVID 2).
pub fn spiffe_id(certificate: &X509Certificate<'_>) -> Option<Identity> {
    match uris(certificate).as_slice() {
        [uri] => Identity::parse(uri).ok(),
        _ => None,
    }
}

/// A time of a certificate, in seconds since 1970, as system time.
pub(crate) fn system_time(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

fn uris<'a>(certificate: &'a X509Certificate<'_>) -> Vec<&'a str> {
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    let uri = |name: &'a GeneralName<'_>| if let GeneralName::URI(uri) = name { Some(*uri) } else { None };
    names.value.general_names.iter().filter_map(uri).collect()
}

fn generate(trust_domain: &TrustDomain, now: SystemTime) -> Result<String, CaError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from(serial()?.to_vec()));
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + ROOT_TTL).into();
    params.distinguished_name = organisation("weft");
    params.distinguished_name.push(DnType::CommonName, format!("root of {trust_domain}"));
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://{trust_domain}").try_into()?)];
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key)?;
    Ok(format!("{}{}", key.serialize_pem(), certificate.pem()))
}

fn organisation(name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, name);
    subject
}

/// 16 random bytes with the first bit clear (RFC 5280 §4.1.2.2: positive, at most 20 bytes).
fn serial() -> Result<[u8; 16], crypto::RandomError> {
    let mut serial: [u8; 16] = crypto::bytes()?;
    if let Some(first) = serial.first_mut() {
        *first = (*first & 0x7f) | 0x40;
    }
    Ok(serial)
}

/// PEM of some DER.
pub(crate) fn to_pem(label: &str, der: &[u8]) -> String {
    let text = data_encoding::BASE64.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, left) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = left;
    }
    pem.push_str(&format!("-----END {label}-----\n"));
    pem
}

#[cfg(test)]
mod tests;
