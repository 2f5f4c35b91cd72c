//! Callers that leave a gRPC call before its end: by a reset of the stream, or with their connection. Neither proxy and no
//! endpoint is to blame.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use http::{Request, Response};
use http_body_util::BodyExt;
use tokio::time::{sleep, timeout};
use weft_core::cluster::HttpVersion;

use crate::apps::{Ended, Mesh, channel, data, full, http2_app, http2_client, mesh, until};

const PATIENCE: Duration = Duration::from_secs(10);
/// Calls of each kind: two halves of an exchange end in either order.
const CALLS: u32 = 20;

/// `/unary` never answers, `/stream` sends for ever, `/echo` gives each message back.
async fn service(left: Arc<AtomicUsize>) -> std::net::SocketAddr {
    http2_app(move |request| {
        let left = left.clone();
        async move {
            let guard = Ended(left);
            if request.uri().path() == "/unary" {
                sleep(PATIENCE * 6).await;
                return Response::new(full(""));
            }
            let (frames, body) = channel();
            tokio::spawn(async move {
                let _guard = guard;
                if request.uri().path() == "/stream" {
                    while frames.send(data("more")).await.is_ok() {
                        sleep(Duration::from_millis(1)).await;
                    }
                    return;
                }
                let mut asked = request.into_body();
                while let Some(Ok(frame)) = asked.frame().await {
                    if frames.send(Ok(frame)).await.is_err() {
                        return;
                    }
                }
            });
            Response::builder().header("content-type", "application/grpc").body(body).unwrap()
        }
    })
    .await
}

/// Calls once and leaves. `close`: with the whole connection.
async fn leave(mesh: &Mesh, path: &str, close: bool) {
    let stream = tokio::net::TcpStream::connect(mesh.address).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut client, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    let connection = tokio::spawn(connection);
    let call = |body| {
        Request::post(format!("http://product{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(body)
            .unwrap()
    };
    let (frames, open) = channel();
    let answered = match path {
        "/echo" => client.send_request(call(open)),
        _ => client.send_request(call(full("ask"))),
    };
    if path == "/unary" {
        let none = timeout(Duration::from_millis(30), answered).await;
        assert!(none.is_err(), "an answer");
    } else {
        frames.send(data("ask")).await.ok();
        let mut answer = timeout(PATIENCE, answered).await.unwrap().unwrap().into_body();
        timeout(PATIENCE, answer.frame()).await.unwrap().unwrap().unwrap();
        if close {
            connection.abort();
            let _aborted = (&mut { connection }).await;
        }
        drop((answer, frames));
        return;
    }
    if close {
        connection.abort();
    }
}

/// (27.8) The flag is `DC` at both proxies; nothing counts against the endpoint.
#[tokio::test]
async fn a_caller_that_leaves_a_grpc_call_is_no_failure_of_the_endpoint() {
    for (path, close) in
        ["/unary", "/stream", "/echo"].into_iter().flat_map(|path| [false, true].map(|close| (path, close)))
    {
        let left = Arc::<AtomicUsize>::default();
        let mesh = mesh(service(left.clone()).await, |cluster, _| cluster.http = HttpVersion::Http2).await;
        for _ in 0..CALLS {
            leave(&mesh, path, close).await;
        }
        let calls = f64::from(CALLS);
        for (side, proxy) in [("outbound", &mesh.outbound), ("inbound", &mesh.inbound)] {
            let failures = |labels: &[&str]| proxy.metric("weft_failures_total", labels);
            let all = until(PATIENCE, || failures(&[]) >= calls).await;
            let what = format!("{path}, close {close}, {side}");
            assert!(all.is_some(), "{what}: {}", proxy.metrics());
            assert_eq!(failures(&["flag=\"DC\""]), calls, "{what}: {}", proxy.metrics());
            assert_eq!(failures(&[]), calls, "{what}: {}", proxy.metrics());
        }
        assert_eq!(mesh.outbound.metric("weft_ejections_total", &[]), 0.0, "{path}, {close}");
        assert!(
            until(PATIENCE, || left.load(Relaxed) == CALLS as usize).await.is_some(),
            "{path}, {close}: it goes on"
        );
        // The endpoint is as good as before.
        let mut client = http2_client(mesh.address).await;
        let answer = client.send_request(Request::post("http://product/echo").body(full("hi")).unwrap()).await.unwrap();
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "hi");
    }
}

/// (27.8) The application is told CANCEL, whatever of the request it has.
#[tokio::test]
async fn the_application_is_told_that_its_caller_cancels() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (told, mut reasons) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let told = told.clone();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let told = told.clone();
                    tokio::spawn(async move {
                        let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
                        let mut body = respond.send_response(head, false).unwrap();
                        body.send_data("first".into(), false).unwrap();
                        let reason = std::future::poll_fn(|cx| body.poll_reset(cx)).await;
                        told.send(reason.ok()).unwrap();
                        drop(request);
                    });
                }
            });
        }
    });
    let mesh = mesh(address, |cluster, _| cluster.http = HttpVersion::Http2).await;
    for path in ["/stream", "/echo"] {
        leave(&mesh, path, false).await;
        let reason = timeout(PATIENCE, reasons.recv()).await.unwrap().unwrap();
        assert_eq!(reason, Some(h2::Reason::CANCEL), "{path}");
    }
}

/// (27.8) The same of a caller of HTTP/1 that leaves while its upload is answered.
#[tokio::test]
async fn a_caller_of_http1_that_leaves_its_upload_is_no_failure_of_the_endpoint() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let application = crate::apps::raw_app(|mut stream| async move {
        let mut all = Vec::new();
        while !all.windows(4).any(|end| end == b"\r\n\r\n") {
            if stream.read_buf(&mut all).await.unwrap_or(0) == 0 {
                return;
            }
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nfirst").await.ok();
        while stream.read_buf(&mut all).await.unwrap_or(0) > 0 {}
    })
    .await;
    let mesh = mesh(application, |_, _| {}).await;
    for _ in 0..CALLS {
        let mut caller = tokio::net::TcpStream::connect(mesh.address).await.unwrap();
        let head = "POST / HTTP/1.1\r\nhost: product\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n";
        caller.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"first") {
            assert!(timeout(PATIENCE, caller.read_buf(&mut answer)).await.unwrap().unwrap() > 0);
        }
    }
    for (side, proxy) in [("outbound", &mesh.outbound), ("inbound", &mesh.inbound)] {
        let failures = |labels: &[&str]| proxy.metric("weft_failures_total", labels);
        let all = until(PATIENCE, || failures(&[]) >= f64::from(CALLS)).await;
        assert!(all.is_some(), "{side}: {}", proxy.metrics());
        assert_eq!(failures(&["flag=\"DC\""]), f64::from(CALLS), "{side}: {}", proxy.metrics());
    }
}
