//! What an answer says of its endpoint, by one definition for HTTP and gRPC: whether it failed, and for how long it asks to be left
//! alone.

use std::time::Duration;

use jiff::{Timestamp, fmt::rfc2822::DateTimeParser};
use weft_core::outlier::Failed;
use weft_http::fields::{Fields, Name};

/// Whether a status, or that of gRPC in the fields of an answer without a body or in trailers, is a failure of the endpoint. gRPC's
/// DEADLINE_EXCEEDED is none where the `request` set a deadline of its own (gRPC over HTTP/2, "Timeout").
pub(super) fn failed(status: u16, request: &Fields, answer: &Fields) -> Option<Failed> {
    let status = match answer.first(Name::GrpcStatus) {
        Some(b"4") if request.named("grpc-timeout").next().is_some() => return None,
        Some(code) => http_status(code).unwrap_or(status),
        None => status,
    };
    Failed::of_status(status)
}

/// The status of HTTP that stands for one of gRPC (google/rpc/code.proto); `None` for 0 and unknown ones.
pub(super) fn http_status(code: &[u8]) -> Option<u16> {
    Some(match code {
        b"1" => 499,
        b"2" | b"13" | b"15" => 500,
        b"3" | b"9" | b"11" => 400,
        b"4" => 504,
        b"5" => 404,
        b"6" | b"10" => 409,
        b"7" => 403,
        b"8" => 429,
        b"12" => 501,
        b"14" => 503,
        b"16" => 401,
        _ => return None,
    })
}

/// How long the endpoint asks to be left alone: gRPC's push-back (gRFC A6), or Retry-After in seconds or as a date (RFC 9110
/// §10.2.3). What cannot be read is not said.
pub(super) fn push_back(answer: &Fields) -> Option<Duration> {
    let text = |name| answer.named(name).next().and_then(|value| std::str::from_utf8(value).ok()).map(str::trim);
    if let Some(text) = text("grpc-retry-pushback-ms") {
        return text.parse().ok().map(Duration::from_millis);
    }
    let text = text("retry-after")?;
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = DateTimeParser::new().relaxed_weekday(true).parse_timestamp(text).ok()?;
    Duration::try_from(date.duration_since(Timestamp::now())).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(all: &[(&str, &str)]) -> Fields {
        let mut fields = Fields::with_capacity(256, all.len());
        all.iter().for_each(|(name, value)| fields.push(name.as_bytes(), value.as_bytes()));
        fields
    }

    /// (27.2)
    #[test]
    fn one_definition_of_a_failure_for_http_and_grpc() {
        let none = Fields::default();
        for (status, code, expected) in [
            (200, None, None),
            (500, None, Some(Failed::Status)),
            (503, None, Some(Failed::Answer)),
            (200, Some("0"), None),
            (200, Some("5"), None),
            (200, Some("8"), Some(Failed::Status)),
            (200, Some("13"), Some(Failed::Status)),
            (200, Some("14"), Some(Failed::Answer)),
            (200, Some("4"), Some(Failed::Answer)),
        ] {
            let answer = code.map_or(Fields::default(), |code| fields(&[("grpc-status", code)]));
            assert_eq!(failed(status, &none, &answer), expected, "{status} {code:?}");
        }
        assert_eq!(failed(200, &fields(&[("grpc-timeout", "1S")]), &fields(&[("grpc-status", "4")])), None);
    }

    /// (27.2)
    #[test]
    fn a_pause_is_read_in_every_form() {
        let second = Duration::from_secs(1);
        for (name, value, expected) in [
            ("retry-after", "7", Some(second * 7)),
            ("Retry-After", " 0 ", Some(Duration::ZERO)),
            ("retry-after", "-1", None),
            ("retry-after", "soon", None),
            ("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT", None),
            ("grpc-retry-pushback-ms", "1500", Some(second * 3 / 2)),
            ("grpc-retry-pushback-ms", "-1", None),
        ] {
            assert_eq!(push_back(&fields(&[(name, value)])), expected, "{name}: {value}");
        }
        let wait = push_back(&fields(&[("retry-after", "Sat, 31 Dec 2250 23:59:59 GMT")]));
        assert!(wait.is_some_and(|wait| wait > second * 3600), "{wait:?}");
    }
}
