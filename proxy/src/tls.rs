//! TLS: the hop between two proxies, and the only room that knows rustls.
//! Shape: an [`Svid`] (certificate, key, roots) becomes a [`MeshTls`], swapped whole on renewal; connections that are open
//! keep the one they began with.
//!
//! - [`svid`]: parses certificates and keys, and checks that they can be used in the mesh.
//! - [`verify`]: the peer's identity.
//! - [`resumption`]: sessions and tickets, for cheaper handshakes with the same peer.
//! - `handshake`, `session`, `record`: a connection from its first byte to its last. Records are our own, or rustls' where
//!   `spec.tls.records` says so.
//! - `plane`: TLS to the control plane.
//! - [`hello`]: distinguishes mesh TLS from the application's own by the ClientHello.
//!
//! # Defaults
//! TLS 1.3 only; X25519MLKEM768, X25519, P-256, P-384; AES-128-GCM first; client certificate required; resumption
//! within one [`MeshTls`], no 0-RTT; no SNI; ALPN `weft-h2`, `weft-tcp-2` or `weft-tcp`.

mod aead;
pub(crate) mod handshake;
pub mod hello;
pub(crate) mod plane;
mod record;
pub(crate) mod resumption;
pub(crate) mod session;
pub mod svid;
pub mod verify;

use std::{net::SocketAddr, sync::Arc};

use arc_swap::ArcSwapOption;
use rustls::{
    ClientConfig, ServerConfig,
    client::Resumption,
    crypto::{CryptoProvider, aws_lc_rs},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};
use weft_core::{api::proxy_config::TlsRecords, identity::Identity};

pub(crate) use self::svid::unix_now;
pub use self::svid::{Svid, SvidError};
use self::{
    resumption::{Offer, Sessions, TICKETS, Tickets},
    verify::{RootChain, Verifier},
};

/// ALPN of the hop for HTTP of every version.
pub const ALPN_HTTP: &[u8] = b"weft-h2";
/// ALPN of the hop for opaque bytes, where the caller's proxy cannot learn whether the application was reached.
pub const ALPN_TCP: &[u8] = b"weft-tcp";
/// ALPN of the hop for opaque bytes after a verdict (`upstream::verdict`).
pub const ALPN_VERDICT: &[u8] = b"weft-tcp-2";
/// Every ALPN of the hop, the preferred one first.
pub const ALPNS: [&[u8]; 3] = [ALPN_HTTP, ALPN_VERDICT, ALPN_TCP];

/// What a proxy needs to speak mesh TLS in both directions.
#[derive(Debug)]
pub struct MeshTls {
    /// Our SPIFFE ID.
    pub identity: Identity,
    /// When our certificate ends, Unix seconds.
    pub not_after: i64,
    /// What it was built from, for the control plane's client.
    pub svid: Arc<Svid>,
    /// Which record layer its connections have.
    pub records: TlsRecords,
    pub(crate) server: Arc<ServerConfig>,
    /// Without ALPN and sessions: see [`Self::client`].
    client: ClientConfig,
    sessions: Arc<Sessions>,
}

/// The current [`MeshTls`], or none before the first certificate. One atomic pointer.
pub type CurrentTls = ArcSwapOption<MeshTls>;

impl MeshTls {
    /// Builds both directions from one certificate.
    /// Errors: a key that does not fit the certificate, an empty bundle.
    pub fn new(svid: Svid, records: TlsRecords) -> Result<Self, SvidError> {
        Self::with_provider(svid, records, provider())
    }

    pub(crate) fn with_provider(
        svid: Svid,
        records: TlsRecords,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, SvidError> {
        // rustls hands over the keys of a connection only where it may.
        let takes_keys = records == TlsRecords::Weft;
        let roots = Arc::new(svid.roots()?);
        let mut ends = svid.not_after;
        for certificate in &svid.chain {
            ends = ends.min(*svid::validity(certificate)?.end());
        }
        // A proxy has one certificate, so it needs no hint which roots we know.
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone());
        let clients = clients.clear_root_hint_subjects().build()?;
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(clients)
            .with_single_cert(svid.chain.clone(), svid.key.clone_key())?;
        server.alpn_protocols = ALPNS.map(<[u8]>::to_vec).into();
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.ticketer = Arc::new(Tickets::new(ends)?);
        server.send_tls13_tickets = TICKETS;
        server.max_early_data_size = 0;
        server.enable_secret_extraction = takes_keys;
        let mut client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Verifier::new(RootChain::new(roots, &provider), &provider)))
            .with_client_auth_cert(svid.chain.clone(), svid.key.clone_key())?;
        client.resumption = Resumption::disabled();
        client.enable_early_data = false;
        client.enable_sni = false;
        client.enable_secret_extraction = takes_keys;
        Ok(Self {
            identity: svid.identity.clone(),
            not_after: svid.not_after,
            svid: Arc::new(svid),
            records,
            server: Arc::new(server),
            client,
            sessions: Sessions::new(ends),
        })
    }

    /// The client's side of one handshake with `expected` at `address`. It offers sessions made with the same peer; its tickets
    /// are kept once the peer's identity was checked: [`Offer::keep_until`].
    pub(crate) fn client(
        &self,
        alpn: &[&[u8]],
        address: SocketAddr,
        expected: &Identity,
    ) -> (Arc<ClientConfig>, Arc<Offer>) {
        let offer = self.sessions.with(address, expected);
        let mut config = self.client.clone();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        config.resumption = Resumption::store(offer.clone());
        (Arc::new(config), offer)
    }
}

/// The cryptography of the mesh: aws-lc-rs with AES-128-GCM preferred.
pub fn provider() -> Arc<CryptoProvider> {
    use aws_lc_rs::cipher_suite::{TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256};
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256];
    Arc::new(provider)
}

#[cfg(test)]
mod cost;
#[cfg(test)]
pub(crate) mod tests;
