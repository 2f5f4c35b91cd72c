//! The compiled form of a route table, built once for each snapshot: the cost of a look-up does not grow with the table.
//! Hosts and exact paths are looked up in maps, prefixes by one binary search, expressions by one automaton; rules with
//! the same path and many header values are looked up by that value. Among the rules that are left the first that passes wins.
//! Invariant: it finds what [`RouteTable::find_index`] finds, which looks at every rule; the tests hold it to that.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use super::{HeaderMatch, PathMatch, RequestHead, RouteTable, Rule, ValueMatch, expressions::Expressions};
use crate::lookup::{Map, Prefixes};

/// With fewer rules than this for one path, each of them is looked at instead of looking up header values.
const MIN_KEYED: usize = 8;

/// A route table, ready to be asked.
#[derive(Debug)]
pub struct Matcher {
    table: Arc<RouteTable>,
    hosts: Hosts,
    /// By position in `table.hosts`.
    rules: Vec<Rules>,
}

/// Which virtual host a host belongs to, as positions.
#[derive(Debug, Default)]
struct Hosts {
    exact: Map<Box<str>, usize>,
    /// By what follows the `*`.
    wildcards: Map<Box<str>, usize>,
    /// Length of the longest wildcard.
    longest: usize,
    /// Lengths of the wildcards that do not start with a dot, longest first.
    undotted: Vec<usize>,
    any: Option<usize>,
}

/// The rules of one virtual host by path.
#[derive(Debug, Default)]
struct Rules {
    exact: Map<Arc<str>, Bucket>,
    prefixes: Prefixes<Bucket>,
    /// Those that end anywhere in a segment.
    starts: Prefixes<Bucket>,
    /// Those with the prefix `/`, which every path has.
    always: Bucket,
    expressions: Option<Box<Expressions>>,
}

/// Rules with the same path match, as positions in ascending order.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    /// The smallest position in it.
    first: usize,
    plain: Vec<usize>,
    /// The others: those that need one of many values of a header.
    keyed: Vec<Keyed>,
}

/// Rules that need a value of this header.
#[derive(Debug)]
struct Keyed {
    name: Arc<str>,
    values: Map<Box<[u8]>, Vec<usize>>,
}

impl Matcher {
    /// Compiles a table. Cost: linear in its rules, and the automaton of its expressions.
    pub fn new(table: Arc<RouteTable>) -> Self {
        let mut hosts = Hosts::default();
        for (index, host) in table.hosts.iter().enumerate() {
            for domain in &host.domains {
                hosts.add(domain, index);
            }
        }
        hosts.undotted.sort_unstable_by(|a, b| b.cmp(a));
        hosts.undotted.dedup();
        let rules = table.hosts.iter().map(|host| Rules::new(&host.rules)).collect();
        Self { table, hosts, rules }
    }

    /// The table it was made of.
    pub fn table(&self) -> &Arc<RouteTable> {
        &self.table
    }

    /// The rule for a request, as [`RouteTable::find`] finds it. Allocates nothing but for a host with upper-case letters,
    /// and when several expressions match a path and the first of them has conditions that do not hold.
    pub fn find(&self, head: &impl RequestHead) -> Option<&Rule> {
        let (host, rule) = self.find_index(head)?;
        self.table.hosts.get(host)?.rules.get(rule)
    }

    /// The same as positions: of the host in the table's `hosts`, and of the rule in its `rules`.
    pub fn find_index(&self, head: &impl RequestHead) -> Option<(usize, usize)> {
        let host = self.hosts.find(head.host())?;
        let rules = &self.table.hosts.get(host)?.rules;
        Some((host, self.rules.get(host)?.find(rules, head)?))
    }
}

impl Hosts {
    /// Of two virtual hosts with the same domain the first one has it.
    fn add(&mut self, domain: &str, index: usize) {
        let domain = domain.to_ascii_lowercase();
        if domain == "*" {
            self.any.get_or_insert(index);
        } else if let Some(suffix) = domain.strip_prefix('*') {
            self.longest = self.longest.max(suffix.len());
            if !suffix.starts_with('.') {
                self.undotted.push(suffix.len());
            }
            self.wildcards.entry(suffix.into()).or_insert(index);
        } else {
            self.exact.entry(domain.into()).or_insert(index);
        }
    }

    fn find(&self, host: &str) -> Option<usize> {
        let host = host.strip_suffix('.').unwrap_or(host);
        let host = if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
            Cow::Owned(host.to_ascii_lowercase())
        } else {
            Cow::Borrowed(host)
        };
        self.exact.get(host.as_ref()).copied().or_else(|| self.wildcard(&host)).or(self.any)
    }

    /// The longest wildcard that a host ends with, which leaves something of the host.
    fn wildcard(&self, host: &str) -> Option<usize> {
        if self.wildcards.is_empty() {
            return None;
        }
        // No longer ending than the longest wildcard is looked at, so a host full of dots costs no more than another.
        let start = host.len().saturating_sub(self.longest).max(1);
        let dots = host.bytes().enumerate().skip(start).filter(|(_, byte)| *byte == b'.');
        let dotted = dots.filter_map(|(at, _)| self.ending(host, at)).next();
        let lengths = self.undotted.iter().filter_map(|length| host.len().checked_sub(*length).filter(|at| *at > 0));
        let undotted = lengths.filter_map(|at| self.ending(host, at)).next();
        dotted.into_iter().chain(undotted).max_by_key(|(length, _)| *length).map(|(_, index)| index)
    }

    /// The length of the ending from a place on, and whose wildcard it is.
    fn ending(&self, host: &str, at: usize) -> Option<(usize, usize)> {
        let ending = host.get(at..)?;
        self.wildcards.get(ending).map(|index| (ending.len(), *index))
    }
}

impl Rules {
    fn new(rules: &[Rule]) -> Self {
        let (mut exact, mut prefixes) = (Map::<_, Draft>::default(), Map::<_, Draft>::default());
        let mut starts = Map::<_, Draft>::default();
        let (mut expressions, mut always) = (BTreeMap::<&str, Draft>::new(), Draft::default());
        let mut patterns = Map::default();
        for (index, rule) in rules.iter().enumerate() {
            let draft = match &rule.matches.path {
                PathMatch::Exact(path) => exact.entry(Arc::clone(path)).or_default(),
                PathMatch::Prefix(prefix) if prefix.as_ref() == "/" => &mut always,
                PathMatch::Prefix(prefix) => prefixes.entry(Arc::clone(prefix)).or_default(),
                PathMatch::Start(start) => starts.entry(Arc::clone(start)).or_default(),
                PathMatch::Regex(pattern) => {
                    patterns.insert(pattern.source(), pattern);
                    expressions.entry(pattern.source()).or_default()
                }
            };
            draft.add(index, rule);
        }
        let expressions = expressions
            .into_iter()
            .filter_map(|(source, draft)| Some(((*patterns.get(source)?).clone(), draft.finish(rules))));
        Self {
            exact: exact.into_iter().map(|(path, draft)| (path, draft.finish(rules))).collect(),
            prefixes: prefixes.into_iter().map(|(prefix, draft)| (prefix, draft.finish(rules))).collect(),
            starts: starts.into_iter().map(|(start, draft)| (start, draft.finish(rules))).collect(),
            always: always.finish(rules),
            expressions: Expressions::new(expressions.collect(), rules).map(Box::new),
        }
    }

    fn find(&self, rules: &[Rule], head: &impl RequestHead) -> Option<usize> {
        let path = head.path();
        let mut best = usize::MAX;
        if let Some(bucket) = self.exact.get(path) {
            best = bucket.find(rules, head, best);
        }
        for (prefix, bucket) in self.prefixes.of(path) {
            if path.as_bytes().get(prefix.len()).is_none_or(|next| *next == b'/') {
                best = bucket.find(rules, head, best);
            }
        }
        for (_start, bucket) in self.starts.of(path) {
            best = bucket.find(rules, head, best);
        }
        best = self.always.find(rules, head, best);
        if let Some(expressions) = &self.expressions {
            best = expressions.find(rules, head, best);
        }
        (best != usize::MAX).then_some(best)
    }
}

impl Bucket {
    /// The smallest position in it.
    pub(super) fn first(&self) -> usize {
        self.first
    }

    /// The first rule of it whose method and headers pass, if it is before `best`; otherwise `best`.
    pub(super) fn find(&self, rules: &[Rule], head: &impl RequestHead, best: usize) -> usize {
        let mut best = first_of(&self.plain, rules, head, best);
        for keyed in &self.keyed {
            let value = head.header(&keyed.name);
            if let Some(list) = value.and_then(|value| keyed.values.get(value.as_ref())) {
                best = first_of(list, rules, head, best);
            }
        }
        best
    }
}

fn first_of(list: &[usize], rules: &[Rule], head: &impl RequestHead, best: usize) -> usize {
    let passes = |index: &usize| rules.get(*index).is_some_and(|rule| rule.matches.test_beside_path(head));
    list.iter().copied().take_while(|index| *index < best).find(passes).unwrap_or(best)
}

/// A bucket while rules are put into it.
#[derive(Default)]
struct Draft {
    list: Vec<usize>,
    /// The methods (`None`: any) that a rule without headers has taken: what comes after it never gets a request.
    taken: HashSet<Option<Arc<str>>>,
}

impl Draft {
    fn add(&mut self, index: usize, rule: &Rule) {
        if self.taken.contains(&None) || self.taken.contains(&rule.matches.method) {
            return;
        }
        self.list.push(index);
        if rule.matches.headers.is_empty() {
            self.taken.insert(rule.matches.method.clone());
        }
    }

    fn finish(self, rules: &[Rule]) -> Bucket {
        let first = self.list.first().copied().unwrap_or(usize::MAX);
        if self.list.len() < MIN_KEYED {
            return Bucket { first, plain: self.list, keyed: Vec::new() };
        }
        let headers = |index: usize| rules.get(index).map_or(&[][..], |rule| &rule.matches.headers);
        let mut values: Map<&str, HashSet<&str>> = Map::default();
        for (header, value) in self.list.iter().flat_map(|index| headers(*index)).filter_map(exact) {
            values.entry(&header.name).or_default().insert(value);
        }
        let variety = |name: &str| values.get(name).map_or(0, HashSet::len);
        let (mut plain, mut keyed) = (Vec::new(), BTreeMap::<Arc<str>, Map<Box<[u8]>, Vec<usize>>>::new());
        for index in self.list {
            // The header with the most values tells the rules apart best.
            let best = headers(index).iter().filter_map(exact).max_by_key(|(header, _)| variety(&header.name));
            match best.filter(|(header, _)| variety(&header.name) > 1) {
                None => plain.push(index),
                Some((header, value)) => {
                    let values = keyed.entry(Arc::clone(&header.name)).or_default();
                    values.entry(value.as_bytes().into()).or_default().push(index);
                }
            }
        }
        let keyed = keyed.into_iter().map(|(name, values)| Keyed { name, values }).collect();
        Bucket { first, plain, keyed }
    }
}

fn exact(header: &HeaderMatch) -> Option<(&HeaderMatch, &str)> {
    match &header.value {
        ValueMatch::Exact(value) => Some((header, value)),
        ValueMatch::Start(_) | ValueMatch::End(_) | ValueMatch::Part(_) | ValueMatch::Regex(_) => None,
    }
}
