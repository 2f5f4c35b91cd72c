//! The index of registered workloads that compile reads, made of what changed since the last snapshot.

use std::{collections::BTreeMap, sync::Arc};

use weft_core::compile::{Instance, InstancePort, Workloads};

use crate::registry::{Registered, RegisteredWorkload};

/// A workload before and after a change; `None` where it was not there.
pub type WorkloadChange = (Option<Arc<Instance>>, Option<Arc<Instance>>);

/// Registered workloads, indexed.
#[derive(Debug, Default)]
pub struct WorkloadIndex {
    /// `None` before the first snapshot.
    registered: Option<Arc<Registered>>,
    index: Arc<Workloads>,
}

impl WorkloadIndex {
    /// As of the snapshot that was taken in last.
    pub fn index(&self) -> &Arc<Workloads> {
        &self.index
    }

    /// Takes a snapshot in; what changed. Cost: linear in the changes, or in the workloads if the last snapshot is too long ago.
    pub fn advance(&mut self, registered: Arc<Registered>) -> Vec<WorkloadChange> {
        let last = self.registered.replace(Arc::clone(&registered));
        if last.as_ref().is_some_and(|last| Arc::ptr_eq(last, &registered)) {
            return Vec::new();
        }
        let last_version = last.as_ref().map(|last| last.version);
        let last = last.unwrap_or_default();
        let mut index = Workloads::clone(&self.index);
        let mut changed = Vec::new();
        let (old, new) = (&last.workloads, &registered.workloads);
        let names = last_version.and_then(|version| registered.changed_since(version));
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
        self.index = Arc::new(index);
        changed
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
