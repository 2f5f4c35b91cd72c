//! Durations as people write them: `10s`, `500ms`, `1m30s`.
//! Spec: Gateway API GEP-2257: one to four groups of up to five digits and a unit of `h`, `m`, `s`, `ms`; no sign, no
//! fraction. Written back in the shortest form, largest unit first.

use std::{fmt, str::FromStr};

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
    /// More than 99,999 hours.
    #[error("must be less than 100000h")]
    TooLong,
}

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
        let (mut rest, mut total, mut groups) = (text, 0u64, 0);
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or(DurationError::Form)?;
            let (number, tail) = rest.split_at(digits);
            let unit_end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(unit_end);
            let (_, millis) = UNITS.iter().find(|(name, _)| *name == unit).ok_or(DurationError::Form)?;
            groups += 1;
            if groups > 4 || !(1..=5).contains(&number.len()) {
                return Err(DurationError::Form);
            }
            let number: u64 = number.parse().ok().ok_or(DurationError::Form)?;
            total = total.saturating_add(number.saturating_mul(*millis));
            rest = tail;
        }
        match groups {
            0 => Err(DurationError::Form),
            _ if total >= END => Err(DurationError::TooLong),
            _ => Ok(Self(total)),
        }
    }
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

    proptest! {
        #[test]
        fn what_is_written_is_read_again(millis in 0..END) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(duration.to_string().parse::<Duration>().unwrap(), duration);
        }
    }
}
