//! What is measured: three shapes of load, the same for every pair.

use std::fmt;

use clap::ValueEnum;

/// One shape of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Scenario {
    /// HTTP/1.1 keep-alive, one connection, one request at a time.
    #[value(name = "http1-1")]
    Http1One,
    /// HTTP/1.1 keep-alive, 32 connections.
    #[value(name = "http1-32")]
    Http1Many,
    /// HTTP/2 with prior knowledge, one connection, 32 streams at a time.
    #[value(name = "http2-32")]
    Http2Many,
}

/// The HTTP version that the client and the server of a scenario speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 without TLS, prior knowledge.
    Http2,
}

impl Scenario {
    /// Every scenario, in the order of the report.
    pub const ALL: [Self; 3] = [Self::Http1One, Self::Http1Many, Self::Http2Many];

    /// The name in the report, in `latest.json` and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Http1One => "http1-1",
            Self::Http1Many => "http1-32",
            Self::Http2Many => "http2-32",
        }
    }

    /// One line for people.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Http1One => "HTTP/1.1 keep-alive, 1 connection",
            Self::Http1Many => "HTTP/1.1 keep-alive, 32 connections",
            Self::Http2Many => "HTTP/2, 1 connection, 32 streams",
        }
    }

    /// TCP connections of the client.
    #[must_use]
    pub fn connections(self) -> u32 {
        match self {
            Self::Http1One | Self::Http2Many => 1,
            Self::Http1Many => 32,
        }
    }

    /// Requests under way at a time.
    #[must_use]
    pub fn concurrency(self) -> u32 {
        match self {
            Self::Http1One => 1,
            Self::Http1Many | Self::Http2Many => 32,
        }
    }

    /// What client and server speak.
    #[must_use]
    pub fn version(self) -> Version {
        match self {
            Self::Http1One | Self::Http1Many => Version::Http1,
            Self::Http2Many => Version::Http2,
        }
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
