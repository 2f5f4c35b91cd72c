//! The bars: the limits that each scenario must meet, judged within one run. A row that other programs disturbed is not judged.
//! `workers-2` and `workers-2-open` are informative: their rows are reported and have no bar (docs/adr/0022).

use std::fmt::Write as _;

use crate::measure::median;
use crate::report::Row;
use crate::run::NOISY;
use crate::scenario::Scenario;

/// One thing that must hold.
struct Bar {
    scenario: Scenario,
    /// The compared figure, as printed.
    what: &'static str,
    figure: fn(&Row) -> Option<f64>,
    against: Against,
    /// The figure, or its ratio, must be at most this, or at least.
    limit: Limit,
}

/// What a figure is compared with.
#[derive(Clone, Copy)]
enum Against {
    /// Nothing: the figure itself.
    Itself,
    /// The floor's.
    Floor,
    /// The better Envoy's.
    Envoy,
    /// Another figure of the better Envoy.
    EnvoyOther(fn(&Row) -> Option<f64>),
    /// Weft's in the scenario's first setting: the ratio.
    Setting,
    /// The same: the difference.
    SettingPlus,
}

#[derive(Clone, Copy)]
enum Limit {
    AtMost(f64),
    AtLeast(f64),
}

/// The answer to one bar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It holds.
    Yes,
    /// It does not.
    No,
    /// What it compares was not measured in this run.
    Missing,
    /// Other programs disturbed one of the rows.
    Noisy,
}

/// The first figure divided by the second: the median of the rounds' ratios, because measurements that follow each other find
/// the machine in the same state. If rounds cannot be paired, the ratio of the medians.
fn ratio(
    (row, figure): (&Row, fn(&Row) -> Option<f64>),
    (base, base_figure): (&Row, fn(&Row) -> Option<f64>),
) -> Option<f64> {
    let divide = |row: &Row, base: &Row| {
        let base = base_figure(base).filter(|base| *base > 0.0)?;
        figure(row).map(|value| value / base)
    };
    let whole = divide(row, base)?;
    if row.rounds.is_empty() || row.rounds.len() != base.rounds.len() {
        return Some(whole);
    }
    let ratios: Option<Vec<f64>> = row.rounds.iter().zip(&base.rounds).map(|(row, base)| divide(row, base)).collect();
    Some(ratios.map_or(whole, |ratios| median(&ratios)))
}

fn cpu(row: &Row) -> Option<f64> {
    row.cpu()
}

fn p99(row: &Row) -> Option<f64> {
    row.p99_us
}

fn added_p50(row: &Row) -> Option<f64> {
    row.extra("added_p50_us")
}

fn added_p99(row: &Row) -> Option<f64> {
    row.extra("added_p99_us")
}

fn bytes(row: &Row) -> Option<f64> {
    row.extra("bytes_per_cpu_second")
}

fn full(row: &Row) -> Option<f64> {
    row.extra("handshakes_per_cpu_second")
}

fn resumed(row: &Row) -> Option<f64> {
    row.extra("resumed_handshakes_per_cpu_second")
}

/// The larger of the two proxies.
fn each_mib(row: &Row) -> Option<f64> {
    row.rss_mib.map(|[outbound, inbound]| outbound.max(inbound))
}

fn outbound_mib(row: &Row) -> Option<f64> {
    row.rss_mib.map(|[outbound, _]| outbound)
}

/// Every bar, in the order of the scenarios.
fn bars() -> Vec<Bar> {
    use Against::{Envoy, EnvoyOther, Floor, Itself, Setting, SettingPlus};
    use Limit::{AtLeast, AtMost};
    use Scenario as S;
    let bar = |scenario, what, figure, against, limit| Bar { scenario, what, figure, against, limit };
    let mut bars: Vec<Bar> = vec![
        bar(S::Http1One, "CPU per request", cpu, Floor, AtMost(1.5)),
        bar(S::Http1One, "added p50", added_p50, Envoy, AtMost(0.5)),
        bar(S::Http1Many, "CPU per request", cpu, Floor, AtMost(1.5)),
        bar(S::Http1Many, "CPU per request", cpu, Envoy, AtMost(0.4)),
        bar(S::Http2Many, "CPU per request", cpu, Envoy, AtMost(0.4)),
        bar(S::GrpcMany, "CPU per request", cpu, Envoy, AtMost(0.4)),
        bar(S::GrpcStream, "bytes per CPU-second", bytes, Envoy, AtLeast(1.5)),
        bar(S::Bodies, "bytes per CPU-second", bytes, Floor, AtLeast(0.9)),
        bar(S::Bodies, "bytes per CPU-second", bytes, Envoy, AtLeast(1.5)),
        bar(S::TcpBulk, "bytes per CPU-second", bytes, Floor, AtLeast(1.0)),
        bar(S::TcpBulk, "bytes per CPU-second", bytes, Envoy, AtLeast(1.5)),
        bar(S::Handshakes, "full per CPU-second", full, Envoy, AtLeast(1.0)),
        bar(S::Handshakes, "resumed per CPU-second against Envoy's full", resumed, EnvoyOther(full), AtLeast(2.0)),
        bar(S::Handshakes, "resumed per CPU-second", resumed, Envoy, AtLeast(1.0)),
        bar(S::AccessLog, "CPU per request", cpu, Envoy, AtMost(0.4)),
        bar(S::OpenLoop, "added p99", added_p99, Envoy, AtMost(0.5)),
        bar(S::OpenLoopHttp2, "added p99", added_p99, Envoy, AtMost(0.5)),
        bar(S::MemoryIdle, "MiB of each proxy", each_mib, Itself, AtMost(9.0)),
        bar(S::MemoryClients, "MiB of the outbound proxy", outbound_mib, Itself, AtMost(16.0)),
        bar(S::MemoryPeers, "KiB per peer", |row| row.extra("kib_per_peer"), Itself, AtMost(40.0)),
        bar(S::Services, "MiB more", |row| row.extra("proxy_mib"), SettingPlus, AtMost(2.0)),
        bar(S::Start, "start, ms", |row| row.extra("start_ms"), Itself, AtMost(100.0)),
        bar(S::Start, "program, MiB", |row| row.extra("binary_mib"), Itself, AtMost(24.0)),
    ];
    for scenario in [S::GrowthRoutes, S::GrowthEndpoints, S::GrowthPolicies] {
        bars.push(bar(scenario, "CPU per request", cpu, Setting, AtMost(1.1)));
    }
    bars.push(bar(S::Churn, "p99", p99, Setting, AtMost(1.2)));
    // Without them the p99 says nothing.
    bars.push(bar(S::Churn, "changes a second", |row| row.extra("changes_per_second"), Itself, AtLeast(90.0)));
    bars
}

impl Bar {
    /// The figure or ratio, and whether it is good. `block`: the scenario's rows.
    fn judge(&self, block: &[&Row]) -> (Option<f64>, Verdict) {
        // Of several settings the last is the one that is asked about.
        let Some(weft) = block.iter().rfind(|row| row.proxy == "weft") else { return (None, Verdict::Missing) };
        let value = (self.figure)(weft);
        let first = |is: &dyn Fn(&Row) -> bool| block.iter().find(|row| is(row)).copied();
        let envoy = |figure: fn(&Row) -> Option<f64>| {
            let of = |row: &&&Row| figure(row);
            let envoys = block.iter().filter(|row| row.proxy.starts_with("envoy") && figure(row).is_some());
            let order = |a: &&&Row, b: &&&Row| of(a).unwrap_or(0.0).total_cmp(&of(b).unwrap_or(0.0));
            match self.limit {
                Limit::AtMost(_) => envoys.min_by(order),
                Limit::AtLeast(_) => envoys.max_by(order),
            }
            .copied()
        };
        let (other, other_figure) = match self.against {
            Against::Itself => (None, self.figure),
            Against::Floor => (first(&|row| row.proxy == "floor"), self.figure),
            Against::Envoy => (envoy(self.figure), self.figure),
            Against::EnvoyOther(figure) => (envoy(figure), figure),
            Against::Setting | Against::SettingPlus => {
                (first(&|row| row.proxy == "weft" && row.setting != weft.setting), self.figure)
            }
        };
        let base = other.and_then(other_figure);
        let value = match self.against {
            Against::Itself => value,
            Against::SettingPlus => value.zip(base).map(|(value, base)| value - base),
            Against::Floor | Against::Envoy | Against::EnvoyOther(_) | Against::Setting => {
                other.and_then(|other| ratio((weft, self.figure), (other, other_figure)))
            }
        };
        let holds = value.map(|value| match self.limit {
            Limit::AtMost(limit) => value <= limit,
            Limit::AtLeast(limit) => value >= limit,
        });
        let noisy = weft.foreign > NOISY || other.is_some_and(|row| row.foreign > NOISY);
        let verdict = match holds {
            None => Verdict::Missing,
            Some(_) if noisy => Verdict::Noisy,
            Some(true) => Verdict::Yes,
            Some(false) => Verdict::No,
        };
        (value, verdict)
    }

    fn line(&self, block: &[&Row]) -> String {
        let (value, verdict) = self.judge(block);
        let unit = match self.against {
            Against::Itself | Against::SettingPlus => "",
            Against::Floor => " x floor",
            Against::Envoy | Against::EnvoyOther(_) => " x Envoy",
            Against::Setting => " x first setting",
        };
        let (relation, limit) = match self.limit {
            Limit::AtMost(limit) => ("<=", limit),
            Limit::AtLeast(limit) => (">=", limit),
        };
        let value = value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}{unit}"));
        let verdict = match verdict {
            Verdict::Yes => "yes",
            Verdict::No => "no",
            Verdict::Missing => "not measured",
            Verdict::Noisy => "not compared: the machine was too noisy",
        };
        format!("  must: {} {value} {relation} {limit}: {verdict}", self.what)
    }
}

/// The lines of one scenario's bars; none when Weft was not measured.
#[must_use]
pub fn lines(scenario: Scenario, block: &[&Row]) -> String {
    let mut text = String::new();
    if block.iter().any(|row| row.proxy == "weft") {
        for bar in bars().iter().filter(|bar| bar.scenario == scenario) {
            // Writing to a String cannot fail.
            _ = writeln!(text, "{}", bar.line(block));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(proxy: &'static str, cpu: f64, foreign: f64) -> Row {
        Row { proxy, cpu_us_per_request: Some([cpu / 2.0, cpu / 2.0]), foreign, ..Row::default() }
    }

    fn text(scenario: Scenario, rows: &[Row]) -> String {
        lines(scenario, &rows.iter().collect::<Vec<_>>())
    }

    #[test]
    fn ratios_are_judged_against_the_better_envoy_and_the_floor() {
        let rows =
            [row("weft", 30.0, 0.0), row("envoy-h1", 100.0, 0.0), row("envoy-h2", 60.0, 0.0), row("floor", 20.0, 0.0)];
        let text = text(Scenario::Http1Many, &rows);
        assert!(text.contains("1.50 x floor <= 1.5: yes"), "{text}");
        assert!(text.contains("0.50 x Envoy <= 0.4: no"), "{text}");
    }

    #[test]
    fn rounds_that_were_measured_one_after_the_other_are_compared() {
        // The machine is slower from round to round, and the last one was disturbed.
        let of = |proxy, cpus: [f64; 5]| Row {
            rounds: cpus.map(|cpu| row(proxy, cpu, 0.0)).to_vec(),
            ..row(proxy, median(&cpus), 0.0)
        };
        let rows = [of("weft", [30.0, 33.0, 36.0, 39.0, 90.0]), of("floor", [20.0, 22.0, 10.0, 26.0, 28.0])];
        let text = text(Scenario::Http1Many, &rows);
        assert!(text.contains("1.50 x floor <= 1.5: yes"), "{text}");
    }

    #[test]
    fn noise_and_absence_give_no_verdict() {
        let rows = [row("weft", 30.0, 0.0), row("floor", 20.0, 0.2)];
        let text = text(Scenario::Http1Many, &rows);
        assert!(text.contains("floor <= 1.5: not compared"), "{text}");
        assert!(text.contains("- <= 0.4: not measured"), "{text}");
        assert!(!text.contains("yes") && !text.contains(": no\n"), "{text}");
        assert_eq!(lines(Scenario::Http1Many, &[&row("floor", 1.0, 0.0)]), "");
    }

    #[test]
    fn the_last_setting_is_judged_against_the_first() {
        let setting = |name: &str, cpu| Row { setting: Some(name.to_owned()), ..row("weft", cpu, 0.0) };
        let text = text(Scenario::GrowthRoutes, &[setting("routes=10", 10.0), setting("routes=10000", 12.0)]);
        assert!(text.contains("1.20 x first setting <= 1.1: no"), "{text}");
    }

    #[test]
    fn churn_that_is_slower_than_it_should_be_is_told() {
        let setting = |name: &str, changes| Row {
            setting: Some(name.to_owned()),
            p99_us: Some(1000.0),
            extra: [("changes_per_second", changes)].into(),
            ..row("weft", 60.0, 0.0)
        };
        let text = text(Scenario::Churn, &[setting("changes=0/s", 0.0), setting("changes=100/s", 38.7)]);
        assert!(text.contains("p99 1.00 x first setting <= 1.2: yes"), "{text}");
        assert!(text.contains("changes a second 38.70 >= 90: no"), "{text}");
    }

    #[test]
    fn resumption_that_did_not_happen_has_no_verdict() {
        let mut rows = [row("weft", 1.0, 0.0), row("envoy-h2", 1.0, 0.0)];
        for row in &mut rows {
            row.extra.insert("handshakes_per_cpu_second", 1000.0);
        }
        let text = text(Scenario::Handshakes, &rows);
        assert_eq!(text.matches("not measured").count(), 2, "{text}");
    }

    #[test]
    fn every_scenario_has_a_bar_but_the_informative_ones() {
        let bars = bars();
        for scenario in Scenario::ALL {
            let informative = matches!(scenario, Scenario::WorkersTwo | Scenario::WorkersTwoOpen);
            assert_eq!(bars.iter().any(|bar| bar.scenario == scenario), !informative, "{scenario}");
        }
    }
}
