//! `weft.dev/v1alpha1 TrafficPolicy`: how a Service's clients treat it.
//! Shape: everything is optional and keeps its default when absent; see `cluster` and `retry` for the defaults.

use serde::{Deserialize, Serialize};

use super::duration::Duration;

/// What a TrafficPolicy is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficPolicySpec {
    /// The Service of the same namespace, or one port of it.
    pub target_ref: PolicyTarget,
    /// How long things may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<Timeouts>,
    /// When requests are tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// When an endpoint is taken out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outlier_detection: Option<OutlierDetection>,
    /// What may be used at once by one client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// How an endpoint is picked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_balancer: Option<LoadBalancer>,
}

/// A Service of the policy's namespace, or one port of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicyTarget {
    /// The group: empty, the core group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// `Service`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// The name of one port. Absent: all ports that no other policy names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
}

/// How long things may take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Timeouts {
    /// To open a connection, TLS included. Default 2.5 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect: Option<Duration>,
    /// From the request's first byte to the answer's last, all tries together. Default none; `0s` is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Duration>,
    /// Each try, until the head of the answer. Default none; `0s` is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_try: Option<Duration>,
    /// A pooled HTTP connection to an endpoint that carries no request is closed after this. Default 5 min.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle: Option<Duration>,
    /// A TCP connection without a byte either way is closed after this. Default 1 h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp_idle: Option<Duration>,
}

/// When requests are tried again.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Retry {
    /// Tries in all, the first one included. Default 2; 1 switches retries off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    /// What is tried again. Default: connect-failure, refused-stream, gateway-error, reset. Written `retryOn` because
    /// the bare word `on` is a truth value to kubectl (YAML 1.1); `on` is read too.
    #[serde(rename = "retryOn", alias = "on", default, skip_serializing_if = "Option::is_none")]
    pub on: Option<Vec<RetryCondition>>,
    /// Further statuses, 400 to 599, that are tried again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub status_codes: Vec<u16>,
    /// How long to wait between tries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Backoff>,
    /// How many retries there may be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
}

/// A kind of failure that is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RetryCondition {
    /// No connection was made: any method.
    #[serde(rename = "connect-failure")]
    ConnectFailure,
    /// The peer said it did not process the request: any method.
    #[serde(rename = "refused-stream")]
    RefusedStream,
    /// 502, 503, 504: idempotent methods.
    #[serde(rename = "gateway-error")]
    GatewayError,
    /// The connection or stream broke before the answer's head: idempotent methods.
    #[serde(rename = "reset")]
    Reset,
    /// Any 5xx: idempotent methods.
    #[serde(rename = "5xx")]
    ServerError,
}

/// How long to wait between tries: at least this long, doubled each time, and up to twice as long at random.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Backoff {
    /// Before the second try. Default 25 ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Duration>,
    /// The longest. Default 250 ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<Duration>,
}

/// How many retries there may be in proportion to requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Budget {
    /// Retries per request. Ratio 0..=1. Default 0.2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    /// Retries per second that are always allowed. Default 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_per_second: Option<u32>,
}

/// When an endpoint is taken out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OutlierDetection {
    /// Consecutive 502, 503, 504, gRPC's UNAVAILABLE, answers that are cut, malformed or late, resets or failed connects. Default 5; 0 switches outlier detection off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consecutive_failures: Option<u32>,
    /// How long, times the number of ejections so far, less one for each such time between two of them. Default 30 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_ejection: Option<Duration>,
    /// At most this part of the endpoints at once. Ratio 0..=1. Default 0.5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_ejected: Option<f64>,
}

/// What one client proxy may use at once; what is above is refused with 503. At least 1 each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Limits {
    /// Open connections. Default 10,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<u32>,
    /// Requests waiting for a connection. Default 1,024.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<u32>,
    /// Requests in flight. Default 10,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<u32>,
}

/// How an endpoint is picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LoadBalancer {
    /// The way.
    #[serde(rename = "type")]
    pub kind: LoadBalancerType,
}

/// A way to pick an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LoadBalancerType {
    /// The better of two random ones, by peak EWMA of latency times requests in flight.
    #[default]
    PeakEwma,
}
