//! The scenarios: the rows of the report, each with a name, a method and its participants.

use std::fmt;
use std::str::FromStr;

use crate::pairs::{Contestant, Proxy, Variant};

/// One row of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scenario {
    /// HTTP/1.1 keep-alive, one connection, one request at a time.
    Http1One,
    /// HTTP/1.1 keep-alive, 32 connections.
    Http1Many,
    /// HTTP/2 with prior knowledge, one connection, 32 streams at a time.
    Http2Many,
    /// gRPC unary calls, one connection, 32 streams at a time.
    GrpcMany,
    /// gRPC bidirectional streaming of small messages.
    GrpcStream,
    /// HTTP/1.1 bodies of 1 MiB, down and up in turn.
    Bodies,
    /// Opaque bytes, both directions at once.
    TcpBulk,
    /// New mutual TLS connections, full and resumed.
    Handshakes,
    /// HTTP/1.1 with every request in the access log.
    AccessLog,
    /// HTTP/1.1 at a fixed rate.
    OpenLoop,
    /// HTTP/2 at a fixed rate.
    OpenLoopHttp2,
    /// Memory of a pair that did nothing.
    MemoryIdle,
    /// Memory with idle plaintext HTTP/1.1 clients.
    MemoryClients,
    /// Memory with idle mutual TLS HTTP/2 peers.
    MemoryPeers,
    /// Memory with many services in the mesh and five in use.
    Services,
    /// From start to ready.
    Start,
    /// CPU with many routes.
    GrowthRoutes,
    /// CPU with many endpoints.
    GrowthEndpoints,
    /// CPU with many policies.
    GrowthPolicies,
    /// Latency while endpoints come and go.
    Churn,
    /// CPU with two workers, as much as they take.
    WorkersTwo,
    /// CPU with two workers at a fixed rate.
    WorkersTwoOpen,
}

/// What client and server speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 without TLS, prior knowledge.
    Http2,
    /// Opaque bytes.
    Tcp,
}

/// How a row is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// A load through a pair, inside a window.
    Traffic,
    /// Connections to the inbound proxy.
    Handshakes,
    /// Memory of a pair.
    Memory,
    /// One proxy with a control plane.
    Mesh,
}

impl Scenario {
    /// Every scenario, in the order of the report.
    pub const ALL: [Self; 22] = [
        Self::Http1One,
        Self::Http1Many,
        Self::Http2Many,
        Self::GrpcMany,
        Self::GrpcStream,
        Self::Bodies,
        Self::TcpBulk,
        Self::Handshakes,
        Self::AccessLog,
        Self::OpenLoop,
        Self::OpenLoopHttp2,
        Self::MemoryIdle,
        Self::MemoryClients,
        Self::MemoryPeers,
        Self::Services,
        Self::Start,
        Self::GrowthRoutes,
        Self::GrowthEndpoints,
        Self::GrowthPolicies,
        Self::Churn,
        Self::WorkersTwo,
        Self::WorkersTwoOpen,
    ];

    /// The name in the report, in `latest.json` and on the command line, and one line for people.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Http1One => ("http1-1", "HTTP/1.1 keep-alive, 1 connection"),
            Self::Http1Many => ("http1-32", "HTTP/1.1 keep-alive, 32 connections"),
            Self::Http2Many => ("http2-32", "HTTP/2, 1 connection, 32 streams"),
            Self::GrpcMany => ("grpc-32", "gRPC unary, 1 connection, 32 streams"),
            Self::GrpcStream => {
                ("grpc-stream", "gRPC bidirectional streaming, 8 streams, 32 messages of 128 bytes in flight on each")
            }
            Self::Bodies => ("bodies-1m", "HTTP/1.1, GET and POST of 1 MiB in turn, 4 connections"),
            Self::TcpBulk => ("tcp-bulk", "opaque TCP, both directions at once, 4 connections"),
            Self::Handshakes => ("handshakes", "new mTLS 1.3 connections to the inbound proxy, X25519 for all"),
            Self::AccessLog => ("access-log", "HTTP/1.1 keep-alive, 32 connections, every request logged as JSON"),
            Self::OpenLoop => ("open-loop", "HTTP/1.1 at a fixed rate, 32 connections, omission corrected"),
            Self::OpenLoopHttp2 => ("open-loop-h2", "HTTP/2 at a fixed rate, 2 connections, omission corrected"),
            Self::MemoryIdle => ("memory-idle", "memory of a pair that answered one request"),
            Self::MemoryClients => ("memory-clients", "memory with 1,000 idle HTTP/1.1 clients at the outbound proxy"),
            Self::MemoryPeers => ("memory-peers", "memory with idle mTLS HTTP/2 peers at the inbound proxy"),
            Self::Services => ("services", "memory with a control plane and 10 or 10,000 services, 5 in use"),
            Self::Start => ("start", "from start to ready with a control plane on loopback; size of the program"),
            Self::GrowthRoutes => ("growth-routes", "HTTP/1.1, 32 connections, with 10 or 10,000 routes"),
            Self::GrowthEndpoints => ("growth-endpoints", "HTTP/1.1, 32 connections, with 10 or 10,000 endpoints"),
            Self::GrowthPolicies => ("growth-policies", "HTTP/1.1, 32 connections, with 1 or 1,000 policies"),
            Self::Churn => (
                "churn",
                "HTTP/1.1 at a fixed rate, with 100 endpoint changes a second, with as many elsewhere, with none",
            ),
            Self::WorkersTwo => ("workers-2", "HTTP/1.1, 32 connections, 1 or 2 workers per proxy"),
            Self::WorkersTwoOpen => ("workers-2-open", "the same at a fixed rate"),
        }
    }

    /// The name in the report, in `latest.json` and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.words().0
    }

    /// One line for people.
    #[must_use]
    pub fn title(self) -> &'static str {
        self.words().1
    }

    /// How it is measured.
    #[must_use]
    pub fn family(self) -> Family {
        match self {
            Self::Handshakes => Family::Handshakes,
            Self::MemoryIdle | Self::MemoryClients | Self::MemoryPeers => Family::Memory,
            Self::Services | Self::Start | Self::Churn => Family::Mesh,
            Self::Http1One
            | Self::Http1Many
            | Self::Http2Many
            | Self::GrpcMany
            | Self::GrpcStream
            | Self::Bodies
            | Self::TcpBulk
            | Self::AccessLog
            | Self::OpenLoop
            | Self::OpenLoopHttp2
            | Self::GrowthRoutes
            | Self::GrowthEndpoints
            | Self::GrowthPolicies
            | Self::WorkersTwo
            | Self::WorkersTwoOpen => Family::Traffic,
        }
    }

    /// TCP connections of the client; of the memory rows see `connections` of the result.
    #[must_use]
    pub fn connections(self) -> u32 {
        match self {
            Self::Http1One | Self::Http2Many | Self::GrpcMany | Self::GrpcStream => 1,
            Self::OpenLoopHttp2 => 2,
            Self::Bodies | Self::TcpBulk | Self::Handshakes => 4,
            Self::Services => 5,
            Self::MemoryIdle | Self::Start => 0,
            Self::MemoryClients => 1000,
            Self::MemoryPeers => 10_000,
            Self::Http1Many
            | Self::AccessLog
            | Self::OpenLoop
            | Self::GrowthRoutes
            | Self::GrowthEndpoints
            | Self::GrowthPolicies
            | Self::Churn
            | Self::WorkersTwo
            | Self::WorkersTwoOpen => 32,
        }
    }

    /// What client and server speak.
    #[must_use]
    pub fn protocol(self) -> Protocol {
        match self {
            Self::Http2Many
            | Self::GrpcMany
            | Self::GrpcStream
            | Self::OpenLoopHttp2
            | Self::Handshakes
            | Self::MemoryPeers => Protocol::Http2,
            Self::TcpBulk => Protocol::Tcp,
            Self::Http1One
            | Self::Http1Many
            | Self::Bodies
            | Self::AccessLog
            | Self::OpenLoop
            | Self::MemoryIdle
            | Self::MemoryClients
            | Self::Services
            | Self::Start
            | Self::GrowthRoutes
            | Self::GrowthEndpoints
            | Self::GrowthPolicies
            | Self::Churn
            | Self::WorkersTwo
            | Self::WorkersTwoOpen => Protocol::Http1,
        }
    }

    /// Who is measured, of the chosen proxies. Rows about growth are about Weft alone, the access log's about what has one; where Envoy's two ways would be the
    /// same or one of them makes no sense, only `envoy-h2` takes part.
    #[must_use]
    pub fn contestants(self, proxies: &[Proxy], floor_buffers: &[u32]) -> Vec<Contestant> {
        let variants: &[Variant] = match self {
            Self::GrowthRoutes => &[Variant::Routes(10), Variant::Routes(10_000)],
            Self::GrowthEndpoints => &[Variant::Endpoints(10), Variant::Endpoints(10_000)],
            Self::GrowthPolicies => &[Variant::Policies(1), Variant::Policies(1000)],
            Self::WorkersTwo | Self::WorkersTwoOpen => &[Variant::Workers(1), Variant::Workers(2)],
            Self::Services => &[Variant::Services(10), Variant::Services(10_000)],
            Self::Churn => &[Variant::ChangesBeside(100), Variant::ChangesPerSecond(0), Variant::ChangesPerSecond(100)],
            Self::AccessLog => &[Variant::Logged(false), Variant::Logged(true)],
            Self::Start => &[Variant::Default],
            Self::Http1One
            | Self::Http1Many
            | Self::Http2Many
            | Self::GrpcMany
            | Self::GrpcStream
            | Self::Bodies
            | Self::TcpBulk
            | Self::Handshakes
            | Self::OpenLoop
            | Self::OpenLoopHttp2
            | Self::MemoryIdle
            | Self::MemoryClients
            | Self::MemoryPeers => &[],
        };
        let one = |&proxy: &Proxy| match proxy {
            Proxy::Weft if !variants.is_empty() => {
                variants.iter().map(|&variant| Contestant { proxy, variant }).collect()
            }
            Proxy::EnvoyH2 if self == Self::AccessLog => vec![Contestant { proxy, variant: Variant::Logged(true) }],
            _ if !variants.is_empty() => Vec::new(),
            Proxy::Floor if self == Self::MemoryPeers => Vec::new(),
            Proxy::Floor => {
                floor_buffers.iter().map(|&kib| Contestant { proxy, variant: Variant::BufferKib(kib) }).collect()
            }
            Proxy::EnvoyH1 if self.is_same_for_both_envoys() => Vec::new(),
            // What others than ours speak between their proxies is not known, so nothing can speak to their inbound half.
            Proxy::Other(_) if matches!(self, Self::Handshakes | Self::MemoryPeers | Self::TcpBulk) => Vec::new(),
            Proxy::Weft | Proxy::EnvoyH1 | Proxy::EnvoyH2 | Proxy::Other(_) => {
                vec![Contestant { proxy, variant: Variant::Default }]
            }
        };
        proxies.iter().flat_map(one).collect()
    }

    /// Whether requests are sent by the clock, at a rate that is the same for all.
    #[must_use]
    pub fn is_open_loop(self) -> bool {
        matches!(self, Self::OpenLoop | Self::OpenLoopHttp2 | Self::Churn | Self::WorkersTwoOpen)
    }

    fn is_same_for_both_envoys(self) -> bool {
        matches!(self, Self::GrpcMany | Self::GrpcStream | Self::TcpBulk | Self::Handshakes | Self::MemoryPeers)
    }

    /// The scenarios that a word on the command line means: one by its name, or all whose names begin with it and a dash.
    ///
    /// # Errors
    /// It means none.
    pub fn named(word: &str) -> Result<Vec<Self>, String> {
        let means = |scenario: &Self| {
            scenario.name().strip_prefix(word).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        };
        let found: Vec<Self> = Self::ALL.into_iter().filter(means).collect();
        if found.is_empty() {
            let names = Self::ALL.map(Self::name).join(", ");
            return Err(format!("there is no scenario {word:?}; there are {names}"));
        }
        Ok(found)
    }
}

/// One word of `--scenario`.
#[derive(Clone, Debug)]
pub struct Chosen(pub Vec<Scenario>);

impl FromStr for Chosen {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        Scenario::named(word).map(Self)
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_means_a_scenario_or_a_group() {
        assert_eq!(Scenario::named("http1-1").unwrap(), [Scenario::Http1One]);
        assert_eq!(Scenario::named("start").unwrap(), [Scenario::Start]);
        assert_eq!(Scenario::named("growth").unwrap().len(), 3);
        assert_eq!(Scenario::named("memory").unwrap().len(), 3);
        assert_eq!(Scenario::named("open-loop").unwrap(), [Scenario::OpenLoop, Scenario::OpenLoopHttp2]);
        assert!(Scenario::named("http").unwrap_err().contains("http1-32"));
        Scenario::named("").unwrap_err();
    }

    #[test]
    fn every_scenario_has_a_name_of_its_own() {
        let mut names = Scenario::ALL.map(Scenario::name);
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
    }

    #[test]
    fn who_takes_part() {
        let of = |scenario: Scenario| scenario.contestants(&Proxy::ALL, &[16, 64]).len();
        assert_eq!(of(Scenario::Http1One), 5);
        assert_eq!(of(Scenario::GrpcMany), 4);
        assert_eq!(of(Scenario::GrowthRoutes), 2);
        assert_eq!(of(Scenario::Start), 1);
        assert_eq!(of(Scenario::AccessLog), 3);
        assert!(Scenario::MemoryPeers.contestants(&[Proxy::Floor], &[16]).is_empty());
        assert!(Scenario::Churn.contestants(&[Proxy::Floor], &[16]).is_empty());
    }
}
