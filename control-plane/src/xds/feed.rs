//! The feed of worlds: follows desired state and registered workloads, and publishes what changes.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use weft_core::{
    compile::{Instance, InstancePort, Objects, Workloads, World},
    identity::TrustDomain,
};

use super::{Ads, Change, Limits, WorkloadChange};
use crate::{
    desired::Desired,
    registry::{Registered, RegisteredWorkload},
    state::Mesh,
};

/// The last world and the snapshots it was made of, so that the next one is made of what changed.
#[derive(Debug)]
pub struct Feed {
    mesh: Mesh,
    trust_domain: TrustDomain,
    desired: Arc<Desired>,
    registered: Arc<Registered>,
    world: Arc<World>,
}

impl Feed {
    /// Makes the first world of the current snapshots.
    pub fn new(mut mesh: Mesh, trust_domain: TrustDomain) -> Self {
        let desired = Arc::clone(&mesh.desired.borrow_and_update());
        let registered = Arc::clone(&mesh.registered.borrow_and_update());
        let mut workloads = Workloads::default();
        for workload in registered.workloads.values() {
            workloads.insert(Arc::new(instance(workload)));
        }
        let objects = Objects::new(&desired.objects, trust_domain.clone(), desired.revision);
        let world = Arc::new(World::new(Arc::new(objects), Arc::new(workloads)));
        Self { mesh, trust_domain, desired, registered, world }
    }

    /// The server for it.
    pub fn server(&self, limits: Limits) -> Ads {
        Ads::new(Arc::clone(&self.world), Arc::clone(&self.mesh.proxies), limits)
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
        let workloads = self.take_workloads(registered);
        let objects = (!Arc::ptr_eq(&desired, &self.desired))
            .then(|| Arc::new(Objects::new(&desired.objects, self.trust_domain.clone(), desired.revision)));
        let change = match (&objects, workloads.1.is_empty()) {
            (None, true) => return None,
            (None, false) => Change::Workloads(workloads.1),
            (Some(_), _) => Change::Objects,
        };
        self.desired = desired;
        let objects = objects.unwrap_or_else(|| Arc::clone(self.world.objects()));
        self.world = Arc::new(World::new(objects, workloads.0));
        Some(change)
    }

    /// The index of registered workloads, and the changes. Cost: linear in the changes.
    fn take_workloads(&mut self, registered: Arc<Registered>) -> (Arc<Workloads>, Vec<WorkloadChange>) {
        let mut index = Workloads::clone(self.world.registered());
        let mut changed = Vec::new();
        let (old, new) = (&self.registered.workloads, &registered.workloads);
        let names = registered.changed_since(self.registered.version);
        for key in names.unwrap_or_else(|| old.keys().chain(new.keys()).collect()) {
            let (before, after) = (old.get(key), new.get(key));
            let Some(workload) = after else {
                changed.extend(index.remove(&key.namespace, &key.name).map(|before| (Some(before), None)));
                continue;
            };
            if before.is_some_and(|before| Arc::ptr_eq(before, workload)) {
                continue;
            }
            let after = Arc::new(instance(workload));
            let before = index.insert(Arc::clone(&after));
            if before.as_ref() != Some(&after) {
                changed.push((before, Some(after)));
            }
        }
        self.registered = registered;
        (Arc::new(index), changed)
    }
}

/// A registered workload as input of compile. A gateway belongs to no service, so it has no address and no labels here.
fn instance(workload: &RegisteredWorkload) -> Instance {
    let ports = workload.ports.iter().map(|port| InstancePort {
        name: port.name.clone(),
        port: port.port,
        protocol: port.protocol,
        proxy_port: port.proxy_port,
    });
    Instance {
        namespace: workload.key.namespace.clone(),
        name: workload.key.name.clone(),
        labels: if workload.gateway { BTreeMap::new() } else { workload.labels.clone() },
        identity: Some(workload.identity.clone()),
        addresses: if workload.gateway { Vec::new() } else { workload.addresses.clone() },
        ports: ports.collect(),
        skipped_ports: workload.skipped_ports.clone(),
        weight: workload.weight,
        zone: workload.zone.clone(),
        health: workload.health,
    }
}

#[cfg(test)]
mod tests;
