//! Connections that are idle after one request, held while a proxy's memory is read.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::certs::{Certs, Identity};
use crate::server::BODY;
use crate::verify::Hop;

/// Longest wait for one connection.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections from one source address: there are about 28,000 ports for each.
const PER_SOURCE: usize = 5_000;
/// Idle time before memory is read.
pub const SETTLE: Duration = Duration::from_millis(500);

/// Opens `count` plaintext HTTP/1.1 connections to `entry`, each with one request answered.
///
/// # Errors
/// One is refused or not answered.
pub async fn clients(entry: SocketAddr, count: usize) -> Result<Vec<TcpStream>> {
    let mut held = Vec::with_capacity(count);
    for number in 0..count {
        let open = async {
            let mut stream = from_source(number, entry).await?;
            let request = format!("GET / HTTP/1.1\r\nhost: {entry}\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            read_until(&mut stream, BODY.as_bytes()).await?;
            anyhow::Ok(stream)
        };
        held.push(
            timeout(PATIENCE, open).await.context("no answer in time")?.with_context(|| format!("client {number}"))?,
        );
    }
    Ok(held)
}

/// Opens `count` mutual TLS connections to an inbound proxy, each with one HTTP/2 request answered.
///
/// # Errors
/// One is refused or not answered.
pub async fn peers(middle: SocketAddr, hop: Hop, certs: &Certs, count: usize) -> Result<Vec<TlsStream<TcpStream>>> {
    let config = Arc::new(certs.client_config(Identity::Client, &[hop.alpn])?);
    let request = http2_request();
    let mut held = Vec::with_capacity(count);
    for number in 0..count {
        let open = async {
            let stream = from_source(number, middle).await?;
            let name = ServerName::IpAddress(Ipv4Addr::LOCALHOST.into());
            let mut stream = TlsConnector::from(Arc::clone(&config)).connect(name, stream).await?;
            stream.write_all(&request).await?;
            read_until(&mut stream, BODY.as_bytes()).await?;
            anyhow::Ok(stream)
        };
        held.push(
            timeout(PATIENCE, open).await.context("no answer in time")?.with_context(|| format!("peer {number}"))?,
        );
    }
    Ok(held)
}

/// 127.0.0.1 and on, so that ports do not run out.
async fn from_source(number: usize, target: SocketAddr) -> Result<TcpStream> {
    let last = u8::try_from(1 + number / PER_SOURCE)?;
    let socket = TcpSocket::new_v4()?;
    socket.bind((Ipv4Addr::new(127, 0, 0, last), 0).into())?;
    let stream = socket.connect(target).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Preface, SETTINGS, its acknowledgement, and `GET /` on stream 1 with what Weft's hop asks for (`weft-version` as the caller
/// speaks HTTP/2); without dynamic table or Huffman code (RFC 7541 §6.2.2).
fn http2_request() -> Vec<u8> {
    let mut block = vec![0x82, 0x84, 0x86];
    for (name, value) in [(":authority", "server"), ("weft-version", "2")] {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap_or(0));
            block.extend_from_slice(text.as_bytes());
        }
    }
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\0\x04\x01\0\0\0\0".to_vec();
    bytes.extend_from_slice(&[0, 0, u8::try_from(block.len()).unwrap_or(0), 0x01, 0x05, 0, 0, 0, 1]);
    bytes.extend_from_slice(&block);
    bytes
}

async fn read_until<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, end: &[u8]) -> Result<()> {
    let (mut received, mut part) = (Vec::new(), [0; 1024]);
    while !received.windows(end.len()).any(|bytes| bytes == end) {
        let length = stream.read(&mut part).await?;
        ensure!(length > 0, "closed after {:?}", String::from_utf8_lossy(&received));
        received.extend_from_slice(part.get(..length).unwrap_or_default());
        ensure!(received.len() < 16_384, "another answer: {:?}", String::from_utf8_lossy(&received));
    }
    Ok(())
}
