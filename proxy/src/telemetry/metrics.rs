//! Counting. The hot path adds to atomics of its own worker through a handle that is looked up once per connection;
//! rare events are counted by name under a lock of the worker.
//! Invariant: at most [`MAX_SERIES`] label sets of requests and of events each; later ones are counted as `other`,
//! so no total is lost.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::{Mutex, RwLock};
use weft_core::identity::Identity;

/// Most label sets kept per worker and kind.
pub const MAX_SERIES: usize = 2_000;

/// Upper bounds of the latency histogram, in microseconds.
pub const BUCKETS: [u64; 15] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000,
    10_000_000, 30_000_000,
];

/// Direction at the workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// To the workload.
    Inbound,
    /// From the workload.
    Outbound,
    /// From outside through a gateway.
    Gateway,
}

/// A connection from a caller: its two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Direction at the workload.
    pub direction: Direction,
    /// The caller's address.
    pub peer: SocketAddr,
    /// The address that the caller called.
    pub destination: SocketAddr,
}

/// The caller's protocol, as logs and the connection table name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.0 or HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// gRPC, in whichever version of HTTP.
    Grpc,
    /// Opaque bytes.
    Tcp,
}

/// How a connection is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Security {
    /// Mesh TLS with identities both ways.
    Mtls,
    /// Plaintext, or TLS of the application's own.
    Plain,
}

/// What tells one series of requests from another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestLabels {
    /// Direction at the workload.
    pub direction: Direction,
    /// The cluster called, or the workload's own port.
    pub destination: Arc<str>,
    /// `<namespace>/<service account>` of the caller where it is verified; else empty.
    pub source: Arc<str>,
    /// On the side away from the workload.
    pub security: Security,
}

/// Counts of one series.
#[derive(Debug, Default)]
pub struct RequestSeries {
    /// By hundreds of the status; index 0 counts requests that got no status.
    pub(crate) by_class: [AtomicU64; 6],
    pub(crate) buckets: [AtomicU64; BUCKETS.len() + 1],
    pub(crate) micros: AtomicU64,
    pub(crate) sent: AtomicU64,
    pub(crate) received: AtomicU64,
}

/// The metrics of one worker.
#[derive(Debug, Default)]
pub struct Metrics {
    requests: RwLock<HashMap<RequestLabels, Arc<RequestSeries>>>,
    events: Mutex<BTreeMap<EventKey, u64>>,
    /// Open connections: inbound, outbound, gateway.
    pub(crate) connections: [AtomicI64; 3],
}

/// Name and labels of an event.
pub(crate) type EventKey = (&'static str, Vec<(&'static str, String)>);

impl Direction {
    /// As it is written in labels and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
            Self::Gateway => "gateway",
        }
    }
}

impl Protocol {
    /// As it is written in logs and the table of connections.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
        }
    }
}

impl Security {
    /// The protection of a connection whose peer has this identity, or none.
    pub(crate) fn of(identity: Option<&Identity>) -> Self {
        if identity.is_some() { Self::Mtls } else { Self::Plain }
    }

    /// As it is written in labels and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mtls => "mtls",
            Self::Plain => "plain",
        }
    }
}

impl RequestSeries {
    /// Counts one finished request. `status` 0 = none was sent.
    pub fn record(&self, status: u16, duration: Duration, sent: u64, received: u64) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        add(self.by_class.get(usize::from(status / 100)).unwrap_or(&self.by_class[0]), 1);
        let bucket = BUCKETS.partition_point(|bound| *bound < micros);
        if let Some(bucket) = self.buckets.get(bucket) {
            add(bucket, 1);
        }
        add(&self.micros, micros);
        add(&self.sent, sent);
        add(&self.received, received);
    }
}

fn add(counter: &AtomicU64, amount: u64) {
    if amount != 0 {
        counter.fetch_add(amount, Relaxed);
    }
}

impl Metrics {
    /// The handle of a series; looked up once per connection and kept.
    pub fn series(&self, labels: &RequestLabels) -> Arc<RequestSeries> {
        if let Some(series) = self.requests.read().get(labels) {
            return series.clone();
        }
        let mut requests = self.requests.write();
        let labels = if requests.len() < MAX_SERIES {
            labels.clone()
        } else {
            RequestLabels { destination: "other".into(), source: "other".into(), ..labels.clone() }
        };
        requests.entry(labels).or_default().clone()
    }

    /// Counts a rare event, such as a retry or a denial.
    pub fn event(&self, name: &'static str, labels: &[(&'static str, &str)]) {
        self.events_by(name, labels, 1);
    }

    /// Adds to a counter that is not worth a series of its own.
    pub fn events_by(&self, name: &'static str, labels: &[(&'static str, &str)], amount: u64) {
        let mut events = self.events.lock();
        let key = |values: &dyn Fn(&str) -> String| (name, labels.iter().map(|(l, v)| (*l, values(v))).collect());
        let full = events.len() >= MAX_SERIES;
        let mut key: EventKey = key(&|value| value.chars().take(256).collect());
        if full && !events.contains_key(&key) {
            key.1.iter_mut().for_each(|(_, value)| "other".clone_into(value));
        }
        *events.entry(key).or_default() += amount;
    }

    /// Counts a connection until the guard is dropped.
    pub(crate) fn connection(self: &Arc<Self>, direction: Direction) -> OpenConnection {
        self.gauge(direction).fetch_add(1, Relaxed);
        OpenConnection { metrics: self.clone(), direction }
    }

    fn gauge(&self, direction: Direction) -> &AtomicI64 {
        let [inbound, outbound, gateway] = &self.connections;
        match direction {
            Direction::Inbound => inbound,
            Direction::Outbound => outbound,
            Direction::Gateway => gateway,
        }
    }

    pub(crate) fn visit_requests(&self, mut visit: impl FnMut(&RequestLabels, &RequestSeries)) {
        self.requests.read().iter().for_each(|(labels, series)| visit(labels, series));
    }

    pub(crate) fn visit_events(&self, mut visit: impl FnMut(&EventKey, u64)) {
        self.events.lock().iter().for_each(|(key, count)| visit(key, *count));
    }
}

/// One open connection in the gauge.
#[derive(Debug)]
pub(crate) struct OpenConnection {
    metrics: Arc<Metrics>,
    direction: Direction,
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.metrics.gauge(self.direction).fetch_sub(1, Relaxed);
    }
}
