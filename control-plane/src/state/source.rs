//! Sources of the mesh's state: rooms that publish snapshots of a part of it.

use std::sync::Arc;

use tokio::sync::watch;

use crate::{
    desired::{Desired, DesiredState},
    registry::{Registered, Registry},
};

/// A part of the mesh's state that changes on its own: the objects that users apply, the workloads that register.
pub trait Source {
    /// The part as it is at one moment.
    type Snapshot;

    /// The newest snapshot, and a wake-up for every later one. A slow reader skips snapshots, never the newest.
    fn watch(&self) -> watch::Receiver<Arc<Self::Snapshot>>;
}

impl Source for DesiredState {
    type Snapshot = Desired;

    fn watch(&self) -> watch::Receiver<Arc<Desired>> {
        self.watch()
    }
}

impl Source for Registry {
    type Snapshot = Registered;

    fn watch(&self) -> watch::Receiver<Arc<Registered>> {
        self.watch()
    }
}

/// What a test publishes itself.
#[cfg(test)]
impl<T> Source for watch::Sender<Arc<T>> {
    type Snapshot = T;

    fn watch(&self) -> watch::Receiver<Arc<T>> {
        self.subscribe()
    }
}
