//! Step 6: a payment call from a service that may not make it, refused and explained.

use std::time::Duration;

use anyhow::{Result, bail, ensure};

use super::Story;
use crate::{
    exchange::{self, Ended, Field},
    metrics,
    wait::until,
};

/// The rule of `policies.yaml` that denies the call.
const RULE: &str = "user-may-not-charge";
/// Bound on the delay of log and metric.
const WRITTEN: Duration = Duration::from_secs(5);
/// gRPC's NOT_FOUND and PERMISSION_DENIED.
const NOT_FOUND: u32 = 5;
const PERMISSION_DENIED: u32 = 7;

impl Story {
    pub(super) async fn refusal(&mut self) {
        self.stage.step("6. Authorization");
        self.stage.say(
            "A policy allows only order to charge. Now a program on a host of user calls payment. The caller's certificate proves\n\
             its identity, and payment's proxy denies the call before payment receives it. Log and metric name the rule.",
        );
        let order = format!("demo-refused-{:08x}", fastrand::u32(..));
        let denied = self.denied().await;
        let result = self.charge("user-1", &order).await;
        let refused = result.and_then(|ended| {
            ensure!(ended.code == PERMISSION_DENIED, "the call ended with {} {:?}", ended.code, ended.message);
            Ok(format!("PERMISSION_DENIED {}", ended.message).trim_end().to_owned())
        });
        self.stage.check("authorization: user is denied the call", refused);
        self.stage.check("authorization: nothing was charged", self.not_charged(&order).await);
        self.stage.check("authorization: a metric names the rule", self.counted(denied).await);
        let logged = self.logged().await;
        self.stage.check("authorization: the log of payment's proxy names the rule", logged);
        let allowed = self.charge("order-1", &order).await.and_then(|ended| {
            ensure!(ended.code == 0, "the call ended with {} {:?}", ended.code, ended.message);
            Ok(String::new())
        });
        self.stage.check("authorization: order is allowed the same call", allowed);
    }

    async fn charge(&self, from: &str, order: &str) -> Result<Ended> {
        let wanted = [(1, Field::Text(order)), (2, Field::Integer(100)), (3, Field::Text("EUR"))];
        self.payment(from, "Charge", &exchange::message(&wanted)?).await
    }

    async fn not_charged(&self, order: &str) -> Result<String> {
        let ended = self.payment("order-1", "Read", &exchange::message(&[(1, Field::Text(order))])?).await?;
        ensure!(ended.code == NOT_FOUND, "Read ended with {} {:?}", ended.code, ended.message);
        Ok(ended.message)
    }

    async fn payment(&self, from: &str, method: &str, message: &[u8]) -> Result<Ended> {
        let shop = self.shop()?;
        let stream = shop.inside(from)?.connect(shop.address("payment", false, 50051)?).await?;
        exchange::grpc(stream, "payment:50051", &format!("/payment.Payment/{method}"), message).await
    }

    /// How often payment's proxies refused by the rule.
    async fn denied(&self) -> Result<f64> {
        let mut count = 0.0;
        for inside in self.shop()?.members_of("payment") {
            let samples = metrics::scrape(&inside).await?;
            let named = samples.iter().filter(|sample| {
                sample.name == "weft_denied_total" && sample.labels.values().any(|value| value.contains(RULE))
            });
            count += named.map(|sample| sample.value).sum::<f64>();
        }
        Ok(count)
    }

    async fn counted(&self, before: Result<f64>) -> Result<String> {
        let before = before?;
        until("the metric", WRITTEN, async || {
            let after = self.denied().await?;
            ensure!(after > before, "weft_denied_total with {RULE}: {after}, before {before}");
            Ok(format!("weft_denied_total, rule {RULE}: {after}"))
        })
        .await
    }

    /// The line of the log. It is written beside the answer, not before it.
    async fn logged(&mut self) -> Result<String> {
        let shop = self.shop_mut()?;
        until("the log", WRITTEN, async || {
            for name in ["payment-1", "payment-2"] {
                let output = shop.proxy(name)?.output()?;
                if let Some(line) = output.lines().find(|line| line.contains(RULE)) {
                    return Ok(format!("{name}: {line}"));
                }
            }
            bail!("no line with {RULE}")
        })
        .await
    }
}
