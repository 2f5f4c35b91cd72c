//! Polling with a deadline. The only place of the demo that sleeps.

use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::time::{Instant, sleep};

/// Bound on operations that take milliseconds on an idle machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

const STEP: Duration = Duration::from_millis(20);

/// Calls `ask` until it returns a value; an error means "not yet". `what` completes "waited for …".
///
/// Errors: `deadline` passed; the cause is the last error of `ask`.
pub(crate) async fn until<T>(what: &str, deadline: Duration, mut ask: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match ask().await {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() >= deadline => {
                return Err(error).with_context(|| format!("waited {} s for {what}", deadline.as_secs()));
            }
            Err(_) => sleep(STEP).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[tokio::test]
    async fn gives_the_value_or_the_last_error() {
        let mut left = 3;
        let value = until("three", DEADLINE, async || {
            left -= 1;
            if left == 0 { Ok("done") } else { bail!("{left} left") }
        });
        assert_eq!(value.await.unwrap(), "done");
        let never = until("never", Duration::ZERO, async || -> Result<()> { bail!("no") }).await;
        assert_eq!(format!("{:#}", never.unwrap_err()), "waited 0 s for never: no");
    }
}
