//! The pairs: outbound and inbound proxy of each contestant, started, proven to work, and stopped when dropped.

mod envoy;
mod weft;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow};
use clap::ValueEnum;
use tokio::time::{Instant, sleep};

use crate::certs::Certs;
use crate::floor::Side;
use crate::process::{Child, Launcher};
use crate::scenario::Version;
use crate::server::free_address;
use crate::verify::{self, Hop};

/// Whose proxies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Proxy {
    /// Weft.
    #[value(name = "weft")]
    Weft,
    /// Envoy with HTTP/1.1 between its proxies.
    #[value(name = "envoy-h1")]
    EnvoyH1,
    /// Envoy with HTTP/2 between its proxies.
    #[value(name = "envoy-h2")]
    EnvoyH2,
    /// The relay of the bench.
    #[value(name = "floor")]
    Floor,
}

impl Proxy {
    /// Every proxy, in the order of the report.
    pub const ALL: [Self; 4] = [Self::Weft, Self::EnvoyH1, Self::EnvoyH2, Self::Floor];

    /// The name in the report, in `latest.json` and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Weft => "weft",
            Self::EnvoyH1 => "envoy-h1",
            Self::EnvoyH2 => "envoy-h2",
            Self::Floor => "floor",
        }
    }

    /// One of Envoy's two ways.
    #[must_use]
    pub fn is_envoy(self) -> bool {
        matches!(self, Self::EnvoyH1 | Self::EnvoyH2)
    }
}

/// One line-up of programs and settings; the floor runs with several buffer sizes, of which the best counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Contestant {
    /// Whose proxies.
    pub proxy: Proxy,
    /// The floor's copy buffer in KiB; 0 for the others.
    pub buffer_kib: usize,
}

/// The buffer sizes of the floor.
const FLOOR_BUFFERS_KIB: [usize; 3] = [16, 64, 256];

impl Contestant {
    /// All contestants of the chosen proxies.
    #[must_use]
    pub fn of(proxies: &[Proxy]) -> Vec<Self> {
        let one = |&proxy: &Proxy| match proxy {
            Proxy::Floor => FLOOR_BUFFERS_KIB.map(|buffer_kib| Self { proxy, buffer_kib }).to_vec(),
            Proxy::Weft | Proxy::EnvoyH1 | Proxy::EnvoyH2 => vec![Self { proxy, buffer_kib: 0 }],
        };
        proxies.iter().flat_map(one).collect()
    }

    /// The proxy's name, for the floor with its buffer.
    #[must_use]
    pub fn label(&self) -> String {
        match self.buffer_kib {
            0 => self.proxy.name().to_owned(),
            kib => format!("{} {kib}k", self.proxy.name()),
        }
    }
}

/// What every pair of a run shares.
#[derive(Debug)]
pub struct Place {
    /// Starts the children.
    pub launcher: Launcher,
    /// The run's identities.
    pub certs: Certs,
    /// Where configuration files go.
    pub dir: PathBuf,
    /// The CPU of both proxies.
    pub cpu: usize,
    /// `weft-proxy`; empty when Weft does not take part.
    pub weft: PathBuf,
    /// `envoy`; empty when Envoy does not take part.
    pub envoy: PathBuf,
}

/// A running pair.
#[derive(Debug)]
pub struct Pair {
    outbound: Child,
    inbound: Child,
    entry: SocketAddr,
}

impl Pair {
    /// Starts a pair in front of `server`, which speaks `version`, and returns when it was proven to work.
    /// `name` is unique in the run.
    ///
    /// # Errors
    /// A proxy does not start, the pair does not answer, or it serves a wrong identity.
    pub async fn start(
        place: &Place,
        contestant: Contestant,
        name: &str,
        server: SocketAddr,
        version: Version,
    ) -> Result<Self> {
        let (entry, middle) = (free_address()?, free_address()?);
        let dir = place.dir.join(name);
        std::fs::create_dir_all(&dir)?;
        let plan = Plan { place, dir: &dir, name, entry, middle, server, version };
        let (outbound, inbound, hop) = match contestant.proxy {
            Proxy::Weft => weft::start(&plan)?,
            Proxy::EnvoyH1 => envoy::start(&plan, Version::Http1)?,
            Proxy::EnvoyH2 => envoy::start(&plan, Version::Http2)?,
            Proxy::Floor => floor(&plan, contestant.buffer_kib)?,
        };
        let mut pair = Self { outbound, inbound, entry };
        pair.ready(version).await?;
        if let Some(hop) = hop {
            verify::refuses_strangers(middle, hop, &place.certs).await?;
        }
        Ok(pair)
    }

    /// Where the client connects.
    #[must_use]
    pub fn entry(&self) -> SocketAddr {
        self.entry
    }

    /// The process ids, outbound and inbound.
    #[must_use]
    pub fn pids(&self) -> [i32; 2] {
        [self.outbound.pid(), self.inbound.pid()]
    }

    /// Fails when one of the proxies has ended.
    ///
    /// # Errors
    /// One has; with the end of its log.
    pub fn check(&mut self) -> Result<()> {
        self.outbound.check()?;
        self.inbound.check()
    }

    /// `error` with what the proxies said last.
    #[must_use]
    pub fn explain(&self, error: &Error) -> Error {
        anyhow!(
            "{error:#}\nthe outbound proxy's log ends:\n{}the inbound proxy's log ends:\n{}",
            self.outbound.log_tail(),
            self.inbound.log_tail()
        )
    }

    /// Waits until a request passes.
    async fn ready(&mut self, version: Version) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.check()?;
            match verify::answers(self.entry, version).await {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() > deadline => {
                    return Err(self.explain(&error.context("the pair does not answer")));
                }
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

/// What one pair is configured from.
struct Plan<'a> {
    place: &'a Place,
    dir: &'a Path,
    name: &'a str,
    /// Where the outbound proxy listens.
    entry: SocketAddr,
    /// Where the inbound proxy listens.
    middle: SocketAddr,
    server: SocketAddr,
    version: Version,
}

/// How long a new pair may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);

type Started = (Child, Child, Option<Hop>);

impl Plan<'_> {
    /// Writes a configuration file and returns its path.
    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.dir.join(name);
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }

    /// Starts one side on the proxies' CPU.
    fn launch(&self, side: Side, program: &Path, args: &[&str]) -> Result<Child> {
        self.place.launcher.start(&format!("{}-{}", self.name, side.name()), self.place.cpu, program, args)
    }
}

fn floor(plan: &Plan<'_>, buffer_kib: usize) -> Result<Started> {
    let certs = plan.place.certs.dir().display().to_string();
    let buffer = buffer_kib.to_string();
    let relay = |side: Side, listen: SocketAddr, connect: SocketAddr| {
        let (listen, connect) = (listen.to_string(), connect.to_string());
        let args = [
            "relay",
            "--side",
            side.name(),
            "--listen",
            &listen,
            "--connect",
            &connect,
            "--certs",
            &certs,
            "--buffer-kib",
            &buffer,
        ];
        plan.launch(side, plan.place.launcher.bench(), &args)
    };
    let inbound = relay(Side::Inbound, plan.middle, plan.server)?;
    let outbound = relay(Side::Outbound, plan.entry, plan.middle)?;
    Ok((outbound, inbound, None))
}
