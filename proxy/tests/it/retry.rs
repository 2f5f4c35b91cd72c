//! Retries and timeouts: what is tried again and what never, where the next try goes, how often, and when time is up.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep},
};
use weft_core::retry::{RetryOn, RetryPolicy};

use crate::{
    apps::{direct, fixed_app, mesh, once, raw, raw_app, read_head, until},
    traffic::exchange,
};

const SECOND: Duration = Duration::from_secs(1);
const OFF: RetryOn =
    RetryOn { connect_failure: false, refused_stream: false, gateway_error: false, reset: false, server_error: false };

/// What the first try meets.
#[derive(Clone, Copy, Debug, PartialEq)]
enum First {
    /// Nobody listens.
    Gone,
    /// It reads the request and closes.
    Resets,
    /// It reads the request and says nothing.
    Silent,
    /// It answers with this.
    Status(u16),
}

/// An application whose first request meets `first`, and whose others are answered with 200; and how many it has read.
async fn application(first: First) -> (SocketAddr, Arc<AtomicUsize>) {
    let seen = Arc::new(AtomicUsize::new(0));
    if first == First::Gone {
        return (TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap(), seen);
    }
    let count = seen.clone();
    let address = raw_app(move |mut stream| {
        let count = count.clone();
        async move {
            while read_head(&mut stream).await.is_some() {
                let number = count.fetch_add(1, Relaxed);
                let status = match first {
                    _ if number > 0 => 200,
                    First::Status(status) => status,
                    First::Silent => {
                        stream.read_u8().await.ok();
                        return;
                    }
                    First::Resets | First::Gone => return,
                };
                let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: 2\r\n\r\nok");
                stream.write_all(answer.as_bytes()).await.ok();
            }
        }
    })
    .await;
    (address, seen)
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or("none")
}

#[tokio::test]
async fn each_condition_is_tried_again_where_it_is_asked_for_and_only_there() {
    for (first, on, codes, any, get, post) in [
        (First::Resets, RetryOn { reset: true, ..OFF }, vec![], false, "200", "502"),
        (First::Resets, RetryOn { reset: true, ..OFF }, vec![], true, "200", "200"),
        (First::Resets, OFF, vec![], true, "502", "502"),
        (First::Silent, RetryOn { reset: true, ..OFF }, vec![], false, "200", "504"),
        (First::Silent, RetryOn { connect_failure: true, ..OFF }, vec![], true, "504", "504"),
        (First::Status(502), RetryOn { gateway_error: true, ..OFF }, vec![], false, "200", "502"),
        (First::Status(503), RetryOn { gateway_error: true, ..OFF }, vec![], true, "200", "200"),
        (First::Status(504), RetryOn { gateway_error: true, ..OFF }, vec![], false, "200", "504"),
        (First::Status(500), RetryOn { gateway_error: true, ..OFF }, vec![], true, "500", "500"),
        (First::Status(500), RetryOn { server_error: true, ..OFF }, vec![], false, "200", "500"),
        (First::Status(429), OFF, vec![429], false, "200", "429"),
        (First::Status(429), RetryOn::default(), vec![], true, "429", "429"),
    ] {
        for (method, expected) in [("GET", get), ("POST", post)] {
            let (application, seen) = application(first).await;
            let (_proxy, address) = direct(&[application], |_, forward| {
                forward.try_timeout = Some(Duration::from_millis(150));
                forward.retry =
                    RetryPolicy { on, status_codes: codes.clone(), any_method: any, ..RetryPolicy::default() };
            });
            let answer = once(address, method, "/").await;
            let what = format!("{first:?} {on:?} {codes:?} {any} {method}");
            assert_eq!(status(&answer), expected, "{what}: {answer}");
            assert_eq!(seen.load(Relaxed), if expected == "200" { 2 } else { 1 }, "{what}");
        }
    }
}

#[tokio::test]
async fn a_failed_connect_is_tried_again_at_another_endpoint_for_every_method() {
    let (gone, _) = application(First::Gone).await;
    let good = fixed_app(200, "ok").await;
    for (on, all_good) in [(RetryOn { connect_failure: true, ..OFF }, true), (OFF, false)] {
        let (mut failed, mut tried) = (0, 0.0);
        for _ in 0..20 {
            // A new proxy each time: one that has a connection to the good one would use it.
            let (proxy, address) = direct(&[gone, good], |cluster, forward| {
                cluster.outlier = None;
                forward.retry = RetryPolicy { on, ..RetryPolicy::default() };
            });
            failed += usize::from(status(&once(address, "POST", "/").await) != "200");
            tried += proxy.metric("weft_retries_total", &["cause=\"UF\"", "result=\"tried\""]);
        }
        assert_eq!(failed == 0, all_good, "{on:?}: {failed}");
        assert_eq!(tried > 0.0, all_good, "{on:?}: {tried}");
    }
}

#[tokio::test]
async fn a_status_is_tried_again_at_another_endpoint() {
    let (bad, good) = (fixed_app(503, "no").await, fixed_app(200, "ok").await);
    let (_proxy, address) = direct(&[bad, good], |cluster, _| {
        cluster.outlier = None;
        cluster.budget.min_per_second = 100;
    });
    for i in 0..20 {
        assert_eq!(status(&once(address, "GET", "/").await), "200", "{i}");
    }
}

#[tokio::test]
async fn attempts_count_all_tries() {
    for attempts in [1, 2, 4] {
        let seen = Arc::new(AtomicUsize::new(0));
        let count = seen.clone();
        let application = raw_app(move |mut stream| {
            let count = count.clone();
            async move {
                while read_head(&mut stream).await.is_some() {
                    count.fetch_add(1, Relaxed);
                    stream.write_all(b"HTTP/1.1 503 X\r\ncontent-length: 0\r\n\r\n").await.ok();
                }
            }
        })
        .await;
        let (_proxy, address) = direct(&[application], |_, forward| forward.retry.attempts = attempts);
        assert_eq!(status(&once(address, "GET", "/").await), "503");
        assert_eq!(seen.load(Relaxed), attempts as usize);
    }
}

#[tokio::test]
async fn a_body_up_to_64_kib_is_sent_again_in_whole_and_a_larger_one_not_at_all() {
    for (size, expected, times) in [(1, "200", 2), (64 * 1024, "200", 2), (64 * 1024 + 1, "503", 1)] {
        let (application, seen) = application(First::Status(503)).await;
        let (_proxy, address) = direct(&[application], |_, _| {});
        let head = format!("PUT / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {size}\r\n\r\n");
        let (answer, _) = raw(address, &[head.as_bytes(), &vec![b'x'; size]].concat(), SECOND * 5).await;
        assert_eq!(status(&answer), expected, "{size}: {answer}");
        // The application counts only requests whose body has come in whole.
        assert_eq!(seen.load(Relaxed), times, "{size}");
    }
}

#[tokio::test]
async fn a_body_that_is_still_coming_is_sent_again_too() {
    // The first application refuses at the head; the body comes after that.
    let application = raw_app(|mut stream| async move {
        let mut first = [0; 1];
        stream.read_exact(&mut first).await.unwrap();
        let mut all = vec![first[0]];
        while !all.ends_with(b"late") {
            if stream.read_buf(&mut all).await.unwrap_or(0) == 0 {
                return;
            }
            if String::from_utf8_lossy(&all).contains("x-try: refuse") {
                stream.write_all(b"HTTP/1.1 503 X\r\ncontent-length: 0\r\n\r\n").await.ok();
                return;
            }
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
    })
    .await;
    let refusing = raw_app(|mut stream| async move {
        let mut head = Vec::new();
        while !head.windows(4).any(|end| end == b"\r\n\r\n") {
            if stream.read_buf(&mut head).await.unwrap_or(0) == 0 {
                return;
            }
        }
        stream.write_all(b"HTTP/1.1 503 X\r\ncontent-length: 0\r\n\r\n").await.ok();
        sleep(SECOND).await;
    })
    .await;
    for _ in 0..6 {
        let (_proxy, address) = direct(&[refusing, application], |_, _| {});
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nearly").await.unwrap();
        sleep(Duration::from_millis(100)).await;
        let answer = exchange(&mut client, "late", "ok").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

#[tokio::test]
async fn retries_end_with_the_budget() {
    let (proxy, address) = direct(&[fixed_app(503, "no").await], |cluster, forward| {
        cluster.budget.ratio = 0.2;
        cluster.budget.min_per_second = 1;
        cluster.outlier = None;
        forward.retry.backoff_base = Duration::ZERO;
    });
    let started = Instant::now();
    let mut client = TcpStream::connect(address).await.unwrap();
    for _ in 0..200 {
        let answer = exchange(&mut client, "GET / HTTP/1.1\r\nhost: a\r\n\r\n", "no").await;
        assert_eq!(status(&answer), "503");
    }
    let tried = proxy.metric("weft_retries_total", &["result=\"tried\""]);
    let over = proxy.metric("weft_retries_total", &["result=\"over_budget\""]);
    // The budget starts with what ten seconds give.
    let most = 200.0 * 0.2 + 10.0 + 1.0 + started.elapsed().as_secs_f64();
    assert!((30.0..=most).contains(&tried), "{tried} of at most {most}");
    assert_eq!(tried + over, 200.0);
}

/// (9)
#[tokio::test]
async fn a_budget_that_refuses_says_so_and_a_refused_connect_needs_none() {
    let (gone, _) = application(First::Gone).await;
    let spent = |cluster: &mut weft_core::cluster::Cluster| {
        cluster.budget.ratio = 0.0;
        cluster.budget.min_per_second = 0;
        cluster.outlier = None;
    };
    // The smallest budget holds one retry.
    let (proxy, address) = direct(&[fixed_app(503, "no").await], |cluster, _| spent(cluster));
    assert!(!once(address, "GET", "/").await.contains("weft-error"));
    let answer = once(address, "GET", "/").await;
    assert!(status(&answer) == "503" && answer.contains("weft-error: BUDGET") && answer.ends_with("no"), "{answer}");
    assert_eq!(proxy.metric("weft_retries_total", &["result=\"over_budget\""]), 1.0);
    let (proxy, address) = direct(&[gone, fixed_app(200, "ok").await], |cluster, _| spent(cluster));
    for _ in 0..30 {
        assert_eq!(status(&once(address, "POST", "/").await), "200");
    }
    assert_eq!(proxy.metric("weft_retries_total", &["result=\"over_budget\""]), 0.0);
}

#[tokio::test]
async fn the_time_for_one_try_is_not_the_time_for_the_request() {
    let (application, seen) = application(First::Silent).await;
    let mesh = mesh(application, |_, forward| {
        forward.try_timeout = Some(Duration::from_millis(200));
        forward.request_timeout = Some(SECOND * 5);
    })
    .await;
    let started = Instant::now();
    let answer = once(mesh.address, "GET", "/").await;
    assert_eq!(status(&answer), "200", "{answer}");
    assert!((200..2000).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
    assert_eq!(seen.load(Relaxed), 2);
}

#[tokio::test]
async fn the_time_for_the_request_covers_all_tries_and_the_wait_for_a_body() {
    for request in ["GET / HTTP/1.1\r\nhost: a\r\n\r\n", "PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\npart"]
    {
        let application = raw_app(|mut stream| async move {
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await.ok();
        })
        .await;
        let mesh = mesh(application, |_, forward| forward.request_timeout = Some(Duration::from_millis(300))).await;
        let started = Instant::now();
        let mut client = TcpStream::connect(mesh.address).await.unwrap();
        let answer = exchange(&mut client, request, "\r\n\r\n").await;
        assert_eq!(status(&answer), "504", "{answer}");
        assert!(answer.contains("weft-error: UT"), "{answer}");
        assert!((300..1500).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
    }
}

#[tokio::test]
async fn an_answer_that_takes_too_long_is_cut() {
    let application = raw_app(|mut stream| async move {
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n").await.unwrap();
        while stream.write_all(b"drip ").await.is_ok() {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let mesh = mesh(application, |_, forward| forward.request_timeout = Some(Duration::from_millis(300))).await;
    let started = Instant::now();
    let (answer, closed) = raw(mesh.address, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", SECOND * 5).await;
    assert!(closed && answer.starts_with("HTTP/1.1 200") && answer.contains("drip drip"), "{answer}");
    assert!((300..1500).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
    assert_eq!(mesh.outbound.metric("weft_failures_total", &["flag=\"UT\""]), 1.0, "{}", mesh.outbound.metrics());
}

#[tokio::test]
async fn many_who_wait_for_one_dead_endpoint_do_not_wait_for_each_other() {
    // It takes TCP connections and never answers the TLS handshake.
    let dead = raw_app(|mut stream| async move {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.ok();
    })
    .await;
    let authority = crate::pair::Authority::new();
    let endpoints = [(dead, Some(crate::pair::identity("product")))];
    let (_proxy, address) =
        crate::pair::outbound(Some(authority.svid("order", true)), &endpoints, |cluster, forward| {
            cluster.connect_timeout = Duration::from_millis(200);
            forward.retry.attempts = 1;
        });
    let started = Instant::now();
    let calls: Vec<_> = (0..20).map(|_| tokio::spawn(async move { once(address, "GET", "/").await })).collect();
    for call in calls {
        assert_eq!(status(&call.await.unwrap()), "503");
    }
    // One after the other they would take four seconds and more.
    assert!(started.elapsed() < SECOND * 2, "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_request_that_is_denied_or_has_no_endpoint_is_not_tried_again() {
    let (proxy, address) = direct(&[], |_, _| {});
    let answer = once(address, "GET", "/").await;
    assert!(status(&answer) == "503" && answer.contains("weft-error: UH"), "{answer}");
    assert!(until(SECOND, || proxy.metric("weft_requests_total", &["status=\"5xx\""]) == 1.0).await.is_some());
    assert_eq!(proxy.metric("weft_retries_total", &[]), 0.0);
}
