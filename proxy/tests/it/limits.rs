//! Limits: of a cluster, of heads, of the proxy. What is above is refused at once, and what is below goes on.

use std::{net::SocketAddr, time::Duration};

use http::Request;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::{Instant, sleep, timeout},
};
use weft_core::{listener::InboundMode, policy::Authorization};
use weft_proxy::listener::{socket::Role, spread::Spread};

use crate::{
    apps::{direct, empty, fixed_app, get, http2_app, http2_client, mesh, once, raw, raw_app, read_head, text, until},
    pair::{Authority, Proxy, identity},
    traffic::{exchange, mirror},
};

/// The longest wait for what must come.
const PATIENCE: Duration = Duration::from_secs(10);
const SECOND: Duration = Duration::from_secs(1);
/// In which a refusal must be there, on a quiet machine with optimised code; tests run beside each other without it.
const AT_ONCE: Duration = Duration::from_millis(if cfg!(debug_assertions) { 250 } else { 50 });

/// An application that answers a while after each request.
async fn slow() -> SocketAddr {
    raw_app(|mut stream| async move {
        while read_head(&mut stream).await.is_some() {
            sleep(SECOND / 2).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.ok();
        }
    })
    .await
}

#[tokio::test]
async fn requests_above_the_limit_of_a_cluster_are_refused_at_once_and_the_others_are_not_hurt() {
    type Set = fn(&mut weft_core::cluster::Limits);
    for (what, set) in
        [("requests", (|limits| limits.requests = 2) as Set), ("connections", |limits| limits.connections = 2)]
    {
        let (proxy, address) = direct(&[slow().await], |cluster, _| set(&mut cluster.limits));
        let running: Vec<_> = (0..2).map(|_| tokio::spawn(async move { once(address, "GET", "/").await })).collect();
        sleep(Duration::from_millis(100)).await;
        let started = Instant::now();
        let answer = once(address, "GET", "/").await;
        assert!(started.elapsed() < AT_ONCE, "{what}: {:?}", started.elapsed());
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("weft-error: UO"), "{what}: {answer}");
        assert!(answer.contains(what), "{what}: {answer}");
        for call in running {
            assert!(call.await.unwrap().starts_with("HTTP/1.1 200"), "{what}");
        }
        let answer = once(address, "GET", "/").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{what}: what has ended makes room: {answer}");
        assert_eq!(proxy.metric("weft_ejections_total", &[]), 0.0, "{what}");
    }
}

#[tokio::test]
async fn only_so_many_requests_wait_for_a_connection() {
    // It takes TCP connections and never answers the TLS handshake.
    let dead = raw_app(|mut stream| async move {
        stream.read_to_end(&mut Vec::new()).await.ok();
    })
    .await;
    let endpoints = [(dead, Some(identity("product")))];
    let (_proxy, address) =
        crate::pair::outbound(Some(Authority::new().svid("order", true)), &endpoints, |cluster, _| {
            cluster.limits.pending = 1;
        });
    let waiting = tokio::spawn(async move { once(address, "GET", "/").await });
    sleep(Duration::from_millis(100)).await;
    let started = Instant::now();
    let answer = once(address, "GET", "/").await;
    assert!(started.elapsed() < AT_ONCE, "{:?}", started.elapsed());
    assert!(answer.contains("weft-error: UO") && answer.contains("pending"), "{answer}");
    waiting.abort();
}

#[tokio::test]
async fn heads_above_a_limit_are_refused_at_once_in_http1() {
    let mesh = mesh(mirror().await, |_, _| {}).await;
    let fields = |count: usize| (0..count).map(|i| format!("x-{i}: 1\r\n")).collect::<String>();
    let head = |line: &str, rest: &str| format!("GET {line} HTTP/1.1\r\nhost: a\r\n{rest}\r\n");
    let filler = |size: usize| format!("x-fill: {}\r\n", "a".repeat(size));
    for (what, request, status) in [
        ("100 fields", head("/", &fields(99)), "200"),
        ("101 fields", head("/", &fields(100)), "431"),
        ("15 KiB", head("/", &filler(15 * 1024)), "200"),
        ("17 KiB", head("/", &filler(17 * 1024)), "431"),
        (
            "15 KiB in 90 fields",
            head("/", &(0..90).map(|i| format!("x-{i}: {}\r\n", "a".repeat(160))).collect::<String>()),
            "200",
        ),
        ("7 KiB URI", head(&format!("/{}", "a".repeat(7 * 1024)), ""), "200"),
        ("9 KiB URI", head(&format!("/{}", "a".repeat(9 * 1024)), ""), "414"),
        ("1 MiB", head("/", &filler(1024 * 1024)), "431"),
    ] {
        let mut client = TcpStream::connect(mesh.address).await.unwrap();
        let (mut read, mut write) = client.split();
        let started = Instant::now();
        let mut answer = Vec::new();
        let reading = async {
            while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
                if read.read_buf(&mut answer).await.unwrap_or(0) == 0 {
                    break;
                }
            }
        };
        let (_written, _read) = tokio::join!(write.write_all(request.as_bytes()), timeout(SECOND * 2, reading));
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{what}: {answer}");
        let took = started.elapsed();
        assert!(status == "200" || took < AT_ONCE, "{what}: {took:?}");
    }
    let mut client = TcpStream::connect(mesh.address).await.unwrap();
    let answer = exchange(&mut client, "GET / HTTP/1.1\r\nhost: a\r\n\r\n", "/sa/order").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "others go on: {answer}");
}

#[tokio::test]
async fn heads_above_a_limit_are_refused_at_once_in_http2() {
    let application = http2_app(|_| async { http::Response::new(crate::apps::full("ok")) }).await;
    let mesh = mesh(application, |_, _| {}).await;
    let fields = |count: usize, name: &'static str, size: usize| {
        let mut request = Request::get("http://product/");
        for i in 0..count {
            let name = if name == "cookie" { name.to_owned() } else { format!("{name}-{i}") };
            request = request.header(name, "a".repeat(size));
        }
        request.body(empty()).unwrap()
    };
    for (what, request, status) in [
        ("100 fields", fields(100, "x", 1), 200),
        ("101 fields", fields(101, "x", 1), 431),
        ("101 crumbs of a cookie", fields(101, "cookie", 1), 431),
        ("15 KiB", fields(5, "x", 3 * 1024 - 50), 200),
        ("17 KiB", fields(1, "x", 17 * 1024), 431),
        ("9 KiB URI", get(&format!("/{}", "a".repeat(9 * 1024))), 414),
    ] {
        let mut client = http2_client(mesh.address).await;
        let started = Instant::now();
        let answer = timeout(SECOND * 2, client.send_request(request)).await.expect(what);
        let took = started.elapsed();
        assert_eq!(answer.as_ref().map(|answer| answer.status().as_u16()).ok(), Some(status), "{what}: {answer:?}");
        assert!(status == 200 || took < AT_ONCE, "{what}: {took:?}");
        let answer = client.send_request(get("/")).await.expect("the connection goes on");
        assert_eq!(text(answer).await.unwrap(), "ok", "{what}");
    }
    // So large that no HTTP/2 peer takes it: whatever happens, it happens at once and to this connection only.
    let mut client = http2_client(mesh.address).await;
    let started = Instant::now();
    let answer = timeout(SECOND * 2, client.send_request(fields(64, "x", 16 * 1024))).await.expect("at once");
    assert!(answer.is_err() || answer.is_ok_and(|answer| answer.status() == 431));
    assert!(started.elapsed() < SECOND, "{:?}", started.elapsed());
    let mut client = http2_client(mesh.address).await;
    assert_eq!(client.send_request(get("/")).await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_proxy_takes_only_so_many_connections_silent_ones_included() {
    let application = fixed_app(200, "ok").await;
    let proxy = Proxy::start_with(None, |shared| shared.spread = Spread::new(1, 3, 3).0);
    let model = crate::pair::inbound_model(InboundMode::Permissive, Authorization::default());
    proxy.shared.live.replace(model).unwrap();
    let address = proxy.listen(Role::Inbound(Some(application)));
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut client = TcpStream::connect(address).await.unwrap();
        assert!(exchange(&mut client, "GET / HTTP/1.1\r\nhost: a\r\n\r\n", "ok").await.starts_with("HTTP/1.1 200"));
        held.push(client);
    }
    let mut half = TcpStream::connect(address).await.unwrap();
    half.write_all(b"GET / HT").await.unwrap();
    sleep(Duration::from_millis(50)).await;
    let (answer, closed) = raw(address, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", SECOND).await;
    assert!(closed && answer.is_empty(), "{answer}");
    assert_eq!(proxy.metric("weft_failures_total", &["flag=\"UO\""]), 1.0);
    drop(half);
    held.clear();
    assert!(until(SECOND, || proxy.worker.connections.is_empty()).await.is_some());
    sleep(Duration::from_millis(50)).await;
    assert!(once(address, "GET", "/").await.starts_with("HTTP/1.1 200"));
}

/// (33)
#[tokio::test]
async fn one_source_does_not_take_the_connections_of_others_nor_those_of_the_workload() {
    let application = fixed_app(200, "ok").await;
    let proxy = Proxy::start_with(None, |shared| shared.spread = Spread::new(1, 6, 3).0);
    let mut model = crate::pair::inbound_model(InboundMode::Permissive, Authorization::default());
    let outbound = crate::pair::outbound_model(|_, _| {});
    model.listeners.extend(outbound.listeners);
    model.routes.extend(outbound.routes);
    model.clusters.extend(outbound.clusters);
    proxy.shared.live.replace(model).unwrap();
    proxy.shared.live.set_endpoints(&crate::pair::endpoint_set(&[(application, None)]));
    let address = proxy.listen(Role::Inbound(Some(application)));
    let calls = proxy.listen(Role::Outbound(Some(crate::pair::service())));
    let ask = async |source: [u8; 4]| {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((source, 0).into()).unwrap();
        let mut client = socket.connect(address).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let mut answer = vec![0; 12];
        client.read_exact(&mut answer).await.ok().map(|_| client)
    };
    let mut held = Vec::new();
    for taken in [true, true, true, false, false] {
        let client = ask([127, 0, 0, 1]).await;
        assert_eq!(client.is_some(), taken);
        held.extend(client);
    }
    assert_eq!(proxy.metric("weft_failures_total", &["flag=\"UO\""]), 2.0);
    assert!(ask([127, 0, 0, 2]).await.is_some(), "another source has its own share");
    assert!(once(calls, "GET", "/").await.starts_with("HTTP/1.1 200"), "and so has the workload");
    drop(held);
    assert!(until(SECOND * 5, || proxy.worker.connections.is_empty()).await.is_some());
    assert!(ask([127, 0, 0, 1]).await.is_some());
}

/// (8) RFC 6298: with its queue full the kernel of the application drops SYNs, which ours repeats after 1 and 3 s.
#[tokio::test]
async fn an_application_that_stands_still_for_two_seconds_costs_no_request() {
    let listener = TcpSocket::new_v4().unwrap();
    listener.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = listener.listen(1).unwrap();
    let application = listener.local_addr().unwrap();
    // Callers beside the mesh fill the queue.
    let mut full = Vec::new();
    while let Ok(client) = timeout(SECOND / 4, TcpStream::connect(application)).await {
        full.push(client.unwrap());
    }
    let mesh = mesh(application, |_, _| {}).await;
    let mut asked = tokio::task::JoinSet::new();
    for method in ["GET", "POST", "GET", "POST"] {
        asked.spawn(async move { once(mesh.address, method, "/").await });
    }
    sleep(SECOND * 2).await;
    drop(full);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                while read_head(&mut stream).await.is_some() {
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.ok();
                }
            });
        }
    });
    while let Some(answer) = asked.join_next().await {
        let answer = answer.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

/// (20.33) An identity has many addresses, and an address many identities: the proxies here have one address.
#[tokio::test]
async fn one_identity_does_not_take_the_connections_of_others() {
    let application = raw_app(|mut stream| async move {
        let mut first = [0; 4];
        if stream.read_exact(&mut first).await.is_ok() && &first == b"POST" {
            read_head(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.ok();
        } else {
            stream.write_all(&first).await.ok();
            stream.read_to_end(&mut Vec::new()).await.ok();
        }
    })
    .await;
    let authority = Authority::new();
    let tls = Some(authority.svid("product", true));
    let proxy = Proxy::start_with(tls, |shared| shared.spread = Spread::with_shares(1, 100, 100, 3).0);
    let strict = crate::pair::inbound_model(InboundMode::Strict, Authorization::default());
    proxy.shared.live.replace(strict).unwrap();
    let at = proxy.listen(Role::Inbound(Some(application)));
    let of = |account: &str| {
        crate::pair::outbound(Some(authority.svid(account, true)), &[(at, Some(identity("product")))], |_, _| {})
    };
    let opened = async |address: SocketAddr| {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"\0abc").await.unwrap();
        let mut echo = [0; 4];
        let read = timeout(PATIENCE, client.read_exact(&mut echo)).await.expect("an answer or an end");
        read.ok().map(|_| client)
    };
    let (_orders, order) = of("order");
    let (_others, other) = of("cart");
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(opened(order).await.expect("within the share"));
    }
    assert!(opened(order).await.is_none(), "the share is taken");
    let refused = once(order, "POST", "/").await;
    assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
    let post = proxy.metric("weft_requests_total", &["direction=\"inbound\""]);
    assert_eq!(post, 0.0, "it did not reach the proxy's requests");
    assert!(proxy.metric("weft_failures_total", &["flag=\"UO\""]) >= 2.0, "{}", proxy.metrics());
    assert!(once(other, "POST", "/").await.starts_with("HTTP/1.1 200"), "nobody else is refused");
    assert!(opened(other).await.is_some());
    held.clear();
    assert!(until(PATIENCE, || proxy.worker.connections.len() <= 1).await.is_some());
    sleep(Duration::from_millis(50)).await;
    assert!(opened(order).await.is_some(), "what has ended is forgotten");
    assert!(once(order, "POST", "/").await.starts_with("HTTP/1.1 200"));
}
