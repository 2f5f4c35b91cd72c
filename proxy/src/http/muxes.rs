//! The HTTP/2 connections of a worker, whose clocks tick once a second.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::http2::Mux;

/// The HTTP/2 connections of a worker; clones share them. A connection that has ended leaves at the next tick.
#[derive(Clone, Debug, Default)]
pub(crate) struct Muxes(Arc<Mutex<Vec<Weak<Mux>>>>);

impl Muxes {
    /// Adds a connection.
    pub(crate) fn watch(&self, mux: &Arc<Mux>) {
        self.0.lock().push(Arc::downgrade(mux));
    }

    /// Moves the clock of every connection; called once a second.
    pub(crate) fn tick(&self) {
        self.0.lock().retain(|mux| match mux.upgrade() {
            Some(mux) => {
                mux.tick();
                true
            }
            None => false,
        });
    }
}
