//! The proxies' metrics: scraped in their namespaces, summed per service, as rates and quantiles.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use http::Method;

use crate::{exchange, netns::Inside};

/// Where a proxy serves its metrics and health.
pub(crate) const PORT: u16 = 15020;

/// One line of the Prometheus text format.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sample {
    /// The metric.
    pub(crate) name: String,
    /// Its labels.
    pub(crate) labels: BTreeMap<String, String>,
    /// The value.
    pub(crate) value: f64,
}

/// The requests that one service's proxies have taken since they started.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Totals {
    /// Requests by hundreds of the status.
    pub(crate) by_status: BTreeMap<String, f64>,
    /// Requests not slower than so many microseconds.
    pub(crate) buckets: BTreeMap<u64, f64>,
    /// Open connections from callers.
    pub(crate) open: f64,
    /// Requests and connections that came by mutual TLS; the rest came in plaintext.
    pub(crate) mtls: f64,
}

/// What happened between two scrapes.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Rates {
    /// Requests a second.
    pub(crate) rps: f64,
    /// The part that was not answered with 5xx or not at all. 1 when there were none.
    pub(crate) success: f64,
    /// Latency that half the requests did not exceed, in milliseconds (the bound of its histogram bucket, interpolated).
    pub(crate) p50_ms: Option<f64>,
    /// Likewise for 99 of 100.
    pub(crate) p99_ms: Option<f64>,
}

/// Reads one proxy's metrics.
///
/// Errors: it does not answer.
pub(crate) async fn scrape(inside: &Inside) -> Result<Vec<Sample>> {
    let stream =
        inside.connect(SocketAddr::from((Ipv4Addr::LOCALHOST, PORT))).await.context("connect to the metrics port")?;
    let answer = exchange::http(stream, Method::GET, "localhost", "/metrics", None).await?;
    ensure!(answer.status.is_success(), "/metrics answered {}", answer.status);
    Ok(parse(&String::from_utf8_lossy(&answer.body)))
}

/// The samples of a text; lines that are none are skipped.
pub(crate) fn parse(text: &str) -> Vec<Sample> {
    text.lines().filter_map(sample).collect()
}

fn sample(line: &str) -> Option<Sample> {
    if line.starts_with('#') {
        return None;
    }
    let name_end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at_checked(name_end)?;
    let mut labels = BTreeMap::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        while !rest.starts_with('}') {
            let (label, quoted) = rest.trim_start_matches(',').split_once("=\"")?;
            let mut value = String::new();
            let mut characters = quoted.char_indices();
            let end = loop {
                match characters.next()? {
                    (at, '"') => break at,
                    (_, '\\') => match characters.next()?.1 {
                        'n' => value.push('\n'),
                        other => value.push(other),
                    },
                    (_, other) => value.push(other),
                }
            };
            labels.insert(label.to_owned(), value);
            rest = quoted.get(end + 1..)?;
        }
        rest = rest.get(1..)?;
    }
    let value = rest.split_ascii_whitespace().next()?.parse().ok()?;
    Some(Sample { name: name.to_owned(), labels, value })
}

impl Totals {
    /// Adds what one proxy says about the requests that reach its workload, or the edge.
    pub(crate) fn add(&mut self, samples: &[Sample]) {
        for sample in samples {
            let label = |name: &str| sample.labels.get(name).map(String::as_str).unwrap_or_default();
            if !matches!(label("direction"), "inbound" | "gateway") {
                continue;
            }
            match sample.name.as_str() {
                "weft_requests_total" => {
                    *self.by_status.entry(label("status").to_owned()).or_default() += sample.value;
                    if label("security") == "mtls" {
                        self.mtls += sample.value;
                    }
                }
                "weft_request_duration_seconds_bucket" => {
                    let bound = match label("le") {
                        "+Inf" => u64::MAX,
                        seconds => seconds.parse::<f64>().map_or(u64::MAX, |seconds| {
                            // Bounds are fractions of a few seconds: far from both ends of u64.
                            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 3e7")]
                            let micros = (seconds * 1e6).round() as u64;
                            micros
                        }),
                    };
                    *self.buckets.entry(bound).or_default() += sample.value;
                }
                "weft_connections_open" => self.open += sample.value,
                _ => {}
            }
        }
    }

    /// What happened since `before`. A proxy that restarted meanwhile counts from its start.
    pub(crate) fn since(&self, before: &Self, time: Duration) -> Rates {
        let delta = |now: f64, before: Option<&f64>| (now - before.copied().unwrap_or(0.0)).max(0.0);
        let status = |wanted: fn(&str) -> bool| -> f64 {
            let these = self.by_status.iter().filter(|(class, _)| wanted(class));
            these.map(|(class, now)| delta(*now, before.by_status.get(class))).sum()
        };
        let (all, bad) = (status(|_| true), status(|class| matches!(class, "5xx" | "none")));
        let buckets: Vec<(u64, f64)> =
            self.buckets.iter().map(|(bound, now)| (*bound, delta(*now, before.buckets.get(bound)))).collect();
        Rates {
            rps: all / time.as_secs_f64().max(0.001),
            success: if all > 0.0 { 1.0 - bad / all } else { 1.0 },
            p50_ms: quantile(&buckets, 0.5),
            p99_ms: quantile(&buckets, 0.99),
        }
    }
}

/// In milliseconds, interpolated within its bucket as Prometheus' `histogram_quantile` does.
fn quantile(buckets: &[(u64, f64)], share: f64) -> Option<f64> {
    let total = buckets.last().map(|(_, count)| *count).filter(|total| *total > 0.0)?;
    let wanted = share * total;
    let (mut below, mut under) = (0_u64, 0.0);
    for (bound, count) in buckets {
        if *count >= wanted {
            let bound = if *bound == u64::MAX { below } else { *bound };
            let part = if *count > under { (wanted - under) / (*count - under) } else { 1.0 };
            return Some((below as f64 + (bound - below) as f64 * part) / 1000.0);
        }
        (below, under) = (*bound, *count);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"# HELP weft_requests_total HTTP requests.
weft_requests_total{direction="inbound",destination="8080",source="shop/edge",security="mtls",status="2xx"} 90
weft_requests_total{direction="inbound",destination="8080",source="a\"b\\",security="plain",status="5xx"} 10
weft_requests_total{direction="outbound",destination="x",source="",security="mtls",status="2xx"} 7
weft_request_duration_seconds_bucket{direction="inbound",le="0.001"} 50
weft_request_duration_seconds_bucket{direction="inbound",le="0.01"} 100
weft_request_duration_seconds_bucket{direction="inbound",le="+Inf"} 100
weft_connections_open{direction="inbound"} 3
weft_up 1
not a sample
"#;

    #[test]
    fn samples_are_read_with_escapes() {
        let samples = parse(TEXT);
        assert_eq!(samples.len(), 8);
        assert_eq!(samples[1].labels["source"], "a\"b\\");
        assert_eq!((samples[7].name.as_str(), samples[7].value), ("weft_up", 1.0));
    }

    #[test]
    fn totals_count_what_comes_in_and_rates_what_came_since() {
        let mut totals = Totals::default();
        totals.add(&parse(TEXT));
        assert_eq!((totals.open, totals.mtls), (3.0, 90.0));
        let rates = totals.since(&Totals::default(), Duration::from_secs(2));
        assert_eq!((rates.rps, rates.success), (50.0, 0.9));
        assert_eq!(rates.p50_ms, Some(1.0));
        assert!((rates.p99_ms.unwrap() - 9.82).abs() < 0.001);
        let nothing = totals.since(&totals, Duration::from_secs(1));
        assert_eq!(nothing, Rates { rps: 0.0, success: 1.0, p50_ms: None, p99_ms: None });
    }
}
