//! What is read: every field of every kind once, defaults, lists, JSON, several documents, the proxy's file.

use std::net::IpAddr;

use weft_core::api::{
    Kind, Object, ObjectKey,
    http_route::{PathMatchType, RefKind},
    parse_documents, parse_proxy_file,
    proxy_config::{HealthCheckType, ProxyMode},
    service::{AppProtocol, TargetPort},
    traffic_policy::RetryCondition,
};

use crate::{document, errors};

fn one(text: &str) -> Object {
    let mut objects = parse_documents(text).unwrap();
    assert_eq!(objects.len(), 1, "{text}");
    objects.remove(0)
}

#[test]
fn a_service_has_ports_with_targets_and_protocols_and_its_addresses_once() {
    let Object::Service(service) = one(&document(
        "Service",
        "{selector: {app: a}, clusterIP: 240.0.0.1, clusterIPs: [240.0.0.1, 'fd77::1'], ports: [
          {name: a, port: 80, targetPort: 8080, appProtocol: http, protocol: TCP},
          {name: b, port: 81, targetPort: web, appProtocol: kubernetes.io/h2c},
          {name: c, port: 82, appProtocol: grpc}, {name: d, port: 83, appProtocol: tcp},
          {name: e, port: 84, appProtocol: redis}, {name: f, port: 85, appProtocol: kubernetes.io/ws},
          {name: g, port: 86, appProtocol: http2}, {name: h, port: 87}]}",
    )) else {
        panic!("a service")
    };
    let spec = service.spec;
    assert_eq!(spec.addresses(), ["240.0.0.1".parse::<IpAddr>().unwrap(), "fd77::1".parse().unwrap()]);
    let protocols: Vec<AppProtocol> = spec.ports.iter().map(|port| port.app()).collect();
    use AppProtocol::{Detect, Grpc, Http, Http2, Tcp};
    assert_eq!(protocols, [Http, Http2, Grpc, Tcp, Detect, Http, Http2, Detect]);
    let targets: Vec<String> = spec.ports.iter().take(3).map(|port| port.target().to_string()).collect();
    assert_eq!(targets, ["8080", "web", "82"]);
    assert_eq!(spec.port_named("b").unwrap().target(), TargetPort::Name("web".to_owned()));
}

#[test]
fn a_route_keeps_what_is_written_and_knows_its_defaults() {
    let Object::HttpRoute(route) = one(&document(
        "HTTPRoute",
        "{parentRefs: [{name: edge}, {group: '', kind: Service, name: product, namespace: other, port: 80}],
          hostnames: [a.example, '*.b.example'],
          rules: [{name: main, matches: [{path: {value: /v2}, method: GET, headers: [{name: X-A, value: b}]}, {}],
            backendRefs: [{name: v1, port: 80, weight: 90}, {name: v2, port: 80}, {name: off, port: 80, weight: 0}],
            timeouts: {request: 1m30s, backendRequest: 500ms}, retry: {codes: [503], attempts: 2, backoff: 10ms}}]}",
    )) else {
        panic!("a route")
    };
    let [edge, product] = &route.spec.parent_refs[..] else { panic!("two parents") };
    assert_eq!((edge.target(), edge.namespace("shop")), (Some(RefKind::Gateway), "shop"));
    assert_eq!((product.target(), product.namespace("shop")), (Some(RefKind::Service), "other"));
    let rule = &route.spec.rules[0];
    let path = rule.matches[0].path.as_ref().unwrap();
    assert_eq!((path.kind(), path.value()), (PathMatchType::PathPrefix, "/v2"));
    let weights: Vec<u32> = rule.backend_refs.iter().map(|backend| backend.weight()).collect();
    assert_eq!(weights, [90, 1, 0]);
    assert_eq!(rule.timeouts.unwrap().request.unwrap().std().as_secs(), 90);
}

#[test]
fn retry_conditions_may_be_written_on_or_retry_on_and_are_written_back_as_retry_on() {
    for field in ["on", "retryOn"] {
        let spec = format!("{{targetRef: {{kind: Service, name: a}}, retry: {{{field}: [5xx, connect-failure]}}}}");
        let object = one(&document("TrafficPolicy", &spec));
        let Object::TrafficPolicy(policy) = &object else { panic!("a policy") };
        let on = policy.spec.retry.as_ref().unwrap().on.clone().unwrap();
        assert_eq!(on, [RetryCondition::ServerError, RetryCondition::ConnectFailure]);
        assert!(serde_json::to_string(&object).unwrap().contains("\"retryOn\":[\"5xx\",\"connect-failure\"]"));
    }
}

#[test]
fn several_documents_lists_and_json_are_read_alike() {
    let service = r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"NAME"},"spec":{"ports":[{"port":80}]}}"#;
    let [a, b, c, d] = ["a", "b", "c", "d"].map(|name| service.replace("NAME", name));
    let list = format!(r#"{{"apiVersion":"v1","kind":"List","metadata":{{}},"items":[{c},{d}]}}"#);
    let text = format!("# nothing\n---\n{a}\n---\n\n--- # two\n{b}\n...\n---\n{list}\n---\n");
    let keys: Vec<String> = parse_documents(&text).unwrap().iter().map(|object| object.key().to_string()).collect();
    assert_eq!(keys, ["Service/default/a", "Service/default/b", "Service/default/c", "Service/default/d"]);
    assert_eq!(parse_documents("").unwrap(), []);
    assert_eq!(parse_documents("---\n# only words\n---\n").unwrap(), []);
}

#[test]
fn what_is_written_back_is_what_was_read_and_the_namespace() {
    let text = r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"a"},"spec":{"ports":[{"port":80}]}}"#;
    let object = one(text);
    let expected = text.replace(r#""name":"a""#, r#""name":"a","namespace":"default""#);
    assert_eq!(serde_json::to_string(&object).unwrap(), expected);
}

#[test]
fn nulls_are_nothing_in_metadata_and_status_only() {
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: a, creationTimestamp: null, labels: }\n\
                spec: {ports: [{port: 80}]}\nstatus: {conditions: null}\n";
    assert_eq!(errors(text), [""; 0]);
}

#[test]
fn keys_are_read_as_they_are_shown() {
    for kind in Kind::ALL {
        let key = ObjectKey::new(*kind, "shop", "a.b");
        assert_eq!(key.to_string().parse::<ObjectKey>().unwrap(), key);
    }
    for text in ["", "Service", "Service/a", "Service/a/b/c", "Service//b", "Pod/a/b"] {
        assert!(text.parse::<ObjectKey>().is_err(), "{text}");
    }
}

const PROXY: &str = r#"
apiVersion: weft.dev/v1alpha1
kind: ProxyConfig
metadata: {name: product-1, namespace: shop}
spec:
  mode: sidecar
  workload:
    serviceAccount: product
    labels: {app: product, version: v1}
    addresses: [10.77.0.11, "fd00:77::11"]
    ports: [{name: http, port: 8080, protocol: http}]
    health: {port: 8080, type: http, path: /healthz, interval: 2s}
  controlPlane:
    address: 10.77.0.2:15012
    joinTokenFile: /run/weft/token
  mark: 0x77656674
  workers: 1
  ports: {outbound: 15001, inbound: 0}
  bind: 127.0.0.1
  drain: 5s
  expectRedirect: false
  accessLog: all
  limits: {connections: 5, streams: 2000, stalled: 30s, paused: 5m}
  forward:
    outbound: [{listen: "127.0.0.1:9001", destination: "240.0.0.1:80"}]
    inbound: [{listen: "127.0.0.1:9002", destination: "127.0.0.1:8080"}]
---
apiVersion: v1
kind: Service
metadata: {name: a}
spec: {ports: [{port: 80}]}
"#;

#[test]
fn a_proxy_file_is_its_settings_and_objects() {
    let (config, objects) = parse_proxy_file(PROXY).unwrap();
    assert_eq!(objects.len(), 1);
    let spec = config.spec;
    assert_eq!((spec.mode, spec.mark, spec.workers.get()), (ProxyMode::Sidecar, 0x7765_6674, 1));
    assert_eq!(
        (spec.ports.outbound, spec.ports.inbound, spec.ports.admin, spec.ports.metrics),
        (15001, 0, 15000, 15020)
    );
    let workload = spec.workload.unwrap();
    assert_eq!(workload.checks().0[0].kind, HealthCheckType::Http);
    assert_eq!(workload.checks().0[0].timeout.std().as_secs(), 1);
    assert_eq!((spec.limits.connections.get(), spec.limits.streams.map(std::num::NonZeroU32::get)), (5, Some(2000)));
    assert_eq!((spec.limits.stalled.std().as_secs(), spec.limits.paused.std().as_secs()), (30, 300));
    let list = PROXY
        .replace("health: {port: 8080, type: http, path: /healthz, interval: 2s}", "health: [{port: 1}, {port: 2}]");
    assert_eq!(parse_proxy_file(&list).unwrap().0.spec.workload.unwrap().checks().0.len(), 2);
    let least =
        "apiVersion: weft.dev/v1alpha1\nkind: ProxyConfig\nmetadata: {name: a}\nspec: {mode: gateway, gateway: edge}\n";
    let spec = parse_proxy_file(least).unwrap().0.spec;
    assert_eq!((spec.mark, spec.workers.get(), spec.drain.std().as_secs()), (0x7765_6674, 1, 30));
}

#[test]
fn mistakes_in_a_proxy_file_are_named() {
    let errors =
        |text: &str| -> Vec<String> { parse_proxy_file(text).unwrap_err().iter().map(ToString::to_string).collect() };
    assert_eq!(errors(""), ["document 1: the file is empty; its first document must be a ProxyConfig"]);
    assert_eq!(
        errors(&PROXY.replace("mode: sidecar", "mode: gateway").replace("kind: Service", "kind: Servce")),
        [
            "document 1: spec.gateway: required",
            "document 1: spec.forward: only with `mode: sidecar`",
            "document 2: kind: \"Servce\" is not a kind that Weft knows; did you mean \"Service\"?",
        ]
    );
    assert_eq!(
        errors(
            &PROXY
                .replace("workers: 1", "workers: 0\n  identity: {certificate: a}")
                .replace("health: {port", "health: {prt")
        ),
        [
            "document 1: spec.workload.health.prt: unknown field; did you mean \"port\"?",
            "document 1: spec.workload.health.port: required",
            "document 1: spec.workers: must be a whole number from 1, not 0",
            "document 1: spec.identity.certificate: unknown field; did you mean \"certificateFile\"?",
            "document 1: spec.identity.certificateFile: required",
            "document 1: spec.identity.privateKeyFile: required",
            "document 1: spec.identity.trustBundleFile: required",
        ]
    );
    assert_eq!(
        errors(
            &PROXY
                .replace("kind: Service", "kind: ProxyConfig")
                .replace("inbound: 0", "inbound: 15001")
                .replace("10.77.0.2:15012", "10.77.0.2")
        ),
        [
            "document 1: spec.controlPlane.address: \"10.77.0.2\" must be host:port",
            "document 1: spec.ports.inbound: is the same as outbound",
            "document 2: kind: a ProxyConfig is a proxy's own file and cannot be applied",
        ]
    );
    let service = &PROXY[PROXY.find("---").unwrap()..];
    assert_eq!(errors(service), ["document 1: kind: the first document must be a ProxyConfig, not \"Service\""]);
}
