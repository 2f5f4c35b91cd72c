//! The order of rules: the most specific match first, across routes and within one.
//! Spec: Gateway API, `HTTPRouteRule.matches`: exact path, longest prefix, method, most headers (query parameters are not
//! matched yet), oldest route, `<namespace>/<name>`, first rule, first match. Expressions stand between exact paths and prefixes,
//! longest first; the specification leaves that open.

use std::{cmp::Reverse, sync::Arc};

use crate::{
    filter::Filters,
    route::{Action, Match, PathMatch, Rule},
};

/// One match of one rule of one route.
#[derive(Clone, Debug)]
pub(super) struct Candidate<T> {
    /// What a request has to have.
    pub(super) matches: Match,
    /// The route: when it was made, namespace, name.
    pub(super) route: (T, Arc<str>, Arc<str>),
    /// The rule's name in logs.
    pub(super) name: Arc<str>,
    /// What is changed.
    pub(super) filters: Filters,
    /// What happens.
    pub(super) action: Action,
}

/// The rules in order. `candidates` of one route come in the order of its rules and matches.
pub(super) fn ordered<T: Ord + Clone>(mut candidates: Vec<Candidate<T>>) -> Vec<Rule> {
    // Stable, so that what is equal stays in the order of rules and matches.
    candidates.sort_by_cached_key(|candidate| {
        let (path, length) = match &candidate.matches.path {
            PathMatch::Exact(path) => (0, path.chars().count()),
            PathMatch::Regex(pattern) => (1, pattern.source().chars().count()),
            PathMatch::Prefix(path) | PathMatch::Start(path) => (2, path.chars().count()),
        };
        (
            path,
            Reverse(length),
            candidate.matches.method.is_none(),
            Reverse(candidate.matches.headers.len()),
            candidate.route.clone(),
        )
    });
    let rule = |Candidate { matches, name, filters, action, .. }| Rule { name, matches, filters, action };
    candidates.into_iter().map(rule).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::{HeaderMatch, Pattern, ValueMatch};

    fn candidate(name: &str, path: PathMatch, made: u32, route: &str) -> Candidate<u32> {
        Candidate {
            matches: Match { path, ..Match::any() },
            route: (made, "ns".into(), route.into()),
            name: name.into(),
            filters: Filters::default(),
            action: Action::Deliver,
        }
    }

    fn names(candidates: Vec<Candidate<u32>>) -> Vec<String> {
        ordered(candidates).iter().map(|rule| rule.name.to_string()).collect()
    }

    #[test]
    fn the_more_specific_match_goes_first_across_routes() {
        let exact = |path: &str| PathMatch::Exact(path.into());
        let prefix = |path: &str| PathMatch::Prefix(path.into());
        let header = |mut c: Candidate<u32>, n: usize| {
            let one = HeaderMatch { name: "a".into(), value: ValueMatch::Exact("1".into()) };
            c.matches.headers = vec![one; n];
            c
        };
        let method = |mut c: Candidate<u32>| {
            c.matches.method = Some("GET".into());
            c
        };
        let any = |name| candidate(name, prefix("/"), 1, "a");
        let candidates = vec![
            any("any"),
            header(any("any+1"), 1),
            header(any("any+2"), 2),
            method(any("any+method")),
            candidate("longer", prefix("/a/b"), 9, "z"),
            candidate("shorter", prefix("/a"), 1, "a"),
            candidate("regex", PathMatch::Regex(Pattern::new("/.*").unwrap()), 1, "a"),
            candidate("exact", exact("/"), 9, "z"),
        ];
        let wanted = ["exact", "regex", "longer", "shorter", "any+method", "any+2", "any+1", "any"];
        assert_eq!(names(candidates.clone()), wanted);
        assert_eq!(names(candidates.into_iter().rev().collect()), wanted);
    }

    #[test]
    fn of_equal_matches_the_oldest_route_wins_then_its_name_then_the_first_rule() {
        let at = |name, made, route| candidate(name, PathMatch::Prefix("/".into()), made, route);
        let candidates = vec![at("young", 2, "a"), at("b", 1, "b"), at("a-first", 1, "a"), at("a-second", 1, "a")];
        assert_eq!(names(candidates), ["a-first", "a-second", "b", "young"]);
    }
}
