//! Whose an address is: rules for claims that meet others at the same address and port.
//! A claim is proven when the session that makes it comes from that address.
//!
//! 1. What a person wrote (a Workload object) is only for the same namespace and service account, proven or not: on a
//!    shared host the source address does not tell two workloads apart, and a person's word goes before a machine's.
//! 2. An unproven claim never meets a live registration, nor a silent one of another identity.
//! 3. A proven claim takes the address from whoever is silent or has not proven it; a live and proven one of another
//!    identity keeps it. Two live ones of the same identity may both stand.
//! 4. Only the refused address is refused: a dual-stack workload keeps its other one. It is asked for again with each
//!    heartbeat, so that it comes when its holder goes; what a workload has already is not judged again.

use std::{collections::BTreeMap, fmt, net::IpAddr, sync::Arc, time::Duration};

use tokio::time::Instant;
use weft_core::api::{Kind, Object, Workload};

use super::{RegisteredWorkload, State, WorkloadKey, entries::Entry};
use crate::desired::Desired;

/// An address that was not given to a workload.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct RefusedClaim {
    /// The address.
    pub address: IpAddr,
    /// Who has it, and what to do.
    pub reason: String,
}

/// What people wrote down, by address; made anew when desired state changes.
#[derive(Default)]
pub(super) struct Written {
    of: Option<Arc<Desired>>,
    at: BTreeMap<IpAddr, Vec<Arc<Object>>>,
}

/// What becomes of the claims of one registration.
#[derive(Default)]
pub(super) struct Verdict {
    pub(super) refused: Vec<RefusedClaim>,
    /// What others lose.
    pub(super) taken: Vec<(WorkloadKey, IpAddr)>,
}

impl fmt::Display for RefusedClaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.address, self.reason)
    }
}

impl Entry {
    /// Whether this entry keeps its name from a newcomer: one of another identity that does not call from the entry's
    /// own address.
    pub(super) fn keeps_name(&self, newcomer: &RegisteredWorkload) -> bool {
        if self.workload.identity == newcomer.identity {
            return false;
        }
        let there = newcomer
            .source
            .is_some_and(|source| self.workload.addresses.contains(&source) && newcomer.addresses.contains(&source));
        self.session.is_some() || !(there || self.workload.addresses.is_empty())
    }
}

impl Written {
    /// Is made anew when this is another snapshot than before. Cost: linear in the objects then, else constant.
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

impl State {
    /// Judges claims of a newcomer. Cost: what is at these addresses.
    pub(super) fn judge(&self, newcomer: &RegisteredWorkload, claims: &[IpAddr], window: Duration) -> Verdict {
        let mut verdict = Verdict::default();
        let now = Instant::now();
        for address in claims {
            let proven = newcomer.source == Some(*address);
            let mut taken = Vec::new();
            let mut reason = written(newcomer, self.written.at(*address));
            let others = self.entries.at(*address).filter(|other| other.workload.key != newcomer.key);
            for other in others.filter(|other| same_port(&other.workload, newcomer)) {
                let live = other.session.is_some() && now.duration_since(other.last_seen) < window;
                let same = other.workload.identity == newcomer.identity;
                let keeps = match (proven, same) {
                    (true, true) => false,
                    (true, false) => live && other.workload.source == Some(*address),
                    (false, true) => live,
                    (false, false) => true,
                };
                if keeps {
                    let (who, key) = (&other.workload.identity, &other.workload.key);
                    let why =
                        if proven { "which connects from it too" } else { "and this session does not come from it" };
                    reason.get_or_insert_with(|| {
                        format!("is claimed at the same port by {key} ({who}), {why}: stop that workload or change the address or port")
                    });
                } else if !(live && same) {
                    taken.push((other.workload.key.clone(), *address));
                }
            }
            match reason {
                Some(reason) => verdict.refused.push(RefusedClaim { address: *address, reason }),
                None => verdict.taken.extend(taken),
            }
        }
        verdict
    }

    /// Takes addresses from workloads; one without an address left goes.
    pub(super) fn take(&mut self, taken: Vec<(WorkloadKey, IpAddr)>, by: &WorkloadKey) {
        for (from, address) in taken {
            tracing::warn!(workload = %from, %address, %by, "a workload lost an address to one with a better claim");
            self.entries.change(&from, |workload| workload.addresses.retain(|it| *it != address));
            if self.entries.find(&from).is_some_and(|entry| entry.workload.addresses.is_empty()) {
                self.entries.remove(&from);
            }
        }
    }
}

/// Why an address is not for a newcomer, because a person wrote down someone else there.
fn written<'a>(newcomer: &RegisteredWorkload, mut there: impl Iterator<Item = &'a Workload>) -> Option<String> {
    there.find_map(|workload| {
        let (spec, metadata) = (&workload.spec, &workload.metadata);
        let same = metadata.namespace == newcomer.key.namespace && spec.service_account() == newcomer.service_account;
        let port = spec.ports.is_empty() || newcomer.ports.iter().any(|port| spec.port(port.port).is_some());
        (!same && port).then(|| {
            format!(
                "is written down for Workload {}/{} (service account {}): change or delete that object, or use its account",
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
