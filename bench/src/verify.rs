//! Verification before a measurement: a pair must return the right answer, and serve nothing to a wrong identity.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::certs::{Certs, Identity};
use crate::scenario::Protocol;
use crate::server::BODY;

/// How an inbound proxy wants to be spoken to.
#[derive(Clone, Copy, Debug)]
pub struct Hop {
    /// The ALPN name of the hop.
    pub alpn: &'static str,
    /// The HTTP version of the hop.
    pub protocol: Protocol,
    /// The HTTP version of the caller, which Weft's hop carries in a field of its own.
    pub caller: Protocol,
}

/// Longest wait for one probe.
const PATIENCE: Duration = Duration::from_secs(5);

/// One request to `address` in the clear must be answered 200 with the server's body.
///
/// # Errors
/// Anything else.
pub async fn answers(address: SocketAddr, protocol: Protocol) -> Result<()> {
    if protocol == Protocol::Tcp {
        return timeout(PATIENCE, async { echo(TcpStream::connect(address).await?).await })
            .await
            .context("no echo within 5 s")?;
    }
    let exchange = async {
        let stream = TcpStream::connect(address).await?;
        request(stream, protocol, protocol, address).await
    };
    let (status, body) = timeout(PATIENCE, exchange).await.context("no response within 5 s")??;
    check_answer(status, &body)
}

/// The inbound proxy at `address` must serve the allowed identity and refuse another one that the same CA signed.
/// Both go the same way, so that a refusal is of the identity and of nothing else.
///
/// # Errors
/// The allowed identity is refused or the other one is served.
pub async fn refuses_strangers(address: SocketAddr, hop: Hop, certs: &Certs) -> Result<()> {
    let (status, body) = over_tls(address, hop, certs, Identity::Client)
        .await
        .with_context(|| format!("the inbound proxy does not serve {}", Identity::Client.spiffe_id()))?;
    check_answer(status, &body).with_context(|| format!("inbound, as {}", Identity::Client.spiffe_id()))?;
    match over_tls(address, hop, certs, Identity::Stranger).await {
        Ok((StatusCode::FORBIDDEN, body)) => {
            ensure!(body != BODY, "the inbound proxy responds with 403 to a wrong identity, but sends the content");
            Ok(())
        }
        Ok((status, _)) => {
            bail!(
                "the inbound proxy responded with {status} to {}, which no policy allows",
                Identity::Stranger.spiffe_id()
            )
        }
        Err(error) if error.is::<tokio::time::error::Elapsed>() => {
            Err(error.context("the inbound proxy does not respond to a wrong identity"))
        }
        // An alert or a closed connection is a refusal too.
        Err(_) => Ok(()),
    }
}

/// The inbound proxy at `address` must refuse a client without a certificate: for pairs with an unknown hop protocol.
///
/// # Errors
/// Such a client is served.
pub async fn refuses_the_nameless(address: SocketAddr, certs: &Certs) -> Result<()> {
    let exchange = async {
        let stream = TcpStream::connect(address).await?;
        let name = ServerName::IpAddress(Ipv4Addr::LOCALHOST.into());
        let config = Arc::new(certs.nameless_client_config()?);
        let mut stream = TlsConnector::from(config).connect(name, stream).await?;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: server\r\nconnection: close\r\n\r\n").await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        anyhow::Ok(answer)
    };
    match timeout(PATIENCE, exchange).await {
        // nginx answers 400 to a client without a certificate, others close the connection.
        Ok(Ok(answer)) => {
            ensure!(!answer.starts_with(b"HTTP/1.1 200"), "the inbound proxy serves a client without a certificate");
            Ok(())
        }
        Ok(Err(_)) => Ok(()),
        Err(_) => bail!("the inbound proxy does not respond to a client without a certificate"),
    }
}

/// What is sent to the server of opaque bytes comes back.
async fn echo<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) -> Result<()> {
    // No protocol begins like this, so protocol detection treats the bytes as opaque.
    let sent = [0; 64];
    stream.write_all(&sent).await?;
    stream.flush().await?;
    let mut received = [1; 64];
    stream.read_exact(&mut received).await?;
    ensure!(received == sent, "the echoed bytes differ from the sent ones");
    Ok(())
}

async fn over_tls(address: SocketAddr, hop: Hop, certs: &Certs, identity: Identity) -> Result<(StatusCode, Bytes)> {
    let config = Arc::new(certs.client_config(identity, &[hop.alpn])?);
    let exchange = async {
        let stream = TcpStream::connect(address).await?;
        let name = ServerName::IpAddress(Ipv4Addr::LOCALHOST.into());
        let stream = TlsConnector::from(config).connect(name, stream).await.context("TLS handshake")?;
        if hop.protocol == Protocol::Tcp {
            echo(stream).await?;
            return Ok((StatusCode::OK, Bytes::from_static(BODY.as_bytes())));
        }
        request(stream, hop.protocol, hop.caller, address).await
    };
    timeout(PATIENCE, exchange).await?
}

async fn request<S>(stream: S, protocol: Protocol, caller: Protocol, address: SocketAddr) -> Result<(StatusCode, Bytes)>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let io = TokioIo::new(stream);
    // The connections run until the sender is dropped; their errors reach the sender too.
    let (status, body) = match protocol {
        Protocol::Http1 => {
            let (mut sender, connection) = http1::handshake(io).await?;
            let connection = tokio::spawn(connection);
            let request =
                Request::get("/").header(http::header::HOST, address.to_string()).body(Empty::<Bytes>::new())?;
            let answer = sender.send_request(request).await?;
            let parts = (answer.status(), answer.into_body().collect().await?.to_bytes());
            connection.abort();
            parts
        }
        Protocol::Http2 => {
            let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
            let connection = tokio::spawn(connection);
            let mut request = Request::get(format!("http://{address}/"));
            if caller == Protocol::Http2 {
                request = request.header("weft-version", "2");
            }
            let request = request.body(Empty::<Bytes>::new())?;
            let answer = sender.send_request(request).await?;
            let parts = (answer.status(), answer.into_body().collect().await?.to_bytes());
            connection.abort();
            parts
        }
        Protocol::Tcp => bail!("opaque bytes have no request"),
    };
    Ok((status, body))
}

fn check_answer(status: StatusCode, body: &Bytes) -> Result<()> {
    ensure!(status == StatusCode::OK, "status {status}: {}", String::from_utf8_lossy(body));
    ensure!(body == BODY, "unexpected body: {:?}", String::from_utf8_lossy(body));
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::floor::{Relay, Side};

    /// Answers every connection's first request with `status` and `body`.
    async fn server(status: &'static str, body: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = [0; 4096];
                let length = stream.read(&mut head).await.unwrap();
                assert!(head[..length].ends_with(b"\r\n\r\n"));
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        address
    }

    #[tokio::test]
    async fn only_200_with_the_right_body_is_an_answer() {
        answers(server("200 OK", BODY).await, Protocol::Http1).await.unwrap();
        let error = answers(server("503 Service Unavailable", BODY).await, Protocol::Http1).await.unwrap_err();
        assert!(error.to_string().contains("503"), "{error}");
        let error = answers(server("200 OK", "something else").await, Protocol::Http1).await.unwrap_err();
        assert!(error.to_string().contains("something else"), "{error}");
    }

    /// The floor checks the chain alone, so it serves the wrong identity: exactly what must not pass for a proxy.
    #[tokio::test]
    async fn a_proxy_that_serves_strangers_is_found_out() {
        let dir = tempfile::tempdir().unwrap();
        let certs = Certs::create(dir.path()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = server("200 OK", BODY).await;
        tokio::spawn(Relay::new(Side::Inbound, app, &certs, 16 * 1024).unwrap().serve(listener));
        let hop = Hop { alpn: "http/1.1", protocol: Protocol::Http1, caller: Protocol::Http1 };
        let error = refuses_strangers(address, hop, &certs).await.unwrap_err();
        assert!(error.to_string().contains("sa/stranger, which no policy allows"), "{error:#}");
    }

    /// A port on which nothing is served must not count as "refuses strangers".
    #[tokio::test]
    async fn a_proxy_that_refuses_everybody_is_found_out() {
        let dir = tempfile::tempdir().unwrap();
        let certs = Certs::create(dir.path()).unwrap();
        let closed = crate::server::free_address().unwrap();
        let hop = Hop { alpn: "http/1.1", protocol: Protocol::Http1, caller: Protocol::Http1 };
        let error = refuses_strangers(closed, hop, &certs).await.unwrap_err();
        assert!(error.to_string().contains("does not serve"), "{error:#}");
    }
}
