//! Opening connections: TCP with our mark, and mesh TLS on it with the peer's identity checked.
//! Invariant: no byte of an application is sent on a connection whose peer is not the expected one.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use rustls::pki_types::ServerName;
use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use weft_core::{failure::Failure, identity::Identity};
use weft_redirect::original_dst::set_mark;

use super::verdict;
use crate::{
    stream::{Stream, kernel::notice_gone, tls_error},
    telemetry::Metrics,
    tls::{ALPN_HTTP, ALPN_TCP, ALPN_VERDICT, CurrentTls, handshake, verify},
};

/// How to open connections.
#[derive(Clone, Debug)]
pub(crate) struct Dialer {
    /// SO_MARK of our own connections; `None` where the kernel does not let us, or nothing is captured.
    pub(crate) mark: Option<u32>,
    pub(crate) tls: Arc<CurrentTls>,
    /// Counts handshakes.
    pub(crate) metrics: Arc<Metrics>,
}

impl Dialer {
    /// Opens a plain TCP connection.
    pub(crate) async fn tcp(&self, address: SocketAddr, within: Duration) -> Result<TcpStream, Failure> {
        match timeout(within, self.connect(address)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(Failure::socket(error)),
            Err(_elapsed) => Err(Failure::ConnectTimeout),
        }
    }

    /// Opens mesh TLS for HTTP to the proxy that captures the traffic of `address`, and checks the peer's identity.
    pub(crate) async fn mesh(
        &self,
        address: SocketAddr,
        expected: &Identity,
        within: Duration,
    ) -> Result<Stream, Failure> {
        Ok(self.handshake(address, expected, &[ALPN_HTTP], within).await?.0)
    }

    /// The same for opaque bytes, and waits for the peer's verdict: the application was reached, unless the peer is of a kind that
    /// does not say. `within`: the time until the handshake is done.
    pub(crate) async fn opaque(
        &self,
        address: SocketAddr,
        expected: &Identity,
        within: Duration,
    ) -> Result<Stream, Failure> {
        let (mut stream, alpn) = self.handshake(address, expected, &[ALPN_VERDICT, ALPN_TCP], within).await?;
        if alpn == ALPN_VERDICT {
            verdict::read(&mut stream).await?;
        }
        Ok(stream)
    }

    async fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if let Some(mark) = self.mark {
            set_mark(&socket, mark)?;
        }
        socket.set_nodelay(true)?;
        notice_gone(&socket);
        socket.connect(address).await
    }

    /// Opens mesh TLS with one of the `offered` ALPN names, and checks the peer's identity. Returns the stream and the name that the
    /// peer chose.
    pub(crate) async fn handshake(
        &self,
        address: SocketAddr,
        expected: &Identity,
        offered: &[&[u8]],
        within: Duration,
    ) -> Result<(Stream, Vec<u8>), Failure> {
        let handshake = async {
            let tls = self.tls.load_full().ok_or(Failure::NotConfigured)?;
            let tcp = self.connect(address).await.map_err(Failure::socket)?;
            let (config, offer) = tls.client(offered, address, expected);
            let name = ServerName::IpAddress(address.ip().into());
            let established = handshake::connect(tls.records, config, name, tcp).await.map_err(refused)?;
            let peer = verify::expect(established.peer, expected).map_err(|text| Failure::PeerIdentity(text.into()))?;
            let Some(alpn) = established.alpn.filter(|alpn| offered.contains(&&alpn[..])) else {
                return Err(Failure::PeerIdentity("the peer does not speak the mesh's hop".into()));
            };
            offer.keep_until(peer.not_after);
            self.metrics.event("weft_tls_handshakes_total", &[("direction", "outbound"), ("kind", established.kind)]);
            Ok((Stream::Tls(established.session), alpn))
        };
        timeout(within, handshake).await.unwrap_or(Err(Failure::ConnectTimeout))
    }
}

/// A plain TCP connection as a stream.
pub(crate) fn plain(stream: TcpStream) -> Stream {
    Stream::tcp(stream, Bytes::new())
}

/// What a failed handshake means.
fn refused(error: io::Error) -> Failure {
    match tls_error(&error) {
        Some(rustls::Error::InvalidCertificate(reason)) => Failure::PeerIdentity(format!("{reason:?}").into()),
        Some(rustls::Error::AlertReceived(_)) => Failure::IdentityRefused,
        Some(_) | None => Failure::Handshake(Arc::new(error)),
    }
}
