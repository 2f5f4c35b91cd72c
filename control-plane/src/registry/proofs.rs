//! Proofs: how the control plane finds out that an address is a workload's own.
//! An address is proven by the session that comes from it, by a Workload object of the same namespace and service account, or by
//! a probe: a TLS handshake at that address, in which the workload's own identity answers. An address without a proof changes
//! nothing for anybody: it is in no endpoint set, has no listener and holds no claim.
//!
//! # Defaults
//! A claim is probed after 200 ms, then after 500 ms and twice as long each time, at most every 60 s. A proof by a probe is renewed
//! every 10 min, and once more by each new session; only an answer that contradicts it takes it back, silence does not. At most
//! 64 probes at once, 4 of one identity.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, future::BoxFuture, stream};
use tokio::time::Instant;

use super::{RefusedClaim, RegisteredWorkload, Registry, registrations::Registration};

/// Least pause after a probe that proved nothing.
const PAUSE: Duration = Duration::from_millis(500);
/// Longest pause.
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// Age at which a proof by a probe is renewed.
const RENEW: Duration = Duration::from_secs(600);
/// Before the first probe of a claim: a proxy that registers gets its configuration at the same time, and refuses before.
const START: Duration = Duration::from_millis(200);
/// Interval in which claims without a proof are looked for, besides each registration.
const LOOK: Duration = Duration::from_millis(500);
/// Probes at once.
const PROBES: usize = 64;
/// Probes at once of one identity, so that nobody's silent addresses delay the claims of others.
const PROBES_OF_ONE: usize = 4;

/// What a probe found at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The workload's identity answers.
    Proven,
    /// Something else answers, or connections are refused; the text completes "is not proven: ".
    Contradicted(&'static str),
    /// No answer.
    Unknown(&'static str),
}

/// Finds out whether the identity of a workload answers at an address.
pub trait Prover: Send + Sync {
    /// Probes one address.
    fn probe<'a>(&'a self, workload: &'a RegisteredWorkload, address: IpAddr) -> BoxFuture<'a, Finding>;
}

/// What probes of one workload's addresses found.
#[derive(Debug, Default)]
pub(super) struct Proofs(BTreeMap<IpAddr, Proof>);

#[derive(Debug)]
struct Proof {
    proven: bool,
    /// When to probe next.
    due: Instant,
    pause: Duration,
    /// Why the last probe did not prove it.
    reason: Option<&'static str>,
}

impl Proofs {
    /// As if all these addresses were proven, and their proofs due.
    pub(super) fn loaded(addresses: &[IpAddr], now: Instant) -> Self {
        let proof = || Proof { proven: true, due: now, pause: PAUSE, reason: None };
        Self(addresses.iter().map(|address| (*address, proof())).collect())
    }

    /// For the next session of the same workload: its proofs are due again.
    pub(super) fn again(&self, claimed: &[IpAddr], now: Instant) -> Self {
        let proven = self.0.iter().filter(|(address, proof)| proof.proven && claimed.contains(address));
        Self::loaded(&proven.map(|(address, _)| *address).collect::<Vec<_>>(), now)
    }

    pub(super) fn prove(&self, address: IpAddr) -> bool {
        self.0.get(&address).is_some_and(|proof| proof.proven)
    }

    /// An unproven claim as its proxy is told about it; nothing before the third probe, as a proxy that has just started does not
    /// answer the first ones.
    pub(super) fn unproven(&self, address: IpAddr) -> Option<RefusedClaim> {
        let why = self.0.get(&address).filter(|proof| proof.pause > PAUSE * 4)?.reason?;
        let reason = format!(
            "is not proven, so nobody is sent there: this session comes from another address, and {why}; connect from that \
             address, let the control plane reach it, or write a Workload object with it"
        );
        Some(RefusedClaim { address, reason })
    }

    fn is_due(&self, address: IpAddr, now: Instant) -> bool {
        self.0.get(&address).is_none_or(|proof| proof.due <= now)
    }

    fn due(&self, address: IpAddr) -> Option<Instant> {
        self.0.get(&address).map(|proof| proof.due)
    }

    /// Takes a finding in.
    pub(super) fn find(&mut self, address: IpAddr, finding: Finding, now: Instant) {
        let new = Proof { proven: false, due: now, pause: PAUSE, reason: None };
        let proof = self.0.entry(address).or_insert(new);
        match finding {
            Finding::Proven => *proof = Proof { proven: true, due: now + RENEW, pause: PAUSE, reason: None },
            Finding::Unknown(_) if proof.proven => proof.due = now + RENEW,
            Finding::Contradicted(reason) | Finding::Unknown(reason) => {
                let pause = if proof.proven { PAUSE } else { proof.pause };
                *proof =
                    Proof { proven: false, due: now + pause, pause: (pause * 2).min(MAX_PAUSE), reason: Some(reason) };
            }
        }
    }
}

impl Registry {
    /// Probes claimed addresses that nothing else proves; never returns.
    pub async fn prove(&self, prover: &dyn Prover) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = self.claimed.notified() => tokio::time::sleep(START).await,
            }
            let probes = self.probes();
            let found = stream::iter(probes).map(|(workload, address)| async move {
                let finding = prover.probe(&workload, address).await;
                (workload, address, finding)
            });
            let mut found = std::pin::pin!(found.buffer_unordered(PROBES));
            while let Some((workload, address, finding)) = found.next().await {
                self.found(&workload, address, finding);
            }
        }
    }

    /// The probes that are due, those that have waited longest first.
    fn probes(&self) -> Vec<(Arc<RegisteredWorkload>, IpAddr)> {
        let (desired, now) = (self.desired.borrow().clone(), Instant::now());
        let mut inner = self.inner.lock();
        inner.statics.follow(&desired);
        let mut due = Vec::new();
        for registration in inner.registrations.iter() {
            let Registration { workload, claimed, proofs, .. } = registration;
            let wanted = claimed.iter().filter(|address| proofs.is_due(**address, now));
            let wanted = wanted.filter(|address| !inner.proven_otherwise(workload, **address));
            due.extend(wanted.map(|address| (proofs.due(*address), Arc::clone(workload), *address)));
        }
        due.sort_by_key(|(since, ..)| *since);
        let mut of_identity = HashMap::new();
        due.retain(|(_, workload, _)| {
            let count: &mut usize = of_identity.entry(workload.identity.clone()).or_default();
            *count += 1;
            *count <= PROBES_OF_ONE
        });
        due.truncate(PROBES);
        due.into_iter().map(|(_, workload, address)| (workload, address)).collect()
    }

    /// Takes a finding in, unless the workload is another one by now.
    fn found(&self, workload: &RegisteredWorkload, address: IpAddr, finding: Finding) {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        let known = inner.registrations.find(&workload.key);
        if !known.is_some_and(|known| known.workload.identity == workload.identity && known.claimed.contains(&address))
        {
            return;
        }
        if let Some(proofs) = inner.registrations.proofs(&workload.key) {
            proofs.find(address, finding, Instant::now());
        }
        tracing::debug!(workload = %workload.key, %address, ?finding, "a claimed address was probed");
        self.reconsider(inner, &workload.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_proves_nothing_is_made_ever_more_rarely_and_silence_takes_no_proof_back() {
        let (mut proofs, at) = (Proofs::default(), IpAddr::from([10, 0, 0, 1]));
        let start = Instant::now();
        assert!(proofs.is_due(at, start) && proofs.unproven(at).is_none());
        let mut pauses = Vec::new();
        for _ in 0..9 {
            proofs.find(at, Finding::Unknown("nothing answers"), start);
            pauses.push((proofs.due(at).unwrap() - start).as_millis());
            assert_eq!(proofs.unproven(at).is_some(), pauses.len() > 2);
        }
        assert_eq!(pauses, [500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000]);
        assert!(proofs.unproven(at).unwrap().reason.contains("nothing answers"));
        proofs.find(at, Finding::Proven, start);
        proofs.find(at, Finding::Unknown("nothing answers"), start);
        assert!(proofs.prove(at) && proofs.unproven(at).is_none());
        assert_eq!(proofs.due(at), Some(start + RENEW));
        proofs.find(at, Finding::Contradicted("another identity answers there"), start);
        assert!(!proofs.prove(at));
        assert_eq!(proofs.due(at), Some(start + PAUSE));
    }
}
