//! The pairs: outbound and inbound proxy of each contestant, started, verified, and stopped when dropped.

mod envoy;
pub mod other;
pub(crate) mod weft;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow};
use tokio::time::{Instant, sleep};

use self::other::Other;

use crate::certs::Certs;
use crate::floor::Side;
use crate::process::{Child, Launcher};
use crate::scenario::Protocol;
use crate::server::free_address;
use crate::verify::{self, Hop};

/// Whose proxies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Proxy {
    /// Weft.
    Weft,
    /// Envoy with HTTP/1.1 between its proxies.
    EnvoyH1,
    /// Envoy with HTTP/2 between its proxies.
    EnvoyH2,
    /// The relay of the bench.
    Floor,
    /// A pair that the command line describes.
    Other(&'static Other),
}

impl Proxy {
    /// Every proxy that the bench knows by itself, in the order of the report.
    pub const ALL: [Self; 4] = [Self::Weft, Self::EnvoyH1, Self::EnvoyH2, Self::Floor];

    /// The name in the report, in `latest.json` and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Weft => "weft",
            Self::EnvoyH1 => "envoy-h1",
            Self::EnvoyH2 => "envoy-h2",
            Self::Floor => "floor",
            Self::Other(other) => &other.name,
        }
    }

    /// One of Envoy's two ways.
    #[must_use]
    pub fn is_envoy(self) -> bool {
        matches!(self, Self::EnvoyH1 | Self::EnvoyH2)
    }
}

impl std::str::FromStr for Proxy {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let names = || Self::ALL.map(Self::name).join(", ");
        Self::ALL
            .into_iter()
            .find(|proxy| proxy.name() == word)
            .ok_or_else(|| format!("there is no {word:?}; there are {}", names()))
    }
}

/// One line-up of programs and settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Contestant {
    /// Whose proxies.
    pub proxy: Proxy,
    /// In which setting.
    pub variant: Variant,
}

/// A setting in which the proxies of one kind differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Variant {
    /// As always.
    Default,
    /// The floor's copy buffer; of several the best counts.
    BufferKib(u32),
    /// Workers of each proxy.
    Workers(u32),
    /// Rules of the service's route.
    Routes(u32),
    /// Endpoints of the service, of which ten are healthy.
    Endpoints(u32),
    /// Authorization policies at the server.
    Policies(u32),
    /// Services in the mesh.
    Services(u32),
    /// Endpoints that come or go in a second at a control plane beside, which has no proxies.
    ChangesBeside(u32),
    /// The same at the control plane of the proxy.
    ChangesPerSecond(u32),
    /// Whether every request is logged.
    Logged(bool),
}

impl Contestant {
    /// The proxy's name, with its setting.
    #[must_use]
    pub fn label(&self) -> String {
        let name = self.proxy.name();
        match self.variant {
            Variant::Default => name.to_owned(),
            Variant::BufferKib(kib) => format!("{name} {kib}k"),
            _ => format!("{name} {}", self.setting().unwrap_or_default()),
        }
    }

    /// The setting, when there are rows for several.
    #[must_use]
    pub fn setting(&self) -> Option<String> {
        match self.variant {
            Variant::Default | Variant::BufferKib(_) => None,
            Variant::Workers(n) => Some(format!("workers={n}")),
            Variant::Routes(n) => Some(format!("routes={n}")),
            Variant::Endpoints(n) => Some(format!("endpoints={n}")),
            Variant::Policies(n) => Some(format!("policies={n}")),
            Variant::Services(n) => Some(format!("services={n}")),
            Variant::ChangesPerSecond(n) => Some(format!("changes={n}/s")),
            Variant::ChangesBeside(n) => Some(format!("beside={n}/s")),
            Variant::Logged(logged) => Some(format!("logged={}", if logged { "all" } else { "errors" })),
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
    middle: SocketAddr,
    hop: Option<Hop>,
}

impl Pair {
    /// Starts a pair in front of `server`, which speaks `protocol`, and returns when it was proven to work.
    /// `name` is unique in the run. `resumption`: Envoy may resume TLS sessions too.
    ///
    /// # Errors
    /// A proxy does not start, the pair does not answer, or it serves a wrong identity.
    pub async fn start(
        place: &Place,
        contestant: Contestant,
        name: &str,
        server: SocketAddr,
        protocol: Protocol,
        resumption: bool,
    ) -> Result<Self> {
        let (entry, middle) = (free_address()?, free_address()?);
        let dir = place.dir.join(name);
        std::fs::create_dir_all(&dir)?;
        let plan =
            Plan { place, dir: &dir, name, entry, middle, server, protocol, variant: contestant.variant, resumption };
        let (outbound, inbound, hop) = match contestant.proxy {
            Proxy::Weft => weft::start(&plan)?,
            Proxy::EnvoyH1 => envoy::start(&plan, Protocol::Http1)?,
            Proxy::EnvoyH2 => envoy::start(&plan, Protocol::Http2)?,
            Proxy::Floor => floor(&plan)?,
            Proxy::Other(other) => other.start(&plan)?,
        };
        let mut pair = Self { outbound, inbound, entry, middle, hop };
        pair.ready(protocol).await?;
        match (contestant.proxy, hop) {
            (Proxy::Other(_), _) => verify::refuses_the_nameless(middle, &place.certs).await?,
            (_, Some(hop)) => verify::refuses_strangers(middle, hop, &place.certs).await?,
            (_, None) => {}
        }
        Ok(pair)
    }

    /// Where the client connects.
    #[must_use]
    pub fn entry(&self) -> SocketAddr {
        self.entry
    }

    /// Where the inbound proxy takes connections from its peers.
    #[must_use]
    pub fn middle(&self) -> SocketAddr {
        self.middle
    }

    /// How the inbound proxy wants to be spoken to; the floor does not care.
    #[must_use]
    pub fn hop(&self) -> Option<Hop> {
        self.hop
    }

    /// The process ids, outbound and inbound.
    #[must_use]
    pub fn pids(&self) -> [i32; 2] {
        [self.outbound.pid(), self.inbound.pid()]
    }

    /// Empties both proxies' logs.
    ///
    /// # Errors
    /// A log is gone.
    pub fn empty_logs(&self) -> Result<()> {
        self.outbound.empty_log()?;
        self.inbound.empty_log()
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
    async fn ready(&mut self, protocol: Protocol) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.check()?;
            match verify::answers(self.entry, protocol).await {
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
    protocol: Protocol,
    variant: Variant,
    /// Whether Envoy's inbound half resumes TLS sessions, as Weft's does.
    resumption: bool,
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

fn floor(plan: &Plan<'_>) -> Result<Started> {
    let certs = plan.place.certs.dir().display().to_string();
    let buffer = match plan.variant {
        Variant::BufferKib(kib) => kib.to_string(),
        _ => "64".to_owned(),
    };
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
