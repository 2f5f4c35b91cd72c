//! Callers that say too little, too slowly, or garbage: closed in time, and no one else notices.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_rustls::TlsConnector;
use weft_core::{listener::InboundMode, policy::Authorization};

use crate::{
    apps::{direct, fixed_app, mesh, once, raw_app},
    gateway::gateway,
    pair::{Authority, MeshClient, inbound},
};

const SECOND: Duration = Duration::from_secs(1);
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// When the other side closes a connection after `first` was sent, and `drip` each `every`.
async fn closes_after(
    address: std::net::SocketAddr,
    first: &'static [u8],
    drip: Option<(&'static [u8], Duration)>,
) -> Option<Duration> {
    let started = Instant::now();
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut read, mut write) = stream.into_split();
    write.write_all(first).await.unwrap();
    let writer = tokio::spawn(async move {
        if let Some((bytes, every)) = drip {
            loop {
                sleep(every).await;
                if write.write_all(bytes).await.is_err() {
                    return;
                }
            }
        }
        std::future::pending::<()>().await;
        drop(write);
    });
    let mut all = Vec::new();
    let closed = timeout(SECOND * 14, async { while read.read_buf(&mut all).await.unwrap_or(0) != 0 {} }).await.is_ok();
    writer.abort();
    closed.then(|| started.elapsed())
}

#[tokio::test]
async fn stalled_callers_are_closed_after_ten_seconds_and_silent_captured_ones_are_not() {
    let application = fixed_app(200, "ok").await;
    let (proxy, edge) = gateway(application);
    let (_mesh, at) =
        inbound(Authority::new().svid("product", true), application, InboundMode::Strict, Authorization::default());
    let slow = Duration::from_millis(400);
    let mut cases = JoinSet::new();
    for (what, address, first, drip) in [
        ("silent", edge, &b""[..], None),
        ("P", edge, b"P", None),
        ("half preface", edge, &PREFACE[..20], None),
        ("preface only", edge, PREFACE, None),
        ("preface and settings", edge, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0", None),
        ("half head", edge, b"GET / HTTP/1.1\r\nhost: shop", None),
        ("a byte at a time in the request line", edge, b"GET /", Some((&b"a"[..], slow))),
        ("a byte at a time in a field", edge, b"GET / HTTP/1.1\r\nx: ", Some((b"a", slow))),
        ("silent, strict inbound", at, b"", None),
        ("half a ClientHello", at, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", None),
    ] {
        cases.spawn(async move { (what, closes_after(address, first, drip).await) });
    }
    // A captured connection may be silent for as long as its two ends like.
    let (_outbound, captured) = direct(&[application], |_, _| {});
    cases.spawn(async move { ("silent, captured", closes_after(captured, b"", None).await) });
    while let Some(done) = cases.join_next().await {
        let (what, took) = done.unwrap();
        if what == "silent, captured" {
            assert_eq!(took, None, "{what}");
        } else {
            let took = took.unwrap_or_else(|| panic!("{what}: still open"));
            assert!((9_000..12_500).contains(&took.as_millis()), "{what}: {took:?}");
        }
    }
    assert_eq!(proxy.metric("weft_panics_total", &[]), 0.0);
    assert!(once(at, "GET", "/").await.is_empty());
}

#[tokio::test]
async fn a_slow_request_line_does_not_win_another_ten_seconds_for_its_fields() {
    let (_proxy, edge) = gateway(fixed_app(200, "ok").await);
    let started = Instant::now();
    let mut client = TcpStream::connect(edge).await.unwrap();
    client.write_all(b"GET / HTTP/1.1").await.unwrap();
    sleep(SECOND * 8).await;
    client.write_all(b"\r\nhost: shop").await.unwrap();
    let mut all = Vec::new();
    let closed = timeout(SECOND * 10, client.read_to_end(&mut all)).await;
    assert!(closed.is_ok() && started.elapsed() < Duration::from_millis(12_500), "{:?}", started.elapsed());
}

#[tokio::test]
async fn silence_after_the_handshake_of_the_hop_is_closed() {
    let authority = Authority::new();
    let application = fixed_app(200, "ok").await;
    let (_proxy, at) =
        inbound(authority.svid("product", true), application, InboundMode::Strict, Authorization::default());
    let started = Instant::now();
    let mut stream = authority.dial("order", at, b"weft-h2").await;
    let mut all = Vec::new();
    timeout(SECOND * 14, stream.read_to_end(&mut all)).await.expect("closed").ok();
    assert!((9_000..12_500).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
}

/// Byte strings that no honest peer sends.
fn hostile() -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<(String, Vec<u8>)> = (0..60)
        .map(|seed| {
            let mut random = fastrand::Rng::with_seed(seed);
            (format!("random {seed}"), (0..random.usize(1..3000)).map(|_| random.u8(..)).collect())
        })
        .collect();
    let mut hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec();
    all.push(("half a ClientHello".into(), hello.clone()));
    hello.extend([0xff; 600]);
    all.push(("a broken ClientHello".into(), hello));
    all.push(("a TLS alert".into(), b"\x15\x03\x03\x00\x02\x02\x28".to_vec()));
    all.push(("an endless TLS record".into(), [&b"\x16\x03\x01\xff\xff"[..], &[0; 40_000]].concat()));
    for (what, frame) in [
        ("a huge frame", &b"\xff\xff\xff\x00\x00\x00\x00\x00\x01"[..]),
        ("settings on a stream", b"\0\0\0\x04\0\0\0\0\x01"),
        ("data on stream 0", b"\0\0\x01\x00\x01\0\0\0\0x"),
        ("headers that are no HPACK", b"\0\0\x08\x01\x05\0\0\0\x01\xff\xff\xff\xff\xff\xff\xff\xff"),
        ("a window of 0", b"\0\0\x04\x08\0\0\0\0\0\0\0\0\0"),
        ("continuation of nothing", b"\0\0\x01\x09\x04\0\0\0\x01x"),
        ("a push by the client", b"\0\0\x04\x05\x04\0\0\0\x01\0\0\0\x02"),
    ] {
        all.push((what.to_owned(), [PREFACE, b"\0\0\0\x04\0\0\0\0\0", frame].concat()));
    }
    for head in [
        &b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"[..],
        b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\0 HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: \xff\xfe\r\n\r\n",
        b"GET / HTTP/1.1\r\n: empty\r\n\r\n",
        b"\r\n\r\n\r\n",
    ] {
        all.push((String::from_utf8_lossy(head).into_owned(), head.to_vec()));
    }
    all
}

#[tokio::test]
async fn hostile_bytes_hurt_only_the_connection_they_come_on() {
    let authority = Authority::new();
    // Answers whatever comes, so that opaque bytes have somewhere to go too.
    let application = raw_app(|mut stream| async move {
        let mut buffer = vec![0; 4096];
        while stream.read(&mut buffer).await.unwrap_or(0) > 0 {
            if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.is_err() {
                return;
            }
        }
    })
    .await;
    let policy = Authorization::default;
    let (strict, at) = inbound(authority.svid("product", true), application, InboundMode::Strict, policy());
    let (permissive, open) = inbound(authority.svid("product", true), application, InboundMode::Permissive, policy());
    let (edge, gate) = gateway(application);
    let honest = mesh(fixed_app(200, "ok").await, |_, _| {}).await;
    for address in [at, open, gate, honest.address] {
        for (what, bytes) in hostile() {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(&bytes).await.ok();
            stream.shutdown().await.ok();
            let mut all = Vec::new();
            let ended = timeout(SECOND * 3, stream.read_to_end(&mut all)).await;
            assert!(ended.is_ok(), "{what} to {address}: still open after {all:?}");
        }
        let answer = once(honest.address, "GET", "/").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    for proxy in [&strict, &permissive, &edge, &honest.outbound, &honest.inbound] {
        assert_eq!(proxy.metric("weft_panics_total", &[]), 0.0);
    }
}

#[tokio::test]
async fn garbage_inside_mesh_tls_hurts_only_its_connection() {
    let authority = Authority::new();
    let (proxy, at) = inbound(
        authority.svid("product", true),
        fixed_app(200, "ok").await,
        InboundMode::Strict,
        Authorization::default(),
    );
    for (what, bytes) in hostile() {
        let mut stream = authority.dial("order", at, b"weft-h2").await;
        stream.write_all(&bytes).await.ok();
        stream.flush().await.ok();
        stream.shutdown().await.ok();
        let mut all = Vec::new();
        assert!(timeout(SECOND * 3, stream.read_to_end(&mut all)).await.is_ok(), "{what}: still open");
    }
    assert_eq!(proxy.metric("weft_panics_total", &[]), 0.0);
    let stream = authority.dial("order", at, b"weft-h2").await;
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::get("http://product/").body(()).unwrap();
    let (answer, _) = client.send_request(request, true).unwrap();
    assert_eq!(answer.await.unwrap().status(), 200);
}

impl Authority {
    /// Mesh TLS to a proxy, as account `account`.
    pub(crate) async fn dial(&self, account: &str, at: std::net::SocketAddr, alpn: &[u8]) -> MeshClient {
        let config = self.client(account, alpn);
        let name = rustls::pki_types::ServerName::IpAddress(at.ip().into());
        TlsConnector::from(config).connect(name, TcpStream::connect(at).await.unwrap()).await.unwrap()
    }
}

crate::records::with_rustls! {
    silence_after_the_handshake_of_the_hop_is_closed
    garbage_inside_mesh_tls_hurts_only_its_connection
}
