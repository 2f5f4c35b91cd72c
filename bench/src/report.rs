//! The results: medians over the rounds, the table for people, `latest.json` for programs.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::measure::{median, spread};
use crate::pairs::Proxy;
use crate::run::{NOISY, Round, Rounds};
use crate::scenario::Scenario;

/// One line of `latest.json`.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// `http1-1`, `http1-32`, `http2-32`.
    pub scenario: &'static str,
    /// `weft`, `envoy-h1`, `envoy-h2`, `floor`.
    pub proxy: &'static str,
    /// TCP connections of the client.
    pub connections: u32,
    /// Requests per second.
    pub rps: f64,
    /// Median latency, microseconds.
    pub p50_us: f64,
    /// 99th percentile latency, microseconds.
    pub p99_us: f64,
    /// CPU microseconds per request: outbound, inbound.
    pub cpu_us_per_request: [f64; 2],
    /// RssAnon + RssFile after the load, MiB: outbound, inbound.
    pub rss_mib: [f64; 2],
    /// The proxy's label in the table.
    #[serde(skip)]
    label: String,
    /// How far the rounds lie apart in CPU per request.
    #[serde(skip)]
    spread: f64,
    /// Median share of foreign CPU time.
    #[serde(skip)]
    foreign: f64,
}

impl Row {
    fn of(scenario: Scenario, proxy: Proxy, label: String, rounds: &[Round]) -> Self {
        let column = |pick: &dyn Fn(&Round) -> f64| rounds.iter().map(pick).collect::<Vec<f64>>();
        let middle = |pick: &dyn Fn(&Round) -> f64| round_to_hundredths(median(&column(pick)));
        Self {
            scenario: scenario.name(),
            proxy: proxy.name(),
            connections: scenario.connections(),
            rps: middle(&|round| round.rps),
            p50_us: middle(&|round| round.p50_us),
            p99_us: middle(&|round| round.p99_us),
            cpu_us_per_request: [middle(&|round| round.cpu_us[0]), middle(&|round| round.cpu_us[1])],
            rss_mib: [middle(&|round| round.rss_mib[0]), middle(&|round| round.rss_mib[1])],
            label,
            spread: spread(&column(&|round| round.cpu_us.iter().sum())),
            foreign: median(&column(&|round| round.foreign)),
        }
    }

    /// CPU microseconds per request of both proxies.
    #[must_use]
    pub fn cpu(&self) -> f64 {
        self.cpu_us_per_request.iter().sum()
    }

    /// MiB of both proxies.
    #[must_use]
    pub fn rss(&self) -> f64 {
        self.rss_mib.iter().sum()
    }
}

fn round_to_hundredths(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// Medians by scenario and proxy. Of the floor's buffer sizes the one with the least CPU per request counts.
#[must_use]
pub fn rows(rounds: &Rounds, proxies: &[Proxy]) -> Vec<Row> {
    let mut rows = Vec::new();
    for scenario in Scenario::ALL {
        for &proxy in proxies {
            let candidates = rounds.iter().filter(|((s, contestant), _)| *s == scenario && contestant.proxy == proxy);
            let candidates = candidates.map(|((_, c), rounds)| Row::of(scenario, proxy, c.label(), rounds));
            rows.extend(candidates.min_by(|a, b| a.cpu().total_cmp(&b.cpu())));
        }
    }
    rows
}

/// The table. Ratios are to the better Envoy, for CPU and for memory each by itself, and to the floor, in the same scenario.
#[must_use]
pub fn table(rows: &[Row]) -> String {
    let mut text = String::new();
    for scenario in Scenario::ALL {
        let block: Vec<&Row> = rows.iter().filter(|row| row.scenario == scenario.name()).collect();
        if block.is_empty() {
            continue;
        }
        let envoys = || block.iter().filter(|row| row.proxy.starts_with("envoy"));
        let envoy_cpu = envoys().map(|row| row.cpu()).min_by(f64::total_cmp);
        let envoy_rss = envoys().map(|row| row.rss()).min_by(f64::total_cmp);
        let floor = block.iter().find(|row| row.proxy == Proxy::Floor.name());
        let (floor_cpu, floor_rss) = (floor.map(|row| row.cpu()), floor.map(|row| row.rss()));
        // Writing to a String cannot fail.
        _ = writeln!(text, "\n{}: {}", scenario.name(), scenario.title());
        _ = writeln!(text, "{HEAD}");
        for row in block {
            let [cpu_out, cpu_in] = row.cpu_us_per_request;
            let [rss_out, rss_in] = row.rss_mib;
            _ = writeln!(
                text,
                "{:<10} {:>8.0} {:>7.0} {:>7.0} {:>7.1} {:>14} {:>5.0} % {:>7} {:>7} {:>7.1} {:>14} {:>7} {:>7}{}",
                row.label,
                row.rps,
                row.p50_us,
                row.p99_us,
                row.cpu(),
                format!("{cpu_out:.1} + {cpu_in:.1}"),
                row.spread * 100.0,
                ratio(row.cpu(), envoy_cpu),
                ratio(row.cpu(), floor_cpu),
                row.rss(),
                format!("{rss_out:.1} + {rss_in:.1}"),
                ratio(row.rss(), envoy_rss),
                ratio(row.rss(), floor_rss),
                if row.foreign > NOISY { "  noisy" } else { "" },
            );
        }
    }
    let noisy = rows.iter().filter(|row| row.foreign > NOISY).count();
    if noisy > 0 {
        _ = writeln!(
            text,
            "\nOther processes took more than {:.0} % of the machine in {noisy} of {} rows: requests per second and latency \
             say little there, CPU per request is less exact.",
            NOISY * 100.0,
            rows.len()
        );
    }
    text
}

const HEAD: &str = "proxy         req/s  p50 µs  p99 µs CPU/req       out + in  spread x Envoy x floor     MiB       out + in x Envoy x floor";

fn ratio(value: f64, base: Option<f64>) -> String {
    base.filter(|base| *base > 0.0).map_or_else(|| "-".to_owned(), |base| format!("{:.2}", value / base))
}

/// Writes the rows as JSON, replacing the file in one step.
///
/// # Errors
/// The file cannot be written.
pub fn write_json(rows: &[Row], path: &Path) -> Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let write = || -> Result<()> {
        std::fs::create_dir_all(dir)?;
        let mut file = tempfile::Builder::new().prefix(".latest").tempfile_in(dir)?;
        serde_json::to_writer_pretty(&mut file, rows)?;
        std::io::Write::write_all(&mut file, b"\n")?;
        file.persist(path)?;
        Ok(())
    };
    write().with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pairs::Contestant;

    fn round(cpu: f64, rss: f64) -> Round {
        Round { rps: 1000.0, p50_us: 10.0, p99_us: 20.0, cpu_us: [cpu, cpu], rss_mib: [rss, rss], foreign: 0.0 }
    }

    fn sample() -> Rounds {
        let mut rounds = Rounds::new();
        let mut add = |proxy, buffer_kib, values: &[(f64, f64)]| {
            let values = values.iter().map(|&(cpu, rss)| round(cpu, rss)).collect();
            rounds.insert((Scenario::Http1Many, Contestant { proxy, buffer_kib }), values);
        };
        add(Proxy::Weft, 0, &[(12.0, 10.0), (10.0, 10.0), (11.0, 10.0)]);
        add(Proxy::EnvoyH1, 0, &[(44.0, 40.0)]);
        add(Proxy::EnvoyH2, 0, &[(22.0, 50.0)]);
        add(Proxy::Floor, 16, &[(9.0, 5.0)]);
        add(Proxy::Floor, 64, &[(5.5, 8.0)]);
        rounds
    }

    #[test]
    fn the_median_round_and_the_best_floor_count() {
        let rows = rows(&sample(), &Proxy::ALL);
        assert_eq!(rows.iter().map(|row| row.proxy).collect::<Vec<_>>(), ["weft", "envoy-h1", "envoy-h2", "floor"]);
        assert_eq!(rows[0].cpu_us_per_request, [11.0, 11.0]);
        assert_eq!(rows[3].label, "floor 64k");
        assert_eq!(rows[3].cpu(), 11.0);
    }

    #[test]
    fn ratios_are_to_the_better_envoy_and_to_the_floor() {
        let text = table(&rows(&sample(), &Proxy::ALL));
        let weft: Vec<&str> = text.lines().find(|line| line.starts_with("weft")).unwrap().split_whitespace().collect();
        // CPU 22 against Envoy's 44 (h2) and the floor's 11; memory 20 against 80 (h1) and 16.
        assert_eq!(weft[10..12], ["0.50", "2.00"]);
        assert_eq!(weft[16..18], ["0.25", "1.25"]);
        assert!(!text.contains("noisy"));
    }

    #[test]
    fn without_envoy_there_is_no_ratio_to_it() {
        let text = table(&rows(&sample(), &[Proxy::Weft, Proxy::Floor]));
        let weft: Vec<&str> = text.lines().find(|line| line.starts_with("weft")).unwrap().split_whitespace().collect();
        assert_eq!(weft[10..12], ["-", "2.00"]);
    }

    #[test]
    fn json_has_exactly_the_promised_fields() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out/latest.json");
        write_json(&rows(&sample(), &Proxy::ALL), &path).unwrap();
        let list: Vec<serde_json::Map<String, serde_json::Value>> =
            serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(list.len(), 4);
        let mut keys: Vec<&String> = list[0].keys().collect();
        keys.sort();
        assert_eq!(
            keys,
            ["connections", "cpu_us_per_request", "p50_us", "p99_us", "proxy", "rps", "rss_mib", "scenario"]
        );
        assert_eq!(list[0]["scenario"], "http1-32");
        assert_eq!(list[0]["connections"], 32);
        assert_eq!(list[0]["cpu_us_per_request"], serde_json::json!([11.0, 11.0]));
    }
}
