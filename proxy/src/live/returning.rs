//! Endpoints that have left their cluster's set and may come back: an endpoint that comes and goes within a moment, as a
//! restarted control plane shows it, keeps its connections, and its ejection where that was
//! for answers.
//!
//! # Defaults
//! An endpoint is kept for 2 s, and at most 1,000 of them; beyond, the one that left first goes first.

use std::{collections::VecDeque, net::SocketAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;
use weft_core::identity::Identity;

use crate::upstream::cluster::{ClusterState, EndpointState};

/// How long an endpoint that has left is kept.
const KEPT: Duration = Duration::from_secs(2);
/// Most endpoints that are kept.
const MAX: usize = 1_000;

/// The endpoints that have left, the first one first.
#[derive(Debug, Default)]
pub(super) struct Returning(Mutex<VecDeque<Departed>>);

/// An endpoint that has left its cluster's set. Dropping it closes its connections, so that happens outside the lock.
#[derive(Debug)]
struct Departed {
    cluster: Arc<ClusterState>,
    endpoint: Arc<EndpointState>,
    since: Duration,
}

impl Returning {
    /// Gives back an endpoint of a cluster, by address and identity, if it is kept.
    pub(super) fn take(
        &self,
        cluster: &Arc<ClusterState>,
        key: (SocketAddr, Option<&Identity>),
    ) -> Option<Arc<EndpointState>> {
        let mut departed = self.0.lock();
        let at = departed.iter().position(|one| Arc::ptr_eq(&one.cluster, cluster) && one.endpoint.key() == key)?;
        departed.remove(at).map(|one| one.endpoint)
    }

    /// Keeps endpoints that have just left a cluster.
    pub(super) fn keep<'a>(
        &self,
        cluster: &Arc<ClusterState>,
        endpoints: impl Iterator<Item = &'a Arc<EndpointState>>,
        now: Duration,
    ) {
        let mut departed = self.0.lock();
        let one = |endpoint: &Arc<EndpointState>| Departed {
            cluster: cluster.clone(),
            endpoint: endpoint.clone(),
            since: now,
        };
        departed.extend(endpoints.map(one));
        let beyond = departed.len().saturating_sub(MAX);
        let forgotten: Vec<_> = departed.drain(..beyond).collect();
        drop(departed);
        drop(forgotten);
    }

    /// Forgets those that have been gone for too long.
    pub(super) fn expire(&self, now: Duration) {
        let mut departed = self.0.lock();
        let gone = departed.partition_point(|one| one.since + KEPT <= now);
        let forgotten: Vec<_> = departed.drain(..gone).collect();
        drop(departed);
        drop(forgotten);
    }

    /// Forgets those of one cluster. Returns whether there was any.
    pub(super) fn release(&self, cluster: &Arc<ClusterState>) -> bool {
        let forgotten = {
            let mut departed = self.0.lock();
            let (gone, stay): (VecDeque<_>, _) = departed.drain(..).partition(|one| Arc::ptr_eq(&one.cluster, cluster));
            *departed = stay;
            gone
        };
        !forgotten.is_empty()
    }
}
