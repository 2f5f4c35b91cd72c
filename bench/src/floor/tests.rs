use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::*;

/// Starts both relays in front of `server`; returns the outbound relay's and the inbound relay's address.
async fn relays(server: SocketAddr, certs: &Certs, buffer: usize) -> (SocketAddr, SocketAddr) {
    let inbound = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let inbound_address = inbound.local_addr().unwrap();
    tokio::spawn(Relay::new(Side::Inbound, server, certs, buffer).unwrap().serve(inbound));
    let outbound = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let outbound_address = outbound.local_addr().unwrap();
    tokio::spawn(Relay::new(Side::Outbound, inbound_address, certs, buffer).unwrap().serve(outbound));
    (outbound_address, inbound_address)
}

/// The client sends everything and closes its half; only then the server, having seen the end, answers.
#[tokio::test]
async fn bytes_pass_both_ways_and_half_close_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let certs = Certs::create(dir.path()).unwrap();
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap();
    // Larger than the buffer and than a TLS record, and no multiple of either.
    let sent: Vec<u8> = (0..300_007_u32).map(|i| u8::try_from(i % 251).unwrap()).collect();
    let served = tokio::spawn(async move {
        let (mut stream, _) = server.accept().await.unwrap();
        let mut seen = Vec::new();
        stream.read_to_end(&mut seen).await.unwrap();
        let answer: Vec<u8> = seen.iter().rev().copied().collect();
        stream.write_all(&answer).await.unwrap();
        stream.shutdown().await.unwrap();
        seen
    });
    let (outbound, _) = relays(address, &certs, 16 * 1024).await;

    let exchange = async {
        let mut client = TcpStream::connect(outbound).await.unwrap();
        client.write_all(&sent).await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        answer
    };
    let answer = timeout(Duration::from_secs(20), exchange).await.expect("no end of stream came through");
    assert!(served.await.unwrap() == sent, "the server saw other bytes than were sent");
    assert!(answer.iter().rev().eq(sent.iter()), "the client saw another answer than was sent");
}

/// The other direction: the server closes its half first and still reads what the client sends afterwards.
#[tokio::test]
async fn the_server_may_close_its_half_first() {
    let dir = tempfile::tempdir().unwrap();
    let certs = Certs::create(dir.path()).unwrap();
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap();
    let served = tokio::spawn(async move {
        let (mut stream, _) = server.accept().await.unwrap();
        stream.write_all(b"greeting").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut seen = Vec::new();
        stream.read_to_end(&mut seen).await.unwrap();
        seen
    });
    let (outbound, _) = relays(address, &certs, 16 * 1024).await;

    let exchange = async {
        let mut client = TcpStream::connect(outbound).await.unwrap();
        let mut greeting = Vec::new();
        client.read_to_end(&mut greeting).await.unwrap();
        client.write_all(b"late words").await.unwrap();
        client.shutdown().await.unwrap();
        (greeting, served.await.unwrap())
    };
    let (greeting, late) = timeout(Duration::from_secs(20), exchange).await.expect("the exchange hangs");
    assert_eq!(greeting, b"greeting");
    assert_eq!(late, b"late words");
}

/// The hop is TLS: plain bytes to the inbound relay never reach the server.
#[tokio::test]
async fn plain_bytes_to_the_inbound_relay_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let certs = Certs::create(dir.path()).unwrap();
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (_, inbound) = relays(server.local_addr().unwrap(), &certs, 16 * 1024).await;

    let mut client = TcpStream::connect(inbound).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let ended = timeout(Duration::from_secs(20), client.read_to_end(&mut answer)).await;
    assert!(ended.is_ok(), "the relay kept the connection open");
    assert!(!answer.starts_with(b"HTTP/"));
    assert!(timeout(Duration::from_millis(1), server.accept()).await.is_err(), "the server was reached");
}
