//! Policies to the wire.

use weft_proto::envoy::{
    config::{
        rbac::v3::{Permission, Policy, Principal as PrincipalMessage, Rbac, permission, principal, rbac::Action},
        route::v3::{HeaderMatcher, header_matcher::HeaderMatchSpecifier},
    },
    r#type::matcher::v3::{PathMatcher, StringMatcher, string_matcher::MatchPattern},
};

use super::{ALLOW_FILTER, DENY_FILTER};
use crate::policy::{Authorization, Operation, PathPattern, Principal, Rule};

/// The rules of both filters, deny first.
pub(in crate::wire) fn encode(authorization: &Authorization) -> [(&'static str, Option<Rbac>); 2] {
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
pub(in crate::wire) fn method_matcher(method: &str) -> HeaderMatcher {
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
