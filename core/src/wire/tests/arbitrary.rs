//! Model values of every shape that the model allows.

use std::{
    collections::{BTreeMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    num::{NonZeroU16, NonZeroU32},
    time::Duration,
};

use proptest::{collection::vec, option, prelude::*};

use crate::{
    cluster::{Cluster, HttpVersion, Limits, OutlierDetection, RetryBudget},
    endpoint::{Endpoint, EndpointSet, Health},
    filter::{Filters, Header, HeaderModifier, header_modifier::check_value},
    identity::Identity,
    listener::{
        AccessLog, EncodedSlashes, Gateway, Inbound, InboundMode, InboundPort, Listener, Outbound, OutboundDefault,
        OutboundPolicy, Protocol,
    },
    names::{ClusterName, RouteName, ServicePort},
    policy::{Authorization, Operation, PathPattern, Principal, Rule as PolicyRule},
    retry::{RetryOn, RetryPolicy},
    route::{
        Action, Forward, HeaderMatch, Match, PathMatch, Pattern, RouteTable, Rule, ValueMatch, VirtualHost,
        WeightedCluster,
    },
};

pub(super) fn port() -> impl Strategy<Value = NonZeroU16> {
    (1u16..).prop_map(|port| NonZeroU16::new(port).unwrap())
}

fn label() -> impl Strategy<Value = String> {
    "[a-z]([a-z0-9-]{0,8}[a-z0-9])?"
}

fn address() -> impl Strategy<Value = SocketAddr> {
    let ip = prop_oneof![
        any::<u32>().prop_map(|ip| IpAddr::V4(Ipv4Addr::from(ip))),
        any::<u128>().prop_map(|ip| IpAddr::V6(Ipv6Addr::from(ip))),
    ];
    (ip, port()).prop_map(|(ip, port)| SocketAddr::new(ip, port.get()))
}

fn service() -> impl Strategy<Value = ServicePort> {
    (label(), label(), port()).prop_map(|(namespace, name, port)| ServicePort { namespace, name, port })
}

fn cluster_name() -> impl Strategy<Value = ClusterName> {
    prop_oneof![service().prop_map(ClusterName::Service), address().prop_map(ClusterName::Direct)]
}

fn route_name() -> impl Strategy<Value = RouteName> {
    prop_oneof![
        service().prop_map(RouteName::Service),
        address().prop_map(RouteName::Direct),
        service().prop_map(|at| RouteName::Gateway { namespace: at.namespace, name: at.name, port: at.port }),
        option::of(port()).prop_map(RouteName::Inbound),
    ]
}

fn identity() -> impl Strategy<Value = Identity> {
    (label(), label()).prop_map(|(ns, sa)| Identity::parse(&format!("spiffe://weft.local/ns/{ns}/sa/{sa}")).unwrap())
}

/// Up to 10,000 years, to the nanosecond, with 0 and round values often.
fn duration() -> impl Strategy<Value = Duration> {
    prop_oneof![
        Just(Duration::ZERO),
        (0u64..100_000).prop_map(Duration::from_millis),
        (0u64..315_575_999_999, 0u32..1_000_000_000).prop_map(|(seconds, nanos)| Duration::new(seconds, nanos)),
    ]
}

fn timeout() -> impl Strategy<Value = Option<Duration>> {
    option::of(duration().prop_filter("0 is none", |duration| !duration.is_zero()))
}

fn ratio() -> impl Strategy<Value = f64> {
    prop_oneof![
        0.0..=1.0f64,
        Just(0.0),
        Just(1.0),
        Just(0.2),
        Just(0.5),
        (0u32..=100).prop_map(|p| f64::from(p) / 100.0)
    ]
}

/// At least one cluster; weights that are not all 0 and whose sum fits.
fn weighted() -> impl Strategy<Value = Vec<WeightedCluster>> {
    vec((cluster_name(), prop_oneof![Just(0u32), Just(1), 0u32..1 << 29]), 1..4).prop_map(|entries| {
        let mut clusters: Vec<_> =
            entries.into_iter().map(|(cluster, weight)| WeightedCluster { cluster, weight }).collect();
        if clusters.iter().all(|one| one.weight == 0) {
            clusters[0].weight = 1;
        }
        clusters
    })
}

fn access_log() -> impl Strategy<Value = AccessLog> {
    prop_oneof![Just(AccessLog::Off), Just(AccessLog::Errors), Just(AccessLog::All)]
}

fn protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![Just(Protocol::Detect), Just(Protocol::Http), Just(Protocol::Http2), Just(Protocol::Tcp)]
}

fn principal() -> impl Strategy<Value = Principal> {
    prop_oneof![
        Just(Principal::Any),
        Just(Principal::Authenticated),
        identity().prop_map(Principal::Identity),
        label().prop_map(|ns| Principal::Prefix(format!("spiffe://weft.local/ns/{ns}/").into())),
    ]
}

fn operation() -> impl Strategy<Value = Operation> {
    let method = prop_oneof![Just("GET"), Just("POST"), Just("PURGE")];
    let path = ("/[ -~]{0,8}", any::<bool>()).prop_map(|(path, exact)| {
        if exact { PathPattern::Exact(path.into()) } else { PathPattern::Prefix(path.into()) }
    });
    (vec(method, 0..3), vec(path, 0..3), vec(any::<u16>(), 0..3)).prop_map(|(methods, paths, ports)| Operation {
        methods: methods.into_iter().map(Into::into).collect(),
        paths,
        ports,
    })
}

fn policy_rule() -> impl Strategy<Value = PolicyRule> {
    ("[a-z0-9/# ]{0,20}", vec(principal(), 0..3), vec(operation(), 0..3)).prop_map(|(name, from, to)| PolicyRule {
        name: name.into(),
        from,
        to,
    })
}

pub(super) fn authorization() -> impl Strategy<Value = Authorization> {
    (vec(policy_rule(), 0..12), option::of(vec(policy_rule(), 0..12)))
        .prop_map(|(deny, allow)| Authorization { deny, allow })
}

fn inbound_port() -> impl Strategy<Value = InboundPort> {
    let mode = prop_oneof![Just(InboundMode::Permissive), Just(InboundMode::Strict)];
    (mode, protocol(), route_name(), authorization()).prop_map(|(mode, protocol, routes, authorization)| InboundPort {
        mode,
        protocol,
        routes,
        authorization,
    })
}

fn inbound() -> impl Strategy<Value = Listener> {
    let ports = vec((port(), inbound_port()), 0..3);
    (ports, inbound_port(), access_log()).prop_map(|(ports, default, access_log)| {
        Listener::Inbound(Inbound { ports: ports.into_iter().collect(), default, access_log })
    })
}

fn outbound() -> impl Strategy<Value = Listener> {
    let tcp = prop_oneof![Just(Vec::new()), weighted()];
    (address(), protocol(), route_name(), tcp).prop_map(|(address, protocol, routes, tcp)| {
        let http = (protocol != Protocol::Tcp).then_some(routes);
        Listener::Outbound(Outbound { address, protocol, http, tcp })
    })
}

fn gateway() -> impl Strategy<Value = Listener> {
    let ports = vec((port(), route_name()), 0..4);
    (label(), label(), ports, access_log(), any::<bool>()).prop_map(|(namespace, name, ports, access_log, keep)| {
        let ports: BTreeMap<_, _> = ports.into_iter().collect();
        // It is a setting of the ports' managers.
        let encoded_slashes = if keep && !ports.is_empty() { EncodedSlashes::Keep } else { EncodedSlashes::Refuse };
        Listener::Gateway(Gateway { namespace, name, ports, access_log, encoded_slashes })
    })
}

pub(super) fn listener() -> impl Strategy<Value = Listener> {
    prop_oneof![
        inbound(),
        Just(Listener::OutboundDefault(OutboundDefault { policy: OutboundPolicy::AllowAny })),
        Just(Listener::OutboundDefault(OutboundDefault { policy: OutboundPolicy::RegisteredOnly })),
        outbound(),
        gateway(),
    ]
}

fn pattern() -> impl Strategy<Value = Pattern> {
    prop_oneof![Just("/v[0-9]+/.*"), Just("a|b"), Just("(?i)x.*"), Just("\\d{3}")]
        .prop_map(|source| Pattern::new(source).unwrap())
}

fn path_match() -> impl Strategy<Value = PathMatch> {
    prop_oneof![
        "/[a-z0-9/%]{0,12}".prop_map(|path| PathMatch::Exact(path.into())),
        Just(PathMatch::Prefix("/".into())),
        "(/[a-z0-9%]{1,6}){1,3}".prop_map(|path| PathMatch::Prefix(path.into())),
        "/[a-z0-9/%]{1,12}".prop_map(|start| PathMatch::Start(start.into())),
        pattern().prop_map(PathMatch::Regex),
    ]
}

fn header_match() -> impl Strategy<Value = HeaderMatch> {
    let value = prop_oneof![
        "[ -~]{0,12}".prop_map(|text| ValueMatch::Exact(text.into())),
        "[ -~]{0,12}".prop_map(|text| ValueMatch::Start(text.into())),
        "[ -~]{1,12}".prop_map(|text| ValueMatch::End(text.into())),
        "[ -~]{1,12}".prop_map(|text| ValueMatch::Part(text.into())),
        pattern().prop_map(ValueMatch::Regex),
    ];
    ("[a-z][a-z0-9-]{0,8}", value).prop_map(|(name, value)| HeaderMatch { name: name.into(), value })
}

fn retry() -> impl Strategy<Value = RetryPolicy> {
    let on = any::<[bool; 5]>().prop_map(|[connect_failure, refused_stream, gateway_error, reset, server_error]| {
        RetryOn { connect_failure, refused_stream, gateway_error, reset, server_error }
    });
    (1u32.., on, vec(100u16..600, 0..3), any::<bool>(), duration(), duration()).prop_map(
        |(attempts, on, status_codes, any_method, a, b)| RetryPolicy {
            attempts,
            on,
            status_codes,
            any_method,
            backoff_base: a.min(b),
            backoff_max: a.max(b),
        },
    )
}

fn action() -> impl Strategy<Value = Action> {
    let unresolved = prop_oneof![Just(0u32), 1u32..1 << 29];
    let forward = (weighted(), unresolved, timeout(), timeout(), timeout(), retry()).prop_map(
        |(clusters, unresolved, request_timeout, try_timeout, idle_timeout, retry)| {
            Action::Forward(Forward { clusters, unresolved, request_timeout, try_timeout, idle_timeout, retry })
        },
    );
    prop_oneof![3 => forward, 1 => (200u16..600).prop_map(Action::Respond), 1 => Just(Action::Deliver)]
}

fn rule() -> impl Strategy<Value = Rule> {
    let method = option::of(prop_oneof![Just("GET"), Just("POST")].prop_map(Into::into));
    let matches = (path_match(), method, vec(header_match(), 0..3)).prop_map(|(path, method, headers)| Match {
        path,
        method,
        headers,
    });
    ("[a-z0-9/#]{0,20}", matches, filters(), action()).prop_map(|(name, matches, filters, action)| Rule {
        name: name.into(),
        matches,
        filters,
        action,
    })
}

fn filters() -> impl Strategy<Value = Filters> {
    (header_modifier(), header_modifier())
        .prop_map(|(request_headers, response_headers)| Filters { request_headers, response_headers })
}

fn header_modifier() -> impl Strategy<Value = HeaderModifier> {
    let value = "[ -~ä]{0,6}".prop_filter("the value of a field", |value| check_value(value).is_ok());
    let header = || ("x-[a-z0-9_]{1,3}", value.clone()).prop_map(|(name, value)| Header::new(&name, &value));
    (vec("x-[a-z0-9_]{1,3}".prop_map(Into::into), 0..3), vec(header(), 0..3), vec(header(), 0..3)).prop_map(
        |(remove, mut set, add)| {
            let mut seen = HashSet::new();
            set.retain(|header| seen.insert(header.name.clone()));
            HeaderModifier { remove, set, add }
        },
    )
}

fn domain() -> impl Strategy<Value = String> {
    prop_oneof![4 => "[a-z]{1,6}(\\.[a-z]{1,4}){0,2}", 2 => "\\*\\.[a-z]{1,6}", 1 => Just("*".to_owned())]
}

fn routes(authorization: impl Strategy<Value = Authorization>) -> impl Strategy<Value = RouteTable> {
    let host = ("[a-z0-9-]{0,10}", vec(domain(), 1..3), vec(rule(), 0..3));
    (route_name(), vec(host, 0..3), authorization).prop_map(|(name, hosts, authorization)| {
        // A domain belongs to one virtual host.
        let mut seen = HashSet::new();
        let hosts = hosts.into_iter().filter_map(|(name, domains, rules)| {
            let domains: Vec<_> =
                domains.into_iter().filter(|domain| seen.insert(domain.clone())).map(Into::into).collect();
            (!domains.is_empty()).then(|| VirtualHost { name: name.into(), domains, rules })
        });
        RouteTable { name, hosts: hosts.collect(), authorization }
    })
}

pub(super) fn table() -> impl Strategy<Value = RouteTable> {
    routes(authorization())
}

/// Tables as clients of a service get them: without a policy.
pub(super) fn client_table() -> impl Strategy<Value = RouteTable> {
    routes(Just(Authorization::default()))
}

pub(super) fn cluster() -> impl Strategy<Value = Cluster> {
    let connect = duration().prop_filter("0 is refused", |duration| !duration.is_zero());
    let durations = (connect, duration(), duration());
    let limits =
        any::<[u32; 3]>().prop_map(|[connections, pending, requests]| Limits { connections, pending, requests });
    let outlier = option::of((1u32.., duration(), ratio()).prop_map(|(failures, base_ejection, max_ejected)| {
        OutlierDetection { consecutive_failures: NonZeroU32::new(failures).unwrap(), base_ejection, max_ejected }
    }));
    let budget = (ratio(), any::<u32>()).prop_map(|(ratio, min_per_second)| RetryBudget { ratio, min_per_second });
    let http = prop_oneof![Just(HttpVersion::AsReceived), Just(HttpVersion::Http2)];
    (cluster_name(), http, durations, limits, outlier, budget).prop_map(
        |(name, http, (connect_timeout, http_idle, tcp_idle), limits, outlier, budget)| Cluster {
            name,
            http,
            connect_timeout,
            http_idle,
            tcp_idle,
            limits,
            outlier,
            budget,
        },
    )
}

pub(super) fn endpoints() -> impl Strategy<Value = EndpointSet> {
    let health = prop_oneof![Just(Health::Healthy), Just(Health::Draining), Just(Health::Unhealthy)];
    let zone = prop_oneof![Just(String::new()), Just("a".to_owned()), Just("b".to_owned())];
    let weight = prop_oneof![Just(1u32), 1u32..];
    let endpoint = (address(), "[a-z/-]{0,20}", option::of(identity()), weight, zone, health);
    (cluster_name(), vec(endpoint, 0..8)).prop_map(|(cluster, endpoints)| {
        let endpoints: BTreeMap<_, _> = endpoints
            .into_iter()
            .map(|(address, workload, identity, weight, zone, health)| {
                let weight = NonZeroU32::new(weight).unwrap();
                (address, Endpoint { address, workload, identity, weight, zone, health })
            })
            .collect();
        EndpointSet { cluster, endpoints: endpoints.into_values().collect() }
    })
}
