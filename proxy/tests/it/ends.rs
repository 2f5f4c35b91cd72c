//! An error is not an end: what breaks off arrives as a reset behind the bytes that came before it, and an end as an end.

use std::{io::ErrorKind, net::SocketAddr, time::Duration};

use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::TcpStream,
    sync::mpsc,
    time::{sleep, timeout},
};
use weft_core::{
    listener::{AccessLog, InboundMode},
    policy::{Authorization, Operation, Principal, Rule},
};
use weft_proxy::listener::socket::Role;

use crate::{
    apps::{Mesh, direct, mesh, raw_app, read_head, until},
    pair::{Authority, Proxy, endpoint_set, identity, inbound, inbound_model, outbound, outbound_model, service},
    traffic::exchange,
};

const WAIT: Duration = Duration::from_secs(20);
const SWITCH: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n";
const ASK: &str = "GET / HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: x\r\n\r\n";

/// Resets a connection.
fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// What came, and how it ended: an error is `None`.
async fn read_all(stream: &mut TcpStream) -> (Vec<u8>, Option<()>) {
    let mut all = Vec::new();
    match timeout(WAIT, stream.read_to_end(&mut all)).await.expect("an end or an error") {
        Ok(_) => (all, Some(())),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            (all, None)
        }
    }
}

/// An application that ends as its caller tells it by a letter, and tells how its caller ended.
async fn obeying() -> (SocketAddr, mpsc::Receiver<(Vec<u8>, Option<()>)>) {
    let (told, ended) = mpsc::channel(8);
    let application = raw_app(move |stream| obey(stream, told.clone())).await;
    (application, ended)
}

async fn obey(mut stream: TcpStream, told: mpsc::Sender<(Vec<u8>, Option<()>)>) {
    // A first byte that is that of no HTTP.
    assert_eq!(stream.read_u8().await.unwrap(), 0);
    match stream.read_u8().await {
        Ok(b'R') => {
            stream.write_all(b"abc").await.unwrap();
            reset(stream);
        }
        Ok(b'F') => stream.write_all(b"abc").await.unwrap(),
        Ok(b'U') => {
            stream.write_all(b"abc").await.unwrap();
            // Closed with unread bytes, the kernel resets it.
            stream.peek(&mut [0]).await.unwrap();
        }
        Ok(b'M') => {
            stream.write_all(&vec![b'm'; 600_000]).await.unwrap();
            // All of it is with the proxies, or in their kernel, before the reset.
            sleep(Duration::from_millis(300)).await;
            reset(stream);
        }
        Ok(_) => told.send(read_all(&mut stream).await).await.unwrap(),
        Err(_) => {}
    }
}

/// Checks every way in which a connection may end, from a fresh one for each.
async fn every_end(open: impl AsyncFn() -> TcpStream, ended: &mut mpsc::Receiver<(Vec<u8>, Option<()>)>) {
    for (letter, end) in [(b"\0R", None), (b"\0F", Some(())), (b"\0U", None)] {
        let mut client = open().await;
        client.write_all(letter).await.unwrap();
        if letter == b"\0U" {
            client.write_all(b"unread").await.unwrap();
        }
        assert_eq!(read_all(&mut client).await, (b"abc".to_vec(), end), "the application ends by {letter:?}");
    }
    let mut client = open().await;
    client.write_all(b"\0M").await.unwrap();
    // It reads only after the application has reset.
    sleep(Duration::from_millis(800)).await;
    let (all, end) = read_all(&mut client).await;
    assert_eq!((all.len(), end), (600_000, None), "everything before the error");
    for resets in [true, false] {
        let mut client = open().await;
        client.write_all(b"\0Kabc").await.unwrap();
        sleep(Duration::from_millis(100)).await;
        if resets {
            reset(client);
        } else {
            drop(client);
        }
        let heard = timeout(WAIT, ended.recv()).await.expect("the application hears of it").unwrap();
        assert_eq!(heard, (b"abc".to_vec(), (!resets).then_some(())), "the caller resets: {resets}");
    }
}

/// (5)
#[tokio::test]
async fn a_reset_of_opaque_bytes_arrives_as_a_reset_and_an_end_as_an_end() {
    let (application, mut ended) = obeying().await;
    let mesh = mesh(application, |_, _| {}).await;
    every_end(async || TcpStream::connect(mesh.address).await.unwrap(), &mut ended).await;
    for (proxy, flag, count) in [
        (&mesh.outbound, "UC", 3.0),
        (&mesh.outbound, "DC", 1.0),
        (&mesh.inbound, "UC", 3.0),
        (&mesh.inbound, "DC", 1.0),
    ] {
        let flag = format!("flag=\"{flag}\"");
        let counted = until(WAIT, || proxy.metric("weft_failures_total", &[&flag]) == count).await;
        assert!(counted.is_some(), "{flag}: {}", proxy.metrics());
    }
}

/// (5) Nothing is between but the two ends.
#[tokio::test]
async fn a_reset_passes_without_a_hop_too() {
    let (application, mut ended) = obeying().await;
    let (_proxy, address) = direct(&[application], |_, _| {});
    every_end(async || TcpStream::connect(address).await.unwrap(), &mut ended).await;
}

/// (5)
#[tokio::test]
async fn a_reset_inside_a_tunnel_arrives_as_a_reset() {
    let (told, mut ended) = mpsc::channel(8);
    let application = raw_app(move |mut stream| {
        let told = told.clone();
        async move {
            read_head(&mut stream).await;
            stream.write_all(SWITCH).await.unwrap();
            obey(stream, told).await;
        }
    })
    .await;
    let mesh = mesh(application, |_, _| {}).await;
    let open = async || {
        let mut client = TcpStream::connect(mesh.address).await.unwrap();
        assert!(exchange(&mut client, ASK, "\r\n\r\n").await.starts_with("HTTP/1.1 101"));
        client
    };
    every_end(open, &mut ended).await;
    let failed = || mesh.outbound.metric("weft_failures_total", &["flag=\"UC\""]) == 3.0;
    assert!(until(WAIT, failed).await.is_some(), "{}", mesh.outbound.metrics());
}

/// (5)
#[tokio::test]
async fn an_answer_that_ends_with_its_connection_is_reset_when_it_breaks_off() {
    let application = raw_app(|mut stream| async move {
        let head = read_head(&mut stream).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nsome of it").await.unwrap();
        if head.contains("/reset") {
            sleep(Duration::from_millis(100)).await;
            reset(stream);
        }
    })
    .await;
    let mesh = mesh(application, |_, _| {}).await;
    for version in ["1.0", "1.1"] {
        for (path, whole) in [("/reset", false), ("/end", true)] {
            let mut client = TcpStream::connect(mesh.address).await.unwrap();
            let ask = format!("GET {path} HTTP/{version}\r\nhost: a\r\nconnection: close\r\n\r\n");
            client.write_all(ask.as_bytes()).await.unwrap();
            let (all, end) = read_all(&mut client).await;
            assert!(String::from_utf8_lossy(&all).contains("some of it"), "{version} {path}");
            // In HTTP/1.1 the last chunk is the end (RFC 9112 §8).
            let ended = end.is_some() && (version == "1.0" || all.ends_with(b"0\r\n\r\n"));
            assert_eq!(ended, whole, "{version} {path}");
        }
    }
}

/// A relay on the path between the proxies, which ends both directions of every connection by a FIN when told.
pub(crate) async fn path_to(to: SocketAddr) -> (SocketAddr, tokio::sync::watch::Sender<bool>) {
    let (cut, cuts) = tokio::sync::watch::channel(false);
    let address = raw_app(move |client| {
        let mut cuts = cuts.clone();
        async move {
            let server = TcpStream::connect(to).await.unwrap();
            let (mut client, mut server) = (client, server);
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                _ = cuts.wait_for(|cut| *cut) => {}
            }
            client.shutdown().await.ok();
            server.shutdown().await.ok();
            sleep(Duration::from_secs(2)).await;
        }
    })
    .await;
    (address, cut)
}

/// (5) RFC 8446 §6.1, RFC 9112 §9.8.
#[tokio::test]
async fn a_hop_that_is_cut_without_close_notify_is_an_error_on_both_sides() {
    let (told, mut ended) = mpsc::channel(8);
    let application = raw_app(move |mut stream| {
        let told = told.clone();
        async move {
            let mut first = [0; 4];
            stream.read_exact(&mut first).await.unwrap();
            if &first == b"GET " {
                stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            }
            stream.write_all(b"some of it").await.unwrap();
            let end = if &first == b"GET " { None } else { read_all(&mut stream).await.1 };
            told.send(end).await.unwrap();
            sleep(WAIT).await;
        }
    })
    .await;
    let authority = Authority::new();
    let (_inbound, at) =
        inbound(authority.svid("product", true), application, InboundMode::Strict, Authorization::default());
    for ask in ["PING\r\n", "GET / HTTP/1.0\r\n\r\n", "GET / HTTP/1.1\r\nhost: a\r\n\r\n"] {
        let (path, cut) = path_to(at).await;
        let endpoints = [(path, Some(identity("product")))];
        let (_outbound, address) = outbound(Some(authority.svid("order", true)), &endpoints, |_, _| {});
        let mut client = TcpStream::connect(address).await.unwrap();
        let answer = exchange(&mut client, ask, "some of it").await;
        assert!(answer.contains("some of it"), "{ask}: {answer}");
        cut.send_replace(true);
        let (rest, end) = read_all(&mut client).await;
        let whole = end.is_some() && (!ask.contains("1.1") || rest.ends_with(b"0\r\n\r\n"));
        assert!(!whole, "{ask}: the caller");
        assert_eq!(timeout(WAIT, ended.recv()).await.unwrap().unwrap(), None, "{ask}: the application");
    }
}

/// A pair of proxies that log everything.
async fn logged(application: SocketAddr) -> Mesh {
    let authority = Authority::new();
    let start = |tls| Proxy::start_with(Some(tls), |shared| shared.access_log = Some(AccessLog::All));
    let (inbound, outbound) = (start(authority.svid("product", true)), start(authority.svid("order", true)));
    inbound.shared.live.replace(inbound_model(InboundMode::Strict, Authorization::default())).unwrap();
    let at = inbound.listen(Role::Inbound(Some(application)));
    outbound.shared.live.replace(outbound_model(|_, _| {})).unwrap();
    outbound.shared.live.set_endpoints(&endpoint_set(&[(at, Some(identity("product")))]));
    let address = outbound.listen(Role::Outbound(Some(service())));
    Mesh { outbound, inbound, address }
}

/// The same with an application that echoes, in a tunnel and outside of one, or answers HTTP/1.0 without an end.
async fn echo() -> Mesh {
    let application = raw_app(|mut stream| async move {
        let mut first = [0; 4];
        stream.read_exact(&mut first).await.unwrap();
        if &first == b"GET " {
            let head = read_head(&mut stream).await.unwrap();
            let answer = if head.contains("HTTP/1.0") { b"HTTP/1.0 200 OK\r\n\r\nsome of it" } else { SWITCH };
            stream.write_all(answer).await.unwrap();
        } else {
            stream.write_all(&first).await.unwrap();
        }
        let (mut read, mut write) = stream.split();
        copy(&mut read, &mut write).await.ok();
        sleep(WAIT).await;
    })
    .await;
    logged(application).await
}

/// The only line of a proxy's log.
async fn line(proxy: &Proxy) -> String {
    assert!(until(WAIT, || proxy.log().ends_with('\n')).await.is_some(), "no line");
    proxy.log()
}

/// (5)
#[tokio::test]
async fn what_policy_takes_back_is_reset_and_its_line_has_its_bytes() {
    for ask in ["", ASK] {
        let mesh = echo().await;
        let mut client = TcpStream::connect(mesh.address).await.unwrap();
        if !ask.is_empty() {
            exchange(&mut client, ask, "\r\n\r\n").await;
        }
        assert_eq!(exchange(&mut client, "PING\r\n", "PING\r\n").await, "PING\r\n");
        let rule = Rule { name: "shop/no#0".into(), from: vec![Principal::Any], to: vec![Operation::default()] };
        let deny = Authorization { deny: vec![rule], allow: None };
        mesh.inbound.shared.live.replace(inbound_model(InboundMode::Strict, deny)).unwrap();
        assert_eq!(read_all(&mut client).await.1, None, "{ask}");
        for (proxy, flag) in [(&mesh.inbound, "RBAC"), (&mesh.outbound, "UC")] {
            let line = line(proxy).await;
            for part in [&format!("\"flag\":\"{flag}\""), "\"bytes_sent\":6", "\"bytes_received\":6"] {
                assert!(line.contains(part), "{part} in {line}");
            }
        }
    }
}

/// (5) What the proxy itself cuts when the drain timeout is over.
#[tokio::test]
async fn what_is_cut_at_the_end_of_draining_is_reset_and_logged_as_that() {
    for ask in ["", ASK, "GET / HTTP/1.0\r\n\r\n"] {
        let mesh = echo().await;
        let mut client = TcpStream::connect(mesh.address).await.unwrap();
        if !ask.is_empty() {
            exchange(&mut client, ask, if ask.contains("1.0") { "some of it" } else { "\r\n\r\n" }).await;
        }
        if !ask.contains("1.0") {
            exchange(&mut client, "PING\r\n", "PING\r\n").await;
        }
        mesh.outbound.worker.connections.stop();
        assert_eq!(read_all(&mut client).await.1, None, "{ask}");
        let line = line(&mesh.outbound).await;
        assert!(line.contains("\"flag\":\"STOP\"") && !line.contains("\"bytes_received\":0"), "{line}");
    }
}

crate::records::with_rustls! {
    a_reset_of_opaque_bytes_arrives_as_a_reset_and_an_end_as_an_end
    a_hop_that_is_cut_without_close_notify_is_an_error_on_both_sides
    what_policy_takes_back_is_reset_and_its_line_has_its_bytes
}

/// (6)
#[tokio::test]
async fn a_caller_that_closes_is_heard_by_the_application_and_one_that_half_closes_is_served() {
    let (told, mut heard) = mpsc::channel(8);
    let application = raw_app(move |mut stream| {
        let told = told.clone();
        async move {
            let head = read_head(&mut stream).await.unwrap();
            let mut rest = Vec::new();
            let end = stream.read_to_end(&mut rest).await;
            told.send(end.is_ok() && rest.is_empty()).await.unwrap();
            if head.contains("/served") {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nserved").await.unwrap();
            }
        }
    })
    .await;
    let mesh = mesh(application, |_, _| {}).await;
    let (_proxy, direct) = direct(&[application], |_, _| {});
    for address in [mesh.address, direct] {
        for version in ["1.0", "1.1"] {
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(format!("GET / HTTP/{version}\r\nhost: a\r\n\r\n").as_bytes()).await.unwrap();
            sleep(Duration::from_millis(100)).await;
            drop(client);
            assert!(timeout(WAIT, heard.recv()).await.expect("the application hears of it").unwrap(), "{version}");
            let mut client = TcpStream::connect(address).await.unwrap();
            let ask = format!("GET /served HTTP/{version}\r\nhost: a\r\n\r\n");
            client.write_all(ask.as_bytes()).await.unwrap();
            client.shutdown().await.unwrap();
            let (answer, end) = read_all(&mut client).await;
            assert!(String::from_utf8_lossy(&answer).ends_with("served") && end.is_some(), "{version}: {answer:?}");
            assert!(heard.recv().await.unwrap());
        }
    }
}
