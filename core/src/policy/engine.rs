//! The compiled form of an authorization, built once for each snapshot: the cost of a check does not grow with the rules.
//! How: rules are filed by caller (exact identities in a map, prefixes of identities by one binary search), and under each
//! caller by what they are about (exact paths and ports in maps, prefixes of paths by one binary search). Of the rules found
//! there the first that passes is named. Connections that are not HTTP have files of their own.
//! Invariant: it gives the decision of [`Authorization::check`], which looks at every rule; the tests hold it to that.

use std::sync::Arc;

use super::{Authorization, Decision, Operation, PathPattern, Principal, Request, Rule};
use crate::{
    identity::Identity,
    lookup::{Map, Prefixes},
};

/// A rule with many callers and many paths is filed under both, as long as that makes at most this many times more
/// entries than it has callers, paths and ports; otherwise by its callers only, and all it is about is looked at.
const MAX_SPREAD: usize = 4;

/// An authorization, ready to be asked.
#[derive(Debug)]
pub struct Engine {
    http: Filters,
    tcp: Filters,
    reads_paths: bool,
    allows_all: bool,
}

#[derive(Debug)]
struct Filters {
    deny: Rules,
    allow: Option<Rules>,
}

/// One list of rules.
#[derive(Debug)]
struct Rules {
    rules: Vec<Rule>,
    any: File,
    authenticated: File,
    identities: Map<Identity, File>,
    prefixes: Prefixes<File>,
}

/// What some callers may do or not.
#[derive(Debug, Default)]
struct File {
    /// Whatever the path and port.
    open: Vec<Candidate>,
    narrow: Option<Box<Narrow>>,
}

#[derive(Debug, Default)]
struct Narrow {
    ports: Map<u16, Vec<Candidate>>,
    exact: Map<Arc<str>, Vec<Candidate>>,
    prefixes: Prefixes<Vec<Candidate>>,
}

/// A rule by its position; lists of them are in ascending order.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    rule: usize,
    unchecked: Unchecked,
}

/// The part of a rule that is not decided by where it is filed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unchecked {
    /// Nothing: it matches.
    Nothing,
    /// Method and port of this operation.
    MethodAndPort(usize),
    /// Every operation.
    All,
}

impl Engine {
    /// Compiles an authorization. Cost: linear in its rules, callers, paths and ports.
    pub fn new(authorization: &Authorization) -> Self {
        let filters = |make: fn(&[Rule], bool) -> Vec<Rule>| Filters {
            deny: Rules::new(make(&authorization.deny, true)),
            allow: authorization.allow.as_deref().map(|rules| Rules::new(make(rules, false))),
        };
        Self {
            http: filters(|rules, _| rules.to_vec()),
            tcp: filters(without_http),
            reads_paths: authorization.reads_paths(),
            allows_all: authorization.allows_all(),
        }
    }

    /// Decides on one request or connection as [`Authorization::check`] does. Allocates nothing.
    pub fn check(&self, request: &Request<'_>) -> Decision<'_> {
        let filters = if request.http.is_some() { &self.http } else { &self.tcp };
        if let Some(rule) = filters.deny.find(request) {
            return Decision::DeniedBy(&rule.name);
        }
        match &filters.allow {
            None => Decision::Allow(None),
            Some(rules) => rules.find(request).map_or(Decision::NotAllowed, |rule| Decision::Allow(Some(&rule.name))),
        }
    }

    /// Whether any rule asks for a path.
    pub fn reads_paths(&self) -> bool {
        self.reads_paths
    }

    /// Whether everything is allowed without a look at the request.
    pub fn allows_all(&self) -> bool {
        self.allows_all
    }
}

/// The rules as connections that are not HTTP meet them: what asks for a method or path always holds (`unknown`) or never.
fn without_http(rules: &[Rule], unknown: bool) -> Vec<Rule> {
    let operation = |operation: &Operation| {
        let is_http = !operation.methods.is_empty() || !operation.paths.is_empty();
        (!is_http || unknown).then(|| Operation { ports: operation.ports.clone(), ..Operation::default() })
    };
    let rule = |rule: &Rule| Rule { to: rule.to.iter().filter_map(operation).collect(), ..rule.clone() };
    rules.iter().map(rule).collect()
}

impl Rules {
    fn new(rules: Vec<Rule>) -> Self {
        let (mut any, mut authenticated) = (Draft::default(), Draft::default());
        let (mut identities, mut prefixes) = (Map::<Identity, Draft>::default(), Map::<Arc<str>, Draft>::default());
        for (index, rule) in rules.iter().enumerate() {
            let entries: usize = rule.to.iter().map(|to| to.paths.len().max(to.ports.len()).max(1)).sum();
            let whole = entries > 1 && rule.from.len() * entries > MAX_SPREAD * (rule.from.len() + entries);
            for principal in &rule.from {
                let draft = match principal {
                    Principal::Any => &mut any,
                    Principal::Authenticated => &mut authenticated,
                    Principal::Identity(identity) => identities.entry(identity.clone()).or_default(),
                    Principal::Prefix(prefix) => prefixes.entry(Arc::clone(prefix)).or_default(),
                };
                draft.add(index, rule, whole);
            }
        }
        Self {
            any: any.finish(),
            authenticated: authenticated.finish(),
            identities: identities.into_iter().map(|(identity, draft)| (identity, draft.finish())).collect(),
            prefixes: prefixes.into_iter().map(|(prefix, draft)| (prefix, draft.finish())).collect(),
            rules,
        }
    }

    /// The first rule that matches.
    fn find(&self, request: &Request<'_>) -> Option<&Rule> {
        if self.rules.is_empty() {
            return None;
        }
        let mut best = self.any.find(&self.rules, request, usize::MAX);
        if let Some(identity) = request.identity {
            best = self.authenticated.find(&self.rules, request, best);
            if let Some(file) = self.identities.get(identity) {
                best = file.find(&self.rules, request, best);
            }
            for (_, file) in self.prefixes.of(identity.as_str()) {
                best = file.find(&self.rules, request, best);
            }
        }
        self.rules.get(best)
    }
}

impl File {
    /// The first rule of it that matches, if it is before `best`; otherwise `best`.
    fn find(&self, rules: &[Rule], request: &Request<'_>, best: usize) -> usize {
        let mut best = first_of(&self.open, rules, request, best);
        let Some(narrow) = &self.narrow else { return best };
        if let Some(list) = narrow.ports.get(&request.port) {
            best = first_of(list, rules, request, best);
        }
        if let Some((_, path)) = request.http {
            if let Some(list) = narrow.exact.get(path) {
                best = first_of(list, rules, request, best);
            }
            for (_, list) in narrow.prefixes.of(path) {
                best = first_of(list, rules, request, best);
            }
        }
        best
    }
}

fn first_of(list: &[Candidate], rules: &[Rule], request: &Request<'_>, best: usize) -> usize {
    let before = list.iter().take_while(|candidate| candidate.rule < best);
    before.filter(|candidate| candidate.holds(rules, request)).map(|candidate| candidate.rule).next().unwrap_or(best)
}

impl Candidate {
    fn holds(self, rules: &[Rule], request: &Request<'_>) -> bool {
        let operations = rules.get(self.rule).map_or(&[][..], |rule| &rule.to);
        match self.unchecked {
            Unchecked::Nothing => true,
            Unchecked::MethodAndPort(at) => operations.get(at).is_some_and(|operation| {
                operation.takes_port(request.port)
                    && request.http.is_none_or(|(method, _)| operation.takes_method(method))
            }),
            // Files of connections hold no operation that asks for HTTP, so nothing is unknown here.
            Unchecked::All => operations.iter().any(|operation| operation.matches(request, false)),
        }
    }
}

/// A file while rules are put into it.
#[derive(Default)]
struct Draft {
    open: Vec<Candidate>,
    ports: Map<u16, Vec<Candidate>>,
    exact: Map<Arc<str>, Vec<Candidate>>,
    prefixes: Map<Arc<str>, Vec<Candidate>>,
}

impl Draft {
    /// `whole`: not by what it is about.
    fn add(&mut self, index: usize, rule: &Rule, whole: bool) {
        if whole {
            return push(&mut self.open, Candidate { rule: index, unchecked: Unchecked::All });
        }
        for (at, operation) in rule.to.iter().enumerate() {
            let has_more =
                !operation.methods.is_empty() || (!operation.paths.is_empty() && !operation.ports.is_empty());
            let candidate = Candidate {
                rule: index,
                unchecked: if has_more { Unchecked::MethodAndPort(at) } else { Unchecked::Nothing },
            };
            for path in &operation.paths {
                match path {
                    PathPattern::Exact(path) => push(self.exact.entry(Arc::clone(path)).or_default(), candidate),
                    PathPattern::Prefix(prefix) => {
                        push(self.prefixes.entry(Arc::clone(prefix)).or_default(), candidate)
                    }
                }
            }
            match operation.ports.as_slice() {
                _ if !operation.paths.is_empty() => {}
                [] => push(&mut self.open, candidate),
                ports => ports.iter().for_each(|port| push(self.ports.entry(*port).or_default(), candidate)),
            }
        }
    }

    fn finish(self) -> File {
        let is_open = self.ports.is_empty() && self.exact.is_empty() && self.prefixes.is_empty();
        let narrow = || Narrow { ports: self.ports, exact: self.exact, prefixes: self.prefixes.into_iter().collect() };
        let narrow = (!is_open).then(|| Box::new(narrow()));
        File { open: self.open, narrow }
    }
}

/// What comes after an candidate that always holds would never be named.
fn push(list: &mut Vec<Candidate>, candidate: Candidate) {
    if list.last().is_none_or(|last| last.unchecked != Unchecked::Nothing) {
        list.push(candidate);
    }
}

#[cfg(test)]
mod tests;
