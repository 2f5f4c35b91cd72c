//! The table of open connections of one worker, and the one clock that enforces their timeouts.
//! Shape: [`Table::open`] gives a [`Connection`]; the HTTP server reports on it when a head begins and a request starts and ends;
//! [`Table::sweep`], called twice a second, closes connections over a timeout. No timer per request.
//!
//! # Defaults
//! Head 10 s from its first byte to its last; first request of an HTTP connection 10 s from the accept, protocol detection
//! included; idle HTTP 5 min; a stalled body of an HTTP/1 request 5 min (streams of HTTP/2 have no such timeout: gRPC calls may
//! be silent for long). A connection whose peer's certificate has expired lives on if the peer has shown a newer one of the same
//! identity on any connection. Otherwise it is closed gracefully within 30 s, at a time of its own, and reset 30 s later.

mod proven;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Waker},
    time::Duration,
};

use parking_lot::Mutex;
use serde::Serialize;
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};
use weft_core::{failure::Failure, identity::Identity};

pub(crate) use self::proven::Proven;
use crate::telemetry::{Direction, Flow, Protocol};

/// Longest time from the first byte of a head to its last, and for the first request of an HTTP connection.
pub(crate) const HEAD: Duration = Duration::from_secs(10);
/// Idle timeout: the longest time between two requests.
pub(crate) const IDLE: Duration = Duration::from_secs(300);
/// Longest time without a byte of an HTTP/1 request's body that is not complete.
pub(crate) const BODY: Duration = Duration::from_secs(300);
/// Grace period of a connection whose peer's certificate has expired.
const GRACE: Duration = Duration::from_secs(30);

/// A connection of the workload without a request in flight is idle when nothing has moved on it for this time.
const QUIET: Duration = Duration::from_secs(3);
/// The connections of a peer whose certificate has expired end spread over this time.
const SPREAD: Duration = Duration::from_secs(30);

/// How a connection is to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Close {
    /// As soon as no request is in flight or has begun to arrive: the proxy drains, the connection was idle, or the peer's
    /// certificate has expired.
    Gracefully,
    /// Now.
    Now(Cut),
}

/// Why a connection is closed while it is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// A timeout is over.
    Timeout,
    /// The peer's certificate has expired.
    Expired,
    /// The proxy stops.
    Stopping,
}

impl Cut {
    fn of(level: u8) -> Self {
        match level {
            3 => Self::Expired,
            4 => Self::Stopping,
            _ => Self::Timeout,
        }
    }

    /// The failure of what was in flight.
    pub(crate) fn failure(self) -> Failure {
        match self {
            Self::Timeout => Failure::IdleTimeout,
            Self::Expired => Failure::CertificateExpired,
            Self::Stopping => Failure::Stopping,
        }
    }
}

/// A connection from a caller.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) id: u64,
    pub(crate) flow: Flow,
    /// The caller's verified identity.
    pub(crate) identity: Option<Identity>,
    pub(crate) protocol: Protocol,
    opened: Instant,
    /// On the table's coarse clock: when a head began; 0 while none is awaited.
    head_since: AtomicU64,
    /// On the table's coarse clock: when the last request ended; 0 while one is running.
    idle_since: AtomicU64,
    running: AtomicU32,
    requests: AtomicU64,
    /// Bytes of opaque connections and tunnels.
    moved: AtomicU64,
    /// Of the requests in flight, those that have become tunnels.
    tunnelling: AtomicU32,
    /// Requests and moved bytes as the last sweep saw them, and since when, on the table's coarse clock, they are the same.
    seen: AtomicU64,
    quiet_since: AtomicU64,
    /// On the table's coarse clock: since when more of a request's body is awaited; 0 while none is.
    body_since: AtomicU64,
    /// On the table's coarse clock: when the peer's certificate expires; 0 if it has none.
    expires: AtomicU64,
    clock: Arc<AtomicU64>,
    end: AtomicU8,
    /// The task to wake when the connection is to be closed.
    task: Mutex<Option<Waker>>,
    /// Notified when the connection is cut, for its tunnels.
    tunnels: Notify,
}

/// A connection as the admin port shows it.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the fields say what they are")]
pub struct Row {
    pub id: u64,
    pub direction: &'static str,
    pub protocol: &'static str,
    pub peer: SocketAddr,
    pub destination: SocketAddr,
    pub identity: Option<String>,
    pub age_ms: u64,
    pub requests: u64,
    pub running: u32,
}

/// The open connections of one worker.
#[derive(Debug)]
pub struct Table {
    rows: Mutex<HashMap<u64, Arc<Connection>>>,
    next: AtomicU64,
    start: Instant,
    /// Milliseconds since `start`, plus one; moved by `sweep`.
    clock: Arc<AtomicU64>,
    draining: AtomicBool,
    proven: Arc<Proven>,
}

/// A request in flight, until dropped.
#[derive(Debug)]
pub(crate) struct InFlight(Arc<Connection>);

/// A tunnel on a connection, until dropped.
#[derive(Debug)]
pub(crate) struct Tunnel(Arc<Connection>);

/// Open connections, by what a drain makes of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Open {
    /// To the workload or the gateway.
    pub(crate) inbound: usize,
    /// Of the workload, with a request in flight or bytes that move.
    pub(crate) outbound_active: usize,
    /// The workload's other ones.
    pub(crate) outbound_idle: usize,
    /// Requests in flight, tunnels included.
    pub(crate) requests: u64,
}

/// A connection's place in the table, until dropped.
#[derive(Debug)]
pub(crate) struct Registration {
    table: Arc<Table>,
    pub(crate) connection: Arc<Connection>,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            rows: Mutex::default(),
            next: AtomicU64::new(1),
            start: Instant::now(),
            clock: Arc::new(AtomicU64::new(1)),
            draining: AtomicBool::new(false),
            proven: Arc::default(),
        }
    }
}

impl Table {
    /// A table whose connections live for as long as the identities of their peers are proven.
    pub(crate) fn new(proven: Arc<Proven>) -> Self {
        Self { proven, ..Self::default() }
    }

    /// Adds a connection.
    pub(crate) fn open(self: &Arc<Self>, flow: Flow, identity: Option<Identity>, protocol: Protocol) -> Registration {
        let id = self.next.fetch_add(1, Relaxed);
        let connection = Arc::new(Connection {
            id,
            flow,
            identity,
            protocol,
            opened: Instant::now(),
            head_since: AtomicU64::new(0),
            idle_since: AtomicU64::new(0),
            running: AtomicU32::new(0),
            requests: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            tunnelling: AtomicU32::new(0),
            seen: AtomicU64::new(0),
            quiet_since: AtomicU64::new(self.clock.load(Relaxed)),
            body_since: AtomicU64::new(0),
            expires: AtomicU64::new(0),
            clock: self.clock.clone(),
            end: AtomicU8::new(0),
            task: Mutex::default(),
            tunnels: Notify::new(),
        });
        self.rows.lock().insert(id, connection.clone());
        if self.draining.load(Relaxed) && flow.direction != Direction::Outbound {
            connection.close(Close::Gracefully);
        }
        Registration { table: self.clone(), connection }
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        self.rows.lock().len()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.rows.lock().is_empty()
    }

    /// At most `most` of them, oldest first.
    pub fn rows(&self, most: usize) -> Vec<Row> {
        let mut rows: Vec<Row> = self.rows.lock().values().map(|connection| connection.row()).collect();
        rows.sort_by_key(|row| row.id);
        rows.truncate(most);
        rows
    }

    /// Where the workload's open connections lead.
    pub(crate) fn destinations(&self) -> Vec<SocketAddr> {
        let rows = self.rows.lock();
        let outbound = rows.values().map(|row| row.flow).filter(|flow| flow.direction == Direction::Outbound);
        outbound.map(|flow| flow.destination).collect()
    }

    /// Moves the clock and closes connections over a timeout.
    pub(crate) fn sweep(&self) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1);
        self.clock.store(now, Relaxed);
        let over =
            |since: u64, limit: Duration| since != 0 && u128::from(now.saturating_sub(since)) > limit.as_millis();
        for connection in self.rows.lock().values() {
            connection.look(now);
            let head = over(connection.head_since.load(Relaxed), HEAD);
            let body = over(connection.body_since.load(Relaxed), BODY);
            let idle = over(connection.idle_since.load(Relaxed), IDLE);
            let mut expires = connection.expires.load(Relaxed);
            if over(expires, Duration::ZERO)
                && let Some(rest) = connection.identity.as_ref().and_then(|identity| self.proven.until(identity))
            {
                connection.valid_for(rest);
                expires = 0;
            }
            let spread = SPREAD.mul_f64(connection.id.wrapping_mul(37) as f64 % 100.0 / 100.0);
            if head || body {
                connection.close(Close::Now(Cut::Timeout));
            } else if over(expires, spread + GRACE) {
                connection.close(Close::Now(Cut::Expired));
            } else if idle || over(expires, spread) {
                connection.close(Close::Gracefully);
            }
        }
    }

    /// Closes the connections from outside gracefully, and those that are opened from now on. The workload may go on calling.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Relaxed);
        let rows = self.rows.lock();
        let outside = rows.values().filter(|row| row.flow.direction != Direction::Outbound);
        outside.for_each(|connection| connection.close(Close::Gracefully));
    }

    /// Connections from outside may stay again.
    pub(crate) fn undrain(&self) {
        self.draining.store(false, Relaxed);
    }

    /// Closes every connection gracefully.
    pub(crate) fn end(&self) {
        self.rows.lock().values().for_each(|connection| connection.close(Close::Gracefully));
    }

    /// Closes all connections now: the drain timeout is over.
    pub fn stop(&self) {
        self.rows.lock().values().for_each(|connection| connection.close(Close::Now(Cut::Stopping)));
    }

    /// What is open now.
    pub(crate) fn open_now(&self) -> Open {
        let now = self.clock.load(Relaxed);
        let mut open = Open::default();
        for row in self.rows.lock().values() {
            open.requests += u64::from(row.running.load(Relaxed));
            match row.flow.direction {
                Direction::Inbound | Direction::Gateway => open.inbound += 1,
                Direction::Outbound if row.is_active(now) => open.outbound_active += 1,
                Direction::Outbound => open.outbound_idle += 1,
            }
        }
        open
    }
}

impl Open {
    /// Both together.
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            inbound: self.inbound + other.inbound,
            outbound_active: self.outbound_active + other.outbound_active,
            outbound_idle: self.outbound_idle + other.outbound_idle,
            requests: self.requests + other.requests,
        }
    }

    /// What a drain waits for: the connections from outside, and of those of the workload the active ones. The workload's own
    /// idle pools last as long as it does.
    pub(crate) fn waits_for(self) -> usize {
        self.inbound + self.outbound_active
    }
}

impl Connection {
    /// Counts the bytes of opaque connections and tunnels.
    pub(crate) fn moved(&self) -> &AtomicU64 {
        &self.moved
    }

    /// A request in flight has become a tunnel, until dropped.
    pub(crate) fn tunnel(self: &Arc<Self>) -> Tunnel {
        self.tunnelling.fetch_add(1, Relaxed);
        Tunnel(self.clone())
    }

    /// Takes note of whether anything has moved since the last look.
    fn look(&self, now: u64) {
        let activity = self.requests.load(Relaxed).wrapping_add(self.moved.load(Relaxed));
        if self.seen.swap(activity, Relaxed) != activity {
            self.quiet_since.store(now, Relaxed);
        }
    }

    /// Whether a request is in flight, or something has moved within [`QUIET`].
    fn is_active(&self, now: u64) -> bool {
        self.running.load(Relaxed) > self.tunnelling.load(Relaxed)
            || u128::from(now.saturating_sub(self.quiet_since.load(Relaxed))) < QUIET.as_millis()
    }

    /// An HTTP server begins on a connection accepted at that time: the timeout of the first head starts there.
    pub(crate) fn http_begins(&self, accepted: Instant) {
        let spent = u64::try_from(accepted.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.head_since.store(self.clock.load(Relaxed).saturating_sub(spent).max(1), Relaxed);
    }

    /// The peer's certificate is valid for this time.
    pub(crate) fn valid_for(&self, rest: Duration) {
        let rest = u64::try_from(rest.as_millis()).unwrap_or(u64::MAX);
        self.expires.store(self.clock.load(Relaxed).saturating_add(rest), Relaxed);
    }

    /// The proxy waits for more of a request's body, or no longer does.
    pub(crate) fn body_awaited(&self, awaited: bool) {
        let since = if awaited { self.clock.load(Relaxed) } else { 0 };
        if awaited != (self.body_since.load(Relaxed) != 0) {
            self.body_since.store(since, Relaxed);
        }
    }

    /// A part of a head has arrived. Its time starts where it was not running yet.
    pub(crate) fn head_begins(&self) {
        if self.head_since.load(Relaxed) == 0 {
            self.head_since.store(self.clock.load(Relaxed), Relaxed);
        }
        self.idle_since.store(0, Relaxed);
    }

    /// A head is complete and its request in flight.
    pub(crate) fn request_starts(self: &Arc<Self>) -> InFlight {
        self.running.fetch_add(1, Relaxed);
        self.requests.fetch_add(1, Relaxed);
        self.head_since.store(0, Relaxed);
        self.idle_since.store(0, Relaxed);
        InFlight(self.clone())
    }

    /// How the connection is to be closed, if it is. The task is woken at a change; `registered` says whether its waker is kept
    /// already.
    pub(crate) fn poll_close(&self, cx: &Context<'_>, registered: &mut bool) -> Option<Close> {
        if !std::mem::replace(registered, true) {
            *self.task.lock() = Some(cx.waker().clone());
        }
        match self.end.load(Relaxed) {
            0 => None,
            1 => Some(Close::Gracefully),
            level => Some(Close::Now(Cut::of(level))),
        }
    }

    /// Whether the connection is to be closed after the request in flight.
    pub(crate) fn is_closing(&self) -> bool {
        self.end.load(Relaxed) != 0
    }

    /// Why it is to be closed now, if it is.
    pub(crate) fn why_cut(&self) -> Option<Failure> {
        let level = self.end.load(Relaxed);
        (level > 1).then(|| Cut::of(level).failure())
    }

    /// Whether any request has come yet.
    pub(crate) fn has_begun(&self) -> bool {
        self.requests.load(Relaxed) != 0
    }

    /// Ready when the connection is to be cut, with the reason.
    pub(crate) async fn cut(&self) -> Failure {
        loop {
            let notified = self.tunnels.notified();
            if let Some(failure) = self.why_cut() {
                return failure;
            }
            notified.await;
        }
    }

    fn close(&self, close: Close) {
        let level = match close {
            Close::Gracefully => 1,
            Close::Now(Cut::Timeout) => 2,
            Close::Now(Cut::Expired) => 3,
            Close::Now(Cut::Stopping) => 4,
        };
        // The first reason to cut it stays.
        let closed = self.end.fetch_update(Relaxed, Relaxed, |before| (before < level.min(2)).then_some(level));
        if closed.is_ok() {
            if let Some(task) = &*self.task.lock() {
                task.wake_by_ref();
            }
            self.tunnels.notify_waiters();
        }
    }

    /// Ready when no request is in flight, at most a second later. A tunnel is a request in flight.
    pub(crate) async fn unused(&self) {
        while self.running.load(Relaxed) != 0 {
            sleep(Duration::from_secs(1)).await;
        }
    }

    fn row(&self) -> Row {
        Row {
            id: self.id,
            direction: self.flow.direction.as_str(),
            protocol: self.protocol.as_str(),
            peer: self.flow.peer,
            destination: self.flow.destination,
            identity: self.identity.as_ref().map(ToString::to_string),
            age_ms: u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX),
            requests: self.requests.load(Relaxed),
            running: self.running.load(Relaxed),
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.0.running.fetch_sub(1, Relaxed) == 1 {
            self.0.idle_since.store(self.0.clock.load(Relaxed), Relaxed);
        }
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.0.tunnelling.fetch_sub(1, Relaxed);
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.table.rows.lock().remove(&self.connection.id);
    }
}

#[cfg(test)]
mod tests;
