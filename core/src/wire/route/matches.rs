//! Matches of routes. Forms that the model has no variant for (without regard to case) are read as a regular expression with the
//! same meaning.

use std::sync::Arc;

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
/// Longest regular expression, and longest text of a prefix, suffix or part, in bytes.
const MAX_TEXT: usize = 4096;

pub(super) fn encode(matches: &Match) -> RouteMatch {
    let path = match &matches.path {
        PathMatch::Exact(path) => PathSpecifier::Path(path.as_ref().into()),
        PathMatch::Prefix(prefix) if prefix.as_ref() == "/" => PathSpecifier::Prefix("/".into()),
        PathMatch::Prefix(prefix) => PathSpecifier::PathSeparatedPrefix(prefix.as_ref().into()),
        PathMatch::Start(start) => PathSpecifier::Prefix(start.as_ref().into()),
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
        ValueMatch::Exact(text) => Some(MatchPattern::Exact(text.as_ref().into())),
        // Envoy refuses an empty prefix.
        ValueMatch::Start(text) if text.is_empty() => None,
        ValueMatch::Start(text) => Some(MatchPattern::Prefix(text.as_ref().into())),
        ValueMatch::End(text) => Some(MatchPattern::Suffix(text.as_ref().into())),
        ValueMatch::Part(text) => Some(MatchPattern::Contains(text.as_ref().into())),
        ValueMatch::Regex(pattern) => Some(MatchPattern::SafeRegex(regex(pattern))),
    };
    let specifier = match pattern {
        Some(_) => {
            HeaderMatchSpecifier::StringMatch(StringMatcher { match_pattern: pattern, ..StringMatcher::default() })
        }
        None => HeaderMatchSpecifier::PresentMatch(true),
    };
    HeaderMatcher {
        name: if header.name.as_ref() == HOST { AUTHORITY } else { &header.name }.to_owned(),
        header_match_specifier: Some(specifier),
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
        Some(PathSpecifier::Prefix(prefix)) if sensitive => {
            read_text(prefix, &at.field("prefix"), errors).map(PathMatch::Start)
        }
        Some(PathSpecifier::Prefix(prefix)) => {
            let pattern = insensitive(format!("{}(?s:.*)", regex::escape(prefix)));
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
    check_length(source, at, errors)?;
    Pattern::new(source).map_err(|error| errors.add(at, error.into())).ok()
}

/// A text that is compared with the start, the end or a part of another.
fn read_text(text: &str, at: &At<'_>, errors: &mut Errors) -> Option<Arc<str>> {
    check_length(text, at, errors)?;
    Some(text.into())
}

fn check_length(text: &str, at: &At<'_>, errors: &mut Errors) -> Option<()> {
    if text.len() > MAX_TEXT {
        return errors.refuse(at, Reason::expected(format!("{} bytes", text.len()), "at most 4096 bytes"));
    }
    Some(())
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
        None | Some(HeaderMatchSpecifier::PresentMatch(true)) => Some(ValueMatch::Start("".into())),
        Some(HeaderMatchSpecifier::PresentMatch(false)) => {
            errors.refuse(&at.field("present_match"), Reason::NotSupported)
        }
        Some(HeaderMatchSpecifier::ExactMatch(text)) => Some(ValueMatch::Exact(text.as_str().into())),
        Some(HeaderMatchSpecifier::PrefixMatch(text)) => {
            read_text(text, &at.field("prefix_match"), errors).map(ValueMatch::Start)
        }
        Some(HeaderMatchSpecifier::SuffixMatch(text)) => {
            read_text(text, &at.field("suffix_match"), errors).map(ValueMatch::End)
        }
        Some(HeaderMatchSpecifier::ContainsMatch(text)) => {
            read_text(text, &at.field("contains_match"), errors).map(ValueMatch::Part)
        }
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
    let Some(pattern) = &matcher.match_pattern else { return errors.refuse(at, Reason::Required) };
    let (text, field) = match pattern {
        MatchPattern::Exact(text) => (text, "exact"),
        MatchPattern::Prefix(text) => (text, "prefix"),
        MatchPattern::Suffix(text) => (text, "suffix"),
        MatchPattern::Contains(text) => (text, "contains"),
        MatchPattern::SafeRegex(regex) => {
            let at = at.field("safe_regex");
            return expression(&regex.regex, &at.field("regex"), errors);
        }
    };
    let at = at.field(field);
    if matcher.ignore_case {
        let text = regex::escape(text);
        let source = match pattern {
            MatchPattern::Exact(_) | MatchPattern::SafeRegex(_) => format!("(?i){text}"),
            MatchPattern::Prefix(_) => format!("(?i){text}(?s:.*)"),
            MatchPattern::Suffix(_) => format!("(?i)(?s:.*){text}"),
            MatchPattern::Contains(_) => format!("(?i)(?s:.*){text}(?s:.*)"),
        };
        return expression(&source, &at, errors);
    }
    let text = read_text(text, &at, errors)?;
    Some(match pattern {
        MatchPattern::Exact(_) | MatchPattern::SafeRegex(_) => ValueMatch::Exact(text),
        MatchPattern::Prefix(_) => ValueMatch::Start(text),
        MatchPattern::Suffix(_) => ValueMatch::End(text),
        MatchPattern::Contains(_) => ValueMatch::Part(text),
    })
}

fn expression(source: &str, at: &At<'_>, errors: &mut Errors) -> Option<ValueMatch> {
    read_pattern(source, at, errors).map(ValueMatch::Regex)
}
