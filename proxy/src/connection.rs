//! The table of open connections of one worker, and the one clock that closes those that wait too long.
//! Shape: [`Table::open`] gives a [`Connection`]; the HTTP server tells it when a head begins and a request starts and ends;
//! [`Table::sweep`], called twice a second, closes what is over a limit. No timer per request.
//!
//! # Defaults
//! Head 10 s from its first byte to its last; first request of an HTTP connection 10 s; idle HTTP 5 min.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use serde::Serialize;
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};
use weft_core::identity::Identity;

use crate::telemetry::Direction;

/// Longest time from the first byte of a head to its last, and for the first request of an HTTP connection.
pub(crate) const HEAD: Duration = Duration::from_secs(10);
/// Longest time between two requests.
pub(crate) const IDLE: Duration = Duration::from_secs(300);

/// A connection from a caller.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) id: u64,
    pub(crate) direction: Direction,
    pub(crate) peer: SocketAddr,
    /// Where the caller wanted to go.
    pub(crate) destination: SocketAddr,
    /// The caller's verified identity.
    pub(crate) identity: Option<Identity>,
    pub(crate) protocol: &'static str,
    opened: Instant,
    /// On the table's coarse clock: when a head began; 0 while none is awaited.
    head_since: AtomicU64,
    /// On the table's coarse clock: when the last request ended; 0 while one is running.
    idle_since: AtomicU64,
    running: AtomicU32,
    requests: AtomicU64,
    clock: Arc<AtomicU64>,
    close: Notify,
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
}

/// A request that runs; it has ended when this is dropped.
#[derive(Debug)]
pub(crate) struct Running(Arc<Connection>);

/// Takes the connection out of the table when dropped.
#[derive(Debug)]
pub(crate) struct Entry {
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
        }
    }
}

impl Table {
    /// Enters a connection.
    pub(crate) fn open(
        self: &Arc<Self>,
        direction: Direction,
        peer: SocketAddr,
        destination: SocketAddr,
        identity: Option<Identity>,
        protocol: &'static str,
    ) -> Entry {
        let id = self.next.fetch_add(1, Relaxed);
        let connection = Arc::new(Connection {
            id,
            direction,
            peer,
            destination,
            identity,
            protocol,
            opened: Instant::now(),
            head_since: AtomicU64::new(0),
            idle_since: AtomicU64::new(0),
            running: AtomicU32::new(0),
            requests: AtomicU64::new(0),
            clock: self.clock.clone(),
            close: Notify::new(),
        });
        self.rows.lock().insert(id, connection.clone());
        Entry { table: self.clone(), connection }
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
        rows.values().filter(|row| row.direction == Direction::Outbound).map(|row| row.destination).collect()
    }

    /// Moves the clock and closes what has waited for too long.
    pub(crate) fn sweep(&self) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1);
        self.clock.store(now, Relaxed);
        let over =
            |since: u64, limit: Duration| since != 0 && u128::from(now.saturating_sub(since)) > limit.as_millis();
        for connection in self.rows.lock().values() {
            let head = over(connection.head_since.load(Relaxed), HEAD);
            let idle = over(connection.idle_since.load(Relaxed), IDLE);
            if head || idle {
                connection.close.notify_one();
            }
        }
    }
}

impl Connection {
    /// An HTTP server begins: its first request is awaited.
    pub(crate) fn http_begins(&self) {
        self.head_since.store(self.clock.load(Relaxed), Relaxed);
    }

    /// A byte arrived. Between two requests it is the first of a head.
    pub(crate) fn received(&self) {
        if self.idle_since.load(Relaxed) != 0 {
            self.idle_since.store(0, Relaxed);
            self.head_since.store(self.clock.load(Relaxed), Relaxed);
        }
    }

    /// A head is complete and its request runs.
    pub(crate) fn request_starts(self: &Arc<Self>) -> Running {
        self.running.fetch_add(1, Relaxed);
        self.requests.fetch_add(1, Relaxed);
        self.head_since.store(0, Relaxed);
        self.idle_since.store(0, Relaxed);
        Running(self.clone())
    }

    /// Ends when the connection is to be closed.
    pub(crate) async fn closing(&self) {
        self.close.notified().await;
    }

    /// Ends when no request runs, at most a second later. A tunnel is a request that runs.
    pub(crate) async fn unused(&self) {
        while self.running.load(Relaxed) != 0 {
            sleep(Duration::from_secs(1)).await;
        }
    }

    fn row(&self) -> Row {
        Row {
            id: self.id,
            direction: self.direction.as_str(),
            protocol: self.protocol,
            peer: self.peer,
            destination: self.destination,
            identity: self.identity.as_ref().map(ToString::to_string),
            age_ms: u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX),
            requests: self.requests.load(Relaxed),
            running: self.running.load(Relaxed),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.0.running.fetch_sub(1, Relaxed) == 1 {
            self.0.idle_since.store(self.0.clock.load(Relaxed), Relaxed);
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.table.rows.lock().remove(&self.connection.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(table: &Arc<Table>) -> Entry {
        let address = "127.0.0.1:1".parse().unwrap();
        table.open(Direction::Inbound, address, address, None, "http1")
    }

    async fn closes(table: &Arc<Table>, entry: &Entry, after: Duration) -> bool {
        tokio::time::advance(after).await;
        table.sweep();
        tokio::time::timeout(Duration::ZERO, entry.connection.closing()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_has_ten_seconds_in_all_and_silence_between_requests_five_minutes() {
        let table = Arc::new(Table::default());
        let entry = entry(&table);
        let connection = &entry.connection;
        connection.http_begins();
        assert!(!closes(&table, &entry, HEAD - Duration::from_secs(1)).await);
        let running = connection.request_starts();
        assert!(!closes(&table, &entry, IDLE * 2).await, "a running request is never cut");
        drop(running);
        assert!(!closes(&table, &entry, IDLE - Duration::from_secs(1)).await);
        connection.received();
        for _ in 0..9 {
            connection.received();
            assert!(!closes(&table, &entry, Duration::from_secs(1)).await);
        }
        assert!(closes(&table, &entry, Duration::from_secs(2)).await, "ten seconds in all, not since the last byte");
        drop(entry);
        assert!(table.is_empty());
    }
}
