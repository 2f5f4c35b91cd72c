//! Opening connections: TCP with our mark, and mesh TLS on it with the peer's identity checked.
//! Invariant: no byte of an application is sent on a connection whose peer is not the expected one.

use std::{collections::HashMap, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpSocket, TcpStream},
    time::{sleep, timeout},
};
use weft_core::{failure::Failure, identity::Identity};
use weft_redirect::original_dst::set_mark;

use super::verdict;
use crate::{
    stream::{Stream, kernel::notice_gone, tls_error},
    telemetry::Metrics,
    tls::{ALPN_HTTP, ALPN_TCP, ALPN_VERDICT, CurrentTls, handshake, unix_now, verify},
};

/// How to open connections.
#[derive(Clone, Debug)]
pub(crate) struct Dialer {
    /// SO_MARK of our own connections; `None` where the kernel does not let us, or nothing is captured.
    pub(crate) mark: Option<u32>,
    pub(crate) tls: Arc<CurrentTls>,
    /// Counts handshakes.
    pub(crate) metrics: Arc<Metrics>,
    /// By address: the end of the newest certificate that we have shown there, Unix seconds.
    pub(crate) shown: Arc<Mutex<HashMap<SocketAddr, i64>>>,
}

/// Addresses of which is remembered what was shown there.
const MAX_SHOWN: usize = 16_384;
/// Longest handshake that shows a new certificate.
const SHOW: Duration = Duration::from_secs(10);
/// How long a SYN to the workload on this host waits for its answer before another is sent instead.
const AGAIN: Duration = Duration::from_millis(250);
/// Pauses between two looks for a newer certificate, at least.
const LOOK: Duration = Duration::from_secs(1);

impl Dialer {
    /// Opens a plain TCP connection.
    pub(crate) async fn tcp(&self, address: SocketAddr, within: Duration) -> Result<TcpStream, Failure> {
        match timeout(within, self.connect(address)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(Failure::socket(error)),
            Err(_elapsed) => Err(Failure::ConnectTimeout),
        }
    }

    /// Opens a plain TCP connection to the workload on this host. No segment is lost on the way there: a SYN without an answer found
    /// the queue of the application full. The kernel sends the next ones after seconds, for all callers at once, and ever later; a
    /// fresh one goes out here about every [`AGAIN`].
    pub(crate) async fn near(&self, address: SocketAddr, within: Duration) -> Result<TcpStream, Failure> {
        let connect = async {
            loop {
                // At random, so that those who wait do not come together.
                if let Ok(connected) = timeout(AGAIN.mul_f64(0.75 + 0.5 * fastrand::f64()), self.connect(address)).await
                {
                    return connected.map_err(Failure::socket);
                }
            }
        };
        timeout(within, connect).await.unwrap_or(Err(Failure::ConnectTimeout))
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
    /// does not say. `within`: the time until the handshake is done, and unless it is the default, until the verdict.
    pub(crate) async fn opaque(
        &self,
        address: SocketAddr,
        expected: &Identity,
        within: Duration,
    ) -> Result<Stream, Failure> {
        let (mut stream, alpn) = self.handshake(address, expected, &[ALPN_VERDICT, ALPN_TCP], within).await?;
        if alpn == ALPN_VERDICT {
            verdict::read(&mut stream, within).await?;
        }
        Ok(stream)
    }

    /// Shows the peer each new certificate of ours, so that connections that outlive the one of their handshake live on. Opens a
    /// connection for that where none was opened since; never ends.
    pub(crate) async fn keep_proven(&self, address: SocketAddr, expected: &Identity) -> ! {
        loop {
            let shown = self.shown.lock().get(&address).copied().unwrap_or(i64::MIN);
            let current = self.tls.load().as_ref().map_or(i64::MIN, |tls| tls.not_after);
            if current > shown {
                // Others with connections to the same peer leave it to this one.
                self.show(address, current);
                let showed = async {
                    let (mut stream, _) = self.handshake(address, expected, &[ALPN_HTTP], SHOW).await?;
                    // The end of the handshake leaves with it.
                    stream.shutdown().await.map_err(Failure::socket)
                };
                if let Err(failure) = showed.await {
                    tracing::debug!(%address, failure = %failure.report(), "a new certificate was not shown");
                    self.show(address, shown);
                }
            }
            // A certificate is renewed well before its end: three looks in the rest of its time, or soon after a failure.
            let left = u64::try_from(current.saturating_sub(unix_now())).unwrap_or(0);
            let pause = Duration::from_secs(left.min(24 * 3600) / 4).max(LOOK);
            sleep(pause.mul_f64(0.8 + 0.2 * fastrand::f64())).await;
        }
    }

    fn show(&self, address: SocketAddr, not_after: i64) {
        let mut shown = self.shown.lock();
        if shown.len() >= MAX_SHOWN && !shown.contains_key(&address) {
            shown.clear();
        }
        shown.insert(address, not_after);
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
            self.show(address, tls.not_after);
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
