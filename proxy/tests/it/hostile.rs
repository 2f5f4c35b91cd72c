//! Callers that give up, and callers of HTTP/2 that send what no honest one does: they hurt themselves only.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use http::{Request, Response};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, WriteHalf, split},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};
use weft_core::{cluster::HttpVersion, listener::InboundMode, policy::Authorization};

use crate::{
    apps::{TestBody, full, http1_app, http2_app, mesh, once, until},
    pair::{Authority, inbound},
    traffic::mirror,
};

const PATIENCE: Duration = Duration::from_secs(20);
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;

fn frame(kind: u8, flags: u8, id: u32, payload: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&[a, b, c, kind, flags][..], &id.to_be_bytes(), payload].concat()
}

/// A field of HPACK, added to the table where `index`.
fn field(name: &str, value: &str, index: bool) -> Vec<u8> {
    let len = |text: &str| u8::try_from(text.len()).unwrap();
    [&[if index { 0x40 } else { 0 }, len(name)][..], name.as_bytes(), &[len(value)], value.as_bytes()].concat()
}

fn head(method: &str) -> Vec<u8> {
    [(":method", method), (":scheme", "http"), (":path", "/slow"), (":authority", "product")]
        .into_iter()
        .flat_map(|(name, value)| field(name, value, false))
        .collect()
}

/// What a raw caller was sent.
#[derive(Debug, Default)]
struct Told {
    /// RST_STREAM with REFUSED_STREAM.
    refused: AtomicUsize,
    goaways: AtomicUsize,
    closed: AtomicUsize,
}

/// A raw caller behind its preface: the side to write, and what comes back.
async fn caller<S: AsyncRead + AsyncWrite + Send + 'static>(stream: S) -> (WriteHalf<S>, Arc<Told>) {
    let (read, mut write) = split(stream);
    let told = Arc::new(Told::default());
    tokio::spawn(listen(read, told.clone()));
    write.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[]), &frame(SETTINGS, 1, 0, &[])].concat()).await.unwrap();
    (write, told)
}

async fn listen(mut read: impl AsyncRead + Unpin, told: Arc<Told>) {
    let mut header = [0; 9];
    while read.read_exact(&mut header).await.is_ok() {
        let len = u32::from_be_bytes([0, header[0], header[1], header[2]]);
        let mut payload = vec![0; len as usize];
        if read.read_exact(&mut payload).await.is_err() {
            break;
        }
        match header[3] {
            RST_STREAM if payload == [0, 0, 0, 7] => drop(told.refused.fetch_add(1, Relaxed)),
            // ENHANCE_YOUR_CALM
            GOAWAY if payload[4..8] == [0, 0, 0, 11] => drop(told.goaways.fetch_add(1, Relaxed)),
            _ => {}
        }
    }
    told.closed.store(1, Relaxed);
}

/// What an application does that takes half a second for a POST, and never answers `/slow`.
async fn work(request: Request<hyper::body::Incoming>, running: Arc<AtomicUsize>) -> Response<TestBody> {
    running.fetch_add(1, Relaxed);
    if request.uri().path() == "/slow" {
        std::future::pending::<()>().await;
    }
    sleep(PATIENCE / 40).await;
    Response::new(full("ok"))
}

/// (28)
#[tokio::test]
async fn callers_of_http1_that_hang_up_do_not_disturb_others_on_the_same_hop() {
    let application = http1_app(|request| work(request, Arc::default())).await;
    let mesh = mesh(application, |_, _| {}).await;
    let (address, given_up) = (mesh.address, Arc::new(AtomicUsize::new(0)));
    let ends = Instant::now() + PATIENCE / 4;
    let attackers: Vec<_> = (0..4)
        .map(|_| {
            let given_up = given_up.clone();
            tokio::spawn(async move {
                while Instant::now() < ends && given_up.load(Relaxed) < 3_000 {
                    let mut client = TcpStream::connect(address).await.unwrap();
                    client.write_all(b"GET /slow HTTP/1.1\r\nhost: product\r\n\r\n").await.unwrap();
                    sleep(Duration::from_millis(2)).await;
                    SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
                    drop(client);
                    given_up.fetch_add(1, Relaxed);
                }
            })
        })
        .collect();
    let innocents: Vec<_> = (0..10)
        .map(|_| {
            tokio::spawn(async move {
                let mut answers = Vec::new();
                while Instant::now() < ends {
                    answers.push(once(address, "POST", "/").await);
                }
                answers
            })
        })
        .collect();
    for attacker in attackers {
        attacker.await.unwrap();
    }
    for innocent in innocents {
        for answer in innocent.await.unwrap() {
            assert!(answer.starts_with("HTTP/1.1 200"), "{} given up: {answer}", given_up.load(Relaxed));
        }
    }
    assert!(given_up.load(Relaxed) > 500, "{given_up:?}");
}

/// (28) Directly, and as another proxy.
#[tokio::test]
async fn a_caller_of_http2_that_gives_up_every_request_after_two_milliseconds_is_cut() {
    let authority = Authority::new();
    let application = http2_app(|request| work(request, Arc::default())).await;
    for mode in [InboundMode::Permissive, InboundMode::Strict] {
        let (_inbound, at) = inbound(authority.svid("product", true), application, mode, Authorization::default());
        let (mut write, told): (Box<dyn AsyncWrite + Unpin + Send>, _) = if mode == InboundMode::Strict {
            let (write, told) = caller(authority.dial("order", at, b"weft-h2").await).await;
            (Box::new(write), told)
        } else {
            let (write, told) = caller(TcpStream::connect(at).await.unwrap()).await;
            (Box::new(write), told)
        };
        let mut sent = 0;
        while told.closed.load(Relaxed) == 0 && sent < 1_000 {
            let id = 2 * sent + 1;
            let opened = write.write_all(&frame(HEADERS, 5, id, &head("GET"))).await.is_ok();
            sleep(Duration::from_millis(2)).await;
            if !opened || write.write_all(&frame(RST_STREAM, 0, id, &[0, 0, 0, 8])).await.is_err() {
                break;
            }
            write.flush().await.ok();
            sent += 1;
        }
        assert!(until(PATIENCE, || told.closed.load(Relaxed) == 1).await.is_some(), "{mode:?}");
        assert!(sent <= 500 && told.goaways.load(Relaxed) >= 1, "{mode:?}: {sent} {told:?}");
    }
}

/// (31)
#[tokio::test]
async fn heads_that_are_made_large_by_compression_are_bounded_in_sum_and_their_memory_is_given_back() {
    let running = Arc::new(AtomicUsize::new(0));
    let begun = running.clone();
    let application = http2_app(move |request| work(request, begun.clone())).await;
    let mesh = mesh(application, |cluster, _| cluster.http = HttpVersion::Http2).await;
    let (mut write, told) = caller(TcpStream::connect(mesh.address).await.unwrap()).await;
    for number in 0..100_u32 {
        // 98 references to a field of 115 bytes.
        let added = if number == 0 { field("x-a", &"z".repeat(115), true) } else { Vec::new() };
        let block = [head("POST"), added, vec![0xbe; 98]].concat();
        write.write_all(&frame(HEADERS, 4, 2 * number + 1, &block)).await.unwrap();
    }
    assert!(until(PATIENCE, || told.refused.load(Relaxed) >= 85).await.is_some(), "{told:?}");
    let heads = &mesh.outbound.shared.heads;
    assert!((32 * 1024..=68 * 1024).contains(&heads.load(Relaxed)), "{heads:?}");
    assert!(until(PATIENCE, || running.load(Relaxed) >= 3).await.is_some(), "the first ones pass: {running:?}");
    // Another caller, and one with a large head of its own.
    let answer = once(mesh.address, "POST", "/").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let (mut other, heard) = caller(TcpStream::connect(mesh.address).await.unwrap()).await;
    let block = [head("POST"), field("x-a", &"z".repeat(115), true), vec![0xbe; 90]].concat();
    let before = running.load(Relaxed);
    other.write_all(&frame(HEADERS, 4, 1, &block)).await.unwrap();
    assert!(until(PATIENCE, || running.load(Relaxed) > before).await.is_some(), "{heard:?}");
    write.shutdown().await.unwrap();
    other.shutdown().await.unwrap();
    let inbound = &mesh.inbound.shared.heads;
    assert!(until(PATIENCE, || heads.load(Relaxed) + inbound.load(Relaxed) == 0).await.is_some(), "{heads:?}");
}

/// (31) Answers that nobody reads.
#[tokio::test]
async fn a_caller_that_does_not_read_its_answers_is_not_read_either() {
    let answered = Arc::new(AtomicUsize::new(0));
    let count = answered.clone();
    let application = http2_app(move |_| {
        count.fetch_add(1, Relaxed);
        async { Response::builder().header("x-pad", "p".repeat(8_000)).body(full("")).unwrap() }
    })
    .await;
    let mesh = mesh(application, |_, _| {}).await;
    let mut stream = TcpStream::connect(mesh.address).await.unwrap();
    SockRef::from(&stream).set_recv_buffer_size(4096).unwrap();
    stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await.unwrap();
    let flood = async {
        for number in 0..100_000_u32 {
            if number % 20 == 0 {
                sleep(Duration::from_millis(1)).await;
            }
            stream.write_all(&frame(HEADERS, 5, 2 * number + 1, &head("GET"))).await.unwrap();
        }
    };
    assert!(timeout(PATIENCE / 4, flood).await.is_err(), "it must wait");
    let count = answered.load(Relaxed);
    assert!((60..4_000).contains(&count), "{count} answers of 8 KiB");
}

/// (36)
#[tokio::test]
async fn a_peers_word_about_tunnels_is_judged_as_a_request_is() {
    let authority = Authority::new();
    let application = mirror().await;
    let (_inbound, at) =
        inbound(authority.svid("product", true), application, InboundMode::Strict, Authorization::default());
    let stream = authority.dial("mallory", at, b"weft-h2").await;
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let mut sender = sender.ready().await.unwrap();
    assert!(until(PATIENCE, || sender.is_extended_connect_protocol_enabled()).await.is_some());
    for (protocol, method, status) in [
        ("h2c", None, 501),
        ("H2C", None, 501),
        ("http/1.1", None, 501),
        ("websocket, h2c", None, 501),
        ("a b", None, 501),
        ("websocket", Some("TRACE"), 405),
        ("websocket", Some("CONNECT"), 400),
        ("websocket", Some("GET /forged"), 400),
    ] {
        let mut request = Request::builder().method("CONNECT").uri("http://product/");
        if let Some(method) = method {
            request = request.header("weft-method", method);
        }
        let mut request = request.body(()).unwrap();
        request.extensions_mut().insert(h2::ext::Protocol::from(protocol));
        let (answer, _stream) = sender.send_request(request, false).unwrap();
        let answer = timeout(PATIENCE, answer).await.unwrap().unwrap();
        assert_eq!(answer.status(), status, "{protocol} {method:?}");
    }
}
