//! Certificates for tests: an authority, and SVIDs that are valid, or invalid in one chosen way.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};

/// A self-signed root for one trust domain.
#[derive(Debug)]
pub struct Authority {
    trust_domain: String,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// What a leaf shall say. [`Svid::of`] is right in every way.
#[derive(Debug, Clone)]
pub struct Svid {
    uris: Vec<String>,
    validity: Validity,
}

/// When a leaf is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Validity {
    Now,
    Past,
    Future,
}

/// Three PEM files.
#[derive(Debug, Clone)]
pub struct Files {
    /// The leaf, alone.
    pub certificate: PathBuf,
    /// Its key (PKCS#8).
    pub private_key: PathBuf,
    /// The root.
    pub trust_bundle: PathBuf,
}

impl Svid {
    /// `spiffe://<trust_domain>/ns/<namespace>/sa/<service_account>`, valid now.
    pub fn of(trust_domain: &str, namespace: &str, service_account: &str) -> Self {
        Self::uri(format!("spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}"))
    }

    /// Any URI as the only subject alternative name.
    pub fn uri(uri: impl Into<String>) -> Self {
        Self { uris: vec![uri.into()], validity: Validity::Now }
    }

    /// A second URI: not an SVID any more (SPIFFE X509-SVID §2).
    #[must_use]
    pub fn and_uri(mut self, uri: impl Into<String>) -> Self {
        self.uris.push(uri.into());
        self
    }

    /// Ended in 2001.
    #[must_use]
    pub fn expired(mut self) -> Self {
        self.validity = Validity::Past;
        self
    }

    /// Begins in 2099.
    #[must_use]
    pub fn not_yet_valid(mut self) -> Self {
        self.validity = Validity::Future;
        self
    }
}

impl Authority {
    /// A new root with a new key.
    ///
    /// Errors: none in practice; those of the key generator.
    pub fn new(trust_domain: &str) -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, format!("{trust_domain} root"));
        params.subject_alt_names = vec![SanType::URI(format!("spiffe://{trust_domain}").try_into()?)];
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        Ok(Self { trust_domain: trust_domain.to_owned(), issuer })
    }

    /// The trust domain it was made for.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// The root, PEM.
    pub fn root(&self) -> String {
        self.issuer.pem()
    }

    /// Signs a leaf with a new key: certificate and key, PEM.
    ///
    /// Errors: a URI that is not ASCII.
    pub fn sign(&self, svid: &Svid) -> Result<(String, String)> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        for uri in &svid.uris {
            let uri = uri.as_str().try_into().with_context(|| format!("the URI {uri:?}"))?;
            params.subject_alt_names.push(SanType::URI(uri));
        }
        (params.not_before, params.not_after) = match svid.validity {
            Validity::Now => (date_time_ymd(2020, 1, 1), date_time_ymd(2090, 1, 1)),
            Validity::Past => (date_time_ymd(2000, 1, 1), date_time_ymd(2001, 1, 1)),
            Validity::Future => (date_time_ymd(2099, 1, 1), date_time_ymd(2100, 1, 1)),
        };
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let leaf = params.signed_by(&key, &self.issuer)?;
        Ok((leaf.pem(), key.serialize_pem()))
    }

    /// Signs, and writes `cert.pem`, `key.pem` and `ca.pem` into `directory`.
    ///
    /// Errors: as [`Authority::sign`], or the files cannot be written.
    pub fn write(&self, svid: &Svid, directory: &Path) -> Result<Files> {
        let (certificate, private_key) = self.sign(svid)?;
        let write = |name: &str, text: String| {
            let path = directory.join(name);
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
            anyhow::Ok(path)
        };
        Ok(Files {
            private_key: write("key.pem", private_key)?,
            trust_bundle: write("ca.pem", self.root())?,
            // Last: whoever watches the files sees a key that fits.
            certificate: write("cert.pem", certificate)?,
        })
    }
}
