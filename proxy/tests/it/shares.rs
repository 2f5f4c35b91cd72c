//! How calls are shared between endpoints: equal ones evenly; little goes to one that fails fast, says that it is at its limit, or
//! never answers; all of it comes back soon after it has recovered.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use http::{Request, Response};
use http_body::Frame;
use http_body_util::BodyExt;
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use weft_core::cluster::OutlierDetection;

use crate::{
    apps::{channel, data, direct, full, http2_app, http2_client, once, raw_app, read_head},
    pair::Proxy,
};

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

/// How an endpoint answers while it is bad. A good answer takes 5 ms.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Bad {
    /// At once with this HTTP status and these fields.
    Status(u16, &'static str),
    /// Not before it has recovered.
    Silent,
    /// At once with this gRPC status in a head without a body.
    TrailersOnly(&'static str),
    /// At once with this gRPC status in trailers.
    Trailers(&'static str),
    /// Breaks off in the body.
    Cut,
    /// Closes the connection.
    Closes,
}

#[derive(Clone)]
struct Instance {
    address: SocketAddr,
    seen: Arc<AtomicUsize>,
    bad: Arc<AtomicBool>,
}

impl Instance {
    async fn http(latency: Duration, how: Bad) -> Self {
        let (seen, bad) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, is_bad) = (seen.clone(), bad.clone());
        let address = raw_app(move |mut stream| {
            let (count, is_bad) = (count.clone(), is_bad.clone());
            async move {
                while read_head(&mut stream).await.is_some() {
                    count.fetch_add(1, Relaxed);
                    let answer = match is_bad.load(Relaxed).then_some(how) {
                        None => {
                            sleep(latency).await;
                            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_owned()
                        }
                        Some(Bad::Status(status, fields)) => {
                            format!("HTTP/1.1 {status} X\r\n{fields}content-length: 0\r\n\r\n")
                        }
                        Some(Bad::Silent) => {
                            while is_bad.load(Relaxed) {
                                sleep(MS * 50).await;
                            }
                            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_owned()
                        }
                        Some(Bad::Cut) => "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf".to_owned(),
                        Some(_) => return,
                    };
                    let cut = answer.ends_with("half");
                    if stream.write_all(answer.as_bytes()).await.is_err() || cut {
                        return;
                    }
                }
            }
        })
        .await;
        Self { address, seen, bad }
    }

    async fn grpc(latency: Duration, how: Bad) -> Self {
        let (seen, bad) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, is_bad) = (seen.clone(), bad.clone());
        let address = http2_app(move |_| {
            let (count, is_bad) = (count.clone(), is_bad.clone());
            async move {
                count.fetch_add(1, Relaxed);
                let answer = Response::builder().header("content-type", "application/grpc");
                let status = match is_bad.load(Relaxed).then_some(how) {
                    None => {
                        sleep(latency).await;
                        "0"
                    }
                    Some(Bad::TrailersOnly(status)) => {
                        return answer.header("grpc-status", status).body(full("")).unwrap();
                    }
                    Some(Bad::Trailers(status)) => status,
                    Some(_) => {
                        sleep(SECOND * 3600).await;
                        "0"
                    }
                };
                let (frames, body) = channel();
                tokio::spawn(async move {
                    frames.send(data("\0\0\0\0\x01x")).await.ok();
                    let trailers = [("grpc-status".parse().unwrap(), status.parse().unwrap())].into_iter().collect();
                    frames.send(Ok(Frame::trailers(trailers))).await.ok();
                });
                answer.body(body).unwrap()
            }
        })
        .await;
        Self { address, seen, bad }
    }
}

/// Endpoints of one service behind a proxy, the first of them bad.
struct Service {
    all: Vec<Instance>,
    _proxies: Vec<Proxy>,
    address: SocketAddr,
    grpc: bool,
}

impl Service {
    async fn new(count: usize, how: Bad, grpc: bool, detection: bool) -> Self {
        let mut all = Vec::new();
        for _ in 0..count {
            all.push(if grpc { Instance::grpc(MS * 5, how).await } else { Instance::http(MS * 5, how).await });
        }
        if let Some(first) = all.first() {
            first.bad.store(true, Relaxed);
        }
        let addresses: Vec<_> = all.iter().map(|instance| instance.address).collect();
        let (proxy, address) = direct(&addresses, |cluster, forward| {
            cluster.outlier = detection.then(OutlierDetection::default);
            forward.retry.attempts = 1;
        });
        Self { all, _proxies: vec![proxy], address, grpc }
    }

    /// How many calls each endpoint got while so many callers called for a time, each again and again with a pause.
    async fn calls(&self, callers: usize, time: Duration, pause: Duration) -> Vec<usize> {
        let before: Vec<_> = self.all.iter().map(|instance| instance.seen.load(Relaxed)).collect();
        let (mut tasks, end) = (JoinSet::new(), Instant::now() + time);
        for _ in 0..callers {
            let (address, grpc) = (self.address, self.grpc);
            tasks.spawn(async move {
                while Instant::now() < end {
                    // A caller that got no answer in time starts anew.
                    let _late = timeout(SECOND, async {
                        if grpc { grpc_calls(address, end, pause).await } else { http_calls(address, end, pause).await }
                    })
                    .await;
                }
            });
        }
        tasks.join_all().await;
        self.all.iter().zip(before).map(|(instance, before)| instance.seen.load(Relaxed) - before).collect()
    }
}

/// Calls on one connection until the end, or until it breaks.
async fn http_calls(address: SocketAddr, end: Instant, pause: Duration) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    while Instant::now() < end {
        stream.write_all(b"GET / HTTP/1.1\r\nhost: product\r\n\r\n").await.unwrap();
        let Some(_answer) = read_head(&mut stream).await else { return };
        sleep(pause).await;
    }
}

async fn grpc_calls(address: SocketAddr, end: Instant, pause: Duration) {
    let mut client = http2_client(address).await;
    while Instant::now() < end {
        let request = Request::post("http://product/x").header("content-type", "application/grpc");
        let Ok(answer) = client.send_request(request.body(full("\0\0\0\0\0")).unwrap()).await else { return };
        answer.into_body().collect().await.ok();
        sleep(pause).await;
    }
}

fn share(calls: &[usize], index: usize) -> f64 {
    calls[index] as f64 / calls.iter().sum::<usize>().max(1) as f64
}

/// The share of one endpoint that is bad, of two or three, with one caller and with ten, after 2 s.
async fn shares_of_a_bad_one(how: Bad, grpc: bool, detection: bool) {
    let mut tasks = JoinSet::new();
    for (count, callers) in [(3, 1), (3, 10), (2, 1), (2, 10)] {
        tasks.spawn(async move {
            let service = Service::new(count, how, grpc, detection).await;
            service.calls(callers, SECOND * 2, MS * 10).await;
            let calls = service.calls(callers, SECOND * 4, MS * 10).await;
            (count, callers, calls)
        });
    }
    for (count, callers, calls) in tasks.join_all().await {
        let share = share(&calls, 0);
        eprintln!("{how:?}, detection {detection}, 1 of {count}, {callers} callers: {share:.3} of {calls:?}");
        assert!(share <= 0.1, "{how:?}, detection {detection}, 1 of {count}, {callers} callers: {calls:?}");
    }
}

/// (27.2)
#[tokio::test]
async fn an_http_endpoint_that_fails_fast_gets_few_calls() {
    for how in [Bad::Status(500, ""), Bad::Status(503, ""), Bad::Status(429, ""), Bad::Cut, Bad::Closes] {
        shares_of_a_bad_one(how, false, false).await;
    }
    for how in [Bad::Status(500, ""), Bad::Status(503, "")] {
        shares_of_a_bad_one(how, false, true).await;
    }
}

/// (27.2)
#[tokio::test]
async fn a_grpc_endpoint_that_fails_fast_gets_few_calls() {
    for how in [Bad::TrailersOnly("14"), Bad::Trailers("14"), Bad::TrailersOnly("8"), Bad::Trailers("13")] {
        shares_of_a_bad_one(how, true, false).await;
    }
    for how in [Bad::TrailersOnly("14"), Bad::Trailers("14")] {
        shares_of_a_bad_one(how, true, true).await;
    }
}

/// (27.2) Callers that never give up, and callers that give up after a second.
#[tokio::test]
async fn an_endpoint_that_never_answers_gets_few_calls() {
    for grpc in [false, true] {
        for (count, callers) in [(3, 30), (2, 30), (3, 3)] {
            let service = Service::new(count, Bad::Silent, grpc, false).await;
            service.calls(callers, SECOND * 2, MS * 20).await;
            let calls = service.calls(callers, SECOND * 4, MS * 20).await;
            eprintln!("silent, grpc {grpc}, 1 of {count}, {callers} callers: {:.3} of {calls:?}", share(&calls, 0));
            assert!(share(&calls, 0) <= 0.05, "grpc {grpc}, 1 of {count}, {callers} callers: {calls:?}");
        }
    }
}

/// (27.2) Services of less than a millisecond: what a machine does beside it must not matter for long.
#[tokio::test]
async fn equal_endpoints_share_evenly_over_ten_seconds() {
    let mut tasks = JoinSet::new();
    for (count, callers) in [(2, 1), (3, 1), (5, 1), (2, 10), (3, 10), (5, 10)] {
        tasks.spawn(async move {
            let mut service = Service::new(0, Bad::Silent, false, false).await;
            for _ in 0..count {
                service.all.push(Instance::http(Duration::ZERO, Bad::Silent).await);
            }
            let addresses: Vec<_> = service.all.iter().map(|instance| instance.address).collect();
            let (proxy, address) = direct(&addresses, |_, _| {});
            service._proxies.push(proxy);
            service.address = address;
            // What else the machine does may disturb a window: one of three has to be even.
            let mut windows = Vec::new();
            for _ in 0..3 {
                windows.push(service.calls(callers, SECOND * 10, MS * 5).await);
                if windows.last().is_some_and(|calls| is_even(calls)) {
                    break;
                }
            }
            (count, callers, windows)
        });
    }
    for (count, callers, windows) in tasks.join_all().await {
        eprintln!("{count} equal, {callers} callers: {windows:?}");
        assert!(windows.last().is_some_and(|calls| is_even(calls)), "{count} equal, {callers} callers: {windows:?}");
    }
}

/// Whether every share is within 20 % of a fair one.
fn is_even(calls: &[usize]) -> bool {
    let fair = calls.iter().sum::<usize>() as f64 / calls.len() as f64;
    calls.iter().all(|seen| (*seen as f64 - fair).abs() <= fair * 0.2)
}

/// (27.2)
#[tokio::test]
async fn an_endpoint_that_recovers_gets_its_share_within_fifteen_seconds() {
    let mut tasks = JoinSet::new();
    let cases = [
        (Bad::Status(500, ""), false),
        (Bad::Status(429, ""), false),
        (Bad::TrailersOnly("14"), true),
        (Bad::Silent, false),
    ];
    for (how, grpc) in cases {
        for callers in [1, 10] {
            tasks.spawn(async move {
                let service = Service::new(3, how, grpc, false).await;
                service.calls(callers, SECOND * 8, MS * 10).await;
                service.all[0].bad.store(false, Relaxed);
                let recovered = Instant::now();
                loop {
                    let calls = service.calls(callers, SECOND, MS * 10).await;
                    if share(&calls, 0) >= 0.8 / 3.0 {
                        break eprintln!("{how:?}, {callers} callers: fair {:?} after recovery", recovered.elapsed());
                    }
                    assert!(recovered.elapsed() < SECOND * 15, "{how:?}, {callers} callers: {calls:?}");
                }
            });
        }
    }
    tasks.join_all().await;
}

/// (27.2) For 4 s after the third 429 nothing goes there; then its share comes back.
#[tokio::test]
async fn an_endpoint_that_says_when_to_come_back_is_left_alone_until_then() {
    let service = Service::new(3, Bad::Status(429, "retry-after: 4\r\n"), false, false).await;
    let end = Instant::now() + SECOND * 60;
    while service.all[0].seen.load(Relaxed) < 3 {
        assert!(Instant::now() < end, "it is tried");
        service.calls(1, MS * 20, MS).await;
    }
    let seen = service.all[0].seen.load(Relaxed);
    service.all[0].bad.store(false, Relaxed);
    let since = Instant::now();
    while service.all[0].seen.load(Relaxed) == seen {
        assert!(since.elapsed() < SECOND * 30, "it is used again");
        service.calls(1, MS * 20, MS).await;
    }
    assert!(since.elapsed() > SECOND * 3, "{:?}", since.elapsed());
}

/// (27.2)
#[tokio::test]
async fn a_retry_waits_for_as_long_as_the_only_endpoint_asks_and_a_long_pause_is_left_to_the_caller() {
    for (asked, status, least) in [("1", "200", SECOND), ("30", "503", Duration::ZERO)] {
        let seen = Arc::new(AtomicUsize::new(0));
        let count = seen.clone();
        let application = raw_app(move |mut stream| {
            let count = count.clone();
            async move {
                while read_head(&mut stream).await.is_some() {
                    let answer = if count.fetch_add(1, Relaxed) == 0 {
                        format!("HTTP/1.1 503 X\r\nretry-after: {asked}\r\ncontent-length: 0\r\n\r\n")
                    } else {
                        "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_owned()
                    };
                    stream.write_all(answer.as_bytes()).await.ok();
                }
            }
        })
        .await;
        let (_proxy, address) = direct(&[application], |_, _| {});
        let start = Instant::now();
        let answer = once(address, "GET", "/").await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{asked}: {answer}");
        assert!(start.elapsed() >= least, "{asked}: {:?}", start.elapsed());
        assert_eq!(seen.load(Relaxed), if status == "200" { 2 } else { 1 });
    }
}
