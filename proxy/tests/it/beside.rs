//! Requests beside streams whose bodies are not read: on the hop, in both directions, towards applications, at the edge, and in
//! tunnels. RFC 9113 §5.2.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::{Instant, sleep, timeout},
};
use weft_core::cluster::HttpVersion;

use crate::{
    apps::{direct, full, http2_app, mesh, raw_app},
    gateway::gateway,
};

const SECOND: Duration = Duration::from_secs(1);
/// What hangs does so for much longer. These tests run beside others, on a busy machine, without optimised code.
const HANGS: Duration = Duration::from_secs(10);
/// One test of this file at a time: each of them moves much.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
/// Streams that stand still beside the request that is measured.
const STALLED: [usize; 6] = [1, 4, 5, 8, 20, 99];
/// A body that no window and no buffer of a socket holds.
static ENDLESS: [u8; 16 << 20] = [b'x'; 16 << 20];
/// A body that needs credit of the hop's connection, but no more than a stream begins with.
const SMALL: usize = 60_000;
const SWITCH: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";

/// An application that sends without end on `/big` and after an upgrade, does not read the body of `/stall`, and answers anything
/// else in a small body once it has read the request.
async fn application() -> SocketAddr {
    raw_app(|mut stream| async move {
        SockRef::from(&stream).set_recv_buffer_size(64 * 1024).unwrap();
        loop {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let Ok(byte) = stream.read_u8().await else { return };
                head.push(byte);
            }
            let head = String::from_utf8(head).unwrap();
            if head.starts_with("POST /stall") {
                sleep(SECOND * 60).await;
                return;
            }
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
            stream.read_exact(&mut vec![0; length.unwrap_or(0)]).await.unwrap();
            let big = head.starts_with("GET /big");
            let answer = if head.contains("upgrade: ") {
                String::from_utf8_lossy(SWITCH).into_owned()
            } else {
                let length = if big { ENDLESS.len() } else { SMALL };
                format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n")
            };
            let endless = big || head.contains("upgrade: ");
            let body = if endless { &ENDLESS[..] } else { &ENDLESS[..SMALL] };
            if stream.write_all(answer.as_bytes()).await.is_err() || stream.write_all(body).await.is_err() {
                return;
            }
        }
    })
    .await
}

/// A caller that sends `head` and reads nothing; with `body` it sends as much as is taken. It ends with the test.
async fn stalled(address: SocketAddr, head: &'static str, body: bool) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(8 * 1024).unwrap();
    socket.set_send_buffer_size(8 * 1024).unwrap();
    let mut stream = socket.connect(address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    tokio::spawn(async move {
        if body {
            stream.write_all(&ENDLESS).await.ok();
        }
        sleep(SECOND * 60).await;
    });
}

/// How long a small exchange takes on a connection of its own.
async fn exchange(address: SocketAddr, upload: usize) -> Duration {
    let started = Instant::now();
    let done = timeout(HANGS, async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let method = if upload > 0 { "POST" } else { "GET" };
        let head = format!("{method} /small HTTP/1.1\r\nhost: shop.example\r\ncontent-length: {upload}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&ENDLESS[..upload]).await.unwrap();
        let mut got = Vec::new();
        while got.len() < SMALL {
            assert!(stream.read_buf(&mut got).await.unwrap() > 0, "ended after {} bytes", got.len());
        }
        assert!(got.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&got[..200]));
    });
    done.await.expect("a small exchange hangs beside streams that are not read");
    started.elapsed()
}

/// The slowest of some small exchanges. Generous: tests run beside each other, without optimised code.
async fn slowest(address: SocketAddr, upload: usize) -> Duration {
    let mut slowest = Duration::ZERO;
    for _ in 0..5 {
        slowest = slowest.max(exchange(address, upload).await);
    }
    slowest
}

/// Small exchanges are as quick beside callers that stand still as without them.
async fn quick_beside(address: SocketAddr, head: &'static str, body: bool) {
    let _alone = ALONE.lock().await;
    exchange(address, SMALL).await;
    let quiet = slowest(address, SMALL).await;
    let mut callers = 0;
    for count in STALLED {
        while callers < count {
            stalled(address, head, body).await;
            callers += 1;
        }
        sleep(SECOND / 4).await;
        let beside = slowest(address, SMALL).await.min(slowest(address, 0).await);
        assert!(beside < quiet * 2 + SECOND, "{count} beside it: {beside:?}, without: {quiet:?}");
    }
}

const BIG: &str = "GET /big HTTP/1.1\r\nhost: shop.example\r\n\r\n";
const UPLOAD: &str = "POST /stall HTTP/1.1\r\nhost: shop.example\r\ncontent-length: 16777216\r\n\r\n";
const TUNNEL: &str = "GET /ws HTTP/1.1\r\nhost: shop.example\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";

/// (1)
#[tokio::test]
async fn callers_that_do_not_read_their_answers_hold_no_other_request() {
    let mesh = mesh(application().await, |_, _| {}).await;
    quick_beside(mesh.address, BIG, false).await;
}

/// (1)
#[tokio::test]
async fn uploads_that_the_application_does_not_read_hold_no_other_request() {
    let mesh = mesh(application().await, |_, _| {}).await;
    quick_beside(mesh.address, UPLOAD, true).await;
}

/// (1)
#[tokio::test]
async fn tunnels_that_are_not_read_hold_no_request() {
    let mesh = mesh(application().await, |_, _| {}).await;
    quick_beside(mesh.address, TUNNEL, true).await;
}

/// (1)
#[tokio::test]
async fn visitors_that_do_not_read_hold_no_other_visitor() {
    let mesh = mesh(application().await, |_, _| {}).await;
    let (_gateway, edge) = gateway(mesh.address);
    quick_beside(edge, BIG, false).await;
}

/// An HTTP/2 application as [`application`]. Its library gives credit of the connection for what was read only.
async fn http2_application() -> SocketAddr {
    http2_app(|request: Request<hyper::body::Incoming>| async move {
        match request.uri().path() {
            "/stall" => {
                sleep(SECOND * 60).await;
                Response::new(full("late"))
            }
            "/big" => Response::new(full(&ENDLESS[..])),
            _ => {
                request.into_body().collect().await.unwrap();
                Response::new(full(&ENDLESS[..SMALL]))
            }
        }
    })
    .await
}

/// A connection of an HTTP/2 caller, driven to its end.
async fn connect(address: SocketAddr) -> h2::client::SendRequest<Bytes> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (client, connection) =
        h2::client::Builder::new().initial_connection_window_size(1 << 30).handshake(stream).await.unwrap();
    tokio::spawn(connection);
    client.ready().await.unwrap()
}

async fn call(client: &h2::client::SendRequest<Bytes>, path: &str, upload: usize) -> usize {
    let mut client = client.clone().ready().await.unwrap();
    let request = Request::post(format!("http://shop.example{path}")).body(()).unwrap();
    let (answer, mut body) = client.send_request(request, false).unwrap();
    body.send_data(Bytes::from_static(&ENDLESS[..upload]), true).unwrap();
    let mut answer = answer.await.unwrap().into_body();
    let mut count = 0;
    while let Some(data) = answer.data().await {
        let data = data.unwrap();
        count += data.len();
        answer.flow_control().release_capacity(data.len()).unwrap();
    }
    count
}

/// Streams that stand still: their answers are asked for and not read, and their bodies are sent.
fn stall_streams(client: &h2::client::SendRequest<Bytes>, path: &'static str, upload: usize, count: usize) {
    let client = client.clone();
    tokio::spawn(async move {
        let mut kept = Vec::new();
        for _ in 0..count {
            let mut client = client.clone().ready().await.unwrap();
            let request = Request::post(format!("http://shop.example{path}")).body(()).unwrap();
            let (answer, mut body) = client.send_request(request, false).unwrap();
            body.send_data(Bytes::from_static(&ENDLESS[..upload]), true).unwrap();
            kept.push((answer, body));
        }
        let mut answers = Vec::new();
        for (answer, body) in kept {
            if path == "/big" {
                answers.push(answer.await.unwrap());
            } else {
                tokio::spawn(answer);
            }
            std::mem::forget(body);
        }
        sleep(SECOND * 60).await;
    });
}

/// Calls of another connection, and of the same one, are quick beside streams that stand still.
async fn http2_quick_beside(address: SocketAddr, path: &'static str, upload: usize) {
    let _alone = ALONE.lock().await;
    let (other, client) = (connect(address).await, connect(address).await);
    assert_eq!(call(&other, "/small", SMALL).await, SMALL);
    let mut before = 0;
    for count in [1, 4, 5, 8, 20, 95] {
        stall_streams(&client, path, upload, count - before);
        before = count;
        sleep(SECOND / 2).await;
        for client in [&other, &client] {
            for _ in 0..3 {
                let small = timeout(HANGS, call(client, "/small", SMALL)).await;
                assert_eq!(small.unwrap_or_else(|_| panic!("a call hangs beside {count}")), SMALL);
            }
        }
    }
}

/// (1)
#[tokio::test]
async fn subscribers_that_stop_reading_hold_no_other_call() {
    let mesh = mesh(http2_application().await, |_, _| {}).await;
    http2_quick_beside(mesh.address, "/big", 0).await;
}

/// (1)
#[tokio::test]
async fn answers_of_an_application_over_http2_that_are_not_read_hold_no_other() {
    let (_proxy, address) = direct(&[http2_application().await], |cluster, _| cluster.http = HttpVersion::Http2);
    quick_beside(address, BIG, false).await;
}

/// The application's library counts what it has not read against its whole connection: others get another one.
/// (1)
#[tokio::test]
async fn uploads_that_an_application_over_http2_does_not_read_hold_no_other_call() {
    let mesh = mesh(http2_application().await, |_, _| {}).await;
    http2_quick_beside(mesh.address, "/stall", 4 << 20).await;
}

/// (1)
#[tokio::test]
async fn visitors_over_http2_whose_uploads_are_not_read_hold_no_other_visitor() {
    let (_proxy, edge) = gateway(application().await);
    http2_quick_beside(edge, "/stall", 4 << 20).await;
}

/// (3)
#[tokio::test]
async fn a_channel_of_the_workload_has_a_thousand_calls_at_once_and_one_from_outside_a_hundred() {
    let barrier = std::sync::Arc::new(tokio::sync::Barrier::new(1000));
    let application = http2_app(move |_request| {
        let barrier = barrier.clone();
        async move {
            timeout(SECOND * 20, barrier.wait()).await.ok();
            Response::new(full("ok"))
        }
    })
    .await;
    let mesh = mesh(application, |cluster, _| cluster.limits.pending = 2000).await;
    let client = connect(mesh.address).await;
    let calls: Vec<_> = (0..1000)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { call(&client, "/", 0).await })
        })
        .collect();
    for one in calls {
        assert_eq!(timeout(SECOND * 15, one).await.expect("all are under way at once").unwrap(), 2);
    }
    for (address, limit) in [(mesh.address, 1000), (gateway(application).1, 100)] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        let mut settings = [0; 9 + 5 * 6];
        stream.read_exact(&mut settings).await.unwrap();
        let found = settings[9..].chunks(6).find(|setting| setting[..2] == [0, 3]).unwrap();
        assert_eq!(u32::from_be_bytes(found[2..].try_into().unwrap()), limit);
    }
}

/// An HTTP/2 application that takes so many requests of a connection at once, and says so only after a while.
async fn few_streams(most: u32, told: std::sync::Arc<std::sync::atomic::AtomicUsize>) -> SocketAddr {
    raw_app(move |stream| {
        let told = told.clone();
        async move {
            sleep(SECOND / 5).await;
            let mut server =
                h2::server::Builder::new().max_concurrent_streams(most).handshake::<_, Bytes>(stream).await.unwrap();
            let open = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
            while let Some(Ok((_, mut respond))) = server.accept().await {
                let (open, told) = (open.clone(), told.clone());
                tokio::spawn(async move {
                    let now = open.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
                    told.fetch_max(now, std::sync::atomic::Ordering::Relaxed);
                    sleep(SECOND / 5).await;
                    open.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
                    if let Ok(mut body) = respond.send_response(Response::new(()), false) {
                        body.send_data(Bytes::from_static(b"ok"), true).ok();
                    }
                });
            }
        }
    })
    .await
}

/// (3)
#[tokio::test]
async fn a_new_connection_to_an_application_gets_no_more_requests_than_its_settings_allow() {
    let told = std::sync::Arc::default();
    let mesh = mesh(few_streams(3, std::sync::Arc::clone(&told)).await, |_, _| {}).await;
    let client = connect(mesh.address).await;
    let calls: Vec<_> = (0..20)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { call(&client, "/", 0).await })
        })
        .collect();
    for one in calls {
        assert_eq!(timeout(SECOND * 10, one).await.expect("answered").unwrap(), 2);
    }
    assert!((1..=3).contains(&told.load(std::sync::atomic::Ordering::Relaxed)), "{told:?}");
    assert_eq!(mesh.outbound.metric("weft_retries_total", &[]), 0.0, "none was refused");
}

/// (3)
#[tokio::test]
async fn an_application_that_takes_no_request_is_refused_and_costs_one_connection() {
    let mesh = mesh(few_streams(0, std::sync::Arc::default()).await, |_, _| {}).await;
    let client = connect(mesh.address).await;
    let mut client = client.ready().await.unwrap();
    let (answer, _) = client.send_request(Request::get("http://shop.example/").body(()).unwrap(), true).unwrap();
    assert_eq!(timeout(SECOND * 5, answer).await.expect("answered").unwrap().status(), 503);
}

/// (3)
#[tokio::test]
async fn requests_wait_for_the_settings_of_an_application_that_stands_still() {
    let application = raw_app(|stream| async move {
        sleep(SECOND * 2).await;
        let mut server = h2::server::handshake(stream).await.unwrap();
        while let Some(Ok((_, mut respond))) = server.accept().await {
            let mut body = respond.send_response(Response::new(()), false).unwrap();
            body.send_data(Bytes::from_static(b"ok"), true).unwrap();
        }
    })
    .await;
    let mesh = mesh(application, |_, _| {}).await;
    let client = connect(mesh.address).await;
    let calls: Vec<_> = (0..50)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { call(&client, "/", 0).await })
        })
        .collect();
    for one in calls {
        assert_eq!(timeout(HANGS, one).await.expect("answered").unwrap(), 2);
    }
}
