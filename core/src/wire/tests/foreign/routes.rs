//! Route tables from others.

use std::time::Duration;

use envoy_types::pb::{
    envoy::{
        config::{core::v3 as core, route::v3 as route},
        r#type::matcher::v3 as matcher,
    },
    google::protobuf::{self as pb, BoolValue},
};

use super::*;
use crate::{
    filter::Change,
    route::{Action, Match, PathMatch, RequestHead, ValueMatch},
};

pub(super) fn table_with(rule: route::Route) -> route::RouteConfiguration {
    let host =
        route::VirtualHost { name: "h".into(), domains: vec!["*".into()], routes: vec![rule], ..Default::default() };
    route::RouteConfiguration { name: ROUTE.into(), virtual_hosts: vec![host], ..Default::default() }
}

pub(super) fn matching(matches: route::RouteMatch) -> route::Route {
    let action = route::route::Action::NonForwardingAction(route::NonForwardingAction {});
    route::Route { r#match: Some(matches), action: Some(action), ..Default::default() }
}

pub(super) fn prefix(path: &str) -> route::RouteMatch {
    route::RouteMatch {
        path_specifier: Some(route::route_match::PathSpecifier::Prefix(path.into())),
        ..Default::default()
    }
}

pub(super) fn forwarding(action: route::RouteAction) -> route::RouteConfiguration {
    let specifier = action.cluster_specifier.or(Some(route::route_action::ClusterSpecifier::Cluster(ROUTE.into())));
    let action = route::route::Action::Route(route::RouteAction { cluster_specifier: specifier, ..action });
    table_with(route::Route { r#match: Some(prefix("/")), action: Some(action), ..Default::default() })
}

pub(super) fn refused_routes(table: &route::RouteConfiguration) -> String {
    errors(ResourceType::Route, ROUTE, table, parse_route)
}

pub(super) fn read_routes(table: &route::RouteConfiguration) -> RouteTable {
    let any = Any { type_url: ResourceType::Route.type_url().into(), value: table.encode_to_vec() };
    parse_route(ROUTE, &any).unwrap()
}

#[test]
fn conditions_of_a_match_that_weft_does_not_know_are_refused_by_name() {
    let at = "virtual_hosts[0].routes[0].match";
    for (matches, field) in [
        (route::RouteMatch { query_parameters: vec![Default::default()], ..prefix("/") }, "query_parameters"),
        (route::RouteMatch { runtime_fraction: Some(Default::default()), ..prefix("/") }, "runtime_fraction"),
        (route::RouteMatch { grpc: Some(Default::default()), ..prefix("/") }, "grpc"),
        (route::RouteMatch { tls_context: Some(Default::default()), ..prefix("/") }, "tls_context"),
        (route::RouteMatch { dynamic_metadata: vec![Default::default()], ..prefix("/") }, "dynamic_metadata"),
        (route::RouteMatch { cookies: vec![Default::default()], ..prefix("/") }, "cookies"),
    ] {
        assert_eq!(refused_routes(&table_with(matching(matches))), format!("{at}.{field}: not supported\n"));
    }
    // A condition of a version to come: field 99, empty.
    let plain = prefix("/").encode_to_vec();
    let wrap = |key: u8, content: &[u8]| [&[key, u8::try_from(content.len()).unwrap()], content].concat();
    let route = [wrap(0x0a, &[plain.as_slice(), &[0x9a, 0x06, 0x00]].concat()), vec![0x92, 0x01, 0x00]].concat();
    let host = [wrap(0x0a, b"h"), wrap(0x12, b"*"), wrap(0x1a, &route)].concat();
    let value = [wrap(0x0a, ROUTE.as_bytes()), wrap(0x12, &host)].concat();
    let error = parse_route(ROUTE, &Any { type_url: ResourceType::Route.type_url().into(), value }).unwrap_err();
    assert_eq!(
        error.to_string(),
        "route table \"svc/a/b:80\": virtual_hosts[0].routes[0].match: has the unknown field 99, and nothing may be ignored here"
    );
}

#[test]
fn actions_that_weft_does_not_know_are_refused_by_name() {
    use route::route_action::{ClusterSpecifier, HostRewriteSpecifier};
    for (action, field) in [
        (route::RouteAction { prefix_rewrite: "/x".into(), ..Default::default() }, "prefix_rewrite"),
        (
            route::RouteAction {
                host_rewrite_specifier: Some(HostRewriteSpecifier::HostRewriteLiteral("x".into())),
                ..Default::default()
            },
            "host_rewrite_literal",
        ),
        (
            route::RouteAction {
                host_rewrite_specifier: Some(HostRewriteSpecifier::AutoHostRewrite(BoolValue { value: true })),
                ..Default::default()
            },
            "auto_host_rewrite",
        ),
        (
            route::RouteAction { request_mirror_policies: vec![Default::default()], ..Default::default() },
            "request_mirror_policies",
        ),
    ] {
        assert_eq!(
            refused_routes(&forwarding(action)),
            format!("virtual_hosts[0].routes[0].route.{field}: not supported\n")
        );
    }
    let by_header = route::RouteAction {
        cluster_specifier: Some(ClusterSpecifier::ClusterHeader("x".into())),
        ..Default::default()
    };
    assert!(refused_routes(&forwarding(by_header)).contains("route.cluster_header: not supported"));
    let redirect = route::route::Action::Redirect(Default::default());
    let redirect = route::Route { r#match: Some(prefix("/")), action: Some(redirect), ..Default::default() };
    assert!(refused_routes(&table_with(redirect)).starts_with("virtual_hosts[0].routes[0].redirect: not supported"));
    let body = core::DataSource {
        specifier: Some(core::data_source::Specifier::InlineString(String::new())),
        ..Default::default()
    };
    let response = route::DirectResponseAction { status: 200, body: Some(body), ..Default::default() };
    let response =
        route::Route { action: Some(route::route::Action::DirectResponse(response)), ..matching(prefix("/")) };
    assert_eq!(
        refused_routes(&table_with(response)),
        "virtual_hosts[0].routes[0].direct_response.body: not supported\n"
    );
}

fn with_headers(options: Vec<core::HeaderValueOption>) -> route::RouteConfiguration {
    table_with(route::Route { request_headers_to_add: options, ..matching(prefix("/")) })
}

fn header(key: &str, value: &str, append_action: i32) -> core::HeaderValueOption {
    let header = core::HeaderValue { key: key.into(), value: value.into(), ..Default::default() };
    core::HeaderValueOption { header: Some(header), append_action, ..Default::default() }
}

#[test]
fn foreign_header_changes_of_a_route_are_read() {
    let older = |append| {
        let append = Some(BoolValue { value: append });
        #[expect(deprecated, reason = "the older form, which some servers still send")]
        let option = core::HeaderValueOption { append, ..header("X-Older", "100%%", 0) };
        option
    };
    let mut table = with_headers(vec![header("X-Add", "a", 0), header("X-Set", "b", 2), older(false), older(true)]);
    table.virtual_hosts[0].routes[0].response_headers_to_remove = vec!["Server".into()];
    let table = read_routes(&table);
    let filters = &table.hosts[0].rules[0].filters;
    let changes: Vec<Change<'_>> = filters.request_headers.changes().collect();
    let wanted = [
        Change::Set("x-set", "b"),
        Change::Set("x-older", "100%"),
        Change::Add("x-add", "a"),
        Change::Add("x-older", "100%"),
    ];
    assert_eq!(changes, wanted);
    assert_eq!(filters.response_headers.changes().collect::<Vec<_>>(), [Change::Remove("server")]);
}

#[test]
fn header_changes_that_weft_does_not_know_are_refused_by_name() {
    let at = "virtual_hosts[0].routes[0].request_headers_to_add[0]";
    let of_connection = "belongs to a connection and cannot be changed by a route (RFC 9110 §7.6.1)";
    for (option, error) in [
        (header("x-a", "a", 1), "append_action: not supported"),
        (header("x-a", "a", 3), "append_action: not supported"),
        (header("x-a", "%START_TIME%", 0), "header.value: must be a text without a command, not \"%START_TIME%\""),
        (header("x-a", "50%", 0), "header.value: must be a text without a command, not \"50%\""),
        (header("x-a", "", 0), "header.value: required"),
        (header("x-a", "a\r\nb", 0), "header.value: is not a header value (RFC 9110 §5.5)"),
        (header(":path", "/", 2), "header.key: is not a header name (RFC 9110 §5.6.2)"),
        (header("connection", "close", 2), &*format!("header.key: {of_connection}")),
        (core::HeaderValueOption::default(), "header: required"),
    ] {
        assert_eq!(refused_routes(&with_headers(vec![option])), format!("{at}.{error}\n"));
    }
    let raw = core::HeaderValue { key: "x-a".into(), raw_value: vec![1], ..Default::default() };
    let raw = core::HeaderValueOption { header: Some(raw), ..Default::default() };
    assert!(refused_routes(&with_headers(vec![raw])).starts_with(&format!("{at}.header.raw_value: not supported\n")));
    let twice = refused_routes(&with_headers(vec![header("x-a", "1", 2), header("X-A", "2", 2)]));
    assert_eq!(twice, "virtual_hosts[0].routes[0].request_headers_to_add[1].header: appears twice\n");
    let remove = route::Route { response_headers_to_remove: vec!["TE".into()], ..matching(prefix("/")) };
    let text = refused_routes(&table_with(remove));
    assert_eq!(text, format!("virtual_hosts[0].routes[0].response_headers_to_remove[0]: {of_connection}\n"));
    // Anywhere else they would have to be joined with those of the route.
    let mut table = with_headers(Vec::new());
    table.virtual_hosts[0].request_headers_to_add = vec![header("x-a", "a", 0)];
    assert_eq!(refused_routes(&table), "virtual_hosts[0].request_headers_to_add: not supported\n");
}

#[test]
fn a_foreign_route_is_read_with_the_defaults_of_envoy() {
    let table = read_routes(&forwarding(Default::default()));
    let Action::Forward(forward) = &table.hosts[0].rules[0].action else { panic!() };
    assert_eq!(forward.request_timeout, Some(Duration::from_secs(15)));
    assert_eq!(forward.idle_timeout, Some(Duration::from_secs(300)));
    assert_eq!(forward.retry.attempts, 1);
    let retry = route::RetryPolicy { retry_on: "5xx, unavailable".into(), ..Default::default() };
    let stream = route::route_action::MaxStreamDuration {
        max_stream_duration: Some(pb::Duration { seconds: 3, nanos: 0 }),
        ..Default::default()
    };
    let action =
        route::RouteAction { retry_policy: Some(retry), max_stream_duration: Some(stream), ..Default::default() };
    let table = read_routes(&forwarding(action));
    let Action::Forward(forward) = &table.hosts[0].rules[0].action else { panic!() };
    assert_eq!(forward.request_timeout, Some(Duration::from_secs(3)));
    assert_eq!((forward.retry.attempts, forward.retry.any_method), (2, true));
    assert!(forward.retry.on.connect_failure && forward.retry.on.reset && forward.retry.on.server_error);
}

struct Get(&'static str, &'static [(&'static str, &'static str)]);

impl RequestHead for Get {
    fn host(&self) -> &str {
        "a"
    }
    fn method(&self) -> &str {
        "GET"
    }
    fn path(&self) -> &str {
        self.0
    }
    fn header<'a>(&'a self, name: &'a str) -> Option<std::borrow::Cow<'a, [u8]>> {
        let values = self.1.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
        crate::route::joined(name, values.map(|(_, value)| value.as_bytes()))
    }
}

#[test]
fn foreign_matches_keep_their_meaning() {
    let first = |matches: route::RouteMatch| -> Match {
        read_routes(&table_with(matching(matches))).hosts[0].rules[0].matches.clone()
    };
    let plain = first(prefix("/v2.a"));
    for (path, matched) in
        [("/v2.a", true), ("/v2.ab", true), ("/v2.a/b", true), ("/v2xa", false), ("/v", false), ("/V2.A", false)]
    {
        assert_eq!(plain.test(&Get(path, &[])), matched, "{path}");
    }
    assert_eq!(plain.path, PathMatch::Start("/v2.a".into()));
    let insensitive = first(route::RouteMatch { case_sensitive: Some(BoolValue { value: false }), ..prefix("/a") });
    assert!(insensitive.test(&Get("/Ab", &[])));
    assert_eq!(first(prefix("")).path, PathMatch::Prefix("/".into()));
    use matcher::string_matcher::MatchPattern;
    let header = |pattern, ignore_case| route::HeaderMatcher {
        name: "X-A".into(),
        header_match_specifier: Some(route::header_matcher::HeaderMatchSpecifier::StringMatch(
            matcher::StringMatcher { match_pattern: Some(pattern), ignore_case },
        )),
        ..Default::default()
    };
    for (pattern, ignore_case, value, matched) in [
        (MatchPattern::Exact("a.b".into()), true, "A.B", true),
        (MatchPattern::Exact("a.b".into()), true, "axb", false),
        (MatchPattern::Prefix("a.".into()), false, "a.b", true),
        (MatchPattern::Prefix("a.".into()), false, "ab", false),
        (MatchPattern::Suffix(".b".into()), false, "a.b", true),
        (MatchPattern::Suffix(".b".into()), false, "a.bc", false),
        (MatchPattern::Contains("+".into()), false, "a+b", true),
        (MatchPattern::Contains("+".into()), false, "aab", false),
    ] {
        let matches = first(route::RouteMatch { headers: vec![header(pattern.clone(), ignore_case)], ..prefix("/") });
        assert_eq!(matches.headers[0].name.as_ref(), "x-a");
        assert_eq!(matches.headers[0].value.test(value.as_bytes()), matched, "{pattern:?} {value}");
    }
    let inverted = route::HeaderMatcher { invert_match: true, ..header(MatchPattern::Exact("a".into()), false) };
    let table = table_with(matching(route::RouteMatch { headers: vec![inverted], ..prefix("/") }));
    assert_eq!(refused_routes(&table), "virtual_hosts[0].routes[0].match.headers[0].invert_match: not supported\n");
    let present = first(route::RouteMatch {
        headers: vec![route::HeaderMatcher { name: "a".into(), ..Default::default() }],
        ..prefix("/")
    });
    assert!(matches!(&present.headers[0].value, ValueMatch::Start(_)) && present.test(&Get("/", &[("a", "")])));
    assert!(!present.test(&Get("/", &[])));
}
