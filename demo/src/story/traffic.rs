//! Step 2: customers come. Success rate and latency of every service, from the proxies' metrics.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::time::Instant;

use super::Story;
use crate::metrics::Totals;

const SECONDS: usize = 5;

impl Story {
    pub(super) async fn traffic(&mut self) -> Result<()> {
        self.stage.step("2. Traffic");
        self.stage.say(&format!(
            "A load generator sends {} requests per second to the edge: reads of products, users and orders; every tenth request\n\
             places an order. Each order reads a user and a product over HTTP, charges over gRPC and writes to PostgreSQL: five hops.",
            self.args.rps
        ));
        self.start_load()?;
        // The first second opens the connections between all proxies.
        let mark = self.mark()?;
        self.load()?.seconds(mark, 0).await?;
        let (mark, before, start) = (self.mark()?, self.totals().await?, Instant::now());
        let quiet = self.quiet(mark, SECONDS).await;
        let (after, time) = (self.totals().await?, start.elapsed());
        self.stage
            .check("traffic: every request at the edge succeeds", quiet.map(|since| format!("{} requests", since.ok)));
        for service in ["edge", "user", "product", "order", "payment"] {
            let result = measured(service, before.get(service), after.get(service), time);
            let how = if service == "edge" { "" } else { ", all over mutual TLS" };
            self.stage.check(&format!("traffic: {service} answers every request{how}"), result);
        }
        let page = self.page().await;
        self.stage.check("traffic: the edge's URL shows a page of the shop", page);
        let places = self.placed().await;
        self.stage.check("traffic: an order passes through all services", places);
        Ok(())
    }

    /// Reads the page that a browser shows at the edge's URL; the URL.
    async fn page(&self) -> Result<String> {
        let page = Self::customer(self.edge()?, http::Method::GET, "/", None).await?;
        let text = String::from_utf8_lossy(&page.body);
        ensure!(page.status == 200, "GET / returns {}: {text}", page.status);
        ensure!(text.contains("<title>Weft demo shop</title>"), "GET / returns another page: {text}");
        Ok(format!("http://{}/", self.edge()?))
    }

    /// Places one order; the instances that took part.
    async fn placed(&self) -> Result<String> {
        let body = r#"{"user":"u1","product":"p1","quantity":1}"#.to_owned();
        let answer = Self::customer(self.edge()?, http::Method::POST, "/orders", Some(body)).await?;
        ensure!(
            answer.status == 201,
            "POST /orders returns {}: {}",
            answer.status,
            String::from_utf8_lossy(&answer.body)
        );
        let order = answer.json()?;
        let by = |name: &str| {
            order.pointer(&format!("/served_by/{name}")).and_then(|by| by.as_str()).unwrap_or("no instance")
        };
        let instance = order.get("instance").and_then(|by| by.as_str()).unwrap_or("no instance");
        Ok(format!("{instance} called {}, {} and {}", by("user"), by("product"), by("payment")))
    }
}

fn measured(service: &str, before: Option<&Totals>, after: Option<&Totals>, time: Duration) -> Result<String> {
    let after = after.context("no metrics")?;
    let before = before.cloned().unwrap_or_default();
    let rates = after.since(&before, time);
    ensure!(rates.rps > 0.0, "no request was measured");
    ensure!(rates.success >= 1.0, "{:.2} % succeeded", rates.success * 100.0);
    if service != "edge" {
        let count = |totals: &Totals| totals.by_status.values().sum::<f64>();
        let (all, mtls) = (count(after) - count(&before), after.mtls - before.mtls);
        ensure!((all - mtls).abs() < 0.5, "{mtls} of {all} requests used mutual TLS");
    }
    let quantile = |value: Option<f64>| value.map(|value| format!("{value:.1} ms")).context("no latency was measured");
    Ok(format!(
        "{:.0} requests per second, p50 {}, p99 {}",
        rates.rps,
        quantile(rates.p50_ms)?,
        quantile(rates.p99_ms)?
    ))
}
