//! Authorization: which callers may do what at a workload.
//! Shape: a [`Request`] in, a [`Decision`] out that names the rule. Deny wins over allow.
//! An [`Authorization`] is the model and looks at every rule; an [`Engine`] is one compiled for requests, with the same decisions.
//! Spec: Envoy RBAC (gRFC A41): two filters, the first denies, the second allows.
//! Invariant: a caller without a verified identity matches no rule that names an identity or a namespace.

mod engine;

use std::sync::Arc;

use serde::Serialize;

pub use self::engine::Engine;
use crate::identity::Identity;

/// The authorization of one port.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Authorization {
    /// Refused when any of these matches.
    pub deny: Vec<Rule>,
    /// `None`: everything else is allowed. Otherwise allowed only when one of these matches, so an empty list
    /// refuses all.
    pub allow: Option<Vec<Rule>>,
}

/// One rule of a policy.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rule {
    /// `<namespace>/<policy>#<rule>`: what a denial names.
    pub name: Arc<str>,
    /// The callers; one of them must match.
    pub from: Vec<Principal>,
    /// The operations; one of them must match.
    pub to: Vec<Operation>,
}

/// A caller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Principal {
    /// Anyone, with or without an identity.
    Any,
    /// Anyone with a verified identity. From other control planes only, and see [`Authorization::confine`].
    Authenticated,
    /// This identity.
    Identity(Identity),
    /// Every identity that starts with this text.
    Prefix(Arc<str>),
}

/// What a caller does. An empty list matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Operation {
    /// HTTP methods, compared exactly.
    pub methods: Vec<Arc<str>>,
    /// Paths without the query.
    pub paths: Vec<PathPattern>,
    /// Destination ports.
    pub ports: Vec<u16>,
}

/// A path of an operation, compared octet by octet with the path as it is sent and with each other way in which an
/// application may read it (the proxy's `http::path`: escapes decoded, slashes merged, `;parameters` left out).
/// A deny rule denies when one of them matches; an allow rule has to match all. So an exact path with an escaped printable
/// character or with `;` allows nothing by itself: its other reading has to be allowed too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum PathPattern {
    /// The whole path.
    Exact(Arc<str>),
    /// Every path that starts with this text.
    Prefix(Arc<str>),
}

/// A request or connection, as far as rules look at it.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The caller's verified identity.
    pub identity: Option<&'a Identity>,
    /// The destination port.
    pub port: u16,
    /// Method and path (without the query) of an HTTP request; `None` for a TCP connection.
    pub http: Option<(&'a str, &'a str)>,
}

/// The outcome of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision<'a> {
    /// Let it pass; the rule that allowed it, if one was needed.
    Allow(Option<&'a str>),
    /// Refuse it: this rule denies it.
    DeniedBy(&'a str),
    /// Refuse it: no rule allows it.
    NotAllowed,
}

impl Authorization {
    /// Decides on one request or connection. Cost: linear in the rules; [`Engine::check`] gives the same decision for requests.
    /// A TCP connection has no method and path: an allow rule that asks for them does not match it, a deny rule
    /// does (as in Istio: never wider).
    pub fn check(&self, request: &Request<'_>) -> Decision<'_> {
        if let Some(rule) = self.deny.iter().find(|rule| rule.matches(request, true)) {
            return Decision::DeniedBy(&rule.name);
        }
        match &self.allow {
            None => Decision::Allow(None),
            Some(rules) => match rules.iter().find(|rule| rule.matches(request, false)) {
                Some(rule) => Decision::Allow(Some(&rule.name)),
                None => Decision::NotAllowed,
            },
        }
    }

    /// Whether any rule asks for a path.
    pub fn reads_paths(&self) -> bool {
        let mut rules = self.deny.iter().chain(self.allow.iter().flatten());
        rules.any(|rule| rule.to.iter().any(|operation| !operation.paths.is_empty()))
    }

    /// Reads [`Principal::Authenticated`] in rules that allow as every identity of this trust domain: others may have the same
    /// root. A rule that denies stays as wide as it is.
    pub fn confine(&mut self, trust_domain: &str) {
        let callers = self.allow.iter_mut().flatten().flat_map(|rule| &mut rule.from);
        for caller in callers.filter(|caller| **caller == Principal::Authenticated) {
            *caller = Principal::Prefix(format!("spiffe://{trust_domain}/").into());
        }
    }

    /// Whether everything is allowed without a look at the request.
    pub fn allows_all(&self) -> bool {
        self.deny.is_empty() && self.allow.is_none()
    }
}

impl Rule {
    fn matches(&self, request: &Request<'_>, unknown_http: bool) -> bool {
        self.from.iter().any(|principal| principal.matches(request.identity))
            && self.to.iter().any(|operation| operation.matches(request, unknown_http))
    }
}

impl Principal {
    fn matches(&self, identity: Option<&Identity>) -> bool {
        match (self, identity) {
            (Self::Any, _) | (Self::Authenticated, Some(_)) => true,
            (Self::Identity(wanted), Some(identity)) => wanted == identity,
            (Self::Prefix(prefix), Some(identity)) => identity.as_str().starts_with(prefix.as_ref()),
            (Self::Authenticated | Self::Identity(_) | Self::Prefix(_), None) => false,
        }
    }
}

impl Operation {
    fn matches(&self, request: &Request<'_>, unknown_http: bool) -> bool {
        let http = match request.http {
            Some((method, path)) => {
                self.takes_method(method) && (self.paths.is_empty() || self.paths.iter().any(|p| p.matches(path)))
            }
            None => (self.methods.is_empty() && self.paths.is_empty()) || unknown_http,
        };
        http && self.takes_port(request.port)
    }

    fn takes_method(&self, method: &str) -> bool {
        self.methods.is_empty() || self.methods.iter().any(|wanted| wanted.as_ref() == method)
    }

    fn takes_port(&self, port: u16) -> bool {
        self.ports.is_empty() || self.ports.contains(&port)
    }
}

impl PathPattern {
    fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(wanted) => wanted.as_ref() == path,
            Self::Prefix(prefix) => path.starts_with(prefix.as_ref()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(account: &str) -> Identity {
        Identity::parse(&format!("spiffe://weft.local/ns/shop/sa/{account}")).unwrap()
    }

    fn rule(name: &str, from: Vec<Principal>, to: Operation) -> Rule {
        Rule { name: name.into(), from, to: vec![to] }
    }

    #[test]
    fn deny_wins_and_names_its_rule() {
        let policy = Authorization {
            deny: vec![rule("shop/no-user#0", vec![Principal::Identity(id("user"))], Operation::default())],
            allow: Some(vec![rule("shop/all#0", vec![Principal::Authenticated], Operation::default())]),
        };
        let (user, order) = (id("user"), id("order"));
        let ask = |identity| policy.check(&Request { identity, port: 80, http: Some(("GET", "/")) });
        assert_eq!(ask(Some(&user)), Decision::DeniedBy("shop/no-user#0"));
        assert_eq!(ask(Some(&order)), Decision::Allow(Some("shop/all#0")));
        assert_eq!(ask(None), Decision::NotAllowed);
    }

    /// (20.37)
    #[test]
    fn authenticated_is_confined_to_a_trust_domain_where_it_allows_and_not_where_it_denies() {
        let all = || rule("all", vec![Principal::Authenticated], Operation::default());
        let other = Identity::parse("spiffe://weft.local.evil/ns/shop/sa/user").unwrap();
        let ask = |policy: &Authorization, identity: Option<&Identity>| {
            matches!(policy.check(&Request { identity, port: 80, http: None }), Decision::Allow(_))
        };
        let mut allow = Authorization { deny: vec![], allow: Some(vec![all()]) };
        assert!(ask(&allow, Some(&other)));
        allow.confine("weft.local");
        assert_eq!([Some(&id("user")), Some(&other), None].map(|caller| ask(&allow, caller)), [true, false, false]);
        let mut deny = Authorization { deny: vec![all()], allow: None };
        deny.confine("weft.local");
        assert_eq!([Some(&id("user")), Some(&other), None].map(|caller| ask(&deny, caller)), [false, false, true]);
    }

    #[test]
    fn an_empty_allow_list_refuses_all_and_an_absent_one_nothing() {
        let request = Request { identity: None, port: 1, http: None };
        assert_eq!(Authorization { deny: vec![], allow: Some(vec![]) }.check(&request), Decision::NotAllowed);
        assert_eq!(Authorization::default().check(&request), Decision::Allow(None));
    }

    #[test]
    fn rules_on_method_and_path_are_never_wider_for_tcp() {
        let get = Operation { methods: vec!["GET".into()], ..Operation::default() };
        let tcp = Request { identity: None, port: 80, http: None };
        let deny = Authorization { deny: vec![rule("d", vec![Principal::Any], get.clone())], allow: None };
        let allow = Authorization { deny: vec![], allow: Some(vec![rule("a", vec![Principal::Any], get)]) };
        assert_eq!(deny.check(&tcp), Decision::DeniedBy("d"));
        assert_eq!(allow.check(&tcp), Decision::NotAllowed);
    }

    #[test]
    fn methods_paths_and_ports_all_have_to_match() {
        let to = Operation {
            methods: vec!["GET".into(), "HEAD".into()],
            paths: vec![PathPattern::Exact("/a".into()), PathPattern::Prefix("/b/".into())],
            ports: vec![80],
        };
        let policy = Authorization { deny: vec![], allow: Some(vec![rule("r", vec![Principal::Any], to)]) };
        for (port, method, path, allowed) in [
            (80, "GET", "/a", true),
            (80, "HEAD", "/b/c", true),
            (80, "get", "/a", false),
            (80, "GET", "/ab", false),
            (80, "GET", "/b", false),
            (81, "GET", "/a", false),
        ] {
            let decision = policy.check(&Request { identity: None, port, http: Some((method, path)) });
            assert_eq!(decision == Decision::Allow(Some("r")), allowed, "{port} {method} {path}");
        }
    }
}
