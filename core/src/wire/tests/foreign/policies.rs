//! Policies of route tables from others.

use envoy_types::pb::{
    envoy::{
        config::{rbac::v3 as rbac, route::v3 as route},
        extensions::filters::http::rbac::v3 as http_rbac,
        r#type::matcher::v3 as matcher,
    },
    google::protobuf as pb,
};

use super::{
    routes::{matching, prefix, read_routes, refused_routes, table_with},
    *,
};
use crate::policy::{Operation, Principal};

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
