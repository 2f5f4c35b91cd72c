//! Rules of HTTPRoutes and Gateways. Limits are the Gateway API's.

mod filter;

use super::{Check, MAX_ATTEMPTS, labels, names, service::weight};
use crate::{
    api::{
        gateway::{FromNamespaces, GATEWAY_CLASS, GatewaySpec, Listener, ListenerProtocol},
        http_route::{
            BackendRef, GATEWAY_GROUP, HeaderMatchType, HttpRouteMatch, HttpRouteRetry, HttpRouteRule, HttpRouteSpec,
            HttpRouteTimeouts, ParentReference, PathMatchType, RefKind,
        },
    },
    route::Pattern,
};

const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];

pub(super) fn http_route(check: &mut Check, spec: &HttpRouteSpec) {
    check.at_most("parentRefs", &spec.parent_refs, 32);
    check.each("parentRefs", &spec.parent_refs, parent);
    check.unique("parentRefs", "", &spec.parent_refs, |parent| {
        let target = parent.target()?;
        Some((target == RefKind::Gateway, &parent.namespace, &parent.name, &parent.section_name, parent.port))
    });
    check.at_most("hostnames", &spec.hostnames, 16);
    check.each("hostnames", &spec.hostnames, |check, host| check.form(host, names::hostname));
    check.unique("hostnames", "", &spec.hostnames, Some);
    check.at_most("rules", &spec.rules, 16);
    check.unique("rules", "name", &spec.rules, |rule| rule.name.clone());
    if spec.rules.iter().map(|rule| rule.matches.len()).sum::<usize>() > 128 {
        check.fail("rules", "must have at most 128 matches together");
    }
    check.each("rules", &spec.rules, rule);
}

fn parent(check: &mut Check, parent: &ParentReference) {
    match parent.target() {
        Some(RefKind::Service) => check.at("name", |check| check.form(&parent.name, names::label)),
        Some(RefKind::Gateway) => check.at("name", |check| check.form(&parent.name, names::subdomain)),
        None => {
            let group = parent.group.as_deref().unwrap_or(GATEWAY_GROUP);
            let kind = parent.kind.as_deref().unwrap_or("Gateway");
            let reason = "a parent is a Gateway (group \"gateway.networking.k8s.io\") or a Service (group \"\")";
            check.fail("kind", format!("{reason}, not {kind:?} of group {group:?}"));
        }
    }
    if let Some(namespace) = &parent.namespace {
        check.at("namespace", |check| check.form(namespace, names::label));
    }
    if let Some(section) = &parent.section_name {
        check.at("sectionName", |check| check.form(section, names::subdomain));
    }
}

fn rule(check: &mut Check, rule: &HttpRouteRule) {
    if let Some(name) = &rule.name {
        check.at("name", |check| check.form(name, names::subdomain));
    }
    check.at_most("matches", &rule.matches, 64);
    check.each("matches", &rule.matches, route_match);
    check.at_most("filters", &rule.filters, 16);
    check.each("filters", &rule.filters, filter::filter);
    check.unique("filters", "type", &rule.filters, |filter| Some(filter.kind));
    check.at_most("backendRefs", &rule.backend_refs, 16);
    check.each("backendRefs", &rule.backend_refs, backend);
    if let Some(HttpRouteTimeouts { request: Some(request), backend_request: Some(each) }) = rule.timeouts
        && !request.is_zero()
        && (each > request || each.is_zero())
    {
        check.fail("timeouts.backendRequest", format!("must be at most the request's timeout, which is {request}"));
    }
    if let Some(retry) = &rule.retry {
        check.at("retry", |check| route_retry(check, retry));
    }
}

fn route_retry(check: &mut Check, retry: &HttpRouteRetry) {
    statuses(check, "codes", &retry.codes);
    if retry.attempts.is_some_and(|attempts| attempts >= MAX_ATTEMPTS) {
        check.fail("attempts", format!("must be at most {} (tries after the first)", MAX_ATTEMPTS - 1));
    }
}

/// Statuses that may be tried again.
pub(super) fn statuses(check: &mut Check, field: &str, statuses: &[u16]) {
    check.at_most(field, statuses, 64);
    check.unique(field, "", statuses, |status| Some(*status));
    check.each(field, statuses, |check, status| {
        if !(400..=599).contains(status) {
            check.fail("", "must be from 400 to 599");
        }
    });
}

fn route_match(check: &mut Check, wanted: &HttpRouteMatch) {
    if let Some(path) = &wanted.path {
        check.at("path.value", |check| match path.kind() {
            PathMatchType::Exact | PathMatchType::PathPrefix => check.form(path.value(), names::path),
            PathMatchType::RegularExpression if path.value().bytes().any(|byte| byte.is_ascii_control()) => {
                check.fail("", "has a control character, which no path has (RFC 3986 §3.3)");
            }
            PathMatchType::RegularExpression => expression(check, path.value(), 1024),
        });
    }
    check.at_most("headers", &wanted.headers, 16);
    check.unique("headers", "name", &wanted.headers, |header| Some(header.name.to_ascii_lowercase()));
    check.each("headers", &wanted.headers, |check, header| {
        check.at("name", |check| check.form(&header.name, names::header_name));
        check.at("value", |check| match header.kind() {
            HeaderMatchType::RegularExpression => expression(check, &header.value, 4096),
            HeaderMatchType::Exact if header.value.len() > 4096 => check.fail("", "is longer than 4096 bytes"),
            HeaderMatchType::Exact if header.value.is_empty() => check.fail("", "must not be empty"),
            HeaderMatchType::Exact if header.value.bytes().any(|b| b.is_ascii_control() && b != b'\t') => {
                check.fail("", "has a character that is not allowed in a header value (RFC 9110 §5.5)");
            }
            HeaderMatchType::Exact => {}
        });
    });
    if let Some(method) = &wanted.method
        && !METHODS.contains(&method.as_str())
    {
        check.fail("method", format!("must be one of {}, not {method:?}", METHODS.join(", ")));
    }
}

fn expression(check: &mut Check, source: &str, longest: usize) {
    if source.is_empty() {
        return check.fail("", "must not be empty");
    }
    if source.len() > longest {
        return check.fail("", format!("is longer than {longest} bytes"));
    }
    if let Err(error) = Pattern::new(source) {
        // The cause draws the expression over several lines; its last one says what is wrong.
        let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        let last = cause.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
        check.fail("", format!("{error}: {last}"));
    }
}

fn backend(check: &mut Check, backend: &BackendRef) {
    weight(check, backend.weight);
    match backend.target() {
        Some(RefKind::Service) => {
            check.at("name", |check| check.form(&backend.name, names::label));
            if backend.port.is_none() {
                check.required("port");
            }
        }
        Some(RefKind::Gateway) | None => check.at("name", |check| check.form(&backend.name, names::subdomain)),
    }
    if let Some(namespace) = &backend.namespace {
        check.at("namespace", |check| check.form(namespace, names::label));
    }
}

pub(super) fn gateway(check: &mut Check, spec: &GatewaySpec) {
    if spec.gateway_class_name != GATEWAY_CLASS {
        check.fail("gatewayClassName", format!("must be {GATEWAY_CLASS:?}, not {:?}", spec.gateway_class_name));
    }
    if spec.listeners.is_empty() {
        check.fail("listeners", "must have at least one entry");
    }
    check.at_most("listeners", &spec.listeners, 64);
    check.unique("listeners", "name", &spec.listeners, |listener| Some(listener.name.clone()));
    check.each("listeners", &spec.listeners, listener);
    check.unique("listeners", "hostname", &spec.listeners, |listener| {
        (listener.protocol == ListenerProtocol::Http).then(|| (listener.port, listener.hostname.clone()))
    });
    check.at_most("addresses", &spec.addresses, 16);
    check.each("addresses", &spec.addresses, |check, address| {
        let value = address.value.as_deref();
        match address.kind.as_deref().unwrap_or("IPAddress") {
            "IPAddress" => {
                if value.is_some_and(|value| value.parse::<std::net::IpAddr>().is_err()) {
                    check.fail("value", "must be an IP address");
                }
            }
            "Hostname" => {
                if let Some(value) = value {
                    check.at("value", |check| check.form(value, names::hostname));
                }
            }
            other => check.fail("type", format!("must be one of IPAddress, Hostname, not {other:?}")),
        }
    });
}

fn listener(check: &mut Check, listener: &Listener) {
    check.at("name", |check| check.form(&listener.name, names::subdomain));
    if let Some(host) = &listener.hostname {
        check.at("hostname", |check| check.form(host, names::hostname));
    }
    if listener.protocol != ListenerProtocol::Http {
        check.not_supported("protocol");
    }
    let Some(allowed) = &listener.allowed_routes else { return };
    check.at("allowedRoutes", |check| {
        check.each("kinds", &allowed.kinds, |check, kind| {
            if kind.group.as_deref().unwrap_or(GATEWAY_GROUP) != GATEWAY_GROUP || kind.kind != "HTTPRoute" {
                check.not_supported("kind");
            }
        });
        let Some(namespaces) = &allowed.namespaces else { return };
        check.at("namespaces", |check| {
            match (namespaces.from.unwrap_or_default(), &namespaces.selector) {
                (FromNamespaces::Selector, None) => check.required("selector"),
                (FromNamespaces::Selector, Some(selector)) => {
                    labels(check, "selector.matchLabels", &selector.match_labels);
                }
                (FromNamespaces::All | FromNamespaces::Same | FromNamespaces::None, Some(_)) => {
                    check.fail("selector", "only with `from: Selector`");
                }
                (FromNamespaces::All | FromNamespaces::Same | FromNamespaces::None, None) => {}
            };
        });
    });
}
