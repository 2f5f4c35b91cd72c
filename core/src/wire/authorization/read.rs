//! Policies from the wire.

use weft_proto::envoy::{
    config::{
        rbac::v3::{Permission, Policy, Principal as PrincipalMessage, Rbac, permission, principal, rbac::Action},
        route::v3::{HeaderMatcher, header_matcher::HeaderMatchSpecifier},
    },
    r#type::matcher::v3::{PathMatcher, StringMatcher, string_matcher::MatchPattern},
};

use crate::{
    identity::Identity,
    policy::{Operation, PathPattern, Principal, Rule},
    wire::{
        error::{At, Errors, Reason},
        read::collect,
    },
};

/// Most operations that one permission may unfold to.
const MAX_OPERATIONS: usize = 256;

/// The rules of one filter, with the action that it must have.
pub(in crate::wire) fn read(rbac: &Rbac, action: Action, at: &At<'_>, errors: &mut Errors) -> Option<Vec<Rule>> {
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
pub(in crate::wire) fn read_method<'a>(header: &'a HeaderMatcher, at: &At<'_>, errors: &mut Errors) -> Option<&'a str> {
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
