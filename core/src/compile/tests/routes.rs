use super::*;
use crate::{filter::Change, retry::Outcome, route::Action};

fn action(world: &World, head: &Head) -> Option<Action> {
    routes(world, "svc/shop/product:80").unwrap().find(head).map(|rule| rule.action.clone())
}

/// Cluster weights and the unresolved share.
fn shares(action: Option<Action>) -> (Vec<(String, u32)>, u32) {
    match action {
        Some(Action::Forward(forward)) => {
            let clusters = forward.clusters.iter().map(|to| (to.cluster.to_string(), to.weight)).collect();
            (clusters, forward.unresolved)
        }
        other => panic!("{other:?}"),
    }
}

fn route(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n{spec}\n"
    )
}

#[test]
fn a_service_without_routes_forwards_to_itself_and_one_with_routes_answers_404_to_the_rest() {
    assert_eq!(shares(action(&shop(""), &get("/x"))).0, [("svc/shop/product:80".to_owned(), 1)]);
    let world = shop(&route(
        "r",
        r#"  parentRefs: [{group: "", kind: Service, name: product, port: 80}]
  hostnames: [other.example]
  rules: [{matches: [{path: {value: /v2}}], backendRefs: [{name: product-v2, port: 80}]}]"#,
    ));
    assert_eq!(shares(action(&world, &get("/v2"))).0, [("svc/shop/product-v2:80".to_owned(), 1)]);
    assert_eq!(action(&world, &get("/v1")), None);
    let table = routes(&world, "svc/shop/product:7000").unwrap();
    assert_eq!(table.find(&get("/v1")).unwrap().name.as_ref(), "shop/product#default", "another port has no routes");
    assert_eq!(reasons(&world, Kind::HttpRoute, "r"), ["Accepted=True/Accepted", "ResolvedRefs=True/ResolvedRefs"]);
}

#[test]
fn weights_stay_in_proportion_also_where_a_backend_cannot_be_resolved() {
    let world = shop(&route(
        "r",
        r#"  parentRefs: [{group: "", kind: Service, name: product, sectionName: http}]
  rules:
  - matches: [{path: {value: /some}}]
    backendRefs:
    - {name: product, port: 80, weight: 7}
    - {name: absent, port: 80, weight: 2}
    - {name: product-v2, port: 80, weight: 0}
    - {name: product-v2, namespace: other, port: 80, weight: 1}
  - matches: [{path: {value: /none}}]
    backendRefs: [{name: absent, port: 80}]
  - matches: [{path: {value: /zero}}]
    backendRefs: [{name: product, port: 80, weight: 0}]
  - name: nothing
    matches: [{path: {value: /nothing}}]"#,
    ));
    assert_eq!(shares(action(&world, &get("/some"))), (vec![("svc/shop/product:80".to_owned(), 7)], 3));
    for path in ["/none", "/zero", "/nothing"] {
        assert_eq!(action(&world, &get(path)), Some(Action::Respond(500)), "{path}");
    }
    let table = routes(&world, "svc/shop/product:80").unwrap();
    assert_eq!(table.find(&get("/nothing")).unwrap().name.as_ref(), "shop/r#nothing");
    assert_eq!(table.find(&get("/none")).unwrap().name.as_ref(), "shop/r#1");
    assert_eq!(reasons(&world, Kind::HttpRoute, "r"), ["Accepted=True/Accepted", "ResolvedRefs=False/RefNotPermitted"]);
}

#[test]
fn what_is_wrong_with_a_route_is_said_in_the_gateway_apis_words() {
    for (parent, backend, wanted) in [
        ("{group: '', kind: Service, name: product}", "{name: absent, port: 80}", ["Accepted", "BackendNotFound"]),
        ("{group: '', kind: Service, name: product}", "{name: product, port: 81}", ["Accepted", "BackendNotFound"]),
        ("{group: '', kind: Service, name: absent}", "{name: product, port: 80}", ["NoMatchingParent", "ResolvedRefs"]),
        (
            "{group: '', kind: Service, name: product, port: 81}",
            "{name: product, port: 80}",
            ["NoMatchingParent", "ResolvedRefs"],
        ),
        ("{name: edge}", "{group: x.io, kind: Bucket, name: product}", ["NoMatchingParent", "InvalidKind"]),
    ] {
        let spec = format!("  parentRefs: [{parent}]\n  rules: [{{backendRefs: [{backend}]}}]");
        let world = shop(&route("r", &spec));
        let conditions = world.conditions(&ObjectKey::new(Kind::HttpRoute, "shop", "r"));
        let found: Vec<&str> = conditions.iter().map(|condition| condition.reason.as_str()).collect();
        assert_eq!(found, wanted, "{parent} {backend}");
    }
}

#[test]
fn a_route_of_another_namespace_is_reported_and_not_applied() {
    let world = shop(
        r#"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: mine, namespace: consumer}
spec:
  parentRefs: [{group: "", kind: Service, name: product, namespace: shop}]
  rules: [{matches: [{path: {value: /x}}]}]
"#,
    );
    assert_eq!(shares(action(&world, &get("/x"))).0, [("svc/shop/product:80".to_owned(), 1)]);
    let conditions = world.conditions(&ObjectKey::new(Kind::HttpRoute, "consumer", "mine"));
    assert_eq!(conditions[0].reason, "UnsupportedValue");
}

#[test]
fn timeouts_and_retries_of_a_rule_go_over_the_policys() {
    let policy = r#"
apiVersion: weft.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: p, namespace: shop}
spec:
  targetRef: {kind: Service, name: product}
  timeouts: {request: 5s, perTry: 2s}
  retry: {attempts: 5, statusCodes: [500]}
"#;
    let rules = route(
        "r",
        r#"  parentRefs: [{group: "", kind: Service, name: product}]
  rules:
  - matches: [{path: {value: /own}}]
    timeouts: {request: 1s, backendRequest: 500ms}
    retry: {attempts: 1, codes: [503], backoff: 100ms}
    backendRefs: [{name: product, port: 80}]
  - matches: [{path: {value: /off}}]
    timeouts: {request: 0s}
    retry: {attempts: 0}
    backendRefs: [{name: product, port: 80}]
  - backendRefs: [{name: product-v2, port: 80}]"#,
    );
    let world = shop(&format!("{policy}{rules}"));
    let forward = |path: &str| match action(&world, &get(path)) {
        Some(Action::Forward(forward)) => forward,
        other => panic!("{other:?}"),
    };
    let millis = |time: Option<std::time::Duration>| time.map(|time| time.as_millis());
    let own = forward("/own");
    assert_eq!((millis(own.request_timeout), millis(own.try_timeout)), (Some(1000), Some(500)));
    // (9) The codes of a rule replace the default ones.
    assert_eq!((own.retry.attempts, own.retry.status_codes.clone()), (2, vec![503]));
    assert_eq!(
        [500, 502, 503, 504].map(|code| own.retry.retries(Outcome::Status(code), "GET")),
        [false, false, true, false]
    );
    assert!(own.retry.retries(Outcome::ConnectFailure, "POST") && own.retry.retries(Outcome::Reset, "GET"));
    assert_eq!((own.retry.backoff_base.as_millis(), own.retry.backoff_max.as_millis()), (100, 1000));
    let off = forward("/off");
    assert_eq!((millis(off.request_timeout), millis(off.try_timeout), off.retry.attempts), (None, Some(2000), 1));
    let other = forward("/");
    assert_eq!((millis(other.request_timeout), other.retry.attempts), (Some(5000), 5), "the parent's policy counts");
}

#[test]
fn the_older_route_wins() {
    let at = |name: &str, time: &str, backend: &str| {
        format!(
            r#"
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: {name}, namespace: shop, creationTimestamp: "{time}"}}
spec:
  parentRefs: [{{group: "", kind: Service, name: product}}]
  rules:
  - matches: [{{headers: [{{name: X-V, value: "1"}}]}}]
    backendRefs: [{{name: {backend}, port: 80}}]
"#
        )
    };
    let world = shop(&format!(
        "{}{}",
        at("a", "2026-02-01T00:00:00Z", "product"),
        at("b", "2026-01-01T00:00:00Z", "product-v2")
    ));
    let head = Head { headers: vec![("x-v".into(), "1".into())], ..get("/") };
    assert_eq!(shares(action(&world, &head)).0, [("svc/shop/product-v2:80".to_owned(), 1)]);
    let other = Head { headers: vec![("x-v".into(), "2".into())], ..get("/") };
    assert_eq!(action(&world, &other), None);
}

#[test]
fn header_modifiers_of_a_rule_come_with_each_of_its_matches() {
    let world = shop(&route(
        "r",
        r#"  parentRefs: [{group: "", kind: Service, name: product}]
  rules:
  - matches: [{path: {value: /a}}, {path: {value: /b}}]
    filters:
    - type: RequestHeaderModifier
      requestHeaderModifier:
        set: [{name: X-Stage, value: Canary}]
        add: [{name: X-Stage, value: "2"}]
        remove: [X-Debug]
    - type: ResponseHeaderModifier
      responseHeaderModifier: {remove: [Server]}
    backendRefs: [{name: product, port: 80}]
  - backendRefs: [{name: product, port: 80}]"#,
    ));
    let table = routes(&world, "svc/shop/product:80").unwrap();
    for path in ["/a", "/b"] {
        let filters = &table.find(&get(path)).unwrap().filters;
        let wanted = [Change::Remove("x-debug"), Change::Set("x-stage", "Canary"), Change::Add("x-stage", "2")];
        assert_eq!(filters.request_headers.changes().collect::<Vec<_>>(), wanted, "{path}");
        assert_eq!(filters.response_headers.changes().collect::<Vec<_>>(), [Change::Remove("server")], "{path}");
    }
    assert!(table.find(&get("/c")).unwrap().filters.is_empty());
}
