//! xDS from others: what is read, and what is refused and how it is named. Made with the published crate, so with the
//! field names, numbers and types of Envoy.

use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3 as cluster, core::v3 as core, endpoint::v3 as endpoint, listener::v3 as listener,
            rbac::v3 as rbac, route::v3 as route,
        },
        extensions::{
            filters::{
                http::rbac::v3 as http_rbac,
                network::{http_connection_manager::v3 as hcm, rbac::v3 as network_rbac, tcp_proxy::v3 as tcp},
            },
            transport_sockets::tls::v3 as tls,
        },
        r#type::matcher::v3 as matcher,
    },
    google::protobuf::{self as pb, BoolValue, UInt32Value},
};
use prost::Message;
use prost_types::Any;

use super::super::*;
use crate::{
    policy::{Operation, Principal},
    route::{Action, Match, PathMatch, RequestHead, ValueMatch},
};

fn any(url: &str, message: &impl Message) -> pb::Any {
    pb::Any { type_url: format!("type.googleapis.com/{url}"), value: message.encode_to_vec() }
}

/// The errors of a parse, one a line, without the resource's name.
fn errors<T: std::fmt::Debug>(
    kind: ResourceType,
    name: &str,
    message: &impl Message,
    parse: impl Fn(&str, &Any) -> Result<T, WireError>,
) -> String {
    let any = Any { type_url: kind.type_url().into(), value: message.encode_to_vec() };
    let lines = parse(name, &any).unwrap_err().errors;
    lines.iter().map(|error| format!("{}: {}\n", error.path, error.reason)).collect()
}

const ROUTE: &str = "svc/a/b:80";

fn table_with(rule: route::Route) -> route::RouteConfiguration {
    let host =
        route::VirtualHost { name: "h".into(), domains: vec!["*".into()], routes: vec![rule], ..Default::default() };
    route::RouteConfiguration { name: ROUTE.into(), virtual_hosts: vec![host], ..Default::default() }
}

fn matching(matches: route::RouteMatch) -> route::Route {
    let action = route::route::Action::NonForwardingAction(route::NonForwardingAction {});
    route::Route { r#match: Some(matches), action: Some(action), ..Default::default() }
}

fn prefix(path: &str) -> route::RouteMatch {
    route::RouteMatch {
        path_specifier: Some(route::route_match::PathSpecifier::Prefix(path.into())),
        ..Default::default()
    }
}

fn forwarding(action: route::RouteAction) -> route::RouteConfiguration {
    let specifier = action.cluster_specifier.or(Some(route::route_action::ClusterSpecifier::Cluster(ROUTE.into())));
    let action = route::route::Action::Route(route::RouteAction { cluster_specifier: specifier, ..action });
    table_with(route::Route { r#match: Some(prefix("/")), action: Some(action), ..Default::default() })
}

fn refused_routes(table: &route::RouteConfiguration) -> String {
    errors(ResourceType::Route, ROUTE, table, parse_route)
}

fn read_routes(table: &route::RouteConfiguration) -> RouteTable {
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
    fn any_header(&self, name: &str, test: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        self.1.iter().any(|(key, value)| *key == name && test(value.as_bytes()))
    }
}

#[test]
fn foreign_matches_become_expressions_with_the_same_meaning() {
    let first = |matches: route::RouteMatch| -> Match {
        read_routes(&table_with(matching(matches))).hosts[0].rules[0].matches.clone()
    };
    let plain = first(prefix("/v2.a"));
    for (path, matched) in
        [("/v2.a", true), ("/v2.ab", true), ("/v2.a/b", true), ("/v2xa", false), ("/v", false), ("/V2.A", false)]
    {
        assert_eq!(plain.test(&Get(path, &[])), matched, "{path}");
    }
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
    assert!(matches!(&present.headers[0].value, ValueMatch::Regex(_)) && present.test(&Get("/", &[("a", "")])));
    assert!(!present.test(&Get("/", &[])));
}

fn deny(rules: rbac::Rbac) -> pb::Any {
    let rbac = http_rbac::Rbac { rules: Some(rules), ..Default::default() };
    any("envoy.extensions.filters.http.rbac.v3.RBACPerRoute", &http_rbac::RbacPerRoute { rbac: Some(rbac) })
}

fn with_policy(policy: rbac::Policy) -> route::RouteConfiguration {
    let rules = rbac::Rbac { action: 1, policies: [("p".to_owned(), policy)].into(), ..Default::default() };
    route::RouteConfiguration {
        name: ROUTE.into(),
        typed_per_filter_config: [("weft.rbac.deny".to_owned(), deny(rules))].into(),
        ..Default::default()
    }
}

fn permit(rule: rbac::permission::Rule) -> rbac::Permission {
    rbac::Permission { rule: Some(rule) }
}

fn anyone() -> rbac::Principal {
    rbac::Principal { identifier: Some(rbac::principal::Identifier::Any(true)) }
}

#[test]
fn conditions_of_a_policy_that_weft_does_not_know_are_refused_by_name() {
    use rbac::{permission::Rule, principal::Identifier};
    let at = "typed_per_filter_config[\"weft.rbac.deny\"].rbac_per_route.rbac.rules.policies[\"p\"]";
    let good =
        rbac::Policy { permissions: vec![permit(Rule::Any(true))], principals: vec![anyone()], ..Default::default() };
    assert_eq!(read_routes(&with_policy(good.clone())).authorization.deny[0].from, [Principal::Any]);
    // Present and empty: plain bytes would not show it.
    let with_condition = rbac::Policy { condition: Some(Default::default()), ..good.clone() };
    assert_eq!(refused_routes(&with_policy(with_condition)), format!("{at}.condition: not supported\n"));
    for (identifier, field) in [
        (Identifier::DirectRemoteIp(Default::default()), "direct_remote_ip"),
        (Identifier::RemoteIp(Default::default()), "remote_ip"),
        (Identifier::Header(Default::default()), "header"),
        (Identifier::UrlPath(Default::default()), "url_path"),
        (Identifier::FilterState(Default::default()), "filter_state"),
    ] {
        let principals = vec![rbac::Principal { identifier: Some(identifier) }];
        let text = refused_routes(&with_policy(rbac::Policy { principals, ..good.clone() }));
        assert!(text.starts_with(&format!("{at}.principals[0].{field}: not supported\n")), "{text}");
    }
    for (rule, field) in [
        (Rule::DestinationIp(Default::default()), "destination_ip"),
        (Rule::SourcedMetadata(Default::default()), "sourced_metadata"),
        (Rule::RequestedServerName(Default::default()), "requested_server_name"),
        (Rule::DestinationPortRange(Default::default()), "destination_port_range"),
    ] {
        let text = refused_routes(&with_policy(rbac::Policy { permissions: vec![permit(rule)], ..good.clone() }));
        assert!(text.starts_with(&format!("{at}.permissions[0].{field}: not supported\n")), "{text}");
    }
    let not = Rule::NotRule(Box::new(permit(Rule::DestinationPort(80))));
    let text = refused_routes(&with_policy(rbac::Policy { permissions: vec![permit(not)], ..good.clone() }));
    assert_eq!(text, format!("{at}.permissions[0].not_rule: not supported\n"));
    let empty = rbac::Policy { permissions: vec![], ..good };
    assert_eq!(refused_routes(&with_policy(empty)), format!("{at}.permissions: required\n"));
}

#[test]
fn nested_permissions_unfold_to_operations() {
    use rbac::permission::{Rule, Set};
    let port = |port| permit(Rule::DestinationPort(port));
    let any_of = |rules| permit(Rule::OrRules(Set { rules }));
    let all_of = |rules| permit(Rule::AndRules(Set { rules }));
    let method = permit(Rule::Header(route::HeaderMatcher {
        name: ":method".into(),
        header_match_specifier: Some(route::header_matcher::HeaderMatchSpecifier::StringMatch(
            matcher::StringMatcher {
                match_pattern: Some(matcher::string_matcher::MatchPattern::Exact("GET".into())),
                ignore_case: false,
            },
        )),
        ..Default::default()
    }));
    let read = |permission| {
        let policy = rbac::Policy { permissions: vec![permission], principals: vec![anyone()], ..Default::default() };
        let any = Any { type_url: ResourceType::Route.type_url().into(), value: with_policy(policy).encode_to_vec() };
        parse_route(ROUTE, &any).map(|table| table.authorization.deny[0].to.clone())
    };
    let get = Operation { methods: vec!["GET".into()], ..Operation::default() };
    let ports = |ports: &[u16]| Operation { ports: ports.to_vec(), ..Operation::default() };
    assert_eq!(read(any_of(vec![port(1), any_of(vec![port(2), port(3)])])).unwrap(), [ports(&[1, 2, 3])]);
    assert_eq!(read(any_of(vec![port(1), method.clone()])).unwrap(), [ports(&[1]), get.clone()]);
    assert_eq!(
        read(all_of(vec![method.clone(), any_of(vec![port(1), port(2)])])).unwrap(),
        [Operation { ports: vec![1, 2], ..get.clone() }]
    );
    assert_eq!(read(all_of(vec![permit(Rule::Any(true)), method.clone()])).unwrap(), [get]);
    // Both about the port: that cannot be said, and must not be widened.
    assert!(
        read(all_of(vec![port(1), port(2)]))
            .unwrap_err()
            .to_string()
            .contains("permissions[0].and_rules: not supported")
    );
}

#[test]
fn filters_that_weft_does_not_know_are_refused_unless_optional() {
    let cors = any("envoy.extensions.filters.http.cors.v3.CorsPolicy", &pb::Empty {});
    let with = |config: pb::Any| route::RouteConfiguration {
        name: ROUTE.into(),
        typed_per_filter_config: [("envoy.filters.http.cors".to_owned(), config)].into(),
        ..Default::default()
    };
    assert!(
        refused_routes(&with(cors.clone()))
            .starts_with("typed_per_filter_config[\"envoy.filters.http.cors\"]: must be")
    );
    let optional = route::FilterConfig { config: Some(cors), is_optional: true, ..Default::default() };
    read_routes(&with(any("envoy.config.route.v3.FilterConfig", &optional)));
    // A policy of one route only is not what a table can say.
    let rules = rbac::Rbac { action: 1, ..Default::default() };
    let rule = route::Route {
        typed_per_filter_config: [("weft.rbac.deny".to_owned(), deny(rules))].into(),
        ..matching(prefix("/"))
    };
    let text = refused_routes(&table_with(rule));
    assert_eq!(text, "virtual_hosts[0].routes[0].typed_per_filter_config[\"weft.rbac.deny\"]: not supported\n");
}

fn api_listener(manager: &hcm::HttpConnectionManager) -> listener::Listener {
    let manager = any("envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", manager);
    listener::Listener {
        name: "outbound/240.0.0.1:80".into(),
        api_listener: Some(listener::ApiListener { api_listener: Some(manager) }),
        ..Default::default()
    }
}

fn refused_listener(message: &listener::Listener) -> String {
    errors(ResourceType::Listener, &message.name, message, parse_listener)
}

#[test]
fn a_connection_manager_needs_routes_and_only_filters_that_weft_knows() {
    let filter = |url: &str, is_optional| hcm::HttpFilter {
        name: url.into(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(any(url, &pb::Empty {}))),
        is_optional,
        ..Default::default()
    };
    let router = filter("envoy.extensions.filters.http.router.v3.Router", false);
    let source = core::ConfigSource {
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Ads(Default::default())),
        ..Default::default()
    };
    let manager = |filters, name: &str| hcm::HttpConnectionManager {
        route_specifier: Some(hcm::http_connection_manager::RouteSpecifier::Rds(hcm::Rds {
            config_source: Some(source.clone()),
            route_config_name: name.into(),
        })),
        http_filters: filters,
        ..Default::default()
    };
    let error = {
        let message = api_listener(&manager(vec![router.clone()], ""));
        let any = Any { type_url: ResourceType::Listener.type_url().into(), value: message.encode_to_vec() };
        parse_listener("outbound/240.0.0.1:80", &any).unwrap_err().to_string()
    };
    assert_eq!(
        error,
        "listener \"outbound/240.0.0.1:80\": api_listener.http_connection_manager.rds.route_config_name: required"
    );
    let fault = |optional| filter("envoy.extensions.filters.http.fault.v3.HTTPFault", optional);
    let text = refused_listener(&api_listener(&manager(vec![fault(false), router.clone()], ROUTE)));
    assert!(
        text.starts_with(
            "api_listener.http_connection_manager.http_filters[0]: must be an HTTP filter that Weft knows"
        ),
        "{text}"
    );
    let good = api_listener(&manager(vec![fault(true), router], ROUTE));
    let encoded = Any { type_url: ResourceType::Listener.type_url().into(), value: good.encode_to_vec() };
    let (_, Listener::Outbound(outbound)) = parse_listener(&good.name, &encoded).unwrap() else { panic!() };
    assert_eq!(outbound.http.unwrap().to_string(), ROUTE);
    let text = refused_listener(&api_listener(&manager(vec![], ROUTE)));
    assert!(text.contains("http_filters[\"envoy.filters.http.router\"]: required"), "{text}");
    let inline = hcm::HttpConnectionManager {
        route_specifier: Some(hcm::http_connection_manager::RouteSpecifier::RouteConfig(Default::default())),
        ..manager(vec![], ROUTE)
    };
    assert!(
        refused_listener(&api_listener(&inline))
            .starts_with("api_listener.http_connection_manager.route_config: not supported")
    );
}

/// An inbound listener as Weft renders it, through the types of Envoy, with a change to its first TLS context.
fn inbound_with_tls(change: impl FnOnce(&mut tls::DownstreamTlsContext)) -> String {
    let port = crate::listener::InboundPort {
        mode: Default::default(),
        protocol: Default::default(),
        routes: crate::names::RouteName::Inbound(None),
        authorization: Default::default(),
    };
    let model = crate::listener::Inbound { ports: Default::default(), default: port, access_log: Default::default() };
    let encoded = render_listener(&Listener::Inbound(model), ClientClass::Weft).unwrap();
    let mut message = listener::Listener::decode(&*encoded.value).unwrap();
    let socket = message.filter_chains[0].transport_socket.as_mut().unwrap();
    let Some(core::transport_socket::ConfigType::TypedConfig(config)) = &mut socket.config_type else { panic!() };
    let mut context = tls::DownstreamTlsContext::decode(&*config.value).unwrap();
    change(&mut context);
    config.value = context.encode_to_vec();
    refused_listener(&message)
}

#[test]
fn checks_of_tls_that_weft_does_not_know_are_refused_by_name() {
    let at = "filter_chains[0].transport_socket.downstream_tls_context";
    let starts = |text: String, field: &str, reason: &str| {
        assert!(text.starts_with(&format!("{at}.{field}: {reason}")), "{text}");
    };
    starts(inbound_with_tls(|c| c.require_client_certificate = None), "require_client_certificate", "must be true");
    starts(inbound_with_tls(|c| c.require_sni = Some(BoolValue { value: true })), "require_sni", "not supported");
    starts(inbound_with_tls(|c| c.ocsp_staple_policy = 2), "ocsp_staple_policy", "not supported");
    let common =
        |change: fn(&mut tls::CommonTlsContext)| inbound_with_tls(|c| change(c.common_tls_context.as_mut().unwrap()));
    // Present and empty.
    starts(common(|c| c.tls_params = Some(Default::default())), "common_tls_context.tls_params", "not supported");
    starts(
        common(|c| c.custom_handshaker = Some(Default::default())),
        "common_tls_context.custom_handshaker",
        "not supported",
    );
    starts(
        common(|c| c.tls_certificate_provider_instance = Some(Default::default())),
        "common_tls_context.tls_certificate_provider_instance",
        "not supported",
    );
    use tls::common_tls_context::ValidationContextType;
    let unverified = tls::CertificateValidationContext { trust_chain_verification: 1, ..Default::default() };
    let text = inbound_with_tls(|c| {
        c.common_tls_context.as_mut().unwrap().validation_context_type =
            Some(ValidationContextType::ValidationContext(unverified));
    });
    starts(text, "common_tls_context.validation_context", "not supported");
    let text = inbound_with_tls(|c| {
        c.common_tls_context.as_mut().unwrap().tls_certificate_sds_secret_configs[0].name = "other".into()
    });
    starts(text, "common_tls_context.tls_certificate_sds_secret_configs[0].name", "must be weft:svid");
    assert_eq!(inbound_with_tls(|c| c.common_tls_context = None), format!("{at}.common_tls_context: required\n"));
}

#[test]
fn what_decides_about_connections_is_refused_when_it_is_not_known() {
    let chain = |filters| listener::Listener {
        name: "outbound".into(),
        default_filter_chain: Some(listener::FilterChain { filters, ..Default::default() }),
        ..Default::default()
    };
    let filter = |config| listener::Filter {
        name: "f".into(),
        config_type: Some(listener::filter::ConfigType::TypedConfig(config)),
    };
    let url = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
    let proxy = |name: &str| tcp::TcpProxy {
        cluster_specifier: Some(tcp::tcp_proxy::ClusterSpecifier::Cluster(name.into())),
        ..Default::default()
    };
    let tunnel = tcp::TcpProxy { tunneling_config: Some(Default::default()), ..proxy("passthrough") };
    let text = refused_listener(&chain(vec![filter(any(url, &tunnel))]));
    assert_eq!(text, "default_filter_chain.filters[0].tcp_proxy.tunneling_config: not supported\n");
    let text = refused_listener(&chain(vec![filter(any(url, &proxy("elsewhere")))]));
    assert_eq!(text, "default_filter_chain.filters[0].tcp_proxy.cluster: must be passthrough, not \"elsewhere\"\n");
    let rbac = any("envoy.extensions.filters.network.rbac.v3.RBAC", &network_rbac::Rbac::default());
    let text = refused_listener(&chain(vec![filter(rbac), filter(any(url, &proxy("passthrough")))]));
    assert_eq!(text, "default_filter_chain.filters[1]: not supported\n");
    let matched = listener::FilterChainMatch { server_names: vec!["a".into()], ..Default::default() };
    let gateway = listener::Listener {
        name: "gateway/a/b".into(),
        filter_chains: vec![listener::FilterChain { filter_chain_match: Some(matched), ..Default::default() }],
        ..Default::default()
    };
    assert!(
        refused_listener(&gateway).starts_with("filter_chains[0].filter_chain_match.server_names: not supported\n")
    );
}

fn eds(name: &str) -> cluster::Cluster {
    let source = core::ConfigSource {
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Ads(Default::default())),
        ..Default::default()
    };
    cluster::Cluster {
        name: name.into(),
        cluster_discovery_type: Some(cluster::cluster::ClusterDiscoveryType::Type(3)),
        eds_cluster_config: Some(cluster::cluster::EdsClusterConfig { eds_config: Some(source), ..Default::default() }),
        ..Default::default()
    }
}

#[test]
fn a_foreign_cluster_is_read_with_the_defaults_of_envoy_and_refused_where_it_asks_for_more() {
    let read = |message: &cluster::Cluster| {
        parse_cluster(ROUTE, &Any { type_url: ResourceType::Cluster.type_url().into(), value: message.encode_to_vec() })
    };
    let plain = read(&eds(ROUTE)).unwrap();
    assert_eq!((plain.connect_timeout, plain.http_idle), (Duration::from_secs(5), Duration::from_secs(3600)));
    assert_eq!((plain.limits.connections, plain.limits.pending, plain.outlier), (1024, 1024, None));
    let outlier = cluster::OutlierDetection { consecutive_5xx: Some(UInt32Value { value: 7 }), ..Default::default() };
    let outlier = read(&cluster::Cluster { outlier_detection: Some(outlier), ..eds(ROUTE) }).unwrap().outlier.unwrap();
    assert_eq!((outlier.consecutive_failures.get(), outlier.max_ejected), (7, 0.1));
    let refused = |message: cluster::Cluster| errors(ResourceType::Cluster, ROUTE, &message, parse_cluster);
    assert_eq!(
        refused(cluster::Cluster { transport_socket: Some(Default::default()), ..eds(ROUTE) }),
        "transport_socket: not supported\n"
    );
    assert_eq!(
        refused(cluster::Cluster { transport_socket_matches: vec![Default::default()], ..eds(ROUTE) }),
        "transport_socket_matches: not supported\n"
    );
    assert_eq!(refused(cluster::Cluster { lb_policy: 2, ..eds(ROUTE) }), "lb_policy: not supported\n");
    let dns = cluster::Cluster {
        cluster_discovery_type: Some(cluster::cluster::ClusterDiscoveryType::Type(1)),
        ..eds(ROUTE)
    };
    assert_eq!(refused(dns), "type: must be EDS, not \"1\"\n");
    let no_source = cluster::Cluster { eds_cluster_config: None, ..eds(ROUTE) };
    assert_eq!(refused(no_source), "eds_cluster_config: required\n");
    // A field that changes neither safety nor route is ignored.
    read(&cluster::Cluster { alt_stat_name: "x".into(), ignore_health_on_host_removal: true, ..eds(ROUTE) }).unwrap();
}

#[test]
fn an_endpoint_is_an_ip_address_with_a_weight_and_a_real_identity() {
    let at = |address: &str, port: u32| core::Address {
        address: Some(core::address::Address::SocketAddress(core::SocketAddress {
            address: address.into(),
            port_specifier: Some(core::socket_address::PortSpecifier::PortValue(port)),
            ..Default::default()
        })),
    };
    let one = |address| endpoint::LbEndpoint {
        host_identifier: Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(endpoint::Endpoint {
            address: Some(address),
            ..Default::default()
        })),
        ..Default::default()
    };
    let set = |endpoints, priority| endpoint::ClusterLoadAssignment {
        cluster_name: ROUTE.into(),
        endpoints: vec![endpoint::LocalityLbEndpoints { lb_endpoints: endpoints, priority, ..Default::default() }],
        ..Default::default()
    };
    let refused = |set| errors(ResourceType::Endpoints, ROUTE, &set, parse_endpoints);
    let here = "endpoints[0].lb_endpoints[0]";
    assert_eq!(
        refused(set(vec![one(at("a.example", 80))], 0)),
        format!("{here}.endpoint.address.socket_address.address: must be an IP address, not \"a.example\"\n")
    );
    assert_eq!(
        refused(set(vec![one(at("10.0.0.1", 0))], 0)),
        format!("{here}.endpoint.address.socket_address.port_value: required\n")
    );
    assert_eq!(refused(set(vec![one(at("10.0.0.1", 80))], 1)), "endpoints[0].priority: not supported\n");
    assert_eq!(
        refused(set(vec![one(at("10.0.0.1", 80)), one(at("10.0.0.1", 80))], 0)),
        "endpoints[0].lb_endpoints[1].endpoint: is there twice\n"
    );
    let text = |text: &str| pb::Value { kind: Some(pb::value::Kind::StringValue(text.into())) };
    let fields = pb::Struct { fields: [("identity".to_owned(), text("spiffe://x"))].into() };
    let metadata = core::Metadata { filter_metadata: [("weft.dev".to_owned(), fields)].into(), ..Default::default() };
    let unnamed = endpoint::LbEndpoint {
        metadata: Some(metadata),
        load_balancing_weight: Some(UInt32Value { value: 0 }),
        ..one(at("10.0.0.1", 80))
    };
    assert_eq!(
        refused(set(vec![unnamed], 0)),
        format!(
            "{here}.load_balancing_weight: must be at least 1, not \"0\"\n{here}.metadata[\"identity\"]: the path is missing\n"
        )
    );
}

/// In every message of a listener with a policy, and of a table with one: an unknown field is refused where it could
/// decide who may pass, and changes nothing elsewhere.
#[test]
fn an_unknown_field_is_refused_in_every_message_that_decides_and_ignored_in_the_others() {
    use super::{super::walk::is_strict, golden};
    let descriptors = golden::Descriptors::load();
    let mut strict = std::collections::BTreeSet::new();
    for encoded in [
        render_listener(&golden::guarded_listener(), ClientClass::Weft).unwrap(),
        render_route(&golden::split_table(), ClientClass::Weft).unwrap(),
    ] {
        let url = encoded.resource_type.type_url();
        let plain = parse(encoded.resource_type, &encoded.name, &encoded.to_any()).unwrap();
        let name = url.rsplit('/').next().unwrap();
        let changed = (0..).map_while(|place| descriptors.inject(name, &encoded.value, place));
        for (message, value) in changed {
            let read = parse(encoded.resource_type, &encoded.name, &Any { type_url: url.into(), value });
            if is_strict(&message) {
                let text = read.expect_err(&message).to_string();
                assert!(text.contains("has the unknown field 999"), "{message}: {text}");
                strict.insert(message);
            } else {
                assert_eq!(read.unwrap(), plain, "{message}");
            }
        }
    }
    for message in [
        "envoy.config.rbac.v3.Principal.Authenticated",
        "envoy.type.matcher.v3.StringMatcher",
        "envoy.extensions.transport_sockets.tls.v3.SdsSecretConfig",
        "envoy.config.route.v3.HeaderMatcher",
        "envoy.extensions.filters.http.rbac.v3.RBACPerRoute",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter",
    ] {
        assert!(strict.contains(message), "{message} of {strict:?}");
    }
}
