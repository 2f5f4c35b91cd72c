//! Deny rules that their callers can step around: a rule that names identities does not match a caller without one, and a
//! port that takes plaintext takes such callers.
//! Shape: the inbound listener and its route tables in, names of rules out. Pure.

use std::{collections::BTreeSet, sync::Arc};

use weft_core::{
    listener::{Inbound, InboundMode},
    names::RouteName,
    policy::{Authorization, Principal, Rule},
    route::RouteTable,
};

/// The rules of ports that take plaintext which deny by identity, where a caller without one is let in.
pub(super) fn evadable<'a>(
    inbound: &'a Inbound,
    table: impl Fn(&RouteName) -> Option<&'a RouteTable>,
) -> BTreeSet<Arc<str>> {
    let mut names = BTreeSet::new();
    for port in inbound.ports.values().chain([&inbound.default]) {
        if port.mode == InboundMode::Strict {
            continue;
        }
        for policy in [Some(&port.authorization), table(&port.routes).map(|table| &table.authorization)] {
            names.extend(policy.into_iter().flat_map(rules));
        }
    }
    names
}

fn rules(policy: &Authorization) -> impl Iterator<Item = Arc<str>> {
    let strangers = policy.allow.as_ref().is_none_or(|allow| allow.iter().any(takes_strangers));
    policy.deny.iter().filter(move |rule| strangers && !takes_strangers(rule)).map(|rule| rule.name.clone())
}

/// Whether a caller without an identity can match.
fn takes_strangers(rule: &Rule) -> bool {
    rule.from.contains(&Principal::Any)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use weft_core::{
        listener::{AccessLog, InboundPort, Protocol},
        policy::Operation,
    };

    use super::*;

    fn rule(name: &str, from: Principal) -> Rule {
        Rule { name: name.into(), from: vec![from], to: vec![Operation::default()] }
    }

    fn found(mode: InboundMode, allow: Option<Vec<Rule>>) -> Vec<String> {
        let deny = vec![
            rule("shop/bank#0", Principal::Prefix("spiffe://m/ns/bank/".into())),
            rule("shop/all#0", Principal::Any),
        ];
        let authorization = Authorization { deny, allow };
        let routes = RouteName::Inbound(None);
        let table = RouteTable { name: routes.clone(), hosts: vec![], authorization };
        let default = InboundPort { mode, protocol: Protocol::Detect, routes, authorization: Authorization::default() };
        let inbound = Inbound { ports: BTreeMap::new(), default, access_log: AccessLog::Off };
        evadable(&inbound, |_| Some(&table)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_deny_rule_by_identity_can_be_stepped_around_where_plaintext_is_let_in() {
        assert_eq!(found(InboundMode::Permissive, None), ["shop/bank#0"]);
        assert_eq!(found(InboundMode::Permissive, Some(vec![rule("a", Principal::Any)])), ["shop/bank#0"]);
    }

    #[test]
    fn it_cannot_where_plaintext_is_refused_or_an_identity_is_needed_anyway() {
        assert_eq!(found(InboundMode::Strict, None), [""; 0]);
        assert_eq!(found(InboundMode::Permissive, Some(vec![rule("a", Principal::Authenticated)])), [""; 0]);
    }
}
