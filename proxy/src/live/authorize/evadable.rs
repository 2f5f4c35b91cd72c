//! Deny rules that callers can evade: a rule that names identities does not match a caller without one, and a port that takes
//! plaintext takes such callers.
//! Shape: the inbound listener and its route tables in, names of rules out. [`Reported`] warns of them, once for each set.

use std::{collections::BTreeSet, sync::Arc};

use parking_lot::Mutex;
use weft_core::{
    listener::{Inbound, InboundMode, Listener},
    names::{ListenerName, RouteName},
    policy::{Authorization, Principal, Rule},
    route::RouteTable,
    snapshot::Resources,
};

/// The evadable rules that were last warned of.
#[derive(Debug, Default)]
pub(in crate::live) struct Reported(Mutex<BTreeSet<Arc<str>>>);

impl Reported {
    /// Warns of the evadable rules of a model, unless they are those that it warned of last.
    pub(in crate::live) fn report(&self, resources: &Resources) {
        let found = match resources.listeners.get(&ListenerName::Inbound) {
            Some(Listener::Inbound(inbound)) => evadable(inbound, |name| resources.routes.get(name)),
            Some(Listener::OutboundDefault(_) | Listener::Outbound(_) | Listener::Gateway(_)) | None => BTreeSet::new(),
        };
        let mut known = self.0.lock();
        if *known == found {
            return;
        }
        if !found.is_empty() {
            let rules = found.iter().map(AsRef::as_ref).collect::<Vec<&str>>().join(", ");
            tracing::warn!(
                rules,
                "deny rules by identity can be stepped around: this workload takes plaintext, whose callers have no \
                 identity; make inbound strict, or allow by identity"
            );
        }
        *known = found;
    }
}

/// The deny rules by identity on ports that take plaintext, where a caller without an identity is let in.
fn evadable<'a>(inbound: &'a Inbound, table: impl Fn(&RouteName) -> Option<&'a RouteTable>) -> BTreeSet<Arc<str>> {
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
