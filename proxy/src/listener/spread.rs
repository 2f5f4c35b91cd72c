//! The worker that serves a connection. The kernel picks one by a hash of the addresses (SO_REUSEPORT), so the few connections
//! that carry all traffic between two proxies may fall to one worker and leave the others idle. The worker that accepts a
//! connection therefore hands it to the worker with the fewest connections of this caller, and among those to the one with the
//! fewest at all (Envoy: `exact_balance`).
//! Invariant: directions are counted apart, so that neither takes the other's connections; and so are sources (`sources`).
//! Shape: [`Spread::choose`] gives a [`Reservation`]; the connection counts until it is dropped.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    net::{IpAddr, SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use tokio::sync::mpsc;

use weft_core::{failure::Limit, identity::Identity};

use super::{
    socket::Role,
    sources::{Shares, Sources},
};
use crate::telemetry::Direction;

/// Buckets for callers, by a hash of their addresses; two callers in one bucket are spread as one.
const CALLERS: usize = 64;
/// Connections that may wait for the worker that they were handed to.
const WAITING: usize = 1_024;

/// How the open connections from callers are spread over the workers.
#[derive(Debug)]
pub struct Spread {
    /// Most connections of one worker in one direction.
    limit: usize,
    /// Of those to the workload or the gateway, by where they come from.
    sources: Sources,
    /// Of those to the workload by mesh TLS, by the caller's identity.
    identities: Shares<Identity>,
    workers: Vec<Load>,
    doors: Vec<mpsc::Sender<Handed>>,
}

/// A connection that another worker has accepted.
#[derive(Debug)]
pub struct Handed {
    pub(crate) stream: TcpStream,
    pub(crate) peer: SocketAddr,
    pub(crate) role: Role,
    pub(crate) reservation: Reservation,
}

/// Open connections of one worker, by direction.
#[derive(Debug, Default)]
struct Load([Counts; 3]);

#[derive(Debug)]
struct Counts {
    all: AtomicU32,
    callers: [AtomicU32; CALLERS],
}

impl Default for Counts {
    fn default() -> Self {
        Self { all: AtomicU32::new(0), callers: [const { AtomicU32::new(0) }; CALLERS] }
    }
}

/// A connection counted at its worker, until dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    spread: Arc<Spread>,
    worker: usize,
    direction: Direction,
    caller: IpAddr,
    /// Once the caller has proven one.
    identity: Option<Box<Identity>>,
}

impl Spread {
    /// For `workers` workers, each with at most `limit` connections in each direction, of which at all workers together at most
    /// `share` are of one source, and as many of one identity; and the receiver of each worker's handed connections.
    pub fn new(workers: usize, limit: usize, share: usize) -> (Arc<Self>, Vec<mpsc::Receiver<Handed>>) {
        Self::with_shares(workers, limit, share, share)
    }

    /// The same with a share of its own for an identity.
    pub fn with_shares(
        workers: usize,
        limit: usize,
        source: usize,
        identity: usize,
    ) -> (Arc<Self>, Vec<mpsc::Receiver<Handed>>) {
        let (doors, handed) = (0..workers).map(|_| mpsc::channel(WAITING)).unzip();
        let workers = (0..workers).map(|_| Load::default()).collect();
        let (sources, identities) = (Sources::new(source), Shares::new(identity));
        (Arc::new(Self { limit, sources, identities, workers, doors }), handed)
    }

    /// The worker for a connection that the worker `here` has accepted: `here` among equals.
    /// Errors: all workers are full, or the caller has its share.
    pub(crate) fn choose(
        self: &Arc<Self>,
        here: usize,
        direction: Direction,
        caller: IpAddr,
    ) -> Result<Reservation, Limit> {
        let bucket = bucket(caller);
        let there = (0..self.workers.len()).filter(|&worker| worker != here);
        let worker = std::iter::once(here).chain(there).min_by_key(|&worker| self.load(worker, direction, bucket));
        let worker = worker.filter(|worker| !self.is_full(*worker, direction)).ok_or(Limit::ProxyConnections)?;
        if has_sources(direction) && !self.sources.take(caller) {
            return Err(Limit::Source);
        }
        let reservation = Reservation { spread: self.clone(), worker, direction, caller, identity: None };
        reservation.count(|count| _ = count.fetch_add(1, Relaxed));
        Ok(reservation)
    }

    /// Hands a connection over. Errors: the worker has ended or its queue is full; the connection comes back.
    pub(crate) fn hand(&self, handed: Handed) -> Result<(), Handed> {
        match self.doors.get(handed.reservation.worker) {
            Some(door) => door.try_send(handed).map_err(mpsc::error::TrySendError::into_inner),
            None => Err(handed),
        }
    }

    /// The load of a worker, by which the least loaded is chosen.
    fn load(&self, worker: usize, direction: Direction, caller: usize) -> (bool, u32, u32) {
        let full = self.is_full(worker, direction);
        let Some(counts) = self.counts(worker, direction) else { return (true, 0, 0) };
        let callers = counts.callers.get(caller).map_or(0, |count| count.load(Relaxed));
        (full, callers, counts.all.load(Relaxed))
    }

    fn is_full(&self, worker: usize, direction: Direction) -> bool {
        self.counts(worker, direction).is_none_or(|counts| counts.all.load(Relaxed) as usize >= self.limit)
    }

    fn counts(&self, worker: usize, direction: Direction) -> Option<&Counts> {
        self.workers.get(worker)?.0.get(direction as usize)
    }
}

impl Reservation {
    pub(crate) fn worker(&self) -> usize {
        self.worker
    }

    /// The caller has proven an identity, and is counted under it. Errors: that one has its share already.
    pub(crate) fn identify(&mut self, identity: &Identity) -> Result<(), Limit> {
        if !self.spread.identities.take(identity) {
            return Err(Limit::Identity);
        }
        self.identity = Some(Box::new(identity.clone()));
        Ok(())
    }

    fn count(&self, change: impl Fn(&AtomicU32)) {
        if let Some(counts) = self.spread.counts(self.worker, self.direction) {
            change(&counts.all);
            counts.callers.get(bucket(self.caller)).into_iter().for_each(change);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.count(|count| _ = count.fetch_sub(1, Relaxed));
        if let Some(identity) = self.identity.as_deref() {
            self.spread.identities.release(identity);
        }
        if has_sources(self.direction) {
            self.spread.sources.release(self.caller);
        }
    }
}

/// Whether connections of a direction come from several sources: outbound ones are all of the workload.
fn has_sources(direction: Direction) -> bool {
    match direction {
        Direction::Inbound | Direction::Gateway => true,
        Direction::Outbound => false,
    }
}

fn bucket(caller: IpAddr) -> usize {
    let mut hasher = DefaultHasher::new();
    caller.hash(&mut hasher);
    usize::try_from(hasher.finish() % CALLERS as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTBOUND: Direction = Direction::Outbound;
    const INBOUND: Direction = Direction::Inbound;

    impl Spread {
        fn open(&self, worker: usize) -> u32 {
            self.workers[worker].0.iter().map(|counts| counts.all.load(Relaxed)).sum()
        }
    }

    fn caller(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    #[test]
    fn wherever_the_kernel_puts_them_connections_are_spread_evenly() {
        let (spread, _handed) = Spread::new(3, 100, 100);
        let reservations: Vec<_> = (0..30).map(|_| spread.choose(1, OUTBOUND, caller(1)).unwrap()).collect();
        assert_eq!([0, 1, 2].map(|worker| spread.open(worker)), [10; 3]);
        assert_eq!(reservations.first().unwrap().worker, 1, "with equals it stays where it is");
        drop(reservations);
        assert_eq!([0, 1, 2].map(|worker| spread.open(worker)), [0; 3]);
    }

    #[test]
    fn each_caller_is_spread_and_each_direction() {
        let (spread, _handed) = Spread::new(2, 100, 100);
        let (busy, other) = (caller(1), caller(2));
        assert_ne!(bucket(busy), bucket(other), "the test needs two that are told apart");
        let mut reservations: Vec<_> = (0..8).map(|_| spread.choose(0, INBOUND, other).unwrap()).collect();
        reservations.retain(|reservation| reservation.worker == 0);
        assert_eq!([spread.open(0), spread.open(1)], [4, 0]);
        let pair = [0, 0].map(|here| spread.choose(here, INBOUND, busy).unwrap());
        assert_eq!(pair.each_ref().map(|reservation| reservation.worker), [1, 0], "not both to the worker with fewer");
        let first = spread.choose(0, OUTBOUND, busy).unwrap();
        assert_eq!(first.worker, 0, "what arrives does not weigh on what leaves");
    }

    #[test]
    fn a_full_worker_gets_nothing_and_full_workers_refuse() {
        let (spread, _handed) = Spread::new(2, 2, 100);
        let mut reservations = Vec::new();
        while let Ok(reservation) = spread.choose(0, INBOUND, caller(1)) {
            reservations.push(reservation);
        }
        assert_eq!(reservations.len(), 4);
        assert_eq!(spread.choose(0, INBOUND, caller(2)).unwrap_err(), Limit::ProxyConnections);
        reservations.retain(|reservation| reservation.worker == 0);
        reservations.extend(spread.choose(0, INBOUND, caller(1)));
        assert_eq!([spread.open(0), spread.open(1)], [2, 1], "the one with room");
    }

    /// (33)
    #[test]
    fn no_source_takes_the_connections_of_others_and_no_direction_those_of_the_other() {
        let (spread, _handed) = Spread::new(2, 4, 3);
        let take = |direction, last| {
            let mut taken = Vec::new();
            loop {
                match spread.choose(0, direction, caller(last)) {
                    Ok(reservation) => taken.push(reservation),
                    Err(limit) => return (taken, limit),
                }
            }
        };
        let (of_one, refused) = take(INBOUND, 1);
        assert_eq!((of_one.len(), refused), (3, Limit::Source));
        let (of_other, refused) = take(INBOUND, 2);
        assert_eq!((of_other.len(), refused), (3, Limit::Source));
        // The workload is the only source on its own side.
        let (of_workload, refused) = take(OUTBOUND, 1);
        assert_eq!((of_workload.len(), refused), (8, Limit::ProxyConnections));
        let (of_third, refused) = take(INBOUND, 3);
        assert_eq!((of_third.len(), refused), (2, Limit::ProxyConnections));
        drop(of_one);
        assert_eq!(take(INBOUND, 1).0.len(), 3);
    }

    #[test]
    fn what_a_worker_that_has_ended_was_to_get_comes_back() {
        let (spread, mut handed) = Spread::new(2, 2, 100);
        handed.truncate(1);
        let _here = spread.choose(0, OUTBOUND, caller(1)).unwrap();
        let reservation = spread.choose(0, OUTBOUND, caller(1)).unwrap();
        assert_eq!(reservation.worker, 1);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let peer = listener.local_addr().unwrap();
        let back = spread.hand(Handed { stream, peer, role: Role::Outbound(None), reservation });
        assert_eq!(back.unwrap_err().peer, peer);
    }
}
