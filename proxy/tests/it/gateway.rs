//! The gateway: requests from outside, by host and path to services of the mesh.

use std::{collections::BTreeMap, net::SocketAddr, num::NonZeroU16};

use http::{Request, Response};
use weft_core::{
    cluster::Cluster,
    listener::{AccessLog as LogPolicy, EncodedSlashes, Gateway, Listener},
    names::{ClusterName, ListenerName, RouteName},
    policy::Authorization,
    route::{Action, Forward, Match, PathMatch, RouteTable, Rule, VirtualHost},
    snapshot::Resources,
};
use weft_proxy::listener::socket::Role;

use crate::{
    apps::{empty, full, http1_app, http2_client, raw, text},
    pair::{Proxy, cluster_name, endpoint_set},
};

const PORT: NonZeroU16 = NonZeroU16::new(8080).unwrap();

/// A gateway that takes `shop.example` to an application: everything, but `/teapot`, which is answered with 418.
pub(crate) fn gateway(application: SocketAddr) -> (Proxy, SocketAddr) {
    gateway_reading(application, EncodedSlashes::Refuse)
}

fn gateway_reading(application: SocketAddr, slashes: EncodedSlashes) -> (Proxy, SocketAddr) {
    let rule = |path: &str, action| Rule {
        matches: Match { path: PathMatch::Prefix(path.into()), method: None, headers: Vec::new() },
        ..Rule::all(&format!("shop/edge{path}"), action)
    };
    let all = rule("/", Action::Forward(Forward::to(cluster_name())));
    gateway_as(application, vec![rule("/teapot", Action::Respond(418)), all], slashes)
}

/// A gateway with these rules for `shop.example`.
pub(crate) fn gateway_with(application: SocketAddr, rules: Vec<Rule>) -> (Proxy, SocketAddr) {
    gateway_as(application, rules, EncodedSlashes::Refuse)
}

fn gateway_as(application: SocketAddr, rules: Vec<Rule>, encoded_slashes: EncodedSlashes) -> (Proxy, SocketAddr) {
    let proxy = Proxy::start(None);
    let route = RouteName::Gateway { namespace: "shop".into(), name: "edge".into(), port: PORT };
    let name: ClusterName = cluster_name();
    let host = VirtualHost { name: "shop".into(), domains: vec!["shop.example".into()], rules };
    let table = RouteTable { name: route.clone(), hosts: vec![host], authorization: Authorization::default() };
    let listener = Gateway {
        namespace: "shop".into(),
        name: "edge".into(),
        ports: BTreeMap::from([(PORT, route.clone())]),
        access_log: LogPolicy::Off,
        encoded_slashes,
    };
    let key = ListenerName::Gateway { namespace: "shop".into(), name: "edge".into() };
    let resources = Resources {
        listeners: [(key, Listener::Gateway(listener))].into(),
        routes: [(route, table)].into(),
        clusters: [(name.clone(), Cluster::new(name))].into(),
        ..Resources::default()
    };
    proxy.shared.live.replace(resources).unwrap();
    proxy.shared.live.set_endpoints(&endpoint_set(&[(application, None)]));
    let address = proxy.listen(Role::Gateway(PORT.get()));
    (proxy, address)
}

async fn telling() -> SocketAddr {
    http1_app(|request| async move {
        let of = |name: &str| {
            let values = request.headers().get_all(name).iter().map(|value| value.to_str().unwrap());
            values.collect::<Vec<_>>().join(" | ")
        };
        let told = format!("{:?} for={} proto={}", request.version(), of("x-forwarded-for"), of("x-forwarded-proto"));
        Response::new(full(told))
    })
    .await
}

#[tokio::test]
async fn http1_and_http2_from_outside_reach_an_http1_application() {
    let (_proxy, address) = gateway(telling().await);
    let request = b"GET / HTTP/1.1\r\nhost: shop.example\r\nconnection: close\r\n\r\n";
    let (answer, _) = raw(address, request, std::time::Duration::from_secs(5)).await;
    assert!(answer.ends_with("HTTP/1.1 for=127.0.0.1 proto=http"), "{answer}");
    let mut client = http2_client(address).await;
    let request = Request::get("http://shop.example/").body(empty()).unwrap();
    let answer = text(client.send_request(request).await.unwrap()).await.unwrap();
    assert_eq!(answer, "HTTP/1.1 for=127.0.0.1 proto=http");
}

#[tokio::test]
async fn every_address_that_a_request_came_by_is_kept() {
    let (_proxy, address) = gateway(telling().await);
    let mut client = http2_client(address).await;
    let request = Request::get("http://shop.example/")
        .header("x-forwarded-for", "192.0.2.1")
        .header("x-forwarded-for", "192.0.2.2, 192.0.2.3")
        .body(empty())
        .unwrap();
    let answer = text(client.send_request(request).await.unwrap()).await.unwrap();
    assert_eq!(answer, "HTTP/1.1 for=192.0.2.1, 192.0.2.2, 192.0.2.3, 127.0.0.1 proto=http");
}

#[tokio::test]
async fn host_and_path_choose_the_rule_and_what_fits_none_is_404() {
    let (proxy, address) = gateway(telling().await);
    let mut client = http2_client(address).await;
    for (uri, status) in [
        ("http://shop.example/x", 200),
        ("http://SHOP.example:8080/x", 200),
        ("http://shop.example/teapot/x", 418),
        ("http://shop.example/teapots", 200),
        ("http://other.example/", 404),
    ] {
        let answer = client.send_request(Request::get(uri).body(empty()).unwrap()).await.unwrap();
        assert_eq!(answer.status().as_u16(), status, "{uri}");
    }
    assert_eq!(proxy.metric("weft_failures_total", &["flag=\"NR\"", "direction=\"gateway\""]), 1.0);
}

#[tokio::test]
async fn bytes_that_are_not_http_are_closed() {
    let (proxy, address) = gateway(telling().await);
    for bytes in [&b"\x16\x03\x01\x00\x05hello"[..], b"\x00\x01\x02\x03", b"*1\r\n$4\r\nPING\r\n"] {
        let (answer, closed) = raw(address, bytes, std::time::Duration::from_secs(1)).await;
        assert!(closed && answer.is_empty(), "{bytes:?}: {answer}");
    }
    assert_eq!(proxy.metric("weft_failures_total", &["flag=\"PROTOCOL\""]), 3.0);
}

/// (37) Rules on paths at the edge hold for every application behind it.
#[tokio::test]
async fn a_path_that_applications_read_in_different_ways_is_refused_before_routing() {
    let (_proxy, address) = gateway(crate::traffic::mirror().await);
    for (path, status) in [
        ("/x/../teapot", 400),
        ("/./teapot", 400),
        ("/x/%2e%2e/teapot", 400),
        ("/x/.%2E/teapot", 400),
        ("/..;/teapot", 400),
        ("/x/..", 400),
        ("/x%2fteapot", 400),
        ("/x%2Fteapot", 400),
        ("/x%5cteapot", 400),
        ("/x\\teapot", 400),
        ("/%252e%252e/teapot", 400),
        ("/x%00", 400),
        ("/x%0d%0ay", 400),
        ("/.well-known/x", 200),
        ("/a...b/..c/d..?to=../%2f", 200),
        ("/caf%C3%A9/a%20b;c=1//d", 200),
        ("/teapot", 418),
    ] {
        assert_answer(address, path, status).await;
    }
}

/// Names of packages and of branches hold slashes (`/@scope%2fname`). A dot segment beside one is refused as beside any slash,
/// and so is a slash that is escaped twice. (37)
#[tokio::test]
async fn where_encoded_slashes_are_kept_they_pass_and_nothing_else_does() {
    let (_proxy, address) = gateway_reading(crate::traffic::mirror().await, EncodedSlashes::Keep);
    for (path, status) in [
        ("/@scope%2fname", 200),
        ("/branches/a%2Fb%2fc/", 200),
        ("/teapot%2fx", 200),
        ("/teapot/x%2fy", 418),
        ("/x%2f..%2fteapot", 400),
        ("/x/..%2fteapot", 400),
        ("/x%2F%2e%2e/teapot", 400),
        ("/x%2f.", 400),
        ("/x%252fteapot", 400),
        ("/x%5cteapot", 400),
        ("/x%2f%5cteapot", 400),
        ("/x%2f%00", 400),
        ("/x%c0%afteapot", 400),
        ("/x/../teapot", 400),
    ] {
        assert_answer(address, path, status).await;
    }
}

/// A path that passes is sent as it came.
async fn assert_answer(address: SocketAddr, path: &str, status: u16) {
    let request = format!("GET {path} HTTP/1.1\r\nhost: shop.example\r\nconnection: close\r\n\r\n");
    let (answer, _) = raw(address, request.as_bytes(), std::time::Duration::from_secs(5)).await;
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {answer}");
    assert!(status != 200 || answer.contains(path), "the path is sent as it came: {path}: {answer}");
}

/// (37)
#[tokio::test]
async fn what_only_a_proxy_may_say_is_not_believed_at_the_edge() {
    let (_proxy, address) = gateway(crate::traffic::mirror().await);
    let request =
        b"GET / HTTP/1.1\r\nhost: shop.example\r\nX-Forwarded-Client-Cert: By=FORGED\r\nX_Forwarded_Client_Cert: \
        FORGED\r\nX-Envoy-Original-Path: /FORGED\r\nx_envoy_peer_metadata: FORGED\r\nClient-Cert: :FORGED:\r\n\
        Client-Cert-Chain: :FORGED:\r\nWeft-Client-Id: FORGED\r\nX-Environment: a\r\nX-Client-Certain: b\r\n\
        connection: close\r\n\r\n";
    let (answer, _) = raw(address, request, std::time::Duration::from_secs(5)).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && !answer.contains("FORGED"), "{answer}");
    assert!(answer.contains("X-Environment: a\r\nX-Client-Certain: b\r\n"), "{answer}");
}

/// (14) The authority in either version, and a cookie in crumbs.
#[tokio::test]
async fn headers_match_as_fields_in_both_versions() {
    use weft_core::route::{HeaderMatch, ValueMatch};
    let wants = |name: &str, value: &str, status| Rule {
        matches: Match {
            headers: vec![HeaderMatch { name: name.into(), value: ValueMatch::Exact(value.into()) }],
            ..Match::any()
        },
        ..Rule::all("shop/edge", Action::Respond(status))
    };
    let rules = vec![
        wants("host", "shop.example:81", 401),
        wants("cookie", "a=1; b=2", 402),
        wants("x-list", "one, two", 403),
        wants("x-list", "two", 404),
        Rule::all("shop/edge", Action::Respond(418)),
    ];
    let (_proxy, address) = gateway_with(telling().await, rules);
    let mut client = http2_client(address).await;
    for (host, name, values, status) in [
        ("shop.example:81", "x", &["1"][..], 401),
        ("shop.example", "x", &["1"], 418),
        ("shop.example", "cookie", &["a=1", "b=2"], 402),
        ("shop.example", "cookie", &["a=1; b=2"], 402),
        ("shop.example", "cookie", &["b=2", "a=1"], 418),
        ("shop.example", "x-list", &["one", "two"], 403),
        ("shop.example", "x-list", &["one, two"], 403),
        ("shop.example", "x-list", &["two"], 404),
    ] {
        let mut request = Request::get(format!("http://{host}/"));
        let mut text = format!("GET / HTTP/1.1\r\nHost: {host}\r\nconnection: close\r\n");
        for value in values {
            request = request.header(name, *value);
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        let answer = client.send_request(request.body(empty()).unwrap()).await.unwrap();
        assert_eq!(answer.status().as_u16(), status, "HTTP/2 {host} {name} {values:?}");
        let (answer, _) = raw(address, format!("{text}\r\n").as_bytes(), std::time::Duration::from_secs(5)).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "HTTP/1 {host} {name} {values:?}: {answer}");
    }
}
