//! The proxy's settings, from its file and the flags and environment variables that replace parts of it. No other module reads
//! either.
//! Shape: flags and file in, [`Settings`] or every mistake out. Exit code 64 for a mistake.
//!
//! - [`overrides`]: flags and environment. [`token`]: join tokens. [`loops`]: forward listeners that lead back to the proxy.
//!
//! # Defaults
//! Those of `weft_core::api::proxy_config`; 3 s for discovery to answer about a destination; the mesh's ranges `240.0.0.0/4` and
//! `fd77:6566:7400::/48`.

mod loops;
mod overrides;
mod token;

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU32,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use clap::{Args, ValueEnum, ValueHint};
use ipnet::IpNet;
use serde_json::Value;
use weft_core::{
    api::{
        ApiError, Object, ObjectKey, ProxyConfig, line_in, line_of_error,
        mesh_config::AccessLogMode,
        parse_proxy_file,
        proxy_config::{Forward, IdentityFiles, ProxyMode, ProxyPorts, ProxyTls, ProxyWorkload},
    },
    listener::AccessLog,
    names::{MESH_RANGE_V4, MESH_RANGE_V6},
};

use self::loops::listening;
pub(crate) use self::loops::loops;
pub use self::{
    loops::LoopError,
    overrides::Overrides,
    token::{JoinToken, TokenError, TokenSource, TokenSourceError},
};

/// Longest wait for discovery to answer about a destination.
const DISCOVERY_WAIT: Duration = Duration::from_secs(3);

/// Where the settings come from: flags of `run` and `identity`.
#[derive(Args, Clone, Debug, Default)]
pub struct SettingsArgs {
    /// The proxy's file: a ProxyConfig, then, without a control plane, the mesh's objects
    #[arg(long, env = "WEFT_CONFIG", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: PathBuf,

    #[command(flatten)]
    /// Replacements for parts of the file.
    pub overrides: Overrides,
}

/// How the proxy writes its own log.
#[derive(Args, Clone, Debug)]
pub struct LogArgs {
    /// Filter of the log, such as info, debug or weft_proxy::discovery=debug
    #[arg(long, env = "WEFT_LOG", value_name = "FILTER", default_value = "info")]
    pub log: String,

    /// Format of the log on standard error
    #[arg(long, env = "WEFT_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The settings of a proxy, fixed at its start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its name at the control plane.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Beside a workload or at the edge.
    pub mode: Mode,
    /// The workload beside it; for a gateway at most the service account.
    pub workload: ProxyWorkload,
    /// Where configuration and identity come from.
    pub source: Source,
    /// SO_MARK of its own connections.
    pub mark: Option<u32>,
    /// Threads that carry traffic.
    pub workers: usize,
    /// Mesh TLS between proxies.
    pub tls: ProxyTls,
    /// Ports of its listeners; 0 picks a free port.
    pub ports: ProxyPorts,
    /// Address of the metrics port.
    pub bind: IpAddr,
    /// Explicit listeners.
    pub forward: Forward,
    /// Whether a redirection is expected; `None`: for a sidecar with a mark and without explicit listeners.
    pub expect_redirect: Option<bool>,
    /// Drain timeout: how long open connections may take to end at shutdown.
    pub drain: Duration,
    /// Overrides the access log policy of the mesh.
    pub access_log: Option<AccessLog>,
    /// Most connections from callers in one direction, all workers together.
    pub max_connections: usize,
    /// Requests in flight on one HTTP/2 connection from a caller; `None`: 100 at the edge, otherwise 1,000.
    pub max_streams: Option<NonZeroU32>,
    /// Most of those to the workload that come from one source.
    pub max_connections_per_source: usize,
    /// Most of those to the workload under one identity.
    pub max_connections_per_identity: usize,
    /// How long bytes of a body may wait for a reader that has read none; zero: for ever.
    pub stalled: Duration,
    /// The same for a reader that has read some.
    pub paused: Duration,
    /// How long a half-closed caller waits for an application that speaks HTTP/2; zero: for ever.
    pub half_closed: Duration,
    /// Longest wait for discovery to answer about a destination.
    pub discovery_wait: Duration,
    /// Addresses that can only be services of the mesh.
    pub mesh_ranges: Vec<IpNet>,
    /// The settings in the file's shape, with everything that has a default and without secrets.
    pub effective: Value,
}

/// The place of a proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Beside one workload.
    Sidecar,
    /// At the edge, for the Gateway object of this name in the proxy's namespace.
    Gateway(String),
}

/// Where configuration and identity come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// The file alone.
    File {
        /// The certificate's files; none: plaintext only.
        identity: Option<IdentityFiles>,
        /// The mesh.
        objects: BTreeMap<ObjectKey, Arc<Object>>,
    },
    /// A control plane.
    ControlPlane(Join),
}

/// The address of a control plane, and the first proof of identity.
#[derive(Clone, Debug)]
pub struct Join {
    /// `host:port`.
    pub address: String,
    /// The join token.
    pub token: TokenSource,
}

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file has mistakes; all of them, one a line.
    #[error("{}", lines(.path, .mistakes))]
    Mistakes {
        /// The file.
        path: PathBuf,
        /// Each with its place.
        mistakes: Vec<Mistake>,
    },
}

/// A mistake in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Its line, from 1.
    pub line: Option<usize>,
    /// The object, unless it is the proxy's own document, the field and the reason.
    pub text: String,
}

impl Mistake {
    /// In a field of the proxy's own document.
    pub(crate) fn own(file: &str, field: &str, reason: impl fmt::Display) -> Self {
        Self { line: Some(line_in(file, 0, field)), text: format!("{field}: {reason}") }
    }
}

/// `FILE:LINE: FIELD: REASON`, one a line.
fn lines(path: &Path, mistakes: &[Mistake]) -> String {
    let line = |mistake: &Mistake| match mistake.line {
        Some(line) => format!("{}:{line}: {}", path.display(), mistake.text),
        None => format!("{}: {}", path.display(), mistake.text),
    };
    match mistakes {
        [one] => line(one),
        many => {
            let all: String = many.iter().map(|mistake| format!("\n  {}", line(mistake))).collect();
            format!("{} mistakes:{all}", many.len())
        }
    }
}

impl SettingsArgs {
    /// Reads the file, and applies the overrides.
    /// Errors: every mistake in the file.
    pub fn read(&self) -> Result<Settings, ConfigError> {
        let text = fs::read_to_string(&self.config)
            .map_err(|source| ConfigError::Read { path: self.config.clone(), source })?;
        Settings::parse(&text, &self.overrides)
            .map_err(|mistakes| ConfigError::Mistakes { path: self.config.clone(), mistakes })
    }
}

impl Settings {
    /// Settings from a file's text.
    /// Errors: every mistake, each with its line and field.
    pub fn parse(file: &str, overrides: &Overrides) -> Result<Self, Vec<Mistake>> {
        let text = overrides.apply(file);
        let wrong = |error: &ApiError| {
            let object = error.object.as_ref().map(|key| format!("{key}: ")).unwrap_or_default();
            Mistake { line: Some(line_of_error(file, error)), text: format!("{object}{}", error.error) }
        };
        let (config, objects) =
            parse_proxy_file(&text).map_err(|errors| errors.iter().map(wrong).collect::<Vec<_>>())?;
        // From here on mistakes are collected: the whole list is worth more than the first one.
        let mut mistakes = Vec::new();
        // Before the file is taken apart, so that it shows the defaults too.
        let effective = effective(&config, objects.len());
        let ProxyConfig { metadata, spec } = config;
        // Two sources of one mesh would contradict each other without a word.
        if spec.control_plane.is_some() {
            for object in &objects {
                let text = format!("{}: not together with spec.controlPlane, which defines the mesh", object.key());
                mistakes.push(Mistake { line: Some(line_in(file, 0, "spec.controlPlane")), text });
            }
        }
        let own = spec.workload.as_ref().map(|workload| workload.addresses.as_slice()).unwrap_or_default();
        let looping = loops(&spec.forward, &listening(&spec), own);
        mistakes.extend(
            looping.iter().map(|error| Mistake { line: Some(line_in(file, 0, &error.field)), text: error.to_string() }),
        );
        let source = match spec.control_plane {
            Some(plane) => {
                let token = match (plane.join_token, plane.join_token_file) {
                    (Some(text), _) => match JoinToken::parse(text.trim()) {
                        Ok(token) => Some(TokenSource::Given(token)),
                        Err(error) => {
                            mistakes.push(Mistake::own(file, "spec.controlPlane.joinToken", error));
                            None
                        }
                    },
                    (None, file) => file.map(TokenSource::File),
                };
                token.map(|token| Source::ControlPlane(Join { address: plane.address, token }))
            }
            None => {
                let objects = objects.into_iter().map(|object| (object.key(), Arc::new(object))).collect();
                Some(Source::File { identity: spec.identity, objects })
            }
        };
        let mode = match (spec.mode, spec.gateway) {
            (ProxyMode::Gateway, Some(gateway)) => Mode::Gateway(gateway),
            // A gateway without a name is a mistake that the parser of the file has reported.
            (ProxyMode::Sidecar | ProxyMode::Gateway, _) => Mode::Sidecar,
        };
        match source {
            Some(source) if mistakes.is_empty() => Ok(Self {
                name: metadata.name,
                namespace: metadata.namespace,
                mode,
                workload: spec.workload.unwrap_or_default(),
                source,
                mark: (spec.mark != 0).then_some(spec.mark),
                workers: spec.workers.get(),
                tls: spec.tls,
                ports: spec.ports,
                bind: spec.bind.unwrap_or(Ipv6Addr::UNSPECIFIED.into()),
                forward: spec.forward,
                expect_redirect: spec.expect_redirect,
                drain: spec.drain.std(),
                access_log: spec.access_log.map(access_log),
                max_connections: usize::try_from(spec.limits.connections.get()).unwrap_or(usize::MAX),
                max_streams: spec.limits.streams,
                max_connections_per_source: usize::try_from(spec.limits.per_source()).unwrap_or(usize::MAX),
                max_connections_per_identity: usize::try_from(spec.limits.per_identity()).unwrap_or(usize::MAX),
                stalled: spec.limits.stalled.std(),
                paused: spec.limits.paused.std(),
                half_closed: spec.limits.half_closed.std(),
                discovery_wait: DISCOVERY_WAIT,
                mesh_ranges: [MESH_RANGE_V4, MESH_RANGE_V6].iter().filter_map(|range| range.parse().ok()).collect(),
                effective,
            }),
            _ => Err(mistakes),
        }
    }

    /// The workload's ports as the file declares them, and where connections of `forward` lead.
    pub(crate) fn declared_ports(&self) -> Vec<u16> {
        let own = self.workload.ports.iter().map(|port| port.port.get());
        own.chain(self.forward.inbound.iter().map(|forward| forward.destination.port())).collect()
    }

    /// The settings that need a restart to change, compared by what they are in the file.
    pub(crate) fn same_proxy(&self, other: &Self) -> bool {
        let spec = |settings: &Self| {
            let mut spec = settings.effective.clone();
            if let Some(map) = spec.as_object_mut() {
                map.remove("objects");
            }
            spec
        };
        spec(self) == spec(other)
    }
}

fn access_log(mode: AccessLogMode) -> AccessLog {
    match mode {
        AccessLogMode::Off => AccessLog::Off,
        AccessLogMode::Errors => AccessLog::Errors,
        AccessLogMode::All => AccessLog::All,
    }
}

/// The file's shape with every default in it; the join token is hidden.
fn effective(config: &ProxyConfig, objects: usize) -> Value {
    let mut config = config.clone();
    if let Some(plane) = &mut config.spec.control_plane
        && let Some(token) = &mut plane.join_token
    {
        "(hidden)".clone_into(token);
    }
    let mut value = serde_json::to_value(&config).unwrap_or_default();
    if let Some(map) = value.as_object_mut() {
        map.insert("objects".into(), objects.into());
    }
    value
}

#[cfg(test)]
mod tests;
