//! Traffic through a pair of proxies, with raw sockets at both ends.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use weft_core::{
    listener::InboundMode,
    policy::{Authorization, Operation, Principal, Rule},
};

use crate::pair::{Authority, Proxy, identity, inbound, outbound};

const SECOND: Duration = Duration::from_secs(1);

/// An application on raw sockets: `answer` gets what one `read` gave, and its result is written back.
pub(crate) async fn application(answer: impl Fn(&[u8]) -> Vec<u8> + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut buffer = vec![0; 65536];
                while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                    let answer = answer(&buffer[..count]);
                    if answer.is_empty() || stream.write_all(&answer).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    address
}

/// An HTTP/1 application that answers with the request's head as its body.
pub(crate) async fn mirror() -> SocketAddr {
    application(|request| {
        let mut response = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", request.len()).into_bytes();
        response.extend(request);
        response
    })
    .await
}

/// Sends bytes and reads until `end` has come, or the connection ends.
pub(crate) async fn exchange(stream: &mut TcpStream, request: &str, end: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let read = async {
        while !String::from_utf8_lossy(&answer).contains(end) {
            if stream.read_buf(&mut answer).await.unwrap_or(0) == 0 {
                break;
            }
        }
    };
    timeout(SECOND * 5, read).await.ok();
    String::from_utf8_lossy(&answer).into_owned()
}

struct Mesh {
    outbound: Proxy,
    inbound: Proxy,
    address: SocketAddr,
    inbound_address: SocketAddr,
}

async fn mesh(application: SocketAddr, mode: InboundMode, authorization: Authorization) -> Mesh {
    let authority = Authority::new();
    let (inbound, at) = inbound(authority.svid("product", true), application, mode, authorization);
    let endpoints = [(at, Some(identity("product")))];
    let (outbound, address) = outbound(Some(authority.svid("order", true)), &endpoints, |_, _| {});
    Mesh { outbound, inbound, address, inbound_address: at }
}

async fn plain_mesh(application: SocketAddr) -> Mesh {
    mesh(application, InboundMode::Strict, Authorization::default()).await
}

#[tokio::test]
async fn requests_cross_the_hop_and_the_application_learns_who_calls() {
    let mesh = plain_mesh(mirror().await).await;
    let mut client = TcpStream::connect(mesh.address).await.unwrap();
    for _ in 0..3 {
        let answer =
            exchange(&mut client, "GET /a?b=c HTTP/1.1\r\nHost: product:80\r\nX-One: 1\r\n\r\n", "/sa/order").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("GET /a?b=c HTTP/1.1\r\nHost: product:80\r\n"), "{answer}");
        assert!(answer.contains("weft-client-id: spiffe://weft.local/ns/shop/sa/order"), "{answer}");
        assert!(!answer.contains("via:") && !answer.contains("date:"), "{answer}");
    }
    let labels =
        ["direction=\"outbound\"", "destination=\"svc/shop/product:80\"", "status=\"2xx\"", "security=\"mtls\""];
    assert_eq!(mesh.outbound.metric("weft_requests_total", &labels), 3.0);
    let labels = ["direction=\"inbound\"", "source=\"shop/order\"", "status=\"2xx\""];
    assert_eq!(mesh.inbound.metric("weft_requests_total", &labels), 3.0);
}

#[tokio::test]
async fn reserved_fields_of_callers_are_stripped() {
    let mesh = plain_mesh(mirror().await).await;
    let mut client = TcpStream::connect(mesh.address).await.unwrap();
    let request =
        "GET / HTTP/1.1\r\nhost: a\r\nweft-client-id: spiffe://weft.local/ns/x/sa/y\r\nweft-version: 2\r\n\r\n";
    let answer = exchange(&mut client, request, "/sa/order").await;
    assert!(answer.contains("weft-client-id: spiffe://weft.local/ns/shop/sa/order"), "{answer}");
    assert!(!answer.contains("/sa/y") && !answer.contains("weft-version"), "{answer}");
}

#[tokio::test]
async fn bodies_stream_both_ways() {
    let mesh = plain_mesh(mirror().await).await;
    let mut client = TcpStream::connect(mesh.address).await.unwrap();
    let request = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let answer = exchange(&mut client, request, "hello").await;
    assert!(answer.contains("hello"), "{answer}");
}

#[tokio::test]
async fn a_websocket_upgrade_becomes_a_tunnel() {
    let application = application(|bytes| {
        if bytes.starts_with(b"GET") {
            assert!(String::from_utf8_lossy(bytes).contains("upgrade: websocket"));
            b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: x\r\n\r\n"
                .to_vec()
        } else {
            [b"echo ", bytes].concat()
        }
    })
    .await;
    let mesh = plain_mesh(application).await;
    let mut client = TcpStream::connect(mesh.address).await.unwrap();
    let request =
        "GET /ws HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-key: y\r\n\r\n";
    let answer = exchange(&mut client, request, "\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    assert!(answer.contains("sec-websocket-accept: x") && answer.contains("upgrade: websocket"), "{answer}");
    assert_eq!(exchange(&mut client, "one", "echo one").await, "echo one");
    assert_eq!(exchange(&mut client, "two", "echo two").await, "echo two");
}

#[tokio::test]
async fn opaque_bytes_pass_and_so_does_a_server_that_speaks_first() {
    let mesh = plain_mesh(application(|bytes| [b"+", bytes].concat()).await).await;
    let mut client = TcpStream::connect(mesh.address).await.unwrap();
    assert_eq!(exchange(&mut client, "*1\r\n$4\r\nPING\r\n", "PING\r\n").await, "+*1\r\n$4\r\nPING\r\n");

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let greeter = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            stream.write_all(b"220 hello\r\n").await.unwrap();
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.unwrap();
            stream.write_all(b"bye").await.unwrap();
        }
    });
    let mesh = plain_mesh(greeter).await;
    for _ in 0..2 {
        let mut client = TcpStream::connect(mesh.address).await.unwrap();
        let mut greeting = [0; 11];
        timeout(SECOND, client.read_exact(&mut greeting)).await.expect("the greeting does not wait for us").unwrap();
        assert_eq!(&greeting, b"220 hello\r\n");
        client.write_all(b"QUIT").await.unwrap();
        client.shutdown().await.unwrap();
        let mut rest = String::new();
        client.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "bye");
    }
}

#[tokio::test]
async fn a_client_that_waits_before_it_speaks_http_is_still_http() {
    let mesh = plain_mesh(mirror().await).await;
    let mut client = TcpStream::connect(mesh.address).await.unwrap();
    tokio::time::sleep(SECOND / 10).await;
    let answer = exchange(&mut client, "GET / HTTP/1.1\r\nhost: a\r\n\r\n", "/sa/order").await;
    assert!(answer.contains("weft-client-id"), "{answer}");
}

#[tokio::test]
async fn a_denied_request_names_its_rule_in_the_metric() {
    let rule = Rule {
        name: "shop/pay#0".into(),
        from: vec![Principal::Identity(identity("order"))],
        to: vec![Operation {
            paths: vec![weft_core::policy::PathPattern::Prefix("/secret".into())],
            ..Operation::default()
        }],
    };
    let policy = Authorization { deny: vec![rule], allow: None };
    let mesh = mesh(mirror().await, InboundMode::Strict, policy).await;
    let mut client = TcpStream::connect(mesh.address).await.unwrap();
    let answer = exchange(&mut client, "GET /secret/x HTTP/1.1\r\nhost: a\r\n\r\n", "\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    let answer = exchange(&mut client, "GET /open HTTP/1.1\r\nhost: a\r\n\r\n", "/sa/order").await;
    assert!(answer.contains("200 OK"), "{answer}");
    assert_eq!(mesh.inbound.metric("weft_denied_total", &["rule=\"shop/pay#0\""]), 1.0);
}

#[tokio::test]
async fn a_peer_with_another_identity_gets_nothing() {
    let authority = Authority::new();
    let (_inbound, at) =
        inbound(authority.svid("other", true), mirror().await, InboundMode::Strict, Authorization::default());
    let (outbound, address) =
        outbound(Some(authority.svid("order", true)), &[(at, Some(identity("product")))], |_, _| {});
    let mut client = TcpStream::connect(address).await.unwrap();
    let answer = exchange(&mut client, "GET / HTTP/1.1\r\nhost: a\r\n\r\n", "\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("PEERID"), "{answer}");
    assert_eq!(outbound.metric("weft_failures_total", &["flag=\"PEERID\""]), 1.0);
}

#[tokio::test]
async fn certificates_that_are_expired_or_from_another_root_are_refused_both_ways() {
    let (ours, other) = (Authority::new(), Authority::new());
    for (client_tls, server_tls, flag) in [
        (ours.svid("order", false), ours.svid("product", true), "OURID"),
        (ours.svid("order", true), ours.svid("product", false), "PEERID"),
        (other.svid("order", true), ours.svid("product", true), "PEERID"),
        (ours.svid("order", true), other.svid("product", true), "PEERID"),
    ] {
        let (_inbound, at) = inbound(server_tls, mirror().await, InboundMode::Permissive, Authorization::default());
        let (_outbound, address) = outbound(Some(client_tls), &[(at, Some(identity("product")))], |_, _| {});
        let mut client = TcpStream::connect(address).await.unwrap();
        let answer = exchange(&mut client, "GET / HTTP/1.1\r\nhost: a\r\n\r\n", "\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains(flag), "{flag}: {answer}");
    }
}

#[tokio::test]
async fn plaintext_is_refused_when_strict_and_taken_when_permissive() {
    for (mode, taken) in [(InboundMode::Strict, false), (InboundMode::Permissive, true)] {
        let authority = Authority::new();
        let (proxy, at) = inbound(authority.svid("product", true), mirror().await, mode, Authorization::default());
        let mut client = TcpStream::connect(at).await.unwrap();
        let answer = exchange(&mut client, "GET / HTTP/1.1\r\nhost: a\r\nweft-client-id: me\r\n\r\n", "host: a").await;
        assert_eq!(answer.contains("200 OK"), taken, "{answer}");
        assert!(!answer.contains("weft-client-id"), "{answer}");
        assert_eq!(proxy.metric("weft_failures_total", &["PLAINTEXT"]), if taken { 0.0 } else { 1.0 });
    }
}

#[tokio::test]
async fn a_post_goes_to_another_instance_when_the_first_application_is_gone() {
    let authority = Authority::new();
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let inbound = |application| {
        inbound(authority.svid("product", true), application, InboundMode::Strict, Authorization::default())
    };
    let ((_one, dead), (_two, alive)) = (inbound(gone), inbound(mirror().await));
    let endpoints = [(dead, Some(identity("product"))), (alive, Some(identity("product")))];
    let (outbound, address) = outbound(Some(authority.svid("order", true)), &endpoints, |_, _| {});
    let mut client = TcpStream::connect(address).await.unwrap();
    for _ in 0..20 {
        let request = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody";
        let answer = exchange(&mut client, request, "body").await;
        assert!(answer.contains("200 OK") && answer.contains("body"), "{answer}");
    }
    assert!(outbound.metric("weft_retries_total", &["cause=\"REFUSED\"", "result=\"tried\""]) >= 1.0);
}

#[tokio::test]
async fn draining_ends_what_is_idle_at_once() {
    let mesh = mesh(mirror().await, InboundMode::Permissive, Authorization::default()).await;
    // In plaintext, and by the other proxy.
    let mut http1 = TcpStream::connect(mesh.inbound_address).await.unwrap();
    exchange(&mut http1, "GET / HTTP/1.1\r\nhost: a\r\n\r\n", "\r\n\r\n").await;
    let mut http2 = crate::apps::http2_client(mesh.address).await;
    http2.send_request(crate::apps::get("/")).await.unwrap();
    assert_eq!(mesh.inbound.worker.connections.len(), 2);
    mesh.inbound.drainer.begin();
    let ended = crate::apps::until(SECOND, || mesh.inbound.worker.connections.is_empty()).await;
    assert!(ended.is_some_and(|took| took < SECOND / 2), "{ended:?}");
}

#[tokio::test]
async fn draining_finishes_what_runs_and_ends_idle_connections() {
    let slow = application(|_| {
        std::thread::sleep(Duration::from_millis(300));
        b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ndone".to_vec()
    });
    // The application blocks its thread, so it gets one of its own.
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            send.send(slow.await).unwrap();
            std::future::pending::<()>().await;
        });
    });
    let mesh = plain_mesh(receive.recv().unwrap()).await;
    let mut client = TcpStream::connect(mesh.address).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    mesh.inbound.drainer.begin();
    mesh.outbound.drainer.begin();
    let mut answer = vec![0; 42];
    timeout(SECOND * 2, client.read_exact(&mut answer)).await.expect("an answer").unwrap();
    assert!(answer.ends_with(b"done"), "{answer:?}");
    let ended = || mesh.inbound.worker.connections.is_empty();
    assert!(crate::apps::until(SECOND * 2, ended).await.is_some());
    assert_eq!(mesh.outbound.worker.connections.len(), 1, "the workload may go on calling");
}

crate::records::with_rustls! {
    requests_cross_the_hop_and_the_application_learns_who_calls
    bodies_stream_both_ways
    a_websocket_upgrade_becomes_a_tunnel
    opaque_bytes_pass_and_so_does_a_server_that_speaks_first
    a_peer_with_another_identity_gets_nothing
    certificates_that_are_expired_or_from_another_root_are_refused_both_ways
    draining_ends_what_is_idle_at_once
    draining_finishes_what_runs_and_ends_idle_connections
}
