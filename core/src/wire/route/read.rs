//! Route tables from the wire.

use std::{collections::BTreeMap, time::Duration};

use prost_types::Any;
use weft_proto::envoy::{
    config::{
        rbac::v3::rbac::Action as RbacAction,
        route::v3::{
            FilterConfig, Route, RouteAction, RouteConfiguration, VirtualHost as HostMessage, route,
            route_action::ClusterSpecifier,
        },
    },
    extensions::filters::http::rbac::v3::RbacPerRoute,
};

use super::{headers, matches, retry};
use crate::{
    filter::Filters,
    names::RouteName,
    policy::Authorization,
    route::{Action, Forward, RouteTable, Rule, UNRESOLVED, VirtualHost, WeightedCluster},
    wire::{
        ResourceType, WireError,
        authorization::{self, ALLOW_FILTER, DENY_FILTER},
        duration,
        error::{At, Errors, Reason},
        read::{check_name, collect, parse_with, read_cluster_name},
        types::{Typed, holds, unpack},
    },
};

/// What Envoy does when `timeout` is absent.
const ABSENT_TIMEOUT: Duration = Duration::from_secs(15);
/// What Envoy does when `idle_timeout` is absent here and in the listener.
const ABSENT_IDLE_TIMEOUT: Duration = Duration::from_secs(300);

/// Parses a route table.
/// Errors: every field that is wrong, or that asks for what Weft cannot do.
pub fn parse_route(name: &str, any: &Any) -> Result<RouteTable, WireError> {
    parse_with(ResourceType::Route, name, any, |message: &RouteConfiguration, at: &At<'_>, errors: &mut Errors| {
        check_name(&message.name, name, &at.field("name"), errors);
        let parsed = RouteName::parse(name).map_err(|error| errors.add(&at.field("name"), error.into())).ok();
        let authorization = read_authorization(&message.typed_per_filter_config, at, errors);
        let hosts = message.virtual_hosts.iter().enumerate();
        let hosts = collect(hosts.map(|(index, host)| read_host(host, &at.index("virtual_hosts", index), errors)));
        let table = RouteTable { name: parsed?, hosts: hosts?, authorization: authorization? };
        check_domains(&table.hosts, at, errors);
        Some(table)
    })
}

/// The policy of a table. Any entry that Weft does not know is refused, unless it says that it is optional.
fn read_authorization(configs: &BTreeMap<String, Any>, at: &At<'_>, errors: &mut Errors) -> Option<Authorization> {
    let mut authorization = Authorization::default();
    for (name, config) in configs {
        let at = at.key("typed_per_filter_config", name);
        let Some(any) = unwrap_filter_config(config, &at, errors)? else { continue };
        let per_route: RbacPerRoute = unpack(&any, &at, errors)?;
        let Some(rules) = per_route.rbac.and_then(|rbac| rbac.rules) else { continue };
        let at = at.field(RbacPerRoute::NAME);
        let at = at.field("rbac");
        let at = at.field("rules");
        match name.as_str() {
            DENY_FILTER => authorization.deny = authorization::read(&rules, RbacAction::Deny, &at, errors)?,
            ALLOW_FILTER => authorization.allow = Some(authorization::read(&rules, RbacAction::Allow, &at, errors)?),
            _ => errors.add(&at, Reason::NotSupported),
        }
    }
    Some(authorization)
}

/// The config inside an optional `FilterConfig`; the inner `None` when it may be skipped.
fn unwrap_filter_config(config: &Any, at: &At<'_>, errors: &mut Errors) -> Option<Option<Any>> {
    if !holds::<FilterConfig>(config) {
        return Some(Some(config.clone()));
    }
    let wrapper: FilterConfig = unpack(config, at, errors)?;
    let known = wrapper.config.as_ref().is_some_and(holds::<RbacPerRoute>);
    if !known && wrapper.is_optional {
        return Some(None);
    }
    let at = at.field(FilterConfig::NAME);
    if wrapper.disabled {
        return errors.refuse(&at.field("disabled"), Reason::NotSupported);
    }
    match wrapper.config {
        Some(config) => Some(Some(config)),
        None => errors.refuse(&at.field("config"), Reason::Required),
    }
}

/// Below the table nothing may override a filter, since that would change the policy of some requests only.
fn refuse_overrides(configs: &BTreeMap<String, Any>, at: &At<'_>, errors: &mut Errors) {
    for (name, config) in configs {
        let at = at.key("typed_per_filter_config", name);
        if let Some(Some(_)) = unwrap_filter_config(config, &at, errors) {
            errors.add(&at, Reason::NotSupported);
        }
    }
}

fn read_host(host: &HostMessage, at: &At<'_>, errors: &mut Errors) -> Option<VirtualHost> {
    refuse_overrides(&host.typed_per_filter_config, at, errors);
    if host.domains.is_empty() {
        errors.add(&at.field("domains"), Reason::Required);
    }
    let mut domains = Vec::new();
    for (index, domain) in host.domains.iter().enumerate() {
        let without_port = domain.rsplit_once(':').map(|(name, _)| name);
        // The port of a host is never compared, so `a:80` beside `a` says nothing more.
        if without_port.is_some_and(|name| host.domains.iter().any(|other| other == name)) {
            continue;
        }
        if domain.is_empty() || without_port.is_some() || domain.get(1..).is_some_and(|rest| rest.contains('*')) {
            errors.add(&at.index("domains", index), Reason::expected(domain, "a host, \"*.\" and a host, or \"*\""));
        }
        domains.push(domain.to_ascii_lowercase().into());
    }
    let rules = host.routes.iter().enumerate();
    let rules = collect(rules.map(|(index, route)| read_rule(route, &at.index("routes", index), errors)))?;
    Some(VirtualHost { name: host.name.as_str().into(), domains, rules })
}

/// A domain belongs to one virtual host.
fn check_domains(hosts: &[VirtualHost], at: &At<'_>, errors: &mut Errors) {
    let mut seen = std::collections::HashSet::new();
    for (index, host) in hosts.iter().enumerate() {
        for domain in &host.domains {
            if !seen.insert(domain) {
                let at = at.index("virtual_hosts", index);
                errors.add(&at.key("domains", domain), Reason::Duplicate);
            }
        }
    }
}

fn read_rule(message: &Route, at: &At<'_>, errors: &mut Errors) -> Option<Rule> {
    refuse_overrides(&message.typed_per_filter_config, at, errors);
    let matches = match &message.r#match {
        Some(matches) => matches::read(matches, &at.field("match"), errors),
        None => errors.refuse(&at.field("match"), Reason::Required),
    };
    let request_headers = headers::read(
        ("request_headers_to_add", &message.request_headers_to_add),
        ("request_headers_to_remove", &message.request_headers_to_remove),
        at,
        errors,
    );
    let response_headers = headers::read(
        ("response_headers_to_add", &message.response_headers_to_add),
        ("response_headers_to_remove", &message.response_headers_to_remove),
        at,
        errors,
    );
    let action = match &message.action {
        None => errors.refuse(&at.field("action"), Reason::Required),
        Some(route::Action::Route(action)) => {
            let exact = retry::is_exact(message.metadata.as_ref());
            read_forward(action, exact, &at.field("route"), errors).map(Action::Forward)
        }
        Some(route::Action::DirectResponse(response)) => {
            let at = at.field("direct_response");
            match u16::try_from(response.status).ok().filter(|status| (200..600).contains(status)) {
                Some(status) => Some(Action::Respond(status)),
                None => errors.refuse(&at.field("status"), Reason::expected(response.status, "200 to 599")),
            }
        }
        Some(route::Action::NonForwardingAction(_)) => Some(Action::Deliver),
    };
    let filters = Filters { request_headers: request_headers?, response_headers: response_headers? };
    Some(Rule { name: message.name.as_str().into(), matches: matches?, filters, action: action? })
}

fn read_forward(action: &RouteAction, exact_words: bool, at: &At<'_>, errors: &mut Errors) -> Option<Forward> {
    let clusters = read_clusters(action, at, errors);
    let stream = action.max_stream_duration.as_ref().and_then(|max| max.max_stream_duration.as_ref());
    let stream_at = at.field("max_stream_duration");
    let stream = duration::read_or(stream, Duration::ZERO, &stream_at, errors);
    let absent = if stream == Some(Duration::ZERO) { ABSENT_TIMEOUT } else { Duration::ZERO };
    let timeout = duration::read_or(action.timeout.as_ref(), absent, &at.field("timeout"), errors);
    let idle = duration::read_or(action.idle_timeout.as_ref(), ABSENT_IDLE_TIMEOUT, &at.field("idle_timeout"), errors);
    let retry = retry::read(action.retry_policy.as_ref(), exact_words, &at.field("retry_policy"), errors);
    let (retry, try_timeout) = retry?;
    let set = |duration: Duration| (!duration.is_zero()).then_some(duration);
    let request_timeout = match (set(timeout?), set(stream?)) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    };
    let (clusters, unresolved) = clusters?;
    Some(Forward { clusters, unresolved, request_timeout, try_timeout, idle_timeout: set(idle?), retry })
}

/// The clusters, and the share of those that cannot be resolved.
fn read_clusters(action: &RouteAction, at: &At<'_>, errors: &mut Errors) -> Option<(Vec<WeightedCluster>, u32)> {
    let weighted = match &action.cluster_specifier {
        None => return errors.refuse(&at.field("cluster"), Reason::Required),
        Some(ClusterSpecifier::Cluster(name)) => {
            let cluster = read_cluster_name(name, &at.field("cluster"), errors)?;
            return Some((vec![WeightedCluster { cluster, weight: 1 }], 0));
        }
        Some(ClusterSpecifier::WeightedClusters(weighted)) => weighted,
    };
    let at = at.field("weighted_clusters");
    let total: u64 = weighted.clusters.iter().map(|one| u64::from(one.weight.unwrap_or_default())).sum();
    if total == 0 || total > u64::from(u32::MAX) {
        errors.add(&at.field("clusters"), Reason::expected(total, "a sum of weights of 1 to 4294967295"));
    }
    let mut unresolved = 0u32;
    let mut clusters = Some(Vec::new());
    for (index, one) in weighted.clusters.iter().enumerate() {
        let at = at.index("clusters", index);
        refuse_overrides(&one.typed_per_filter_config, &at, errors);
        let weight = one.weight.unwrap_or_default();
        if one.name == UNRESOLVED {
            unresolved = unresolved.saturating_add(weight);
            continue;
        }
        match (read_cluster_name(&one.name, &at.field("name"), errors), &mut clusters) {
            (Some(cluster), Some(clusters)) => clusters.push(WeightedCluster { cluster, weight }),
            _ => clusters = None,
        }
    }
    if clusters.as_ref().is_some_and(Vec::is_empty) {
        errors.add(&at.field("clusters"), Reason::Required);
    }
    Some((clusters?, unresolved))
}
