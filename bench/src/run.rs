//! The rounds: every contestant in a scenario, one at a time, in an order that rotates from round to round, so that
//! slow changes of the machine affect all alike. Each figure is the median over the rounds.
//!
//! The scenarios run one after the other; within one the contestants take turns.
//!
//! - `traffic`: a load through a pair inside a window.
//! - `still`: handshakes, memory, and scenarios with a control plane.
//!
//! One measurement: the load starts; after the lead the clock starts; before the load ends the clock stops. Requests come
//! from the server's own count, so connection set-up and TLS handshakes stay outside.
//! Every contestant has one pair for each scenario; the pairs live through its rounds and are idle while others are measured.

mod still;
mod traffic;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use self::traffic::Direct;
use crate::app::App;
use crate::awake::{Awake, DEVICE};
use crate::certs::Certs;
use crate::measure::check_kernel;
use crate::mesh::Mesh;
use crate::pairs::{Contestant, Pair, Place, Proxy, Variant};
use crate::process::{Launcher, pin};
use crate::programs::{self, Tools};
use crate::scenario::{Family, Scenario};
use crate::server::Server;
use crate::stolen::Lookout;

/// What to run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The proxies, in the order of the report.
    pub proxies: Vec<Proxy>,
    /// The scenarios, in the order of the report.
    pub scenarios: Vec<Scenario>,
    /// Measurements of each contestant in each scenario.
    pub rounds: usize,
    /// Whether time is short: fewer peers, one buffer size of the floor.
    pub quick: bool,
    /// Requests per second of the open loops; without one 70 % of the better Envoy's peak.
    pub rate: Option<u32>,
    /// Length of one load, of which [`LEAD`] and [`TAIL`] are not measured.
    pub seconds: u64,
    /// The directory with `weft-proxy`, if not this repository's release build.
    pub weft: Option<PathBuf>,
    /// The Envoy program, if not the one from PyPI.
    pub envoy: Option<PathBuf>,
    /// The CPU of both proxies of a pair.
    pub proxy_cpu: usize,
    /// The CPU of the load and the server.
    pub load_cpu: usize,
    /// Whether CPUs that have nothing to do may sleep.
    pub cpus_may_sleep: bool,
}

impl Settings {
    /// The floor's buffer sizes.
    fn floor_buffers(&self) -> &'static [u32] {
        if self.quick { &[64] } else { &[16, 64, 256] }
    }

    /// Memory repeats well, and filling it takes long. A p99 repeats badly, and that of churn is compared closely; bytes vary by a
    /// fifth from round to round.
    fn rounds_of(&self, scenario: Scenario) -> usize {
        match scenario {
            Scenario::MemoryPeers | Scenario::Services => 1,
            Scenario::MemoryIdle | Scenario::MemoryClients | Scenario::Start => {
                self.rounds.min(if self.quick { 1 } else { 3 })
            }
            Scenario::TcpBulk => self.rounds * if self.quick { 1 } else { 2 },
            Scenario::Churn => self.rounds * if self.quick { 1 } else { 3 },
            _ => self.rounds,
        }
    }
}

/// From the load's start to the clock's start: connections, handshakes, warm caches.
pub const LEAD: Duration = Duration::from_millis(250);
/// From the clock's end to the load's end.
pub const TAIL: Duration = Duration::from_millis(150);

/// How often one measurement is begun anew.
const TRIES: u32 = 3;

/// One measurement. What a scenario does not measure is absent.
#[derive(Clone, Debug, Default)]
pub struct Round {
    /// Requests (or messages) answered per second.
    pub rps: Option<f64>,
    /// Median latency, microseconds.
    pub p50_us: Option<f64>,
    /// 99th percentile latency, microseconds.
    pub p99_us: Option<f64>,
    /// CPU microseconds per request, outbound and inbound.
    pub cpu_us: Option<[f64; 2]>,
    /// RssAnon + RssFile in MiB, outbound and inbound.
    pub rss_mib: Option<[f64; 2]>,
    /// Figures of single scenarios by their names in `latest.json`.
    pub extra: BTreeMap<&'static str, f64>,
    /// The CPU time of others during the window, as a share of two CPUs, 0..=1 on a machine with two; or the share of an open
    /// loop's requests that were left out, if that is more.
    pub foreign: f64,
}

impl Round {
    /// What less of is better: CPU per byte, else CPU per request, else memory.
    #[must_use]
    pub fn cost(&self) -> f64 {
        let sum = |pair: [f64; 2]| pair.iter().sum();
        let rate = self.extra.get("bytes_per_cpu_second").or(self.extra.get("handshakes_per_cpu_second"));
        let rate = rate.map(|rate| 1.0 / rate);
        rate.or(self.cpu_us.map(sum)).or(self.rss_mib.map(sum)).unwrap_or(f64::INFINITY)
    }

    /// One line of progress.
    fn summary(&self) -> String {
        let mut text = String::new();
        if let Some(rps) = self.rps {
            text.push_str(&format!(" {rps:7.0} req/s"));
        }
        if let Some([outbound, inbound]) = self.cpu_us {
            text.push_str(&format!("  CPU {outbound:5.1} + {inbound:5.1} µs/req"));
        }
        if let ([], Some([outbound, inbound])) = (text.as_bytes(), self.rss_mib) {
            text.push_str(&format!(" {outbound:5.1} + {inbound:5.1} MiB"));
        }
        for (name, value) in &self.extra {
            text.push_str(&format!("  {name} {value:.1}"));
        }
        if self.foreign > NOISY {
            text.push_str(&format!("  (others: {:.0} % CPU)", self.foreign * 100.0));
        }
        text
    }
}

/// All measurements by scenario and contestant.
pub type Rounds = BTreeMap<(Scenario, Contestant), Vec<Round>>;

/// Runs everything; `finished` takes the measurements of each scenario that was finished, also when a later one fails. Dropping
/// the future stops all children.
///
/// # Errors
/// A program is missing, a pair fails its verification, or a request failed under load.
pub async fn run(settings: &Settings, finished: &mut Rounds) -> Result<()> {
    check_kernel()?;
    ensure!(settings.proxy_cpu != settings.load_cpu, "--proxy-cpu and --load-cpu must differ");
    let tools = Tools::find()?;
    let takes_part = |proxy: fn(&Proxy) -> bool| settings.proxies.iter().any(proxy);
    let weft = if takes_part(|&proxy| proxy == Proxy::Weft) {
        programs::weft(settings.weft.as_deref())?
    } else {
        PathBuf::new()
    };
    let envoy = if takes_part(|proxy| proxy.is_envoy()) {
        programs::envoy(settings.envoy.as_deref()).await?
    } else {
        PathBuf::new()
    };
    let dir = tempfile::Builder::new().prefix("weft-bench-").tempdir()?;
    let bench = std::env::current_exe().context("find this program")?;
    let launcher = Launcher::new(bench, dir.path().to_owned());
    pin(settings.load_cpu)?;
    let _awake = if settings.cpus_may_sleep { None } else { keep_awake() };
    let server = Server::start(&launcher, &tools.nginx, dir.path(), settings.load_cpu).await?;
    let certs = Certs::create(&dir.path().join("certs"))?;
    let place = Place { launcher, certs, dir: dir.path().to_owned(), cpu: settings.proxy_cpu, weft, envoy };
    let app = App::start().await?;
    let looks_out = looks_out(&[settings.proxy_cpu, settings.load_cpu]);
    let bench = Bench { settings, tools, server, app, place, looks_out, rounds: Rounds::new(), rates: BTreeMap::new() };
    Box::pin(bench.run(finished)).await
}

/// Keeps CPUs awake. If that is not possible, a warning says that the figures include the cost of waking a CPU.
fn keep_awake() -> Option<Awake> {
    let tell = |error: &io::Error| {
        eprintln!(
            "warning: cannot use {DEVICE} ({error}), so CPUs may sleep and figures include the cost of waking them; run as root"
        );
    };
    Awake::keep().inspect_err(tell).ok()
}

/// Looks for stolen CPU time. If that is not possible, a warning says that the latencies include it.
fn looks_out(cpus: &[usize]) -> bool {
    let tell = |error: &anyhow::Error| {
        eprintln!("warning: cannot detect stolen CPU time ({error:#}), so latencies include it; run as root");
    };
    Lookout::begin(cpus).inspect_err(tell).is_ok()
}

struct Bench<'a> {
    settings: &'a Settings,
    tools: Tools,
    server: Server,
    app: App,
    place: Place,
    /// Whether stolen time can be looked out for.
    looks_out: bool,
    rounds: Rounds,
    /// The fixed rate of each open loop, requests per second.
    rates: BTreeMap<Scenario, u32>,
}

/// What runs for one contestant in one scenario, through all its rounds.
enum Subject {
    Pair(Box<Pair>),
    Mesh(Box<Mesh>),
}

impl Bench<'_> {
    async fn run(mut self, finished: &mut Rounds) -> Result<()> {
        for &scenario in &self.settings.scenarios {
            self.scenario(scenario).await?;
            // Copied: a later scenario takes its rate from what an earlier one found.
            finished.clone_from(&self.rounds);
        }
        Ok(())
    }

    async fn scenario(&mut self, scenario: Scenario) -> Result<()> {
        let mut contestants = scenario.contestants(&self.settings.proxies, self.settings.floor_buffers());
        if contestants.is_empty() {
            return Ok(());
        }
        if scenario.is_open_loop() {
            let rate = Box::pin(self.rate(scenario)).await?;
            eprintln!("{scenario}: {rate} requests per second");
            self.rates.insert(scenario, rate);
        }
        let mut subjects = BTreeMap::new();
        for number in 1..=self.settings.rounds_of(scenario) {
            let direct = Box::pin(self.direct(scenario)).await?;
            for &contestant in &contestants {
                let label = contestant.label();
                let what = || format!("round {number}, {scenario}, {label}");
                let subject = match subjects.remove(&contestant) {
                    Some(subject) => subject,
                    None => Box::pin(self.start(scenario, contestant)).await.with_context(what)?,
                };
                let (round, subject) =
                    Box::pin(self.measure(scenario, contestant, subject, direct)).await.with_context(what)?;
                eprintln!("round {number}  {scenario:<16}  {label:<18} {}", round.summary());
                self.rounds.entry((scenario, contestant)).or_default().push(round);
                // Connections that were held leave their mark in a proxy's memory.
                if scenario.family() != Family::Memory {
                    subjects.insert(contestant, subject);
                }
            }
            if number == 1 {
                self.keep_the_best_floor(scenario, &mut contestants, &mut subjects);
            }
            contestants.rotate_left(1);
        }
        Ok(())
    }

    /// After the first round only the floor's best buffer size goes on.
    fn keep_the_best_floor(
        &mut self,
        scenario: Scenario,
        contestants: &mut Vec<Contestant>,
        subjects: &mut BTreeMap<Contestant, Subject>,
    ) {
        let cost = |contestant: &Contestant| {
            let round = self.rounds.get(&(scenario, *contestant)).and_then(|rounds| rounds.first());
            round.map_or(f64::INFINITY, Round::cost)
        };
        let floors = contestants.iter().copied().filter(|contestant| contestant.proxy == Proxy::Floor);
        let Some(best) = floors.min_by(|a, b| cost(a).total_cmp(&cost(b))) else { return };
        let goes_on = |contestant: &Contestant| contestant.proxy != Proxy::Floor || *contestant == best;
        contestants.retain(goes_on);
        subjects.retain(|contestant, _| goes_on(contestant));
        self.rounds.retain(|(of, contestant), _| *of != scenario || goes_on(contestant));
    }

    async fn start(&self, scenario: Scenario, contestant: Contestant) -> Result<Subject> {
        let name = format!("{scenario}-{}", contestant.label()).replace([' ', '/', '='], "-");
        let protocol = scenario.protocol();
        let server = if App::serves(scenario) { self.app.address(protocol) } else { self.server.address(protocol) };
        if scenario.family() == Family::Mesh {
            let services = match contestant.variant {
                Variant::Services(services) => services,
                _ => 10,
            };
            let beside = matches!(contestant.variant, Variant::ChangesBeside(_));
            let mut mesh = Mesh::start(&self.place, &name, self.settings.load_cpu, server, services, beside).await?;
            mesh.start_proxy(&self.place).await?;
            mesh.use_services().await?;
            return Ok(Subject::Mesh(Box::new(mesh)));
        }
        let resumption = scenario == Scenario::Handshakes;
        let pair = Pair::start(&self.place, contestant, &name, server, protocol, resumption).await?;
        if scenario.family() == Family::Traffic {
            // The first load of a pair is not measured: pools fill, allocators grow.
            let warm = Duration::from_millis(if self.settings.quick { 300 } else { 1000 });
            self.warm_up(scenario, &pair, warm).await.map_err(|error| pair.explain(&error))?;
        }
        Ok(Subject::Pair(Box::new(pair)))
    }

    async fn measure(
        &self,
        scenario: Scenario,
        contestant: Contestant,
        mut subject: Subject,
        direct: Option<Direct>,
    ) -> Result<(Round, Subject)> {
        for _ in 0..TRIES {
            let round = match &mut subject {
                Subject::Pair(pair) => {
                    let round = match scenario.family() {
                        Family::Handshakes => self.handshakes(pair).await.map(Some),
                        Family::Memory => self.memory(scenario, pair).await.map(Some),
                        Family::Traffic | Family::Mesh => self.traffic(scenario, contestant, pair, direct).await,
                    };
                    let round = round.map_err(|error| pair.explain(&error))?;
                    pair.check()?;
                    round
                }
                Subject::Mesh(mesh) => {
                    let round = self.mesh(scenario, contestant, mesh).await?;
                    mesh.check()?;
                    Some(round)
                }
            };
            if let Some(round) = round {
                return Ok((round, subject));
            }
        }
        bail!("the load ended before the measurement did, {TRIES} times: this machine is too busy")
    }
}

/// Above this share of foreign CPU time a figure is marked and not compared.
pub const NOISY: f64 = 0.05;
