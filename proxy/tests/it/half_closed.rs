//! Callers of HTTP/1 that leave, or only close their sending side, while their answers are under way.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use http::Response;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use weft_core::{listener::InboundMode, policy::Authorization};
use weft_proxy::listener::socket::Role;

use crate::{
    apps::{channel, data, direct, http2_app, mesh, raw_app, read_head},
    pair::{Authority, Proxy, identity, inbound_model, outbound},
    traffic::exchange,
};

const WAIT: Duration = Duration::from_secs(20);
const HEAD: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n";

/// Sends a request and reads until the first piece of its answer's body.
async fn begun(address: SocketAddr, path: &str) -> TcpStream {
    let mut client = TcpStream::connect(address).await.unwrap();
    let ask = format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n");
    assert!(exchange(&mut client, &ask, "first\r\n").await.starts_with("HTTP/1.1 200"));
    client
}

/// Everything until the end.
async fn rest(client: &mut TcpStream) -> String {
    let mut rest = Vec::new();
    timeout(WAIT, client.read_to_end(&mut rest)).await.expect("an end").unwrap();
    String::from_utf8(rest).unwrap()
}

/// (20.6) The application writes nothing more: only by the half-close can it hear of it.
#[tokio::test]
async fn a_caller_that_leaves_a_silent_answer_is_heard_and_one_that_half_closes_gets_the_rest() {
    let (told, mut heard) = mpsc::channel(8);
    let application = raw_app(move |mut stream| {
        let told = told.clone();
        async move {
            read_head(&mut stream).await.unwrap();
            stream.write_all(HEAD.as_bytes()).await.unwrap();
            let end = stream.read_to_end(&mut Vec::new()).await;
            told.send(end.is_ok()).await.unwrap();
            stream.write_all(b"4\r\nrest\r\n0\r\n\r\n").await.unwrap();
        }
    })
    .await;
    let mesh = mesh(application, |_, _| {}).await;
    let (_proxy, direct) = direct(&[application], |_, _| {});
    for address in [mesh.address, direct] {
        drop(begun(address, "/").await);
        timeout(WAIT, heard.recv()).await.expect("the application hears of it").unwrap();
        let mut client = begun(address, "/").await;
        client.shutdown().await.unwrap();
        assert!(timeout(WAIT, heard.recv()).await.expect("so it does of a half-close").unwrap());
        assert_eq!(rest(&mut client).await, "4\r\nrest\r\n0\r\n\r\n");
    }
}

/// (20.6) Each request that came before the end of the sending side is answered.
#[tokio::test]
async fn requests_that_were_sent_ahead_of_a_half_close_are_all_answered() {
    let application = raw_app(|mut stream| async move {
        while let Some(head) = read_head(&mut stream).await {
            let path = head.split(' ').nth(1).unwrap();
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{path}", path.len());
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await;
    let mesh = mesh(application, |_, _| {}).await;
    let (_proxy, direct) = direct(&[application], |_, _| {});
    for address in [mesh.address, direct] {
        for _ in 0..20 {
            let mut client = TcpStream::connect(address).await.unwrap();
            let ask: String = (1..=3).map(|n| format!("GET /{n} HTTP/1.1\r\nhost: a\r\n\r\n")).collect();
            client.write_all(ask.as_bytes()).await.unwrap();
            client.shutdown().await.unwrap();
            let answers = rest(&mut client).await;
            let bodies: Vec<_> = answers.split("\r\n\r\n").skip(1).map(|text| &text[..2]).collect();
            assert_eq!(bodies, ["/1", "/2", "/3"], "{answers}");
        }
    }
}

/// (20.6) HTTP/2 has no half-close: an answer that is silent for the time is cancelled, before its head and behind it, and one
/// that goes on is not.
#[tokio::test]
async fn a_half_closed_caller_waits_so_long_for_an_application_of_http2() {
    const HALF_CLOSED: Duration = Duration::from_millis(600);
    let (told, mut heard) = mpsc::channel(8);
    let application = http2_app(move |request| {
        let told = told.clone();
        async move {
            let path = request.uri().path().to_owned();
            if path == "/headless" {
                let _told = Told(told);
                return std::future::pending().await;
            }
            let (frames, body) = channel();
            tokio::spawn(async move {
                frames.send(data("first")).await.unwrap();
                if path == "/slow" {
                    // As long as three times the time, in pieces that come sooner.
                    for _ in 0..18 {
                        sleep(HALF_CLOSED / 6).await;
                        frames.send(data("x")).await.unwrap();
                    }
                } else {
                    frames.closed().await;
                    told.send(()).await.unwrap();
                }
            });
            Response::new(body)
        }
    })
    .await;
    let authority = Authority::new();
    let short = |tls| Proxy::start_with(tls, |shared| shared.half_closed = HALF_CLOSED);
    let inbound = short(Some(authority.svid("product", true)));
    inbound.shared.live.replace(inbound_model(InboundMode::Strict, Authorization::default())).unwrap();
    let at = inbound.listen(Role::Inbound(Some(application)));
    let (_outbound, address) =
        outbound(Some(authority.svid("order", true)), &[(at, Some(identity("product")))], |cluster, _| {
            cluster.http = weft_core::cluster::HttpVersion::Http2;
        });
    for path in ["/headless", "/silent"] {
        let mut client = if path == "/silent" {
            begun(address, path).await
        } else {
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(b"GET /headless HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
            sleep(Duration::from_millis(100)).await;
            client
        };
        assert!(timeout(2 * HALF_CLOSED, heard.recv()).await.is_err(), "{path}: it has closed nothing yet");
        let started = Instant::now();
        client.shutdown().await.unwrap();
        timeout(WAIT, heard.recv()).await.expect("the application hears of it").unwrap();
        assert!(started.elapsed() >= HALF_CLOSED, "{path}: after {:?}", started.elapsed());
    }
    let mut client = begun(address, "/slow").await;
    client.shutdown().await.unwrap();
    let rest = rest(&mut client).await;
    assert!(rest.ends_with("0\r\n\r\n") && rest.matches('x').count() == 18, "{rest}");
}

/// Tells when the future that holds it is dropped.
struct Told(mpsc::Sender<()>);

impl Drop for Told {
    fn drop(&mut self) {
        self.0.try_send(()).unwrap();
    }
}

/// (20.6) The application, which was told, ends the request without an answer: nobody may wait for another.
#[tokio::test]
async fn a_request_whose_caller_has_half_closed_is_not_sent_again() {
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = requests.clone();
    let application = raw_app(move |mut stream| {
        let counted = counted.clone();
        async move {
            while let Some(head) = read_head(&mut stream).await {
                if head.contains("/warm") {
                    // The next one comes on a connection that was used before.
                    stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
                    continue;
                }
                counted.fetch_add(1, Relaxed);
                if head.contains("/break") {
                    return;
                }
                stream.read_to_end(&mut Vec::new()).await.unwrap();
                return;
            }
        }
    })
    .await;
    let mesh = mesh(application, |_, _| {}).await;
    let (_proxy, direct) = direct(&[application], |_, _| {});
    for address in [mesh.address, direct] {
        let ask = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n");
        let mut client = TcpStream::connect(address).await.unwrap();
        assert!(exchange(&mut client, &ask("/break"), "\r\n\r\n").await.starts_with("HTTP/1.1 50"));
        assert!(requests.swap(0, Relaxed) > 1, "by default it is tried again");
        for path in ["/", "/break"] {
            let mut client = TcpStream::connect(address).await.unwrap();
            assert!(exchange(&mut client, &ask("/warm"), "\r\n\r\n").await.starts_with("HTTP/1.1 204"));
            client.write_all(ask(path).as_bytes()).await.unwrap();
            client.shutdown().await.unwrap();
            let answer = rest(&mut client).await;
            assert!(answer.starts_with("HTTP/1.1 50"), "{answer}");
            // A second one would have come at the latest with its backoff.
            sleep(Duration::from_millis(300)).await;
            if path == "/" {
                assert_eq!(requests.load(Relaxed), 1);
            }
            requests.store(0, Relaxed);
        }
    }
}
