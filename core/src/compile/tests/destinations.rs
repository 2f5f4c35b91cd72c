use proptest::prelude::*;

use super::*;
use crate::{
    cluster::{Cluster, HttpVersion},
    endpoint::Health,
    identity::Identity,
    route::Action,
};

#[test]
fn a_service_is_found_by_each_of_its_addresses() {
    let world = shop("");
    for address in ["240.0.0.10", "[fd77:6566:7400::10]"] {
        for (port, protocol, http, tcp) in [
            (80, Protocol::Http, true, false),
            (90, Protocol::Http2, true, false),
            (5432, Protocol::Tcp, false, true),
            (7000, Protocol::Detect, true, true),
        ] {
            let found = outbound(&world, &format!("outbound/{address}:{port}")).unwrap();
            assert_eq!(found.protocol, protocol);
            assert_eq!(found.http.is_some(), http, "{port}");
            assert_eq!(!found.tcp.is_empty(), tcp, "{port}");
            if let Some(name) = &found.http {
                assert_eq!(name.to_string(), format!("svc/shop/product:{port}"));
                assert!(world.routes(name, &anyone()).is_some());
            }
            for to in &found.tcp {
                assert_eq!(to.cluster.to_string(), format!("svc/shop/product:{port}"));
            }
        }
        assert_eq!(outbound(&world, &format!("outbound/{address}:81")), None, "a port that no service has");
    }
    assert_eq!(outbound(&world, "outbound/240.0.0.99:80"), None);
    assert_eq!(routes(&world, "svc/shop/product:5432"), None, "opaque bytes have no routes");
    assert_eq!(routes(&world, "svc/shop/absent:80"), None);
}

#[test]
fn a_workloads_own_address_has_identity_and_no_routes() {
    let world = shop(
        r#"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: all-to-v2, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: product}]
  rules: [{backendRefs: [{name: product-v2, port: 80}]}]
"#,
    );
    for (address, protocol) in [
        ("10.77.0.12:8080", Protocol::Http),
        ("[fd00:77::12]:8080", Protocol::Http),
        ("10.77.0.12:1", Protocol::Detect),
    ] {
        let found = outbound(&world, &format!("outbound/{address}")).unwrap();
        assert_eq!(found.protocol, protocol, "{address}");
        let table = world.routes(found.http.as_ref().unwrap(), &anyone()).unwrap();
        let Action::Forward(forward) = &table.find(&get("/")).unwrap().action else { panic!() };
        assert_eq!(forward.clusters[0].cluster.to_string(), format!("direct/{address}"));
        let set = world.endpoints(&forward.clusters[0].cluster).unwrap();
        assert_eq!(set.endpoints.len(), 1);
        assert_eq!(set.endpoints[0].address.to_string(), address);
        let identity = set.endpoints[0].identity.as_ref().map(Identity::as_str);
        assert_eq!(identity, Some("spiffe://weft.local/ns/shop/sa/product"));
    }
    // Where the proxy listens elsewhere, others connect there.
    assert_eq!(addresses(&world, "direct/10.77.0.12:9090"), ["10.77.0.12:15099"]);
    let cluster = world.cluster(&ClusterName::parse("direct/10.77.0.12:9090").unwrap()).unwrap();
    assert_eq!(cluster.http, HttpVersion::Http2);
    assert_eq!(outbound(&world, "outbound/10.77.0.99:80"), None);
    assert_eq!(world.cluster(&ClusterName::parse("direct/240.0.0.10:80").unwrap()), None, "that is a service");
}

#[test]
fn endpoints_are_the_selected_workloads_in_the_order_of_their_addresses() {
    let world = shop("");
    let set = world.endpoints(&ClusterName::parse("svc/shop/product:80").unwrap()).unwrap();
    let seen: Vec<_> = set
        .endpoints
        .iter()
        .map(|e| (e.address.to_string(), e.workload.as_str(), e.weight.get(), e.zone.as_str(), e.health))
        .collect();
    // `old` has no port named web, so it is no endpoint of this port.
    assert_eq!(
        seen,
        [
            ("10.77.0.12:8080".into(), "shop/product-1", 1, "", Health::Healthy),
            ("[fd00:77::11]:8081".into(), "shop/product-2", 3, "a", Health::Draining),
        ]
    );
    assert_eq!(addresses(&world, "svc/shop/product-v2:80"), ["[fd00:77::11]:8081"]);
    assert_eq!(addresses(&world, "svc/shop/product:90"), ["10.77.0.9:9090", "10.77.0.12:15099", "[fd00:77::11]:9090"]);
    let outside = &world.endpoints(&ClusterName::parse("svc/shop/product:90").unwrap()).unwrap().endpoints[0];
    assert_eq!((outside.workload.as_str(), &outside.identity), ("shop/old", &None), "mesh: false is plaintext");
    assert_eq!(world.endpoints(&ClusterName::parse("svc/shop/product:81").unwrap()), None);
}

#[test]
fn what_is_registered_stands_for_what_was_written_down() {
    let written = shop("");
    let mut registered = Workloads::default();
    registered.insert(Arc::new(Instance {
        addresses: vec!["10.77.0.50".parse().unwrap()],
        ..(**written.objects().workloads().find("shop", "product-1").unwrap()).clone()
    }));
    let world = World::new(Arc::clone(written.objects()), Arc::new(registered));
    assert_eq!(addresses(&world, "svc/shop/product:80"), ["10.77.0.50:8080", "[fd00:77::11]:8081"]);
    assert_eq!(outbound(&world, "outbound/10.77.0.12:8080"), None, "the old address is gone");
    assert!(outbound(&world, "outbound/10.77.0.50:8080").is_some());
    let changed = world.registered().find("shop", "product-1").unwrap();
    let names: Vec<String> = world.clusters_of(changed).iter().map(ToString::to_string).collect();
    let wanted = ["svc/shop/product:80", "svc/shop/product:90", "svc/shop/product:5432", "svc/shop/product:7000"];
    assert_eq!(names, wanted);
}

#[test]
fn a_written_address_is_not_taken_by_a_registration_of_another_identity() {
    let written = shop("");
    let owner = written.objects().workloads().find("shop", "product-1").unwrap();
    let mut registered = Workloads::default();
    registered.insert(Arc::new(Instance {
        name: "thief".into(),
        labels: [].into(),
        identity: Some(Identity::parse("spiffe://weft.local/ns/shop/sa/thief").unwrap()),
        ..(**owner).clone()
    }));
    let world = World::new(Arc::clone(written.objects()), Arc::new(registered));
    let at = |name: &str| world.endpoints(&ClusterName::parse(name).unwrap()).unwrap().endpoints[0].identity.clone();
    assert_eq!(at("direct/10.77.0.12:8080"), owner.identity);
}

#[test]
fn a_registration_of_the_same_name_but_another_account_does_not_replace_what_was_written() {
    let written = shop("");
    let owner = written.objects().workloads().find("shop", "product-1").unwrap();
    let at = |account: &str| {
        let mut registered = Workloads::default();
        registered.insert(Arc::new(Instance {
            labels: [].into(),
            addresses: vec!["10.77.0.66".parse().unwrap()],
            identity: Some(Identity::parse(&format!("spiffe://weft.local/ns/shop/sa/{account}")).unwrap()),
            ..(**owner).clone()
        }));
        let world = World::new(Arc::clone(written.objects()), Arc::new(registered));
        (addresses(&world, "svc/shop/product:80"), outbound(&world, "outbound/10.77.0.12:8080").is_some())
    };
    let own = owner.identity.as_ref().unwrap().service_account().unwrap();
    let both = vec!["10.77.0.12:8080".to_owned(), "[fd00:77::11]:8081".to_owned()];
    assert_eq!(at("thief"), (both.clone(), true), "it stays, at its address");
    assert_eq!(at(own), (vec![both[1].clone()], false), "its own account moves it away");
}

#[test]
fn a_service_that_names_accounts_has_only_their_workloads() {
    let of = |accounts: &str| {
        let text = format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: closed, namespace: shop, annotations: {{weft.dev/service-accounts: {accounts:?}}}}}, spec: {{selector: {{app: product}}, ports: [{{port: 80, targetPort: 8080}}]}}}}"
        );
        let world = shop(&text);
        let set = world.endpoints(&ClusterName::parse("svc/shop/closed:80").unwrap()).unwrap();
        let accounts =
            set.endpoints.iter().map(|it| it.identity.as_ref().and_then(|it| it.service_account().map(str::to_owned)));
        accounts.collect::<Vec<_>>()
    };
    assert!(of("nobody").is_empty());
    let found = of("nobody, product");
    assert!(!found.is_empty() && found.iter().all(|account| account.as_deref() == Some("product")), "{found:?}");
}

#[test]
fn a_traffic_policy_goes_over_the_defaults_and_the_one_for_a_port_over_the_one_for_all() {
    let world = shop(
        r#"
apiVersion: weft.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: all, namespace: shop}
spec:
  targetRef: {kind: Service, name: product}
  timeouts: {connect: 2s, request: 5s, perTry: 0s}
  outlierDetection: {consecutiveFailures: 0}
---
apiVersion: weft.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: web, namespace: shop}
spec:
  targetRef: {kind: Service, name: product, sectionName: http}
  limits: {connections: 5}
  retry: {attempts: 3, retryOn: [5xx], budget: {ratio: 0.1}}
"#,
    );
    let cluster =
        |port: &str| world.cluster(&ClusterName::parse(&format!("svc/shop/product:{port}")).unwrap()).unwrap();
    let plain = Cluster::new(ClusterName::parse("svc/shop/product:80").unwrap());
    assert_eq!(cluster("90").connect_timeout.as_secs(), 2);
    assert_eq!(cluster("90").outlier, None);
    assert_eq!(cluster("90").http, HttpVersion::Http2);
    assert_eq!((cluster("80").limits.connections, cluster("80").budget.ratio), (5, 0.1));
    assert_eq!(cluster("80").connect_timeout, plain.connect_timeout, "one policy counts, they are not mixed");
    let forward = |port: &str| {
        let table = routes(&world, &format!("svc/shop/product:{port}")).unwrap();
        let Action::Forward(forward) = &table.hosts[0].rules[0].action else { panic!("{table:?}") };
        forward.clone()
    };
    assert_eq!(forward("90").request_timeout.map(|t| t.as_secs()), Some(5));
    assert_eq!(forward("90").try_timeout, None, "0s is none");
    let retry = forward("80").retry;
    assert!(retry.attempts == 3 && retry.on.server_error && !retry.on.connect_failure);
}

fn all_bytes(world: &World) -> String {
    use std::fmt::Write;
    let mut out = String::new();
    for address in world.service_addresses() {
        write!(out, "{:?}", world.listener(&ListenerName::Outbound(address), &anyone())).unwrap();
    }
    for at in world.service_ports() {
        write!(out, "{:?}", world.routes(&RouteName::Service(at.clone()), &anyone())).unwrap();
        write!(out, "{:?}", world.cluster(&ClusterName::Service(at.clone()))).unwrap();
        write!(out, "{:?}", world.endpoints(&ClusterName::Service(at))).unwrap();
    }
    let me = requester("product-1", &[("app", "product")], &[("web", 8080)]);
    write!(out, "{:?}{:?}", world.listener(&ListenerName::Inbound, &me), world.routes(&RouteName::Inbound(None), &me))
        .unwrap();
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn the_order_in_which_things_came_changes_nothing(order in Just((0..5usize).collect::<Vec<_>>()).prop_shuffle()) {
        let instance = |n: usize| {
            Arc::new(Instance {
                name: format!("r{n}"),
                addresses: vec![format!("10.77.1.{}", 200 - n).parse().unwrap()],
                ..(**shop("").objects().workloads().find("shop", "product-1").unwrap()).clone()
            })
        };
        let mut sorted = Workloads::default();
        (0..5).for_each(|n| { sorted.insert(instance(n)); });
        let mut shuffled = Workloads::default();
        for n in order {
            shuffled.insert(instance(n));
            // Leave and come back, as registrations do.
            shuffled.remove("shop", &format!("r{n}"));
            shuffled.insert(instance(n));
        }
        let one = World::new(Arc::clone(shop("").objects()), Arc::new(sorted));
        let two = World::new(Arc::clone(shop("").objects()), Arc::new(shuffled));
        prop_assert_eq!(all_bytes(&one), all_bytes(&two));
    }
}

/// A port that the workload's redirection leaves out is called in plaintext, by its own address and as a service's, unless the
/// service names its accounts or another identity has the port of that host. (17)
#[test]
fn a_port_that_bypasses_the_callees_proxy_has_no_identity() {
    let instance = |name: &str, account: &str, skipped: &[u16]| Instance {
        namespace: "shop".into(),
        name: name.into(),
        labels: [("app".to_owned(), "node".to_owned())].into(),
        identity: Some(Identity::parse(&format!("spiffe://weft.local/ns/shop/sa/{account}")).unwrap()),
        addresses: vec!["10.77.0.70".parse().unwrap()],
        ports: vec![InstancePort {
            name: "metrics".into(),
            port: 9100.try_into().unwrap(),
            protocol: Protocol::Http,
            proxy_port: Some(15099.try_into().unwrap()),
        }],
        skipped_ports: skipped.iter().map(|port| (*port).try_into().unwrap()).collect(),
        weight: 1.try_into().unwrap(),
        zone: String::new(),
        health: Health::Healthy,
    };
    let world = |more: &str, instances: Vec<Instance>| {
        let mut registered = Workloads::default();
        instances.into_iter().for_each(|instance| drop(registered.insert(Arc::new(instance))));
        World::new(Arc::clone(shop(more).objects()), Arc::new(registered))
    };
    let found = |world: &World, cluster: &str| {
        let set = world.endpoints(&ClusterName::parse(cluster).unwrap()).unwrap();
        set.endpoints.iter().map(|it| (it.address.to_string(), it.identity.is_some())).collect::<Vec<_>>()
    };
    let service = "{apiVersion: v1, kind: Service, metadata: {name: node, namespace: shop}, \
                   spec: {selector: {app: node}, ports: [{port: 80, targetPort: metrics}]}}";
    let one = world(service, vec![instance("a", "a", &[22, 9100])]);
    assert_eq!(found(&one, "direct/10.77.0.70:9100"), [("10.77.0.70:9100".to_owned(), false)]);
    assert_eq!(found(&one, "direct/10.77.0.70:22"), [("10.77.0.70:22".to_owned(), false)]);
    assert_eq!(found(&one, "direct/10.77.0.70:23"), [("10.77.0.70:23".to_owned(), true)]);
    assert_eq!(found(&one, "svc/shop/node:80"), [("10.77.0.70:9100".to_owned(), false)]);
    let named = service.replace("name: node,", "name: node, annotations: {weft.dev/service-accounts: a},");
    assert_eq!(found(&world(&named, vec![instance("a", "a", &[9100])]), "svc/shop/node:80"), [], "it cannot prove it");
    let shared = world(service, vec![instance("a", "a", &[22]), instance("b", "b", &[])]);
    assert_eq!(found(&shared, "direct/10.77.0.70:22"), [("10.77.0.70:22".to_owned(), true)], "b has not said so");
}
