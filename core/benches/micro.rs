//! Micro-benchmarks of the decisions of the data path: small and large tables side by side, so that growth shows.
//! Run: `make bench-micro`; the harness and its options are in `bench/micro.rs`.

#[path = "../../bench/micro.rs"]
mod micro;

use std::{hint::black_box, num::NonZeroU32, process::ExitCode, sync::Arc, time::Duration};

use micro::Case;
use weft_core::{
    balancer::{self, Load},
    cluster::RetryBudget,
    endpoint::{Endpoint, EndpointSet, Health},
    identity::Identity,
    names::{ClusterName, RouteName},
    policy::{Authorization, Engine, Operation, PathPattern, Principal, Request, Rule as PolicyRule},
    retry::Budget,
    route::{
        Action, Forward, HeaderMatch, Match, Matcher, PathMatch, Pattern, RequestHead, RouteTable, Rule, ValueMatch,
        VirtualHost,
    },
    wire::{self, ClientClass},
};

const CASES: &[Case] = &[
    Case { name: "route/paths-10", make: || paths(10) },
    Case { name: "route/paths-10000", make: || paths(10_000) },
    Case { name: "route/hosts-10", make: || hosts(10) },
    Case { name: "route/hosts-10000", make: || hosts(10_000) },
    Case { name: "route/headers-10", make: || headers(10) },
    Case { name: "route/headers-10000", make: || headers(10_000) },
    Case { name: "route/expressions-10", make: || expressions(10) },
    Case { name: "route/expressions-1000", make: || expressions(1_000) },
    Case { name: "policy/callers-1", make: || callers(1) },
    Case { name: "policy/callers-1000", make: || callers(1_000) },
    Case { name: "policy/paths-1", make: || policy_paths(1) },
    Case { name: "policy/paths-1000", make: || policy_paths(1_000) },
    Case { name: "policy/denials-1000", make: || denials(1_000) },
    Case { name: "policy/none", make: || callers(0) },
    Case { name: "balancer/pick-10", make: || pick(10) },
    Case { name: "balancer/pick-10000", make: || pick(10_000) },
    Case { name: "balancer/pick-10000-half", make: || pick_half(10_000) },
    Case { name: "retry/budget", make: budget },
    Case { name: "wire/parse-endpoints-2", make: || parse_endpoints(2) },
    Case { name: "wire/parse-endpoints-20", make: || parse_endpoints(20) },
];

fn main() -> ExitCode {
    micro::run(concat!(env!("CARGO_MANIFEST_DIR"), "/benches"), CASES)
}

/// A request as the proxy shows it to the matcher.
struct Head {
    host: String,
    path: String,
    headers: Vec<(&'static str, String)>,
}

impl RequestHead for Head {
    fn host(&self) -> &str {
        &self.host
    }
    fn method(&self) -> &'static str {
        "GET"
    }
    fn path(&self) -> &str {
        &self.path
    }
    fn header<'a>(&'a self, name: &'a str) -> Option<std::borrow::Cow<'a, [u8]>> {
        let values = self.headers.iter().filter(|(known, _)| *known == name);
        weft_core::route::joined(name, values.map(|(_, value)| value.as_bytes()))
    }
}

/// Asks a table with these virtual hosts for one head after the other. Every head finds something.
fn route(hosts: Vec<VirtualHost>, heads: Vec<Head>) -> Box<dyn FnMut(usize)> {
    let table = RouteTable { name: RouteName::Inbound(None), hosts, authorization: Authorization::default() };
    let matcher = Matcher::new(Arc::new(table));
    assert!(heads.iter().all(|head| matcher.find(head).is_some()), "a head that finds nothing");
    Box::new(move |index| {
        black_box(heads.get(index % heads.len()).and_then(|head| matcher.find(head)));
    })
}

fn host(domain: &str, matches: impl Iterator<Item = Match>) -> VirtualHost {
    let cluster = ClusterName::Direct(([10, 0, 0, 1], 80).into());
    let rule = |(index, matches)| Rule {
        matches,
        ..Rule::all(&format!("shop/route#{index}"), Action::Forward(Forward::to(cluster.clone())))
    };
    VirtualHost { name: domain.into(), domains: vec![domain.into()], rules: matches.enumerate().map(rule).collect() }
}

fn head(host: &str, path: String) -> Head {
    Head {
        host: host.to_owned(),
        path,
        headers: vec![("accept", "*/*".to_owned()), ("user-agent", "micro".to_owned())],
    }
}

/// Numbers below `size`, spread over all of it.
fn spread(size: usize) -> impl Iterator<Item = usize> {
    (0..1000).map(move |index| index * 7919 % size.max(1))
}

/// Half of the rules by exact path, half by prefix.
fn paths(size: usize) -> Box<dyn FnMut(usize)> {
    let matches = (0..size).map(|n| {
        let path = if n.is_multiple_of(2) {
            PathMatch::Exact(format!("/api/v1/catalog/item-{n}").into())
        } else {
            PathMatch::Prefix(format!("/api/v1/catalog/item-{n}").into())
        };
        Match { path, ..Match::any() }
    });
    let heads = spread(size).map(|n| {
        let rest = if n.is_multiple_of(2) { "" } else { "/reviews/7" };
        head("shop.example", format!("/api/v1/catalog/item-{n}{rest}"))
    });
    route(vec![host("*", matches)], heads.collect())
}

/// Half of the hosts exact, half with a wildcard.
fn hosts(size: usize) -> Box<dyn FnMut(usize)> {
    let of = |n: usize, label: &str| {
        if n.is_multiple_of(2) { format!("team-{n}.example") } else { format!("{label}.team-{n}.example") }
    };
    let hosts = (0..size).map(|n| host(&of(n, "*"), std::iter::once(Match::any()))).collect();
    route(hosts, spread(size).map(|n| head(&of(n, "www"), "/api/v1/catalog".to_owned())).collect())
}

fn headers(size: usize) -> Box<dyn FnMut(usize)> {
    let matches = (0..size).map(|n| {
        let tenant = HeaderMatch { name: "x-tenant".into(), value: ValueMatch::Exact(format!("tenant-{n}").into()) };
        Match { headers: vec![tenant], ..Match::any() }
    });
    let heads = spread(size).map(|n| {
        let mut head = head("shop.example", "/api/v1/catalog".to_owned());
        head.headers.push(("x-tenant", format!("tenant-{n}")));
        head
    });
    route(vec![host("*", matches)], heads.collect())
}

fn expressions(size: usize) -> Box<dyn FnMut(usize)> {
    let pattern = |n| Pattern::new(&format!("/api/v[0-9]+/item-{n}(/.*)?"));
    let matches = (0..size).filter_map(|n| Some(Match { path: PathMatch::Regex(pattern(n).ok()?), ..Match::any() }));
    let heads = spread(size).map(|n| head("shop.example", format!("/api/v2/item-{n}/reviews")));
    route(vec![host("*", matches)], heads.collect())
}

fn judge(authorization: &Authorization, requests: Vec<(Option<Identity>, String)>) -> Box<dyn FnMut(usize)> {
    let judge = Engine::new(authorization);
    Box::new(move |index| {
        if let Some((identity, path)) = requests.get(index % requests.len()) {
            let request = Request { identity: identity.as_ref(), port: 8080, http: Some(("GET", path)) };
            black_box(judge.check(black_box(&request)));
        }
    })
}

fn account(n: usize) -> Option<Identity> {
    Identity::parse(&format!("spiffe://weft.local/ns/shop/sa/service-{n}")).ok()
}

fn policy_rule(n: usize, from: Principal, to: Operation) -> PolicyRule {
    PolicyRule { name: format!("shop/policy#{n}").into(), from: vec![from], to: vec![to] }
}

/// A rule for each caller, and one for a namespace.
fn callers(size: usize) -> Box<dyn FnMut(usize)> {
    let namespace = Principal::Prefix("spiffe://weft.local/ns/monitoring/".into());
    let rules = (0..size).filter_map(|n| Some(policy_rule(n, Principal::Identity(account(n)?), Operation::default())));
    let all = rules.chain([policy_rule(size, namespace, Operation::default())]).collect();
    let authorization = Authorization { deny: vec![], allow: (size > 0).then_some(all) };
    judge(&authorization, spread(size).map(|n| (account(n), "/api/v1/catalog".to_owned())).collect())
}

/// A rule for each path, exact or prefix, all for one caller.
fn policy_paths(size: usize) -> Box<dyn FnMut(usize)> {
    let rules = (0..size).filter_map(|n| {
        let text = format!("/api/v1/item-{n}/").into();
        let path = if n.is_multiple_of(2) { PathPattern::Prefix(text) } else { PathPattern::Exact(text) };
        let to = Operation { paths: vec![path], methods: vec!["GET".into()], ports: vec![] };
        Some(policy_rule(n, Principal::Identity(account(0)?), to))
    });
    let authorization = Authorization { deny: vec![], allow: Some(rules.collect()) };
    judge(&authorization, spread(size).map(|n| (account(0), format!("/api/v1/item-{n}/"))).collect())
}

/// Denials of others, and one rule that allows.
fn denials(size: usize) -> Box<dyn FnMut(usize)> {
    let rules = (0..size).filter_map(|n| {
        let to = Operation { paths: vec![PathPattern::Prefix("/admin/".into())], ..Operation::default() };
        Some(policy_rule(n, Principal::Identity(account(n)?), to))
    });
    let allow = policy_rule(0, Principal::Authenticated, Operation::default());
    let authorization = Authorization { deny: rules.collect(), allow: Some(vec![allow]) };
    judge(&authorization, spread(size).map(|n| (account(n), "/api/v1/catalog".to_owned())).collect())
}

fn pick(size: usize) -> Box<dyn FnMut(usize)> {
    let loads: Vec<Load> = std::iter::repeat_with(Load::default).take(size).collect();
    let now = Duration::from_secs(60);
    for (load, n) in loads.iter().zip(1..) {
        load.start(now);
        load.answered(Duration::from_micros(100 + n % 50), now);
        load.end();
    }
    let mut random = dice();
    Box::new(move |_| {
        let cost = |index: usize| loads.get(index).map(|load| load.cost(1, now));
        black_box(balancer::pick(loads.len(), &mut random, cost));
    })
}

/// Every other endpoint is out of use.
fn pick_half(size: usize) -> Box<dyn FnMut(usize)> {
    let loads: Vec<Load> = std::iter::repeat_with(Load::default).take(size).collect();
    let mut random = dice();
    Box::new(move |_| {
        let usable = |index: &usize| index.is_multiple_of(2);
        let cost = |index: usize| loads.get(index).filter(|_| usable(&index)).map(|load| load.cost(1, Duration::ZERO));
        black_box(balancer::pick(loads.len(), &mut random, cost));
    })
}

/// Numbers below its argument, the same in every run.
fn dice() -> impl FnMut(usize) -> usize {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    move |below| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(seed >> 33).unwrap_or_default() % below
    }
}

/// What a proxy does with an endpoint set that comes.
fn parse_endpoints(size: u32) -> Box<dyn FnMut(usize)> {
    let endpoints = (0..size).map(|n| Endpoint {
        address: (std::net::Ipv4Addr::from_bits(0x0a00_0001 + n), 8080).into(),
        workload: format!("shop/product-{n}"),
        identity: Identity::parse("spiffe://weft.local/ns/shop/sa/product").ok(),
        weight: NonZeroU32::MIN,
        zone: "a".to_owned(),
        health: Health::Healthy,
    });
    let cluster = ClusterName::Direct(([10, 0, 0, 1], 80).into());
    let set = EndpointSet { cluster, endpoints: endpoints.collect() };
    let encoded = wire::render_endpoints(&set, ClientClass::Weft);
    let (name, any) = (encoded.name.clone(), encoded.to_any());
    assert_eq!(wire::parse_endpoints(&name, &any).ok(), Some(set));
    Box::new(move |_| drop(black_box(wire::parse_endpoints(&name, &any))))
}

/// A request and a retry.
fn budget() -> Box<dyn FnMut(usize)> {
    let settings = RetryBudget { ratio: 0.2, min_per_second: 10 };
    let budget = Budget::new(&settings, Duration::ZERO);
    Box::new(move |index| {
        budget.deposit(&settings, 0);
        black_box(budget.withdraw(&settings, Duration::from_millis(index as u64)));
    })
}
