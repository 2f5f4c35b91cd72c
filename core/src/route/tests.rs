use std::num::NonZeroU16;

use proptest::prelude::*;

use super::*;
use crate::names::ServicePort;

#[derive(Clone, Debug)]
struct Head {
    host: String,
    method: String,
    path: String,
    headers: Vec<(String, String)>,
}

impl RequestHead for Head {
    fn host(&self) -> &str {
        &self.host
    }
    fn method(&self) -> &str {
        &self.method
    }
    fn path(&self) -> &str {
        &self.path
    }
    fn any_header(&self, name: &str, test: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        self.headers.iter().any(|(n, v)| n == name && test(v.as_bytes()))
    }
}

fn get(host: &str, path: &str) -> Head {
    Head { host: host.into(), method: "GET".into(), path: path.into(), headers: vec![] }
}

fn rule(name: &str, matches: Match) -> Rule {
    Rule { name: name.into(), matches, action: Action::Respond(200) }
}

fn table(hosts: Vec<(&str, Vec<Rule>)>) -> RouteTable {
    let port = NonZeroU16::new(80).unwrap();
    RouteTable {
        name: RouteName::Service(ServicePort { namespace: "a".into(), name: "b".into(), port }),
        hosts: hosts
            .into_iter()
            .map(|(domain, rules)| VirtualHost { name: domain.into(), domains: vec![domain.into()], rules })
            .collect(),
        authorization: Authorization::default(),
    }
}

#[test]
fn a_prefix_matches_whole_segments_only() {
    let prefix = PathMatch::Prefix("/v2".into());
    for (path, matched) in
        [("/v2", true), ("/v2/", true), ("/v2/a", true), ("/v2a", false), ("/v", false), ("/", false)]
    {
        assert_eq!(prefix.test(path), matched, "{path}");
    }
    assert!(PathMatch::Prefix("/".into()).test("/anything"));
}

#[test]
fn the_most_specific_host_wins() {
    let any = |name| vec![rule(name, Match::any())];
    let table = table(vec![
        ("*", any("all")),
        ("*.example.com", any("wild")),
        ("*.a.example.com", any("deeper")),
        ("www.example.com", any("exact")),
    ]);
    for (host, wanted) in [
        ("www.example.com", "exact"),
        ("WWW.Example.com.", "exact"),
        ("x.example.com", "wild"),
        ("x.a.example.com", "deeper"),
        ("example.com", "all"),
        ("other", "all"),
    ] {
        assert_eq!(table.find(&get(host, "/")).unwrap().name.as_ref(), wanted, "{host}");
    }
}

#[test]
fn expressions_match_the_whole_text() {
    let pattern = Pattern::new("/a|/b+").unwrap();
    assert!(pattern.test("/a") && pattern.test("/bbb") && !pattern.test("/ab") && !pattern.test("x/a"));
    assert!(Pattern::new("(").is_err());
    assert!(Pattern::new("a)|(?:b").is_err());
    assert!(Pattern::new("((a{100}){100}){100}").is_err());
}

#[test]
fn weights_share_and_zero_gets_nothing() {
    let pick = |weights: &[u32], random| pick_weighted(weights.iter().copied(), random);
    assert_eq!(pick(&[0, 0], 0.5), None);
    assert_eq!(pick(&[], 0.5), None);
    assert_eq!(pick(&[0, 1, 0], 0.999_999_999), Some(1));
    assert_eq!((pick(&[9, 1], 0.89), pick(&[9, 1], 0.91)), (Some(0), Some(1)));
    assert_eq!(pick(&[1, 1], 1.0), Some(1));
}

/// Finds the rule in the most literal way that the Gateway API's words allow.
fn naive<'a>(table: &'a RouteTable, head: &Head) -> Option<&'a Rule> {
    let labels = |text: &str| text.to_ascii_lowercase().split('.').map(str::to_owned).collect::<Vec<_>>();
    let host = labels(&head.host);
    let mut candidates: Vec<(usize, &VirtualHost)> = Vec::new();
    for entry in &table.hosts {
        for domain in &entry.domains {
            let domain = labels(domain);
            if domain == host {
                candidates.push((1000, entry));
            } else if domain == ["*"] {
                candidates.push((0, entry));
            } else if domain[0] == "*" && host.len() >= domain.len() && host.ends_with(&domain[1..]) {
                candidates.push((domain.len(), entry));
            }
        }
    }
    let best = candidates.iter().map(|(rank, _)| *rank).max()?;
    let entry = candidates.iter().find(|(rank, _)| *rank == best)?.1;
    entry.rules.iter().find(|rule| {
        let path = match &rule.matches.path {
            PathMatch::Exact(wanted) => head.path == wanted.as_ref(),
            PathMatch::Prefix(prefix) => {
                let wanted: Vec<&str> = prefix.split('/').filter(|s| !s.is_empty()).collect();
                let path: Vec<&str> = head.path.split('/').skip(1).collect();
                path.len() >= wanted.len() && path[..wanted.len()] == wanted[..]
            }
            PathMatch::Regex(_) => unreachable!("not generated"),
        };
        let method = rule.matches.method.as_ref().is_none_or(|m| m.as_ref() == head.method);
        let headers = rule.matches.headers.iter().all(|h| match &h.value {
            ValueMatch::Exact(value) => head.headers.contains(&(h.name.to_string(), value.to_string())),
            ValueMatch::Regex(_) => unreachable!("not generated"),
        });
        path && method && headers
    })
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "ab"]), 0..4).prop_map(|s| format!("/{}", s.join("/")))
}

fn host() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["x", "y"]), 1..4).prop_map(|labels| labels.join("."))
}

fn header() -> impl Strategy<Value = (String, String)> {
    (prop::sample::select(vec!["h", "k"]), prop::sample::select(vec!["1", "2"])).prop_map(|(n, v)| (n.into(), v.into()))
}

prop_compose! {
    fn any_rule()(
        exact in any::<bool>(),
        path in path(),
        method in prop::option::of(prop::sample::select(vec!["GET", "POST"])),
        headers in prop::collection::vec(header(), 0..2),
        name in "[a-z]{4}",
    ) -> Rule {
        let path = if exact { PathMatch::Exact(path.into()) } else { PathMatch::Prefix(path.into()) };
        let headers = headers
            .into_iter()
            .map(|(name, value)| HeaderMatch { name: name.into(), value: ValueMatch::Exact(value.into()) })
            .collect();
        rule(&name, Match { path, method: method.map(Into::into), headers })
    }
}

fn domain() -> impl Strategy<Value = String> {
    prop_oneof![host(), host().prop_map(|host| format!("*.{host}")), Just("*".to_owned())]
}

proptest! {
    #[test]
    fn the_matcher_agrees_with_a_naive_one(
        hosts in prop::collection::btree_map(domain(), prop::collection::vec(any_rule(), 0..5), 0..5),
        host in host(),
        method in prop::sample::select(vec!["GET", "POST", "get"]),
        path in path(),
        headers in prop::collection::vec(header(), 0..3),
    ) {
        let table = table(hosts.iter().map(|(domain, rules)| (domain.as_str(), rules.clone())).collect());
        let head = Head { host, method: method.into(), path, headers };
        prop_assert_eq!(table.find(&head), naive(&table, &head));
    }
}
