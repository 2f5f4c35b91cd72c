//! Retry policies.
//!
//! | model | xDS `retry_policy` |
//! |---|---|
//! | `attempts` | `num_retries` + 1; absent: 2, as in Envoy |
//! | `on` | words of `retry_on`: `connect-failure`, `refused-stream`, `gateway-error`, `reset`, `5xx` |
//! | `status_codes` | `retriable_status_codes`, with the word `retriable-status-codes` |
//! | `any_method` | `retriable_request_headers`: absent: any method; the idempotent methods as one expression: those only |
//! | `backoff_base`, `backoff_max` | `retry_back_off`; absent: 25 ms and 250 ms |
//! | `try_timeout` of the rule | `per_try_timeout`; absent or 0: none |
//!
//! In Envoy `5xx` includes the other words, and is read so. A rule that means 5xx alone says so by
//! `metadata["weft.dev"].retry_on = "exact"` of the route. Other words (those of gRPC, `retriable-4xx` …) are ignored:
//! fewer retries do no harm. Envoy applies the method filter to every retry, Weft only when the request may have been seen.

use std::time::Duration;

use weft_proto::envoy::{
    config::{
        core::v3::Metadata,
        route::v3::{
            HeaderMatcher, RetryPolicy as Message, header_matcher::HeaderMatchSpecifier, retry_policy::RetryBackOff,
        },
    },
    r#type::matcher::v3::{RegexMatcher, StringMatcher, string_matcher::MatchPattern},
};

use crate::{
    retry::{RetryOn, RetryPolicy},
    wire::{
        class::Form,
        duration,
        error::{At, Errors, Reason},
        metadata::{self, Read},
        read::collect,
    },
};

/// The methods of [`is_idempotent`](crate::retry::is_idempotent).
const IDEMPOTENT: &str = "GET|HEAD|OPTIONS|TRACE|PUT|DELETE";
const STATUS_CODES: &str = "retriable-status-codes";
const RETRY_ON: &str = "retry_on";
const EXACT: &str = "exact";

/// The metadata of the route, where the words are not to be read as Envoy reads them.
pub(super) fn metadata(policy: &RetryPolicy) -> Option<Metadata> {
    let on = &policy.on;
    let narrower = on.server_error && !(on.connect_failure && on.refused_stream && on.gateway_error && on.reset);
    metadata::encode([(RETRY_ON, narrower.then(|| metadata::text(EXACT)).flatten())])
}

/// Whether the words of a route mean only what they say.
pub(super) fn is_exact(route: Option<&Metadata>) -> bool {
    Read::of(route).plain_text(RETRY_ON) == Some(EXACT)
}

pub(super) fn encode(policy: &RetryPolicy, try_timeout: Option<Duration>, form: &Form) -> Message {
    let on = &policy.on;
    let words = [
        (on.connect_failure, "connect-failure"),
        (on.refused_stream, "refused-stream"),
        (on.gateway_error, "gateway-error"),
        (on.reset, "reset"),
        (on.server_error, "5xx"),
        (!policy.status_codes.is_empty(), STATUS_CODES),
    ];
    let words: Vec<&str> = words.into_iter().filter_map(|(set, word)| set.then_some(word)).collect();
    Message {
        retry_on: words.join(","),
        num_retries: Some(policy.attempts.saturating_sub(1)),
        per_try_timeout: try_timeout.map(duration::encode),
        retriable_status_codes: policy.status_codes.iter().copied().map(u32::from).collect(),
        retry_back_off: Some(RetryBackOff {
            base_interval: Some(duration::encode(form.duration(policy.backoff_base))),
            max_interval: Some(duration::encode(form.duration(policy.backoff_max))),
        }),
        retriable_request_headers: if policy.any_method { Vec::new() } else { vec![idempotent()] },
    }
}

fn idempotent() -> HeaderMatcher {
    let regex = RegexMatcher { google_re2: None, regex: IDEMPOTENT.into() };
    let matcher = StringMatcher { match_pattern: Some(MatchPattern::SafeRegex(regex)), ..StringMatcher::default() };
    HeaderMatcher {
        name: ":method".into(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(matcher)),
        ..HeaderMatcher::default()
    }
}

/// The policy and the timeout of one try. No message: no retries.
pub(super) fn read(
    message: Option<&Message>,
    exact_words: bool,
    at: &At<'_>,
    errors: &mut Errors,
) -> Option<(RetryPolicy, Option<Duration>)> {
    let none = RetryOn {
        connect_failure: false,
        refused_stream: false,
        gateway_error: false,
        reset: false,
        server_error: false,
    };
    let Some(message) = message else {
        return Some((RetryPolicy { attempts: 1, on: none, ..RetryPolicy::default() }, None));
    };
    // The words are alternatives, as in Envoy; words that Weft does not know only mean fewer retries.
    let mut on = none;
    let mut by_status = false;
    for word in message.retry_on.split(',').map(str::trim) {
        match word {
            "connect-failure" => on.connect_failure = true,
            "refused-stream" => on.refused_stream = true,
            "gateway-error" => on.gateway_error = true,
            "reset" => on.reset = true,
            "5xx" if exact_words => on.server_error = true,
            "5xx" => {
                on = RetryOn {
                    connect_failure: true,
                    refused_stream: true,
                    gateway_error: true,
                    reset: true,
                    server_error: true,
                };
            }
            STATUS_CODES => by_status = true,
            _ => {}
        }
    }
    // Any other condition on the request would allow retries of requests that must not be repeated.
    let any_method = match message.retriable_request_headers.as_slice() {
        [] => true,
        [only] if *only == idempotent() => false,
        _ => return errors.refuse(&at.field("retriable_request_headers"), Reason::NotSupported),
    };
    let status_codes = message.retriable_status_codes.iter().filter(|_| by_status).enumerate();
    let status_codes = status_codes.map(|(index, status)| match u16::try_from(*status) {
        Ok(status) if (100..600).contains(&status) => Some(status),
        _ => errors.refuse(&at.index("retriable_status_codes", index), Reason::expected(status, "a status")),
    });
    let status_codes = collect(status_codes);
    let (backoff_base, backoff_max) = read_backoff(message.retry_back_off.as_ref(), at, errors)?;
    let attempts = message.num_retries.unwrap_or(1).saturating_add(1);
    let per_try =
        duration::read_or(message.per_try_timeout.as_ref(), Duration::ZERO, &at.field("per_try_timeout"), errors)?;
    let policy = RetryPolicy { attempts, on, status_codes: status_codes?, any_method, backoff_base, backoff_max };
    Some((policy, (!per_try.is_zero()).then_some(per_try)))
}

/// Base and maximum; an absent maximum is ten times the base, as in Envoy.
fn read_backoff(message: Option<&RetryBackOff>, at: &At<'_>, errors: &mut Errors) -> Option<(Duration, Duration)> {
    let Some(message) = message else {
        let default = RetryPolicy::default();
        return Some((default.backoff_base, default.backoff_max));
    };
    let at = at.field("retry_back_off");
    let Some(base) = &message.base_interval else { return errors.refuse(&at.field("base_interval"), Reason::Required) };
    let base = duration::read(base, &at.field("base_interval"), errors)?;
    let tenfold = base.saturating_mul(10);
    let max = duration::read_or(message.max_interval.as_ref(), tenfold, &at.field("max_interval"), errors)?;
    if max < base {
        return errors
            .refuse(&at.field("max_interval"), Reason::expected(format!("{max:?}"), "at least base_interval"));
    }
    Some((base, max))
}
