//! Bodies whose reader takes nothing although bytes wait for it end; silent ones, slow readers and pauses do not.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::{Instant, sleep, timeout},
};
use weft_core::{listener::InboundMode, policy::Authorization};
use weft_proxy::{listener::socket::Role, worker::Shared};

use crate::{
    apps::{Mesh, channel, data, full, http2_app, raw_app, until},
    pair::{Authority, Proxy, endpoint_set, identity, inbound_model, outbound_model, service},
};

const SECOND: Duration = Duration::from_secs(1);
/// How long unread bytes may wait in these tests.
const STALLED: Duration = Duration::from_secs(2);
/// What is not ended by then is not ended by the timeout: generous, the machine may be busy.
const ENDS: Duration = Duration::from_secs(15);
static ENDLESS: [u8; 16 << 20] = [b'x'; 16 << 20];

/// A pair of proxies before one application, with the short timeout.
fn pair(application: SocketAddr) -> Mesh {
    let authority = Authority::new();
    let change = |shared: &mut Shared| {
        shared.stalled = STALLED;
        shared.access_log = Some(weft_core::listener::AccessLog::All);
    };
    let inbound = Proxy::start_with(Some(authority.svid("product", true)), change);
    inbound.shared.live.replace(inbound_model(InboundMode::Strict, Authorization::default())).unwrap();
    let at = inbound.listen(Role::Inbound(Some(application)));
    let outbound = Proxy::start_with(Some(authority.svid("order", true)), change);
    outbound.shared.live.replace(outbound_model(|_, _| {})).unwrap();
    outbound.shared.live.set_endpoints(&endpoint_set(&[(at, Some(identity("product")))]));
    let address = outbound.listen(Role::Outbound(Some(service())));
    Mesh { outbound, inbound, address }
}

/// An application over HTTP/1: `/big` is endless; `/late` says its second word after twice the timeout; `/stall` does not read.
async fn application() -> SocketAddr {
    raw_app(|mut stream| async move {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let Ok(byte) = stream.read_u8().await else { return };
            head.push(byte);
        }
        if head.starts_with(b"GET /big") {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", ENDLESS.len());
            stream.write_all(head.as_bytes()).await.ok();
            stream.write_all(&ENDLESS).await.ok();
        } else if head.starts_with(b"GET /late") {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\nearly ").await.ok();
            sleep(2 * STALLED).await;
            stream.write_all(b"later.").await.ok();
        }
        sleep(SECOND * 60).await;
    })
    .await
}

async fn caller(address: SocketAddr, head: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(8 * 1024).unwrap();
    let mut stream = socket.connect(address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

/// (32)
#[tokio::test]
async fn an_answer_that_its_caller_does_not_read_ends_as_an_error() {
    let mesh = pair(application().await);
    let mut unread = caller(mesh.address, "GET /big HTTP/1.1\r\nhost: product\r\n\r\n").await;
    let mut silent = caller(mesh.address, "GET /late HTTP/1.1\r\nhost: product\r\n\r\n").await;
    let mut slow = caller(mesh.address, "GET /big HTTP/1.1\r\nhost: product\r\n\r\n").await;
    let read_slowly = async {
        // Longer than the timeout, and in pauses shorter than it: what the sockets hold comes first.
        let started = Instant::now();
        let mut piece = vec![0; 64 * 1024];
        while started.elapsed() < 3 * STALLED {
            slow.read_exact(&mut piece).await.unwrap();
            sleep(STALLED / 20).await;
        }
    };
    let ended = async {
        let cut = until(ENDS, || mesh.outbound.log().contains("\"flag\":\"SI\"")).await;
        assert!(cut.is_some_and(|cut| cut > STALLED / 2), "{cut:?} {}", mesh.outbound.log());
        // The kernel holds nothing for it either: a reset, and no end that could be taken for that of the body.
        let mut all = Vec::new();
        let error = timeout(ENDS, unread.read_to_end(&mut all)).await.expect("closed").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    };
    let late = async {
        let mut all = vec![0; 51];
        timeout(ENDS, silent.read_exact(&mut all)).await.expect("not ended").unwrap();
        assert!(all.ends_with(b"early later."), "{}", String::from_utf8_lossy(&all));
    };
    tokio::join!(read_slowly, ended, late);
    assert_eq!(mesh.outbound.log().matches("\"flag\":\"SI\"").count(), 1, "{}", mesh.outbound.log());
}

/// (32)
#[tokio::test]
async fn an_upload_that_the_application_does_not_read_is_answered_with_504() {
    let http1 = pair(application().await);
    let http2 = pair(
        http2_app(|request| async move {
            sleep(SECOND * 60).await;
            drop(request);
            Response::new(full("late"))
        })
        .await,
    );
    let over_http1 = async {
        let head = format!("POST /stall HTTP/1.1\r\nhost: product\r\ncontent-length: {}\r\n\r\n", ENDLESS.len());
        let stream = caller(http1.address, &head).await;
        let (mut read, mut write) = stream.into_split();
        tokio::spawn(async move { write.write_all(&ENDLESS).await.ok() });
        let mut answer = vec![0; 12];
        timeout(ENDS, read.read_exact(&mut answer)).await.expect("answered").unwrap();
        assert_eq!(answer, b"HTTP/1.1 504");
    };
    let over_http2 = async {
        let client = connect(http2.address).await;
        let (answer, mut body) = client.ready().await.unwrap().send_request(post("/stall"), false).unwrap();
        body.send_data(Bytes::from_static(&ENDLESS), true).unwrap();
        let answer = timeout(ENDS, answer).await.expect("answered").unwrap();
        assert_eq!(
            (answer.status(), &answer.headers()["weft-error"]),
            (http::StatusCode::GATEWAY_TIMEOUT, &"SI".parse().unwrap())
        );
    };
    tokio::join!(over_http1, over_http2);
    for mesh in [&http1, &http2] {
        assert!(mesh.inbound.log().contains("\"flag\":\"SI\""), "{}", mesh.inbound.log());
    }
}

fn post(path: &str) -> Request<()> {
    Request::post(format!("http://product{path}")).body(()).unwrap()
}

async fn connect(address: SocketAddr) -> h2::client::SendRequest<Bytes> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (client, mut connection) =
        h2::client::Builder::new().initial_connection_window_size(8 << 20).handshake(stream).await.unwrap();
    let mut pings = connection.ping_pong().unwrap();
    tokio::spawn(async move {
        while pings.ping(h2::Ping::opaque()).await.is_ok() {
            sleep(SECOND / 5).await;
        }
    });
    tokio::spawn(connection);
    client
}

/// (32)
#[tokio::test]
async fn a_stream_that_is_not_read_is_reset_though_its_connection_sends_pings_and_one_that_was_read_may_pause() {
    let mesh = pair(
        http2_app(|request: Request<hyper::body::Incoming>| async move {
            let (frames, body) = channel();
            let path = request.uri().path().to_owned();
            tokio::spawn(async move {
                request.into_body().collect().await.ok();
                if path == "/silent" {
                    sleep(2 * STALLED).await;
                    frames.send(data("at last")).await.ok();
                    return;
                }
                while frames.send(data(&ENDLESS[..50_000])).await.is_ok() {}
            });
            Response::new(body)
        })
        .await,
    );
    let client = connect(mesh.address).await;
    let mut bodies = Vec::new();
    for path in ["/unread", "/paused", "/silent"] {
        let mut client = client.clone().ready().await.unwrap();
        let (answer, _) = client.send_request(post(path), true).unwrap();
        bodies.push(answer.await.unwrap().into_body());
    }
    let [unread, paused, silent] = &mut bodies[..] else { unreachable!() };
    let mut read = 0;
    while read < 500_000 {
        let data = paused.data().await.unwrap().unwrap();
        read += data.len();
        paused.flow_control().release_capacity(data.len()).unwrap();
    }
    let answer = timeout(ENDS, silent.data()).await.expect("not ended").unwrap().unwrap();
    assert_eq!(answer, "at last");
    sleep(STALLED).await;
    let reset = timeout(ENDS, async {
        loop {
            match unread.data().await {
                Some(Ok(data)) => drop(unread.flow_control().release_capacity(data.len())),
                Some(Err(error)) => break error,
                None => panic!("an error looks like an end"),
            }
        }
    });
    assert_eq!(reset.await.expect("ended").reason(), Some(h2::Reason::ENHANCE_YOUR_CALM));
    for _ in 0..20 {
        let data = timeout(ENDS, paused.data()).await.expect("it goes on").unwrap().unwrap();
        paused.flow_control().release_capacity(data.len()).unwrap();
    }
    let log = mesh.outbound.log();
    assert!(log.contains("\"flag\":\"SI\""), "{log}");
}

/// (32)
#[tokio::test]
async fn a_connection_that_is_not_read_ends_though_it_sends_pings() {
    let application = http2_app(|_request| async { Response::new(full(&ENDLESS[..])) }).await;
    let mesh = pair(application);
    let mut stream = caller(mesh.address, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    // A window that never closes, so that only the sockets fill.
    stream.write_all(b"\0\0\x06\x04\0\0\0\0\0\0\x04\x7f\xff\xff\xff\0\0\x04\x08\0\0\0\0\0\x7f\xff\0\0").await.unwrap();
    stream.write_all(b"\0\0\x0c\x01\x05\0\0\0\x01\x82\x86\x84\x41\x07product").await.unwrap();
    let started = Instant::now();
    let closed = timeout(ENDS, async {
        while stream.write_all(b"\0\0\x08\x06\0\0\0\0\0weftping").await.is_ok() {
            sleep(SECOND / 10).await;
        }
    });
    closed.await.expect("it is ended");
    assert!(started.elapsed() > STALLED / 2);
    assert_eq!(mesh.outbound.worker.connections.len(), 0);
}
