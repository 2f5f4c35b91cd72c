//! Settings of the program: flags and environment, read once. The only reader of either.
//! Shape: command line in, [`Config`] or every mistake out. Exit code 64 for a mistake.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    path::PathBuf,
    time::Duration,
};

use clap::Parser;
use serde::Serialize;
use weft_core::{api::duration::parse_time_within, identity::TrustDomain};

/// The settings of the program.
///
/// # Defaults
/// See [`Flags`].
#[derive(Clone, Debug, Serialize)]
pub struct Config {
    /// Directory of all state that survives a restart.
    pub data_dir: PathBuf,
    /// Move what the data directory has aside, and begin a new mesh.
    pub new_mesh: bool,
    /// Accept a store that is older than the last one, and have proxies accept its revisions.
    pub accept_older_store: bool,
    /// The trust domain, the first part of every SPIFFE ID. Fixed once the root exists.
    pub trust_domain: TrustDomain,
    /// Address of gRPC (ADS, agent, identity). Port 0 picks a free one.
    pub grpc: SocketAddr,
    /// Address of the REST API on TLS. Port 0 picks a free one.
    pub api: SocketAddr,
    /// The API's Unix socket, mode 0600.
    pub api_socket: PathBuf,
    /// Address of metrics and health, in plaintext. Port 0 picks a free one.
    pub metrics: SocketAddr,
    /// Lifetime of workloads' certificates.
    #[serde(serialize_with = "seconds")]
    pub svid_ttl: Duration,
    /// Interval of a proxy's heartbeats.
    #[serde(serialize_with = "seconds")]
    pub heartbeat_interval: Duration,
    /// Minimum time between two publications of changes.
    #[serde(serialize_with = "seconds")]
    pub publish_interval: Duration,
    /// `SO_MARK` of probes of silent workloads; `None` sets none.
    pub probe_mark: Option<NonZeroU32>,
    /// Names and addresses in the control plane's own certificate, in addition to those of loopback.
    pub advertise: Vec<String>,
    /// Filter of the log: a `tracing` filter such as `info` or `weft_control_plane=debug`.
    pub log: String,
}

/// The control plane of Weft: desired state, registry of workloads, configuration of proxies, certificate authority and API
#[derive(Parser, Debug)]
#[command(
    name = "weft-control-plane",
    version,
    max_term_width = 100,
    after_help = "\
Examples:
  weft-control-plane
  weft-control-plane --data-dir /srv/weft --advertise mesh.example,10.0.0.2
  weft-control-plane --data-dir try --grpc 127.0.0.1:0 --api 127.0.0.1:0 --metrics 127.0.0.1:0

Once it listens, it prints its addresses as one line of JSON. In the data directory, root.pem is the mesh's root (weft --ca)
and admin-token the token of the API (weft --token-file).
Exit codes: 0 success; 64 the command line or a setting is wrong; 1 any other failure."
)]
pub struct Flags {
    /// Directory of all state that survives a restart; created with mode 0700
    #[arg(long, env = "WEFT_DATA_DIR", default_value = "/var/lib/weft", value_name = "DIR")]
    data_dir: PathBuf,
    /// Begin a new mesh: moves the files of a former one into <data-dir>/old-mesh-<time>. For one start
    #[arg(long, env = "WEFT_NEW_MESH")]
    new_mesh: bool,
    /// Accept a store restored from a backup, and have proxies accept its older revisions. For one start
    #[arg(long, env = "WEFT_ACCEPT_OLDER_STORE", conflicts_with = "new_mesh")]
    accept_older_store: bool,
    /// The trust domain, the first part of every SPIFFE ID; fixed once the root exists
    #[arg(long, env = "WEFT_TRUST_DOMAIN", default_value = "weft.local", value_name = "NAME")]
    trust_domain: String,
    /// gRPC on TLS for proxies: discovery, agent, identity (port 0 picks a free one)
    #[arg(long, env = "WEFT_GRPC", default_value = "0.0.0.0:15012", value_name = "ADDR:PORT")]
    grpc: String,
    /// The REST API on TLS (port 0 picks a free one)
    #[arg(long, env = "WEFT_API", default_value = "0.0.0.0:8080", value_name = "ADDR:PORT")]
    api: String,
    /// The API's Unix socket (mode 0600), on which no token is needed [default: <data-dir>/api.sock]
    #[arg(long, env = "WEFT_API_SOCKET", value_name = "PATH")]
    api_socket: Option<PathBuf>,
    /// Metrics and health, in plaintext (port 0 picks a free one)
    #[arg(long, env = "WEFT_METRICS", default_value = "0.0.0.0:15014", value_name = "ADDR:PORT")]
    metrics: String,
    /// Lifetime of workloads' certificates, 10s to 90d
    #[arg(long, env = "WEFT_SVID_TTL", default_value = "24h", value_name = "TIME")]
    svid_ttl: String,
    /// Interval of a proxy's heartbeats, 100ms to 60s; a workload expires after three missed ones
    #[arg(long, env = "WEFT_HEARTBEAT_INTERVAL", default_value = "2s", value_name = "TIME")]
    heartbeat_interval: String,
    /// Minimum time between two publications of changes, 0ms to 10s; a change after a longer pause is published at once
    #[arg(long, env = "WEFT_PUBLISH_INTERVAL", default_value = "100ms", value_name = "TIME")]
    publish_interval: String,
    /// SO_MARK of probes of silent workloads, which exempts them from a redirect on this machine; 0 sets none
    #[arg(long, env = "WEFT_PROBE_MARK", default_value = "0x77656674", value_name = "MARK")]
    probe_mark: String,
    /// Names and addresses under which others reach it, for its own certificate, which always contains those of loopback
    #[arg(long, env = "WEFT_ADVERTISE", value_delimiter = ',', value_name = "NAME|ADDR")]
    advertise: Vec<String>,
    /// Filter of its log on standard error: info, debug, weft_control_plane=debug
    #[arg(long, env = "WEFT_LOG", default_value = "info", value_name = "FILTER")]
    log: String,
}

/// One wrong setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The flag, such as `--grpc`.
    pub flag: &'static str,
    /// The value that was given.
    pub value: String,
    /// The reason.
    pub reason: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}: {}", self.flag, self.value, self.reason)
    }
}

impl Flags {
    /// Checks every value.
    /// Errors: all mistakes at once, in the order of the flags.
    pub fn check(self) -> Result<Config, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        let trust_domain = keep(&mut mistakes, "--trust-domain", &self.trust_domain, |text| {
            TrustDomain::parse(text).map_err(|error| error.to_string())
        });
        let mut address = |flag, text: &str| {
            keep(&mut mistakes, flag, text, |text| {
                text.parse::<SocketAddr>()
                    .map_err(|_cause| "must be an address and a port, such as 0.0.0.0:8080 or [::]:8080".into())
            })
        };
        let grpc = address("--grpc", &self.grpc);
        let api = address("--api", &self.api);
        let metrics = address("--metrics", &self.metrics);
        let mut duration = |flag, text: &str, least: Duration, most: Duration| {
            keep(&mut mistakes, flag, text, |text| parse_time_within(text, least..=most))
        };
        let day = Duration::from_secs(86_400);
        let svid_ttl = duration("--svid-ttl", &self.svid_ttl, Duration::from_secs(10), day * 90);
        let heartbeat_interval = duration(
            "--heartbeat-interval",
            &self.heartbeat_interval,
            Duration::from_millis(100),
            Duration::from_secs(60),
        );
        let publish_interval =
            duration("--publish-interval", &self.publish_interval, Duration::ZERO, Duration::from_secs(10));
        let probe_mark = keep(&mut mistakes, "--probe-mark", &self.probe_mark, parse_mark);
        for name in &self.advertise {
            keep(&mut mistakes, "--advertise", name, check_name);
        }
        keep(&mut mistakes, "--log", &self.log, |text| {
            text.parse::<tracing_subscriber::filter::EnvFilter>().map_err(|error| error.to_string())
        });
        // Caught here, because the second listener's error would not name the flags. Port 0 is another port each time.
        let bound: Vec<_> = [grpc, api, metrics].into_iter().flatten().filter(|address| address.port() != 0).collect();
        if let Some(twice) = bound.iter().enumerate().find_map(|(i, a)| bound.iter().take(i).find(|b| *b == a)) {
            let reason = "used twice".into();
            mistakes.push(Mistake { flag: "--grpc, --api, --metrics", value: twice.to_string(), reason });
        }
        let api_socket = self.api_socket.unwrap_or_else(|| self.data_dir.join("api.sock"));
        if api_socket.as_os_str().len() > 100 {
            let value = api_socket.display().to_string();
            mistakes.push(Mistake {
                flag: "--api-socket",
                value,
                reason: "longer than 100 bytes, the maximum for the path of a Unix socket".into(),
            });
        }
        // A value is `None` only together with a mistake.
        match (trust_domain, grpc, api, metrics, svid_ttl, heartbeat_interval, publish_interval, probe_mark) {
            (
                Some(trust_domain),
                Some(grpc),
                Some(api),
                Some(metrics),
                Some(svid_ttl),
                Some(heartbeat_interval),
                Some(publish_interval),
                Some(probe_mark),
            ) if mistakes.is_empty() => Ok(Config {
                data_dir: self.data_dir,
                new_mesh: self.new_mesh,
                accept_older_store: self.accept_older_store,
                trust_domain,
                grpc,
                api,
                api_socket,
                metrics,
                svid_ttl,
                heartbeat_interval,
                publish_interval,
                probe_mark: NonZeroU32::new(probe_mark),
                advertise: self.advertise,
                log: self.log,
            }),
            _ => Err(mistakes),
        }
    }
}

/// Parses a mark, decimal or with `0x` hexadecimal.
fn parse_mark(text: &str) -> Result<u32, String> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.map_err(|_cause| "must be a number of 32 bits, such as 0x77656674".into())
}

fn keep<T>(
    mistakes: &mut Vec<Mistake>,
    flag: &'static str,
    text: &str,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Option<T> {
    parse(text).map_err(|reason| mistakes.push(Mistake { flag, value: text.to_owned(), reason })).ok()
}

fn check_name(name: &str) -> Result<(), String> {
    if name.parse::<IpAddr>().is_ok() {
        return Ok(());
    }
    rustls_pki_types::DnsName::try_from(name)
        .map(|_| ())
        .map_err(|_cause| "neither an IP address nor a DNS name".into())
}

fn seconds<S: serde::Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format!("{value:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(flags: &[&str]) -> Result<Config, Vec<Mistake>> {
        Flags::try_parse_from(std::iter::once(&"weft-control-plane").chain(flags)).unwrap().check()
    }

    #[test]
    fn nothing_given_means_the_documented_defaults() {
        let config = check(&[]).unwrap();
        assert_eq!(config.grpc.to_string(), "0.0.0.0:15012");
        assert_eq!(config.api_socket.to_str(), Some("/var/lib/weft/api.sock"));
        assert_eq!((config.svid_ttl.as_secs(), config.heartbeat_interval.as_secs()), (86_400, 2));
        assert_eq!(config.probe_mark.map(NonZeroU32::get), Some(0x7765_6674));
        assert_eq!(check(&["--probe-mark", "0"]).unwrap().probe_mark, None);
    }

    /// (20.26)
    #[test]
    fn every_time_has_the_one_grammar_of_all_programs() {
        for flag in ["--svid-ttl", "--heartbeat-interval", "--publish-interval"] {
            for (time, reason) in
                [("0ns", "must be a time such as"), ("-0", "must be a time such as"), ("9999d", "must be ")]
            {
                let mistakes = check(&[&format!("{flag}={time}")]).unwrap_err();
                let mistake = mistakes[0].to_string();
                assert_eq!(mistakes.len(), 1);
                assert!(mistake.starts_with(&format!("{flag} {time:?}: {reason}")), "{mistake}");
            }
            assert!(check(&[&format!("{flag}=0d0h0m9s500ms")]).is_ok() == (flag != "--svid-ttl"), "{flag}");
        }
        assert_eq!(check(&["--svid-ttl=1d12h"]).unwrap().svid_ttl.as_secs(), 129_600);
        let zero = check(&["--heartbeat-interval=0s"]).unwrap_err();
        assert_eq!(zero[0].to_string(), "--heartbeat-interval \"0s\": must be 100ms to 1m");
        assert!(check(&["--publish-interval=0s"]).is_ok());
    }

    /// (20.26)
    #[test]
    fn every_example_of_the_help_is_accepted() {
        use clap::CommandFactory as _;
        let help = Flags::command().get_after_help().unwrap().to_string();
        let lines: Vec<&str> = help.lines().filter(|line| line.starts_with("  weft-control-plane")).collect();
        assert_eq!(lines.len(), 3, "{help}");
        for line in lines {
            Flags::try_parse_from(line.split_whitespace()).unwrap().check().unwrap_or_else(|e| panic!("{line}: {e:?}"));
        }
    }

    #[test]
    fn the_page_has_every_flag_with_its_variable_and_default() {
        use clap::CommandFactory as _;
        let page = include_str!("../../docs/reference/control-plane.md");
        let mut told = 0;
        for flag in Flags::command().get_arguments() {
            let name = flag.get_long().unwrap();
            let [row, switch] = [format!("| `--{name} "), format!("| `--{name}` ")];
            let row = page.lines().find(|line| line.starts_with(&row) || line.starts_with(&switch));
            let row = row.unwrap_or_else(|| panic!("no row --{name}"));
            assert!(row.contains(&format!("| `{}` |", flag.get_env().unwrap().to_str().unwrap())), "{row}");
            for default in flag.get_default_values() {
                assert!(row.ends_with(&format!("| `{}` |", default.to_str().unwrap())), "{row}");
            }
            told += 1;
        }
        assert_eq!(told, page.lines().filter(|line| line.starts_with("| `--")).count());
    }

    #[test]
    fn every_mistake_is_reported_at_once() {
        let mistakes = check(&[
            "--trust-domain",
            "Weft",
            "--grpc",
            "15012",
            "--api",
            "x:1",
            "--metrics",
            "0.0.0.0:1",
            "--svid-ttl",
            "1s",
            "--heartbeat-interval",
            "2",
            "--publish-interval",
            "11s",
            "--probe-mark",
            "0xyz",
            "--advertise",
            "10.0.0.1,b@d",
            "--log",
            "a=b=c",
        ])
        .unwrap_err();
        let flags: Vec<_> = mistakes.iter().map(|m| m.flag).collect();
        let all = [
            "--trust-domain",
            "--grpc",
            "--api",
            "--svid-ttl",
            "--heartbeat-interval",
            "--publish-interval",
            "--probe-mark",
            "--advertise",
            "--log",
        ];
        assert_eq!(flags, all);
    }

    #[test]
    fn one_address_for_two_listeners_is_a_mistake_but_port_zero_is_not() {
        assert!(check(&["--grpc", "127.0.0.1:0", "--api", "127.0.0.1:0"]).is_ok());
        assert_eq!(check(&["--grpc", "127.0.0.1:9", "--api", "127.0.0.1:9"]).unwrap_err()[0].reason, "used twice");
    }
}
