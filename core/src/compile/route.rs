//! Route tables of services, and the meaning of one rule of an HTTPRoute.
//! Spec: Gateway API HTTPRoute; GAMMA: a service without routes forwards to itself, one with routes answers 404 to what
//! none of them matches; hostnames are not looked at.

use std::{num::NonZeroU16, sync::Arc, time::Duration};

use jiff::Timestamp;

use super::{
    World,
    cluster::retry_policy,
    name_of,
    objects::age,
    precedence::{Candidate, ordered},
};
use crate::{
    api::{
        HttpRoute, Service,
        http_route::{
            BackendRef, HeaderMatchType, HttpHeader, HttpHeaderFilter, HttpRouteMatch, HttpRouteRule, ParentReference,
            PathMatchType, RefKind,
        },
        traffic_policy::TrafficPolicySpec,
    },
    filter::{Filters, Header, HeaderModifier},
    names::{ClusterName, RouteName, ServicePort},
    policy::Authorization,
    retry::RetryPolicy,
    route::{
        Action, Forward, HeaderMatch, Match, PathMatch, Pattern, PatternError, RouteTable, Rule, ValueMatch,
        VirtualHost, WeightedCluster,
    },
};

/// The most that a retry waits, in times of the wait that an HTTPRoute asks for (Envoy's default).
const BACKOFF_TIMES: u32 = 10;

/// Why a backend cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum BackendError {
    /// Not a Service.
    InvalidKind,
    /// In another namespace, which nothing permits yet.
    NotPermitted,
    /// No such service or port.
    NotFound,
}

impl World {
    /// The route table of a service's port; `None` when there is no such port or it does not take HTTP.
    pub(super) fn service_routes(&self, at: &ServicePort) -> Option<RouteTable> {
        let service = self.service(at)?;
        let spec = service.spec.port(at.port)?;
        if super::protocol(spec.app()) == crate::listener::Protocol::Tcp {
            return None;
        }
        let policy = self.traffic_policy(service, at.port).map(|policy| &policy.spec);
        let attached: Vec<&HttpRoute> = self.attached(service, at.port).collect();
        let rules = if attached.is_empty() {
            let mut forward = Forward::to(ClusterName::Service(at.clone()));
            settings(&mut forward, None, policy);
            let name = format!("{}/{}#default", at.namespace, at.name);
            vec![Rule::all(&name, Action::Forward(forward))]
        } else {
            ordered(attached.into_iter().flat_map(|route| self.candidates(route, policy)).collect())
        };
        Some(table(RouteName::Service(at.clone()), rules))
    }

    /// The route table of a workload's own address: everything to it, nothing of its services' routes.
    pub(super) fn direct_routes(&self, address: std::net::SocketAddr) -> Option<RouteTable> {
        NonZeroU16::new(address.port())?;
        let instance = self.workload_at(address)?;
        let name = format!("{}#direct", instance.full_name());
        let action = Action::Forward(Forward::to(ClusterName::Direct(address)));
        let rules = vec![Rule::all(&name, action)];
        Some(table(RouteName::Direct(address), rules))
    }

    /// The routes that apply to a service's port: those of its own namespace that name it.
    fn attached(&self, service: &Service, port: NonZeroU16) -> impl Iterator<Item = &HttpRoute> {
        let (namespace, name) = (service.metadata.namespace.clone(), service.metadata.name.clone());
        let section = service.spec.port(port).and_then(|port| port.name.clone());
        let routes = self.objects.service_routes(&namespace, &name).collect::<Vec<_>>();
        routes.into_iter().filter(move |route| {
            route.metadata.namespace == namespace
                && route.spec.parent_refs.iter().any(|parent| {
                    names_service(parent, &namespace, &name, &route.metadata.namespace)
                        && parent.port.is_none_or(|wanted| wanted == port)
                        && parent.section_name.as_deref().is_none_or(|wanted| Some(wanted) == section.as_deref())
                })
        })
    }

    /// The matches of a route, each with what happens. `policy`: what the parent service asks its clients to do.
    pub(super) fn candidates(
        &self,
        route: &HttpRoute,
        policy: Option<&TrafficPolicySpec>,
    ) -> Vec<Candidate<Timestamp>> {
        let everything = [HttpRouteRule::default()];
        let rules = if route.spec.rules.is_empty() { &everything[..] } else { &route.spec.rules };
        let (made, namespace, name) = age(&route.metadata);
        let (namespace, name): (Arc<str>, Arc<str>) = (namespace.into(), name.into());
        let mut out = Vec::new();
        for (index, rule) in rules.iter().enumerate() {
            let action = self.action(&namespace, rule, policy);
            let filters = filters(rule);
            let number = index.to_string();
            let label: Arc<str> = format!("{namespace}/{name}#{}", rule.name.as_deref().unwrap_or(&number)).into();
            let any = [HttpRouteMatch::default()];
            let matches = if rule.matches.is_empty() { &any[..] } else { &rule.matches };
            for wanted in matches {
                // An expression that does not compile matches nothing; the object's status says so.
                let Ok(matches) = request_match(wanted) else { continue };
                out.push(Candidate {
                    matches,
                    route: (made, Arc::clone(&namespace), Arc::clone(&name)),
                    name: Arc::clone(&label),
                    filters: filters.clone(),
                    action: action.clone(),
                });
            }
        }
        out
    }

    fn action(&self, namespace: &str, rule: &HttpRouteRule, policy: Option<&TrafficPolicySpec>) -> Action {
        let mut clusters: Vec<WeightedCluster> = Vec::new();
        let mut unresolved = 0u32;
        let mut first = None;
        for backend in &rule.backend_refs {
            let weight = backend.weight();
            match self.backend(namespace, backend) {
                Ok((service, at)) => {
                    first = first.or(Some((service, at.port)));
                    let cluster = ClusterName::Service(at);
                    match clusters.iter_mut().find(|known| known.cluster == cluster) {
                        Some(known) => known.weight = known.weight.saturating_add(weight),
                        None => clusters.push(WeightedCluster { cluster, weight }),
                    }
                }
                Err(_) => unresolved = unresolved.saturating_add(weight),
            }
        }
        clusters.retain(|cluster| cluster.weight > 0);
        let Some(some) = clusters.first().map(|to| to.cluster.clone()) else { return Action::Respond(500) };
        let mut forward = Forward { clusters, unresolved, ..Forward::to(some) };
        let of_first = || first.and_then(|(service, port)| self.traffic_policy(service, port));
        settings(&mut forward, Some(rule), policy.or_else(|| of_first().map(|policy| &policy.spec)));
        Action::Forward(forward)
    }

    /// The service's port that a backend names.
    pub(super) fn backend(&self, route: &str, backend: &BackendRef) -> Result<(&Service, ServicePort), BackendError> {
        if backend.target() != Some(RefKind::Service) {
            return Err(BackendError::InvalidKind);
        }
        let namespace = backend.namespace(route);
        if namespace != route {
            return Err(BackendError::NotPermitted);
        }
        let service = self.objects.service(namespace, &backend.name).ok_or(BackendError::NotFound)?;
        let port = backend.port.filter(|port| service.spec.port(*port).is_some()).ok_or(BackendError::NotFound)?;
        Ok((service, name_of(service, port)))
    }
}

/// Whether a parent reference names this service.
pub(super) fn names_service(parent: &ParentReference, namespace: &str, name: &str, route: &str) -> bool {
    parent.target() == Some(RefKind::Service) && parent.name == name && parent.namespace(route) == namespace
}

/// A table with one host for everything.
fn table(name: RouteName, rules: Vec<Rule>) -> RouteTable {
    let host = VirtualHost { name: name.to_string().into(), domains: vec!["*".into()], rules };
    RouteTable { name, hosts: vec![host], authorization: Authorization::default() }
}

/// What a request has to have. Errors: a regular expression that does not compile.
pub(super) fn request_match(wanted: &HttpRouteMatch) -> Result<Match, PatternError> {
    let mut out = Match::any();
    if let Some(path) = &wanted.path {
        out.path = match path.kind() {
            PathMatchType::Exact => PathMatch::Exact(path.value().into()),
            PathMatchType::PathPrefix => {
                let trimmed = path.value().trim_end_matches('/');
                PathMatch::Prefix(if trimmed.is_empty() { "/".into() } else { trimmed.into() })
            }
            PathMatchType::RegularExpression => PathMatch::Regex(Pattern::new(path.value())?),
        };
    }
    out.method = wanted.method.as_deref().map(Into::into);
    for header in &wanted.headers {
        let name: Arc<str> = header.name.to_ascii_lowercase().into();
        if out.headers.iter().any(|known| known.name == name) {
            continue;
        }
        let value = match header.kind() {
            HeaderMatchType::Exact => ValueMatch::Exact(header.value.as_str().into()),
            HeaderMatchType::RegularExpression => ValueMatch::Regex(Pattern::new(&header.value)?),
        };
        out.headers.push(HeaderMatch { name, value });
    }
    Ok(out)
}

/// What the filters of a rule change.
fn filters(rule: &HttpRouteRule) -> Filters {
    let mut out = Filters::default();
    for filter in &rule.filters {
        if let Some(modifier) = &filter.request_header_modifier {
            out.request_headers = header_modifier(modifier);
        }
        if let Some(modifier) = &filter.response_header_modifier {
            out.response_headers = header_modifier(modifier);
        }
    }
    out
}

fn header_modifier(modifier: &HttpHeaderFilter) -> HeaderModifier {
    let headers = |list: &[HttpHeader]| list.iter().map(|header| Header::new(&header.name, &header.value)).collect();
    HeaderModifier {
        remove: modifier.remove.iter().map(|name| name.to_ascii_lowercase().into()).collect(),
        set: headers(&modifier.set),
        add: headers(&modifier.add),
    }
}

/// Timeouts and retries: the rule's over the policy's over the defaults. Methods that are not idempotent are not
/// repeated once they may have been seen, also where a rule lists statuses: GEP-1731 leaves that open.
fn settings(forward: &mut Forward, rule: Option<&HttpRouteRule>, policy: Option<&TrafficPolicySpec>) {
    let own = rule.and_then(|rule| rule.timeouts).unwrap_or_default();
    let common = policy.and_then(|policy| policy.timeouts).unwrap_or_default();
    let time = |of_rule: Option<crate::api::Duration>, of_policy: Option<crate::api::Duration>| {
        of_rule.or(of_policy).filter(|time| !time.is_zero()).map(Duration::from)
    };
    forward.request_timeout = time(own.request, common.request);
    forward.try_timeout = time(own.backend_request, common.per_try);
    forward.retry = retry_policy(policy);
    if let Some(retry) = rule.and_then(|rule| rule.retry.as_ref()) {
        if let Some(attempts) = retry.attempts {
            forward.retry.attempts = attempts.saturating_add(1);
        }
        if !retry.codes.is_empty() {
            forward.retry.only_codes(&retry.codes);
        }
        if let Some(backoff) = retry.backoff {
            let base = Duration::from(backoff);
            let RetryPolicy { backoff_base, backoff_max, .. } = &mut forward.retry;
            *backoff_base = base;
            *backoff_max = (*backoff_max).max(base.saturating_mul(BACKOFF_TIMES));
        }
    }
}
