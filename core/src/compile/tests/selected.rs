//! Selectors that pick no workload, accounts that none has, and how many workloads a service has.

use super::*;
use crate::api::meta::EndpointCount;

fn message(world: &World, kind: Kind, name: &str) -> Option<String> {
    let conditions = world.conditions(&ObjectKey::new(kind, "shop", name));
    let found = conditions.into_iter().find(|condition| condition.kind == "Selected")?;
    (found.status == crate::api::ConditionStatus::False).then_some(found.message)
}

fn service(more: &str, spec: &str) -> World {
    shop(&format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: s, namespace: shop{more}}}, spec: {{clusterIP: 240.0.0.50, {spec}}}}}"
    ))
}

/// (24)
#[test]
fn a_service_that_picks_no_workload_says_which_labels_or_account_or_port_is_missing() {
    let told = |more: &str, spec: &str| message(&service(more, spec), Kind::Service, "s");
    let accounts = |names: &str| format!(", annotations: {{weft.dev/service-accounts: '{names}'}}");
    let port = "ports: [{port: 80}]";
    for (more, spec, wanted) in [
        ("", format!("selector: {{app: product}}, {port}"), None),
        (
            "",
            format!("selector: {{app: produkt}}, {port}"),
            Some("no workload of namespace shop has the labels app=produkt"),
        ),
        ("", format!("selector: {{app: product, version: v3}}, {port}"), Some("has the labels app=product,version=v3")),
        ("", port.to_owned(), Some("it has no selector")),
        (accounts("product, other").as_str(), format!("selector: {{app: product}}, {port}"), None),
        (
            accounts("order").as_str(),
            format!("selector: {{app: product}}, {port}"),
            Some("service account of weft.dev/service-accounts: order"),
        ),
        (
            "",
            "selector: {app: product}, ports: [{port: 80, targetPort: wep}]".to_owned(),
            Some("has a port named wep for port 80"),
        ),
        ("", "selector: {app: product}, ports: [{port: 80, targetPort: web}]".to_owned(), None),
    ] {
        let told = told(more, &spec);
        match wanted {
            None => assert_eq!(told, None, "{more} {spec}"),
            Some(wanted) => assert!(told.as_ref().is_some_and(|told| told.contains(wanted)), "{more} {spec}: {told:?}"),
        }
    }
    // One without a selector may be there for its routes.
    let route = "---\n{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: r, namespace: shop}, spec: {parentRefs: [{group: '', kind: Service, name: s}]}}";
    let world = shop(&format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: s, namespace: shop}}, spec: {{clusterIP: 240.0.0.50, {port}}}}}\n{route}"
    ));
    assert_eq!(message(&world, Kind::Service, "s"), None);
}

/// (24)
#[test]
fn a_policy_that_guards_no_workload_says_so() {
    let policy = |namespace: &str, spec: &str| {
        shop(&format!(
            "{{apiVersion: weft.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {{name: p, namespace: {namespace}}}, spec: {{{spec}, action: Deny, rules: [{{}}]}}}}"
        ))
    };
    let labels = |text: &str| format!("selector: {{matchLabels: {{{text}}}}}");
    for (namespace, spec, guards) in [
        ("shop", labels("app: product"), true),
        ("shop", labels("app: produkt"), false),
        ("shop", labels("app: product, version: v2"), true),
        ("shop", labels(""), true),
        ("bank", labels("app: product"), false),
        (ROOT_NAMESPACE, labels("app: product"), true),
        (ROOT_NAMESPACE, labels("app: produkt"), false),
        ("shop", "targetRef: {kind: Service, name: product}".to_owned(), true),
    ] {
        let world = policy(namespace, &spec);
        let conditions = world.conditions(&ObjectKey::new(Kind::AuthorizationPolicy, namespace, "p"));
        let selected = conditions.iter().find(|condition| condition.kind == "Selected").unwrap();
        assert_eq!(selected.status == crate::api::ConditionStatus::True, guards, "{namespace} {spec}: {selected:?}");
    }
    // A workload without a proxy has nobody who would obey.
    let old = SHOP.replace(
        "{name: old, namespace: shop, labels: {app: product}}",
        "{name: old, namespace: shop, labels: {app: old}}",
    );
    let world = world(&format!(
        "{old}---\n{{apiVersion: weft.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {{name: p, namespace: shop}}, spec: {{selector: {{matchLabels: {{app: old}}}}, action: Deny, rules: [{{}}]}}}}"
    ));
    let told = message(&world, Kind::AuthorizationPolicy, "p").unwrap();
    assert!(told.starts_with("no workload with a proxy in namespace shop"), "{told}");
}

/// (24)
#[test]
fn an_account_that_no_workload_has_is_found_in_every_form() {
    let unknown = |from: &str| {
        let world = shop(&format!(
            "{{apiVersion: weft.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {{name: p, namespace: shop}}, spec: {{selector: {{}}, action: Deny, rules: [{{from: [{from}]}}]}}}}"
        ));
        let object = world.objects().find(&ObjectKey::new(Kind::AuthorizationPolicy, "shop", "p")).unwrap();
        let named = world.named_accounts(object);
        let unknown = named.into_iter().filter(|named| !world.has_account(named));
        unknown.map(|named| named.text).collect::<Vec<_>>()
    };
    for (from, wanted) in [
        ("{serviceAccounts: [shop/product]}", &[][..]),
        ("{serviceAccounts: [shop/produkt, bank/product, shop/product]}", &["bank/product", "shop/produkt"]),
        ("{namespaces: [shop]}", &[]),
        ("{namespaces: [sho]}", &["namespace sho"]),
        ("{identities: ['spiffe://weft.local/ns/shop/sa/product']}", &[]),
        ("{identities: ['spiffe://weft.local/ns/shop/sa/produ']}", &["spiffe://weft.local/ns/shop/sa/produ"]),
        ("{identities: ['spiffe://weft.local/ns/shop/*']}", &[]),
        ("{identities: ['spiffe://weft.local/ns/bank/*']}", &["spiffe://weft.local/ns/bank/*"]),
        // Others are not known here.
        ("{identities: ['spiffe://other.example/ns/shop/sa/x', 'spiffe://other.example/*']}", &[]),
    ] {
        assert_eq!(unknown(from), wanted, "{from}");
    }
}

/// (24)
#[test]
fn only_workloads_that_take_new_work_at_every_port_count_as_healthy() {
    let count = |world: &World, name: &str| {
        let object = world.objects().find(&ObjectKey::new(Kind::Service, "shop", name)).unwrap();
        let Object::Service(service) = &**object else { panic!("{object:?}") };
        world.endpoint_count(service)
    };
    // Of three one is draining, and one has no port of the name.
    assert_eq!(count(&shop(""), "product"), EndpointCount { healthy: 1, total: 3 });
    assert_eq!(count(&shop(""), "product-v2"), EndpointCount { healthy: 0, total: 1 });
    let unhealthy = world(&SHOP.replace("health: draining", "health: unhealthy"));
    assert_eq!(count(&unhealthy, "product-v2"), EndpointCount { healthy: 0, total: 1 });
    let world =
        service(", annotations: {weft.dev/service-accounts: order}", "selector: {app: product}, ports: [{port: 80}]");
    assert_eq!(count(&world, "s"), EndpointCount { healthy: 0, total: 3 }, "they are of other accounts");
}
