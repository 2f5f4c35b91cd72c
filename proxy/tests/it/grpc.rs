//! gRPC as bytes: unary, server streaming and bidirectional calls through both proxies, and errors in gRPC's own way.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::BodyExt;
use tokio::time::{sleep, timeout};
use weft_core::cluster::HttpVersion;

use crate::apps::{TestBody, channel, data, direct, full, http2_app, http2_client, mesh, until};

const SECOND: Duration = Duration::from_secs(1);

/// A message with gRPC's five bytes before it.
fn message(text: &str) -> Bytes {
    let mut bytes = vec![0];
    bytes.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
    bytes.extend(text.as_bytes());
    bytes.into()
}

fn status(code: &str) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", code.parse().unwrap());
    trailers
}

fn call(path: &str, body: TestBody) -> Request<TestBody> {
    Request::post(format!("http://product{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body)
        .unwrap()
}

/// `/unary` answers once, `/stream` three times 20 ms apart, `/echo` gives each message back at once, `/fail` status 14.
async fn service() -> std::net::SocketAddr {
    http2_app(|request| async move {
        assert_eq!(request.headers()["te"], "trailers");
        let (frames, body) = channel();
        tokio::spawn(async move {
            match request.uri().path() {
                "/unary" => {
                    let asked = request.into_body().collect().await.unwrap().to_bytes();
                    frames.send(data(asked)).await.unwrap();
                    frames.send(Ok(Frame::trailers(status("0")))).await.unwrap();
                }
                "/stream" => {
                    for text in ["one", "two", "three"] {
                        frames.send(data(message(text))).await.unwrap();
                        sleep(Duration::from_millis(20)).await;
                    }
                    frames.send(Ok(Frame::trailers(status("0")))).await.unwrap();
                }
                "/echo" => {
                    let mut asked = request.into_body();
                    while let Some(Ok(frame)) = asked.frame().await {
                        frames.send(Ok(frame)).await.unwrap();
                    }
                    frames.send(Ok(Frame::trailers(status("0")))).await.unwrap();
                }
                _ => frames.send(Ok(Frame::trailers(status("14")))).await.unwrap(),
            }
        });
        Response::builder().header("content-type", "application/grpc").body(body).unwrap()
    })
    .await
}

#[tokio::test]
async fn unary_calls_and_streams_of_the_server_keep_their_trailers() {
    let mesh = mesh(service().await, |_, _| {}).await;
    let mut client = http2_client(mesh.address).await;
    let answer = client.send_request(call("/unary", full(message("hi")))).await.unwrap();
    let answer = answer.into_body().collect().await.unwrap();
    assert_eq!(answer.trailers().unwrap()["grpc-status"], "0");
    assert_eq!(answer.to_bytes(), message("hi"));

    let mut body = client.send_request(call("/stream", full(message("go")))).await.unwrap().into_body();
    for text in ["one", "two", "three"] {
        let frame = timeout(SECOND, body.frame()).await.expect("each as it comes").unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), message(text));
    }
    assert_eq!(body.frame().await.unwrap().unwrap().into_trailers().unwrap()["grpc-status"], "0");
}

#[tokio::test]
async fn a_bidirectional_stream_goes_back_and_forth() {
    let mesh = mesh(service().await, |_, _| {}).await;
    let mut client = http2_client(mesh.address).await;
    let (frames, body) = channel();
    let mut answers = client.send_request(call("/echo", body)).await.unwrap().into_body();
    for i in 0..100 {
        frames.send(data(message(&i.to_string()))).await.unwrap();
        let frame = timeout(SECOND, answers.frame()).await.expect("answered before the next is sent").unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), message(&i.to_string()));
    }
    drop(frames);
    assert_eq!(answers.frame().await.unwrap().unwrap().into_trailers().unwrap()["grpc-status"], "0");
    let labels = ["destination=\"svc", "status=\"2xx\""];
    assert!(until(SECOND, || mesh.outbound.metric("weft_requests_total", &labels) == 1.0).await.is_some());
}

#[tokio::test]
async fn the_status_of_a_call_counts_as_that_of_the_request() {
    let mesh = mesh(service().await, |_, _| {}).await;
    let mut client = http2_client(mesh.address).await;
    let answer = client.send_request(call("/fail", full(message("hi")))).await.unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().trailers().unwrap()["grpc-status"], "14");
    for proxy in [&mesh.outbound, &mesh.inbound] {
        assert!(until(SECOND, || proxy.metric("weft_requests_total", &["status=\"5xx\""]) == 1.0).await.is_some());
    }
}

#[tokio::test]
async fn failures_of_the_proxy_are_told_as_a_grpc_status() {
    let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (_proxy, address) = direct(&[gone], |cluster, _| cluster.http = HttpVersion::Http2);
    let mut client = http2_client(address).await;
    let answer = client.send_request(call("/unary", full(message("hi")))).await.unwrap();
    assert_eq!((answer.status().as_u16(), &answer.headers()["grpc-status"]), (200, &"14".parse().unwrap()));
    assert!(answer.headers()["grpc-message"].to_str().unwrap().starts_with("weft: connect failed"));
    // (26)
    let message = answer.headers()["grpc-message"].to_str().unwrap();
    assert!(message.contains(&format!(", endpoint {gone})")), "{message}");
}

crate::records::with_rustls! {
    a_bidirectional_stream_goes_back_and_forth
}

/// (7) As a library of gRPC says without the mesh.
#[tokio::test]
async fn a_connection_lost_in_mid_stream_is_unavailable() {
    let application = http2_app(|_| async move {
        let (frames, body) = channel();
        tokio::spawn(async move {
            frames.send(data(message("one"))).await.unwrap();
            sleep(SECOND * 20).await;
        });
        Response::builder().header("content-type", "application/grpc").body(body).unwrap()
    })
    .await;
    // The path to the application is cut, or that between the proxies.
    let (path, cut) = crate::ends::path_to(application).await;
    let mesh = mesh(path, |cluster, _| cluster.http = HttpVersion::Http2).await;
    let mut client = http2_client(mesh.address).await;
    let mut answer = client.send_request(call("/lost", full(message("ask")))).await.unwrap().into_body();
    let first = timeout(SECOND * 5, answer.frame()).await.unwrap().unwrap().unwrap().into_data().unwrap();
    assert_eq!(first, message("one"));
    cut.send_replace(true);
    let last = timeout(SECOND * 10, answer.frame()).await.unwrap().unwrap().unwrap().into_trailers().unwrap();
    assert_eq!(last["grpc-status"], "14", "{last:?}");
    assert!(last["weft-error"].to_str().unwrap().starts_with("UC;service="), "{last:?}");
    assert!(until(SECOND * 5, || mesh.outbound.metric("weft_failures_total", &["flag=\"UC\""]) == 1.0).await.is_some());
}
