//! Policies <-> RBAC.
//!
//! | model | xDS |
//! |---|---|
//! | `Authorization.deny` | a filter [`DENY_FILTER`], action DENY; left out when empty |
//! | `Authorization.allow` | a filter [`ALLOW_FILTER`], action ALLOW; left out when `None`; without policies when empty |
//! | `Rule.name` | the key of `policies`, after six digits and a space that keep the order |
//! | `Rule.from` | `principals`; empty: `not_id { any }` |
//! | `Principal` | `any`, `authenticated` without name, with an exact one, with a prefix |
//! | `Rule.to` | `permissions`; empty: `not_rule { any }` |
//! | `Operation` | `any`, or `and_rules` of one `or_rules` per part: `header` `:method` exact, `url_path` exact or prefix, `destination_port` |
//!
//! Read from others: also nested `or_rules` and `or_ids`, `and_rules` whose parts are about different things, and single
//! conditions. Everything else is refused, because a rule that is left out or made wider is a hole.

use weft_proto::envoy::{
    config::{
        rbac::v3::{Permission, Policy, Principal as PrincipalMessage, Rbac, permission, principal, rbac::Action},
        route::v3::{HeaderMatcher, header_matcher::HeaderMatchSpecifier},
    },
    r#type::matcher::v3::{PathMatcher, StringMatcher, string_matcher::MatchPattern},
};

use super::error::{At, Errors, Reason};
use crate::{
    identity::Identity,
    policy::{Authorization, Operation, PathPattern, Principal, Rule},
};

/// The name of the filter that denies.
pub(super) const DENY_FILTER: &str = "weft.rbac.deny";
/// The name of the filter that allows.
pub(super) const ALLOW_FILTER: &str = "weft.rbac.allow";

/// Most operations that one permission may unfold to.
const MAX_OPERATIONS: usize = 256;

/// The rules of both filters, deny first.
pub(super) fn encode(authorization: &Authorization) -> [(&'static str, Option<Rbac>); 2] {
    let deny = (!authorization.deny.is_empty()).then(|| rbac(Action::Deny, &authorization.deny));
    let allow = authorization.allow.as_deref().map(|rules| rbac(Action::Allow, rules));
    [(DENY_FILTER, deny), (ALLOW_FILTER, allow)]
}

fn rbac(action: Action, rules: &[Rule]) -> Rbac {
    let policies = rules.iter().enumerate().map(|(index, rule)| (format!("{index:06} {}", rule.name), policy(rule)));
    Rbac { action: action.into(), policies: policies.collect(), ..Rbac::default() }
}

fn policy(rule: &Rule) -> Policy {
    let mut permissions: Vec<Permission> = rule.to.iter().map(encode_operation).collect();
    if permissions.is_empty() {
        permissions.push(permit(permission::Rule::NotRule(Box::new(permit(permission::Rule::Any(true))))));
    }
    let mut principals: Vec<PrincipalMessage> = rule.from.iter().map(encode_principal).collect();
    if principals.is_empty() {
        principals.push(caller(principal::Identifier::NotId(Box::new(caller(principal::Identifier::Any(true))))));
    }
    Policy { permissions, principals, ..Policy::default() }
}

fn encode_principal(model: &Principal) -> PrincipalMessage {
    let authenticated = |name: Option<MatchPattern>| {
        let principal_name =
            name.map(|pattern| StringMatcher { match_pattern: Some(pattern), ..StringMatcher::default() });
        principal::Identifier::Authenticated(principal::Authenticated { principal_name })
    };
    caller(match model {
        Principal::Any => principal::Identifier::Any(true),
        Principal::Authenticated => authenticated(None),
        Principal::Identity(identity) => authenticated(Some(MatchPattern::Exact(identity.as_str().into()))),
        // An empty prefix is not allowed on the wire, and means the same.
        Principal::Prefix(prefix) if prefix.is_empty() => authenticated(None),
        Principal::Prefix(prefix) => authenticated(Some(MatchPattern::Prefix(prefix.as_ref().into()))),
    })
}

fn encode_operation(operation: &Operation) -> Permission {
    let methods = operation.methods.iter().map(|method| permission::Rule::Header(method_matcher(method)));
    let paths = operation.paths.iter().map(|path| {
        let pattern = match path {
            PathPattern::Exact(path) => MatchPattern::Exact(path.as_ref().into()),
            PathPattern::Prefix(path) => MatchPattern::Prefix(path.as_ref().into()),
        };
        let path = StringMatcher { match_pattern: Some(pattern), ..StringMatcher::default() };
        permission::Rule::UrlPath(PathMatcher { path: Some(path) })
    });
    let ports = operation.ports.iter().map(|port| permission::Rule::DestinationPort(u32::from(*port)));
    let parts: [Vec<Permission>; 3] =
        [methods.map(permit).collect(), paths.map(permit).collect(), ports.map(permit).collect()];
    let rules: Vec<Permission> = parts
        .into_iter()
        .filter(|rules| !rules.is_empty())
        .map(|rules| permit(permission::Rule::OrRules(permission::Set { rules })))
        .collect();
    permit(if rules.is_empty() {
        permission::Rule::Any(true)
    } else {
        permission::Rule::AndRules(permission::Set { rules })
    })
}

/// A header matcher for exactly this method.
pub(super) fn method_matcher(method: &str) -> HeaderMatcher {
    let exact = StringMatcher { match_pattern: Some(MatchPattern::Exact(method.into())), ..StringMatcher::default() };
    HeaderMatcher {
        name: ":method".into(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(exact)),
        ..HeaderMatcher::default()
    }
}

fn permit(rule: permission::Rule) -> Permission {
    Permission { rule: Some(rule), ..Permission::default() }
}

fn caller(identifier: principal::Identifier) -> PrincipalMessage {
    PrincipalMessage { identifier: Some(identifier), ..PrincipalMessage::default() }
}

/// The rules of one filter, with the action that it must have.
pub(super) fn read(rbac: &Rbac, action: Action, at: &At<'_>, errors: &mut Errors) -> Option<Vec<Rule>> {
    if rbac.action != i32::from(action) {
        errors.add(
            &at.field("action"),
            Reason::expected(rbac.action, if action == Action::Deny { "DENY" } else { "ALLOW" }),
        );
    }
    collect(rbac.policies.iter().map(|(key, policy)| read_policy(key, policy, &at.key("policies", key), errors)))
}

fn read_policy(key: &str, policy: &Policy, at: &At<'_>, errors: &mut Errors) -> Option<Rule> {
    if policy.permissions.is_empty() {
        errors.add(&at.field("permissions"), Reason::Required);
    }
    if policy.principals.is_empty() {
        errors.add(&at.field("principals"), Reason::Required);
    }
    let to = policy.permissions.iter().enumerate();
    let to = collect(to.map(|(index, rule)| read_permission(rule, &at.index("permissions", index), errors)));
    let from = policy.principals.iter().enumerate();
    let from = collect(from.map(|(index, one)| read_principal(one, &at.index("principals", index), errors)));
    Some(Rule { name: rule_name(key).into(), from: from?.concat(), to: to?.concat() })
}

/// The name of a rule: the key without the digits that keep the order.
fn rule_name(key: &str) -> &str {
    match key.split_once(' ') {
        Some((order, name)) if order.len() >= 6 && order.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => key,
    }
}

fn read_principal(message: &PrincipalMessage, at: &At<'_>, errors: &mut Errors) -> Option<Vec<Principal>> {
    use principal::Identifier;
    match &message.identifier {
        None => errors.refuse(at, Reason::Required),
        Some(Identifier::Any(true)) => Some(vec![Principal::Any]),
        Some(Identifier::Any(false)) => errors.refuse(&at.field("any"), Reason::expected(false, "true")),
        Some(Identifier::NotId(inner)) => match inner.identifier {
            Some(Identifier::Any(true)) => Some(Vec::new()),
            _ => errors.refuse(&at.field("not_id"), Reason::NotSupported),
        },
        Some(Identifier::OrIds(set)) => read_principals(set, "or_ids", at, errors),
        Some(Identifier::AndIds(set)) if set.ids.len() <= 1 => read_principals(set, "and_ids", at, errors),
        Some(Identifier::AndIds(_)) => errors.refuse(&at.field("and_ids"), Reason::NotSupported),
        Some(Identifier::Authenticated(authenticated)) => {
            let at = at.field("authenticated");
            let at = at.field("principal_name");
            let Some(name) = &authenticated.principal_name else { return Some(vec![Principal::Authenticated]) };
            match plain_pattern(name, &at, errors)? {
                MatchPattern::Exact(text) => match Identity::parse(text) {
                    Ok(identity) => Some(vec![Principal::Identity(identity)]),
                    Err(error) => errors.refuse(&at.field("exact"), error.into()),
                },
                MatchPattern::Prefix(text) if text.is_empty() => errors.refuse(&at.field("prefix"), Reason::Required),
                MatchPattern::Prefix(text) => Some(vec![Principal::Prefix(text.as_str().into())]),
                MatchPattern::Suffix(_) | MatchPattern::SafeRegex(_) | MatchPattern::Contains(_) => {
                    errors.refuse(&at, Reason::NotSupported)
                }
            }
        }
    }
}

fn read_principals(set: &principal::Set, name: &str, at: &At<'_>, errors: &mut Errors) -> Option<Vec<Principal>> {
    let at = at.field(name);
    if set.ids.is_empty() {
        return errors.refuse(&at.field("ids"), Reason::Required);
    }
    let ids = set.ids.iter().enumerate().map(|(index, one)| read_principal(one, &at.index("ids", index), errors));
    Some(collect(ids)?.concat())
}

/// The operations that a permission unfolds to, any of which may match; none: it never matches.
fn read_permission(message: &Permission, at: &At<'_>, errors: &mut Errors) -> Option<Vec<Operation>> {
    use permission::Rule;
    match &message.rule {
        None => errors.refuse(at, Reason::Required),
        Some(Rule::Any(true)) => Some(vec![Operation::default()]),
        Some(Rule::Any(false)) => errors.refuse(&at.field("any"), Reason::expected(false, "true")),
        Some(Rule::NotRule(inner)) => match inner.rule {
            Some(Rule::Any(true)) => Some(Vec::new()),
            _ => errors.refuse(&at.field("not_rule"), Reason::NotSupported),
        },
        Some(Rule::Header(header)) => {
            let method = read_method(header, &at.field("header"), errors)?;
            Some(vec![Operation { methods: vec![method.into()], ..Operation::default() }])
        }
        Some(Rule::UrlPath(path)) => {
            let path = read_path(path, &at.field("url_path"), errors)?;
            Some(vec![Operation { paths: vec![path], ..Operation::default() }])
        }
        Some(Rule::DestinationPort(port)) => match u16::try_from(*port) {
            Ok(port) => Some(vec![Operation { ports: vec![port], ..Operation::default() }]),
            Err(_) => errors.refuse(&at.field("destination_port"), Reason::expected(port, "a port")),
        },
        Some(Rule::OrRules(set)) => Some(merge_alternatives(read_set(set, &at.field("or_rules"), errors)?.concat())),
        Some(Rule::AndRules(set)) => {
            let at = at.field("and_rules");
            read_set(set, &at, errors)?.into_iter().try_fold(vec![Operation::default()], |all, part| {
                intersect(&all, &part).or_else(|| errors.refuse(&at, Reason::NotSupported))
            })
        }
    }
}

fn read_set(set: &permission::Set, at: &At<'_>, errors: &mut Errors) -> Option<Vec<Vec<Operation>>> {
    if set.rules.is_empty() {
        return errors.refuse(&at.field("rules"), Reason::Required);
    }
    collect(set.rules.iter().enumerate().map(|(index, rule)| read_permission(rule, &at.index("rules", index), errors)))
}

/// Alternatives that are all about the same one part are one operation.
fn merge_alternatives(operations: Vec<Operation>) -> Vec<Operation> {
    let only = |operation: &Operation| {
        let parts = (!operation.methods.is_empty(), !operation.paths.is_empty(), !operation.ports.is_empty());
        matches!(parts, (true, false, false) | (false, true, false) | (false, false, true)).then_some(parts)
    };
    let Some(part) = operations.first().and_then(only) else { return operations };
    if !operations.iter().all(|operation| only(operation) == Some(part)) {
        return operations;
    }
    let mut merged = Operation::default();
    for operation in operations {
        merged.methods.extend(operation.methods);
        merged.paths.extend(operation.paths);
        merged.ports.extend(operation.ports);
    }
    vec![merged]
}

/// What matches both. `None`: both are about the same part, which an [`Operation`] cannot say, or there are too many.
fn intersect(left: &[Operation], right: &[Operation]) -> Option<Vec<Operation>> {
    if left.len().saturating_mul(right.len()) > MAX_OPERATIONS {
        return None;
    }
    let mut both = Vec::new();
    for a in left {
        for b in right {
            both.push(Operation {
                methods: either(&a.methods, &b.methods)?,
                paths: either(&a.paths, &b.paths)?,
                ports: either(&a.ports, &b.ports)?,
            });
        }
    }
    Some(both)
}

fn either<T: Clone>(a: &[T], b: &[T]) -> Option<Vec<T>> {
    match (a, b) {
        (a, []) => Some(a.to_vec()),
        ([], b) => Some(b.to_vec()),
        _ => None,
    }
}

/// The method that a header matcher asks for; anything but an exact `:method` is refused.
pub(super) fn read_method<'a>(header: &'a HeaderMatcher, at: &At<'_>, errors: &mut Errors) -> Option<&'a str> {
    if header.name != ":method" {
        return errors.refuse(&at.field("name"), Reason::expected(&header.name, ":method"));
    }
    if header.invert_match || header.treat_missing_header_as_empty {
        return errors.refuse(at, Reason::NotSupported);
    }
    match &header.header_match_specifier {
        Some(HeaderMatchSpecifier::ExactMatch(method)) if !method.is_empty() => Some(method),
        Some(HeaderMatchSpecifier::StringMatch(StringMatcher {
            match_pattern: Some(MatchPattern::Exact(method)),
            ignore_case: false,
            ..
        })) if !method.is_empty() => Some(method),
        _ => errors.refuse(at, Reason::NotSupported),
    }
}

fn read_path(matcher: &PathMatcher, at: &At<'_>, errors: &mut Errors) -> Option<PathPattern> {
    let at = at.field("path");
    let Some(path) = &matcher.path else { return errors.refuse(&at, Reason::Required) };
    match plain_pattern(path, &at, errors)? {
        MatchPattern::Exact(path) => Some(PathPattern::Exact(path.as_str().into())),
        MatchPattern::Prefix(path) => Some(PathPattern::Prefix(path.as_str().into())),
        MatchPattern::Suffix(_) | MatchPattern::SafeRegex(_) | MatchPattern::Contains(_) => {
            errors.refuse(&at, Reason::NotSupported)
        }
    }
}

fn plain_pattern<'a>(matcher: &'a StringMatcher, at: &At<'_>, errors: &mut Errors) -> Option<&'a MatchPattern> {
    if matcher.ignore_case {
        errors.add(&at.field("ignore_case"), Reason::NotSupported);
        return None;
    }
    match &matcher.match_pattern {
        Some(pattern) => Some(pattern),
        None => errors.refuse(at, Reason::Required),
    }
}

/// All or nothing, but every item is looked at, so that every error is reported.
pub(super) fn collect<T>(items: impl Iterator<Item = Option<T>>) -> Option<Vec<T>> {
    let mut all = Some(Vec::new());
    for item in items {
        match (&mut all, item) {
            (Some(all), Some(item)) => all.push(item),
            (_, None) => all = None,
            (None, Some(_)) => {}
        }
    }
    all
}
