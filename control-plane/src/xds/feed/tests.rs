//! What one change of one workload costs in a large mesh, from its registration to the world that is compiled from.

use std::{num::NonZeroU32, time::Duration};

use tokio::sync::watch;
use weft_core::{endpoint::Health, identity::Identity, listener::Protocol};

use super::*;
use crate::{
    registry::{RegisteredPort, RegisteredWorkload, Registry, WorkloadKey},
    state::ProxyTable,
};

const SERVICES: u32 = 200;

fn workload(number: u32, incarnation: &str) -> RegisteredWorkload {
    let service = number % SERVICES;
    let [_, a, b, c] = number.to_be_bytes();
    RegisteredWorkload {
        key: WorkloadKey::new("shop", format!("w{number}")),
        identity: Identity::parse(&format!("spiffe://weft.local/ns/shop/sa/s{service}")).unwrap(),
        service_account: format!("s{service}"),
        labels: [("app".to_owned(), format!("s{service}")), ("version".to_owned(), "v1".to_owned())].into(),
        addresses: vec![[10, a, b, c].into()],
        unproven: Vec::new(),
        ports: vec![RegisteredPort {
            name: "http".into(),
            port: 8080.try_into().unwrap(),
            protocol: Protocol::Http,
            proxy_port: None,
        }],
        skipped_ports: Vec::new(),
        weight: NonZeroU32::MIN,
        zone: incarnation.into(),
        gateway: false,
        health: Health::Healthy,
        incarnation: incarnation.into(),
        source: None,
    }
}

/// Objects of people: services, and Workload objects that registrations are compared with.
fn desired() -> Arc<Desired> {
    let mut text = String::new();
    for number in 0..SERVICES {
        text.push_str(&format!(
            "---\n{{apiVersion: v1, kind: Service, metadata: {{name: s{number}, namespace: shop}}, spec: {{selector: {{app: s{number}}}, ports: [{{port: 80}}]}}}}\n\
             ---\n{{apiVersion: weft.dev/v1alpha1, kind: Workload, metadata: {{name: o{number}, namespace: shop}}, spec: {{addresses: [10.200.0.{number}], ports: [{{port: 8080}}]}}}}\n"
        ));
    }
    let objects = weft_core::api::parse_documents(&text).unwrap().into_iter().map(|it| (it.key(), Arc::new(it)));
    Arc::new(Desired { revision: 1, objects: objects.collect() })
}

/// Milliseconds for `changes` workloads that restart one after another among `count`.
async fn cost(count: u32, changes: u32) -> u128 {
    let (_sender, desired) = watch::channel(desired());
    let loaded = (0..count).map(|number| workload(number, "one")).collect();
    let registry = Registry::new(loaded, Duration::from_secs(2), desired.clone(), Arc::default());
    let mesh = Mesh { desired, registered: registry.watch(), proxies: Arc::<ProxyTable>::default() };
    let mut feed = Feed::new(mesh, TrustDomain::parse("weft.local").unwrap());
    let publishing = tokio::spawn({
        let registry = Arc::clone(&registry);
        async move { registry.publish().await }
    });
    let mut shown = registry.watch();
    #[expect(clippy::disallowed_methods, reason = "tokio's clock is paused, and real time is measured")]
    let start = std::time::Instant::now();
    for number in 0..changes {
        let workload = workload(number * (count / changes), "two");
        registry.register(RegisteredWorkload { source: workload.addresses.first().copied(), ..workload }).unwrap();
        shown.changed().await.unwrap();
        let before = Arc::clone(&feed.world);
        let Some(Change::Workloads(changed)) = feed.advance() else { panic!("a change") };
        assert_eq!(changed.len(), 1);
        drop(before); // as a stream that still reads the old one
    }
    let taken = start.elapsed().as_millis();
    publishing.abort();
    taken
}

#[tokio::test(start_paused = true)]
#[ignore = "slow: 10,000 workloads, 1,000 changes"]
async fn a_change_costs_a_changes_work_however_many_workloads_there_are() {
    // The best of three each, taken in turns: other programs on the machine can only add to a time.
    let (mut small, mut large) = (u128::MAX, u128::MAX);
    for _ in 0..3 {
        small = small.min(cost(1_000, 1_000).await);
        large = large.min(cost(10_000, 1_000).await);
    }
    println!("1,000 changes: {small} ms among 1,000 workloads, {large} ms among 10,000");
    assert!(large < 3 * small.max(50), "{small} ms and {large} ms");
}
