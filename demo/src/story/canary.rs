//! Step 4: product v2 gets 10 %, then 50 %, then the change is rolled back.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use http::Method;
use serde_json::Value;
use tokio::task::JoinSet;

use super::Story;
use weft::command::{history, rollback};

use crate::exchange::{self, Answer};

/// Requests that measure a share, half of them at the edge and half inside the mesh, and how many at once.
const REQUESTS: u32 = 1000;
const AT_ONCE: usize = 8;
/// The caller inside the mesh.
const CALLER: &str = "order-1";
const PATH: &str = "/products/p1";

impl Story {
    pub(super) async fn canary(&mut self) {
        self.stage.step("4. A canary release");
        self.stage.say(
            "Version 2 of product is running, without traffic. A route sends it 10 % of the requests, then 50 %; then a rollback\n\
             restores the first revision. Each change is a revision, which every proxy applies in one step. Watch the rows\n\
             product v1 and product v2.",
        );
        let mark = self.mark();
        let good = match self.shop() {
            Ok(shop) => history::newest(&shop.client).await.map_err(anyhow::Error::from),
            Err(error) => Err(error),
        };
        for (share, file) in [(10, "canary/10.yaml"), (50, "canary/50.yaml")] {
            let result = self.shifted(file, f64::from(share) / 100.0).await;
            self.stage.check(&format!("canary: product v2 receives {share} %"), result);
            if let Err(error) = self.linger().await {
                self.stage.say(&format!("{error:#}"));
            }
        }
        let result = match good {
            Ok(good) => self.back(good).await,
            Err(error) => Err(error),
        };
        self.stage.check("canary: after the rollback product v2 receives no requests", result);
        let quiet = match mark {
            Ok(mark) => self.quiet(mark, 0).await.map(|since| format!("{} requests", since.ok)),
            Err(error) => Err(error),
        };
        self.stage.check("canary: no request failed during the changes", quiet);
    }

    async fn shifted(&self, file: &str, wanted: f64) -> Result<String> {
        let shop = self.shop()?;
        let revision = shop.apply(file, &format!("product v2: {:.0} %", wanted * 100.0)).await?;
        shop.until_applied(revision).await?;
        let (edge, mesh) = self.shares().await?;
        // Four standard deviations of the binomial distribution: 1 run in 8,000 falls outside by chance.
        let tolerance = 4.0 * (wanted * (1.0 - wanted) / f64::from(REQUESTS / 2)).sqrt();
        for (place, share) in [("at the edge", edge), ("inside the mesh", mesh)] {
            ensure!(
                (share - wanted).abs() <= tolerance,
                "{:.1} % {place}, tolerance {:.1} %",
                share * 100.0,
                tolerance * 100.0
            );
        }
        Ok(format!("{:.1} % at the edge, {:.1} % inside the mesh, revision {revision}", edge * 100.0, mesh * 100.0))
    }

    /// The shares of version 2 at the edge and inside the mesh.
    async fn shares(&self) -> Result<(f64, f64)> {
        let (edge, shop) = (self.edge()?, self.shop()?);
        let at_edge = share(move || Self::customer(edge, Method::GET, PATH, None)).await?;
        let (inside, product) = (shop.inside(CALLER)?.clone(), shop.address("product", false, 80)?);
        let in_mesh = share(move || {
            let inside = inside.clone();
            async move { exchange::http(inside.connect(product).await?, Method::GET, "product", PATH, None).await }
        });
        Ok((at_edge, in_mesh.await?))
    }

    async fn back(&self, good: u64) -> Result<String> {
        let shop = self.shop()?;
        let answer = rollback::send(&shop.client, good, None, false).await?;
        let revision = answer.meaning.revision;
        shop.until_applied(revision).await?;
        let (edge, mesh) = self.shares().await?;
        ensure!(edge == 0.0 && mesh == 0.0, "{:.1} % at the edge, {:.1} % inside the mesh", edge * 100.0, mesh * 100.0);
        Ok(format!("0 of {REQUESTS} requests, revision {revision} restores {good}"))
    }
}

/// The share of version 2 in half the requests, none of which may fail.
async fn share<F>(ask: impl Fn() -> F) -> Result<f64>
where
    F: Future<Output = Result<Answer>> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    let mut versions: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..REQUESTS / 2 {
        if tasks.len() >= AT_ONCE {
            count(&mut tasks, &mut versions).await?;
        }
        let answer = ask();
        tasks.spawn(async move {
            let answer = answer.await?;
            ensure!(answer.status.is_success(), "GET {PATH} answers {}", answer.status);
            Ok(answer.json()?.get("version").and_then(Value::as_str).unwrap_or("no version").to_owned())
        });
    }
    while !tasks.is_empty() {
        count(&mut tasks, &mut versions).await?;
    }
    let of = |version: &str| versions.get(version).copied().unwrap_or(0);
    ensure!(of("v1") + of("v2") == REQUESTS / 2, "versions {versions:?}");
    Ok(f64::from(of("v2")) / f64::from(REQUESTS / 2))
}

async fn count(tasks: &mut JoinSet<Result<String>>, versions: &mut BTreeMap<String, u32>) -> Result<()> {
    let version = tasks.join_next().await.context("no request under way")?.context("a request broke")??;
    *versions.entry(version).or_default() += 1;
    Ok(())
}
