//! The places of a listener: how many connections it holds, and which one gives way when there are too many.
//! A listener always accepts. When all places are taken, the oldest connection without a certificate and without a request in
//! flight is closed; if there is none, the new one is. Some places are kept for this machine, so that its own tools and probes
//! get in whatever happens outside.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// Places for connections from loopback only, besides the others.
pub(super) const RESERVE: usize = 16;
/// Time for a connection that gives way to end.
const GONE: Duration = Duration::from_secs(1);

/// The places of one listener.
pub(super) struct Places {
    all: Arc<Semaphore>,
    reserve: Arc<Semaphore>,
    /// The connections without a certificate, the oldest first.
    anonymous: Mutex<(u64, BTreeMap<u64, Arc<Visitor>>)>,
}

/// What is known of a connection that may have to give way.
#[derive(Default)]
pub(super) struct Visitor {
    /// It has to give way.
    pub(super) leave: CancellationToken,
    /// Requests in flight.
    busy: AtomicUsize,
    /// It has one of the places for loopback.
    reserved: bool,
}

/// One place; free again when dropped.
pub(super) struct Place {
    places: Arc<Places>,
    number: u64,
    pub(super) visitor: Arc<Visitor>,
    _permit: OwnedSemaphorePermit,
}

/// A request in flight.
pub(super) struct Busy(Arc<Visitor>);

impl Places {
    pub(super) fn new(connections: usize) -> Arc<Self> {
        Arc::new(Self {
            all: Arc::new(Semaphore::new(connections)),
            reserve: Arc::new(Semaphore::new(RESERVE)),
            anonymous: Mutex::default(),
        })
    }

    /// A place for a new connection, without a certificate so far; `None` if nothing gives way.
    pub(super) async fn take(self: &Arc<Self>, peer: SocketAddr) -> Option<Place> {
        let local = peer.ip().to_canonical().is_loopback();
        let reserved = || self.reserve.clone().try_acquire_owned().ok().filter(|_| local);
        let free = self.all.clone().try_acquire_owned().ok().map(|permit| (permit, false));
        let (permit, reserved) = match free.or_else(|| reserved().map(|permit| (permit, true))) {
            Some(taken) => taken,
            None => {
                let oldest = self.oldest(local)?;
                oldest.leave.cancel();
                let freed = if oldest.reserved { &self.reserve } else { &self.all };
                (timeout(GONE, freed.clone().acquire_owned()).await.ok()?.ok()?, oldest.reserved)
            }
        };
        let visitor = Arc::new(Visitor { reserved, ..Visitor::default() });
        let number = {
            let (next, all) = &mut *self.anonymous.lock();
            *next += 1;
            all.insert(*next, Arc::clone(&visitor));
            *next
        };
        Some(Place { places: Arc::clone(self), number, visitor, _permit: permit })
    }

    /// The oldest connection that may give way; it is no longer one. Those in the places for loopback come last, and give way to
    /// loopback only.
    fn oldest(&self, local: bool) -> Option<Arc<Visitor>> {
        let (_, all) = &mut *self.anonymous.lock();
        let idle = |reserved| all.iter().find(|(_, it)| it.reserved == reserved && it.busy.load(Relaxed) == 0);
        let number = *idle(false).or_else(|| idle(true).filter(|_| local))?.0;
        all.remove(&number)
    }
}

impl Place {
    /// It has shown a certificate: it never has to give way.
    pub(super) fn known(&self) {
        self.places.anonymous.lock().1.remove(&self.number);
    }
}

impl Visitor {
    pub(super) fn busy(self: &Arc<Self>) -> Busy {
        self.busy.fetch_add(1, Relaxed);
        Busy(Arc::clone(self))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.known();
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Relaxed);
    }
}
