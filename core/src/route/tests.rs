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
    fn header<'a>(&'a self, name: &'a str) -> Option<Cow<'a, [u8]>> {
        let values = self.headers.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
        joined(name, values.map(|(_, value)| value.as_bytes()))
    }
}

fn get(host: &str, path: &str) -> Head {
    Head { host: host.into(), method: "GET".into(), path: path.into(), headers: vec![] }
}

fn rule(name: &str, matches: Match) -> Rule {
    Rule { matches, ..Rule::all(name, Action::Respond(200)) }
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
            PathMatch::Start(_) | PathMatch::Regex(_) => unreachable!("not generated"),
        };
        let method = rule.matches.method.as_ref().is_none_or(|m| m.as_ref() == head.method);
        let headers = rule.matches.headers.iter().all(|h| match &h.value {
            ValueMatch::Exact(wanted) => {
                let values = head.headers.iter().filter(|(name, _)| *name == h.name.to_string());
                let values: Vec<&str> = values.map(|(_, value)| value.as_str()).collect();
                !values.is_empty() && values.join(", ") == wanted.as_ref()
            }
            ValueMatch::Start(_) | ValueMatch::End(_) | ValueMatch::Part(_) | ValueMatch::Regex(_) => {
                unreachable!("not generated")
            }
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

/// Paths with empty segments, trailing slashes, and some that no request for a resource has.
fn odd_path() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => prop::collection::vec(prop::sample::select(vec!["a", "b", "ab", ""]), 0..4)
            .prop_map(|segments| format!("/{}", segments.join("/"))),
        1 => prop::sample::select(vec!["", "*", "a", "a/b", "/é"]).prop_map(str::to_owned),
    ]
}

fn odd_host() -> impl Strategy<Value = String> {
    "[xyX]{1,2}(\\.[xyY]{1,2}){0,2}\\.?"
}

fn odd_domain() -> impl Strategy<Value = String> {
    prop_oneof![odd_host(), odd_host().prop_map(|host| format!("*.{host}")), "\\*[xy.]{0,3}"]
}

fn pattern() -> impl Strategy<Value = Pattern> {
    let sources =
        vec!["/a(/.*)?", "/.*", "/[ab]+", "/a|/a/b", ".*b", "/a/?b?", "(?i)/AB", "", "/(a|ab)(/b)?", "/\\w+/\\w", "/a"];
    prop::sample::select(sources).prop_map(|source| Pattern::new(source).unwrap())
}

fn any_header_match() -> impl Strategy<Value = HeaderMatch> {
    let value = prop_oneof![
        4 => prop::sample::select(vec!["1", "2", "3", "4"]).prop_map(|value| ValueMatch::Exact(value.into())),
        1 => prop::sample::select(vec!["", "1", "3"]).prop_map(|text| ValueMatch::Start(text.into())),
        1 => prop::sample::select(vec!["[12]", "3|4", ".*"]).prop_map(|source| ValueMatch::Regex(Pattern::new(source).unwrap())),
    ];
    (prop::sample::select(vec!["h", "k"]), value).prop_map(|(name, value)| HeaderMatch { name: name.into(), value })
}

fn any_match() -> impl Strategy<Value = Match> {
    let path = prop_oneof![
        3 => odd_path().prop_map(|path| PathMatch::Exact(path.into())),
        3 => odd_path().prop_map(|path| PathMatch::Prefix(path.into())),
        2 => odd_path().prop_map(|path| PathMatch::Start(path.into())),
        1 => pattern().prop_map(PathMatch::Regex),
    ];
    let method = prop::option::weighted(0.3, prop::sample::select(vec!["GET", "POST"]));
    (path, method, prop::collection::vec(any_header_match(), 0..3)).prop_map(|(path, method, headers)| Match {
        path,
        method: method.map(Into::into),
        headers,
    })
}

/// A table of many rules that are all about the same few hosts, paths and headers.
fn crowded_table() -> impl Strategy<Value = RouteTable> {
    let host = (prop::collection::vec(odd_domain(), 1..3), prop::collection::vec(any_match(), 0..24));
    prop::collection::vec(host, 0..4).prop_map(|hosts| {
        let mut table = table(vec![]);
        for (domains, matches) in hosts {
            let rules = matches.into_iter().enumerate().map(|(index, found)| rule(&index.to_string(), found)).collect();
            let domains = domains.into_iter().map(Into::into).collect();
            table.hosts.push(VirtualHost { name: "h".into(), domains, rules });
        }
        table
    })
}

fn any_head() -> impl Strategy<Value = Head> {
    let header = (prop::sample::select(vec!["h", "k", "other"]), prop::sample::select(vec!["1", "2", "3", "4", ""]));
    let headers = prop::collection::vec(header.prop_map(|(name, value)| (name.to_owned(), value.to_owned())), 0..4);
    (odd_host(), prop::sample::select(vec!["GET", "POST", "get"]), odd_path(), headers)
        .prop_map(|(host, method, path, headers)| Head { host, method: method.into(), path, headers })
}

proptest! {
    #[test]
    fn the_compiled_matcher_agrees_with_the_scan(
        table in crowded_table(),
        heads in prop::collection::vec(any_head(), 20),
    ) {
        let matcher = Matcher::new(Arc::new(table.clone()));
        for head in heads {
            prop_assert_eq!(matcher.find_index(&head), table.find_index(&head), "{:?}", head);
        }
    }

    #[test]
    fn rules_that_differ_by_a_header_are_found_by_its_value(
        values in prop::collection::vec((0..40_u32, 0..3_u32, any::<bool>()), 0..60),
        sent in prop::collection::vec(0..45_u32, 0..3),
        env in 0..4_u32,
    ) {
        let exact = |name: &str, value: u32| HeaderMatch { name: name.into(), value: ValueMatch::Exact(value.to_string().into()) };
        let rules = values.iter().enumerate().map(|(index, (tenant, env, both))| {
            let headers = [exact("env", *env), exact("tenant", *tenant)].into_iter().take(1 + usize::from(*both)).collect();
            rule(&index.to_string(), Match { headers, ..Match::any() })
        });
        let table = table(vec![("*", rules.collect())]);
        let mut head = get("a", "/");
        head.headers = sent.iter().map(|value| ("tenant".to_owned(), value.to_string())).collect();
        head.headers.push(("env".to_owned(), env.to_string()));
        prop_assert_eq!(Matcher::new(Arc::new(table.clone())).find_index(&head), table.find_index(&head));
    }
}

#[test]
fn more_expressions_than_one_automaton_takes_are_told_apart() {
    let rules = (0..2_000).map(|n| {
        let path = PathMatch::Regex(Pattern::new(&format!("/v[0-9]+/s{n}(/.*)?")).unwrap());
        // Every other rule has a condition that does not hold, and is followed by one for the same expression.
        let method = (n % 2 == 0).then(|| "POST".into());
        rule(&n.to_string(), Match { path, method, headers: vec![] })
    });
    let mut rules: Vec<Rule> = rules.collect();
    let late = Match { path: PathMatch::Regex(Pattern::new("/v[0-9]+/s(4|5)00").unwrap()), ..Match::any() };
    rules.push(rule("late", late));
    let table = table(vec![("*", rules)]);
    let matcher = Matcher::new(Arc::new(table.clone()));
    for path in
        ["/v1/s0", "/v1/s1", "/v22/s1999/x", "/v1/s2000", "/v1/s500", "/v1/s400", "/v/s1", "/v3/s513", "/v3/s511/"]
    {
        let head = get("a", path);
        assert_eq!(matcher.find_index(&head), table.find_index(&head), "{path}");
    }
}

/// What a caller sends never makes a look-up slow: its cost is bounded by what is configured.
#[test]
fn hosts_and_paths_made_of_separators_are_answered_at_once() {
    let prefix = Match { path: PathMatch::Prefix("/a/b".into()), ..Match::any() };
    let matcher = Matcher::new(Arc::new(table(vec![("*.x", vec![rule("p", prefix)])])));
    let slashes = get(&".".repeat(60_000), &"/".repeat(60_000));
    let deep = get("y.x", &format!("/a/b{}", "/".repeat(60_000)));
    #[expect(clippy::disallowed_methods, reason = "a test of real time, without tokio")]
    let start = std::time::Instant::now();
    for _ in 0..100 {
        assert!(matcher.find(&slashes).is_none());
        assert!(matcher.find(&deep).is_some());
    }
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

/// (14) RFC 9110 §5.3, RFC 9113 §8.2.3.
#[test]
fn a_header_of_several_fields_is_one_value() {
    let wants = |name: &str, value| Match { headers: vec![HeaderMatch { name: name.into(), value }], ..Match::any() };
    let exact = |value: &str| ValueMatch::Exact(value.into());
    let regex = |source| ValueMatch::Regex(Pattern::new(source).unwrap());
    let head = |name: &str, values: &[&str]| {
        let headers = values.iter().map(|value| (name.to_owned(), (*value).to_owned())).collect();
        Head { headers, ..get("a", "/") }
    };
    for (name, values, wanted, matched) in [
        ("x", &["1", "2"][..], exact("1, 2"), true),
        ("x", &["1", "2"], exact("1"), false),
        ("x", &["1", "2"], exact("2"), false),
        ("x", &["1"], exact("1"), true),
        ("x", &["1", "2"], regex("1, .*"), true),
        ("x", &["", ""], exact(", "), true),
        ("x", &[], regex(".*"), false),
        ("cookie", &["a=1", "user=beta", "b=2"], regex("(.*; )?user=beta(;.*)?"), true),
        ("cookie", &["a=1", "b=2"], exact("a=1; b=2"), true),
        ("cookie", &["a=1; b=2"], exact("a=1; b=2"), true),
        ("cookie", &["a=1", "b=2"], exact("b=2"), false),
    ] {
        let rules = |count| (0..count).map(|_| rule("found", wants(name, wanted.clone()))).collect();
        // One rule is looked at by itself, many are looked up by the value.
        for count in [1, 20] {
            let table = table(vec![("*", rules(count))]);
            assert_eq!(table.find(&head(name, values)).is_some(), matched, "{name} {values:?}");
            let matcher = Matcher::new(Arc::new(table));
            assert_eq!(matcher.find(&head(name, values)).is_some(), matched, "{name} {values:?}, {count} rules");
        }
    }
}
