//! How long each identity is proven: by the newest certificate that a peer has shown on any connection. A connection whose own
//! certificate has expired lives on for as long.
//! Shape: handshakes [`Proven::record`], the sweep of the tables asks [`Proven::until`]. Shared by the workers; no request takes its
//! lock.

use std::{collections::HashMap, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;
use weft_core::identity::Identity;

/// Identities that are remembered; beyond it those whose proof ends first are forgotten.
const MOST: usize = 16_384;

/// The identities that were proven.
#[derive(Debug, Default)]
pub(crate) struct Proven(Mutex<HashMap<Identity, Instant>>);

impl Proven {
    /// A peer has shown a certificate that is valid for this time.
    pub(crate) fn record(&self, identity: &Identity, valid_for: Duration) {
        let Some(until) = Instant::now().checked_add(valid_for) else { return };
        let mut proven = self.0.lock();
        if let Some(known) = proven.get_mut(identity) {
            *known = until.max(*known);
            return;
        }
        if proven.len() >= MOST {
            let now = Instant::now();
            proven.retain(|_, until| *until > now);
        }
        if proven.len() >= MOST
            && let Some(first) = proven.iter().min_by_key(|(_, until)| **until).map(|(identity, _)| identity.clone())
        {
            proven.remove(&first);
        }
        proven.insert(identity.clone(), until);
    }

    /// How long the identity is proven from now on, if it still is.
    pub(crate) fn until(&self, identity: &Identity) -> Option<Duration> {
        let left = self.0.lock().get(identity)?.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }
}
