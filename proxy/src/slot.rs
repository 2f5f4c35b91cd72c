//! A place under a limit: connections, and requests that wait for one.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::Relaxed},
};

use weft_core::failure::{Failure, Limit};

/// One of a limited number of places; given back when dropped.
#[derive(Debug)]
pub(crate) struct Slot(Arc<AtomicU32>);

impl Slot {
    /// Takes a place under `limit`. `count`: the places that are taken, over all workers.
    /// Errors: all are taken; `what` names the limit.
    pub(crate) fn take(count: &Arc<AtomicU32>, limit: u32, what: Limit) -> Result<Self, Failure> {
        if count.fetch_add(1, Relaxed) >= limit {
            count.fetch_sub(1, Relaxed);
            return Err(Failure::Overloaded(what));
        }
        Ok(Self(count.clone()))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
