//! The service `weft.v1.Identity`: certificates for callers that prove an identity.
//! Shape: proof (join token, or the connection's SVID) -> identity -> key of the request -> certificate.
//! A request is checked before its token is used, so that an invalid request uses up no token. A one-time token may be used
//! again for the same key within two minutes, as the answer may have been lost.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use jiff::Timestamp;
use parking_lot::Mutex;
use rcgen::PublicKeyData;
use tokio::time::Instant;
use tonic::{Request, Response, Status};
use weft_core::identity::Identity;
use weft_proto::weft::v1::{IssueRequest, IssueResponse, identity_server};

use crate::{
    ca::{Authority, RequestedKey},
    metrics::Metrics,
    serve::Peer,
    tokens::{TokenError, Tokens},
};

/// Certificates of one identity in a burst.
const BURST: f64 = 200.0;
/// Certificates of one identity per second, on average.
const PER_SECOND: f64 = 10.0;
/// Identities whose rate is kept; beyond that, those with a full bucket are evicted.
const MAX_REMEMBERED: usize = 20_000;
/// Maximum length of a join token, in bytes.
const MAX_TOKEN_BYTES: usize = 1024;

/// The service.
pub struct Service {
    authority: Arc<Authority>,
    tokens: Tokens,
    ttl: Duration,
    rates: Mutex<BTreeMap<Identity, Rate>>,
    metrics: Arc<Metrics>,
}

impl Service {
    /// The service of an authority; `ttl` is the lifetime of the certificates.
    pub fn new(authority: Arc<Authority>, tokens: Tokens, ttl: Duration, metrics: Arc<Metrics>) -> Self {
        Self { authority, tokens, ttl, rates: Mutex::default(), metrics }
    }

    async fn prove(
        &self,
        peer: Option<&Peer>,
        token: String,
        expected: Option<(String, String)>,
        key: &RequestedKey,
    ) -> Result<Identity, Status> {
        if token.is_empty() {
            let svid = peer.and_then(|peer| peer.svid.as_ref());
            let svid = svid
                .ok_or_else(|| Status::unauthenticated("join_token: needed, as the connection has no certificate"))?;
            if svid.expires <= SystemTime::now() {
                return Err(Status::unauthenticated(
                    "the connection's certificate has expired meanwhile; connect anew",
                ));
            }
            return Ok(svid.identity.clone());
        }
        if token.len() > MAX_TOKEN_BYTES {
            return Err(Status::unauthenticated("join_token: too long"));
        }
        let consumed = self.tokens.consume(&token, key.der_bytes(), expected.as_ref(), Timestamp::now()).await;
        let (namespace, account) = consumed.map_err(|error| match &error {
            TokenError::Store(_) | TokenError::Random(_) | TokenError::AdminFile { .. } | TokenError::TooMany => {
                tracing::error!(error = &error as &dyn std::error::Error, "checking a join token failed");
                Status::unavailable("the token cannot be checked now")
            }
            TokenError::OtherAccount { .. } => Status::permission_denied(format!("join_token: {error}")),
            TokenError::Form(_)
            | TokenError::Unknown
            | TokenError::Expired(_)
            | TokenError::Used
            | TokenError::OtherRoot => Status::unauthenticated(format!("join_token: {error}")),
        })?;
        Identity::new(self.authority.trust_domain(), &namespace, &account)
            .map_err(|error| Status::unauthenticated(format!("join_token: stands for no identity: {error}")))
    }

    fn admit(&self, identity: &Identity, now: Instant) -> Result<(), Status> {
        let mut rates = self.rates.lock();
        if rates.len() >= MAX_REMEMBERED && !rates.contains_key(identity) {
            rates.retain(|_, rate| rate.at(now) < BURST);
        }
        if rates.entry(identity.clone()).or_insert(Rate { left: BURST, since: now }).take(now) {
            return Ok(());
        }
        Err(Status::resource_exhausted(format!(
            "too many certificates for {identity}; at most {PER_SECOND} per second"
        )))
    }
}

#[tonic::async_trait]
impl identity_server::Identity for Service {
    async fn issue(&self, request: Request<IssueRequest>) -> Result<Response<IssueResponse>, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        let IssueRequest { csr, join_token, expected_namespace, expected_service_account } = request.into_inner();
        let expected = (expected_namespace, expected_service_account);
        let expected = (!expected.0.is_empty() && !expected.1.is_empty()).then_some(expected);
        if join_token.is_empty() && peer.as_ref().is_none_or(|peer| peer.svid.is_none()) {
            return Err(Status::unauthenticated("join_token: needed, as the connection has no certificate"));
        }
        let key = RequestedKey::from_csr(&csr).map_err(|error| Status::invalid_argument(format!("csr: {error}")))?;
        let by_token = !join_token.is_empty();
        let identity = self.prove(peer.as_ref(), join_token, expected, &key).await?;
        self.admit(&identity, Instant::now())?;
        let issued = self.authority.issue(&key, &identity, self.ttl, SystemTime::now()).map_err(|error| {
            tracing::error!(error = &error as &dyn std::error::Error, "signing a certificate failed");
            Status::internal("the certificate could not be signed")
        })?;
        self.metrics.certificates_issued.add(1);
        let address = peer.and_then(|peer| peer.address).map(|address| address.to_string()).unwrap_or_default();
        tracing::info!(identity = %identity, serial = issued.serial, by_token, peer = address, "certificate issued");
        Ok(Response::new(IssueResponse {
            certificate_chain: vec![Bytes::copy_from_slice(&issued.certificate)],
            trust_bundle: vec![Bytes::copy_from_slice(self.authority.root())],
        }))
    }
}

/// A token bucket.
#[derive(Clone, Copy, Debug)]
struct Rate {
    left: f64,
    since: Instant,
}

impl Rate {
    fn at(&self, now: Instant) -> f64 {
        (self.left + now.duration_since(self.since).as_secs_f64() * PER_SECOND).min(BURST)
    }

    fn take(&mut self, now: Instant) -> bool {
        self.left = self.at(now);
        self.since = now;
        let admitted = self.left >= 1.0;
        if admitted {
            self.left -= 1.0;
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_a_burst_and_then_so_many_per_second() {
        let start = Instant::now();
        let mut rate = Rate { left: BURST, since: start };
        assert_eq!((0..500).filter(|_| rate.take(start)).count(), 200);
        let second = start + Duration::from_secs(1);
        assert_eq!((0..500).filter(|_| rate.take(second)).count(), 10);
        let hour = start + Duration::from_secs(3600);
        assert_eq!((0..500).filter(|_| rate.take(hour)).count(), 200);
    }
}
