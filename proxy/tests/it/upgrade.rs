//! Protocol switches over the hop: data both ways, who closes, and applications that do not want to switch.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{
    apps::{mesh, raw_app, read_head, until},
    traffic::{application, exchange, mirror},
};

const SECOND: Duration = Duration::from_secs(1);
const ASK: &str =
    "GET /ws HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-key: x\r\n\r\n";
const SWITCH: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";

#[tokio::test]
async fn a_tunnel_ends_when_the_application_closes_and_all_bytes_have_arrived() {
    let application = raw_app(|mut stream| async move {
        read_head(&mut stream).await;
        stream.write_all(SWITCH).await.unwrap();
        let mut asked = [0; 5];
        stream.read_exact(&mut asked).await.unwrap();
        stream.write_all(&vec![b'x'; 1_000_000]).await.unwrap();
    })
    .await;
    let mesh = mesh(application, |_, _| {}).await;
    let mut client = TcpStream::connect(mesh.address).await.unwrap();
    assert!(exchange(&mut client, ASK, "\r\n\r\n").await.starts_with("HTTP/1.1 101"));
    client.write_all(b"hello").await.unwrap();
    let mut all = Vec::new();
    timeout(SECOND * 5, client.read_to_end(&mut all)).await.expect("closed").unwrap();
    assert_eq!(all.len(), 1_000_000);
    drop(client);
    let labels = ["destination=\"svc", "status=\"1xx\""];
    assert!(until(SECOND, || mesh.outbound.metric("weft_requests_total", &labels) == 1.0).await.is_some());
    assert_eq!(mesh.outbound.metric("weft_response_bytes_total", &["destination=\"svc"]), 1_000_000.0);
}

/// An application that switches, and tells all that came after when the caller has closed.
async fn listening() -> (std::net::SocketAddr, tokio::sync::mpsc::Receiver<Vec<u8>>) {
    let (told, ended) = tokio::sync::mpsc::channel(1);
    let application = raw_app(move |mut stream| {
        let told = told.clone();
        async move {
            read_head(&mut stream).await;
            stream.write_all(SWITCH).await.unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await.ok();
            told.send(all).await.unwrap();
        }
    })
    .await;
    (application, ended)
}

#[tokio::test]
async fn a_tunnel_ends_when_the_caller_closes() {
    let (application, mut ended) = listening().await;
    let mesh = mesh(application, |_, _| {}).await;
    let mut client = TcpStream::connect(mesh.address).await.unwrap();
    assert!(exchange(&mut client, ASK, "\r\n\r\n").await.starts_with("HTTP/1.1 101"));
    client.write_all(b"all of it").await.unwrap();
    tokio::time::sleep(SECOND / 10).await;
    assert_eq!(mesh.outbound.metric("weft_connections_open", &[]), 1.0, "a tunnel is a connection");
    assert_eq!(mesh.outbound.worker.connections.rows(10).len(), 1);
    drop(client);
    assert_eq!(timeout(SECOND, ended.recv()).await.expect("closed").unwrap(), b"all of it");
    let gone = until(SECOND * 3, || mesh.outbound.metric("weft_connections_open", &[]) == 0.0).await;
    assert!(gone.is_some(), "{}", mesh.outbound.metrics());
}

#[tokio::test]
async fn bytes_right_behind_an_upgrade_are_the_first_of_the_tunnel() {
    let (application, mut ended) = listening().await;
    let mesh = mesh(application, |_, _| {}).await;
    let mut client = TcpStream::connect(mesh.address).await.unwrap();
    let answer = exchange(&mut client, &format!("{ASK}early"), "\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    client.write_all(b" and late").await.unwrap();
    drop(client);
    assert_eq!(timeout(SECOND, ended.recv()).await.expect("closed").unwrap(), b"early and late");
}

#[tokio::test]
async fn an_application_may_refuse_to_switch() {
    for status in [403, 200, 426] {
        let application = application(move |_| {
            format!("HTTP/1.1 {status} X\r\nx-own: 1\r\ncontent-length: 5\r\n\r\nplain").into_bytes()
        })
        .await;
        let mesh = mesh(application, |_, _| {}).await;
        let mut client = TcpStream::connect(mesh.address).await.unwrap();
        for _ in 0..2 {
            let answer = exchange(&mut client, ASK, "plain").await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.ends_with("plain"), "{answer}");
            assert!(answer.contains("x-own: 1") && !answer.contains("weft-"), "{answer}");
        }
        let answer = exchange(&mut client, "GET / HTTP/1.1\r\nhost: a\r\n\r\n", "plain").await;
        assert!(answer.ends_with("plain"), "the connection goes on: {answer}");
    }
}

#[tokio::test]
async fn an_upgrade_to_h2c_is_served_as_plain_http1() {
    let mesh = mesh(mirror().await, |_, _| {}).await;
    let mut client = TcpStream::connect(mesh.address).await.unwrap();
    let request = "POST / HTTP/1.1\r\nhost: a\r\nconnection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\n\
                   http2-settings: AAMAAABk\r\ncontent-length: 4\r\n\r\nbody";
    let answer = exchange(&mut client, request, "body").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    let (_, seen) = answer.split_once("\r\n\r\n").unwrap();
    assert!(seen.starts_with("POST / ") && !seen.contains("upgrade") && !seen.contains("http2-settings"), "{seen}");
}

#[tokio::test]
async fn an_upgrade_in_http10_is_ignored() {
    // RFC 9110 §7.8
    let mesh = mesh(mirror().await, |_, _| {}).await;
    let mut client = TcpStream::connect(mesh.address).await.unwrap();
    let answer = exchange(&mut client, &ASK.replace("HTTP/1.1", "HTTP/1.0"), "/sa/order").await;
    assert!(answer.contains(" 200 OK") && !answer.contains("upgrade: websocket"), "{answer}");
}

#[tokio::test]
async fn the_method_of_an_upgrade_is_kept() {
    let application = application(|request| {
        if request.starts_with(b"POST /attach ") {
            b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: tcp\r\n\r\n".to_vec()
        } else {
            b"HTTP/1.1 405 X\r\ncontent-length: 0\r\n\r\n".to_vec()
        }
    })
    .await;
    let mesh = mesh(application, |_, _| {}).await;
    let mut client = TcpStream::connect(mesh.address).await.unwrap();
    let request = "POST /attach HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: tcp\r\n\r\n";
    let answer = exchange(&mut client, request, "\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
}

crate::records::with_rustls! {
    a_tunnel_ends_when_the_application_closes_and_all_bytes_have_arrived
    a_tunnel_ends_when_the_caller_closes
}

/// (11) RFC 9110 §7.8: a body precedes the tunnel, and its length is not the tunnel's.
#[tokio::test]
async fn a_body_in_front_of_a_tunnel_arrives_and_so_does_the_tunnel() {
    let application = raw_app(|mut stream| async move {
        let head = read_until(&mut stream, "\r\n\r\n").await.to_lowercase();
        assert!(head.contains("upgrade: tcp"), "{head}");
        if head.contains("chunked") {
            read_until(&mut stream, "4\r\nbody\r\n0\r\n\r\n").await;
        } else if head.contains("content-length: 4") {
            read_until(&mut stream, "body").await;
        }
        let answer = b"HTTP/1.1 101 UPGRADED\r\nconnection: Upgrade\r\nupgrade: tcp\r\n\r\nprompt>";
        stream.write_all(answer).await.unwrap();
        let (mut read, mut write) = stream.split();
        tokio::io::copy(&mut read, &mut write).await.ok();
    })
    .await;
    let mesh = mesh(application, |_, _| {}).await;
    let (_direct, direct) = crate::apps::direct(&[application], |_, _| {});
    let chunks = "4\r\nbody\r\n0\r\n\r\n";
    for address in [mesh.address, direct] {
        for (method, framing, body) in [
            ("POST", "", ""),
            ("POST", "content-length: 0\r\n", ""),
            ("GET", "content-length: 0\r\n", ""),
            ("POST", "content-length: 4\r\n", "body"),
            ("POST", "transfer-encoding: chunked\r\n", chunks),
            ("POST", "transfer-encoding: chunked\r\n", "0\r\n\r\n"),
        ] {
            if body == "0\r\n\r\n" && address == direct {
                continue;
            }
            let mut client = TcpStream::connect(address).await.unwrap();
            let head =
                format!("{method} /a HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: tcp\r\n{framing}\r\n");
            let answer = exchange(&mut client, &format!("{head}{body}early"), "prompt>early").await;
            assert!(answer.contains(" 101 ") && answer.ends_with("prompt>early"), "{method} {framing}: {answer}");
            assert_eq!(exchange(&mut client, "hello", "hello").await, "hello", "{method} {framing}");
            client.shutdown().await.unwrap();
            let mut rest = Vec::new();
            timeout(SECOND * 5, client.read_to_end(&mut rest)).await.expect("the end").unwrap();
            assert!(rest.is_empty(), "{method} {framing}");
        }
    }
}

async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(end.as_bytes()) {
        bytes.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// (11) A tunnel is a connection to the endpoint for as long as it lasts.
#[tokio::test]
async fn a_tunnel_counts_against_the_limit_of_connections_until_its_end() {
    let (application, mut ended) = listening().await;
    let (_proxy, address) = crate::apps::direct(&[application], |cluster, _| cluster.limits.connections = 1);
    let mut first = TcpStream::connect(address).await.unwrap();
    assert!(exchange(&mut first, ASK, "\r\n\r\n").await.starts_with("HTTP/1.1 101"));
    let mut second = TcpStream::connect(address).await.unwrap();
    let answer = exchange(&mut second, ASK, "connections").await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("weft-error: UO"), "{answer}");
    drop(first);
    timeout(SECOND * 5, ended.recv()).await.expect("closed").unwrap();
    for left in (0..100).rev() {
        let mut third = TcpStream::connect(address).await.unwrap();
        if exchange(&mut third, ASK, "\r\n\r\n").await.starts_with("HTTP/1.1 101") {
            break;
        }
        assert!(left > 0, "the place is not given back");
        tokio::time::sleep(SECOND / 20).await;
    }
}
