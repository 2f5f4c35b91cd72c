//! Whose an address is: rules for claims that meet others at the same address and port.
//! A claim is proven when the session that makes it comes from that address.
//!
//! 1. What a person wrote (a Workload object) is only for the same namespace and service account, proven or not: on a
//!    shared host the source address does not tell two workloads apart, and a person's word goes before a machine's.
//! 2. An unproven claim never meets a live registration, nor a silent one of another identity.
//! 3. A proven claim takes the address from whoever is silent or has not proven it; a live and proven one of another
//!    identity keeps it. Two live ones of the same identity may both stand.
//! 4. Only the refused address is refused: a dual-stack workload keeps its other one.

use std::{fmt, net::IpAddr, sync::Arc, time::Duration};

use tokio::time::Instant;
use weft_core::api::{Kind, Object};

use super::{Entry, State};
use crate::state::{Desired, RegisteredWorkload, WorkloadKey};

/// An address that was not given to a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedClaim {
    /// The address.
    pub address: IpAddr,
    /// Who has it, and what to do.
    pub reason: String,
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
    pub(super) fn keeps_name(&self, newcomer: &RegisteredWorkload, source: Option<IpAddr>) -> bool {
        if self.workload.identity == newcomer.identity {
            return false;
        }
        let there = source
            .is_some_and(|source| self.workload.addresses.contains(&source) && newcomer.addresses.contains(&source));
        self.session.is_some() || !(there || self.workload.addresses.is_empty())
    }
}

impl State {
    /// Judges each address of a newcomer. Cost: linear in the registry.
    pub(super) fn judge(
        &self,
        newcomer: &RegisteredWorkload,
        source: Option<IpAddr>,
        desired: &Desired,
        window: Duration,
    ) -> Verdict {
        let mut verdict = Verdict::default();
        let now = Instant::now();
        let others: Vec<&Entry> = self
            .entries
            .values()
            .filter(|entry| entry.workload.key != newcomer.key && same_port(&entry.workload, newcomer))
            .collect();
        for address in &newcomer.addresses {
            let proven = source == Some(*address);
            let mut taken = Vec::new();
            let mut reason = written(newcomer, *address, desired);
            for other in others.iter().filter(|other| other.workload.addresses.contains(address)) {
                let live = other.session.is_some() && now.duration_since(other.last_seen) < window;
                let same = other.workload.identity == newcomer.identity;
                let keeps = match (proven, same) {
                    (true, true) => false,
                    (true, false) => live && other.source == Some(*address),
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

    /// Takes an address from a workload; one without an address left goes.
    pub(super) fn take(&mut self, from: &WorkloadKey, address: IpAddr, by: &WorkloadKey) {
        let Some(entry) = self.entries.get_mut(from) else { return };
        tracing::warn!(workload = %from, %address, %by, "a workload lost an address to one with a better claim");
        let workload = Arc::make_mut(&mut entry.workload);
        workload.addresses.retain(|it| *it != address);
        if workload.addresses.is_empty() {
            self.entries.remove(from);
        }
        self.unwritten.insert(from.clone());
    }
}

/// Why an address is not for a newcomer, because a person wrote down someone else there.
fn written(newcomer: &RegisteredWorkload, address: IpAddr, desired: &Desired) -> Option<String> {
    desired.of(Kind::Workload).find_map(|(key, object)| {
        let Object::Workload(workload) = &**object else { return None };
        let spec = &workload.spec;
        let same = key.namespace == newcomer.key.namespace && spec.service_account() == newcomer.service_account;
        let port = spec.ports.is_empty() || newcomer.ports.iter().any(|port| spec.port(port.port).is_some());
        let at = spec.addresses.iter().any(|it| it.to_canonical() == address);
        (!same && port && at).then(|| {
            format!(
                "is written down for Workload {}/{} (service account {}): change or delete that object, or use its account",
                key.namespace,
                key.name,
                spec.service_account()
            )
        })
    })
}

fn same_port(one: &RegisteredWorkload, two: &RegisteredWorkload) -> bool {
    one.ports.iter().any(|port| two.ports.iter().any(|other| other.port == port.port))
}
