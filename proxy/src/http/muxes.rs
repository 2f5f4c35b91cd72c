//! The HTTP/2 connections of a worker, whose clocks tick once a second.

use std::{
    sync::{Arc, Weak, atomic::AtomicUsize},
    time::Duration,
};

use parking_lot::Mutex;

use super::{http2::Mux, stall::Timeouts};

/// The HTTP/2 connections of a worker; clones share them. A connection that has ended leaves at the next tick.
#[derive(Clone, Debug, Default)]
pub(crate) struct Muxes {
    muxes: Arc<Mutex<Vec<Weak<Mux>>>>,
    /// Bytes of the heads of requests in flight, of all workers.
    pub(crate) heads: Arc<AtomicUsize>,
    /// For bodies that are not read, over HTTP/1 too.
    pub(crate) stall: Timeouts,
    /// How long the caller of an answer that does not come may have closed its sending side, where the application speaks HTTP/2,
    /// which has no such thing; `None`: for ever.
    pub(crate) half_closed: Option<Duration>,
}

impl Muxes {
    /// None yet. `heads`: bytes of the heads of requests in flight, of all workers.
    pub(crate) fn new(heads: Arc<AtomicUsize>, stall: Timeouts, half_closed: Option<Duration>) -> Self {
        Self { muxes: Arc::default(), heads, stall, half_closed }
    }

    /// Adds a connection.
    pub(crate) fn watch(&self, mux: &Arc<Mux>) {
        self.muxes.lock().push(Arc::downgrade(mux));
    }

    /// Moves the clock of every connection; called once a second.
    pub(crate) fn tick(&self) {
        self.muxes.lock().retain(|mux| match mux.upgrade() {
            Some(mux) => {
                mux.tick(self.stall);
                true
            }
            None => false,
        });
    }
}
