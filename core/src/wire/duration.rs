//! Durations: `std` <-> `google.protobuf.Duration`, and as text in metadata.

use std::time::Duration;

use super::error::{At, Errors, Reason};

/// Longest duration that protobuf can say, in seconds (10,000 years); longer ones are cut to it.
const MAX_SECONDS: i64 = 315_576_000_000;

/// To the wire.
pub(super) fn encode(duration: Duration) -> prost_types::Duration {
    match i64::try_from(duration.as_secs()) {
        Ok(seconds) if seconds < MAX_SECONDS => {
            prost_types::Duration { seconds, nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0) }
        }
        _ => prost_types::Duration { seconds: MAX_SECONDS, nanos: 0 },
    }
}

/// From the wire. Refused: negative, or out of range.
pub(super) fn read(duration: &prost_types::Duration, at: &At<'_>, errors: &mut Errors) -> Option<Duration> {
    let seconds = u64::try_from(duration.seconds).ok().filter(|_| duration.seconds <= MAX_SECONDS);
    let nanos = u32::try_from(duration.nanos).ok().filter(|nanos| *nanos < 1_000_000_000);
    match (seconds, nanos) {
        (Some(seconds), Some(nanos)) => Some(Duration::new(seconds, nanos)),
        _ => {
            let found = format!("{}s {}ns", duration.seconds, duration.nanos);
            errors.refuse(at, Reason::expected(found, "a duration of 0 to 10,000 years"))
        }
    }
}

/// From the wire, where absence means `default`.
pub(super) fn read_or(
    duration: Option<&prost_types::Duration>,
    default: Duration,
    at: &At<'_>,
    errors: &mut Errors,
) -> Option<Duration> {
    duration.map_or(Some(default), |duration| read(duration, at, errors))
}

/// `1.500000000s`
pub(super) fn to_text(duration: Duration) -> String {
    format!("{}.{:09}s", duration.as_secs(), duration.subsec_nanos())
}

/// The inverse of [`to_text`]; fractions of any length up to nine digits, or none.
pub(super) fn from_text(text: &str) -> Option<Duration> {
    let digits = |text: &str| !text.is_empty() && text.len() <= 20 && text.bytes().all(|b| b.is_ascii_digit());
    let number = text.strip_suffix('s')?;
    let (seconds, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if !digits(seconds) || !digits(fraction) || fraction.len() > 9 {
        return None;
    }
    Some(Duration::new(seconds.parse().ok()?, format!("{fraction:0<9}").parse().ok()?))
}
