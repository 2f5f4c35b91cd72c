//! The feed of worlds: follows desired state and registered workloads, and publishes what changes.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use weft_core::{
    compile::{Objects, World},
    identity::TrustDomain,
};

use super::{Ads, Change, Limits};
use crate::{
    desired::Desired,
    state::{Mesh, WorkloadIndex},
    store::Origin,
};

/// The last world and the snapshots it was made of, so that the next one is made of what changed.
#[derive(Debug)]
pub struct Feed {
    mesh: Mesh,
    trust_domain: TrustDomain,
    desired: Arc<Desired>,
    workloads: WorkloadIndex,
    world: Arc<World>,
}

impl Feed {
    /// Makes the first world of the current snapshots.
    pub fn new(mut mesh: Mesh, trust_domain: TrustDomain) -> Self {
        let desired = Arc::clone(&mesh.desired.borrow_and_update());
        let mut workloads = WorkloadIndex::default();
        let registered = Arc::clone(&mesh.registered.borrow_and_update());
        workloads.advance(registered);
        let objects = Objects::new(&desired.objects, trust_domain.clone(), desired.revision);
        let world = Arc::new(World::new(Arc::new(objects), Arc::clone(workloads.index())));
        Self { mesh, trust_domain, desired, workloads, world }
    }

    /// The server for it. `origin`: what it tells proxies of where its revisions come from.
    pub fn server(&self, limits: Limits, origin: Option<Origin>) -> Ads {
        Ads::new(Arc::clone(&self.world), Arc::clone(&self.mesh.proxies), limits, origin)
    }

    /// Publishes every change until `stop`, or until a source ends; then closes the server.
    /// A change that comes `interval` or more after the last publication began is published at once. Changes that come earlier,
    /// or during a publication, are published together: every publication, whatever its content, costs every proxy CPU time on
    /// the machines that serve the workloads.
    pub async fn run(mut self, ads: Ads, interval: Duration, stop: CancellationToken) {
        self.follow(&ads, interval, stop).await;
        ads.close();
    }

    async fn follow(&mut self, ads: &Ads, interval: Duration, stop: CancellationToken) {
        let mut next = Instant::now();
        loop {
            let changed = tokio::select! {
                () = stop.cancelled() => return,
                changed = self.mesh.desired.changed() => changed,
                changed = self.mesh.registered.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep_until(next) => {}
            }
            if let Some(change) = self.advance() {
                next = Instant::now() + interval;
                let resources = ads.publish(Arc::clone(&self.world), change).await;
                tracing::debug!(revision = self.world.revision(), resources, "published a change");
            }
        }
    }

    /// Takes the newest snapshots in; `None` if they change nothing.
    fn advance(&mut self) -> Option<Change> {
        let desired = Arc::clone(&self.mesh.desired.borrow_and_update());
        let registered = Arc::clone(&self.mesh.registered.borrow_and_update());
        let changed = self.workloads.advance(registered);
        let objects = (!Arc::ptr_eq(&desired, &self.desired))
            .then(|| Arc::new(Objects::new(&desired.objects, self.trust_domain.clone(), desired.revision)));
        let change = match (&objects, changed.is_empty()) {
            (None, true) => return None,
            (None, false) => Change::Workloads(changed),
            (Some(_), _) => Change::Objects,
        };
        self.desired = desired;
        let objects = objects.unwrap_or_else(|| Arc::clone(self.world.objects()));
        self.world = Arc::new(World::new(objects, Arc::clone(self.workloads.index())));
        Some(change)
    }
}

#[cfg(test)]
mod tests;
