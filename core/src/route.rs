//! Routes: which rule applies to a request, and the action of that rule.
//! Shape: a [`RouteTable`] is searched with a [`RequestHead`]; the first rule that matches wins, so the builder
//! of a table orders its rules by precedence (`compile::route` does, as the Gateway API says). A [`Matcher`] is a table
//! compiled for requests: the same answers at a cost that does not grow with the table.
//! Wire: `envoy.config.route.v3.RouteConfiguration`.

mod expressions;
mod matcher;

use std::{borrow::Cow, sync::Arc, time::Duration};

use serde::{Serialize, Serializer};

pub use self::matcher::Matcher;
use crate::{
    filter::Filters,
    names::{ClusterName, RouteName},
    policy::Authorization,
    retry::RetryPolicy,
};

/// All rules for one listener address or gateway port.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RouteTable {
    /// Its name.
    pub name: RouteName,
    /// Rules by host.
    pub hosts: Vec<VirtualHost>,
    /// Authorization of requests; used by inbound tables only.
    pub authorization: Authorization,
}

/// The rules for some hosts.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VirtualHost {
    /// What it is called in logs.
    pub name: Arc<str>,
    /// The hosts: `a.example`, `*.example` or `*`; lower case, without port.
    pub domains: Vec<Arc<str>>,
    /// The rules, in order of precedence.
    pub rules: Vec<Rule>,
}

/// One rule: a match, filters and an action.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rule {
    /// `<namespace>/<route>#<rule>`: what logs and metrics say.
    pub name: Arc<str>,
    /// Which requests.
    pub matches: Match,
    /// What is changed about them and their answers.
    #[serde(skip_serializing_if = "Filters::is_empty")]
    pub filters: Filters,
    /// What happens to them.
    pub action: Action,
}

/// Which requests a rule is for; every part has to match.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Match {
    /// The path without the query.
    pub path: PathMatch,
    /// The method, compared exactly.
    pub method: Option<Arc<str>>,
    /// Headers.
    pub headers: Vec<HeaderMatch>,
}

/// A match on the path.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum PathMatch {
    /// The whole path.
    Exact(Arc<str>),
    /// By segments: `/v2` matches `/v2` and `/v2/x`, not `/v2x`. No trailing slash but for `/` itself.
    Prefix(Arc<str>),
    /// Every path that starts with this text: `/v2` matches `/v2x` too. Objects have no such match; other control planes have
    /// (`prefix` of Envoy's RouteMatch).
    Start(Arc<str>),
    /// The whole path, by an RE2 expression.
    Regex(Pattern),
}

/// A match on a header: its value, see [`RequestHead::header`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HeaderMatch {
    /// The name, lower case.
    pub name: Arc<str>,
    /// The value.
    pub value: ValueMatch,
}

/// A match on a value.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum ValueMatch {
    /// The whole value.
    Exact(Arc<str>),
    /// Every value that starts with this text; with the empty one, every value. This and the next two are from other control
    /// planes only.
    Start(Arc<str>),
    /// Every value that ends with this text.
    End(Arc<str>),
    /// Every value that contains this text.
    Part(Arc<str>),
    /// The whole value, by an RE2 expression.
    Regex(Pattern),
}

/// A regular expression that matches a whole text. Two are equal when their sources are.
#[derive(Clone, Debug)]
pub struct Pattern {
    source: Arc<str>,
    regex: regex::Regex,
}

/// A regular expression that is malformed or too large.
#[derive(Clone, Debug, thiserror::Error)]
#[error("not a regular expression that Weft accepts")]
pub struct PatternError(#[from] regex::Error);

/// What happens to a request.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum Action {
    /// Sent to one of some clusters.
    Forward(Forward),
    /// Answered with this status and no body (a rule whose backends cannot be resolved: 500).
    Respond(u16),
    /// Handed to the workload: the only action of inbound tables.
    Deliver,
}

/// Sending a request on.
///
/// # Defaults
/// No timeouts; the default [`RetryPolicy`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Forward {
    /// Where to; never empty.
    pub clusters: Vec<WeightedCluster>,
    /// The share of backends that cannot be resolved, relative to the weights of `clusters`: it is answered with 500
    /// (Gateway API, `HTTPRouteRule.backendRefs`). This and the weights are never all 0.
    /// Wire: a weighted cluster named [`UNRESOLVED`] with `cluster_not_found_response_code: INTERNAL_SERVER_ERROR`.
    pub unresolved: u32,
    /// From the first byte of the request until the last of the answer.
    pub request_timeout: Option<Duration>,
    /// For each attempt, until the head of the answer.
    pub try_timeout: Option<Duration>,
    /// Without a byte in either direction.
    pub idle_timeout: Option<Duration>,
    /// When to try again.
    pub retry: RetryPolicy,
}

/// A cluster and its share of the traffic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WeightedCluster {
    /// The cluster.
    pub cluster: ClusterName,
    /// Its share relative to the others; 0 gets nothing.
    pub weight: u32,
}

/// What of a request decides its route.
pub trait RequestHead {
    /// The host without the port, as sent.
    fn host(&self) -> &str;
    /// The method.
    fn method(&self) -> &str;
    /// The path without the query.
    fn path(&self) -> &str;
    /// The value of this header (lower case name); several fields of the name make one value ([`joined`]). `host`: the
    /// authority as sent, in every version of HTTP.
    fn header<'a>(&'a self, name: &'a str) -> Option<Cow<'a, [u8]>>;
}

/// The value of a header that has several fields: their values in order, joined by a comma and a space (RFC 9110 §5.3), those of
/// `cookie` by a semicolon and a space (RFC 9113 §8.2.3).
pub fn joined<'a>(name: &str, mut values: impl Iterator<Item = &'a [u8]>) -> Option<Cow<'a, [u8]>> {
    let mut value = Cow::Borrowed(values.next()?);
    let separator: &[u8] = if name == "cookie" { b"; " } else { b", " };
    for further in values {
        let whole = value.to_mut();
        whole.extend_from_slice(separator);
        whole.extend_from_slice(further);
    }
    Some(value)
}

/// The name that stands for [`Forward::unresolved`] among weighted clusters on the wire; no cluster has it.
pub const UNRESOLVED: &str = "unresolved";

/// Largest compiled size of one regular expression, in bytes.
pub const MAX_REGEX_SIZE: usize = 1 << 20;

impl RouteTable {
    /// The rule for a request: the most specific host that has one (exact, longest suffix wildcard, `*`), then the first
    /// rule that matches. Cost: linear in hosts and rules; [`Matcher::find`] answers the same for requests.
    pub fn find(&self, head: &impl RequestHead) -> Option<&Rule> {
        let (host, rule) = self.find_index(head)?;
        self.hosts.get(host)?.rules.get(rule)
    }

    /// The same as positions: of the host in `hosts`, and of the rule in its `rules`.
    pub fn find_index(&self, head: &impl RequestHead) -> Option<(usize, usize)> {
        let host = self.host(head.host())?;
        let rule = self.hosts.get(host)?.rules.iter().position(|rule| rule.matches.test(head))?;
        Some((host, rule))
    }

    fn host(&self, host: &str) -> Option<usize> {
        let mut best: Option<(usize, usize)> = None;
        for (index, candidate) in self.hosts.iter().enumerate() {
            for domain in &candidate.domains {
                if let Some(rank) = domain_rank(domain, host)
                    && best.is_none_or(|(other, _)| rank > other)
                {
                    best = Some((rank, index));
                }
            }
        }
        best.map(|(_, index)| index)
    }
}

/// How specifically a domain matches a host: `None` not at all, larger is more specific.
fn domain_rank(domain: &str, host: &str) -> Option<usize> {
    let host = host.strip_suffix('.').unwrap_or(host);
    if domain == "*" {
        return Some(0);
    }
    if let Some(suffix) = domain.strip_prefix('*') {
        let start = host.len().checked_sub(suffix.len())?;
        let (label, tail) = host.split_at_checked(start)?;
        return (!label.is_empty() && tail.eq_ignore_ascii_case(suffix)).then_some(suffix.len());
    }
    domain.eq_ignore_ascii_case(host).then_some(usize::MAX)
}

impl Rule {
    /// A rule for every request, without filters.
    pub fn all(name: &str, action: Action) -> Self {
        Self { name: name.into(), matches: Match::any(), filters: Filters::default(), action }
    }
}

impl Match {
    /// Matches every request.
    pub fn any() -> Self {
        Self { path: PathMatch::Prefix("/".into()), method: None, headers: Vec::new() }
    }

    /// Whether a request falls under it.
    pub fn test(&self, head: &impl RequestHead) -> bool {
        self.path.test(head.path()) && self.test_beside_path(head)
    }

    /// Whether method and headers match.
    fn test_beside_path(&self, head: &impl RequestHead) -> bool {
        self.method.as_deref().is_none_or(|method| method == head.method())
            && self
                .headers
                .iter()
                .all(|wanted| head.header(&wanted.name).is_some_and(|value| wanted.value.test(&value)))
    }
}

impl PathMatch {
    /// Whether a path (without the query) matches.
    pub fn test(&self, path: &str) -> bool {
        match self {
            Self::Exact(wanted) => wanted.as_ref() == path,
            Self::Prefix(prefix) if prefix.as_ref() == "/" => true,
            Self::Prefix(prefix) => {
                path.strip_prefix(prefix.as_ref()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            Self::Start(start) => path.starts_with(start.as_ref()),
            Self::Regex(pattern) => pattern.test(path),
        }
    }
}

impl ValueMatch {
    /// Whether a header's value matches. A value that is no UTF-8 matches no expression.
    pub fn test(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(wanted) => wanted.as_bytes() == value,
            Self::Start(start) => value.starts_with(start.as_bytes()),
            Self::End(end) => value.ends_with(end.as_bytes()),
            Self::Part(part) => contains(value, part.as_bytes()),
            Self::Regex(pattern) => std::str::from_utf8(value).is_ok_and(|value| pattern.test(value)),
        }
    }
}

/// Whether `value` has `part` in it. Cost: their lengths multiplied, of which the head's limit and the configuration's bound both.
fn contains(value: &[u8], part: &[u8]) -> bool {
    part.is_empty() || value.windows(part.len()).any(|window| window == part)
}

impl Pattern {
    /// Compiles an expression. Errors: malformed, or larger than [`MAX_REGEX_SIZE`] once compiled.
    pub fn new(source: &str) -> Result<Self, PatternError> {
        let build = |text: &str| regex::RegexBuilder::new(text).size_limit(MAX_REGEX_SIZE).nest_limit(64).build();
        build(source)?;
        let regex = build(&format!("^(?:{source})$"))?;
        Ok(Self { source: source.into(), regex })
    }

    /// The expression as it was written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The expression with what ties it to both ends of a text.
    fn whole(&self) -> &str {
        self.regex.as_str()
    }

    fn test(&self, text: &str) -> bool {
        self.regex.is_match(text)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.source)
    }
}

impl Forward {
    /// Everything to one cluster, with every default.
    pub fn to(cluster: ClusterName) -> Self {
        Self {
            clusters: vec![WeightedCluster { cluster, weight: 1 }],
            unresolved: 0,
            request_timeout: None,
            try_timeout: None,
            idle_timeout: None,
            retry: RetryPolicy::default(),
        }
    }

    /// The position in `clusters` for one request; `random` is uniform in 0..1. `None`: answer 500, the share that is
    /// unresolved.
    pub fn pick(&self, random: f64) -> Option<usize> {
        let weights = self.clusters.iter().map(|to| to.weight).chain([self.unresolved]);
        pick_weighted(weights, random).filter(|index| *index < self.clusters.len())
    }
}

/// Picks an index by weight; `random` is uniform in 0..1. `None` when all weights are 0.
pub fn pick_weighted(weights: impl Iterator<Item = u32> + Clone, random: f64) -> Option<usize> {
    let total: u64 = weights.clone().map(u64::from).sum();
    if total == 0 {
        return None;
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "weights are at most 2^32 each; random is in 0..1; the result is below the total"
    )]
    let mut point = ((random * total as f64) as u64).min(total - 1);
    for (index, weight) in weights.enumerate() {
        match point.checked_sub(u64::from(weight)) {
            Some(rest) => point = rest,
            None => return Some(index),
        }
    }
    None
}

#[cfg(test)]
mod tests;
