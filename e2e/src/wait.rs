//! Waiting: polls a condition up to a deadline. The only place that sleeps.

use std::fmt::Display;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// How long a thing may take that should take milliseconds; the machine may be busy.
pub const DEADLINE: Duration = Duration::from_secs(30);

const STEP: Duration = Duration::from_millis(10);

/// Asks `probe` until it gives a value; an error means "not yet". `what` completes "waited for …".
///
/// Errors: `deadline` passed; carries the last error of `probe`.
pub fn until<T>(what: impl Display, deadline: Duration, mut probe: impl FnMut() -> Result<T>) -> Result<T> {
    let start = now();
    loop {
        match probe() {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() >= deadline => {
                return Err(error).with_context(|| format!("waited {deadline:?} for {what}"));
            }
            Err(_) => thread::sleep(STEP),
        }
    }
}

/// Asks `probe` until it gives a value; an error ends the waiting at once.
///
/// Errors: the probe's, or `deadline` passed.
pub fn until_some<T>(
    what: impl Display,
    deadline: Duration,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = now();
    loop {
        if let Some(value) = probe()? {
            return Ok(value);
        }
        ensure!(start.elapsed() < deadline, "waited {deadline:?} for {what}");
        thread::sleep(STEP);
    }
}

#[expect(clippy::disallowed_methods, reason = "real programs need real time; there is no runtime here")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn gives_the_value_or_the_last_error() {
        let mut left = 3;
        let value = until("three", DEADLINE, || {
            left -= 1;
            if left == 0 { Ok("done") } else { bail!("{left} left") }
        });
        assert_eq!(value.unwrap(), "done");
        let never = until("never", Duration::from_millis(1), || -> Result<()> { bail!("no") });
        assert_eq!(format!("{:#}", never.unwrap_err()), "waited 1ms for never: no");
    }

    #[test]
    fn an_error_ends_the_waiting_where_none_means_not_yet() {
        let broken = until_some("it", DEADLINE, || -> Result<Option<()>> { bail!("broken") });
        assert_eq!(broken.unwrap_err().to_string(), "broken");
        let never = until_some("it", Duration::from_millis(1), || Ok(None::<()>));
        assert_eq!(never.unwrap_err().to_string(), "waited 1ms for it");
    }
}
