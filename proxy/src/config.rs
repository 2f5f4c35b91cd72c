//! The proxy's settings: its file, and the few things the environment may say instead. The only reader of either.
//! Shape: flags and file in, [`Settings`] or every mistake out. Exit code 64 for a mistake.
//!
//! # Defaults
//! Those of `weft_core::api::proxy_config`; 3 s for the control plane to say what a destination is; the mesh's ranges
//! `240.0.0.0/4` and `fd77:6566:7400::/48`.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use clap::{Args, ValueEnum, ValueHint};
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Value, json};
use weft_core::{
    api::{
        ApiError, Object, ObjectKey, ProxyConfig,
        mesh_config::AccessLogMode,
        parse_proxy_file,
        proxy_config::{
            Forward, ForwardListener, IdentityFiles, ProxyConfigSpec, ProxyMode, ProxyPorts, ProxyWorkload,
        },
    },
    listener::AccessLog,
    names::{MESH_RANGE_V4, MESH_RANGE_V6},
};

use crate::identity::token::{JoinToken, TokenError};

/// Longest wait for the control plane to say what a destination is.
const DISCOVERY_WAIT: Duration = Duration::from_secs(3);
/// Largest token file, in bytes.
const MAX_TOKEN_FILE: u64 = 4096;

/// Where the settings come from: flags of `run` and `identity`.
#[derive(Args, Clone, Debug, Default)]
pub struct SettingsArgs {
    /// The proxy's file: a ProxyConfig, then, without a control plane, the mesh's objects
    #[arg(long, env = "WEFT_CONFIG", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: PathBuf,

    #[command(flatten)]
    /// What replaces parts of the file.
    pub overrides: Overrides,
}

/// What flags and environment say instead of the file, so that one file can serve many instances.
#[derive(Args, Clone, Default)]
pub struct Overrides {
    /// The proxy's name, instead of metadata.name
    #[arg(long, env = "WEFT_NAME", value_name = "NAME")]
    pub name: Option<String>,

    /// The workload's addresses, instead of spec.workload.addresses
    #[arg(long, env = "WEFT_ADDRESSES", value_name = "IP,…", value_delimiter = ',')]
    pub addresses: Vec<IpAddr>,

    /// The control plane, instead of spec.controlPlane.address
    #[arg(long, env = "WEFT_CONTROL_PLANE", value_name = "HOST:PORT")]
    pub control_plane: Option<String>,

    /// A file with a join token, instead of the one in spec.controlPlane
    #[arg(long, env = "WEFT_JOIN_TOKEN_FILE", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub join_token_file: Option<PathBuf>,

    /// A join token, instead of the one in spec.controlPlane; better by the environment, where `ps` does not show it
    #[arg(
        long,
        env = "WEFT_JOIN_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true,
        conflicts_with = "join_token_file"
    )]
    pub join_token: Option<String>,
}

/// How the proxy writes its own log.
#[derive(Args, Clone, Debug)]
pub struct LogArgs {
    /// What is logged: a filter such as info, debug or weft_proxy::discovery=debug
    #[arg(long, env = "WEFT_LOG", value_name = "FILTER", default_value = "info")]
    pub log: String,

    /// How it is written, on standard error
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

/// Everything the proxy is told at its start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What the control plane calls it.
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
    /// Where it listens; 0 picks a free port.
    pub ports: ProxyPorts,
    /// Where metrics are served.
    pub bind: IpAddr,
    /// Explicit listeners.
    pub forward: Forward,
    /// How long open connections are given at the end.
    pub drain: Duration,
    /// Overrides what the mesh says.
    pub access_log: Option<AccessLog>,
    /// Most connections from callers, all workers together.
    pub max_connections: usize,
    /// Longest wait for the control plane to say what a destination is.
    pub discovery_wait: Duration,
    /// Addresses that can only be services of the mesh.
    pub mesh_ranges: Vec<IpNet>,
    /// The settings in the file's shape, with everything that has a default and without secrets.
    pub effective: Value,
}

/// What a proxy is for.
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

/// How to reach a control plane and prove who we are at first.
#[derive(Clone, Debug)]
pub struct Join {
    /// `host:port`.
    pub address: String,
    /// The join token.
    pub token: TokenSource,
}

/// Where the join token is.
#[derive(Clone, Debug)]
pub enum TokenSource {
    /// In a file, read when it is needed.
    File(PathBuf),
    /// Here.
    Given(JoinToken),
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
    #[error("{path}: {}", lines(.mistakes))]
    Mistakes {
        /// The file.
        path: PathBuf,
        /// Each with its place.
        mistakes: Vec<String>,
    },
}

/// Why a join token cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TokenSourceError {
    /// The file cannot be read.
    #[error("cannot read the join token from {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What is in it is no token.
    #[error("no join token in {path}")]
    Token {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: TokenError,
    },
}

/// A forward listener leads to a port of the proxy itself: what comes in there would come in again, for ever.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {destination} is the proxy's own {port}: a connection there would come back to it")]
pub struct LoopError {
    /// The destination's place in the file.
    pub field: String,
    /// The destination.
    pub destination: SocketAddr,
    /// The setting of the port that it is.
    pub port: String,
}

/// The forward listeners that lead to one of the ports the proxy listens on. `listening`: setting and address of each;
/// those whose number is not known yet (0) are left out. `own`: the workload's addresses, which are the proxy's too.
pub(crate) fn loops(forward: &Forward, listening: &[(String, SocketAddr)], own: &[IpAddr]) -> Vec<LoopError> {
    let ours = |ip: IpAddr| ip.is_loopback() || ip.is_unspecified() || own.contains(&ip);
    let reaches = |destination: SocketAddr, at: SocketAddr| {
        let (to, at_ip) = (destination.ip().to_canonical(), at.ip().to_canonical());
        let any = at_ip.is_unspecified() || to.is_unspecified();
        at.port() == destination.port() && at.port() != 0 && (to == at_ip || (any && ours(to) && ours(at_ip)))
    };
    let mut found = Vec::new();
    for (direction, listeners) in [("outbound", &forward.outbound), ("inbound", &forward.inbound)] {
        for (index, listener) in listeners.iter().enumerate() {
            let destination = listener.destination;
            if let Some((port, _)) = listening.iter().find(|(_, at)| reaches(destination, *at)) {
                let field = format!("spec.forward.{direction}[{index}].destination");
                found.push(LoopError { field, destination, port: port.clone() });
            }
        }
    }
    found
}

/// Where a proxy with this file listens, by setting; 0 where a free port is picked at the start.
fn listening(spec: &ProxyConfigSpec) -> Vec<(String, SocketAddr)> {
    let any = IpAddr::from(Ipv6Addr::UNSPECIFIED);
    let ports = [
        ("outbound", any, spec.ports.outbound),
        ("inbound", any, spec.ports.inbound),
        ("admin", Ipv4Addr::LOCALHOST.into(), spec.ports.admin),
        ("metrics", spec.bind.unwrap_or(any), spec.ports.metrics),
    ];
    let mut all: Vec<_> =
        ports.iter().map(|(name, ip, port)| (format!("spec.ports.{name}"), SocketAddr::new(*ip, *port))).collect();
    for (direction, listeners) in [("outbound", &spec.forward.outbound), ("inbound", &spec.forward.inbound)] {
        let of = |(index, listener): (usize, &ForwardListener)| {
            (format!("spec.forward.{direction}[{index}].listen"), listener.listen)
        };
        all.extend(listeners.iter().enumerate().map(of));
    }
    all
}

fn lines(mistakes: &[String]) -> String {
    match mistakes {
        [one] => one.clone(),
        many => many.iter().map(|mistake| format!("\n  {mistake}")).collect(),
    }
}

impl SettingsArgs {
    /// Reads the file and puts what was given beside it in its place.
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
    /// Errors: every mistake, each with its document and field.
    pub fn parse(text: &str, overrides: &Overrides) -> Result<Self, Vec<String>> {
        let text = overrides.apply(text);
        let (config, objects) =
            parse_proxy_file(&text).map_err(|errors| errors.iter().map(ApiError::to_string).collect::<Vec<_>>())?;
        let mut mistakes = Vec::new();
        let effective = effective(&config, objects.len());
        let ProxyConfig { metadata, spec } = config;
        if spec.control_plane.is_some() {
            for object in &objects {
                mistakes.push(format!(
                    "{}: not together with spec.controlPlane, which says what the mesh is",
                    object.key()
                ));
            }
        }
        let own = spec.workload.as_ref().map(|workload| workload.addresses.as_slice()).unwrap_or_default();
        let looping = loops(&spec.forward, &listening(&spec), own);
        mistakes.extend(looping.iter().map(|error| format!("document 1: {error}")));
        let source = match spec.control_plane {
            Some(plane) => {
                let token = match (plane.join_token, plane.join_token_file) {
                    (Some(text), _) => match JoinToken::parse(text.trim()) {
                        Ok(token) => Some(TokenSource::Given(token)),
                        Err(error) => {
                            mistakes.push(format!("document 1: spec.controlPlane.joinToken: {error}"));
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
                ports: spec.ports,
                bind: spec.bind.unwrap_or(Ipv6Addr::UNSPECIFIED.into()),
                forward: spec.forward,
                drain: spec.drain.std(),
                access_log: spec.access_log.map(access_log),
                max_connections: usize::try_from(spec.limits.connections.get()).unwrap_or(usize::MAX),
                discovery_wait: DISCOVERY_WAIT,
                mesh_ranges: [MESH_RANGE_V4, MESH_RANGE_V6].iter().filter_map(|range| range.parse().ok()).collect(),
                effective,
            }),
            _ => Err(mistakes),
        }
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

impl TokenSource {
    /// The token as it is now.
    pub(crate) fn token(&self) -> Result<JoinToken, TokenSourceError> {
        match self {
            Self::Given(token) => Ok(token.clone()),
            Self::File(path) => {
                let text = read_small(path).map_err(|source| TokenSourceError::Read { path: path.clone(), source })?;
                JoinToken::parse(text.trim()).map_err(|source| TokenSourceError::Token { path: path.clone(), source })
            }
        }
    }
}

fn read_small(path: &Path) -> io::Result<String> {
    use io::Read as _;
    let mut text = String::new();
    fs::File::open(path)?.take(MAX_TOKEN_FILE).read_to_string(&mut text)?;
    Ok(text)
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

impl Overrides {
    fn is_empty(&self) -> bool {
        self.name.is_none()
            && self.addresses.is_empty()
            && self.control_plane.is_none()
            && self.join_token_file.is_none()
            && self.join_token.is_none()
    }

    /// The file's text with the overrides in its first document. A text that is no YAML is left as it is, so that the
    /// parser of the file says what is wrong.
    fn apply(&self, text: &str) -> String {
        if self.is_empty() {
            return text.to_owned();
        }
        let mut documents = Vec::new();
        for document in serde_norway::Deserializer::from_str(text) {
            match Value::deserialize(document) {
                Ok(value) => documents.push(value),
                Err(_malformed) => return text.to_owned(),
            }
        }
        if let Some(first) = documents.first_mut() {
            self.put(first);
        }
        documents.iter().map(|document| format!("{document}\n---\n")).collect()
    }

    fn put(&self, config: &mut Value) {
        let mut set = |pointer: &[&str], value: Value| {
            let mut at = &mut *config;
            for part in pointer {
                if !at.is_object() {
                    if !at.is_null() {
                        return;
                    }
                    *at = json!({});
                }
                let Some(map) = at.as_object_mut() else { return };
                at = map.entry(*part).or_insert(Value::Null);
            }
            *at = value;
        };
        if let Some(name) = &self.name {
            set(&["metadata", "name"], json!(name));
        }
        if !self.addresses.is_empty() {
            set(&["spec", "workload", "addresses"], json!(self.addresses));
        }
        if let Some(address) = &self.control_plane {
            set(&["spec", "controlPlane", "address"], json!(address));
        }
        let (own, other, value) = match (&self.join_token, &self.join_token_file) {
            (Some(token), _) => ("joinToken", "joinTokenFile", json!(token)),
            (None, Some(file)) => ("joinTokenFile", "joinToken", json!(file)),
            (None, None) => return,
        };
        set(&["spec", "controlPlane", own], value);
        if let Some(plane) = config.pointer_mut("/spec/controlPlane").and_then(Value::as_object_mut) {
            plane.remove(other);
        }
    }
}

impl fmt::Debug for Overrides {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Overrides")
            .field("name", &self.name)
            .field("addresses", &self.addresses)
            .field("control_plane", &self.control_plane)
            .field("join_token_file", &self.join_token_file)
            .field("join_token", &self.join_token.as_ref().map(|_| "(hidden)"))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str =
        "weft1.0123456789abcdef.c2VjcmV0.e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn file(rest: &str) -> String {
        format!(
            "apiVersion: weft.dev/v1alpha1\nkind: ProxyConfig\nmetadata: {{name: a-1, namespace: shop}}\n\
             spec:\n  mode: sidecar\n  workload: {{serviceAccount: a, addresses: [10.0.0.1]}}\n{rest}"
        )
    }

    #[test]
    fn what_is_not_said_has_the_documented_defaults() {
        let settings = Settings::parse(&file(""), &Overrides::default()).unwrap();
        assert_eq!((settings.mark, settings.workers, settings.max_connections), (Some(0x7765_6674), 1, 10_000));
        assert_eq!((settings.ports.outbound, settings.ports.metrics), (15001, 15020));
        assert_eq!((settings.drain, settings.mesh_ranges.len()), (Duration::from_secs(30), 2));
        assert!(matches!(settings.source, Source::File { identity: None, .. }));
        assert_eq!(settings.effective.pointer("/spec/ports/inbound"), Some(&json!(15006)));
    }

    #[test]
    fn every_mistake_is_named_at_once() {
        let text = file("  mark: x\n  colour: red\n  ports: {admin: 1, metrics: 1}\n---\nkind: Nothing\n");
        let mistakes = Settings::parse(&text, &Overrides::default()).unwrap_err().join("\n");
        for part in ["spec.mark", "colour", "document 2"] {
            assert!(mistakes.contains(part), "{part}: {mistakes}");
        }
    }

    #[test]
    fn the_environment_completes_a_file_and_secrets_are_hidden() {
        let overrides = Overrides {
            name: Some("a-2".into()),
            addresses: vec!["10.0.0.9".parse().unwrap()],
            control_plane: Some("10.0.0.2:15012".into()),
            join_token: Some(TOKEN.into()),
            ..Overrides::default()
        };
        let settings = Settings::parse(&file(""), &overrides).unwrap();
        assert_eq!((settings.name.as_str(), settings.workload.addresses[0].to_string()), ("a-2", "10.0.0.9".into()));
        assert!(matches!(&settings.source, Source::ControlPlane(join) if join.address == "10.0.0.2:15012"));
        for shown in [settings.effective.to_string(), format!("{settings:?}"), format!("{overrides:?}")] {
            assert!(!shown.contains("c2VjcmV0"), "{shown}");
        }
        let with_file = Overrides { join_token_file: Some("/run/token".into()), ..Overrides::default() };
        let text = file(&format!("  controlPlane: {{address: \"a:1\", joinToken: {TOKEN}}}\n"));
        let settings = Settings::parse(&text, &with_file).unwrap();
        assert!(matches!(&settings.source, Source::ControlPlane(Join { token: TokenSource::File(_), .. })));
    }

    #[test]
    fn a_forward_listener_to_a_port_of_the_proxy_itself_is_refused_with_its_field() {
        let mistakes = |forward: &str| {
            Settings::parse(&file(&format!("  forward: {{{forward}}}\n")), &Overrides::default())
                .err()
                .unwrap_or_default()
        };
        for (forward, port) in [
            (
                "inbound: [{listen: \"127.0.0.1:9002\", destination: \"127.0.0.1:9002\"}]",
                "spec.forward.inbound[0].listen",
            ),
            ("inbound: [{listen: \"0.0.0.0:9002\", destination: \"10.0.0.1:9002\"}]", "spec.forward.inbound[0].listen"),
            (
                "inbound: [{listen: \"[::]:9002\", destination: \"[::ffff:127.0.0.1]:9002\"}]",
                "spec.forward.inbound[0].listen",
            ),
            (
                "inbound: [{listen: \"127.0.0.1:9002\", destination: \"0.0.0.0:9002\"}]",
                "spec.forward.inbound[0].listen",
            ),
            ("inbound: [{listen: \"127.0.0.1:9002\", destination: \"10.0.0.1:15006\"}]", "spec.ports.inbound"),
            ("inbound: [{listen: \"127.0.0.1:9002\", destination: \"127.0.0.1:15000\"}]", "spec.ports.admin"),
            ("inbound: [{listen: \"127.0.0.1:9002\", destination: \"10.0.0.1:15020\"}]", "spec.ports.metrics"),
        ] {
            let mistakes = mistakes(forward);
            let [mistake] = &mistakes[..] else { panic!("{forward}: {mistakes:?}") };
            let field = "document 1: spec.forward.inbound[0].destination: ";
            assert!(mistake.starts_with(field) && mistake.contains(port), "{forward}: {mistake}");
        }
        let two = "outbound: [{listen: \"127.0.0.1:9001\", destination: \"127.0.0.1:9002\"}], \
                   inbound: [{listen: \"127.0.0.1:9002\", destination: \"127.0.0.1:9001\"}]";
        assert_eq!(mistakes(two).len(), 2);
        for good in [
            "inbound: [{listen: \"127.0.0.1:9002\", destination: \"127.0.0.1:8080\"}]",
            "inbound: [{listen: \"127.0.0.1:9002\", destination: \"127.0.0.2:9002\"}]",
            "outbound: [{listen: \"127.0.0.1:9001\", destination: \"10.0.0.7:15006\"}]",
        ] {
            assert_eq!(mistakes(good), Vec::<String>::new(), "{good}");
        }
    }

    #[test]
    fn a_bad_token_and_objects_beside_a_control_plane_are_refused() {
        let text = file(
            "  controlPlane: {address: \"a:1\", joinToken: hello}\n---\napiVersion: v1\nkind: Service\n\
             metadata: {name: s, namespace: shop}\nspec: {selector: {app: s}, ports: [{port: 80}]}\n",
        );
        let mistakes = Settings::parse(&text, &Overrides::default()).unwrap_err();
        assert_eq!(mistakes.len(), 2, "{mistakes:?}");
        assert!(mistakes.iter().any(|mistake| mistake.contains("joinToken")), "{mistakes:?}");
    }
}
