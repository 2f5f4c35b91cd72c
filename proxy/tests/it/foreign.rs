//! Programs that nobody here wrote, through both proxies: curl and h2load as callers, Node as the application. What a caller
//! hears is compared with what it hears without proxies; and what such programs once showed to be wrong.

use std::{
    io::{BufRead, BufReader},
    net::{Ipv4Addr, SocketAddr},
    process::{Child, Command, Stdio},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};

use crate::apps::{Mesh, direct, empty, full, http1_app, mesh};

const PATIENCE: Duration = Duration::from_secs(20);

/// The application in Node. It ends with this.
struct Node {
    child: Child,
    http1: SocketAddr,
    http2: SocketAddr,
}

impl Node {
    fn start() -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/foreign/app.js");
        let mut child =
            Command::new("node").arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("node runs");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let mut ports = line.split_whitespace().map(|port| (Ipv4Addr::LOCALHOST, port.parse().unwrap()).into());
        Self { child, http1: ports.next().unwrap(), http2: ports.next().unwrap() }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Runs a program to its end while the proxies go on. Returns its exit code and what it printed.
async fn run(program: &'static str, arguments: Vec<String>) -> (Option<i32>, String) {
    let output = tokio::task::spawn_blocking(move || Command::new(program).args(arguments).output());
    let output = timeout(PATIENCE, output).await.expect("it comes to its end").unwrap().expect("it is installed");
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

async fn curl(options: &str, to: SocketAddr, path: &str) -> (Option<i32>, String) {
    let mut arguments: Vec<String> = options.split_whitespace().map(str::to_owned).collect();
    arguments.extend(
        ["-sS", "-m", "15", "-w", "\nstatus %{http_code}, %header{etag} %header{set-cookie}\n"].map(str::to_owned),
    );
    arguments.push(format!("http://{to}{path}"));
    run("curl", arguments).await
}

/// The `succeeded` of h2load's summary.
async fn h2load(options: &str, to: SocketAddr, path: &str) -> String {
    let mut arguments: Vec<String> = options.split_whitespace().map(str::to_owned).collect();
    arguments.push(format!("http://{to}{path}"));
    let (_, printed) = run("h2load", arguments).await;
    printed.lines().find(|line| line.starts_with("requests:")).unwrap_or(&printed).to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_hears_the_same_as_without_proxies() {
    let node = Node::start();
    let (one, two) = (mesh(node.http1, |_, _| {}).await, mesh(node.http2, |_, _| {}).await);
    let upload = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(upload.path(), (0..3_000_000_u32).map(|i| (i % 251) as u8).collect::<Vec<_>>()).unwrap();
    let file = upload.path().display();
    let http1 = [
        ("", "/x?a=b%20c"),
        ("-I -o /dev/null", "/x"),
        ("-X DELETE", "/x"),
        ("-d a=b", "/x"),
        ("-H Cookie:a=1 -H x-empty; -H X-Mixed:Case", "/x"),
        ("", "/bytes/1"),
        ("", "/bytes/65536"),
        ("", "/bytes/3000000"),
        ("", "/chunked"),
        ("", "/empty"),
        ("", "/same"),
        ("", "/cookies"),
        ("", "/hints"),
        ("-H TE:trailers", "/trailers"),
        ("", "/cut"),
    ];
    let uploads =
        [("", "/x"), ("-H Expect:", "/x"), ("", "/too-large")].map(|(more, path)| (format!("-T {file} {more}"), path));
    let mut wrong = Vec::new();
    for version in ["--http1.0", "--http1.1"] {
        let cases = http1.map(|(options, path)| (options.to_owned(), path)).into_iter().chain(uploads.clone());
        for (options, path) in cases {
            let options = format!("{version} {options}");
            compare(&mut wrong, &options, path, node.http1, &one).await;
        }
    }
    compare(&mut wrong, &format!("-H Transfer-Encoding:chunked -T {file}"), "/x", node.http1, &one).await;
    for (options, path) in [
        ("", "/x?a"),
        ("-I -o /dev/null", "/x"),
        ("-d a=b", "/x"),
        ("", "/bytes/3000000"),
        ("", "/empty"),
        ("", "/cookies"),
        ("", "/trailers"),
        (&*format!("-T {file}"), "/x"),
    ] {
        compare(&mut wrong, &format!("--http2-prior-knowledge {options}"), path, node.http2, &two).await;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// curl's exit code when what it sends meets a closed connection.
const CURLE_SEND_ERROR: i32 = 55;

async fn compare(wrong: &mut Vec<String>, options: &str, path: &str, application: SocketAddr, mesh: &Mesh) {
    // Where Node answers before it has read all, what it writes and what it resets race, and curl may not hear the answer.
    let undisturbed = async {
        for _ in 0..10 {
            let heard = curl(options, application, path).await;
            if heard.0 != Some(CURLE_SEND_ERROR) {
                return heard;
            }
        }
        panic!("without proxies {path} is never answered");
    };
    let (without, with) = tokio::join!(undisturbed, curl(options, mesh.address, path));
    if without != with {
        wrong.push(format!("curl {options} {path}\n  without {without:.300?}\n  with    {with:.300?}"));
    }
}

/// Node ends answers with NO_ERROR instead of END_STREAM when it is busy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h2load_hears_whole_answers_of_node() {
    let node = Node::start();
    let (one, two) = (mesh(node.http1, |_, _| {}).await, mesh(node.http2, |_, _| {}).await);
    for (options, mesh) in
        [("-n 300 -c 5 -m 50", &two), ("-n 300 -c 5 -m 50 -w 14 -W 15", &two), ("--h1 -n 600 -c 30", &one)]
    {
        let told = h2load(options, mesh.address, "/bytes/65536").await;
        assert!(told.contains(" 0 failed, 0 errored, 0 timeout"), "{options}: {told}");
    }
}

/// The end of an answer gives its connection to the next request. What still waited for HTTP/2's windows then once read on in the
/// next answer.
#[tokio::test]
async fn answers_that_wait_for_windows_do_not_mix() {
    let application = http1_app(|request| async move {
        let number: u8 = request.uri().path()[1..].parse().unwrap();
        Response::new(full(vec![number; 64 * 1024]))
    })
    .await;
    let mesh = mesh(application, |_, _| {}).await;
    let calls: Vec<_> = (0..40_u8)
        .map(|number| {
            let address = mesh.address;
            tokio::spawn(async move {
                let stream = TcpStream::connect(address).await.unwrap();
                let (mut sender, connection) =
                    hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
                tokio::spawn(connection);
                for _ in 0..20 {
                    sender.ready().await.unwrap();
                    let request = Request::get(format!("/{number}")).header("host", "product").body(empty()).unwrap();
                    let answer = sender.send_request(request).await.unwrap();
                    let body = answer.into_body().collect().await.expect("the answer is whole").to_bytes();
                    assert!(body.len() == 64 * 1024 && body.iter().all(|byte| *byte == number), "another's answer");
                }
            })
        })
        .collect();
    for call in calls {
        timeout(PATIENCE, call).await.unwrap().unwrap();
    }
}

/// An application of h2 that begins an answer and then resets it.
async fn resetting(length: Option<usize>, reason: h2::Reason) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    let mut head = Response::builder();
                    if let Some(length) = length {
                        head = head.header("content-length", length);
                    }
                    let mut body = respond.send_response(head.body(()).unwrap(), false).unwrap();
                    body.send_data(Bytes::from_static(b"hello"), false).unwrap();
                    tokio::spawn(async move {
                        sleep(Duration::from_millis(50)).await;
                        body.send_reset(reason);
                    });
                }
            });
        }
    });
    address
}

/// What a caller of h2 is given: the body and how it ended.
async fn call(address: SocketAddr) -> (Vec<u8>, Option<h2::Reason>) {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("http://product/").body(()).unwrap();
    let mut body = sender.send_request(request, true).unwrap().0.await.unwrap().into_body();
    let mut all = Vec::new();
    while let Some(data) = body.data().await {
        match data {
            Ok(data) => all.extend(data),
            Err(error) => return (all, error.reason()),
        }
    }
    (all, None)
}

/// (36)
#[tokio::test]
async fn an_answer_reset_with_no_error_is_whole_only_where_its_length_says_so() {
    let (as_it_came, cut) = (Some(h2::Reason::NO_ERROR), Some(h2::Reason::INTERNAL_ERROR));
    for (length, expected) in [(None, as_it_came), (Some(5), None), (Some(6), cut)] {
        let mesh = mesh(resetting(length, h2::Reason::NO_ERROR).await, |_, _| {}).await;
        let (body, ended) = timeout(PATIENCE, call(mesh.address)).await.unwrap();
        assert_eq!((&body[..], ended), (&b"hello"[..], expected), "Content-Length {length:?}");
    }
}

/// (36) A caller of HTTP/1 hears that an answer without a length was cut.
#[tokio::test]
async fn an_answer_without_a_length_that_is_reset_with_no_error_has_no_end_in_http1() {
    let application = resetting(None, h2::Reason::NO_ERROR).await;
    let (_proxy, address) = direct(&[application], |cluster, _| cluster.http = weft_core::cluster::HttpVersion::Http2);
    let answer = timeout(PATIENCE, crate::apps::once(address, "GET", "/")).await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.contains("hello") && !answer.ends_with("0\r\n\r\n"),
        "{answer}"
    );
}

/// Node and hyper take CANCEL for an end that they asked for: by it a cut answer would look whole.
#[tokio::test]
async fn a_cut_answer_is_not_reset_with_cancel() {
    for reason in [h2::Reason::CANCEL, h2::Reason::INTERNAL_ERROR] {
        let mesh = mesh(resetting(None, reason).await, |_, _| {}).await;
        let (body, ended) = timeout(PATIENCE, call(mesh.address)).await.unwrap();
        assert_eq!((&body[..], ended), (&b"hello"[..], Some(h2::Reason::INTERNAL_ERROR)), "{reason:?}");
    }
}
