//! What a foreign control plane's large route table costs, beside one of ours of the same size.

#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use std::{fs, sync::Arc, time::Duration};

use prost::Message;
use weft_core::{
    route::{Matcher, PathMatch},
    wire::{self, Parsed, ResourceType},
};
use weft_proto::envoy::config::route::v3::{
    HeaderMatcher, Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost,
    header_matcher::HeaderMatchSpecifier, route, route_action::ClusterSpecifier, route_match::PathSpecifier,
};

const NAME: &str = "svc/shop/product:80";
const ROUTES: usize = 1000;

/// A table of this many routes, as it comes over the wire.
fn table(specifier: impl Fn(String) -> PathSpecifier, headers: &[HeaderMatcher]) -> prost_types::Any {
    let route = |number| Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(specifier(format!("/api/v1/catalog/item-{number}"))),
            headers: headers.to_vec(),
            ..RouteMatch::default()
        }),
        action: Some(route::Action::Route(RouteAction {
            cluster_specifier: Some(ClusterSpecifier::Cluster(NAME.into())),
            ..RouteAction::default()
        })),
        ..Route::default()
    };
    let host = VirtualHost {
        name: "all".into(),
        domains: vec!["*".into()],
        routes: (0..ROUTES).map(route).collect(),
        ..VirtualHost::default()
    };
    let table = RouteConfiguration { name: NAME.into(), virtual_hosts: vec![host], ..RouteConfiguration::default() };
    prost_types::Any { type_url: ResourceType::Route.type_url().into(), value: table.encode_to_vec() }
}

/// Parses and compiles a table.
fn compile(any: &prost_types::Any) -> Matcher {
    let Parsed::Route(table) = wire::parse(ResourceType::Route, NAME, any).unwrap() else { panic!("a route table") };
    assert_eq!(table.hosts[0].rules.len(), ROUTES);
    Matcher::new(Arc::new(table))
}

/// Memory of this process, in bytes.
fn memory() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

/// Time of this thread on a CPU: what else the machine does is not in it.
fn cpu_time() -> Duration {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

/// The table compiled, the least time of some tries, and the memory that one takes.
fn cost(any: &prost_types::Any) -> (Vec<Matcher>, Duration, usize) {
    let before = memory();
    // More than one, so that what the allocator had left over says nothing.
    let mut least = Duration::MAX;
    let tables: Vec<Matcher> = (0..5)
        .map(|_| {
            let started = cpu_time();
            let table = compile(any);
            least = least.min(cpu_time() - started);
            table
        })
        .collect();
    let taken = memory().saturating_sub(before) / tables.len();
    (tables, least, taken)
}

/// (27.8) As expressions, a route took 0.9 ms and 20 KB.
#[test]
fn a_foreign_prefix_costs_what_one_of_segments_does() {
    let (_ours, our_time, our_memory) = cost(&table(PathSpecifier::PathSeparatedPrefix, &[]));
    let header = |specifier| HeaderMatcher {
        name: "x-tenant".into(),
        header_match_specifier: Some(specifier),
        ..HeaderMatcher::default()
    };
    let headers = [
        header(HeaderMatchSpecifier::PrefixMatch("team-".into())),
        header(HeaderMatchSpecifier::SuffixMatch("-a".into())),
        header(HeaderMatchSpecifier::ContainsMatch("-b-".into())),
        header(HeaderMatchSpecifier::PresentMatch(true)),
    ];
    for (what, headers, times) in [("paths", &[][..], 3), ("paths and headers", &headers[..], 8)] {
        let (tables, time, memory) = cost(&table(PathSpecifier::Prefix, headers));
        let told = format!("{what}: {time:?} and {memory} bytes; by segments {our_time:?} and {our_memory} bytes");
        assert!(time < our_time * times, "{told}");
        assert!(memory < our_memory * times as usize + (1 << 20), "{told}");
        let first = &tables[0].table().hosts[0].rules[0].matches.path;
        assert_eq!(*first, PathMatch::Start("/api/v1/catalog/item-0".into()));
        println!("{told}");
    }
}
