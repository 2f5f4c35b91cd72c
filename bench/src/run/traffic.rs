//! A load through a pair, inside a window: requests, bytes, latency, CPU time.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::{Bench, LEAD, Round, TAIL};
use crate::app::App;
use crate::bulk;
use crate::load::Load;
use crate::measure::{CpuTime, ForeignTime, connections_to, largest_share, median, printed_bytes, resident_bytes};
use crate::mesh::{Churn, Mesh};
use crate::open_loop::OpenLoop;
use crate::pairs::{Contestant, Pair, Variant};
use crate::scenario::Scenario;
use crate::stolen::{Lookout, Stolen};

/// The rate of an open loop when there is no Envoy to take it from, requests per second.
const DEFAULT_RATE: u32 = 8000;
/// The share of the better Envoy's peak that an open loop sends.
const SHARE_OF_PEAK: f64 = 0.7;
/// No access log has shorter lines, bytes.
const LINE: f64 = 100.0;

/// A load of any kind at work.
enum Work {
    Tool(Box<Load>),
    Bulk(JoinSet<Result<()>>),
    Open(OpenLoop),
}

/// The same load without proxies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Direct {
    latency_us: f64,
    foreign: f64,
}

struct Sample {
    at: Instant,
    requests: u64,
    bytes: u64,
    cpu: Vec<CpuTime>,
    /// Bytes that the proxies have printed.
    printed: u64,
    foreign: ForeignTime,
}

/// A load and what was read at the edges of its window.
struct Window {
    before: Sample,
    after: Sample,
    /// p50 and p99, where the load tells.
    latency: Option<[f64; 2]>,
    /// The share of an open loop's requests that are not in it.
    left_out: Option<f64>,
    in_time: bool,
}

impl Window {
    fn seconds(&self) -> f64 {
        (self.after.at - self.before.at).as_secs_f64()
    }

    fn requests(&self) -> f64 {
        self.after.requests.saturating_sub(self.before.requests) as f64
    }

    fn cpu_seconds(&self, index: usize) -> f64 {
        let (before, after) = (self.before.cpu.get(index), self.after.cpu.get(index));
        before.zip(after).map_or(0.0, |(before, after)| after.since(before).as_secs_f64())
    }

    fn foreign(&self) -> f64 {
        let spent = self.after.foreign.since(self.before.foreign).as_secs_f64() / (2.0 * self.seconds());
        spent.max(self.left_out.unwrap_or(0.0))
    }
}

impl Bench<'_> {
    /// One measurement; `None` when the load ended too early, because this program was kept waiting for a CPU.
    pub(super) async fn traffic(
        &self,
        scenario: Scenario,
        contestant: Contestant,
        pair: &Pair,
        direct: Option<Direct>,
    ) -> Result<Option<Round>> {
        let pids = pair.pids();
        if scenario == Scenario::AccessLog {
            pair.empty_logs()?;
        }
        let window = self.window(scenario, pair.entry(), &pids).await?;
        if !window.in_time {
            return Ok(None);
        }
        let mut round = self.round(&window, 2)?;
        let [outbound, inbound] = pids;
        round.rss_mib = Some([mib(resident_bytes(outbound)?), mib(resident_bytes(inbound)?)]);
        match scenario {
            Scenario::Http1One => {
                let added = round.p50_us.zip(direct).map(|(through, direct)| through - direct.latency_us);
                round.extra.extend(added.map(|added| ("added_p50_us", added)));
            }
            Scenario::OpenLoop | Scenario::OpenLoopHttp2 => {
                let added = round.p99_us.zip(direct).map(|(through, direct)| through - direct.latency_us);
                round.extra.extend(added.map(|added| ("added_p99_us", added)));
            }
            Scenario::GrpcStream | Scenario::Bodies | Scenario::TcpBulk => {
                let bytes = window.after.bytes.saturating_sub(window.before.bytes) as f64;
                let cpu = window.cpu_seconds(0) + window.cpu_seconds(1);
                ensure!(bytes > 0.0 && cpu > 0.0, "no byte arrived inside the window");
                round.extra.insert("bytes_per_cpu_second", bytes / cpu);
                round.extra.insert("bytes_per_second", bytes / window.seconds());
            }
            Scenario::AccessLog => {
                let bytes = window.after.printed.saturating_sub(window.before.printed) as f64 / window.requests();
                let logged = contestant.variant == Variant::Logged(true);
                ensure!(bytes > LINE || !logged, "{bytes:.0} bytes of log for each request: not all were logged");
                round.extra.insert("log_bytes_per_request", bytes);
            }
            Scenario::WorkersTwo | Scenario::WorkersTwoOpen => {
                let edges = window.before.cpu.iter().zip(&window.after.cpu);
                let shares = pids
                    .iter()
                    .zip(edges)
                    .filter_map(|(&pid, (before, after))| largest_share(pid, "weft-worker", before, after));
                round.extra.extend(shares.reduce(f64::max).map(|share| ("largest_worker_share", share)));
                if let SocketAddr::V4(middle) = pair.middle() {
                    round.extra.insert("mesh_connections", f64::from(connections_to(middle)?));
                }
            }
            _ => {}
        }
        if let Some(rate) = self.rates.get(&scenario) {
            round.extra.insert("rate", f64::from(*rate));
        }
        // What is taken off must be as undisturbed as the rest.
        round.foreign = round.foreign.max(direct.map_or(0.0, |direct| direct.foreign));
        if let Variant::Workers(workers) = contestant.variant {
            round.extra.insert("workers", f64::from(workers));
        }
        Ok(Some(round))
    }

    /// A load on a proxy that has a control plane, while endpoints come and go. The inbound figure is 0: there is no such
    /// proxy.
    pub(super) async fn churn(&self, rate: u32, mesh: &Mesh) -> Result<Round> {
        let mut churn = (rate > 0).then(|| mesh.churn(rate)).transpose()?;
        let start = Instant::now();
        let window = self.window(Scenario::Churn, mesh.entry()?, &mesh.pids()?).await?;
        let made = churn.as_mut().map_or(Ok(0), Churn::made)?;
        let per_second = made as f64 / start.elapsed().as_secs_f64();
        let mut round = self.round(&window, 1)?;
        round.extra.insert("changes_per_second", per_second);
        Ok(round)
    }

    /// What every window tells. `proxies`: how many of its processes are proxies, the first ones.
    fn round(&self, window: &Window, proxies: usize) -> Result<Round> {
        let requests = window.requests();
        let mut round = Round { foreign: window.foreign(), ..Round::default() };
        round.extra.extend(window.left_out.map(|share| ("left_out_percent", share * 100.0)));
        if let Some([p50, p99]) = window.latency {
            (round.p50_us, round.p99_us) = (Some(p50), Some(p99));
            ensure!(requests > 0.0, "no request was answered inside the window");
        }
        if requests > 0.0 {
            let cpu = |index| if index < proxies { window.cpu_seconds(index) * 1e6 / requests } else { 0.0 };
            round.rps = Some(requests / window.seconds());
            round.cpu_us = Some([cpu(0), cpu(1)]);
        }
        Ok(round)
    }

    /// A load that is not measured.
    pub(super) async fn warm_up(&self, scenario: Scenario, pair: &Pair, time: Duration) -> Result<()> {
        match self.begin(scenario, pair.entry(), 1).await? {
            // A tool counts in whole seconds; less than one is cut off, and so not asked how it went.
            Work::Tool(load) if time < Duration::from_secs(1) => {
                sleep(time).await;
                drop(load);
                Ok(())
            }
            Work::Tool(load) => {
                let nothing = SystemTime::UNIX_EPOCH..SystemTime::UNIX_EPOCH;
                load.finish(nothing).await.map(drop)
            }
            Work::Bulk(mut clients) => {
                sleep(time).await;
                clients.try_join_next().map_or(Ok(()), |ended| ended?)
            }
            Work::Open(load) => {
                let from = Instant::now();
                sleep(time).await;
                load.finish(from, Instant::now(), &Stolen::default()).await.map(drop)
            }
        }
    }

    /// What the same load takes without proxies: p50 in `http1-1`, p99 in the open loops, microseconds.
    pub(super) async fn direct(&self, scenario: Scenario) -> Result<Option<Direct>> {
        let wanted = match scenario {
            Scenario::Http1One => 0,
            Scenario::OpenLoop | Scenario::OpenLoopHttp2 => 1,
            _ => return Ok(None),
        };
        let window =
            self.window(scenario, self.server.address(scenario.protocol()), &[]).await.context("without proxies")?;
        let latency = window.latency.and_then(|latency| latency.get(wanted).copied());
        Ok(latency.map(|latency_us| Direct { latency_us, foreign: window.foreign() }))
    }

    /// The fixed rate: as asked for, else a share of the better Envoy's peak, measured now unless this run has done so.
    pub(super) async fn rate(&mut self, scenario: Scenario) -> Result<u32> {
        if let Some(rate) = self.settings.rate {
            return Ok(rate);
        }
        // Churn too is sent at this rate: it leaves time on the CPU that the changes need.
        let peak = if scenario == Scenario::OpenLoopHttp2 { Scenario::Http2Many } else { Scenario::Http1Many };
        let mut best: f64 = 0.0;
        for contestant in peak.contestants(&self.settings.proxies, &[]) {
            if !contestant.proxy.is_envoy() {
                continue;
            }
            let known = self
                .rounds
                .get(&(peak, contestant))
                .map(|rounds| median(&rounds.iter().filter_map(|round| round.rps).collect::<Vec<_>>()));
            let rps = match known {
                Some(rps) => rps,
                None => {
                    let name = format!("{scenario}-peak-{}", contestant.label());
                    let server = self.server.address(peak.protocol());
                    let pair = Pair::start(&self.place, contestant, &name, server, peak.protocol(), false).await?;
                    self.warm_up(peak, &pair, LEAD).await?;
                    let window = self.window(peak, pair.entry(), &pair.pids()).await?;
                    window.requests() / window.seconds()
                }
            };
            best = best.max(rps);
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate, far below 2^32")]
        Ok(if best > 0.0 { (best * SHARE_OF_PEAK) as u32 } else { DEFAULT_RATE })
    }

    async fn begin(&self, scenario: Scenario, entry: SocketAddr, seconds: u64) -> Result<Work> {
        Ok(match scenario {
            Scenario::GrpcStream | Scenario::Bodies | Scenario::TcpBulk => {
                Work::Bulk(bulk::start(scenario, entry, self.app.tally())?)
            }
            scenario if scenario.is_open_loop() => {
                let rate = self.rates.get(&scenario).copied().unwrap_or(DEFAULT_RATE);
                Work::Open(OpenLoop::start(entry, scenario.protocol(), scenario.connections(), rate).await?)
            }
            _ => {
                let (launcher, cpu) = (&self.place.launcher, self.settings.load_cpu);
                Work::Tool(Box::new(Load::start(launcher, &self.tools, scenario, entry, seconds, cpu)?))
            }
        })
    }

    /// Runs the load of `scenario` on `entry` and reads everything when the clock starts and when it stops.
    async fn window(&self, scenario: Scenario, entry: SocketAddr, pids: &[i32]) -> Result<Window> {
        let cpus = [self.settings.proxy_cpu, self.settings.load_cpu];
        let looks_out = self.looks_out && scenario.is_open_loop();
        let lookout = if looks_out { Some(Lookout::begin(&cpus)?) } else { None };
        let work = self.begin(scenario, entry, self.settings.seconds).await?;
        let load = match &work {
            Work::Tool(load) => Some(load.pid()),
            Work::Bulk(_) | Work::Open(_) => None,
        };
        sleep(LEAD).await;
        let from = SystemTime::now();
        let before = self.sample(scenario, pids, load).await?;
        sleep(Duration::from_secs(self.settings.seconds).saturating_sub(LEAD + TAIL)).await;
        let mut after = self.sample(scenario, pids, load).await?;
        // The second sample's own request is part of nginx's count.
        if !App::serves(scenario) {
            after.requests = after.requests.saturating_sub(1);
        }
        let (mut in_time, mut left_out) = (true, None);
        let latency = match work {
            Work::Tool(mut load) => {
                in_time = load.is_running()?;
                let to = SystemTime::now();
                let latency = load.finish(from..to).await?;
                Some([latency.p50, latency.p99])
            }
            Work::Bulk(mut clients) => {
                if let Some(ended) = clients.try_join_next() {
                    ended??;
                }
                None
            }
            Work::Open(load) => {
                sleep(TAIL).await;
                let stolen = lookout.as_ref().map(Lookout::seen).unwrap_or_default();
                let seen = load.finish(before.at, after.at, &stolen).await?;
                left_out = lookout.map(|_| seen.left_out);
                Some([seen.p50, seen.p99])
            }
        };
        let latency = latency.map(|times| times.map(|time| time.as_secs_f64() * 1e6));
        Ok(Window { before, after, latency, left_out, in_time })
    }

    async fn sample(&self, scenario: Scenario, pids: &[i32], load: Option<i32>) -> Result<Sample> {
        let mut ours = vec![i32::try_from(std::process::id())?, self.server.pid()];
        ours.extend(pids.iter().copied().chain(load));
        let foreign = ForeignTime::read(&ours)?;
        let (requests, bytes) =
            if App::serves(scenario) { self.app.tally().read() } else { (self.server.requests().await?, 0) };
        let cpu = pids.iter().map(|&pid| CpuTime::read(pid)).collect::<Result<_>>()?;
        let printed = pids.iter().map(|&pid| printed_bytes(pid)).sum::<Result<_>>()?;
        Ok(Sample { at: Instant::now(), requests, bytes, cpu, printed, foreign })
    }
}

pub(super) fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1024.0 * 1024.0)
}
