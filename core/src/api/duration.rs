//! Durations as people write them: `10s`, `500ms`, `1m30s`.
//! Spec: Gateway API GEP-2257: one to four groups of up to five digits and a unit of `h`, `m`, `s`, `ms`; no sign, no
//! fraction. Written back in the shortest form, largest unit first.
//!
//! [`parse_time`] reads the flags and environment of all programs and requests of the API: the same form, also with days and
//! with any number of digits.

use std::{fmt, ops::RangeInclusive, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A length of time in whole milliseconds, at most 99,999 h and less than one hour on top.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration(u64);

/// A text that is no duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// Not of the form.
    #[error("must be a duration such as \"10s\", \"500ms\" or \"1m30s\" (units h, m, s, ms; no fractions)")]
    Form,
    /// Not of the form that flags have.
    #[error("must be a time such as 250ms, 30s, 1m30s, 24h or 90d (units d, h, m, s, ms; no sign, no fraction)")]
    Time,
    /// More than 99,999 hours.
    #[error("must be less than 100000h")]
    TooLong,
}

const DAY: u64 = 86_400_000;
const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];
const END: u64 = 100_000 * 3_600_000;

impl Duration {
    /// No time at all.
    pub const ZERO: Self = Self(0);

    /// So many milliseconds, cut to the longest that can be written.
    pub fn from_millis(millis: u64) -> Self {
        Self(millis.min(END - 1))
    }

    /// So many seconds, cut to the longest that can be written.
    pub fn from_secs(seconds: u64) -> Self {
        Self::from_millis(seconds.saturating_mul(1_000))
    }

    /// As the standard library's type.
    pub fn std(self) -> std::time::Duration {
        std::time::Duration::from_millis(self.0)
    }

    /// Whether it is no time at all.
    pub fn is_zero(self) -> bool {
        self.0 == 0
    }
}

impl From<Duration> for std::time::Duration {
    fn from(value: Duration) -> Self {
        value.std()
    }
}

impl FromStr for Duration {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, DurationError> {
        let (groups, longest, millis) = read(text, &UNITS).ok_or(DurationError::Form)?;
        match groups {
            1..=4 if longest <= 5 => below_end(millis).map(Self),
            _ => Err(DurationError::Form),
        }
    }
}

/// The time in a flag, a variable or a request of the API.
///
/// Errors: not one to many numbers with a unit of `d`, `h`, `m`, `s` or `ms`, or too long.
pub fn parse_time(text: &str) -> Result<std::time::Duration, DurationError> {
    let [hours, minutes, seconds, millis] = UNITS;
    let (_, _, total) = read(text, &[("d", DAY), hours, minutes, seconds, millis]).ok_or(DurationError::Time)?;
    below_end(total).map(std::time::Duration::from_millis)
}

/// [`parse_time`] within bounds.
///
/// Errors: the reason, with the bounds if the time is out of them.
pub fn parse_time_within(
    text: &str,
    bounds: RangeInclusive<std::time::Duration>,
) -> Result<std::time::Duration, String> {
    let time = match parse_time(text) {
        // Out of any bounds.
        Err(DurationError::TooLong) => std::time::Duration::MAX,
        other => other.map_err(|error| error.to_string())?,
    };
    let shown = |time: &std::time::Duration| match u64::try_from(time.as_millis()).unwrap_or(END) {
        millis if millis > 0 && millis % DAY == 0 => format!("{}d", millis / DAY),
        millis => Duration::from_millis(millis).to_string(),
    };
    let outside = || format!("must be {} to {}", shown(bounds.start()), shown(bounds.end()));
    bounds.contains(&time).then_some(time).ok_or_else(outside)
}

/// The number of groups of a number and a unit, the digits of the longest number, and the sum in milliseconds.
fn read(text: &str, units: &[(&str, u64)]) -> Option<(usize, usize, u64)> {
    let (mut rest, mut groups, mut longest, mut total) = (text, 0, 0, 0_u64);
    loop {
        let (number, tail) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?);
        let (unit, tail) = tail.split_at(tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len()));
        let (_, millis) = units.iter().find(|(name, _)| *name == unit && !number.is_empty())?;
        // Only a number that is too large for the type does not parse, and it is too long in any unit.
        total = total.saturating_add(number.parse().unwrap_or(u64::MAX).saturating_mul(*millis));
        (groups, longest) = (groups + 1, longest.max(number.len()));
        if tail.is_empty() {
            return Some((groups, longest, total));
        }
        rest = tail;
    }
}

fn below_end(millis: u64) -> Result<u64, DurationError> {
    if millis < END { Ok(millis) } else { Err(DurationError::TooLong) }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Duration;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as \"10s\", \"500ms\" or \"1m30s\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("0s");
        }
        let mut rest = self.0;
        for (name, millis) in UNITS {
            let count = rest / millis;
            rest %= millis;
            if count > 0 {
                write!(f, "{count}{name}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_read_and_written_as_gep_2257_says() {
        for (text, millis, written) in [
            ("10s", 10_000, "10s"),
            ("500ms", 500, "500ms"),
            ("1m30s", 90_000, "1m30s"),
            ("90s", 90_000, "1m30s"),
            ("1500ms", 1_500, "1s500ms"),
            ("0s", 0, "0s"),
            ("0h0m0s0ms", 0, "0s"),
            ("1h2m3s4ms", 3_723_004, "1h2m3s4ms"),
            ("30m1h", 5_400_000, "1h30m"),
        ] {
            let parsed: Duration = text.parse().unwrap();
            assert_eq!(parsed.std().as_millis(), millis, "{text}");
            assert_eq!(parsed.to_string(), written, "{text}");
        }
        for text in ["", "10", "s", "-1s", "1.5s", "1us", "1d", "100000s", "1s1s1s1s1s", "1 s", "1S", "1s ", "１s"] {
            assert_eq!(text.parse::<Duration>(), Err(DurationError::Form), "{text}");
        }
        assert_eq!("99999h99999m".parse::<Duration>(), Err(DurationError::TooLong));
    }

    /// (20.26)
    #[test]
    fn a_time_in_a_flag_may_also_be_in_days_and_has_a_unit() {
        for (text, millis) in [
            ("250ms", 250),
            ("1m30s", 90_000),
            ("7d", 604_800_000),
            ("1d12h", 129_600_000),
            ("604800s", 604_800_000),
            ("0s", 0),
            ("00000000000000000000000ms", 0),
        ] {
            assert_eq!(parse_time(text).map(|time| time.as_millis()), Ok(millis), "{text}");
        }
        for text in
            ["", "5", "0", "-0", "-1s", "+1s", "s", "1.5h", "0ns", "1us", "1w", "1 s", "1S", "1s ", "１s", "1s5"]
        {
            assert_eq!(parse_time(text), Err(DurationError::Time), "{text}");
        }
        for text in ["99999999999999999999s", "18446744073709551615d", "100000h", "4167d"] {
            assert_eq!(parse_time(text), Err(DurationError::TooLong), "{text}");
        }
        let (least, most) = (std::time::Duration::from_secs(1), std::time::Duration::from_secs(86_400));
        assert!(parse_time_within("1s", least..=most).is_ok() && parse_time_within("1d", least..=most).is_ok());
        for text in ["999ms", "24h1ms", "99999999d"] {
            assert_eq!(parse_time_within(text, least..=most), Err("must be 1s to 1d".to_owned()), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(millis in 0..END) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(duration.to_string().parse::<Duration>().unwrap(), duration);
        }
    }
}
