//! Clusters: how the endpoints of one service port are reached and protected.
//! Wire: `envoy.config.cluster.v3.Cluster`; settings without a field in Envoy travel in `metadata["weft.dev"]`.

use std::{num::NonZeroU32, time::Duration};

use serde::Serialize;

use crate::names::ClusterName;

/// Longest time to open a connection, where no policy says otherwise. A SYN that is lost is sent again after 1 s, and then after
/// 2 s more (RFC 6298 §2, §5.5): a limit at one of these times would take one loss for a dead endpoint.
pub const CONNECT_TIMEOUT: Duration = Duration::from_millis(2_500);

/// How the endpoints of one service port are reached and protected.
///
/// # Defaults
/// See each part; [`Cluster::new`] gives them all.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cluster {
    /// Its name, and the name of its endpoint set.
    pub name: ClusterName,
    /// Which HTTP version the application behind it is given.
    pub http: HttpVersion,
    /// Longest time to open a connection, TLS included. Default [`CONNECT_TIMEOUT`].
    pub connect_timeout: Duration,
    /// An idle pooled HTTP connection is closed after this. Default 5 min.
    pub http_idle: Duration,
    /// A TCP connection with no byte either way is closed after this. Default 1 h.
    pub tcp_idle: Duration,
    /// What the cluster may use at once.
    pub limits: Limits,
    /// When an endpoint is taken out.
    pub outlier: Option<OutlierDetection>,
    /// How many retries there may be.
    pub budget: RetryBudget,
}

/// Which HTTP version an application is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HttpVersion {
    /// The version of the caller.
    #[default]
    AsReceived,
    /// HTTP/2 always (`appProtocol: kubernetes.io/h2c`, `grpc`).
    Http2,
}

/// What a cluster may use at once, over all workers of the proxy. What is above is refused at once with 503.
///
/// # Defaults
/// 10,000 connections, 1,024 pending, 10,000 requests in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Open connections, HTTP and TCP together.
    pub connections: u32,
    /// Requests waiting for a connection.
    pub pending: u32,
    /// Requests in flight.
    pub requests: u32,
}

/// Consecutive-failure outlier detection (Envoy `outlier_detection`, consecutive gateway failures and local-origin failures).
///
/// # Defaults
/// 5 failures, 30 s, at most half.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct OutlierDetection {
    /// Consecutive failures that eject an endpoint: 502, 503, 504, gRPC's UNAVAILABLE, answers that are malformed, cut or late,
    /// resets and failed connects.
    pub consecutive_failures: NonZeroU32,
    /// How long an ejection lasts, times the number of ejections so far, less one for each such time between two of them.
    pub base_ejection: Duration,
    /// At most this part of the endpoints is ejected at once, rounded down, but one of two or more may always be.
    /// Ratio 0..=1.
    pub max_ejected: f64,
}

/// How many retries there may be in proportion to requests: a token bucket.
///
/// # Defaults
/// 0.2 of the requests, and 10 per second on top.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct RetryBudget {
    /// Retries per request. Ratio 0..=1.
    pub ratio: f64,
    /// Retries per second that are allowed in any case, but of at most every second request (`retry::SHARE`).
    pub min_per_second: u32,
}

impl Cluster {
    /// A cluster with every default.
    pub fn new(name: ClusterName) -> Self {
        Self {
            name,
            http: HttpVersion::default(),
            connect_timeout: CONNECT_TIMEOUT,
            http_idle: Duration::from_secs(300),
            tcp_idle: Duration::from_secs(3600),
            limits: Limits::default(),
            outlier: Some(OutlierDetection::default()),
            budget: RetryBudget::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 10_000, pending: 1_024, requests: 10_000 }
    }
}

impl Default for OutlierDetection {
    fn default() -> Self {
        Self {
            consecutive_failures: NonZeroU32::MIN.saturating_add(4),
            base_ejection: Duration::from_secs(30),
            max_ejected: 0.5,
        }
    }
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { ratio: 0.2, min_per_second: 10 }
    }
}
