//! Connections to the control plane: TCP with the proxy's mark, TLS of `tls::plane`, gRPC on it. `identity`, `discovery` and
//! `agent` have a connection each.
//!
//! # Defaults
//! 5 s to connect; a PING after 10 s of silence with 10 s to answer; backoff of 100 ms, doubled up to 10 s (the agent stream: up
//! to one heartbeat interval, if that is shorter), of which the last half is random.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint, Uri};
use weft_redirect::original_dst::set_mark;

use crate::{
    stream::kernel::notice_stuck,
    tls::{CurrentTls, SvidError, plane},
};

const CONNECT: Duration = Duration::from_secs(5);
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// The address of the control plane.
#[derive(Clone, Debug)]
pub(crate) struct ControlPlane {
    /// `host:port`.
    pub(crate) address: String,
    /// SO_MARK of the connections to it.
    pub(crate) mark: Option<u32>,
}

/// The control plane was not reached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// There is no certificate yet.
    #[error("no certificate yet")]
    NoCertificate,
    /// The proxy's certificate is unusable.
    #[error("the proxy's certificate cannot be used")]
    Svid(#[from] SvidError),
    /// The address is malformed.
    #[error("{address:?} is not host:port")]
    Address {
        /// What it is.
        address: String,
        /// Why.
        #[source]
        source: http::uri::InvalidUri,
    },
    /// No connection.
    #[error("cannot connect to {address}")]
    Connect {
        /// Where.
        address: String,
        /// Why.
        #[source]
        source: tonic::transport::Error,
    },
}

impl ControlPlane {
    /// Connects with the current certificate.
    pub(crate) async fn connect(&self, tls: &CurrentTls) -> Result<Channel, ConnectError> {
        let tls = tls.load_full().ok_or(ConnectError::NoCertificate)?;
        self.connect_with(plane::joined(&tls)?).await
    }

    /// Connects with this TLS.
    pub(crate) async fn connect_with(&self, tls: Arc<ClientConfig>) -> Result<Channel, ConnectError> {
        let uri: Uri = format!("http://{}", self.address)
            .parse()
            .map_err(|source| ConnectError::Address { address: self.address.clone(), source })?;
        let connector = Connector { address: self.address.clone().into(), mark: self.mark, tls };
        Endpoint::from(uri)
            .connect_timeout(CONNECT)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true)
            .connect_with_connector(connector)
            .await
            .map_err(|source| ConnectError::Connect { address: self.address.clone(), source })
    }
}

/// Opens connections for tonic.
#[derive(Clone, Debug)]
struct Connector {
    address: Arc<str>,
    mark: Option<u32>,
    tls: Arc<ClientConfig>,
}

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move { connector.open().await.map(TokioIo::new) })
    }
}

impl Connector {
    async fn open(&self) -> io::Result<TlsStream<TcpStream>> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the host name has no address");
        for address in lookup_host(&*self.address).await? {
            match dial(address, self.mark).await {
                Ok(stream) => {
                    let name = ServerName::IpAddress(address.ip().into());
                    return TlsConnector::from(self.tls.clone()).connect(name, stream).await;
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

/// Opens a TCP connection with a mark.
pub(crate) async fn dial(address: SocketAddr, mark: Option<u32>) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(mark) = mark {
        set_mark(&socket, mark)?;
    }
    socket.set_nodelay(true)?;
    notice_stuck(&socket);
    socket.connect(address).await
}

/// Whether a mark can be set at all.
pub(crate) fn check_mark(mark: u32) -> io::Result<()> {
    set_mark(&TcpSocket::new_v4()?, mark)
}

/// Exponential backoff after failures in a row.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The wait after one more failure. `random` is in 0..1.
    pub(crate) fn next(&mut self, random: f64) -> Duration {
        self.next_within(LONGEST_WAIT, random)
    }

    /// The same, with another longest wait where that is shorter.
    pub(crate) fn next_within(&mut self, longest: Duration, random: f64) -> Duration {
        let doubled = FIRST_WAIT.saturating_mul(1 << self.failures.min(10));
        self.failures = self.failures.saturating_add(1);
        doubled.min(LONGEST_WAIT).min(longest).mul_f64(0.5 + random / 2.0)
    }

    /// Starts again with the shortest wait, after a success.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_ten_seconds_and_are_never_none() {
        let mut backoff = Backoff::default();
        let waits: Vec<u128> = (0..100).map(|_| backoff.next(1.0).as_millis()).collect();
        assert_eq!(&waits[..4], &[100, 200, 400, 800]);
        assert!(waits[7..].iter().all(|wait| *wait == 10_000));
        assert!(backoff.next(0.0) >= Duration::from_secs(5));
        assert_eq!(backoff.next_within(Duration::from_secs(2), 1.0), Duration::from_secs(2));
        assert_eq!(backoff.next_within(Duration::from_secs(60), 1.0), Duration::from_secs(10));
        backoff.reset();
        assert!(backoff.next(0.0) >= Duration::from_millis(50));
    }
}
