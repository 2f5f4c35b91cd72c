//! Rules of TrafficPolicies and AuthorizationPolicies.

use super::{Check, MAX_ATTEMPTS, labels, names, route::statuses};
use crate::{
    api::{
        authorization_policy::{Action, AuthorizationPolicySpec, AuthorizationRule, Source, Target},
        duration::Duration,
        traffic_policy::{PolicyTarget, Retry, TrafficPolicySpec},
    },
    identity::Identity,
    retry::RetryPolicy,
};

const MAX_RULES: usize = 128;
const MAX_VALUES: usize = 256;

pub(super) fn traffic(check: &mut Check, spec: &TrafficPolicySpec) {
    check.at("targetRef", |check| target_ref(check, &spec.target_ref));
    if let Some(timeouts) = &spec.timeouts {
        check.at("timeouts", |check| {
            positive(check, "connect", timeouts.connect);
            positive(check, "idle", timeouts.idle);
            positive(check, "tcpIdle", timeouts.tcp_idle);
            if let (Some(request), Some(each)) = (timeouts.request, timeouts.per_try)
                && !request.is_zero()
                && each > request
            {
                check.fail("perTry", format!("must be at most the request's timeout, which is {request}"));
            }
        });
    }
    if let Some(policy) = &spec.retry {
        check.at("retry", |check| retry(check, policy));
    }
    if let Some(outlier) = &spec.outlier_detection {
        check.at("outlierDetection", |check| {
            positive(check, "baseEjection", outlier.base_ejection);
            ratio(check, "maxEjected", outlier.max_ejected);
        });
    }
    if let Some(limits) = &spec.limits {
        let all = [("connections", limits.connections), ("pending", limits.pending), ("requests", limits.requests)];
        check.at("limits", |check| {
            for (field, limit) in all {
                if limit == Some(0) {
                    check.fail(field, "must be at least 1");
                }
            }
        });
    }
}

fn retry(check: &mut Check, retry: &Retry) {
    if retry.attempts.is_some_and(|attempts| !(1..=MAX_ATTEMPTS).contains(&attempts)) {
        check.fail("attempts", format!("must be from 1 to {MAX_ATTEMPTS}, the first try included; 1 is no retry"));
    }
    if let Some(on) = &retry.on {
        if on.is_empty() {
            check.fail("retryOn", "must not be empty; `attempts: 1` switches retries off");
        }
        check.unique("retryOn", "", on, |condition| Some(*condition as u8));
    }
    statuses(check, "statusCodes", &retry.status_codes);
    if let Some(backoff) = &retry.backoff {
        let defaults = RetryPolicy::default();
        let base = backoff.base.map_or(defaults.backoff_base, Duration::std);
        let max = backoff.max.map_or(defaults.backoff_max, Duration::std);
        check.at("backoff", |check| {
            positive(check, "base", backoff.base);
            positive(check, "max", backoff.max);
            if base > max {
                check.fail("max", format!("must be at least base; they are {max:?} and {base:?}"));
            }
        });
    }
    if let Some(budget) = &retry.budget {
        check.at("budget", |check| {
            ratio(check, "ratio", budget.ratio);
            if budget.min_per_second.is_some_and(|least| least > 1_000_000) {
                check.fail("minPerSecond", "must be at most 1000000");
            }
        });
    }
}

fn positive(check: &mut Check, field: &str, duration: Option<Duration>) {
    if duration.is_some_and(Duration::is_zero) {
        check.fail(field, "must be more than 0s");
    }
}

fn ratio(check: &mut Check, field: &str, ratio: Option<f64>) {
    if ratio.is_some_and(|ratio| !(0.0..=1.0).contains(&ratio)) {
        check.fail(field, "must be a ratio from 0 to 1");
    }
}

fn target_ref(check: &mut Check, target: &PolicyTarget) {
    if target.kind != "Service" || target.group.as_deref().is_some_and(|group| !group.is_empty()) {
        let group = target.group.as_deref().unwrap_or_default();
        check.fail("kind", format!("must be Service (group \"\"), not {:?} of group {group:?}", target.kind));
    }
    check.at("name", |check| check.form(&target.name, names::label));
    if let Some(section) = &target.section_name {
        check.at("sectionName", |check| check.form(section, names::label));
    }
}

pub(super) fn authorization(check: &mut Check, spec: &AuthorizationPolicySpec) {
    match (&spec.selector, &spec.target_ref) {
        (None, None) => check.fail("", "selector or targetRef is required"),
        (Some(_), Some(_)) => check.fail("targetRef", "not together with selector"),
        (Some(selector), None) => labels(check, "selector.matchLabels", &selector.match_labels),
        (None, Some(target)) => check.at("targetRef", |check| target_ref(check, target)),
    }
    if spec.action == Action::Deny && spec.rules.is_empty() {
        check.fail("rules", "must have at least one entry with `action: Deny`");
    }
    check.at_most("rules", &spec.rules, MAX_RULES);
    check.unique("rules", "name", &spec.rules, |rule| rule.name.clone());
    check.each("rules", &spec.rules, rule);
}

fn rule(check: &mut Check, rule: &AuthorizationRule) {
    if let Some(name) = &rule.name {
        check.at("name", |check| check.form(name, names::label));
    }
    values(check, "from", rule.from.as_deref(), "would be nobody or anyone; leave it out for anyone", source);
    values(check, "to", rule.to.as_deref(), "would be nothing or everything; leave it out for everything", target);
}

/// Checks a list that may be absent but not empty.
fn values<T>(check: &mut Check, field: &str, list: Option<&[T]>, empty: &str, inner: impl FnMut(&mut Check, &T)) {
    let Some(list) = list else { return };
    if list.is_empty() {
        check.fail(field, format!("must not be empty: it {empty}"));
    }
    check.at_most(field, list, MAX_VALUES);
    check.each(field, list, inner);
}

fn source(check: &mut Check, source: &Source) {
    let given = [source.identities.is_some(), source.service_accounts.is_some(), source.namespaces.is_some()];
    match given.iter().filter(|given| **given).count() {
        0 => check.fail("", "must name identities, serviceAccounts or namespaces"),
        1 => {}
        _ => check.fail("", "must name only one of identities, serviceAccounts and namespaces; use an entry for each"),
    }
    const EMPTY: &str = "would be nobody or anyone";
    values(check, "identities", source.identities.as_deref(), EMPTY, |check, text| identity(check, text));
    values(check, "serviceAccounts", source.service_accounts.as_deref(), EMPTY, |check, text| {
        match text.split_once('/') {
            Some((namespace, account)) => {
                check.form(namespace, names::label);
                check.form(account, names::subdomain);
            }
            None => check.fail("", format!("{text:?} must be namespace/name")),
        }
    });
    values(check, "namespaces", source.namespaces.as_deref(), EMPTY, |check, text| check.form(text, names::label));
}

/// An exact ID, or a prefix that names the whole trust domain, so that it cannot reach into another one.
fn identity(check: &mut Check, text: &str) {
    let Some(prefix) = text.strip_suffix('*') else {
        if let Err(error) = Identity::parse(text) {
            check.fail("", format!("{text:?}: {error}"));
        }
        return;
    };
    if prefix.contains('*') {
        return check.fail("", "'*' may be only at the end");
    }
    let names_domain = prefix.strip_prefix("spiffe://").is_some_and(|rest| rest.contains('/'));
    if !names_domain {
        return check.fail("", "a prefix must name the whole trust domain, such as \"spiffe://weft.local/*\"");
    }
    if let Err(error) = Identity::parse(&format!("{prefix}x")) {
        check.fail("", format!("{text:?}: {error}"));
    }
}

fn target(check: &mut Check, target: &Target) {
    if target.methods.is_none() && target.paths.is_none() && target.ports.is_none() {
        check.fail("", "must name methods, paths or ports");
    }
    const EMPTY: &str = "would be nothing or everything; leave it out for everything";
    values(check, "methods", target.methods.as_deref(), EMPTY, |check, text| check.form(text, names::method));
    values(check, "paths", target.paths.as_deref(), EMPTY, |check, text| {
        let plain = text.strip_suffix('*').unwrap_or(text);
        if !plain.starts_with('/') {
            check.fail("", format!("{text:?} must start with '/'"));
        } else if plain.contains('*') {
            check.fail("", "'*' may be only at the end");
        } else if !names::is_path(plain) {
            check.fail("", format!("{text:?} has a character that is not allowed in a path (RFC 3986 §3.3)"));
        }
    });
    values(check, "ports", target.ports.as_deref(), EMPTY, |_, _| {});
}
