//! XDS.md 1.6, rules 3 to 8 for the delta variant.

use super::*;
use crate::status::StatusBook;

const PRODUCT: &str = "svc/shop/product:80";
const CART: &str = "svc/shop/cart:80";

#[tokio::test]
async fn names_are_answered_once_again_when_asked_again_and_not_after_they_are_let_go() {
    let plane = Plane::start(SHOP).await;
    let mut client = plane.proxy("web").await;
    client.ask(CLUSTER, &[PRODUCT], &[]).await;
    assert_eq!(client.next().await, sent(CLUSTER, &[PRODUCT]));
    client.is_quiet().await;
    client.ask(CLUSTER, &[PRODUCT, CART], &[]).await;
    assert_eq!(client.next().await, sent(CLUSTER, &[CART, PRODUCT]), "asked again, answered again");
    client.ask(CLUSTER, &[], &[PRODUCT, "svc/never/asked:1"]).await;
    client.is_quiet().await;
    let policy = r#"
---
apiVersion: weft.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: p, namespace: shop}
spec: {targetRef: {kind: Service, name: NAME}, timeouts: {connect: 3s}}
"#;
    plane.apply(&format!("{SHOP}{}", policy.replace("NAME", "product")), 2);
    eventually("published", || plane.ads.server.cache.lock().world().revision() == 2).await;
    client.is_quiet().await;
    plane.apply(&format!("{SHOP}{}", policy.replace("NAME", "cart")), 3);
    assert_eq!(client.next().await, sent(CLUSTER, &[CART]));
    plane.end().await;
}

#[tokio::test]
async fn what_does_not_exist_is_told_at_once_and_sent_when_it_comes() {
    let plane = Plane::start("").await;
    let mut client = plane.proxy("web").await;
    client.ask(LISTENER, &["outbound/240.0.0.1:80", "outbound", "outbound/nonsense"], &[]).await;
    assert_eq!(client.next().await, sent(LISTENER, &["outbound"]));
    assert_eq!(client.next().await, gone(LISTENER, &["outbound/240.0.0.1:80", "outbound/nonsense"], &[5, 3]));
    let long = "x".repeat(2000);
    client.ask(LISTENER, &[&long], &[]).await;
    let seen = client.next().await;
    assert_eq!((seen.removed.len(), seen.codes), (1, vec![3]));
    plane.apply(SHOP, 2);
    assert_eq!(client.next().await, sent(LISTENER, &["outbound/240.0.0.1:80"]));
    plane.apply("", 3);
    assert_eq!(client.next().await, gone(LISTENER, &["outbound/240.0.0.1:80"], &[5]));
    client.is_quiet().await;
    plane.end().await;
}

#[tokio::test]
async fn everything_is_asked_for_by_a_star_and_let_go_by_it() {
    let plane = Plane::start(SHOP).await;
    let mut client = plane.proxy("web").await;
    client.ask(CLUSTER, &["*"], &[]).await;
    assert_eq!(client.next().await, sent(CLUSTER, &[CART, PRODUCT]));
    client.ask(LISTENER, &["*"], &[]).await;
    let all =
        ["inbound", "outbound", "outbound/240.0.0.1:80", "outbound/240.0.0.2:80", "outbound/[fd77:6566:7400::2]:80"];
    assert_eq!(client.next().await, sent(LISTENER, &all));
    // An explicit name that `*` covers too is answered when it is let go.
    client.ask(CLUSTER, &[PRODUCT], &[]).await;
    assert_eq!(client.next().await, sent(CLUSTER, &[PRODUCT]));
    client.ask(CLUSTER, &[], &[PRODUCT]).await;
    assert_eq!(client.next().await, sent(CLUSTER, &[PRODUCT]));
    let more = SHOP.replace("name: cart", "name: basket").replace("240.0.0.2", "240.0.0.3");
    plane.apply(&more, 2);
    assert_eq!(client.next().await, sent(CLUSTER, &["svc/shop/basket:80"]));
    assert_eq!(client.next().await.kind, LISTENER);
    let removed: Vec<Seen> = vec![client.next().await, client.next().await];
    assert!(removed.contains(&gone(CLUSTER, &[CART], &[])), "{removed:?}");
    client.ask(CLUSTER, &[], &["*"]).await;
    client.is_quiet().await;
    // "Subscribe to nothing": both in one request.
    let mut other = plane.proxy("other").await;
    other.ask(CLUSTER, &["*"], &["*"]).await;
    assert_eq!(other.next().await, sent(CLUSTER, &[]));
    other.is_quiet().await;
    plane.end().await;
}

#[tokio::test]
async fn an_envoy_gets_clusters_by_the_empty_first_request_and_no_listener() {
    let plane = Plane::start(SHOP).await;
    plane.register(add("product-1", "product", "10.0.0.1"));
    let mut envoy = plane.client("spiffe://weft.local/ns/shop/sa/envoy", "envoy-1", "envoy").await;
    envoy.ask(LISTENER, &[], &[]).await;
    assert_eq!(envoy.next().await, sent(LISTENER, &[]), "an empty answer, because an Envoy waits for one");
    envoy.ask(CLUSTER, &[], &[]).await;
    assert_eq!(envoy.next().await, sent(CLUSTER, &[CART, PRODUCT]));
    envoy.ask(ENDPOINTS, &[PRODUCT], &[]).await;
    envoy.ask(ROUTE, &[PRODUCT], &[]).await;
    let mut seen = vec![envoy.next().await, envoy.next().await];
    seen.sort_by_key(|seen| seen.kind);
    assert_eq!(seen, [sent(ENDPOINTS, &[PRODUCT]), sent(ROUTE, &[PRODUCT])]);
    // A Weft proxy's empty request means nothing.
    let mut weft = plane.proxy("web").await;
    weft.ask(CLUSTER, &[], &[]).await;
    weft.is_quiet().await;
    plane.end().await;
}

#[tokio::test]
async fn a_reconnecting_client_gets_only_what_differs() {
    let plane = Plane::start(SHOP).await;
    let mut first = plane.proxy("web").await;
    first.ask(CLUSTER, &[PRODUCT, CART], &[]).await;
    first.next().await;
    first.ask(LISTENER, &["outbound/240.0.0.1:80"], &[]).await;
    first.next().await;
    let (product, cart) = (first.version(CLUSTER, PRODUCT).to_owned(), first.version(CLUSTER, CART).to_owned());
    let listener = first.version(LISTENER, "outbound/240.0.0.1:80").to_owned();
    drop(first);
    let mut again = plane.proxy("web").await;
    let had = [(PRODUCT, product.as_str()), (CART, "0000"), ("svc/shop/gone:1", "1111")];
    again.ask_with(CLUSTER, &[PRODUCT, CART, "svc/shop/gone:1"], &had).await;
    assert_eq!(again.next().await, sent(CLUSTER, &[CART]));
    assert_eq!(again.next().await, gone(CLUSTER, &["svc/shop/gone:1"], &[5]));
    assert_eq!(again.version(CLUSTER, CART), cart);
    again.ask_with(LISTENER, &["outbound/240.0.0.1:80"], &[("outbound/240.0.0.1:80", &listener)]).await;
    again.is_quiet().await;
    // What it holds and does not ask for any more is let go when it asks for the barrier.
    let mut third = plane.proxy("web").await;
    third.ask_with(CLUSTER, &[PRODUCT], &[(PRODUCT, &product), (CART, &cart)]).await;
    third.is_quiet().await;
    third.ask(REVISION, &[REVISION_NAME], &[]).await;
    let (seen, number, _) = third.until_barrier().await;
    assert_eq!((seen, number), (vec![sent(ENDPOINTS, &[PRODUCT]), gone(CLUSTER, &[CART], &[])], 1));
    plane.end().await;
}

#[tokio::test]
async fn a_refusal_is_recorded_and_ends_with_the_next_acceptance() {
    let plane = Plane::start(SHOP).await;
    let mut client = plane.proxy("web").await;
    client.ask(CLUSTER, &[PRODUCT, CART], &[]).await;
    let (_, nonce) = client.next_unanswered().await;
    let reason = "svc/shop/cart:80: connect_timeout: too long";
    client.answer(CLUSTER, nonce.clone(), Some(reason)).await;
    eventually("the refusal is in the table", || plane.proxies.standing_nacks().len() == 1).await;
    let (name, key, nack) = plane.proxies.standing_nacks().remove(0);
    assert_eq!((name.as_str(), key.name.as_ref(), nack.message.as_str()), (CART, "shop/web", reason));
    // It is on the status of the object that it was made of, and of no other.
    let book = {
        let mesh = Mesh::new(&plane.desired, &plane.registered, Arc::clone(&plane.proxies));
        StatusBook::new(TrustDomain::parse("weft.local").unwrap(), &mesh, Arc::default())
    };
    let refused = |name: &str| {
        let desired = Arc::clone(&plane.desired.borrow());
        let key = weft_core::api::ObjectKey::new(weft_core::api::Kind::Service, "shop", name);
        let object = book.view(&desired).with_status(&desired.objects[&key]);
        let conditions = object.status().unwrap().conditions.clone();
        conditions.into_iter().find(|condition| condition.kind == "Programmed" && condition.reason == "Refused")
    };
    let message = refused("cart").unwrap().message;
    assert!(message.contains("shop/web refuses svc/shop/cart:80") && message.contains("too long"), "{message}");
    assert_eq!(refused("product"), None);
    // The same bytes are not sent again; a stale nonce does not void what comes with it.
    client.is_quiet().await;
    client
        .send(DeltaDiscoveryRequest {
            type_url: ROUTE.type_url().into(),
            resource_names_subscribe: names(&[PRODUCT]),
            response_nonce: nonce,
            ..DeltaDiscoveryRequest::default()
        })
        .await;
    assert_eq!(client.next().await, sent(ROUTE, &[PRODUCT]));
    client.ask(CLUSTER, &[CART], &[]).await;
    client.next().await;
    eventually("the refusal is over", || plane.proxies.standing_nacks().is_empty()).await;
    assert_eq!(refused("cart"), None);
    drop(client);
    eventually("the entry goes with its stream", || plane.proxies.connected() == 0).await;
    plane.end().await;
}

#[tokio::test]
async fn a_gateways_resources_are_for_its_own_proxies_only() {
    let plane = Plane::start(SHOP).await;
    let mut own = plane.gateway("spiffe://weft.local/ns/shop/sa/edge", "edge").await;
    own.ask(LISTENER, &["gateway/shop/edge"], &[]).await;
    assert_eq!(own.next().await, sent(LISTENER, &["gateway/shop/edge"]));
    own.ask(ROUTE, &["gateway/shop/edge:80"], &[]).await;
    assert_eq!(own.next().await, sent(ROUTE, &["gateway/shop/edge:80"]));
    // The id and the metadata claim another namespace; the certificate decides. A sidecar has no use for it.
    let stranger = plane.gateway("spiffe://weft.local/ns/bank/sa/edge", "shop/edge").await;
    for mut other in [stranger, plane.proxy("product").await] {
        other.ask(LISTENER, &["gateway/shop/edge", "outbound"], &[]).await;
        assert_eq!(other.next().await, sent(LISTENER, &["outbound"]));
        assert_eq!(other.next().await, gone(LISTENER, &["gateway/shop/edge"], &[7]));
        other.ask(ROUTE, &["gateway/shop/edge:80"], &[]).await;
        assert_eq!(other.next().await, gone(ROUTE, &["gateway/shop/edge:80"], &[7]));
    }
    plane.end().await;
}

#[tokio::test]
async fn a_gateway_that_names_its_service_account_is_for_that_one_only() {
    let named = SHOP.replace("{name: edge,", "{name: edge, annotations: {weft.dev/service-account: edge},");
    assert_ne!(named, SHOP);
    let plane = Plane::start(SHOP).await;
    let mut edge = plane.gateway("spiffe://weft.local/ns/shop/sa/edge", "edge").await;
    let mut product = plane.gateway("spiffe://weft.local/ns/shop/sa/product", "product").await;
    for proxy in [&mut edge, &mut product] {
        proxy.ask(LISTENER, &["gateway/shop/edge"], &[]).await;
        assert_eq!(proxy.next().await, sent(LISTENER, &["gateway/shop/edge"]));
        proxy.ask(ResourceType::Revision, &["revision"], &[]).await;
        while proxy.next().await.kind != ResourceType::Revision {}
    }
    plane.apply(&named, 2);
    assert_eq!(product.next().await, gone(LISTENER, &["gateway/shop/edge"], &[7]));
    assert_eq!(product.next().await, gone(ROUTE, &["gateway/shop/edge:80"], &[]));
    edge.ask(LISTENER, &["gateway/shop/edge"], &[]).await;
    loop {
        let answer = edge.next().await;
        assert!(answer.removed.is_empty(), "{answer:?}");
        if answer.names == ["gateway/shop/edge"] {
            break;
        }
    }
    plane.end().await;
}

#[tokio::test]
async fn streams_that_cannot_be_are_refused_with_the_reason() {
    let limits = Limits { names: 3, request: 64 << 10, ..Limits::default() };
    let plane = Plane::with(SHOP, limits, INTERVAL).await;
    let (_requests, receiver) = mpsc::channel(1);
    assert_eq!(plane.call(None, receiver).await.unwrap_err().code(), tonic::Code::Unauthenticated);

    let mut no_node = plane.proxy("web").await;
    no_node.node = None;
    no_node.ask(CLUSTER, &[PRODUCT], &[]).await;
    assert_eq!(no_node.raw().await.unwrap_err().code(), tonic::Code::InvalidArgument);

    let mut stranger = plane.client("spiffe://weft.local/machine/x", "x", WEFT_USER_AGENT).await;
    stranger.ask(CLUSTER, &[PRODUCT], &[]).await;
    let status = stranger.raw().await.unwrap_err();
    assert!(status.message().contains("names no namespace"), "{status}");

    let mut greedy = plane.proxy("web").await;
    greedy.ask(CLUSTER, &["a", "b", "c", "d"], &[]).await;
    assert_eq!(greedy.raw().await.unwrap_err().code(), tonic::Code::ResourceExhausted);

    let mut huge = plane.proxy("web").await;
    huge.ask(CLUSTER, &[&"x".repeat(65 << 10)], &[]).await;
    assert_eq!(huge.raw().await.unwrap_err().code(), tonic::Code::OutOfRange);

    let mut fine = plane.proxy("web").await;
    fine.ask(CLUSTER, &[PRODUCT], &[]).await;
    assert_eq!(fine.next().await, sent(CLUSTER, &[PRODUCT]), "others do not notice");
    plane.end().await;
}

/// (30)
#[tokio::test]
async fn one_identity_does_not_use_up_the_streams_and_names_of_others() {
    let limits = Limits { names_of_identity: 3, streams_of_identity: 2, ..Limits::default() };
    let plane = Plane::with(SHOP, limits, INTERVAL).await;
    let mut first = plane.proxy("web").await;
    first.ask(CLUSTER, &[PRODUCT, "a"], &[]).await;
    first.next().await;
    let mut second = plane.proxy("web").await;
    second.ask(CLUSTER, &[PRODUCT, "a"], &[]).await;
    let status = second.raw().await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::ResourceExhausted);
    assert!(status.message().contains("names") && status.message().contains("/sa/web"), "{status}");
    let mut third = plane.proxy("web").await;
    third.ask(CLUSTER, &[PRODUCT], &[]).await;
    assert_eq!(third.next().await, sent(CLUSTER, &[PRODUCT]), "within what is left");
    let (_requests, receiver) = mpsc::channel(1);
    let fourth = plane.call(Some("spiffe://weft.local/ns/shop/sa/web"), receiver).await.unwrap_err();
    assert_eq!(fourth.code(), tonic::Code::ResourceExhausted, "{fourth}");
    let mut other = plane.proxy("order").await;
    other.ask(CLUSTER, &[PRODUCT, "a"], &[]).await;
    other.next().await;
    plane.end().await;
}

#[tokio::test]
async fn a_stream_ends_with_its_certificate() {
    let plane = Plane::start(SHOP).await;
    let mut client = AggregatedDiscoveryServiceClient::connect(format!("http://{}", plane.address)).await.unwrap();
    let (_requests, receiver) = mpsc::channel(1);
    let mut request = Request::new(ReceiverStream::new(receiver));
    request.metadata_mut().insert("caller", "spiffe://weft.local/ns/shop/sa/web".parse().unwrap());
    request.metadata_mut().insert("lifetime-ms", "50".parse().unwrap());
    let mut answers = client.delta_aggregated_resources(request).await.unwrap().into_inner();
    let end = tokio::time::timeout(WAIT, answers.message()).await.unwrap();
    assert_eq!(end.unwrap_err().code(), tonic::Code::Unauthenticated);
    plane.end().await;
}

/// Also with `initial_resource_versions` in one request and the names in a later one.
#[tokio::test]
async fn what_a_client_says_it_holds_is_believed_until_it_differs() {
    let plane = Plane::start(SHOP).await;
    let mut first = plane.proxy("web").await;
    first.ask(CLUSTER, &[PRODUCT], &[]).await;
    first.next().await;
    let version = first.version(CLUSTER, PRODUCT).to_owned();
    let mut again = plane.proxy("web").await;
    again.ask_with(CLUSTER, &[], &[(PRODUCT, &version)]).await;
    again.ask(CLUSTER, &[PRODUCT], &[]).await;
    again.is_quiet().await;
    again.ask(CLUSTER, &[PRODUCT], &[]).await;
    assert_eq!(again.next().await, sent(CLUSTER, &[PRODUCT]), "the second time it is asked again");
    plane.end().await;
}
