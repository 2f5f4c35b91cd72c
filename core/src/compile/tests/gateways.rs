use super::*;
use crate::{api::Status, listener::EncodedSlashes, route::Action};

/// A gateway with nested hostnames on one port, a conflict and a protocol that is not supported.
const EDGE: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: shop, generation: 4}
spec:
  gatewayClassName: weft
  listeners:
  - {name: any, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}
  - {name: wild, port: 80, protocol: HTTP, hostname: "*.example.com"}
  - {name: exact, port: 80, protocol: HTTP, hostname: a.example.com}
  - name: picked
    port: 81
    protocol: HTTP
    allowedRoutes:
      namespaces: {from: Selector, selector: {matchLabels: {kubernetes.io/metadata.name: friends}}}
"#;

fn route(namespace: &str, name: &str, rest: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  {rest}\n  rules: [{{name: {name}}}]\n"
    )
}

fn found(world: &World, port: u16, host: &str) -> String {
    let table = routes(world, &format!("gateway/shop/edge:{port}")).unwrap();
    let head = Head { host: host.into(), ..get("/") };
    table.find(&head).map_or("404".into(), |rule| {
        assert_eq!(rule.action, Action::Respond(500), "these rules have no backend");
        rule.name.to_string()
    })
}

#[test]
fn a_request_belongs_to_the_listener_with_the_most_specific_hostname_alone() {
    let world = shop(&format!(
        "{EDGE}{}{}",
        route("shop", "on-any", "parentRefs: [{name: edge, sectionName: any}]"),
        route("shop", "on-wild", "parentRefs: [{name: edge, sectionName: wild}]"),
    ));
    assert_eq!(found(&world, 80, "other.org"), "shop/on-any#on-any");
    assert_eq!(found(&world, 80, "b.example.com"), "shop/on-wild#on-wild");
    assert_eq!(found(&world, 80, "a.example.com"), "404", "the exact listener has no route");
    // A hostname of a route cannot reach into what a more specific listener takes.
    let world = shop(&format!(
        "{EDGE}{}",
        route(
            "shop",
            "sly",
            "parentRefs: [{name: edge, sectionName: any}]\n  hostnames: [a.example.com, c.example.com, d.org]"
        )
    ));
    for (host, wanted) in
        [("a.example.com", "404"), ("c.example.com", "404"), ("d.org", "shop/sly#sly"), ("e.org", "404")]
    {
        assert_eq!(found(&world, 80, host), wanted, "{host}");
    }
}

#[test]
fn a_more_specific_hostname_goes_first_and_the_others_follow() {
    let specific = r#"
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: specific, namespace: shop}
spec:
  parentRefs: [{name: edge, sectionName: any}]
  hostnames: [x.org]
  rules: [{name: only, matches: [{path: {type: Exact, value: /only}}]}]
"#;
    let wide = route("shop", "wide", "parentRefs: [{name: edge, sectionName: any}]\n  hostnames: ['*.org', x.net]");
    let world = shop(&format!("{EDGE}{specific}{wide}"));
    assert_eq!(found(&world, 80, "y.org"), "shop/wide#wide");
    assert_eq!(found(&world, 80, "x.org"), "shop/wide#wide", "what the specific route does not match");
    let table = routes(&world, "gateway/shop/edge:80").unwrap();
    let head = Head { host: "X.org".into(), ..get("/only") };
    assert_eq!(table.find(&head).unwrap().name.as_ref(), "shop/specific#only");
}

#[test]
fn only_routes_that_a_listener_lets_in_are_attached() {
    let world = shop(&format!(
        "{EDGE}{}{}{}",
        route("friends", "friend", "parentRefs: [{name: edge, namespace: shop}]"),
        route("strangers", "stranger", "parentRefs: [{name: edge, namespace: shop, port: 81}]"),
        route("shop", "lost", "parentRefs: [{name: edge, sectionName: nowhere}]"),
    ));
    assert_eq!(found(&world, 81, "q.org"), "friends/friend#friend");
    assert_eq!(found(&world, 80, "q.org"), "friends/friend#friend");
    let reason = |namespace: &str, name: &str| {
        let conditions = world.conditions(&ObjectKey::new(Kind::HttpRoute, namespace, name));
        conditions.iter().find(|c| c.kind == "Accepted").map(|c| c.reason.clone()).unwrap()
    };
    assert_eq!(reason("friends", "friend"), "Accepted");
    assert_eq!(reason("strangers", "stranger"), "NotAllowedByListeners");
    assert_eq!(reason("shop", "lost"), "NoMatchingParent");
    let key = ObjectKey::new(Kind::Gateway, "shop", "edge");
    let Status { listeners, conditions, .. } = world.status(&key).unwrap();
    let counts: Vec<(&str, u32)> = listeners.iter().map(|l| (l.name.as_str(), l.attached_routes)).collect();
    assert_eq!(counts, [("any", 1), ("wild", 0), ("exact", 0), ("picked", 1)]);
    assert!(conditions.iter().all(|c| c.observed_generation == Some(4)));
}

#[test]
fn a_gateway_has_its_ports_and_other_namespaces_a_different_one() {
    let world = shop(EDGE);
    let Some(Listener::Gateway(gateway)) = listener(&world, "gateway/shop/edge") else { panic!() };
    let ports: Vec<(u16, String)> = gateway.ports.iter().map(|(port, name)| (port.get(), name.to_string())).collect();
    assert_eq!(ports, [(80, "gateway/shop/edge:80".into()), (81, "gateway/shop/edge:81".into())]);
    assert!(listener(&world, "gateway/other/edge").is_none());
    assert!(routes(&world, "gateway/shop/edge:82").is_none());
}

/// (37)
#[test]
fn a_gateway_refuses_encoded_slashes_unless_the_mesh_keeps_them() {
    for (spec, expected) in [
        ("{}", EncodedSlashes::Refuse),
        ("{encodedSlashes: refuse}", EncodedSlashes::Refuse),
        ("{encodedSlashes: keep}", EncodedSlashes::Keep),
    ] {
        let mesh = "apiVersion: weft.dev/v1alpha1\nkind: MeshConfig\nmetadata: {name: default}\nspec:";
        let world = shop(&format!("{EDGE}---\n{mesh} {spec}\n"));
        let Some(Listener::Gateway(gateway)) = listener(&world, "gateway/shop/edge") else { panic!() };
        assert_eq!(gateway.encoded_slashes, expected, "{spec}");
    }
}
