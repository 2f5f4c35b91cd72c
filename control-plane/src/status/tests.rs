//! The status of objects, as readers see it.

use jiff::Timestamp;
use weft_core::{
    api::{ObjectKey, meta::EndpointCount, parse_documents, proxy_config::ProxyMode},
    identity::Identity,
};

use super::*;
use crate::state::{Nack, ProxyKey};

const TEXT: &str = "
{apiVersion: v1, kind: Service, metadata: {name: a, namespace: shop}, spec: {ports: [{port: 80}], clusterIPs: [240.0.0.1]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: a}]
  rules: [{backendRefs: [{name: missing, port: 80}]}]
";

fn desired() -> Desired {
    let objects = parse_documents(TEXT).unwrap().into_iter().map(|mut object| {
        object.metadata_mut().resource_version = Some("4".into());
        object.metadata_mut().generation = Some(2);
        (object.key(), Arc::new(object))
    });
    Desired { revision: 4, objects: objects.collect() }
}

/// Without workloads and tokens.
fn book(table: &Arc<ProxyTable>) -> StatusBook {
    book_of(table, &watch::Sender::default(), Arc::default())
}

fn book_of(
    table: &Arc<ProxyTable>,
    registered: &watch::Sender<Arc<Registered>>,
    accounts: Arc<Accounts>,
) -> StatusBook {
    let mesh = Mesh::new(&watch::Sender::<Arc<Desired>>::default(), registered, Arc::clone(table));
    StatusBook::new(TrustDomain::parse("weft.local").unwrap(), &mesh, accounts)
}

fn programmed(view: &StatusView, desired: &Desired, key: &str) -> (ConditionStatus, String, String) {
    let object = view.with_status(&desired.objects[&key.parse::<ObjectKey>().unwrap()]);
    let all = object.status().unwrap().conditions.clone();
    let found = all.into_iter().find(|condition| condition.kind == "Programmed").unwrap();
    assert_eq!(found.observed_generation, Some(2));
    (found.status, found.reason, found.message)
}

#[test]
fn a_refusal_and_a_proxy_that_is_behind_are_told_on_the_object() {
    let table = Arc::new(ProxyTable::default());
    let book = book(&table);
    let desired = desired();
    let told = |key| programmed(&book.view(&desired), &desired, key);
    assert_eq!(told("Service/shop/a").1, "NoProxy");
    let identity = Identity::parse("spiffe://weft.local/ns/shop/sa/order").unwrap();
    let key = ProxyKey { identity, name: "shop/order-1".into() };
    let stream = table.discovery(key, "weft-proxy".into(), Timestamp::UNIX_EPOCH);
    stream.update(|status| (status.sent_revision, status.applied_revision) = (Some(4), Some(3)));
    assert_eq!(told("Service/shop/a").1, "Pending");
    let nack = Nack { type_url: String::new(), message: "too new".into(), at: Timestamp::UNIX_EPOCH };
    stream.nack(["svc/shop/a:80".into()], nack.clone());
    let (status, reason, message) = told("HTTPRoute/shop/r");
    assert_eq!((status, reason.as_str()), (ConditionStatus::False, "Refused"));
    assert_eq!(message, "shop/order-1 refuses svc/shop/a:80: too new");
    stream.ack(["svc/shop/a:80"], Timestamp::UNIX_EPOCH);
    stream.nack(["svc/shop/ab:80".into()], nack);
    stream.update(|status| status.applied_revision = Some(4));
    assert_eq!(told("Service/shop/a").0, ConditionStatus::True);
}

fn stated(text: &str) -> Desired {
    let objects = parse_documents(text).unwrap().into_iter().map(|mut object| {
        object.metadata_mut().resource_version = Some("4".into());
        (object.key(), Arc::new(object))
    });
    Desired { revision: 4, objects: objects.collect() }
}

fn connect(table: &Arc<ProxyTable>, account: &str, gateway: Option<&str>) -> crate::state::DiscoveryStream {
    let identity = Identity::parse(&format!("spiffe://weft.local/ns/shop/sa/{account}")).unwrap();
    let key = ProxyKey { identity, name: format!("shop/{account}-1").into() };
    let stream = table.discovery(key, "weft-proxy".into(), Timestamp::UNIX_EPOCH);
    stream.update(|status| {
        (status.sent_revision, status.applied_revision) = (Some(4), Some(4));
        status.gateways = gateway.map(Arc::from).into_iter().collect();
        status.requester = Some(Arc::new(Requester {
            namespace: "shop".into(),
            name: format!("{account}-1"),
            labels: [("app".to_owned(), account.to_owned())].into(),
            service_account: account.into(),
            ports: Vec::new(),
            mode: if gateway.is_some() { ProxyMode::Gateway } else { ProxyMode::Sidecar },
        }));
    });
    stream
}

fn nack(message: &str) -> Nack {
    Nack { type_url: String::new(), message: message.into(), at: Timestamp::UNIX_EPOCH }
}

/// (18)
#[test]
fn a_gateway_is_programmed_by_the_proxies_that_serve_it() {
    let text = "
{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: edge, namespace: shop}, spec: {gatewayClassName: weft, listeners: [{name: a, port: 80, protocol: HTTP}, {name: b, port: 81, protocol: HTTP}]}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: r, namespace: shop}, spec: {parentRefs: [{name: edge}], rules: [{}]}}
";
    let desired = stated(text);
    let table = Arc::new(ProxyTable::default());
    let book = book(&table);
    let status = |key: &str| {
        let object = &desired.objects[&key.parse::<ObjectKey>().unwrap()];
        book.view(&desired).with_status(object).status().unwrap().clone()
    };
    let of = |conditions: &[Condition]| {
        let found = conditions.iter().find(|condition| condition.kind == "Programmed").unwrap();
        (found.status, found.reason.clone())
    };
    let no_proxy = (ConditionStatus::False, "NoProxy".to_owned());
    let programmed = (ConditionStatus::True, "Programmed".to_owned());
    let _sidecar = connect(&table, "order", None);
    let _other = connect(&table, "other", Some("gateway/shop/edge2"));
    for key in ["Gateway/shop/edge", "HTTPRoute/shop/r"] {
        assert_eq!(of(&status(key).conditions), no_proxy, "{key}");
    }
    let stream = connect(&table, "edge", Some("gateway/shop/edge"));
    let key = ProxyKey {
        identity: Identity::parse("spiffe://weft.local/ns/shop/sa/edge").unwrap(),
        name: "shop/edge-1".into(),
    };
    let agent = table.agent(key, ProxyMode::Gateway, "0".into(), Timestamp::UNIX_EPOCH);
    agent.update(|status| status.address = Some([192, 0, 2, 7].into()));
    assert_eq!(of(&status("HTTPRoute/shop/r").conditions), programmed);
    let gateway = status("Gateway/shop/edge");
    assert_eq!(of(&gateway.conditions), programmed);
    assert_eq!(gateway.addresses[0].value.as_deref(), Some("192.0.2.7"));
    let listeners: Vec<_> = gateway.listeners.iter().map(|listener| of(&listener.conditions)).collect();
    assert_eq!(listeners, [programmed.clone(), programmed.clone()]);

    stream.nack(["gateway/shop/edge:81".into()], nack("bad"));
    let refused = (ConditionStatus::False, "Refused".to_owned());
    let gateway = status("Gateway/shop/edge");
    let listeners: Vec<_> = gateway.listeners.iter().map(|listener| of(&listener.conditions)).collect();
    assert_eq!((of(&gateway.conditions), listeners), (refused.clone(), vec![programmed, refused]));
}

/// (18)
#[test]
fn a_refusal_blames_the_objects_it_is_about_and_no_others() {
    let policy = |namespace: &str, name: &str, app: &str| {
        format!(
            "---\n{{apiVersion: weft.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {{name: {name}, namespace: {namespace}}}, \
             spec: {{selector: {{matchLabels: {{app: {app}}}}}, action: Deny, rules: [{{}}]}}}}\n"
        )
    };
    let gateway = |name: &str| {
        format!(
            "---\n{{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {{name: {name}, namespace: shop}}, \
             spec: {{gatewayClassName: weft, listeners: [{{name: a, port: 80, protocol: HTTP}}]}}}}\n"
        )
    };
    let mesh =
        "---\n{apiVersion: weft.dev/v1alpha1, kind: MeshConfig, metadata: {name: default}, spec: {accessLog: all}}\n";
    let text = [
        policy("shop", "own", "order"),
        policy("shop", "unselected", "cart"),
        policy("bank", "foreign", "order"),
        policy("weft-system", "root", "order"),
        gateway("edge"),
        gateway("edge2"),
        mesh.to_owned(),
    ]
    .concat();
    let desired = stated(&text);
    let blamed = |name: &str, message: &str, applied: u64| {
        let table = Arc::new(ProxyTable::default());
        let book = book(&table);
        let sidecar = connect(&table, "order", None);
        let _edges = ["edge", "edge2"].map(|it| connect(&table, it, Some(&format!("gateway/shop/{it}"))));
        sidecar.update(|status| status.applied_revision = Some(applied));
        sidecar.nack([name.to_owned()], nack(message));
        let view = book.view(&desired);
        let all = desired.objects.iter().filter(|(_, object)| {
            let status = view.with_status(object).status().unwrap().clone();
            status.conditions.iter().any(|it| it.kind == "Programmed" && it.reason == "Refused")
        });
        all.map(|(key, _)| key.to_string()).collect::<Vec<_>>()
    };
    let own = ["AuthorizationPolicy/shop/own", "AuthorizationPolicy/weft-system/root"];
    let mut inbound = blamed("inbound:80", "bad", 4);
    inbound.sort();
    assert_eq!(inbound, [own[0], own[1], "MeshConfig/default/default"]);
    assert_eq!(blamed("gateway/shop/edge2:80", "bad", 4), ["Gateway/shop/edge2"]);
    assert_eq!(blamed("gateway/shop/edge2", "bad", 4), ["MeshConfig/default/default", "Gateway/shop/edge2"]);
    let text = "in force but for what is refused: listener \"gateway/shop/edge2\": route table is missing";
    assert_eq!(blamed(REVISION_NAME, text, 3), ["MeshConfig/default/default", "Gateway/shop/edge2"]);
    assert_eq!(blamed(REVISION_NAME, text, 4), Vec::<String>::new());
    assert_eq!(blamed(REVISION_NAME, "the hash does not match", 3).len(), 3, "all of what a sidecar has");
}

#[tokio::test]
async fn a_transition_time_is_that_of_the_last_change_of_the_status() {
    let table = Arc::new(ProxyTable::default());
    let book = Arc::new(book(&table));
    let desired = Arc::new(desired());
    let object = &desired.objects[&"HTTPRoute/shop/r".parse::<ObjectKey>().unwrap()];
    // What was seen an hour ago, as if it had been then.
    let hour = jiff::SignedDuration::from_hours(1);
    let mut earlier = book.view_once(&desired).with_status(object).status().unwrap().clone();
    assert!(earlier.parents[0].conditions.iter().all(|it| it.last_transition_time.is_none()), "a dry run");
    let then = Timestamp::now() - hour;
    book.times.lock().note(object, &mut earlier, then);

    let told = || book.view(&desired).with_status(object).status().unwrap().clone();
    let of = |status: &Status| {
        let programmed = status.conditions.iter().find(|it| it.kind == "Programmed").unwrap();
        (status.parents[0].conditions[0].last_transition_time, programmed.last_transition_time)
    };
    let then = Timestamp::from_second(then.as_second()).unwrap();
    assert_eq!(of(&told()), (Some(then), Some(then)), "the same as an hour ago");

    // A proxy comes: one condition changes, and nobody reads it.
    let identity = Identity::parse("spiffe://weft.local/ns/shop/sa/order").unwrap();
    let key = ProxyKey { identity, name: "shop/order-1".into() };
    let stream = table.discovery(key, "weft-proxy".into(), Timestamp::UNIX_EPOCH);
    stream.update(|status| (status.sent_revision, status.applied_revision) = (Some(4), Some(4)));
    let (_sender, receiver) = watch::channel(Arc::clone(&desired));
    let stop = CancellationToken::new();
    stop.cancel();
    book.follow(receiver, stop).await;
    let seen = book.times.lock().since(object, "Programmed");
    assert!(seen.is_some_and(|at| at > then + hour / 2), "{seen:?}");
    assert_eq!(of(&told()), (Some(then), seen), "the other one keeps its time");

    // Another object of the same name begins anew.
    let mut other = Object::clone(object);
    other.metadata_mut().uid = Some("another".into());
    let status = book.view(&desired).with_status(&other).status().unwrap().clone();
    assert!(of(&status).0 > Some(then));
}

#[test]
fn a_dangling_reference_is_a_warning_and_a_condition() {
    let book = book(&Arc::default());
    let desired = desired();
    let view = book.view_once(&desired);
    let route = &desired.objects[&"HTTPRoute/shop/r".parse::<ObjectKey>().unwrap()];
    assert_eq!(view.warnings(route), ["BackendNotFound: there is no Service shop/missing with port 80"]);
    let parent = view.with_status(route).status().unwrap().parents[0].clone();
    assert!(parent.conditions.iter().any(|c| c.kind == "ResolvedRefs" && c.status == ConditionStatus::False));
}

/// (24)
#[test]
fn a_selector_without_workloads_is_a_warning_and_a_condition_until_one_registers() {
    let text = "
{apiVersion: v1, kind: Service, metadata: {name: a, namespace: shop}, spec: {selector: {app: a}, ports: [{port: 80}]}}
---
apiVersion: weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: p, namespace: shop}
spec: {selector: {matchLabels: {app: a}}, action: Allow, rules: [{from: [{serviceAccounts: [shop/a, shop/ordr]}]}]}
";
    let desired = stated(text);
    let registered = watch::Sender::default();
    let book = book_of(&Arc::default(), &registered, Arc::default());
    let object = |key: &str| &desired.objects[&key.parse::<ObjectKey>().unwrap()];
    let (service, policy) = (object("Service/shop/a"), object("AuthorizationPolicy/shop/p"));
    let status = |object: &Object, kind: &str| {
        let status = book.view(&desired).with_status(object).status().unwrap().clone();
        let found = status.conditions.iter().find(|it| it.kind == kind).unwrap().clone();
        (found.status, found.reason)
    };
    let none = "NoWorkload: no workload of namespace shop has the labels app=a";
    assert_eq!(book.view(&desired).warnings(service), [none]);
    assert_eq!(book.view_once(&desired).warnings(service), [none], "a dry run");
    assert_eq!(
        book.view(&desired).warnings(policy),
        [
            "NoWorkload: no workload with a proxy in namespace shop has the labels app=a, so nothing is guarded",
            "UnknownAccount: no workload and no join token is of shop/a, shop/ordr",
        ]
    );
    assert_eq!(status(service, "Selected"), (ConditionStatus::False, "NoWorkload".to_owned()));
    assert_eq!(status(policy, "AccountsKnown"), (ConditionStatus::False, "UnknownAccount".to_owned()));

    let key = crate::registry::WorkloadKey::new("shop", "a-1");
    let workload = |health| {
        Arc::new(crate::registry::RegisteredWorkload {
            key: key.clone(),
            identity: Identity::parse("spiffe://weft.local/ns/shop/sa/a").unwrap(),
            service_account: "a".into(),
            labels: [("app".to_owned(), "a".to_owned())].into(),
            addresses: vec![[192, 0, 2, 1].into()],
            unproven: Vec::new(),
            ports: Vec::new(),
            skipped_ports: Vec::new(),
            weight: std::num::NonZeroU32::MIN,
            zone: String::new(),
            gateway: false,
            health,
            incarnation: "one".into(),
            source: None,
        })
    };
    let put = |health| {
        registered.send_modify(|now| {
            let workloads = now.workloads.insert(key.clone(), workload(health));
            *now = Arc::new(now.next(workloads, [key.clone()].into()));
        });
    };
    let endpoints = || book.view(&desired).with_status(service).status().unwrap().endpoints.unwrap();
    assert_eq!(endpoints(), EndpointCount { healthy: 0, total: 0 });
    put(weft_core::endpoint::Health::Healthy);
    assert_eq!(book.view(&desired).warnings(service), Vec::<String>::new());
    assert_eq!(
        book.view_once(&desired).warnings(policy),
        ["UnknownAccount: no workload and no join token is of shop/ordr"]
    );
    assert_eq!(endpoints(), EndpointCount { healthy: 1, total: 1 });
    put(weft_core::endpoint::Health::Unhealthy);
    assert_eq!(endpoints(), EndpointCount { healthy: 0, total: 1 });
    registered.send_modify(|now| *now = Arc::new(now.next(now.workloads.remove(&key), [key.clone()].into())));
    assert_eq!(status(service, "Selected").0, ConditionStatus::False, "it is gone again");
}

/// (24)
#[test]
fn a_shadowed_rule_is_a_warning_and_a_condition() {
    let text = "
{apiVersion: v1, kind: Service, metadata: {name: a, namespace: shop}, spec: {ports: [{port: 80}], clusterIPs: [240.0.0.1]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: a}]
  rules: [{backendRefs: [{name: a, port: 80}]}, {name: canary, backendRefs: [{name: a, port: 80}]}]
";
    let desired = stated(text);
    let book = book(&Arc::default());
    let route = &desired.objects[&"HTTPRoute/shop/r".parse::<ObjectKey>().unwrap()];
    let view = book.view_once(&desired);
    let message = "rule shop/r#canary gets no request: shop/r#0 takes all";
    assert_eq!(view.warnings(route), [format!("RulesShadowed: {message}")]);
    let parent = view.with_status(route).status().unwrap().parents[0].clone();
    let shadowed = parent.conditions.iter().find(|it| it.kind == "Shadowed").unwrap();
    assert_eq!((shadowed.status, shadowed.message.as_str()), (ConditionStatus::True, message));
}
