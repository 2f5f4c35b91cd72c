//! Inbound traffic of a workload: ports, mode and authorization, from AuthorizationPolicies and MeshConfig.
//! Invariant (BATTERY.md F10): a policy that is not understood is never wider than one that is. Validation refuses such
//! a policy before; here an allow rule with such a part matches nothing, and a deny rule everything.

use std::{collections::BTreeSet, num::NonZeroU16, sync::Arc};

use super::{ROOT_NAMESPACE, Requester, World, selects};
use crate::{
    api::{
        AuthorizationPolicy, Service,
        authorization_policy::{Action, AuthorizationRule, Source, Target},
        mesh_config::DefaultAuthorization,
        proxy_config::ProxyMode,
        service::TargetPort,
    },
    identity::{Identity, TrustDomain},
    listener::{Inbound, InboundPort, Protocol},
    names::RouteName,
    policy::{Authorization, Operation, PathPattern, Principal, Rule},
    route::{self, RouteTable, VirtualHost},
};

/// What of a workload a policy guards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Guards {
    Nothing,
    Everything,
    Port(NonZeroU16),
}

impl World {
    /// What arrives at this workload. `None` for a gateway, which has no workload.
    pub(super) fn inbound(&self, requester: &Requester) -> Option<Inbound> {
        if requester.mode == ProxyMode::Gateway {
            return None;
        }
        let (mode, access_log) = (self.inbound_mode(), self.access_log());
        let port = |port: Option<NonZeroU16>, protocol: Protocol| InboundPort {
            mode,
            protocol,
            routes: RouteName::Inbound(port),
            authorization: self.authorization(requester, port),
        };
        let declared = requester.ports.iter().map(|of| (of.port, port(Some(of.port), of.protocol)));
        let guarded = self.guarded_ports(requester).into_iter().map(|of| (of, port(Some(of), Protocol::Detect)));
        Some(Inbound { ports: guarded.chain(declared).collect(), default: port(None, Protocol::Detect), access_log })
    }

    /// The route table of a port of this workload: every request is delivered if it is authorized.
    pub(super) fn inbound_routes(&self, requester: &Requester, port: Option<NonZeroU16>) -> Option<RouteTable> {
        let known = |port: NonZeroU16| {
            requester.ports.iter().any(|of| of.port == port) || self.guarded_ports(requester).contains(&port)
        };
        if requester.mode == ProxyMode::Gateway || port.is_some_and(|port| !known(port)) {
            return None;
        }
        let name = RouteName::Inbound(port);
        let rule =
            route::Rule::all(&format!("{}/{}#inbound", requester.namespace, requester.name), route::Action::Deliver);
        let host = VirtualHost { name: name.to_string().into(), domains: vec!["*".into()], rules: vec![rule] };
        Some(RouteTable { name, hosts: vec![host], authorization: self.authorization(requester, port) })
    }

    /// Ports that a policy guards by themselves, declared or not.
    fn guarded_ports(&self, requester: &Requester) -> BTreeSet<NonZeroU16> {
        let guarded = self.policies(requester).filter_map(|policy| match self.guards(policy, requester) {
            Guards::Port(port) => Some(port),
            Guards::Nothing | Guards::Everything => None,
        });
        guarded.collect()
    }

    /// The policies that can concern this workload: those of the root namespace first.
    fn policies(&self, requester: &Requester) -> impl Iterator<Item = &AuthorizationPolicy> {
        let own = (requester.namespace != ROOT_NAMESPACE).then(|| self.objects.authorization_of(&requester.namespace));
        self.objects.authorization_of(ROOT_NAMESPACE).chain(own.into_iter().flatten())
    }

    /// Whether a policy has a part in what arrives at this workload.
    pub fn policy_concerns(&self, policy: &AuthorizationPolicy, requester: &Requester) -> bool {
        let own = [ROOT_NAMESPACE, &requester.namespace].contains(&policy.metadata.namespace.as_str());
        own && requester.mode == ProxyMode::Sidecar && self.guards(policy, requester) != Guards::Nothing
    }

    fn authorization(&self, requester: &Requester, port: Option<NonZeroU16>) -> Authorization {
        let mut out = Authorization::default();
        for policy in self.policies(requester) {
            let concerned = match self.guards(policy, requester) {
                Guards::Nothing => false,
                Guards::Everything => true,
                Guards::Port(guarded) => port == Some(guarded),
            };
            if concerned {
                let rules = rules(policy, self.objects.trust_domain());
                match policy.spec.action {
                    Action::Allow => out.allow.get_or_insert_default().extend(rules),
                    Action::Deny => out.deny.extend(rules),
                }
            }
        }
        if out.allow.is_none() {
            out.allow = match self.objects.mesh().default_authorization.unwrap_or_default() {
                DefaultAuthorization::Allow => None,
                DefaultAuthorization::Deny => Some(Vec::new()),
                DefaultAuthorization::Authenticated => Some(vec![Rule {
                    name: format!("{ROOT_NAMESPACE}/mesh-config#authenticated").into(),
                    from: vec![of_mesh(self.objects.trust_domain())],
                    to: vec![Operation::default()],
                }]),
            };
        }
        out
    }

    fn guards(&self, policy: &AuthorizationPolicy, requester: &Requester) -> Guards {
        if let Some(target) = &policy.spec.target_ref {
            let service = self.objects.service(&policy.metadata.namespace, &target.name);
            return service.map_or(Guards::Nothing, |service| part(service, target.section_name.as_deref(), requester));
        }
        match &policy.spec.selector {
            None => Guards::Everything,
            Some(selector) if selector.matches(&requester.labels) => Guards::Everything,
            Some(_) => Guards::Nothing,
        }
    }
}

/// What a policy for a service guards of a workload. A port name that the service or the workload does not have guards
/// everything: narrower than what was meant, never wider.
fn part(service: &Service, section: Option<&str>, requester: &Requester) -> Guards {
    if service.metadata.namespace != requester.namespace || !selects(&service.spec.selector, &requester.labels) {
        return Guards::Nothing;
    }
    let Some(section) = section else { return Guards::Everything };
    let port = service.spec.port_named(section).and_then(|port| match port.target() {
        TargetPort::Number(port) => Some(port),
        TargetPort::Name(name) => requester.ports.iter().find(|port| port.name == name).map(|port| port.port),
    });
    port.map_or(Guards::Everything, Guards::Port)
}

/// The rules of a policy, named `<namespace>/<policy>#<rule>`.
fn rules(policy: &AuthorizationPolicy, domain: &TrustDomain) -> Vec<Rule> {
    let wide = policy.spec.action == Action::Deny;
    let named = |(index, rule): (usize, &AuthorizationRule)| {
        let number = index.to_string();
        let label = rule.name.as_deref().unwrap_or(&number);
        let name: Arc<str> = format!("{}/{}#{label}", policy.metadata.namespace, policy.metadata.name).into();
        Rule { name, from: principals(rule.from.as_deref(), wide, domain), to: operations(rule.to.as_deref(), wide) }
    };
    policy.spec.rules.iter().enumerate().map(named).collect()
}

/// The callers of a rule. `wide`: a rule without callers means every caller (a deny rule), else none.
fn principals(sources: Option<&[Source]>, wide: bool, domain: &TrustDomain) -> Vec<Principal> {
    let Some(sources) = sources else { return vec![Principal::Any] };
    let mut out = Vec::new();
    let mut unclear = sources.is_empty();
    for source in sources {
        let before = out.len();
        for text in source.identities.iter().flatten() {
            out.extend(match text.strip_suffix('*') {
                Some("") => Some(of_mesh(domain)),
                Some(prefix) => Some(Principal::Prefix(prefix.into())),
                None => Identity::parse(text).ok().map(Principal::Identity),
            });
        }
        for account in source.service_accounts.iter().flatten() {
            let identity = account.split_once('/').map(|(namespace, name)| Identity::new(domain, namespace, name));
            out.extend(identity.and_then(Result::ok).map(Principal::Identity));
        }
        for namespace in source.namespaces.iter().flatten().filter(|namespace| !namespace.is_empty()) {
            out.push(Principal::Prefix(format!("spiffe://{}/ns/{namespace}/", domain.as_str()).into()));
        }
        unclear |= out.len() == before;
    }
    if unclear && wide { vec![Principal::Any] } else { out }
}

/// Every caller of the mesh. A root may have signed for other trust domains too: their callers are none of ours.
fn of_mesh(domain: &TrustDomain) -> Principal {
    Principal::Prefix(format!("spiffe://{}/", domain.as_str()).into())
}

/// What a rule is about. `wide` as for [`principals`].
fn operations(targets: Option<&[Target]>, wide: bool) -> Vec<Operation> {
    let Some(targets) = targets else { return vec![Operation::default()] };
    let unclear = |target: &Target| {
        let Target { methods, paths, ports } = target;
        (methods.is_none() && paths.is_none() && ports.is_none())
            || methods.as_ref().is_some_and(Vec::is_empty)
            || paths.as_ref().is_some_and(Vec::is_empty)
            || ports.as_ref().is_some_and(Vec::is_empty)
    };
    if wide && (targets.is_empty() || targets.iter().any(unclear)) {
        return vec![Operation::default()];
    }
    let clear = targets.iter().filter(|target| !unclear(target));
    clear
        .map(|target| Operation {
            methods: target.methods.iter().flatten().map(|method| method.as_str().into()).collect(),
            paths: target.paths.iter().flatten().map(|path| pattern(path)).collect(),
            ports: target.ports.iter().flatten().map(|port| port.get()).collect(),
        })
        .collect()
}

fn pattern(path: &str) -> PathPattern {
    match path.strip_suffix('*') {
        Some(prefix) => PathPattern::Prefix(prefix.into()),
        None => PathPattern::Exact(path.into()),
    }
}
