//! Rules that no request can reach.

use super::*;

fn parent_of(world: &World, namespace: &str, name: &str) -> Option<String> {
    let conditions = world.conditions(&ObjectKey::new(Kind::HttpRoute, namespace, name));
    let mut found = conditions.into_iter().filter(|condition| condition.kind == "Shadowed");
    let text = found.next().map(|condition| condition.message);
    assert!(found.next().is_none());
    text
}

fn told(rules: &str) -> Option<String> {
    parent_of(&shop(&on_product("r", rules)), "shop", "r")
}

fn on_product(name: &str, rules: &str) -> String {
    format!(
        "---\n{{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {{name: {name}, namespace: shop}}, \
         spec: {{parentRefs: [{{group: '', kind: Service, name: product, port: 80}}], rules: [{rules}]}}}}\n"
    )
}

/// (24)
#[test]
fn a_rule_is_shadowed_only_if_one_earlier_match_takes_each_of_its_requests() {
    let prefix = |path: &str| format!("{{path: {{value: {path}}}}}");
    let exact = |path: &str| format!("{{path: {{type: Exact, value: {path}}}}}");
    let regex = |path: &str| format!("{{path: {{type: RegularExpression, value: '{path}'}}}}");
    let with = |path: &str, more: &str| format!("{{path: {{value: {path}}}, {more}}}");
    let header = |kind: &str, value: &str| format!("headers: [{{name: x, type: {kind}, value: '{value}'}}]");
    for (first, second, shadowed) in [
        (prefix("/"), prefix("/"), true),
        (prefix("/a"), prefix("/a/"), true),
        (prefix("/a"), prefix("/b"), false),
        // The longer path goes first.
        (prefix("/"), prefix("/a"), false),
        (prefix("/a"), exact("/a"), false),
        (exact("/a"), exact("/a"), true),
        (exact("/a"), exact("/a/"), false),
        (regex("/x.*"), regex("/x.*"), true),
        (regex(".*"), prefix("/a"), true),
        (regex(".*"), exact("/a"), false),
        (regex("/a.*"), prefix("/a"), false),
        // More conditions go first, and the same ones shadow.
        (prefix("/"), with("/", "method: GET"), false),
        (with("/", "method: GET"), with("/", "method: GET"), true),
        (with("/", "method: GET"), with("/", "method: POST"), false),
        (with("/", "method: GET"), prefix("/"), false),
        (with("/", &header("Exact", "1")), with("/", &header("Exact", "1")), true),
        (with("/", &header("Exact", "1")), with("/", &header("Exact", "2")), false),
        (with("/", &header("RegularExpression", "[0-9]")), with("/", &header("Exact", "1")), true),
        (with("/", &header("RegularExpression", "[0-9]")), with("/", &header("Exact", "x")), false),
        (with("/", &header("Exact", "1")), with("/", &header("RegularExpression", "1")), false),
    ] {
        let found = told(&format!("{{matches: [{first}]}}, {{matches: [{second}]}}"));
        let wanted = shadowed.then(|| "rule shop/r#1 gets no request: shop/r#0 takes all".to_owned());
        assert_eq!(found, wanted, "{first} {second}");
    }
    // Every match of the rule has to be taken.
    let rules = |more: &str| {
        format!("{{name: all, matches: [{}]}}, {{name: late, matches: [{}{more}]}}", prefix("/"), prefix("/"))
    };
    assert_eq!(told(&rules("")).unwrap(), "rule shop/r#late gets no request: shop/r#all takes all");
    assert_eq!(told(&rules(&format!(", {}", exact("/a")))), None);
}

/// (24)
#[test]
fn a_route_is_shadowed_by_an_older_one_of_the_same_parent_and_host() {
    let world = shop(&[on_product("a", "{}"), on_product("b", "{}")].concat());
    assert_eq!(parent_of(&world, "shop", "a"), None);
    assert_eq!(parent_of(&world, "shop", "b").unwrap(), "rule shop/b#0 gets no request: shop/a#0 takes all");
    // At an edge only if it is so under each of its hosts.
    let edge = "---\n{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: edge, namespace: shop}, \
         spec: {gatewayClassName: weft, listeners: [{name: a, port: 80, protocol: HTTP}]}}\n";
    let at = |name: &str, hosts: &str| {
        format!(
            "---\n{{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {{name: {name}, namespace: shop}}, \
             spec: {{parentRefs: [{{name: edge}}], hostnames: [{hosts}], rules: [{{}}]}}}}\n"
        )
    };
    for (first, second, shadowed) in [
        ("a.example", "a.example", true),
        ("a.example", "b.example", false),
        ("a.example", "'*.example'", false),
        ("'*.example'", "a.example", false),
        ("a.example", "a.example, b.example", false),
        ("a.example, b.example", "b.example", true),
    ] {
        let world = shop(&[edge, &at("a", first), &at("b", second)].concat());
        assert_eq!(parent_of(&world, "shop", "a"), None, "{first} {second}");
        assert_eq!(parent_of(&world, "shop", "b").is_some(), shadowed, "{first} {second}");
    }
}
