//! Connections that live for long, in the time of the runtime: a day takes as long as its timers take to fire.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{TcpListener, TcpSocket, TcpStream},
    time::{Instant, pause, resume, sleep, timeout},
};
use weft_core::{cluster::CONNECT_TIMEOUT, listener::InboundMode, policy::Authorization};

use crate::{
    apps::{mesh, raw, raw_app, read_head},
    pair::{Authority, identity, inbound, outbound},
    traffic::exchange,
};

const MINUTE: Duration = Duration::from_secs(60);
const ASK: &str = "GET / HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: x\r\n\r\n";

/// An application that echoes, in a tunnel and outside of one.
async fn echo() -> SocketAddr {
    raw_app(|mut stream| async move {
        let mut first = [0; 4];
        stream.read_exact(&mut first).await.unwrap();
        if &first == b"GET " {
            read_head(&mut stream).await.unwrap();
            let switch = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n";
            stream.write_all(switch).await.unwrap();
        } else {
            stream.write_all(&first).await.unwrap();
        }
        let (mut read, mut write) = stream.split();
        copy(&mut read, &mut write).await.ok();
    })
    .await
}

/// Opens a tunnel, or a connection of opaque bytes.
async fn open(address: SocketAddr, tunnel: bool) -> TcpStream {
    let mut client = TcpStream::connect(address).await.unwrap();
    if tunnel {
        assert!(exchange(&mut client, ASK, "\r\n\r\n").await.starts_with("HTTP/1.1 101"));
    }
    assert_eq!(exchange(&mut client, "PING\r\n", "PING\r\n").await, "PING\r\n");
    client
}

/// Lets time pass without anything but the timers of this runtime.
async fn pass(time: Duration) {
    pause();
    sleep(time).await;
    resume();
}

/// The error that a connection ends with.
async fn error(client: &mut TcpStream) -> Option<std::io::ErrorKind> {
    let read = timeout(Duration::from_secs(10), client.read(&mut [0])).await.expect("an end or an error");
    read.err().map(|error| error.kind())
}

/// (8) Neither side nor any part of the path has a limit of its own.
#[tokio::test]
async fn an_idle_time_above_an_hour_rules_the_whole_path() {
    let mesh = mesh(echo().await, |cluster, _| cluster.tcp_idle = MINUTE * 120).await;
    for tunnel in [false, true] {
        let mut client = open(mesh.address, tunnel).await;
        pass(MINUTE * 110).await;
        assert_eq!(exchange(&mut client, "PONG\r\n", "PONG\r\n").await, "PONG\r\n", "tunnel: {tunnel}");
        pass(MINUTE * 242).await;
        assert!(error(&mut client).await.is_some(), "ended as an error, tunnel: {tunnel}");
    }
}

/// (10) What ends without a newer certificate ends as an error.
#[tokio::test]
async fn a_connection_outlives_the_certificate_of_its_handshake_where_its_peer_has_renewed() {
    let application = echo().await;
    let authority = Authority::new();
    let (_inbound, at) =
        inbound(authority.svid("product", true), application, InboundMode::Strict, Authorization::default());
    for (renews, tunnel) in [(true, false), (true, true), (false, false), (false, true)] {
        // Each has an identity of its own: a proof counts for all connections of the identity.
        let account = format!("order-{renews}-{tunnel}");
        let tls = authority.svid_for(&account, MINUTE * 10);
        let (outbound, address) = outbound(Some(tls), &[(at, Some(identity("product")))], |_, _| {});
        let mut client = open(address, tunnel).await;
        if renews {
            outbound.shared.tls.store(Some(Arc::new(authority.svid(&account, true))));
        }
        pass(MINUTE * 12).await;
        if renews {
            let answer = exchange(&mut client, "PONG\r\n", "PONG\r\n").await;
            assert_eq!(answer, "PONG\r\n", "tunnel: {tunnel}");
        } else {
            assert!(error(&mut client).await.is_some(), "tunnel: {tunnel}");
        }
    }
}

/// (8) By the default both sides give up after 10 s.
#[tokio::test]
#[ignore = "slow: 35 s in the time of the kernel"]
async fn a_policy_with_more_time_to_connect_rules_towards_the_application_too() {
    let default = CONNECT_TIMEOUT.as_secs_f64();
    for (connect, http, served) in [(30.0, true, true), (30.0, false, true), (5.0, true, false), (default, true, false)]
    {
        let (listener, full) = full().await;
        let mesh = mesh(listener.local_addr().unwrap(), |cluster, forward| {
            cluster.connect_timeout = Duration::from_secs_f64(connect);
            forward.retry.attempts = 1;
        })
        .await;
        let asked = tokio::spawn(async move { ask(mesh.address, http).await });
        sleep(Duration::from_millis(11_500)).await;
        drop(full);
        tokio::spawn(accept(listener));
        let answer = asked.await.unwrap();
        assert_eq!(answer.contains("200 OK"), served, "{connect} s, HTTP: {http}: {answer}");
    }
}

/// (20.8) Shorter than what the callee's proxy waits for by itself.
#[tokio::test]
async fn a_policy_with_less_time_to_connect_rules_towards_the_application_too() {
    let (listener, _full) = full().await;
    let mesh = mesh(listener.local_addr().unwrap(), |cluster, forward| {
        cluster.connect_timeout = Duration::from_millis(1_200);
        forward.retry.attempts = 1;
    })
    .await;
    for http in [true, false] {
        let started = Instant::now();
        let answer = ask(mesh.address, http).await;
        assert!(if http { answer.contains(" 503 ") } else { answer.is_empty() }, "{answer}");
        assert!(started.elapsed() < Duration::from_secs(8), "HTTP: {http}, {:?}", started.elapsed());
    }
}

/// (20.8) The kernel sends a SYN again after a second at the earliest.
#[tokio::test]
async fn an_application_that_has_room_again_is_connected_at_once() {
    let mut times = Vec::new();
    for http in [true, false, true, false] {
        let (listener, full) = full().await;
        let mesh = mesh(listener.local_addr().unwrap(), |_, _| {}).await;
        let started = Instant::now();
        let asked: Vec<_> = (0..20).map(|_| tokio::spawn(async move { ask(mesh.address, http).await })).collect();
        sleep(Duration::from_millis(100)).await;
        drop(full);
        tokio::spawn(accept(listener));
        for asked in asked {
            let answer = asked.await.unwrap();
            assert!(answer.contains("200 OK"), "{answer}");
        }
        times.push(started.elapsed());
    }
    assert!(times.iter().any(|time| *time < Duration::from_millis(900)), "{times:?}");
}

/// An application whose queue is full of connections that it does not accept.
async fn full() -> (TcpListener, Vec<TcpStream>) {
    let listener = TcpSocket::new_v4().unwrap();
    listener.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = listener.listen(1).unwrap();
    let mut full = Vec::new();
    while let Ok(client) = timeout(Duration::from_millis(250), TcpStream::connect(listener.local_addr().unwrap())).await
    {
        full.push(client.unwrap());
    }
    (listener, full)
}

/// Answers every connection.
async fn accept(listener: TcpListener) {
    while let Ok((mut stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            if read_head(&mut stream).await.is_some() {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.ok();
            }
        });
    }
}

/// What comes until the end.
async fn ask(address: SocketAddr, http: bool) -> String {
    let ask = if http { "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n" } else { "PING\r\n\r\n" };
    raw(address, ask.as_bytes(), Duration::from_secs(40)).await.0
}
