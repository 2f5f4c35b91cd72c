use super::*;
use crate::listener::Inbound;

fn me() -> Requester {
    requester("product-1", &[("app", "product"), ("version", "v1")], &[("web", 8080), ("", 9090)])
}

fn inbound(world: &World, requester: &Requester) -> Inbound {
    match world.listener(&ListenerName::Inbound, requester) {
        Some(Listener::Inbound(inbound)) => inbound,
        other => panic!("{other:?}"),
    }
}

fn id(account: &str) -> Identity {
    Identity::parse(&format!("spiffe://weft.local/ns/shop/sa/{account}")).unwrap()
}

/// The decision on a GET, or on a TCP connection without a path.
fn ask(world: &World, requester: &Requester, identity: Option<&Identity>, port: u16, path: Option<&str>) -> String {
    let inbound = inbound(world, requester);
    let entry = inbound.port(port);
    let table = world.routes(&entry.routes, requester).unwrap();
    assert_eq!(table.authorization, entry.authorization, "requests and connections are judged by the same rules");
    let http = path.map(|path| ("GET", path));
    match entry.authorization.check(&Request { identity, port, http }) {
        Decision::Allow(rule) => format!("allow {}", rule.unwrap_or("all")),
        Decision::DeniedBy(rule) => format!("deny {rule}"),
        Decision::NotAllowed => "not allowed".into(),
    }
}

fn policy(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: weft.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n{spec}\n"
    )
}

fn mesh(spec: &str) -> String {
    format!("---\napiVersion: weft.dev/v1alpha1\nkind: MeshConfig\nmetadata: {{name: default}}\nspec: {spec}\n")
}

#[test]
fn without_a_policy_the_meshs_default_counts() {
    let (user, me) = (id("user"), me());
    for (default, anonymous, known) in [
        ("{}", "allow all", "allow all"),
        ("{defaultAuthorization: allow}", "allow all", "allow all"),
        ("{defaultAuthorization: authenticated}", "not allowed", "allow weft-system/mesh-config#authenticated"),
        ("{defaultAuthorization: deny}", "not allowed", "not allowed"),
    ] {
        let world = shop(&mesh(default));
        for port in [8080, 9090, 1234] {
            assert_eq!(ask(&world, &me, None, port, Some("/")), anonymous, "{default}");
            assert_eq!(ask(&world, &me, Some(&user), port, None), known, "{default}");
            // (37) A root may have signed for other trust domains too: for such a mesh the caller is a stranger.
            let foreign = Identity::parse("spiffe://other.example/ns/shop/sa/user").unwrap();
            assert_eq!(ask(&world, &me, Some(&foreign), port, Some("/")), anonymous, "{default}");
        }
    }
    use crate::listener::{AccessLog, InboundMode, OutboundPolicy};
    let world = shop(&mesh("{inbound: strict, outbound: registered-only, accessLog: all}"));
    let found = inbound(&world, &me);
    assert_eq!((found.default.mode, found.port(8080).mode), (InboundMode::Strict, InboundMode::Strict));
    assert_eq!(found.access_log, AccessLog::All);
    let Some(Listener::OutboundDefault(default)) = listener(&world, "outbound") else { panic!() };
    assert_eq!(default.policy, OutboundPolicy::RegisteredOnly);
}

#[test]
fn deny_wins_and_what_no_allow_rule_names_is_refused() {
    let world = shop(&format!(
        "{}{}",
        policy(
            "shop",
            "callers",
            r#"  selector: {matchLabels: {app: product}}
  action: Allow
  rules:
  - name: shop
    from: [{serviceAccounts: [shop/user]}, {namespaces: [edge]}]
    to: [{methods: [GET], paths: ["/api/*"]}]"#
        ),
        policy(
            "shop",
            "secret",
            r#"  selector: {}
  action: Deny
  rules: [{to: [{paths: [/api/secret]}]}]"#
        ),
    ));
    let (user, order, me) = (id("user"), id("order"), me());
    let edge = Identity::parse("spiffe://weft.local/ns/edge/sa/gateway").unwrap();
    let edgy = Identity::parse("spiffe://weft.local/ns/edge2/sa/gateway").unwrap();
    for (identity, path, wanted) in [
        (Some(&user), Some("/api/a"), "allow shop/callers#shop"),
        (Some(&edge), Some("/api/a"), "allow shop/callers#shop"),
        (Some(&edgy), Some("/api/a"), "not allowed"),
        (Some(&order), Some("/api/a"), "not allowed"),
        (None, Some("/api/a"), "not allowed"),
        (Some(&user), Some("/other"), "not allowed"),
        (Some(&user), Some("/api/secret"), "deny shop/secret#0"),
        (Some(&user), None, "deny shop/secret#0"), // a connection without a path: the deny rule might mean it
    ] {
        assert_eq!(ask(&world, &me, identity, 8080, path), wanted, "{identity:?} {path:?}");
    }
    let other = requester("cart-1", &[("app", "cart")], &[]);
    assert_eq!(ask(&world, &other, None, 80, Some("/")), "allow all", "the selector does not mean this one");
    assert_eq!(
        ask(&world, &other, None, 80, Some("/api/secret")),
        "deny shop/secret#0",
        "an empty selector: the namespace"
    );
    let elsewhere = Requester { namespace: "other".into(), ..me };
    assert_eq!(ask(&world, &elsewhere, None, 8080, Some("/api/secret")), "allow all");
}

#[test]
fn a_policy_of_the_root_namespace_guards_the_whole_mesh() {
    let world = shop(&policy(
        ROOT_NAMESPACE,
        "no-admin",
        r#"  selector: {}
  action: Deny
  rules: [{name: admin, to: [{paths: [/admin]}]}]"#,
    ));
    for namespace in ["shop", "other", ROOT_NAMESPACE] {
        let requester = Requester { namespace: namespace.into(), ..me() };
        assert_eq!(ask(&world, &requester, None, 8080, Some("/admin")), "deny weft-system/no-admin#admin");
    }
}

#[test]
fn a_policy_for_a_service_guards_its_workloads_and_one_for_a_port_only_that_port() {
    let port = |name: &str| {
        policy(
            "shop",
            "p",
            &format!(
                "  targetRef: {{kind: Service, name: product, sectionName: {name}}}\n  action: Allow\n  rules: [{{from: [{{serviceAccounts: [shop/user]}}]}}]"
            ),
        )
    };
    let me = me();
    // `http` has the target port `web`, which is 8080 here; `db` is 5432, which this workload does not declare.
    for (section, guarded, free) in [("http", 8080, 9090), ("grpc", 9090, 8080), ("db", 5432, 8080)] {
        let world = shop(&port(section));
        assert_eq!(ask(&world, &me, None, guarded, Some("/")), "not allowed", "{section}");
        assert_eq!(ask(&world, &me, Some(&id("user")), guarded, Some("/")), "allow shop/p#0", "{section}");
        assert_eq!(ask(&world, &me, None, free, Some("/")), "allow all", "{section}");
    }
    // F10: a port that nobody knows guards everything, and the status says so.
    let world = shop(&port("htpt"));
    for port in [8080, 9090, 1234] {
        assert_eq!(ask(&world, &me, None, port, Some("/")), "not allowed");
    }
    assert_eq!(
        reasons(&world, Kind::AuthorizationPolicy, "p"),
        ["Accepted=False/TargetNotFound", "Selected=True/Selected"]
    );
    let cart = requester("cart-1", &[("app", "cart")], &[]);
    assert_eq!(ask(&world, &cart, None, 80, Some("/")), "allow all");
}

#[test]
fn an_allow_policy_without_rules_lets_nobody_in() {
    let world = shop(&policy("shop", "closed", "  selector: {}\n  action: Allow\n  rules: []"));
    assert_eq!(ask(&world, &me(), Some(&id("user")), 8080, Some("/")), "not allowed");
}

/// F10: parts that say nothing cannot be applied, but if they ever get here they make nothing wider.
#[test]
fn what_says_nothing_is_never_wider() {
    use crate::api::authorization_policy::{Action, AuthorizationPolicySpec, AuthorizationRule, Source, Target};
    let rule = |from, to| AuthorizationRule { name: None, from, to };
    let nothing = [
        rule(Some(vec![]), None),
        rule(Some(vec![Source::default()]), None),
        rule(Some(vec![Source { identities: Some(vec!["not an id".into()]), ..Source::default() }]), None),
        rule(Some(vec![Source { namespaces: Some(vec![String::new()]), ..Source::default() }]), None),
        rule(Some(vec![Source { service_accounts: Some(vec!["noslash".into()]), ..Source::default() }]), None),
        rule(None, Some(vec![])),
        rule(None, Some(vec![Target::default()])),
        rule(None, Some(vec![Target { methods: Some(vec![]), ..Target::default() }])),
        rule(
            None,
            Some(vec![Target { paths: Some(vec![]), ports: NonZeroU16::new(1).map(|p| vec![p]), methods: None }]),
        ),
    ];
    for rule in nothing {
        for (action, wanted) in [(Action::Allow, "not allowed"), (Action::Deny, "deny shop/p#0")] {
            let spec = AuthorizationPolicySpec { selector: None, target_ref: None, action, rules: vec![rule.clone()] };
            let policy = crate::api::AuthorizationPolicy::new(crate::api::ObjectMeta::new("shop", "p"), spec);
            let policy = Object::from(policy);
            let objects = BTreeMap::from([(policy.key(), Arc::new(policy))]);
            let world = World::new(Arc::new(Objects::new(&objects, domain(), 1)), Arc::default());
            let user = id("user");
            for identity in [None, Some(&user)] {
                assert_eq!(ask(&world, &me(), identity, 8080, Some("/")), wanted, "{rule:?}");
                assert_eq!(ask(&world, &me(), identity, 8080, None), wanted, "{rule:?}");
            }
        }
    }
}

#[test]
fn a_gateway_has_nothing_inbound() {
    let gateway = Requester { mode: ProxyMode::Gateway, ..me() };
    assert!(shop("").listener(&ListenerName::Inbound, &gateway).is_none());
    assert!(shop("").routes(&RouteName::Inbound(None), &gateway).is_none());
    assert!(shop("").routes(&RouteName::parse("inbound:4444").unwrap(), &me()).is_none(), "no such port");
}
