//! The path expressions of one virtual host as few automata: a path is read once for all of them.
//! How: every expression is anchored at both ends, so that the automaton's leftmost-first answer is the first expression, in
//! the order they were given, that matches the whole path. That is nearly always the answer; only when its first rule has conditions that do not hold,
//! a second automaton tells all that match.

use regex_automata::{Input, MatchKind, PatternSet, meta};

use super::{Pattern, RequestHead, Rule, matcher::Bucket};

/// Most expressions in one automaton, so that its states stay small enough to be kept.
const MAX_PATTERNS: usize = 512;
/// Largest automaton, in bytes, before it is determinized.
const MAX_AUTOMATON: usize = 16 << 20;
/// What an automaton may keep of its states for each thread at work, in bytes.
const MAX_STATES: usize = 8 << 20;

/// Expressions, each with its rules.
#[derive(Debug)]
pub(super) struct Expressions {
    /// In order of their first rules.
    sets: Vec<Set>,
    /// What no automaton could be made of; tested one by one.
    alone: Vec<(Pattern, Bucket)>,
}

#[derive(Debug)]
struct Set {
    first: meta::Regex,
    /// Only where a first rule has conditions.
    all: Option<meta::Regex>,
    /// By pattern, in order of their first rules.
    buckets: Vec<Bucket>,
}

impl Expressions {
    /// `None` when there are none.
    pub(super) fn new(mut patterns: Vec<(Pattern, Bucket)>, rules: &[Rule]) -> Option<Self> {
        if patterns.is_empty() {
            return None;
        }
        patterns.sort_by_key(|(_, bucket)| bucket.first());
        let mut out = Self { sets: Vec::new(), alone: Vec::new() };
        while !patterns.is_empty() {
            let rest = patterns.split_off(patterns.len().min(MAX_PATTERNS));
            out.add(patterns, rules);
            patterns = rest;
        }
        Some(out)
    }

    /// Makes one automaton, or two of one half each when that is too large.
    fn add(&mut self, mut patterns: Vec<(Pattern, Bucket)>, rules: &[Rule]) {
        let sources: Vec<&str> = patterns.iter().map(|(pattern, _)| pattern.whole()).collect();
        let is_conditional = |bucket: &Bucket| {
            let first = rules.get(bucket.first()).map(|rule| &rule.matches);
            first.is_none_or(|matches| matches.method.is_some() || !matches.headers.is_empty())
        };
        let is_conditional = patterns.iter().any(|(_, bucket)| is_conditional(bucket));
        let built = build(&sources, MatchKind::LeftmostFirst).and_then(|first| {
            let all = is_conditional.then(|| build(&sources, MatchKind::All)).transpose()?;
            Ok((first, all))
        });
        match built {
            Ok((first, all)) => {
                self.sets.push(Set { first, all, buckets: patterns.into_iter().map(|(_, bucket)| bucket).collect() });
            }
            Err(_) if patterns.len() > 1 => {
                let rest = patterns.split_off(patterns.len() / 2);
                self.add(patterns, rules);
                self.add(rest, rules);
            }
            Err(_) => self.alone.append(&mut patterns),
        }
    }

    /// The first rule that passes, if it is before `best`; otherwise `best`.
    pub(super) fn find(&self, rules: &[Rule], head: &impl RequestHead, mut best: usize) -> usize {
        for set in &self.sets {
            if set.buckets.first().is_none_or(|bucket| bucket.first() >= best) {
                break;
            }
            best = set.find(rules, head, best);
        }
        for (pattern, bucket) in &self.alone {
            if bucket.first() < best && pattern.test(head.path()) {
                best = bucket.find(rules, head, best);
            }
        }
        best
    }
}

fn build(sources: &[&str], kind: MatchKind) -> Result<meta::Regex, Box<meta::BuildError>> {
    // An expression alone has been compiled before, so it is not too large.
    let limit = (sources.len() > 1).then_some(MAX_AUTOMATON);
    let config = meta::Config::new().match_kind(kind).nfa_size_limit(limit).hybrid_cache_capacity(MAX_STATES);
    meta::Builder::new().configure(config).build_many(sources).map_err(Box::new)
}

impl Set {
    fn find(&self, rules: &[Rule], head: &impl RequestHead, mut best: usize) -> usize {
        let input = Input::new(head.path());
        let Some(found) = self.first.search_half(&input) else { return best };
        let Some(bucket) = self.buckets.get(found.pattern().as_usize()) else { return best };
        if bucket.first() >= best {
            return best;
        }
        best = bucket.find(rules, head, best);
        let Some(all) = self.all.as_ref().filter(|_| best != bucket.first()) else { return best };
        let mut matching = PatternSet::new(all.pattern_len());
        all.which_overlapping_matches(&input, &mut matching);
        for pattern in matching.iter() {
            if let Some(bucket) = self.buckets.get(pattern.as_usize()) {
                best = bucket.find(rules, head, best);
            }
        }
        best
    }
}
