//! New connections to an inbound proxy: TCP, mutual TLS 1.3 with X25519, the HTTP/2 preface, the first byte of its answer.
//! The answer proves that the proxy accepted the client's certificate, and is preceded by the session tickets.
//! Shape: several connections at a time, counted while the proxy's CPU time is measured; resumed ones count only if all resumed.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, HandshakeKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;

use crate::certs::{Certs, Identity};
use crate::measure::CpuTime;

/// Connections at a time.
const AT_A_TIME: usize = 4;
/// Longest wait for one.
const PATIENCE: Duration = Duration::from_secs(5);
/// From the first connection to the clock's start.
const LEAD: Duration = Duration::from_millis(200);
/// The HTTP/2 preface and empty SETTINGS (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// What one kind of connection costs.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Connections for each second of the inbound proxy's CPU.
    pub per_cpu_second: f64,
    /// Connections per second.
    pub rate: f64,
    /// How many of them resumed a session, 0..=1.
    pub resumed: f64,
}

#[derive(Debug, Default)]
struct Count {
    all: AtomicU64,
    resumed: AtomicU64,
}

/// Opens connections to `address` for `time` and counts them, with or without resumption.
///
/// # Errors
/// A connection fails.
pub async fn measure(
    address: SocketAddr,
    inbound: i32,
    certs: &Certs,
    alpn: &str,
    resume: bool,
    time: Duration,
) -> Result<Cost> {
    let mut config = certs.x25519_client_config(Identity::Client, &[alpn])?;
    if resume {
        config.resumption = Resumption::in_memory_sessions(64);
    }
    let (config, count) = (Arc::new(config), Arc::new(Count::default()));
    let mut clients = JoinSet::new();
    for _ in 0..AT_A_TIME {
        clients.spawn(connect_again_and_again(address, Arc::clone(&config), Arc::clone(&count)));
    }
    let window = async {
        sleep(LEAD).await;
        let read = || (count.all.load(Ordering::Relaxed), count.resumed.load(Ordering::Relaxed));
        let (before, cpu) = (read(), CpuTime::read(inbound)?);
        sleep(time.saturating_sub(LEAD)).await;
        let (after, cpu) = (read(), CpuTime::read(inbound)?.since(&cpu).as_secs_f64());
        let all = (after.0 - before.0) as f64;
        ensure!(all > 0.0 && cpu > 0.0, "no connection was made inside the window");
        let seconds = time.saturating_sub(LEAD).as_secs_f64();
        Ok(Cost { per_cpu_second: all / cpu, rate: all / seconds, resumed: (after.1 - before.1) as f64 / all })
    };
    tokio::select! {
        cost = window => cost,
        Some(ended) = clients.join_next() => match ended? {
            Ok(()) => bail!("a client has ended"),
            Err(error) => Err(error),
        },
    }
}

async fn connect_again_and_again(address: SocketAddr, config: Arc<ClientConfig>, count: Arc<Count>) -> Result<()> {
    loop {
        let kind =
            timeout(PATIENCE, connect(address, Arc::clone(&config))).await.context("no connection within 5 s")??;
        count.all.fetch_add(1, Ordering::Relaxed);
        count.resumed.fetch_add(u64::from(kind == HandshakeKind::Resumed), Ordering::Relaxed);
    }
}

async fn connect(address: SocketAddr, config: Arc<ClientConfig>) -> Result<HandshakeKind> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let name = ServerName::IpAddress(Ipv4Addr::LOCALHOST.into());
    let mut stream = TlsConnector::from(config).connect(name, stream).await.context("TLS handshake")?;
    stream.write_all(PREFACE).await?;
    let mut first = [0; 64];
    ensure!(stream.read(&mut first).await? > 0, "the proxy closed the connection after the handshake");
    stream.get_ref().1.handshake_kind().context("no handshake was made")
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::floor::{Relay, Side};

    /// The floor does not resume, so nothing may be called resumed.
    #[tokio::test]
    async fn connections_are_counted_and_full_ones_not_called_resumed() {
        let dir = tempfile::tempdir().unwrap();
        let certs = Certs::create(dir.path()).unwrap();
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = server.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = server.accept().await.unwrap();
                tokio::spawn(async move { stream.write_all(b"hello").await });
            }
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(Relay::new(Side::Inbound, target, &certs, 16 * 1024).unwrap().serve(listener));
        let own = i32::try_from(std::process::id()).unwrap();
        let cost = measure(address, own, &certs, "h2", true, Duration::from_millis(600)).await.unwrap();
        assert!(cost.rate > 1.0 && cost.per_cpu_second > 1.0, "{cost:?}");
        assert_eq!(cost.resumed, 0.0);

        let closed = crate::server::free_address().unwrap();
        measure(closed, own, &certs, "h2", false, Duration::from_secs(1)).await.unwrap_err();
    }
}
