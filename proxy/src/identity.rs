//! The proxy's own identity: a key made here, and a certificate from the control plane, renewed before it expires.
//! Shape: [`Issuer::issue`] gets one [`Svid`]; [`Issuer::keep`] renews [`CurrentTls`] for ever. Open connections keep the
//! certificate of their handshake.
//! Authentication: the current certificate while it is valid, else the join token, which also pins the root of the mesh.
//!
//! - [`files`]: certificates in files, written for other programs and read where there is no control plane.
//!
//! # Defaults
//! Renewal after half of the lifetime that was left at issue, ±10 %; 20 s for one attempt; backoff as `control_plane`.

pub mod files;

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::time::{sleep, timeout};
use weft_core::api::proxy_config::TlsRecords;
use weft_proto::weft::v1::{IssueRequest, IssueResponse, identity_client::IdentityClient};

use crate::{
    config::{Join, TokenSourceError},
    control_plane::{Backoff, ConnectError, ControlPlane},
    tls::{CurrentTls, MeshTls, Svid, SvidError, plane, unix_now},
};

/// Longest time for one attempt.
const TRY: Duration = Duration::from_secs(20);
/// The clock is read at this interval, so that a jump of it is noticed.
const LOOK: Duration = Duration::from_secs(30);
/// A certificate that expires sooner, in seconds, does not authenticate a request.
const MARGIN: i64 = 1;

/// Gets certificates for this proxy.
#[derive(Clone, Debug)]
pub struct Issuer {
    /// The address of the control plane, and the token.
    join: Join,
    plane: ControlPlane,
    records: TlsRecords,
    tls: Arc<CurrentTls>,
    /// Namespace and service account that the proxy's file names.
    expected: (String, String),
    /// The key of a failed attempt with a join token: the answer may have been lost, and then the token is valid again only for
    /// this key.
    tried: Arc<Mutex<Option<Arc<KeyPair>>>>,
}

/// A certificate could not be got.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// There is no join token.
    #[error("no join token")]
    Token(#[from] TokenSourceError),
    /// The key or the request cannot be made.
    #[error("cannot make a key")]
    Key(#[from] rcgen::Error),
    /// There is no connection.
    #[error(transparent)]
    Connect(#[from] ConnectFailed),
    /// The control plane refuses the request.
    #[error("the control plane refuses a certificate: {message}")]
    Refused {
        /// The gRPC status code.
        code: tonic::Code,
        /// The reason that the control plane gives.
        message: String,
    },
    /// The answer takes too long.
    #[error("no answer within {} s", TRY.as_secs())]
    Timeout,
    /// The certificate is unusable.
    #[error("the certificate cannot be used")]
    Unfit(#[from] SvidError),
    /// The trust bundle does not hold the root that the token pins.
    #[error("the trust bundle does not hold the root that the join token pins")]
    OtherRoot,
    /// The certificate is for another workload. It is not put in force.
    #[error(
        "the certificate is for {identity}, and the proxy's file says {namespace}/{account}: use a token, or a certificate, of that account"
    )]
    OtherAccount {
        /// The identity of the certificate.
        identity: String,
        /// The namespace in the proxy's file.
        namespace: String,
        /// The service account in the proxy's file.
        account: String,
    },
}

impl IssueError {
    /// The error and its causes in one line, for people.
    pub(crate) fn chain(&self) -> String {
        let causes = std::iter::successors(Some(self as &dyn std::error::Error), |error| error.source());
        let mut texts: Vec<String> = causes.map(ToString::to_string).collect();
        texts.dedup();
        texts.join(": ")
    }
}

/// The control plane was not reached.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct ConnectFailed(ConnectError);

impl From<ConnectError> for IssueError {
    fn from(error: ConnectError) -> Self {
        Self::Connect(ConnectFailed(error))
    }
}

impl Issuer {
    /// For a proxy with this namespace and service account in its file; certificates go to `tls`.
    pub fn new(
        join: Join,
        mark: Option<u32>,
        records: TlsRecords,
        tls: Arc<CurrentTls>,
        namespace: &str,
        account: &str,
    ) -> Self {
        let plane = ControlPlane { address: join.address.clone(), mark };
        Self { join, plane, records, tls, expected: (namespace.to_owned(), account.to_owned()), tried: Arc::default() }
    }

    /// Gets one certificate for a new key; a failed attempt with a join token is repeated with its key.
    /// Errors: see [`IssueError`]; nothing changes.
    pub async fn issue(&self) -> Result<Svid, IssueError> {
        timeout(TRY, self.request()).await.unwrap_or(Err(IssueError::Timeout))
    }

    async fn request(&self) -> Result<Svid, IssueError> {
        let current = self.tls.load_full().filter(|tls| tls.not_after > unix_now() + MARGIN);
        let key = match &current {
            Some(_) => Arc::new(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?),
            None => self.first_key()?,
        };
        let csr = CertificateParams::default().serialize_request(&*key)?;
        let csr = bytes::Bytes::copy_from_slice(csr.der());
        let (tls, token) = match &current {
            Some(current) => (plane::joined(current)?, None),
            None => {
                let token = self.join.token.token()?;
                (plane::joining(*token.root())?, Some(token))
            }
        };
        let channel = self.plane.connect_with(tls).await?;
        let join_token = token.as_ref().map(|token| token.reveal().to_owned()).unwrap_or_default();
        let (expected_namespace, expected_service_account) = self.expected.clone();
        let request = IssueRequest { csr, join_token, expected_namespace, expected_service_account };
        let answer = IdentityClient::new(channel).issue(request).await;
        let IssueResponse { certificate_chain, trust_bundle } = answer
            .map_err(|status| IssueError::Refused { code: status.code(), message: status.message().to_owned() })?
            .into_inner();
        if let Some(token) = &token
            && !trust_bundle.iter().any(|root| plane::is_root(root, token.root()))
        {
            return Err(IssueError::OtherRoot);
        }
        let der = |all: Vec<bytes::Bytes>| all.into_iter().map(|der| CertificateDer::from(der.to_vec())).collect();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        let svid = Svid::new(der(certificate_chain), key, der(trust_bundle))?;
        *self.tried.lock() = None;
        Ok(svid)
    }

    /// The key for a join token: that of the attempt before, if it failed.
    fn first_key(&self) -> Result<Arc<KeyPair>, rcgen::Error> {
        let mut tried = self.tried.lock();
        if let Some(key) = &*tried {
            return Ok(Arc::clone(key));
        }
        let key = Arc::new(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?);
        *tried = Some(Arc::clone(&key));
        Ok(key)
    }

    /// Gets a certificate and puts it in force.
    pub(crate) async fn renew(&self) -> Result<Arc<MeshTls>, IssueError> {
        let tls = Arc::new(MeshTls::new(self.issue().await?, self.records)?);
        let (namespace, account) = &self.expected;
        if (tls.identity.namespace(), tls.identity.service_account()) != (Some(namespace), Some(account)) {
            let identity = tls.identity.to_string();
            return Err(IssueError::OtherAccount { identity, namespace: namespace.clone(), account: account.clone() });
        }
        self.tls.store(Some(tls.clone()));
        tracing::info!(identity = %tls.identity, not_after = tls.not_after, "certificate in force");
        Ok(tls)
    }

    /// Renews the certificate for ever. `outcome` is called after each attempt.
    pub(crate) async fn keep(self, mut outcome: impl FnMut(Result<&MeshTls, &IssueError>)) {
        let mut backoff = Backoff::default();
        loop {
            match self.renew().await {
                Ok(tls) => {
                    backoff.reset();
                    outcome(Ok(&tls));
                    wait_until(due(unix_now(), tls.not_after, fastrand::f64())).await;
                }
                Err(error) => {
                    outcome(Err(&error));
                    tracing::warn!(error = &error as &dyn std::error::Error, "cannot get a certificate, retrying");
                    sleep(backoff.next(fastrand::f64())).await;
                }
            }
        }
    }
}

/// When to renew a certificate got `now`: after half of its life, ±10 % of it. Unix seconds; `random` is in 0..1.
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "seconds of a certificate's life")]
fn due(now: i64, not_after: i64, random: f64) -> i64 {
    let life = not_after.saturating_sub(now).max(2) as f64;
    now.saturating_add((life * (0.4 + random * 0.2)).max(1.0) as i64)
}

/// Sleeps until this time of the clock, even when the clock is set meanwhile.
async fn wait_until(due: i64) {
    loop {
        let left = due.saturating_sub(unix_now());
        let Ok(left @ 1..) = u64::try_from(left) else { return };
        sleep(Duration::from_secs(left).min(LOOK)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_is_at_half_life_with_jitter_and_never_at_once() {
        assert_eq!((due(0, 86_400, 0.0), due(0, 86_400, 0.5), due(0, 86_400, 1.0)), (34_560, 43_200, 51_840));
        assert!(due(100, 100, 0.0) > 100 && due(100, 0, 0.0) > 100, "an expired certificate makes no tight loop");
    }
}
