//! Claims: the rules for workloads that claim the same address and port.
//! A claim without a proof (`proofs`) changes nothing for anybody; it waits.
//!
//! 1. An address in a Workload object is only for the same namespace and service account, proven or not: on a shared host
//!    the source address does not tell two workloads apart, and an object takes precedence over a registration.
//! 2. A proven claim takes the address from a registration that is silent, and a session that comes from it from one whose
//!    session does not; else a live one of another identity keeps it. Two live ones of the same identity may both have it.
//! 3. A rejection is for one address: a dual-stack workload keeps its other one. Each heartbeat claims it again, so that the
//!    workload gets it once its holder is gone; an address that a workload has is not decided on again.

use std::{collections::BTreeMap, fmt, net::IpAddr, sync::Arc, time::Duration};

use tokio::time::Instant;
use weft_core::api::{Kind, Object, Workload};

use super::{Inner, RegisteredWorkload, WorkloadKey, proofs::Proofs, registrations::Registration};
use crate::desired::Desired;

/// A claim that was rejected.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct RefusedClaim {
    /// The address.
    pub address: IpAddr,
    /// The holder of the address, and what to do.
    pub reason: String,
}

/// The Workload objects by address, rebuilt when desired state changes.
#[derive(Default)]
pub(super) struct StaticWorkloads {
    of: Option<Arc<Desired>>,
    at: BTreeMap<IpAddr, Vec<Arc<Object>>>,
}

/// The decision on the claims of one registration.
#[derive(Default)]
pub(super) struct Decision {
    pub(super) refused: Vec<RefusedClaim>,
    /// The addresses without a proof.
    pub(super) unproven: Vec<IpAddr>,
    /// The addresses that other workloads lose.
    pub(super) taken: Vec<(WorkloadKey, IpAddr)>,
}

impl fmt::Display for RefusedClaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.address, self.reason)
    }
}

impl Registration {
    /// Whether this registration keeps its name from a newcomer: one of another identity whose session does not come from
    /// an address of this registration that it claims.
    pub(super) fn keeps_name(&self, newcomer: &RegisteredWorkload, claimed: &[IpAddr]) -> bool {
        if self.workload.identity == newcomer.identity {
            return false;
        }
        let there = newcomer
            .source
            .is_some_and(|source| self.workload.addresses.contains(&source) && claimed.contains(&source));
        self.session.is_some() || !(there || self.workload.addresses.is_empty())
    }
}

impl Decision {
    /// The claims that are neither rejected nor without a proof, in their order.
    pub(super) fn granted(&self, claimed: &[IpAddr]) -> Vec<IpAddr> {
        let refused = |address: &IpAddr| self.refused.iter().any(|refused| refused.address == *address);
        claimed.iter().filter(|address| !refused(address) && !self.unproven.contains(address)).copied().collect()
    }
}

impl StaticWorkloads {
    /// Rebuilds the index if the snapshot is another one. Cost: linear in the objects then, else constant.
    pub(super) fn follow(&mut self, desired: &Arc<Desired>) {
        if self.of.as_ref().is_some_and(|known| Arc::ptr_eq(known, desired)) {
            return;
        }
        self.at.clear();
        for (_, object) in desired.of(Kind::Workload) {
            let Object::Workload(workload) = &**object else { continue };
            for address in &workload.spec.addresses {
                self.at.entry(address.to_canonical()).or_default().push(Arc::clone(object));
            }
        }
        self.of = Some(Arc::clone(desired));
    }

    fn at(&self, address: IpAddr) -> impl Iterator<Item = &Workload> {
        let objects = self.at.get(&address).into_iter().flatten();
        objects.filter_map(|object| if let Object::Workload(workload) = &**object { Some(workload) } else { None })
    }
}

impl Inner {
    /// Whether an address is proven without a probe: by the session, or by a Workload object.
    pub(super) fn proven_otherwise(&self, workload: &RegisteredWorkload, address: IpAddr) -> bool {
        workload.source == Some(address) || self.statics.at(address).any(|object| is_of(object, workload))
    }

    /// Decides on claims of a newcomer. Cost: linear in the registrations at these addresses.
    pub(super) fn decide(
        &self,
        newcomer: &RegisteredWorkload,
        claims: &[IpAddr],
        proofs: &Proofs,
        window: Duration,
    ) -> Decision {
        let mut decision = Decision::default();
        let now = Instant::now();
        for address in claims {
            let mut taken = Vec::new();
            let mut reason = statics(newcomer, self.statics.at(*address));
            if reason.is_none() && !proofs.prove(*address) && !self.proven_otherwise(newcomer, *address) {
                decision.unproven.push(*address);
                continue;
            }
            let others = self.registrations.at(*address).filter(|other| other.workload.key != newcomer.key);
            for other in others.filter(|other| same_port(&other.workload, newcomer)) {
                let live = other.session.is_some() && now.duration_since(other.last_seen) < window;
                let same = other.workload.identity == newcomer.identity;
                // A session from the address outdoes any other proof: the probe's may be old.
                let stronger = newcomer.source == Some(*address) && other.workload.source != Some(*address);
                if live && !same && !stronger {
                    let (holder, key) = (&other.workload.identity, &other.workload.key);
                    reason.get_or_insert_with(|| {
                        format!("is claimed at the same port by {key} ({holder}), which is there too: stop that workload or change the address or port")
                    });
                } else if !(live && same) {
                    taken.push((other.workload.key.clone(), *address));
                }
            }
            match reason {
                Some(reason) => decision.refused.push(RefusedClaim { address: *address, reason }),
                None => decision.taken.extend(taken),
            }
        }
        decision
    }

    /// Takes addresses from workloads; removes a workload without an address left.
    pub(super) fn take(&mut self, taken: Vec<(WorkloadKey, IpAddr)>, by: &WorkloadKey) {
        for (from, address) in taken {
            tracing::warn!(workload = %from, %address, %by, "a workload lost an address to a better claim");
            self.registrations.change(&from, |workload| workload.addresses.retain(|it| *it != address));
            if self.registrations.find(&from).is_some_and(|registration| registration.workload.addresses.is_empty()) {
                self.registrations.remove(&from);
            }
        }
    }
}

/// Whether a Workload object is of the namespace and service account of a registration.
fn is_of(object: &Workload, workload: &RegisteredWorkload) -> bool {
    object.metadata.namespace == workload.key.namespace && object.spec.service_account() == workload.service_account
}

/// Rule 1: why an address is not for a newcomer.
fn statics<'a>(newcomer: &RegisteredWorkload, mut there: impl Iterator<Item = &'a Workload>) -> Option<String> {
    there.find_map(|workload| {
        let (spec, metadata) = (&workload.spec, &workload.metadata);
        let same = is_of(workload, newcomer);
        let port = spec.ports.is_empty() || newcomer.ports.iter().any(|port| spec.port(port.port).is_some());
        (!same && port).then(|| {
            format!(
                "is the address of Workload {}/{} (service account {}): change or delete that object, or use its account",
                metadata.namespace,
                metadata.name,
                spec.service_account()
            )
        })
    })
}

/// Whether two workloads have a port of the same number.
pub(super) fn same_port(one: &RegisteredWorkload, two: &RegisteredWorkload) -> bool {
    one.ports.iter().any(|port| two.ports.iter().any(|other| other.port == port.port))
}
