//! Rules that no request can reach, because earlier rules of the same host take all of theirs.
//! Shape: computed once for desired state, for every table that HTTPRoutes attach to, when a status is first asked for.
//! Invariant: only what is certain is reported. One earlier match has to take all of a later one; several that do so together, and
//! expressions that happen to match the same, are not looked for.

use std::{
    collections::{BTreeMap, HashMap},
    num::NonZeroU16,
    sync::Arc,
};

use super::{World, gateway::usable, name_of};
use crate::{
    api::{
        HttpRoute,
        http_route::{ParentReference, RefKind},
    },
    names::RouteName,
    route::{Match, PathMatch, Rule, ValueMatch},
};

/// Earlier matches with the same path that are compared with a later one.
const MAX_COMPARED: usize = 256;
/// Rules that a message names.
const MAX_TOLD: usize = 3;

/// The rules of each table, and the rule that takes what a rule would get; `None` for a rule that gets requests.
pub(super) type Shadows = BTreeMap<RouteName, BTreeMap<Arc<str>, Option<Arc<str>>>>;

impl World {
    /// The rules of a route that no request of this parent can reach, as a sentence.
    pub(super) fn shadowed_rules(&self, route: &HttpRoute, parent: &ParentReference) -> Option<String> {
        let shadows = self.objects.shadows(|| self.find_shadows());
        let prefix = format!("{}/{}#", route.metadata.namespace, route.metadata.name);
        let mut found: BTreeMap<&Arc<str>, Option<&Arc<str>>> = BTreeMap::new();
        let of = (parent.namespace(&route.metadata.namespace), parent.name.as_str(), parent.target()?);
        let tables = self.tables_of(of, |port, section| {
            parent.port.is_none_or(|wanted| wanted == port)
                && parent.section_name.as_deref().is_none_or(|wanted| Some(wanted) == section)
        });
        for name in tables {
            let rules = shadows.get(&name).into_iter().flat_map(|rules| rules.range(Arc::from(prefix.as_str())..));
            for (rule, by) in rules.take_while(|(rule, _)| rule.starts_with(&prefix)) {
                let known = found.entry(rule).or_insert(by.as_ref());
                *known = known.and(by.as_ref());
            }
        }
        let shadowed: Vec<_> = found.into_iter().filter_map(|(rule, by)| Some((rule, by?))).collect();
        if shadowed.is_empty() {
            return None;
        }
        let told =
            shadowed.iter().take(MAX_TOLD).map(|(rule, by)| format!("rule {rule} gets no request: {by} takes all"));
        let mut text = told.collect::<Vec<_>>().join("; ");
        if let Some(more @ 1..) = shadowed.len().checked_sub(MAX_TOLD) {
            text.push_str(&format!("; and {more} more"));
        }
        Some(text)
    }

    /// The route tables of those ports of a Service, or listeners of a Gateway, whose number and name fit.
    fn tables_of(
        &self,
        (namespace, name, kind): (&str, &str, RefKind),
        fits: impl Fn(NonZeroU16, Option<&str>) -> bool,
    ) -> Vec<RouteName> {
        match kind {
            RefKind::Service => {
                let Some(service) = self.objects.service(namespace, name) else { return Vec::new() };
                let ports = service.spec.ports.iter().filter(|port| fits(port.port, port.name.as_deref()));
                ports.map(|port| RouteName::Service(name_of(service, port.port))).collect()
            }
            RefKind::Gateway => {
                let listeners = self.objects.gateway(namespace, name).into_iter().flat_map(usable);
                let listeners = listeners.filter(|listener| fits(listener.port, Some(&listener.name)));
                let (namespace, name) = (namespace.to_owned(), name.to_owned());
                let at = |port| RouteName::Gateway { namespace: namespace.clone(), name: name.clone(), port };
                listeners.map(|listener| at(listener.port)).collect()
            }
        }
    }

    fn find_shadows(&self) -> Shadows {
        let mut out = Shadows::new();
        for parent in self.objects.parents() {
            for table in self.tables_of(parent, |_, _| true) {
                if out.contains_key(&table) {
                    continue;
                }
                let found = match &table {
                    RouteName::Service(at) => self.service_routes(at),
                    RouteName::Gateway { namespace, name, port } => self.gateway_routes(namespace, name, *port),
                    RouteName::Direct(_) | RouteName::Inbound(_) => None,
                };
                let mut rules: BTreeMap<Arc<str>, Option<Arc<str>>> = BTreeMap::new();
                for host in found.iter().flat_map(|found| &found.hosts) {
                    for (rule, by) in host.rules.iter().zip(covered(&host.rules)) {
                        let by = by.map(|rule| Arc::clone(&rule.name));
                        // A rule is reached if any of its matches is, under any host.
                        rules
                            .entry(Arc::clone(&rule.name))
                            .and_modify(|known| {
                                if by.is_none() {
                                    *known = None;
                                }
                            })
                            .or_insert(by);
                    }
                }
                out.insert(table, rules);
            }
        }
        out
    }
}

/// For each rule an earlier one that takes all of its requests. Cost: linear in the rules, but for those of one path.
fn covered(rules: &[Rule]) -> Vec<Option<&Rule>> {
    let mut by_path: HashMap<(Form, &str), Vec<&Rule>> = HashMap::new();
    let mut out = Vec::with_capacity(rules.len());
    for rule in rules {
        let earlier = wider(&rule.matches.path).into_iter().find_map(|path| {
            let same = by_path.get(&path)?.iter().take(MAX_COMPARED);
            same.copied().find(|earlier| covers_beside_path(&earlier.matches, &rule.matches))
        });
        out.push(earlier);
        let own = match &rule.matches.path {
            PathMatch::Exact(path) => (Form::Exact, &**path),
            PathMatch::Prefix(path) => (Form::Prefix, &**path),
            PathMatch::Start(start) => (Form::Start, &**start),
            PathMatch::Regex(pattern) => (Form::Regex, pattern.source()),
        };
        by_path.entry(own).or_default().push(rule);
    }
    out
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Form {
    Exact,
    Prefix,
    Start,
    Regex,
}

/// The matches on the path that are certain to take every path of this one, itself first.
fn wider(path: &PathMatch) -> Vec<(Form, &str)> {
    let mut out = Vec::new();
    match path {
        PathMatch::Exact(path) => {
            out.push((Form::Exact, &**path));
            prefixes(path, &mut out);
        }
        PathMatch::Prefix(path) => prefixes(path, &mut out),
        PathMatch::Start(start) => out.push((Form::Start, &**start)),
        PathMatch::Regex(pattern) => out.push((Form::Regex, pattern.source())),
    }
    out.extend([(Form::Prefix, "/"), (Form::Regex, ".*")]);
    out
}

/// The prefixes, by segments, that a path has, the longest first.
fn prefixes<'a>(path: &'a str, out: &mut Vec<(Form, &'a str)>) {
    out.push((Form::Prefix, path));
    let ends = path.rmatch_indices('/').map(|(at, _)| at).filter(|at| *at > 0);
    out.extend(ends.filter_map(|at| Some((Form::Prefix, path.get(..at)?))));
}

/// Whether what has the method and headers of `later` has those of `earlier`.
fn covers_beside_path(earlier: &Match, later: &Match) -> bool {
    let method = earlier.method.is_none() || earlier.method == later.method;
    method
        && earlier.headers.iter().all(|wanted| {
            later.headers.iter().any(|given| {
                given.name == wanted.name
                    && (given.value == wanted.value
                        || matches!(&given.value, ValueMatch::Exact(value) if wanted.value.test(value.as_bytes())))
            })
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::route::{Action, HeaderMatch, Pattern, RequestHead};

    struct Head<'a>(&'a str, &'a str, Option<&'a str>);

    impl RequestHead for Head<'_> {
        fn host(&self) -> &str {
            "a"
        }
        fn method(&self) -> &str {
            self.1
        }
        fn path(&self) -> &str {
            self.0
        }
        fn header<'a>(&'a self, _: &'a str) -> Option<std::borrow::Cow<'a, [u8]>> {
            self.2.map(|value| value.as_bytes().into())
        }
    }

    const PATHS: [&str; 7] = ["/", "/a", "/a/", "/a/b", "/ab", "*", "/a//b"];

    fn path() -> impl Strategy<Value = PathMatch> {
        prop_oneof![
            prop::sample::select(&PATHS[..]).prop_map(|path| PathMatch::Exact(path.into())),
            prop::sample::select(&["/", "/a", "/a/b", "/ab", "/a//b"][..])
                .prop_map(|path| PathMatch::Prefix(path.into())),
            prop::sample::select(&[".*", "/a.*", "/a"][..])
                .prop_map(|source| PathMatch::Regex(Pattern::new(source).unwrap())),
        ]
    }

    fn value() -> impl Strategy<Value = ValueMatch> {
        prop_oneof![
            prop::sample::select(&["1", "2"][..]).prop_map(|value| ValueMatch::Exact(value.into())),
            prop::sample::select(&["[12]", "1.*"][..])
                .prop_map(|source| ValueMatch::Regex(Pattern::new(source).unwrap())),
        ]
    }

    proptest! {
        /// (24)
        #[test]
        fn no_request_finds_a_rule_that_is_said_to_be_shadowed(
            matches in prop::collection::vec((path(), prop::option::of(Just("GET")), prop::option::of(value())), 2..8)
        ) {
            let rules = matches.into_iter().map(|(path, method, value)| {
                let headers = value.into_iter().map(|value| HeaderMatch { name: "x".into(), value }).collect();
                let matches = Match { path, method: method.map(Into::into), headers };
                Rule { matches, ..Rule::all("r", Action::Deliver) }
            });
            let rules: Vec<Rule> = rules.collect();
            let covered = covered(&rules);
            for path in PATHS {
                for method in ["GET", "POST"] {
                    for value in [None, Some("1"), Some("2"), Some("11")] {
                        let head = Head(path, method, value);
                        if let Some(found) = rules.iter().position(|rule| rule.matches.test(&head)) {
                            prop_assert!(covered[found].is_none(), "{path} {method} {value:?} {rules:#?}");
                        }
                    }
                }
            }
        }
    }
}
