//! Interim answers (1xx) pass as they come, and 100 comes from the side that answers (RFC 9110 §10.1.1, §15.2).

use std::{sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{Mutex, mpsc},
    time::timeout,
};

use crate::{
    apps::{direct, mesh, raw_app},
    traffic::exchange,
};

const WAIT: Duration = Duration::from_secs(20);

async fn head_of(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// (7)
#[tokio::test]
async fn interim_answers_reach_the_caller_before_the_answer() {
    let (go, going) = mpsc::channel::<()>(1);
    let going = Arc::new(Mutex::new(going));
    let application = raw_app(move |mut stream| {
        let going = going.clone();
        async move {
            while let Some(head) = head_of(&mut stream).await {
                let status = if head.contains("/102") { "102 Processing" } else { "103 Early Hints" };
                let interim = format!("HTTP/1.1 {status}\r\nlink: </a.css>\r\nweft-x: 1\r\n\r\n");
                stream.write_all(interim.as_bytes()).await.unwrap();
                going.lock().await.recv().await.unwrap();
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
            }
        }
    })
    .await;
    let mesh = mesh(application, |_, _| {}).await;
    let (_proxy, direct) = direct(&[application], |_, _| {});
    for address in [mesh.address, direct] {
        let mut client = TcpStream::connect(address).await.unwrap();
        for path in ["/102", "/103"] {
            // The application answers only once the caller has the interim answer.
            let ask = format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n");
            let interim = exchange(&mut client, &ask, "\r\n\r\n").await;
            assert!(interim.starts_with(&format!("HTTP/1.1 {}", &path[1..])), "{interim}");
            assert!(interim.contains("link: </a.css>") && !interim.contains("weft-x"), "{interim}");
            go.send(()).await.unwrap();
            let answer = exchange(&mut client, "", "ok").await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
        // Version 1.0 knows none.
        let mut client = TcpStream::connect(address).await.unwrap();
        go.send(()).await.unwrap();
        let answer = exchange(&mut client, "GET /103 HTTP/1.0\r\nhost: a\r\n\r\n", "ok").await;
        assert!(answer.contains(" 200 ") && !answer.contains(" 103 "), "{answer}");
    }
}

/// (7)
#[tokio::test]
async fn expect_100_continue_is_answered_by_the_application() {
    let application = raw_app(|mut stream| async move {
        while let Some(head) = head_of(&mut stream).await {
            assert!(head.to_lowercase().contains("expect: 100-continue"), "{head}");
            if head.contains("/401") {
                stream.write_all(b"HTTP/1.1 401 X\r\ncontent-length: 2\r\n\r\nno").await.unwrap();
                return;
            }
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
            let mut body = [0; 4];
            stream.read_exact(&mut body).await.unwrap();
            assert_eq!(&body, b"body");
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
        }
    })
    .await;
    let mesh = mesh(application, |_, _| {}).await;
    let (_proxy, direct) = direct(&[application], |_, _| {});
    let ask =
        |path: &str| format!("POST {path} HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n");
    for address in [mesh.address, direct] {
        let mut client = TcpStream::connect(address).await.unwrap();
        for _ in 0..2 {
            let interim = exchange(&mut client, &ask("/"), "\r\n\r\n").await;
            assert!(interim.starts_with("HTTP/1.1 100"), "{interim}");
            let answer = exchange(&mut client, "body", "ok").await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
        // An answer instead of 100: the body is not asked for, and whether it comes cannot be known.
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(ask("/401").as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        timeout(WAIT, client.read_to_end(&mut answer)).await.expect("closed").unwrap();
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 401") && answer.contains("connection: close"), "{answer}");
    }
}
