//! The results: medians over the rounds, the table for people, `latest.json` for programs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::bars;
use crate::measure::{median, spread};
use crate::pairs::{Contestant, Proxy};
use crate::run::{NOISY, Round, Rounds};
use crate::scenario::Scenario;

/// One line of `latest.json`. Fields that a scenario does not measure are null.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Row {
    /// The scenario's name.
    pub scenario: &'static str,
    /// The proxy's name.
    pub proxy: &'static str,
    /// In which of several settings, such as `routes=10`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub setting: Option<String>,
    /// TCP connections of the client.
    pub connections: u32,
    /// Requests per second.
    pub rps: Option<f64>,
    /// Median latency, microseconds.
    pub p50_us: Option<f64>,
    /// 99th percentile latency, microseconds.
    pub p99_us: Option<f64>,
    /// CPU microseconds per request: outbound, inbound.
    pub cpu_us_per_request: Option<[f64; 2]>,
    /// RssAnon + RssFile after the load, MiB: outbound, inbound.
    pub rss_mib: Option<[f64; 2]>,
    /// Figures of single scenarios, by name.
    #[serde(flatten)]
    pub extra: BTreeMap<&'static str, f64>,
    /// Whether other programs took more than [`NOISY`] of the machine.
    pub noisy: bool,
    /// The proxy's label in the table.
    #[serde(skip)]
    pub label: String,
    /// How far the rounds lie apart in CPU.
    #[serde(skip)]
    pub spread: f64,
    /// Median share of foreign CPU time.
    #[serde(skip)]
    pub foreign: f64,
    /// The same of each round alone, in their order.
    #[serde(skip)]
    pub rounds: Vec<Row>,
}

impl Row {
    fn of(scenario: Scenario, contestant: Contestant, rounds: &[Round]) -> Self {
        let each = rounds.chunks(1).map(|round| Self::middle(scenario, contestant, round)).collect();
        Self { rounds: each, ..Self::middle(scenario, contestant, rounds) }
    }

    /// The median of these rounds.
    fn middle(scenario: Scenario, contestant: Contestant, rounds: &[Round]) -> Self {
        let column = |pick: &dyn Fn(&Round) -> Option<f64>| rounds.iter().filter_map(pick).collect::<Vec<f64>>();
        let middle = |pick: &dyn Fn(&Round) -> Option<f64>| {
            let values = column(pick);
            (!values.is_empty()).then(|| round_to_hundredths(median(&values)))
        };
        let both = |pick: fn(&Round) -> Option<[f64; 2]>| {
            let outbound = middle(&|round| pick(round).map(|[outbound, _]| outbound))?;
            Some([outbound, middle(&|round| pick(round).map(|[_, inbound]| inbound))?])
        };
        let names: Vec<&'static str> = rounds.iter().flat_map(|round| round.extra.keys().copied()).collect();
        // A figure that one round has and another has not (resumption that came or went) is none.
        let extra = names.into_iter().filter(|name| rounds.iter().all(|round| round.extra.contains_key(name)));
        let extra = extra.filter_map(|name| Some((name, middle(&|round| round.extra.get(name).copied())?))).collect();
        let foreign = median(&column(&|round| Some(round.foreign)));
        Self {
            scenario: scenario.name(),
            proxy: contestant.proxy.name(),
            setting: contestant.setting(),
            connections: scenario.connections(),
            rps: middle(&|round| round.rps),
            p50_us: middle(&|round| round.p50_us),
            p99_us: middle(&|round| round.p99_us),
            cpu_us_per_request: both(|round| round.cpu_us),
            rss_mib: both(|round| round.rss_mib),
            extra,
            noisy: foreign > NOISY,
            label: contestant.label(),
            spread: spread(&column(&|round| Some(round.cost()).filter(|cost| cost.is_finite()))),
            foreign,
            rounds: Vec::new(),
        }
    }

    /// CPU microseconds per request of both proxies.
    #[must_use]
    pub fn cpu(&self) -> Option<f64> {
        self.cpu_us_per_request.map(|pair| pair.iter().sum())
    }

    /// MiB of both proxies.
    #[must_use]
    pub fn rss(&self) -> Option<f64> {
        self.rss_mib.map(|pair| pair.iter().sum())
    }

    /// A figure of single scenarios.
    #[must_use]
    pub fn extra(&self, name: &str) -> Option<f64> {
        self.extra.get(name).copied()
    }
}

fn round_to_hundredths(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// Medians by scenario and contestant. Of the floor's buffer sizes the cheapest counts.
#[must_use]
pub fn rows(rounds: &Rounds, proxies: &[Proxy]) -> Vec<Row> {
    let mut rows = Vec::new();
    for scenario in Scenario::ALL {
        for &proxy in proxies {
            let of = rounds.iter().filter(|((s, contestant), _)| *s == scenario && contestant.proxy == proxy);
            let row = |(&(_, contestant), rounds): (&(Scenario, Contestant), &Vec<Round>)| {
                Row::of(scenario, contestant, rounds)
            };
            if proxy == Proxy::Floor {
                let cost = |rounds: &[Round]| median(&rounds.iter().map(Round::cost).collect::<Vec<_>>());
                rows.extend(of.min_by(|(_, a), (_, b)| cost(a).total_cmp(&cost(b))).map(row));
            } else {
                rows.extend(of.map(row));
            }
        }
    }
    rows
}

/// The table. Ratios are to the better Envoy, for CPU and for memory each by itself, and to the floor, in the same scenario;
/// below each block the bars of the scenario.
#[must_use]
pub fn table(rows: &[Row]) -> String {
    let mut text = String::new();
    for scenario in Scenario::ALL {
        let block: Vec<&Row> = rows.iter().filter(|row| row.scenario == scenario.name()).collect();
        if block.is_empty() {
            continue;
        }
        let least = |figure: fn(&Row) -> Option<f64>| {
            let envoys = block.iter().filter(|row| row.proxy.starts_with("envoy"));
            envoys.filter_map(|row| figure(row)).min_by(f64::total_cmp)
        };
        let (envoy_cpu, envoy_rss) = (least(Row::cpu), least(Row::rss));
        let floor = block.iter().find(|row| row.proxy == Proxy::Floor.name());
        let (floor_cpu, floor_rss) = (floor.and_then(|row| row.cpu()), floor.and_then(|row| row.rss()));
        // Writing to a String cannot fail.
        _ = writeln!(text, "\n{}: {}", scenario.name(), scenario.title());
        _ = writeln!(text, "{HEAD}");
        for row in &block {
            _ = writeln!(
                text,
                "{:<20} {:>8} {:>7} {:>7} {:>7} {:>14} {:>5.0} % {:>7} {:>7} {:>7} {:>14} {:>7} {:>7}{}{}",
                row.label,
                shown(row.rps, 0),
                shown(row.p50_us, 0),
                shown(row.p99_us, 0),
                shown(row.cpu(), 1),
                sum(row.cpu_us_per_request),
                row.spread * 100.0,
                ratio(row.cpu(), envoy_cpu),
                ratio(row.cpu(), floor_cpu),
                shown(row.rss(), 1),
                sum(row.rss_mib),
                ratio(row.rss(), envoy_rss),
                ratio(row.rss(), floor_rss),
                extras(row),
                if row.noisy { "  noisy" } else { "" },
            );
        }
        text.push_str(&bars::lines(scenario, &block));
    }
    let noisy = rows.iter().filter(|row| row.noisy).count();
    if noisy > 0 {
        _ = writeln!(
            text,
            "\nOther processes took more than {:.0} % of the machine in {noisy} of {} rows: their requests per second and \
             latencies are not reliable, CPU per request is less exact, and they are not compared with bars.",
            NOISY * 100.0,
            rows.len()
        );
    }
    text
}

const HEAD: &str = "proxy                   req/s  p50 µs  p99 µs CPU/req       out + in  spread x Envoy x floor     MiB       out + in x Envoy x floor";

fn shown(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
}

fn sum(pair: Option<[f64; 2]>) -> String {
    pair.map_or_else(|| "-".to_owned(), |[outbound, inbound]| format!("{outbound:.1} + {inbound:.1}"))
}

fn ratio(value: Option<f64>, base: Option<f64>) -> String {
    let ratio = value.zip(base.filter(|base| *base > 0.0)).map(|(value, base)| value / base);
    shown(ratio, 2)
}

/// The figures that have no column.
fn extras(row: &Row) -> String {
    let mut text: String = row.extra.iter().map(|(name, value)| format!("  {name} {value:.1}")).collect();
    if row.extra.contains_key("resumed_share") && !row.extra.contains_key("resumed_handshakes_per_cpu_second") {
        text.push_str("  not resumed");
    }
    text
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
    use crate::pairs::Variant;

    fn round(cpu: f64, rss: f64) -> Round {
        Round {
            rps: Some(1000.0),
            p50_us: Some(10.0),
            p99_us: Some(20.0),
            cpu_us: Some([cpu, cpu]),
            rss_mib: Some([rss, rss]),
            ..Round::default()
        }
    }

    fn sample() -> Rounds {
        let mut rounds = Rounds::new();
        let mut add = |proxy, kib, values: &[(f64, f64)]| {
            let variant = if kib == 0 { Variant::Default } else { Variant::BufferKib(kib) };
            let values = values.iter().map(|&(cpu, rss)| round(cpu, rss)).collect();
            rounds.insert((Scenario::Http1Many, Contestant { proxy, variant }), values);
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
        assert_eq!(rows[0].cpu_us_per_request, Some([11.0, 11.0]));
        assert_eq!(rows[3].label, "floor 64k");
        assert_eq!(rows[3].cpu(), Some(11.0));
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
            ["connections", "cpu_us_per_request", "noisy", "p50_us", "p99_us", "proxy", "rps", "rss_mib", "scenario"]
        );
        assert_eq!(list[0]["scenario"], "http1-32");
        assert_eq!(list[0]["connections"], 32);
        assert_eq!(list[0]["cpu_us_per_request"], serde_json::json!([11.0, 11.0]));
    }

    #[test]
    fn settings_are_rows_of_their_own_and_extra_figures_are_fields() {
        let mut rounds = Rounds::new();
        for routes in [10, 10_000] {
            let contestant = Contestant { proxy: Proxy::Weft, variant: Variant::Routes(routes) };
            let extra = BTreeMap::from([("workers", 2.0)]);
            let all = vec![
                Round { extra, ..round(5.0, 5.0) },
                Round { extra: BTreeMap::from([("workers", 4.0), ("odd", 1.0)]), ..round(5.0, 5.0) },
            ];
            rounds.insert((Scenario::GrowthRoutes, contestant), all);
        }
        let rows = serde_json::to_value(rows(&rounds, &Proxy::ALL)).unwrap();
        assert_eq!(rows[1]["setting"], "routes=10000");
        assert_eq!(rows[1]["workers"], 3.0);
        assert_eq!(rows[1]["odd"], serde_json::Value::Null, "a figure of one round only counted");
    }

    #[test]
    fn what_did_not_resume_says_so() {
        let mut row = Row::default();
        row.extra.insert("resumed_share", 0.0);
        assert!(extras(&row).ends_with("not resumed"));
        row.extra.insert("resumed_handshakes_per_cpu_second", 9000.0);
        assert!(!extras(&row).contains("not resumed"));
    }
}
