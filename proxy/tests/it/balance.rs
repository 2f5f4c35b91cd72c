//! Which endpoint gets a request: latency, ejection and return, updates of the set, and endpoints that are the workload itself.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    io::AsyncWriteExt,
    time::{Instant, sleep},
};
use weft_core::{
    cluster::OutlierDetection,
    policy::{Authorization, Operation, PathPattern, Principal, Rule},
};

use crate::{
    apps::{Ended, direct, fixed_app, once, raw_app, read_head, until},
    pair::{Authority, endpoint_set, identity, outbound},
};

struct Instance {
    address: SocketAddr,
    seen: Arc<AtomicUsize>,
    failing: Arc<AtomicBool>,
}

/// An instance that takes `latency` for an answer and answers 503 while it fails.
async fn instance(latency: Duration) -> Instance {
    let (seen, failing) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let (count, fails) = (seen.clone(), failing.clone());
    let address = raw_app(move |mut stream| {
        let (count, fails) = (count.clone(), fails.clone());
        async move {
            while read_head(&mut stream).await.is_some() {
                count.fetch_add(1, Relaxed);
                sleep(latency).await;
                let status = if fails.load(Relaxed) { 503 } else { 200 };
                let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n");
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    Instance { address, seen, failing }
}

async fn instances(count: usize) -> Vec<Instance> {
    let mut all = Vec::new();
    for _ in 0..count {
        all.push(instance(Duration::from_millis(1)).await);
    }
    all
}

fn addresses(instances: &[Instance]) -> Vec<SocketAddr> {
    instances.iter().map(|instance| instance.address).collect()
}

fn detection(base_ejection: Duration) -> Option<OutlierDetection> {
    Some(OutlierDetection { base_ejection, ..OutlierDetection::default() })
}

async fn ask(address: SocketAddr, times: usize) -> usize {
    let mut failed = 0;
    for _ in 0..times {
        failed += usize::from(!once(address, "GET", "/").await.starts_with("HTTP/1.1 200"));
    }
    failed
}

#[tokio::test]
async fn a_slow_endpoint_gets_a_small_share() {
    let mut all = instances(4).await;
    all.push(instance(Duration::from_millis(200)).await);
    let (_proxy, address) = direct(&addresses(&all), |_, _| {});
    let start = Instant::now();
    assert_eq!(ask(address, 500).await, 0);
    let slow = all[4].seen.load(Relaxed) as u64;
    // It gets one each 5 s whatever it costs: how many those are is a matter of the machine.
    let most = 10 + start.elapsed().as_secs() / 5;
    assert!(slow <= most, "{slow} of 500 went to the slow one");
    for instance in &all[..4] {
        let share = instance.seen.load(Relaxed);
        assert!(share >= 25, "{share} of 500 went to a fast one");
    }
}

#[tokio::test]
async fn an_endpoint_that_fails_five_times_is_ejected_and_returns() {
    let all = instances(3).await;
    let (proxy, address) = direct(&addresses(&all), |cluster, forward| {
        cluster.outlier = detection(Duration::from_secs(4));
        forward.retry.attempts = 1;
    });
    all[0].failing.store(true, Relaxed);
    // However rarely it is picked (one slow answer on a busy machine takes a while to be forgotten): the fifth failure is the last.
    let (mut failed, end) = (0, Instant::now() + Duration::from_secs(90));
    while failed < 5 {
        assert!(Instant::now() < end, "{failed} failures, not five");
        failed += ask(address, 10).await;
    }
    failed += ask(address, 20).await;
    assert_eq!(failed, 5);
    assert_eq!(all[0].seen.load(Relaxed), 5);
    assert_eq!(proxy.metric("weft_ejections_total", &["cluster=\"svc/shop/product:80\""]), 1.0);
    all[0].failing.store(false, Relaxed);
    let end = Instant::now() + Duration::from_secs(90);
    while all[0].seen.load(Relaxed) == 5 {
        assert!(Instant::now() < end, "it is used again");
        assert_eq!(ask(address, 20).await, 0);
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn when_all_fail_at_most_half_are_ejected_and_all_are_still_tried() {
    let all = instances(4).await;
    all.iter().for_each(|instance| instance.failing.store(true, Relaxed));
    let (proxy, address) = direct(&addresses(&all), |cluster, forward| {
        cluster.outlier = detection(Duration::from_secs(60));
        forward.retry.attempts = 1;
    });
    assert_eq!(ask(address, 100).await, 100);
    assert_eq!(proxy.metric("weft_ejections_total", &[]), 2.0);
    assert_eq!(all.iter().map(|instance| instance.seen.load(Relaxed)).sum::<usize>(), 100);
}

#[tokio::test]
async fn the_only_endpoint_is_never_ejected() {
    let only = instances(1).await;
    only[0].failing.store(true, Relaxed);
    let (proxy, address) = direct(&addresses(&only), |_, forward| forward.retry.attempts = 1);
    assert_eq!(ask(address, 20).await, 20);
    only[0].failing.store(false, Relaxed);
    assert_eq!(ask(address, 1).await, 0);
    assert_eq!(proxy.metric("weft_ejections_total", &[]), 0.0);
}

#[tokio::test]
async fn an_update_of_the_set_applies_to_the_next_request() {
    let all = instances(3).await;
    let (proxy, address) = direct(&addresses(&all[..2]), |_, _| {});
    assert_eq!(ask(address, 20).await, 0);
    let before = all[0].seen.load(Relaxed);
    let new: Vec<_> = all[1..].iter().map(|instance| (instance.address, None)).collect();
    proxy.shared.live.set_endpoints(&endpoint_set(&new));
    assert_eq!(ask(address, 40).await, 0);
    assert_eq!(all[0].seen.load(Relaxed), before, "the removed one gets nothing");
    assert!(all[2].seen.load(Relaxed) > 0, "the new one gets some");
    proxy.shared.live.set_endpoints(&endpoint_set(&[]));
    assert!(once(address, "GET", "/").await.contains("weft-error: UH"));
}

#[tokio::test]
async fn an_endpoint_that_comes_back_soon_keeps_its_connections_and_one_that_does_not_loses_them() {
    let (opened, closed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (opens, closes) = (opened.clone(), closed.clone());
    let application = raw_app(move |mut stream| {
        opens.fetch_add(1, Relaxed);
        let ended = Ended(closes.clone());
        async move {
            while read_head(&mut stream).await.is_some()
                && stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.is_ok()
            {}
            drop(ended);
        }
    })
    .await;
    let (proxy, address) = direct(&[application], |_, _| {});
    assert_eq!(ask(address, 1).await, 0);
    for _ in 0..10 {
        proxy.shared.live.set_endpoints(&endpoint_set(&[]));
        assert!(once(address, "GET", "/").await.contains("weft-error: UH"));
        proxy.shared.live.set_endpoints(&endpoint_set(&[(application, None)]));
        assert_eq!(ask(address, 1).await, 0);
    }
    assert_eq!((opened.load(Relaxed), closed.load(Relaxed)), (1, 0));
    proxy.shared.live.set_endpoints(&endpoint_set(&[]));
    let took = until(Duration::from_secs(10), || closed.load(Relaxed) == 1).await.expect("closed after a while");
    assert!(took > Duration::from_secs(1), "{took:?}");
}

#[tokio::test]
async fn a_request_does_not_wait_for_a_connection_to_an_endpoint_while_another_has_one_open() {
    // Takes connections and never answers a TLS handshake.
    let silent = raw_app(|stream| async move {
        sleep(Duration::from_secs(60)).await;
        drop(stream);
    })
    .await;
    let good = instances(1).await[0].address;
    let (proxy, address) = outbound(Some(Authority::new().svid("client", true)), &[(good, None)], |cluster, _| {
        cluster.connect_timeout = Duration::from_secs(1);
        cluster.outlier = detection(Duration::from_secs(60));
    });
    assert_eq!(ask(address, 1).await, 0);
    proxy.shared.live.set_endpoints(&endpoint_set(&[(good, None), (silent, Some(identity("product")))]));
    let (start, mut slowest) = (Instant::now(), Duration::ZERO);
    while proxy.metric("weft_ejections_total", &[]) == 0.0 {
        assert!(start.elapsed() < Duration::from_secs(30), "what cannot be connected is ejected all the same");
        let asked = Instant::now();
        assert_eq!(ask(address, 1).await, 0);
        slowest = slowest.max(asked.elapsed());
    }
    assert!(slowest < Duration::from_millis(500), "{slowest:?}: no request waited for the handshake");
    assert!(start.elapsed() > Duration::from_secs(4), "five attempts, one after the other");
}

#[tokio::test]
async fn a_limit_on_connections_does_not_count_idle_ones_of_other_endpoints_against_a_request() {
    let (one, two) = (fixed_app(200, "ok").await, fixed_app(200, "ok").await);
    let (proxy, address) = direct(&[one, two], |cluster, _| cluster.limits.connections = 1);
    for i in 0..20 {
        let answer = once(address, "GET", "/").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{i}: {answer}");
    }
    for (i, only) in [one, two, one, two].into_iter().enumerate() {
        proxy.shared.live.set_endpoints(&endpoint_set(&[(only, None)]));
        let answer = once(address, "GET", "/").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "the other has left, {i}: {answer}");
    }
}

/// A proxy beside the workload `product` whose application is at an own address, and a service with that one endpoint.
async fn selfish(identity: &str, authorization: Authorization) -> (crate::pair::Proxy, SocketAddr) {
    let application = crate::traffic::mirror().await;
    let authority = Authority::new();
    crate::pair::both(authority.svid(identity, true), application, authorization)
}

#[tokio::test]
async fn a_call_to_oneself_stays_in_the_process_and_obeys_ones_own_policy() {
    let secret = Rule {
        name: "shop/secret#0".into(),
        from: vec![Principal::Any],
        to: vec![Operation { paths: vec![PathPattern::Prefix("/secret".into())], ..Operation::default() }],
    };
    let (proxy, address) = selfish("product", Authorization { deny: vec![secret], allow: None }).await;
    let answer = once(address, "GET", "/open").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert!(answer.contains("weft-client-id: spiffe://weft.local/ns/shop/sa/product"), "{answer}");
    let answer = once(address, "GET", "/secret").await;
    assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("weft-error: RBAC"), "{answer}");
    assert_eq!(proxy.metric("weft_tls_handshakes_total", &[]), 0.0);
    assert_eq!(proxy.metric("weft_denied_total", &["rule=\"shop/secret#0\""]), 1.0);
}

#[tokio::test]
async fn an_own_address_with_another_identity_is_not_oneself() {
    let (_proxy, address) = selfish("order", Authorization::default()).await;
    let answer = once(address, "GET", "/").await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("weft-error: UF"), "{answer}");
}
