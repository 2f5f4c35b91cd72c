//! What is written is read again and is the same, as JSON and as YAML.

use std::collections::BTreeMap;
use std::num::{NonZeroU16, NonZeroU32};

use proptest::{option, prelude::*};
use weft_core::api::{
    Duration, Object, ObjectMeta, Resource,
    authorization_policy::{Action, AuthorizationPolicySpec, AuthorizationRule, Source, Target},
    gateway::{AllowedRoutes, FromNamespaces, GatewaySpec, LabelSelector, Listener, ListenerProtocol, RouteNamespaces},
    http_route::*,
    mesh_config::*,
    parse_documents,
    service::{AppProtocol, ServicePort, ServiceSpec, TargetPort, Transport},
    traffic_policy::{self, Backoff, Budget, PolicyTarget, Retry, RetryCondition, Timeouts, TrafficPolicySpec},
    workload::{WorkloadHealth, WorkloadPort, WorkloadSpec},
};

fn name() -> impl Strategy<Value = String> {
    "[a-z]([a-z0-9]{0,8}[a-z0-9])?"
}

/// Names that YAML readers take for something else.
fn label_value() -> impl Strategy<Value = String> {
    prop_oneof![
        name(),
        "[0-9]{1,3}",
        Just("on".to_owned()),
        Just("null".to_owned()),
        Just("1e3".to_owned()),
        Just("0x1F".to_owned()),
        Just("true".to_owned()),
        Just(String::new())
    ]
}

fn labels() -> impl Strategy<Value = BTreeMap<String, String>> {
    prop::collection::btree_map(
        prop_oneof![name(), Just("app.kubernetes.io/name".to_owned()), Just("y".to_owned())],
        label_value(),
        0..3,
    )
}

fn port() -> impl Strategy<Value = NonZeroU16> {
    (1u16..).prop_map(|port| NonZeroU16::new(port).unwrap())
}

fn duration() -> impl Strategy<Value = Duration> {
    (1u64..10_000_000).prop_map(Duration::from_millis)
}

fn meta() -> impl Strategy<Value = ObjectMeta> {
    (name(), name(), labels(), option::of(1u64..9), option::of(0i64..4_000_000_000)).prop_map(
        |(name, namespace, labels, generation, at)| ObjectMeta {
            labels,
            generation,
            uid: generation.map(|n| n.to_string()),
            creation_timestamp: at.map(|at| jiff::Timestamp::from_second(at).unwrap()),
            ..ObjectMeta::new(&namespace, &name)
        },
    )
}

fn service() -> impl Strategy<Value = ServiceSpec> {
    let one = (
        option::of(prop_oneof![port().prop_map(TargetPort::Number), name().prop_map(TargetPort::Name)]),
        option::of(prop_oneof![Just("http".to_owned()), Just("kubernetes.io/h2c".to_owned())]),
        any::<bool>(),
    );
    (labels(), prop::collection::btree_map(port(), one, 1..4), option::of(any::<std::net::Ipv6Addr>())).prop_map(
        |(selector, ports, ip)| {
            let ip = ip.filter(|ip| !ip.is_unspecified() && !ip.is_multicast()).map(std::net::IpAddr::V6);
            ServiceSpec {
                selector,
                kind: None,
                cluster_ip: ip,
                cluster_ips: ip.into_iter().collect(),
                ports: ports
                    .into_iter()
                    .map(|(port, (target_port, app_protocol, tcp))| ServicePort {
                        name: Some(format!("p{port}")),
                        port,
                        target_port,
                        app_protocol,
                        protocol: tcp.then_some(Transport::Tcp),
                    })
                    .collect(),
            }
        },
    )
}

fn workload() -> impl Strategy<Value = WorkloadSpec> {
    (
        option::of(name()),
        any::<[u8; 3]>(),
        option::of(port()),
        option::of(1u32..=1_000_000),
        option::of(any::<bool>()),
        label_value(),
        0usize..4,
    )
        .prop_map(|(service_account, [a, b, c], proxy_port, weight, mesh, zone, pick)| WorkloadSpec {
            service_account,
            addresses: vec![[10, a, b, c].into()],
            ports: vec![WorkloadPort {
                name: proxy_port.map(|_| "http".to_owned()),
                port: NonZeroU16::MIN,
                protocol: [None, Some(AppProtocol::Http), Some(AppProtocol::Grpc), Some(AppProtocol::Tcp)][pick],
                proxy_port,
            }],
            skip_inbound_ports: proxy_port.into_iter().collect(),
            weight: weight.and_then(NonZeroU32::new),
            zone: Some(zone),
            health: [
                None,
                Some(WorkloadHealth::Healthy),
                Some(WorkloadHealth::Draining),
                Some(WorkloadHealth::Unhealthy),
            ][pick],
            mesh,
        })
}

fn filter() -> impl Strategy<Value = HttpRouteFilter> {
    let headers = |names: &'static str| {
        prop::collection::btree_map(names, "[!-~]{1,9}", 0..3)
            .prop_map(|headers| headers.into_iter().map(|(name, value)| HttpHeader { name, value }).collect::<Vec<_>>())
    };
    (
        any::<bool>(),
        headers("X-Set-[a-z]{1,3}"),
        headers("X-Add-[a-z]{1,3}"),
        prop::collection::btree_set("x-gone-[a-z]{1,3}", 0..3),
    )
        .prop_map(|(is_request, set, add, remove)| {
            let modifier = HttpHeaderFilter { set, add, remove: remove.into_iter().collect() };
            HttpRouteFilter {
                kind: if is_request { FilterType::RequestHeaderModifier } else { FilterType::ResponseHeaderModifier },
                request_header_modifier: is_request.then(|| modifier.clone()),
                response_header_modifier: (!is_request).then_some(modifier),
            }
        })
}

fn route() -> impl Strategy<Value = HttpRouteSpec> {
    let matches = (
        option::of(prop_oneof![Just(PathMatchType::Exact), Just(PathMatchType::PathPrefix)]),
        "/[a-z0-9]{1,8}",
        any::<bool>(),
        "[ -~]{1,20}",
    )
        .prop_map(|(kind, value, get, header)| HttpRouteMatch {
            path: Some(HttpPathMatch { kind, value: Some(value) }),
            headers: vec![HttpHeaderMatch { kind: None, name: "X-Test".to_owned(), value: header }],
            method: get.then(|| "GET".to_owned()),
        });
    let backend = (name(), option::of(name()), port(), option::of(0u32..=1_000_000)).prop_map(
        |(name, namespace, port, weight)| BackendRef {
            name,
            namespace,
            port: Some(port),
            weight,
            ..BackendRef::default()
        },
    );
    let rule = (
        prop::collection::vec(matches, 0..3),
        option::of(filter()),
        prop::collection::vec(backend, 0..3),
        option::of(duration()),
        option::of(0u32..9),
    )
        .prop_map(|(matches, filter, backend_refs, request, attempts)| HttpRouteRule {
            name: None,
            matches,
            filters: filter.into_iter().collect(),
            backend_refs,
            timeouts: request.map(|request| HttpRouteTimeouts { request: Some(request), backend_request: None }),
            retry: attempts.map(|attempts| HttpRouteRetry {
                codes: vec![503],
                attempts: Some(attempts),
                backoff: None,
            }),
        });
    (prop::collection::vec(rule, 0..4), option::of(port()), name()).prop_map(|(rules, port, parent)| HttpRouteSpec {
        parent_refs: vec![ParentReference {
            group: Some(String::new()),
            kind: Some("Service".to_owned()),
            name: parent,
            port,
            ..ParentReference::default()
        }],
        hostnames: vec!["*.example".to_owned()],
        rules,
    })
}

fn gateway() -> impl Strategy<Value = GatewaySpec> {
    (prop::collection::btree_set(port(), 1..4), labels(), 0usize..5).prop_map(|(ports, match_labels, pick)| {
        GatewaySpec {
            gateway_class_name: "weft".to_owned(),
            addresses: Vec::new(),
            listeners: ports
                .into_iter()
                .map(|port| Listener {
                    name: format!("p{port}"),
                    hostname: (pick == 4).then(|| "*.example".to_owned()),
                    port,
                    protocol: ListenerProtocol::Http,
                    allowed_routes: [
                        None,
                        Some(FromNamespaces::All),
                        Some(FromNamespaces::Same),
                        Some(FromNamespaces::None),
                        Some(FromNamespaces::Selector),
                    ][pick]
                        .map(|from| AllowedRoutes {
                            namespaces: Some(RouteNamespaces {
                                from: Some(from),
                                selector: (from == FromNamespaces::Selector)
                                    .then(|| LabelSelector { match_labels: match_labels.clone() }),
                            }),
                            kinds: Vec::new(),
                        }),
                })
                .collect(),
        }
    })
}

fn target() -> impl Strategy<Value = PolicyTarget> {
    (name(), option::of(name())).prop_map(|(name, section_name)| PolicyTarget {
        group: None,
        kind: "Service".to_owned(),
        name,
        section_name,
    })
}

fn traffic() -> impl Strategy<Value = TrafficPolicySpec> {
    (
        target(),
        option::of(duration()),
        option::of(1u32..=10),
        option::of((0u32..=1000).prop_map(|thousandths| f64::from(thousandths) / 1000.0)),
        option::of(0u32..100),
    )
        .prop_map(|(target_ref, time, attempts, ratio, count)| TrafficPolicySpec {
            target_ref,
            timeouts: time.map(|time| Timeouts { connect: Some(time), tcp_idle: Some(time), ..Timeouts::default() }),
            retry: attempts.map(|attempts| Retry {
                attempts: Some(attempts),
                on: Some(vec![RetryCondition::ServerError, RetryCondition::Reset]),
                status_codes: vec![429],
                backoff: Some(Backoff { base: None, max: Some(Duration::from_secs(5)) }),
                budget: Some(Budget { ratio, min_per_second: count }),
            }),
            outlier_detection: ratio.map(|ratio| traffic_policy::OutlierDetection {
                consecutive_failures: count,
                base_ejection: time,
                max_ejected: Some(ratio),
            }),
            limits: count.map(|count| traffic_policy::Limits {
                connections: Some(count + 1),
                ..traffic_policy::Limits::default()
            }),
            load_balancer: None,
        })
}

fn authorization() -> impl Strategy<Value = AuthorizationPolicySpec> {
    let source = prop_oneof![
        (name(), name()).prop_map(|(ns, sa)| Source {
            identities: Some(vec![
                format!("spiffe://weft.local/ns/{ns}/sa/{sa}"),
                format!("spiffe://weft.local/ns/{ns}/*")
            ]),
            ..Source::default()
        }),
        (name(), name())
            .prop_map(|(ns, sa)| Source { service_accounts: Some(vec![format!("{ns}/{sa}")]), ..Source::default() }),
        name().prop_map(|ns| Source { namespaces: Some(vec![ns]), ..Source::default() }),
    ];
    let rule = (option::of(prop::collection::vec(source, 1..3)), option::of(port())).prop_map(|(from, port)| {
        AuthorizationRule {
            name: None,
            from,
            to: port.map(|port| {
                vec![Target {
                    methods: Some(vec!["GET".to_owned()]),
                    paths: Some(vec!["/a".to_owned(), "/b/*".to_owned()]),
                    ports: Some(vec![port]),
                }]
            }),
        }
    });
    (option::of(target()), labels(), any::<bool>(), prop::collection::vec(rule, 1..4)).prop_map(
        |(target_ref, match_labels, allow, rules)| AuthorizationPolicySpec {
            selector: target_ref.is_none().then_some(LabelSelector { match_labels }),
            target_ref,
            action: if allow { Action::Allow } else { Action::Deny },
            rules,
        },
    )
}

fn object() -> impl Strategy<Value = Object> {
    prop_oneof![
        (meta(), service()).prop_map(|(meta, spec)| Resource::new(meta, spec).into()),
        (meta(), workload()).prop_map(|(meta, spec)| Resource::new(meta, spec).into()),
        (meta(), route()).prop_map(|(meta, spec)| Resource::new(meta, spec).into()),
        (meta(), gateway()).prop_map(|(meta, spec)| Resource::new(meta, spec).into()),
        (meta(), traffic()).prop_map(|(meta, spec)| Resource::new(meta, spec).into()),
        (meta(), authorization()).prop_map(|(meta, spec)| Resource::new(meta, spec).into()),
        any::<bool>().prop_map(|some| {
            let spec = MeshConfigSpec {
                inbound: some.then_some(InboundMode::Strict),
                default_authorization: some.then_some(DefaultAuthorization::Authenticated),
                outbound: some.then_some(OutboundMode::RegisteredOnly),
                access_log: some.then_some(AccessLogMode::Off),
                encoded_slashes: some.then_some(EncodedSlashesMode::Keep),
            };
            Resource::new(ObjectMeta::new("default", "default"), spec).into()
        }),
    ]
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(object in object()) {
        let json = serde_json::to_string(&object).unwrap();
        let yaml = serde_norway::to_string(&object).unwrap();
        for text in [&json, &yaml] {
            match parse_documents(text) {
                Ok(read) => prop_assert_eq!(&read, std::slice::from_ref(&object), "{}", text),
                Err(errors) => prop_assert!(false, "{:?}\n{}", errors, text),
            }
        }
        let stored: Object = serde_json::from_str(&json).unwrap();
        prop_assert_eq!(&stored, &object);
        prop_assert!(stored.same_spec(&object));
    }

    #[test]
    fn nothing_that_is_typed_panics(text in "[\\PC\n]{0,200}") {
        parse_documents(&text).ok();
    }

    #[test]
    fn nothing_that_looks_like_an_object_panics(spec in "[\\[\\]{}:, a-z0-9*&!|>\"'\n-]{0,120}") {
        parse_documents(&crate::document("HTTPRoute", &spec)).ok();
    }
}
