//! The steps of the demo. A step describes what happens and what to watch, and checks it. A failed check does not end the
//! demo; a failure that makes the next steps pointless does.

mod canary;
mod crash;
mod outage;
mod refusal;
mod traffic;
mod up;
mod wire;

use std::{collections::BTreeMap, fs, net::SocketAddr, os::unix::fs::DirBuilderExt as _, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, test_kill_process};
use tokio::{
    net::TcpListener,
    task::{JoinHandle, JoinSet},
    time::{Instant, MissedTickBehavior, interval},
};

use crate::{
    exchange,
    load::{Load, Mark, Since},
    metrics::{self, Rates, Totals},
    netns::{self, Inside},
    places::{LOGS, Places},
    plan::{App, MEMBERS, ROWS},
    process::Program,
    relay::Relay,
    shop::Shop,
    stage::Stage,
    state::{self, Lock},
};
use weft::{
    args::Demo,
    table::{Cell, Table, Tone},
};

/// A running demo.
#[derive(Debug)]
pub(crate) struct Story {
    stage: Stage,
    args: Demo,
    places: Places,
    shop: Option<Shop>,
    /// The edge's listener on this machine, until the relay serves it.
    listener: Option<TcpListener>,
    relay: Option<Relay>,
    load: Option<Load>,
    view: Option<JoinHandle<()>>,
    processes: Vec<i32>,
}

impl Story {
    /// A demo before its first step; `edge` accepts the customers.
    pub(crate) fn new(stage: Stage, args: Demo, places: Places, edge: TcpListener) -> Self {
        let listener = Some(edge);
        Self { stage, args, places, shop: None, listener, relay: None, load: None, view: None, processes: Vec::new() }
    }

    /// Runs all steps; without `--check` the shop then runs until this is dropped.
    ///
    /// Errors: the shop does not come up, or cannot be measured.
    pub(crate) async fn run(&mut self) -> Result<()> {
        let start = Instant::now();
        Box::pin(self.up()).await?;
        self.start_view()?;
        Box::pin(self.traffic()).await?;
        self.linger().await?;
        Box::pin(self.wire()).await;
        self.linger().await?;
        Box::pin(self.canary()).await;
        self.linger().await?;
        Box::pin(self.crash()).await;
        self.linger().await?;
        Box::pin(self.refusal()).await;
        self.linger().await?;
        Box::pin(self.outage()).await;
        if self.args.check {
            self.stage.note(&format!("# took {:.0} s", start.elapsed().as_secs_f64()));
            let result = Box::pin(self.orders_kept()).await;
            self.stage.check("end: every acknowledged order is still there", result);
            return Ok(());
        }
        self.stay().await
    }

    /// Stops everything and verifies that nothing is left.
    ///
    /// Errors: something is left.
    pub(crate) async fn clean_up(&mut self, lock: &Lock, before: &Machine) -> Result<String> {
        if let Some(view) = self.view.take() {
            view.abort();
        }
        self.relay = None;
        self.load = None;
        if let Some(mut shop) = self.shop.take() {
            self.processes.extend(shop.process_ids());
            shop.stop().await?;
        }
        let (namespaces, _) = netns::remove_all().await?;
        state::remove(lock)?;
        let left = netns::present();
        ensure!(left.is_empty(), "namespaces: {}", left.join(", "));
        let alive: Vec<i32> = self.processes.iter().copied().filter(|pid| alive(*pid)).collect();
        ensure!(alive.is_empty(), "processes: {alive:?}");
        Machine::look().await?.nothing_new(before)?;
        Ok(format!("{namespaces} namespaces, {} processes removed", self.processes.len()))
    }

    /// Ends the load, which reads every acknowledged order again.
    async fn orders_kept(&mut self) -> Result<String> {
        let summary = self.load.take().context("there is no load")?.finish().await?;
        let verified = summary.verified.context("the load generator did not verify its orders")?;
        ensure!(
            verified.missing.is_empty(),
            "{} orders are missing: {}",
            verified.missing.len(),
            verified.missing.join(", ")
        );
        ensure!(verified.unreadable == 0, "{} could not be read", verified.unreadable);
        ensure!(
            summary.acknowledged > 0 && verified.found == summary.acknowledged,
            "{} of {} orders were found",
            verified.found,
            summary.acknowledged
        );
        Ok(format!(
            "{} orders; {} requests in total, {} failed",
            verified.found,
            summary.ok + summary.failed,
            summary.failed
        ))
    }

    fn shop(&self) -> Result<&Shop> {
        self.shop.as_ref().context("the shop is not up")
    }

    fn shop_mut(&mut self) -> Result<&mut Shop> {
        self.shop.as_mut().context("the shop is not up")
    }

    fn load(&mut self) -> Result<&mut Load> {
        self.load.as_mut().context("there is no load")
    }

    fn mark(&mut self) -> Result<Mark> {
        Ok(self.load()?.mark())
    }

    /// A few seconds of load between two steps, to watch the table; none with `--check`.
    ///
    /// Errors: the load ended.
    async fn linger(&mut self) -> Result<()> {
        if !self.args.check {
            let mark = self.mark()?;
            self.load()?.seconds(mark, 3).await?;
        }
        Ok(())
    }

    /// Waits for that many seconds of load, in which no request may fail.
    ///
    /// Errors: the load ended, or requests failed.
    async fn quiet(&mut self, mark: Mark, seconds: usize) -> Result<Since> {
        let since = self.load()?.seconds(mark, seconds).await?;
        since.none_failed()?;
        ensure!(since.ok > 0, "no request succeeded");
        Ok(since)
    }

    fn edge(&self) -> Result<SocketAddr> {
        Ok(self.relay.as_ref().context("there is no relay")?.address)
    }

    /// A request of a customer at the edge.
    ///
    /// Errors: no response.
    async fn customer(
        edge: SocketAddr,
        method: http::Method,
        path: &str,
        json: Option<String>,
    ) -> Result<exchange::Answer> {
        let stream = tokio::net::TcpStream::connect(edge).await.context("connect to the edge")?;
        exchange::http(stream, method, &edge.to_string(), path, json).await
    }

    /// The services' totals now.
    async fn totals(&self) -> Result<BTreeMap<&'static str, Totals>> {
        totals(&targets(self.shop()?, App::service)?).await
    }

    fn start_load(&mut self) -> Result<()> {
        let words = [
            self.places.load.clone(),
            "--edge".into(),
            format!("http://{}", self.edge()?),
            "--rps".into(),
            self.args.rps.to_string(),
            "--json-lines".into(),
            "--verify".into(),
        ];
        let program = Program {
            name: "load".into(),
            namespace: None,
            user: None,
            command: words.into(),
            env: Vec::new(),
            directory: "/".into(),
            stop: rustix::process::Signal::TERM,
        };
        let load = Load::start(&program, Path::new(LOGS))?;
        self.processes.push(load.id());
        self.load = Some(load);
        Ok(())
    }

    /// Redraws the table of services each second, on a terminal.
    fn start_view(&mut self) -> Result<()> {
        if !self.stage.live() {
            return Ok(());
        }
        let (stage, targets, edge) = (self.stage.clone(), targets(self.shop()?, App::row)?, self.edge()?);
        self.view = Some(tokio::spawn(async move {
            let mut ticks = interval(Duration::from_secs(1));
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut last: Option<(Instant, BTreeMap<&'static str, Totals>)> = None;
            loop {
                ticks.tick().await;
                // A proxy that does not respond at this moment leaves the last table in place.
                let Ok(now) = totals(&targets).await else { continue };
                if let Some((at, before)) = &last {
                    stage.table(table_lines(&stage, edge, before, &now, at.elapsed()));
                }
                last = Some((Instant::now(), now));
            }
        }));
        Ok(())
    }

    /// Keeps the shop running until the demo is interrupted.
    async fn stay(&mut self) -> Result<()> {
        let (edge, style) = (self.edge()?, self.stage.style());
        let socket = self.shop()?.client.server().to_string();
        self.stage.step("The shop keeps running");
        self.stage.say(&format!("The shop is at {}, for a browser too.", style.cyan(&format!("http://{edge}/"))));
        self.stage.say("Try, in another terminal:");
        for command in [
            format!("curl http://{edge}/products/p1"),
            format!("curl -d '{{\"user\":\"u1\",\"product\":\"p3\",\"quantity\":1}}' http://{edge}/orders"),
            format!("weft --server {socket} status"),
            format!("weft --server {socket} get services -n shop"),
            format!("weft --server {socket} apply -f {}", self.places.objects.join("canary/50.yaml").display()),
            format!("weft --server {socket} history"),
            "ip netns exec weft-demo-order-1 curl http://user/users/u1".to_owned(),
            "ip netns exec weft-demo-user-1 curl -s localhost:15020/metrics".to_owned(),
        ] {
            self.stage.say(&format!("  {}", style.cyan(&command)));
        }
        self.stage.say(&format!("The programs' logs are in {LOGS}. Ctrl-C stops everything."));
        loop {
            let mark = self.mark()?;
            self.load()?.seconds(mark, 60).await?;
        }
    }
}

/// The proxies to scrape, each with the row that its totals are added to.
///
/// Errors: a host is missing.
fn targets(shop: &Shop, group: fn(App) -> &'static str) -> Result<Vec<(&'static str, Inside)>> {
    MEMBERS.iter().map(|member| Ok((group(member.app), shop.inside(member.name)?.clone()))).collect()
}

async fn totals(targets: &[(&'static str, Inside)]) -> Result<BTreeMap<&'static str, Totals>> {
    let mut scrapes = JoinSet::new();
    for (service, inside) in targets.iter().cloned() {
        scrapes.spawn(async move { (service, metrics::scrape(&inside).await) });
    }
    let mut totals: BTreeMap<&'static str, Totals> = BTreeMap::new();
    while let Some(scrape) = scrapes.join_next().await {
        let (service, samples) = scrape.context("a scrape panicked")?;
        let samples = samples.with_context(|| format!("scrape a proxy of {service}"))?;
        totals.entry(service).or_default().add(&samples);
    }
    Ok(totals)
}

fn table_lines(
    stage: &Stage,
    edge: SocketAddr,
    before: &BTreeMap<&'static str, Totals>,
    now: &BTreeMap<&'static str, Totals>,
    time: Duration,
) -> Vec<String> {
    let style = stage.style();
    let mut table = Table::new(&["SERVICE", "RPS", "SUCCESS", "P50", "P99", "CONNECTIONS"]);
    for service in ROWS {
        let Some(totals) = now.get(*service) else { continue };
        let rates = before.get(*service).map(|before| totals.since(before, time)).unwrap_or_default();
        table.row(row(service, &rates, totals));
    }
    let mut lines = vec![style.dim(&format!("── last second, from the proxies' metrics · edge http://{edge} ──"))];
    lines.extend(table.render(style));
    lines
}

fn row(service: &str, rates: &Rates, totals: &Totals) -> Vec<Cell> {
    let milliseconds = |value: Option<f64>| value.map(|value| format!("{value:.1} ms")).unwrap_or_default();
    let success = if rates.rps > 0.0 { format!("{:.1} %", rates.success * 100.0) } else { String::new() };
    let tone = if rates.success < 1.0 { Tone::Bad } else { Tone::Good };
    vec![
        service.into(),
        if rates.rps > 0.0 { format!("{:.0}", rates.rps).into() } else { Cell::default() },
        Cell::toned(success, tone),
        milliseconds(rates.p50_ms).into(),
        milliseconds(rates.p99_ms).into(),
        format!("{:.0}", totals.open).into(),
    ]
}

/// Everything that the demo could leave on the machine's own network, and mounts. Other programs may add and remove theirs.
#[derive(Debug)]
pub(crate) struct Machine {
    tables: Vec<String>,
    links: Vec<String>,
    mounts: Vec<String>,
}

impl Machine {
    /// Lists the nft tables, network links and mounts with names of the demo.
    ///
    /// Errors: `nft` or `ip` fails.
    pub(crate) async fn look() -> Result<Self> {
        let tables = netns::run("nft", &["list", "tables"]).await?;
        let links = netns::run("ip", &["-o", "link", "show"]).await?;
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("read the mounts")?;
        let lines =
            |text: &str, ours: fn(&str) -> bool| text.lines().filter(|line| ours(line)).map(str::to_owned).collect();
        let links =
            links.lines().filter_map(|line| line.split(": ").nth(1)?.split('@').next()).collect::<Vec<_>>().join("\n");
        Ok(Self {
            tables: lines(&tables, |line| line.contains("weft")),
            links: lines(&links, netns::is_link_of_demo),
            mounts: lines(&mounts, |line| line.contains(netns::PREFIX)),
        })
    }

    fn nothing_new(&self, before: &Self) -> Result<()> {
        for (what, now, before) in [
            ("nft tables", &self.tables, &before.tables),
            ("links", &self.links, &before.links),
            ("mounts", &self.mounts, &before.mounts),
        ] {
            let new: Vec<&String> = now.iter().filter(|name| !before.contains(name)).collect();
            ensure!(new.is_empty(), "{what}: {new:?}");
        }
        Ok(())
    }
}

/// Whether a process exists. The demo's own zombies have been waited for.
fn alive(pid: i32) -> bool {
    Pid::from_raw(pid).is_some_and(|pid| test_kill_process(pid).is_ok())
}

/// Creates the directory of the logs, or empties it.
fn fresh_logs() -> Result<()> {
    let logs = Path::new(LOGS);
    if logs.exists() {
        fs::remove_dir_all(logs).with_context(|| format!("empty {LOGS}"))?;
    }
    fs::DirBuilder::new().recursive(true).mode(0o755).create(logs).with_context(|| format!("create {LOGS}"))
}
