//! The rounds: every contestant in every scenario, one at a time, in an order that turns from round to round, so that what
//! changes on the machine over minutes hits all alike. Each figure is the median over the rounds.
//!
//! One measurement: the load starts; after the lead the clock starts; before the load ends the clock stops. Requests come
//! from the server's own count, so connection set-up and TLS handshakes stay outside.
//! Every contestant has one pair for each scenario; the pairs live through all rounds and are idle while others are measured.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use tokio::time::{Instant, sleep};

use crate::certs::Certs;
use crate::load::Load;
use crate::measure::{CpuTime, ForeignTime, check_kernel, resident_bytes};
use crate::pairs::{Contestant, Pair, Place, Proxy};
use crate::process::{Launcher, pin};
use crate::programs::{self, Tools};
use crate::scenario::Scenario;
use crate::server::Server;

/// What to run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The proxies, in the order of the report.
    pub proxies: Vec<Proxy>,
    /// The scenarios, in the order of the report.
    pub scenarios: Vec<Scenario>,
    /// Measurements of each contestant in each scenario.
    pub rounds: usize,
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
}

/// From the load's start to the clock's start: connections, handshakes, warm caches.
pub const LEAD: Duration = Duration::from_millis(400);
/// From the clock's end to the load's end.
pub const TAIL: Duration = Duration::from_millis(150);

/// How often one measurement is begun anew.
const TRIES: u32 = 3;

/// One measurement.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// Requests answered per second.
    pub rps: f64,
    /// Median latency, microseconds.
    pub p50_us: f64,
    /// 99th percentile latency, microseconds.
    pub p99_us: f64,
    /// CPU microseconds per request, outbound and inbound.
    pub cpu_us: [f64; 2],
    /// RssAnon + RssFile in MiB, outbound and inbound.
    pub rss_mib: [f64; 2],
    /// The CPU time of others during the window, as a share of two CPUs; 0..=1 on a machine with two.
    pub foreign: f64,
}

/// All measurements by scenario and contestant.
pub type Rounds = BTreeMap<(Scenario, Contestant), Vec<Round>>;

/// Runs everything and returns the measurements. Dropping the future stops all children.
///
/// # Errors
/// A program is missing, a pair does not do its work, or a request failed under load.
pub async fn run(settings: &Settings) -> Result<Rounds> {
    check_kernel()?;
    ensure!(settings.proxy_cpu != settings.load_cpu, "the proxies and the load need different CPUs");
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
    let server = Server::start(&launcher, &tools.nginx, dir.path(), settings.load_cpu).await?;
    let certs = Certs::create(&dir.path().join("certs"))?;
    let place = Place { launcher, certs, dir: dir.path().to_owned(), cpu: settings.proxy_cpu, weft, envoy };
    Bench { settings, tools, server, place, pairs: BTreeMap::new(), rounds: Rounds::new() }.run().await
}

struct Bench<'a> {
    settings: &'a Settings,
    tools: Tools,
    server: Server,
    place: Place,
    pairs: BTreeMap<(Scenario, Contestant), Pair>,
    rounds: Rounds,
}

impl Bench<'_> {
    async fn run(mut self) -> Result<Rounds> {
        let mut contestants = Contestant::of(&self.settings.proxies);
        let total = self.settings.rounds * self.settings.scenarios.len() * contestants.len();
        eprintln!(
            "{total} measurements of {} s: {} rounds, {} scenarios, {} pairs",
            self.settings.seconds,
            self.settings.rounds,
            self.settings.scenarios.len(),
            contestants.len()
        );
        let mut done = 0;
        for number in 1..=self.settings.rounds {
            for &scenario in &self.settings.scenarios {
                for &contestant in &contestants {
                    let label = contestant.label();
                    let round = self
                        .measure(scenario, contestant)
                        .await
                        .with_context(|| format!("round {number}, {scenario}, {label}"))?;
                    done += 1;
                    let [outbound, inbound] = round.cpu_us;
                    eprintln!(
                        "[{done:3}/{total}] round {number}  {scenario:<8}  {label:<10}  {:7.0} req/s  CPU {outbound:5.1} + {inbound:5.1} µs/req{}",
                        round.rps,
                        if round.foreign > NOISY {
                            format!("  (others: {:.0} % CPU)", round.foreign * 100.0)
                        } else {
                            String::new()
                        },
                    );
                    self.rounds.entry((scenario, contestant)).or_default().push(round);
                }
            }
            contestants.rotate_left(1);
        }
        Ok(self.rounds)
    }

    async fn measure(&mut self, scenario: Scenario, contestant: Contestant) -> Result<Round> {
        let mut pair = match self.pairs.remove(&(scenario, contestant)) {
            Some(pair) => pair,
            None => self.start(scenario, contestant).await?,
        };
        for _ in 0..TRIES {
            let round = self.round(scenario, &pair).await.map_err(|error| pair.explain(&error))?;
            pair.check()?;
            if let Some(round) = round {
                self.pairs.insert((scenario, contestant), pair);
                return Ok(round);
            }
        }
        bail!("the load ended before the clock stopped, {TRIES} times: this machine is too busy to measure on")
    }

    async fn start(&self, scenario: Scenario, contestant: Contestant) -> Result<Pair> {
        let name = format!("{scenario}-{}", contestant.label().replace(' ', "-"));
        let (server, version) = (self.server.address(scenario.version()), scenario.version());
        let pair = Pair::start(&self.place, contestant, &name, server, version).await?;
        // The first load of a pair is not measured: pools fill, allocators grow.
        let load = self.load(scenario, &pair, 1)?;
        let nothing = SystemTime::UNIX_EPOCH..SystemTime::UNIX_EPOCH;
        load.finish(nothing).await.map_err(|error| pair.explain(&error))?;
        Ok(pair)
    }

    /// One measurement; `None` when the load ended too early, because this program was kept waiting for a CPU.
    async fn round(&self, scenario: Scenario, pair: &Pair) -> Result<Option<Round>> {
        let pids = pair.pids();
        let mut load = self.load(scenario, pair, self.settings.seconds)?;
        sleep(LEAD).await;
        let from = SystemTime::now();
        let before = self.sample(pids, load.pid()).await?;
        sleep(Duration::from_secs(self.settings.seconds).saturating_sub(LEAD + TAIL)).await;
        let after = self.sample(pids, load.pid()).await?;
        let (in_time, to) = (load.is_running()?, SystemTime::now());
        let latency = load.finish(from..to).await?;
        if !in_time {
            return Ok(None);
        }

        let elapsed = after.at.duration_since(before.at).as_secs_f64();
        // The second sample's own request is part of the count.
        let requests = after.requests.saturating_sub(before.requests).saturating_sub(1);
        ensure!(requests > 0, "no request was answered inside the window");
        let requests = requests as f64;
        let [outbound, inbound] = pids;
        let cpu = |index: fn(&Sample) -> &CpuTime| index(&after).since(index(&before)).as_secs_f64() * 1e6 / requests;
        let others = after.foreign.since(before.foreign);
        Ok(Some(Round {
            rps: requests / elapsed,
            p50_us: latency.p50.as_secs_f64() * 1e6,
            p99_us: latency.p99.as_secs_f64() * 1e6,
            cpu_us: [cpu(|sample| &sample.outbound), cpu(|sample| &sample.inbound)],
            rss_mib: [mib(resident_bytes(outbound)?), mib(resident_bytes(inbound)?)],
            foreign: others.as_secs_f64() / (2.0 * elapsed),
        }))
    }

    fn load(&self, scenario: Scenario, pair: &Pair, seconds: u64) -> Result<Load> {
        Load::start(&self.place.launcher, &self.tools, scenario, pair.entry(), seconds, self.settings.load_cpu)
    }

    async fn sample(&self, [outbound, inbound]: [i32; 2], load: i32) -> Result<Sample> {
        let own = i32::try_from(std::process::id())?;
        let foreign = ForeignTime::read(&[own, outbound, inbound, load, self.server.pid()])?;
        Ok(Sample {
            requests: self.server.requests().await?,
            outbound: CpuTime::read(outbound)?,
            inbound: CpuTime::read(inbound)?,
            at: Instant::now(),
            foreign,
        })
    }
}

/// Above this share of foreign CPU time a figure is marked.
pub const NOISY: f64 = 0.05;

struct Sample {
    at: Instant,
    requests: u64,
    outbound: CpuTime,
    inbound: CpuTime,
    foreign: ForeignTime,
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1024.0 * 1024.0)
}
