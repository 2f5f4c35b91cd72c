//! Heads and trailers above a limit: errors of their messages, which say what is too large and what the limit is; everything beside
//! them goes on.

use std::time::Duration;

use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::BodyExt;
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    time::{sleep, timeout},
};
use weft_core::cluster::HttpVersion;

use crate::apps::{
    channel, data, direct, full, get, http2_app, http2_client, mesh, once, raw, raw_app, read_head, text,
};

const PATIENCE: Duration = Duration::from_secs(10);

fn trailers(size: usize) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-pad", "p".repeat(size).parse().unwrap());
    trailers
}

/// Answers `/head/SIZE` and `/trailers/SIZE` with sections of that size, and others after half a second.
async fn application() -> std::net::SocketAddr {
    http2_app(|request: Request<hyper::body::Incoming>| async move {
        let path = request.uri().path().to_owned();
        let size = path.rsplit('/').next().and_then(|size| size.parse().ok()).unwrap_or(0);
        if path.starts_with("/head/") {
            return Response::builder().header("x-pad", "p".repeat(size)).body(full("ok")).unwrap();
        }
        if path.starts_with("/trailers/") {
            let (frames, body) = channel();
            tokio::spawn(async move {
                frames.send(data("hello")).await.ok();
                frames.send(Ok(Frame::trailers(trailers(size)))).await.ok();
            });
            return Response::new(body);
        }
        sleep(PATIENCE / 20).await;
        Response::new(full("slow"))
    })
    .await
}

/// (2)
#[tokio::test]
async fn a_large_head_or_trailers_of_an_answer_end_that_answer_only() {
    let mesh = mesh(application().await, |_, _| {}).await;
    for size in [30_000, 60_000] {
        // Of another caller, on the same connection to the application.
        let beside =
            tokio::spawn(
                async move { text(http2_client(mesh.address).await.send_request(get("/")).await.unwrap()).await },
            );
        sleep(Duration::from_millis(50)).await;
        let mut client = http2_client(mesh.address).await;
        let answer = timeout(PATIENCE, client.send_request(get(&format!("/head/{size}")))).await.unwrap().unwrap();
        assert_eq!(answer.status(), 502, "{size}");
        let told = text(answer).await.unwrap();
        assert!(told.contains("response head too large: more than 24576 bytes"), "{told}");
        let answer = timeout(PATIENCE, client.send_request(get(&format!("/trailers/{size}")))).await.unwrap().unwrap();
        assert_eq!((answer.status().as_u16(), text(answer).await), (200, None), "its end is missing");
        assert_eq!(timeout(PATIENCE, beside).await.unwrap().unwrap().as_deref(), Some("slow"), "{size}");
    }
}

/// (2) gRPC's own implementations say RESOURCE_EXHAUSTED, 8.
#[tokio::test]
async fn a_grpc_caller_is_told_of_large_trailers_in_its_own_way() {
    let application = http2_app(|_| async {
        let (frames, body) = channel();
        tokio::spawn(async move {
            frames.send(data("hello")).await.ok();
            frames.send(Ok(Frame::trailers(trailers(30_000)))).await.ok();
        });
        Response::builder().header("content-type", "application/grpc").body(body).unwrap()
    })
    .await;
    let mesh = mesh(application, |_, _| {}).await;
    let call = Request::post("http://product/a.B/C").header("content-type", "application/grpc").body(full("")).unwrap();
    let mut client = http2_client(mesh.address).await;
    let answer = timeout(PATIENCE, client.send_request(call)).await.unwrap().unwrap();
    let whole = timeout(PATIENCE, answer.into_body().collect()).await.unwrap().unwrap();
    let told = whole.trailers().unwrap();
    assert_eq!(told["grpc-status"], "8");
    assert!(told["grpc-message"].to_str().unwrap().contains("response trailers too large"), "{told:?}");
}

/// (2)
#[tokio::test]
async fn a_large_head_of_an_http1_answer_is_called_so() {
    let application = raw_app(|mut stream| async move {
        while let Some(head) = read_head(&mut stream).await {
            let answer = if head.starts_with("GET /bytes") {
                format!("HTTP/1.1 200 OK\r\nx-pad: {}\r\ncontent-length: 2\r\n\r\nok", "p".repeat(17_000))
            } else {
                format!("HTTP/1.1 200 OK\r\n{}content-length: 2\r\n\r\nok", "x: 1\r\n".repeat(101))
            };
            stream.write_all(answer.as_bytes()).await.ok();
        }
    })
    .await;
    let (_proxy, address) = direct(&[application], |_, _| {});
    for (path, limit) in [("/bytes", "16384 bytes"), ("/fields", "100 fields")] {
        let answer = once(address, "GET", path).await;
        let told = format!("response head too large: more than {limit}");
        assert!(answer.starts_with("HTTP/1.1 502") && answer.contains(&told), "{answer}");
    }
}

/// (2)
#[tokio::test]
async fn large_trailers_of_a_request_are_answered_431() {
    for version in [HttpVersion::AsReceived, HttpVersion::Http2] {
        let mesh = mesh(application().await, |cluster, _| cluster.http = version).await;
        let (frames, body) = channel();
        let mut client = http2_client(mesh.address).await;
        let call = client.send_request(Request::post("http://product/").body(body).unwrap());
        frames.send(data("hello")).await.unwrap();
        frames.send(Ok(Frame::trailers(trailers(17_000)))).await.unwrap();
        let answer = timeout(PATIENCE, call).await.unwrap().unwrap();
        assert_eq!(answer.status(), 431);
        let told = text(answer).await.unwrap();
        assert!(told.contains("request trailers too large: more than 16384 bytes"), "{told}");
        assert_eq!(client.send_request(get("/")).await.unwrap().status(), 200, "the connection goes on");
    }
    let mesh = mesh(application().await, |cluster, _| cluster.http = HttpVersion::Http2).await;
    let request = format!(
        "POST / HTTP/1.1\r\nhost: product\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx-pad: {}\r\n\r\n",
        "p".repeat(17_000)
    );
    let (answer, _closed) = raw(mesh.address, request.as_bytes(), PATIENCE).await;
    assert!(answer.starts_with("HTTP/1.1 431") && answer.contains("request trailers too large"), "{answer}");
    let mut client = TcpStream::connect(mesh.address).await.unwrap();
    client
        .write_all(format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "p".repeat(17_000)).as_bytes())
        .await
        .unwrap();
    let head = read_head(&mut client).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 431"), "{head}");
}
