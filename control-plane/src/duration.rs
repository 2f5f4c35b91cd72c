//! Durations as flags and the API take them.

use std::time::Duration;

/// Parses a duration such as `250ms`, `30s`, `15m`, `24h` or `90d`.
/// Errors: the reason, if it is no number with one of these units.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || "must be a number with a unit, such as 250ms, 30s, 15m, 24h or 90d".to_owned();
    let split = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(split);
    let number: u64 = number.parse().map_err(|_cause| wrong())?;
    let milliseconds = match unit {
        "ms" => Some(number),
        "s" => number.checked_mul(1_000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        "d" => number.checked_mul(86_400_000),
        _ => None,
    };
    milliseconds.map(Duration::from_millis).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("2d"), Ok(Duration::from_secs(172_800)));
        for bad in ["", "5", "s", "1.5s", "-1s", "99999999999999999999s", "18446744073709551615d", "1w"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
