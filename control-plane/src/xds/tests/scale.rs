//! Many clients, many resources, slow readers.

use prost::Message;

use super::*;

fn many(count: u32) -> String {
    (0..count)
        .map(|n| {
            format!(
                "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{n}, namespace: shop}}\nspec: {{selector: {{app: s{n}}}, clusterIP: 240.1.{}.{}, ports: [{{port: 80}}]}}\n",
                n / 250,
                n % 250
            )
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_clients_share_one_encoding_and_all_hear_of_one_endpoint() {
    let plane = Plane::start(SHOP).await;
    let mut clients = Vec::new();
    for n in 0..200 {
        let mut client = plane.proxy(&format!("web-{n}")).await;
        client.ask(LISTENER, &["outbound/240.0.0.1:80"], &[]).await;
        client.ask(REVISION, &[REVISION_NAME], &[]).await;
        client.until_barrier().await;
        clients.push(client);
    }
    assert_eq!(plane.proxies.connected(), 200);
    assert_eq!(plane.ads.server.cache.lock().held().len(), 4, "one slot for each resource, whoever holds it");
    plane.register(add("product-1", "product", "10.0.0.1"));
    for client in &mut clients {
        assert_eq!(client.next().await, sent(ENDPOINTS, &["svc/shop/product:80"]));
    }
    plane.apply(&format!("{SHOP}{}", route_to("cart")), 2);
    for client in &mut clients {
        assert_eq!(client.until_barrier().await.1, 2);
    }
    drop(clients);
    eventually("all are gone", || plane.proxies.connected() == 0).await;
    plane.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_stays_below_one_mebibyte() {
    let count = 5000;
    let plane = Plane::start(&many(count)).await;
    let mut client = plane.proxy("web").await;
    client.ask(CLUSTER, &["*"], &[]).await;
    let (mut got, mut messages) = (0, 0);
    while got < count as usize {
        let message = client.raw().await.unwrap();
        assert!(message.encoded_len() < 1 << 20, "{} bytes", message.encoded_len());
        got += message.resources.len();
        messages += 1;
    }
    assert!(got == count as usize && messages > 1, "{got} in {messages}");
    plane.end().await;
}

/// A client that does not read holds up nobody, and catches up in one step.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_holds_up_nobody() {
    let services = many(2000);
    let plane = Plane::start(&services).await;
    let mut slow = plane.proxy("slow").await;
    let mut quick = plane.proxy("quick").await;
    for client in [&mut slow, &mut quick] {
        client.ask(CLUSTER, &["*"], &[]).await;
        client.ask(REVISION, &[REVISION_NAME], &[]).await;
    }
    quick.until_barrier().await;
    for revision in 2..12u64 {
        let policy = format!(
            "---\napiVersion: weft.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {{targetRef: {{kind: Service, name: s1}}, timeouts: {{connect: {revision}s}}}}\n"
        );
        plane.apply(&format!("{services}{policy}"), revision);
        loop {
            let (_, number, _) = quick.until_barrier().await;
            if number == revision {
                break;
            }
        }
    }
    loop {
        let (_, number, _) = slow.until_barrier().await;
        if number == 11 {
            break;
        }
    }
    assert_eq!(slow.held, quick.held, "both hold the same in the end");
    plane.end().await;
}

#[tokio::test]
async fn an_entry_of_a_new_stream_is_not_taken_away_by_the_old_ones_end() {
    let plane = Plane::start(SHOP).await;
    let mut old = plane.proxy("web").await;
    old.ask(CLUSTER, &["svc/shop/cart:80"], &[]).await;
    old.next().await;
    let mut new = plane.proxy("web").await;
    new.ask(CLUSTER, &["svc/shop/cart:80", "svc/shop/product:80"], &[]).await;
    new.next().await;
    drop(old);
    eventually("one stream is left", || {
        plane.ads.server.streams.available_permits() == plane.ads.server.limits.streams - 1
    })
    .await;
    let status = plane.proxies.list().remove(0).discovery.unwrap();
    assert_eq!(status.subscriptions, 2);
    assert!(status.connected_since <= Timestamp::now());
    plane.end().await;
}
