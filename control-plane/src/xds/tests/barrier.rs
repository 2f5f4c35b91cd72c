//! Rules 7 to 11: the tree, the hash, one step.

use std::collections::BTreeSet;

use tokio::time::Instant;
use weft_core::{
    route::Action,
    wire::{Parsed, parse},
};

use super::*;

#[tokio::test]
async fn the_whole_tree_comes_with_one_request_and_goes_with_one() {
    let plane = Plane::start(&format!("{SHOP}{}", route_to("cart"))).await;
    plane.register(add("cart-1", "cart", "10.0.0.2"));
    let mut client = plane.proxy("web").await;
    client.ask(REVISION, &[REVISION_NAME], &[]).await;
    let (seen, number, empty) = client.until_barrier().await;
    assert_eq!((seen, number), (vec![], 1));
    client.ask(LISTENER, &["outbound/240.0.0.1:80"], &[]).await;
    let (seen, number, hash) = client.until_barrier().await;
    let tree = [
        sent(CLUSTER, &["svc/shop/cart:80"]),
        sent(ENDPOINTS, &["svc/shop/cart:80"]),
        sent(LISTENER, &["outbound/240.0.0.1:80"]),
        sent(ROUTE, &["svc/shop/product:80"]),
    ];
    assert_eq!((seen.as_slice(), number), (&tree[..], 1));
    assert_ne!(hash, empty);
    // A revision moves the tree: what is not needed any more goes.
    plane.apply(SHOP, 2);
    let (seen, number, _) = client.until_barrier().await;
    let moved = [
        sent(CLUSTER, &["svc/shop/product:80"]),
        sent(ENDPOINTS, &["svc/shop/product:80"]),
        sent(ROUTE, &["svc/shop/product:80"]),
        gone(CLUSTER, &["svc/shop/cart:80"], &[]),
        gone(ENDPOINTS, &["svc/shop/cart:80"], &[]),
    ];
    assert_eq!((seen.as_slice(), number), (&moved[..], 2));
    client.ask(LISTENER, &[], &["outbound/240.0.0.1:80"]).await;
    let (seen, number, hash) = client.until_barrier().await;
    assert_eq!(seen.iter().flat_map(|seen| &seen.removed).count(), 3, "{seen:?}");
    assert_eq!((number, hash), (2, empty));
    eventually("nobody holds anything", || plane.ads.server.cache.lock().held().is_empty()).await;
    plane.end().await;
}

/// The hash is the same again, but what was sent anew waits for its barrier.
#[tokio::test]
async fn what_is_let_go_and_asked_for_again_gets_a_barrier() {
    let plane = Plane::start(SHOP).await;
    let mut client = plane.proxy("web").await;
    client.ask(REVISION, &[REVISION_NAME], &[]).await;
    client.ask(LISTENER, &["outbound/240.0.0.1:80"], &[]).await;
    while client.until_barrier().await.0.is_empty() {}
    let before = client.hash();
    for _ in 0..20 {
        client.ask(LISTENER, &[], &["outbound/240.0.0.1:80"]).await;
        client.ask(LISTENER, &["outbound/240.0.0.1:80"], &[]).await;
        while client.until_barrier().await.2 != before {}
    }
    client.is_quiet().await;
    // Asked for again without a change: sent again, and a barrier behind it.
    client.ask(LISTENER, &["outbound/240.0.0.1:80"], &[]).await;
    let (seen, _, hash) = client.until_barrier().await;
    assert_eq!((seen, hash), (vec![sent(LISTENER, &["outbound/240.0.0.1:80"])], before));
    plane.end().await;
}

#[tokio::test]
async fn a_revision_that_changes_nothing_here_is_only_the_barrier() {
    let plane = Plane::start(SHOP).await;
    let mut client = plane.proxy("web").await;
    client.ask(LISTENER, &["outbound/240.0.0.1:80"], &[]).await;
    client.ask(REVISION, &[REVISION_NAME], &[]).await;
    let (_, _, before) = client.until_barrier().await;
    plane.apply(&format!("{SHOP}{}", route_to("cart").replace("name: product", "name: cart")), 2);
    let (seen, number, after) = client.until_barrier().await;
    assert_eq!((seen, number, after), (vec![], 2, before));
    let status = || plane.proxies.list()[0].discovery.clone().unwrap();
    eventually("applied", || status().applied_revision == Some(2)).await;
    assert_eq!(status().sent_revision, Some(2));
    plane.end().await;
}

/// 30 revisions in 300 ms: the first is not kept waiting, the rest share publications, and the last one is not lost.
#[tokio::test]
async fn revisions_in_quick_succession_are_published_together() {
    let plane = Plane::start(SHOP).await;
    let mut client = plane.proxy("web").await;
    client.ask(REVISION, &[REVISION_NAME], &[]).await;
    client.until_barrier().await;
    let start = Instant::now();
    let change = async {
        for revision in 2..=31 {
            plane.apply(SHOP, revision);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let read = async {
        let mut numbers = Vec::new();
        while numbers.last() != Some(&31) {
            numbers.push(client.until_barrier().await.1);
        }
        numbers
    };
    let ((), numbers) = tokio::join!(change, read);
    let most = start.elapsed().as_millis() / INTERVAL.as_millis() + 1;
    assert!(numbers.len() as u128 <= most, "{numbers:?}, at most {most}");
    assert!(numbers.len() > 1 && numbers.is_sorted(), "{numbers:?}");
    // After an interval it would be revision 6 or a later one.
    assert!(numbers[0] < 6, "{numbers:?}");
    plane.end().await;
}

#[tokio::test]
async fn endpoints_come_at_once_without_a_barrier_and_a_workloads_own_address_with_one() {
    let plane = Plane::start(SHOP).await;
    let mut client = plane.proxy("web").await;
    client.ask(LISTENER, &["outbound/240.0.0.1:80", "outbound/10.0.0.1:8080"], &[]).await;
    client.ask(REVISION, &[REVISION_NAME], &[]).await;
    client.until_barrier().await;
    plane.register(add("product-9", "product", "10.0.0.9"));
    assert_eq!(client.next().await, sent(ENDPOINTS, &["svc/shop/product:80"]));
    client.is_quiet().await;
    let before = client.hash();
    plane.register(add("product-1", "product", "10.0.0.1"));
    let (seen, number, hash) = client.until_barrier().await;
    let kinds: BTreeSet<ResourceType> = seen.iter().map(|seen| seen.kind).collect();
    assert_eq!(kinds, BTreeSet::from([CLUSTER, ENDPOINTS, LISTENER, ROUTE]), "{seen:?}");
    assert_eq!(number, 1, "the registry is no revision");
    assert_ne!(hash, before);
    plane.register(|all| {
        all.remove_mut(&WorkloadKey::new("shop", "product-1"));
    });
    let (_, _, hash) = client.until_barrier().await;
    assert_eq!(hash, before);
    // What another service's workload does is not this client's matter.
    plane.register(add("cart-1", "cart", "10.0.0.2"));
    eventually("published", || plane.ads.server.cache.lock().world().registered().find("shop", "cart-1").is_some())
        .await;
    client.is_quiet().await;
    plane.end().await;
}

#[tokio::test]
async fn a_proxys_own_inbound_follows_the_policies() {
    let plane = Plane::start(SHOP).await;
    let mut client = plane.proxy("web").await;
    client.ask(LISTENER, &["inbound"], &[]).await;
    client.ask(REVISION, &[REVISION_NAME], &[]).await;
    client.until_barrier().await;
    let before = client.version(ROUTE, "inbound").to_owned();
    let deny = r#"
---
apiVersion: weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: closed, namespace: NAMESPACE}
spec: {selector: {}, action: Allow, rules: []}
"#;
    plane.apply(&format!("{SHOP}{}", deny.replace("NAMESPACE", "shop")), 2);
    let (seen, number, _) = client.until_barrier().await;
    assert_eq!((seen, number), (vec![sent(LISTENER, &["inbound"]), sent(ROUTE, &["inbound"])], 2));
    assert_ne!(client.version(ROUTE, "inbound"), before);
    plane.apply(&format!("{SHOP}{}", deny.replace("NAMESPACE", "other")), 3);
    client.until_barrier().await;
    assert_eq!(client.version(ROUTE, "inbound"), before);
    plane.end().await;
}

/// PAINS.md 2.2: a client that stages and swaps never sees a route to a cluster that is not there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn route_and_backend_flip_a_thousand_times_without_a_tear() {
    let service = |name: &str| {
        format!(
            "\n---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{selector: {{app: {name}}}, clusterIP: 240.0.9.{}, ports: [{{port: 80}}]}}\n",
            if name == "blue" { 1 } else { 2 }
        )
    };
    // The backend that is routed to is the only one there is: each flip makes one and removes the other.
    let state = |name: &str| format!("{SHOP}{}{}", service(name), route_to(name));
    let (blue, green) = (objects(&state("blue"), 0), objects(&state("green"), 0));
    let plane = Plane::with(&state("blue"), Limits::default(), Duration::ZERO).await;
    let mut client = plane.proxy("web").await;
    client.ask(REVISION, &[REVISION_NAME], &[]).await;
    client.ask(LISTENER, &["outbound/240.0.0.1:80"], &[]).await;
    let flips = 1000;
    let sender = plane.desired.clone();
    let flipping = tokio::spawn(async move {
        for revision in 2..flips + 2 {
            let next = if revision % 2 == 0 { &green } else { &blue };
            sender.send_replace(Arc::new(Desired { revision, objects: next.objects.clone() }));
            // Some are seen one by one, some together.
            if revision % 3 == 0 {
                tokio::time::sleep(Duration::from_micros(500)).await;
            } else {
                tokio::task::yield_now().await;
            }
        }
    });
    let (mut last, mut swaps, mut seen_names) = (0, 0, BTreeSet::new());
    while last < flips + 1 {
        let (_, number, _) = client.until_barrier().await;
        assert!(number >= last, "revisions do not go back");
        last = number;
        swaps += 1;
        // The swap: what is held now is what is live.
        let held = |kind: ResourceType, name: &str| client.held.contains_key(&(kind, name.to_owned()));
        let routes = client.held.keys().filter(|(kind, _)| *kind == ROUTE);
        for key in routes {
            let resource = client.resources[key].resource.as_ref().unwrap();
            let Ok(Parsed::Route(table)) = parse(ROUTE, &key.1, resource) else { panic!("a route table") };
            for rule in table.hosts.iter().flat_map(|host| &host.rules) {
                let Action::Forward(forward) = &rule.action else { panic!("{rule:?}: the backend is there") };
                for to in &forward.clusters {
                    let name = to.cluster.to_string();
                    assert!(held(CLUSTER, &name) && held(ENDPOINTS, &name), "revision {number}: no {name}");
                    seen_names.insert(name);
                }
            }
        }
    }
    flipping.await.unwrap();
    assert!(swaps > 50, "{swaps} swaps are enough to tear");
    assert!(seen_names.len() >= 2, "{seen_names:?}");
    plane.end().await;
}
