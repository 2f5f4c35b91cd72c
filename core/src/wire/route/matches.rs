//! Matches of routes. Forms that the model has no variant for are read as a regular expression with the same meaning.

use weft_proto::envoy::{
    config::route::v3::{HeaderMatcher, RouteMatch, header_matcher::HeaderMatchSpecifier, route_match::PathSpecifier},
    r#type::matcher::v3::{RegexMatcher, StringMatcher, string_matcher::MatchPattern},
};

use crate::{
    route::{HeaderMatch, Match, PathMatch, Pattern, ValueMatch},
    wire::{
        authorization::{method_matcher, read_method},
        error::{At, Errors, Reason},
        read::collect,
    },
};

/// A match on the authority: as users write it, and on the wire.
const HOST: &str = "host";
const AUTHORITY: &str = ":authority";
/// Longest regular expression, in bytes.
const MAX_REGEX: usize = 4096;

pub(super) fn encode(matches: &Match) -> RouteMatch {
    let path = match &matches.path {
        PathMatch::Exact(path) => PathSpecifier::Path(path.as_ref().into()),
        PathMatch::Prefix(prefix) if prefix.as_ref() == "/" => PathSpecifier::Prefix("/".into()),
        PathMatch::Prefix(prefix) => PathSpecifier::PathSeparatedPrefix(prefix.as_ref().into()),
        PathMatch::Regex(pattern) => PathSpecifier::SafeRegex(regex(pattern)),
    };
    let method = matches.method.iter().map(|method| method_matcher(method));
    RouteMatch {
        path_specifier: Some(path),
        headers: method.chain(matches.headers.iter().map(encode_header)).collect(),
        ..RouteMatch::default()
    }
}

fn encode_header(header: &HeaderMatch) -> HeaderMatcher {
    let pattern = match &header.value {
        ValueMatch::Exact(text) => MatchPattern::Exact(text.as_ref().into()),
        ValueMatch::Regex(pattern) => MatchPattern::SafeRegex(regex(pattern)),
    };
    let matcher = StringMatcher { match_pattern: Some(pattern), ..StringMatcher::default() };
    HeaderMatcher {
        name: if header.name.as_ref() == HOST { AUTHORITY } else { &header.name }.to_owned(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(matcher)),
        ..HeaderMatcher::default()
    }
}

fn regex(pattern: &Pattern) -> RegexMatcher {
    RegexMatcher { google_re2: None, regex: pattern.source().into() }
}

pub(super) fn read(message: &RouteMatch, at: &At<'_>, errors: &mut Errors) -> Option<Match> {
    let path = read_path(message, at, errors);
    let mut method = None;
    let headers = message.headers.iter().enumerate().filter_map(|(index, header)| {
        let at = at.index("headers", index);
        if header.name != ":method" {
            return Some(read_header(header, &at, errors));
        }
        match read_method(header, &at, errors) {
            Some(_) if method.is_some() => Some(errors.refuse(&at, Reason::Duplicate)),
            Some(found) => {
                method = Some(found.into());
                None
            }
            None => Some(None),
        }
    });
    let headers = collect(headers)?;
    Some(Match { path: path?, method, headers })
}

fn read_path(message: &RouteMatch, at: &At<'_>, errors: &mut Errors) -> Option<PathMatch> {
    let sensitive = message.case_sensitive.unwrap_or(true);
    let insensitive = |pattern: String| format!("(?i){pattern}");
    match &message.path_specifier {
        None => errors.refuse(&at.field("path_specifier"), Reason::Required),
        Some(PathSpecifier::Prefix(prefix)) if prefix.is_empty() || prefix == "/" => {
            Some(PathMatch::Prefix("/".into()))
        }
        Some(PathSpecifier::Prefix(prefix)) => {
            let pattern = format!("{}(?s:.*)", regex::escape(prefix));
            let pattern = if sensitive { pattern } else { insensitive(pattern) };
            read_pattern(&pattern, &at.field("prefix"), errors).map(PathMatch::Regex)
        }
        Some(PathSpecifier::Path(path)) if path.is_empty() => errors.refuse(&at.field("path"), Reason::Required),
        Some(PathSpecifier::Path(path)) if sensitive => Some(PathMatch::Exact(path.as_str().into())),
        Some(PathSpecifier::Path(path)) => {
            read_pattern(&insensitive(regex::escape(path)), &at.field("path"), errors).map(PathMatch::Regex)
        }
        Some(PathSpecifier::PathSeparatedPrefix(prefix)) => {
            let at = at.field("path_separated_prefix");
            if prefix.len() < 2 || prefix.ends_with('/') || prefix.contains(['?', '#']) {
                return errors.refuse(&at, Reason::expected(prefix, "a path without query and trailing slash"));
            }
            if sensitive {
                return Some(PathMatch::Prefix(prefix.as_str().into()));
            }
            let pattern = insensitive(format!("{}(?s:/.*)?", regex::escape(prefix)));
            read_pattern(&pattern, &at, errors).map(PathMatch::Regex)
        }
        Some(PathSpecifier::SafeRegex(regex)) => {
            let at = at.field("safe_regex");
            read_pattern(&regex.regex, &at.field("regex"), errors).map(PathMatch::Regex)
        }
    }
}

fn read_pattern(source: &str, at: &At<'_>, errors: &mut Errors) -> Option<Pattern> {
    if source.is_empty() {
        return errors.refuse(at, Reason::Required);
    }
    if source.len() > MAX_REGEX {
        return errors.refuse(at, Reason::expected(format!("{} bytes", source.len()), "at most 4096 bytes"));
    }
    Pattern::new(source).map_err(|error| errors.add(at, error.into())).ok()
}

fn read_header(header: &HeaderMatcher, at: &At<'_>, errors: &mut Errors) -> Option<HeaderMatch> {
    if header.name.is_empty() {
        return errors.refuse(&at.field("name"), Reason::Required);
    }
    if header.name.starts_with(':') && header.name != AUTHORITY {
        let expected = ":method, :authority or an ordinary header";
        return errors.refuse(&at.field("name"), Reason::expected(&header.name, expected));
    }
    for (set, name) in
        [(header.invert_match, "invert_match"), (header.treat_missing_header_as_empty, "treat_missing_header_as_empty")]
    {
        if set {
            errors.add(&at.field(name), Reason::NotSupported);
        }
    }
    let value = match &header.header_match_specifier {
        None | Some(HeaderMatchSpecifier::PresentMatch(true)) => expression("(?s:.*)", at, errors),
        Some(HeaderMatchSpecifier::PresentMatch(false)) => {
            errors.refuse(&at.field("present_match"), Reason::NotSupported)
        }
        Some(HeaderMatchSpecifier::ExactMatch(text)) => Some(ValueMatch::Exact(text.as_str().into())),
        Some(HeaderMatchSpecifier::PrefixMatch(text)) => starts_with(text, "", &at.field("prefix_match"), errors),
        Some(HeaderMatchSpecifier::SuffixMatch(text)) => ends_with(text, "", &at.field("suffix_match"), errors),
        Some(HeaderMatchSpecifier::ContainsMatch(text)) => contains(text, "", &at.field("contains_match"), errors),
        Some(HeaderMatchSpecifier::SafeRegexMatch(regex)) => {
            let at = at.field("safe_regex_match");
            expression(&regex.regex, &at.field("regex"), errors)
        }
        Some(HeaderMatchSpecifier::StringMatch(matcher)) => read_string(matcher, &at.field("string_match"), errors),
    };
    let name = header.name.to_ascii_lowercase();
    Some(HeaderMatch { name: if name == AUTHORITY { HOST.into() } else { name.into() }, value: value? })
}

fn read_string(matcher: &StringMatcher, at: &At<'_>, errors: &mut Errors) -> Option<ValueMatch> {
    let flags = if matcher.ignore_case { "(?i)" } else { "" };
    match &matcher.match_pattern {
        None => errors.refuse(at, Reason::Required),
        Some(MatchPattern::Exact(text)) if matcher.ignore_case => {
            expression(&format!("(?i){}", regex::escape(text)), &at.field("exact"), errors)
        }
        Some(MatchPattern::Exact(text)) => Some(ValueMatch::Exact(text.as_str().into())),
        Some(MatchPattern::Prefix(text)) => starts_with(text, flags, &at.field("prefix"), errors),
        Some(MatchPattern::Suffix(text)) => ends_with(text, flags, &at.field("suffix"), errors),
        Some(MatchPattern::Contains(text)) => contains(text, flags, &at.field("contains"), errors),
        Some(MatchPattern::SafeRegex(regex)) => {
            let at = at.field("safe_regex");
            expression(&regex.regex, &at.field("regex"), errors)
        }
    }
}

fn starts_with(text: &str, flags: &str, at: &At<'_>, errors: &mut Errors) -> Option<ValueMatch> {
    expression(&format!("{flags}{}(?s:.*)", regex::escape(text)), at, errors)
}

fn ends_with(text: &str, flags: &str, at: &At<'_>, errors: &mut Errors) -> Option<ValueMatch> {
    expression(&format!("{flags}(?s:.*){}", regex::escape(text)), at, errors)
}

fn contains(text: &str, flags: &str, at: &At<'_>, errors: &mut Errors) -> Option<ValueMatch> {
    expression(&format!("{flags}(?s:.*){}(?s:.*)", regex::escape(text)), at, errors)
}

fn expression(source: &str, at: &At<'_>, errors: &mut Errors) -> Option<ValueMatch> {
    read_pattern(source, at, errors).map(ValueMatch::Regex)
}
