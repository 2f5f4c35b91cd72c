//! Requests that cross several services: edge -> a -> b -> c, each with a proxy of its own, which is its inbound and its outbound
//! side, and applications that pass on no field of a request. What a failure at the end costs those in between.

use std::{
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{
    io::AsyncWriteExt,
    net::TcpSocket,
    time::{MissedTickBehavior, interval, sleep},
};
use weft_core::{listener::InboundMode, policy::Authorization};
use weft_proxy::listener::socket::Role;

use crate::{
    apps::{fixed_app, once, raw, raw_app, read_head},
    pair::{Authority, Proxy, endpoint_set, identity, inbound, inbound_model, outbound, outbound_model, service},
};

/// The most requests that a service at any place of the chain may receive for each one at the edge. (27.8)
const BAR: f64 = 1.75;

/// What the last service does with every request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fails {
    /// It answers 503.
    Answers,
    /// It reads the request and closes.
    Resets,
    /// Nobody listens, but its proxy does.
    Refuses,
    /// Neither listens.
    Gone,
}

/// A service and how many requests its application has read.
struct Service {
    /// Where its proxy is called.
    address: SocketAddr,
    requests: Arc<AtomicUsize>,
    _proxy: Option<Proxy>,
    /// Keeps the port of an application that does not listen: another test's must not.
    _refusing: Option<TcpSocket>,
}

impl Service {
    fn requests(&self) -> f64 {
        f64::from(u32::try_from(self.requests.load(Relaxed)).unwrap())
    }
}

/// The last service.
async fn last(authority: &Authority, fails: Fails) -> Service {
    let (requests, mut refusing) = (Arc::<AtomicUsize>::default(), None);
    let application = match fails {
        Fails::Refuses | Fails::Gone => {
            let socket = refusing.insert(TcpSocket::new_v4().unwrap());
            socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
            socket.local_addr().unwrap()
        }
        Fails::Answers | Fails::Resets => {
            let count = requests.clone();
            raw_app(move |mut stream| {
                let count = count.clone();
                async move {
                    while read_head(&mut stream).await.is_some() {
                        count.fetch_add(1, Relaxed);
                        if fails == Fails::Resets {
                            return;
                        }
                        stream.write_all(b"HTTP/1.1 503 X\r\ncontent-length: 0\r\n\r\n").await.ok();
                    }
                }
            })
            .await
        }
    };
    if fails == Fails::Gone {
        return Service { address: application, requests, _proxy: None, _refusing: refusing };
    }
    let svid = authority.svid("product", true);
    let (proxy, address) = inbound(svid, application, InboundMode::Strict, Authorization::default());
    Service { address, requests, _proxy: Some(proxy), _refusing: refusing }
}

/// What the application of a service in between answers when the service behind it has answered.
type Answers = fn(behind: &str, number: usize) -> &'static str;

/// The status of an answer.
fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or("none")
}

/// It answers as it was answered, and with 503 where it was not.
fn as_behind(behind: &str, _number: usize) -> &'static str {
    if status(behind) == "200" { "200" } else { "503" }
}

/// A service whose application calls the one behind for each request, by a request of its own.
async fn between(authority: &Authority, behind: &[SocketAddr], answers: Answers) -> Service {
    let (requests, next) = (Arc::<AtomicUsize>::default(), Arc::<OnceLock<SocketAddr>>::default());
    let (count, calls) = (requests.clone(), next.clone());
    let application = raw_app(move |mut stream| {
        let (count, calls) = (count.clone(), calls.clone());
        async move {
            while read_head(&mut stream).await.is_some() {
                let number = count.fetch_add(1, Relaxed);
                let heard = once(*calls.get().unwrap(), "GET", "/").await;
                let answer = format!("HTTP/1.1 {} X\r\ncontent-length: 0\r\n\r\n", answers(&heard, number));
                stream.write_all(answer.as_bytes()).await.ok();
            }
        }
    })
    .await;
    let (proxy, address) = beside(authority, application, behind, &next);
    Service { address, requests, _proxy: Some(proxy), _refusing: None }
}

/// One proxy, as beside a workload: what it calls and what it answers meet there. `calls`: where its application calls.
fn beside(
    authority: &Authority,
    application: SocketAddr,
    behind: &[SocketAddr],
    calls: &OnceLock<SocketAddr>,
) -> (Proxy, SocketAddr) {
    let proxy = Proxy::start(Some(authority.svid("product", true)));
    let mut resources = inbound_model(InboundMode::Strict, Authorization::default());
    let outbound = outbound_model(|_, _| {});
    resources.listeners.extend(outbound.listeners);
    resources.routes.extend(outbound.routes);
    resources.clusters.extend(outbound.clusters);
    proxy.shared.live.replace(resources).unwrap();
    proxy.shared.live.set_endpoints(&meshed(behind));
    calls.set(proxy.listen(Role::Outbound(Some(service())))).unwrap();
    let address = proxy.listen(Role::Inbound(Some(application)));
    (proxy, address)
}

fn meshed(addresses: &[SocketAddr]) -> weft_core::endpoint::EndpointSet {
    let endpoints: Vec<_> = addresses.iter().map(|address| (*address, Some(identity("product")))).collect();
    endpoint_set(&endpoints)
}

/// Where callers enter.
fn edge(authority: &Authority, first: &[SocketAddr]) -> (Proxy, SocketAddr) {
    let endpoints: Vec<_> = first.iter().map(|address| (*address, Some(identity("product")))).collect();
    outbound(Some(authority.svid("edge", true)), &endpoints, |_, _| {})
}

/// Calls at a rate; how many succeeded.
async fn load(address: SocketAddr, rate: u32, calls: u32) -> u32 {
    let succeeded = Arc::<AtomicU32>::default();
    let mut ticks = interval(Duration::from_secs(1) / rate);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut all = Vec::new();
    for _ in 0..calls {
        ticks.tick().await;
        let succeeded = succeeded.clone();
        all.push(tokio::spawn(async move {
            let good = status(&once(address, "GET", "/").await) == "200";
            succeeded.fetch_add(u32::from(good), Relaxed);
        }));
    }
    for call in all {
        call.await.unwrap();
    }
    succeeded.load(Relaxed)
}

/// How many requests each service receives for one at the edge while the last one fails.
async fn amplification(fails: Fails, rate: u32, calls: u32) -> [f64; 3] {
    let authority = Authority::new();
    let c = last(&authority, fails).await;
    let b = between(&authority, &[c.address], as_behind).await;
    let a = between(&authority, &[b.address], as_behind).await;
    let (_edge, address) = edge(&authority, &[a.address]);
    assert_eq!(load(address, rate, calls).await, 0, "{fails:?}");
    [a, b, c].map(|service| service.requests() / f64::from(calls))
}

/// (27.8)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_hop_of_a_chain_retries() {
    let all = [Fails::Answers, Fails::Resets, Fails::Refuses, Fails::Gone];
    let slowly = join_all(all.map(|fails| async move { (fails, 5, amplification(fails, 5, 60).await) })).await;
    let mut measured = slowly;
    for fails in all {
        measured.push((fails, 200, amplification(fails, 200, 800).await));
    }
    println!("{measured:.2?}");
    for (fails, rate, factors) in &measured {
        assert!(factors.iter().all(|factor| *factor <= BAR), "{fails:?} at {rate}/s: {factors:.2?} of {measured:.2?}");
    }
}

/// The share of calls that succeed with two instances of `c`, of which one fails.
async fn with_one_of_two(fails: Fails, rate: u32, calls: u32) -> u32 {
    let authority = Authority::new();
    let (bad, good) = (last(&authority, fails).await, fixed_app(200, "ok").await);
    let svid = authority.svid("product", true);
    let (_c, good) = inbound(svid, good, InboundMode::Strict, Authorization::default());
    let b = between(&authority, &[bad.address, good], as_behind).await;
    let a = between(&authority, &[b.address], as_behind).await;
    let (_edge, address) = edge(&authority, &[a.address]);
    calls - load(address, rate, calls).await
}

/// (27.8)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_failing_instance_of_two_at_the_end_of_a_chain_fails_no_call() {
    let all = [Fails::Answers, Fails::Resets, Fails::Refuses, Fails::Gone];
    let mut failed = join_all(all.map(|fails| async move { (fails, 5, with_one_of_two(fails, 5, 50).await) })).await;
    for fails in all {
        failed.push((fails, 200, with_one_of_two(fails, 200, 1000).await));
    }
    println!("{failed:?}");
    assert!(failed.iter().all(|(_, rate, failed)| *failed <= rate / 200), "{failed:?}");
}

/// It answers although what it calls has failed, but for every tenth request, for a reason of its own.
fn without_what_is_behind(_behind: &str, number: usize) -> &'static str {
    if number % 10 == 9 { "503" } else { "200" }
}

/// (27.8) What a workload fails at by itself is tried again, whatever becomes of its own calls.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_of_a_service_itself_is_tried_again_although_what_it_calls_fails_too() {
    let authority = Authority::new();
    let c = last(&authority, Fails::Answers).await;
    let b = between(&authority, &[c.address], without_what_is_behind).await;
    let (edge, address) = edge(&authority, &[b.address]);
    let calls = 600;
    let failed = calls - load(address, 100, calls).await;
    // The first of them may be taken for failures from behind, until there are others to compare with.
    let tried = edge.metric("weft_retries_total", &["result=\"tried\""]);
    let behind = edge.metric("weft_retries_total", &["result=\"behind\""]);
    assert!(failed <= 3 && tried >= 55.0, "{failed} failed, {tried} tried again, {behind} not");
}

/// (27.8) The mark is between proxies only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_application_sees_or_sets_the_mark_of_a_retried_failure() {
    let application = raw_app(|mut stream| async move {
        while read_head(&mut stream).await.is_some() {
            let answer = b"HTTP/1.1 503 X\r\nweft-retried: 1\r\ncontent-length: 0\r\n\r\n";
            stream.write_all(answer).await.ok();
        }
    })
    .await;
    let authority = Authority::new();
    let svid = authority.svid("product", true);
    let (_c, forging) = inbound(svid, application, InboundMode::Strict, Authorization::default());
    let (proxy, address) = edge(&authority, &[forging]);
    assert!(!once(address, "GET", "/").await.contains("weft-retried"));
    assert_eq!(proxy.metric("weft_retries_total", &["result=\"tried\""]), 1.0, "{}", proxy.metrics());
    // Of a real one the caller sees nothing either.
    let c = last(&authority, Fails::Answers).await;
    let b = between(&authority, &[c.address], as_behind).await;
    let (proxy, address) = edge(&authority, &[b.address]);
    let answer = once(address, "GET", "/").await;
    assert!(status(&answer) == "503" && !answer.contains("weft-"), "{answer}");
    assert_eq!(proxy.metric("weft_retries_total", &["result=\"behind\""]), 1.0, "{}", proxy.metrics());
}

/// (27.8) Two requests at a time: one fails by what is behind, and the other by itself, later, with and without traces.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_behind_does_not_keep_an_answer_of_another_request_from_being_tried_again() {
    for traced in [true, false] {
        let authority = Authority::new();
        let c = last(&authority, Fails::Answers).await;
        let next = Arc::<OnceLock<SocketAddr>>::default();
        let calls = next.clone();
        let application = raw_app(move |mut stream| {
            let calls = calls.clone();
            async move {
                while let Some(head) = read_head(&mut stream).await {
                    if head.contains("GET /own ") {
                        sleep(Duration::from_secs(1)).await;
                    } else {
                        let trace = head.lines().find(|line| line.starts_with("traceparent: "));
                        ask(*calls.get().unwrap(), "/", trace).await;
                    }
                    stream.write_all(b"HTTP/1.1 503 X\r\ncontent-length: 0\r\n\r\n").await.ok();
                }
            }
        })
        .await;
        let (_proxy, b) = beside(&authority, application, &[c.address], &next);
        let (edge, address) = edge(&authority, &[b]);
        let trace = |id: u8| {
            traced.then(|| format!("traceparent: 00-4bf92f3577b34da6a3ce929d0e0e47{id:02x}-00f067aa0ba902b7-01"))
        };
        let own = async { ask(address, "/own", trace(1).as_deref()).await };
        let behind = async {
            sleep(Duration::from_millis(300)).await;
            ask(address, "/behind", trace(2).as_deref()).await;
        };
        tokio::join!(own, behind);
        let counted = |result: &str| edge.metric("weft_retries_total", &[&format!("result=\"{result}\"")]);
        assert_eq!((counted("tried"), counted("behind")), (1.0, 1.0), "traced {traced}: {}", edge.metrics());
    }
}

/// One request with a further field.
async fn ask(address: SocketAddr, path: &str, field: Option<&str>) {
    let field = field.map(|field| format!("{field}\r\n")).unwrap_or_default();
    let request = format!("GET {path} HTTP/1.1\r\nhost: product\r\nconnection: close\r\n{field}\r\n");
    let (answer, _) = raw(address, request.as_bytes(), Duration::from_secs(10)).await;
    assert_eq!(status(&answer), "503", "{answer}");
}
