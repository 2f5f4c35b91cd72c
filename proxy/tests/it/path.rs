//! Rules on paths and methods judge what the application will see, however the caller writes it.

use std::time::Duration;

use http::{Method, Request};
use hyper::ext::Protocol;
use weft_core::{
    listener::InboundMode,
    policy::{Authorization, Operation, PathPattern, Principal, Rule},
};

use crate::{
    apps::{empty, http2_client, once},
    pair::{Authority, inbound},
    traffic::mirror,
};

fn rule(to: Operation) -> Rule {
    Rule { name: "shop/rule#0".into(), from: vec![Principal::Any], to: vec![to] }
}

fn paths(path: &str) -> Operation {
    Operation { paths: vec![PathPattern::Prefix(path.into())], ..Operation::default() }
}

#[tokio::test]
async fn no_way_to_write_a_denied_path_reaches_the_application() {
    let deny = Authorization { deny: vec![rule(paths("/admin"))], allow: None };
    let (_proxy, address) =
        inbound(Authority::new().svid("product", true), mirror().await, InboundMode::Permissive, deny);
    for (path, status) in [
        ("/admin", 403),
        ("/admin/", 403),
        ("/admin?x", 403),
        ("//admin", 403),
        ("/%61dmin", 403),
        ("/%2561dmin", 403),
        ("/;x/admin", 403),
        ("/admin;x", 403),
        ("http://product/%61dmin", 403),
        ("http://product//admin", 403),
        ("/./admin", 400),
        ("/x/../admin", 400),
        ("/x/%2e%2e/admin", 400),
        ("/..;/admin", 400),
        ("/%2fadmin", 400),
        ("/%5cadmin", 400),
        ("/\\admin", 400),
        ("/x%00/../admin", 400),
        ("/%c0%afadmin", 400),
        ("/%252fadmin", 400),
        ("/open", 200),
        ("/caf%C3%A9/a%20b;c=1//d?e=../admin", 200),
        ("/.well-known/x", 200),
    ] {
        let answer = once(address, "GET", path).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {answer}");
        assert!(status != 200 || answer.contains(path), "the path is sent as it came: {path}: {answer}");
    }
}

#[tokio::test]
async fn an_allowed_prefix_is_not_left_by_an_odd_path() {
    let allow = Authorization { deny: vec![], allow: Some(vec![rule(paths("/public/"))]) };
    let (_proxy, address) =
        inbound(Authority::new().svid("product", true), mirror().await, InboundMode::Permissive, allow);
    for (path, status) in [
        ("/public/x", 200),
        ("/public/../admin", 400),
        ("/public/%2e%2e/admin", 400),
        ("/admin", 403),
        ("/public;x/y", 403),
    ] {
        let answer = once(address, "GET", path).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {answer}");
    }
}

#[tokio::test]
async fn without_a_rule_on_paths_every_path_passes_as_it_came() {
    let product = Authority::new().svid("product", true);
    let (_proxy, address) = inbound(product, mirror().await, InboundMode::Permissive, Authorization::default());
    for path in ["/a%2fb", "/x/../y", "//z", "/;x"] {
        let answer = once(address, "GET", path).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(path), "{path}: {answer}");
    }
}

#[tokio::test]
async fn an_extended_connect_is_judged_by_the_method_that_the_application_sees() {
    let get = Operation { methods: vec!["GET".into()], ..Operation::default() };
    let deny = Authorization { deny: vec![rule(get)], allow: None };
    let (proxy, address) =
        inbound(Authority::new().svid("product", true), mirror().await, InboundMode::Permissive, deny);
    let mut client = http2_client(address).await;
    // The client may ask only after the server's settings have come.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut request = Request::new(empty());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = "http://a/secret".parse().unwrap();
    request.extensions_mut().insert(Protocol::from_static("websocket"));
    let answer = client.send_request(request).await.unwrap();
    assert_eq!(answer.status(), 403);
    assert_eq!(proxy.metric("weft_denied_total", &["rule=\"shop/rule#0\""]), 1.0);
}
