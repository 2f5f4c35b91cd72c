//! The connected proxies: what discovery and the agent streams know of each, for the API and for objects' status.
//! Shape: a stream makes its entry with [`ProxyTable::discovery`] or [`ProxyTable::agent`] and holds what it gets; dropped,
//! its part goes away, and with the last part the proxy.
//! Invariant: a late end of an old stream never removes what a newer stream of the same proxy has written.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use jiff::Timestamp;
use parking_lot::Mutex;
use serde::Serialize;
use weft_core::identity::Identity;

use crate::registry::RefusedClaim;

/// Which proxy: who it is by its certificate, and what it calls itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ProxyKey {
    /// By its certificate.
    pub identity: Identity,
    /// `<namespace>/<name>` of the workload for a Weft proxy; the `node.id` of another client.
    pub name: Arc<str>,
}

/// What is known of one proxy.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProxyStatus {
    /// Which proxy.
    pub key: ProxyKey,
    /// Its configuration stream, while there is one.
    pub discovery: Option<DiscoveryStatus>,
    /// Its agent stream, while there is one.
    pub agent: Option<AgentStatus>,
}

/// A configuration stream.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DiscoveryStatus {
    /// Since when.
    pub connected_since: Timestamp,
    /// What the client calls itself: `user_agent_name` and version.
    pub client: String,
    /// How many resources it is subscribed to.
    pub subscriptions: usize,
    /// The last revision whose barrier was sent.
    pub sent_revision: Option<u64>,
    /// The last revision it has acknowledged, which means applied.
    pub applied_revision: Option<u64>,
    /// When it last acknowledged anything.
    pub last_ack: Option<Timestamp>,
    /// Resources that it refused and has not accepted since, by their name; the one that refused a whole message is
    /// there under each name of the message.
    pub nacks: BTreeMap<String, Nack>,
}

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Nack {
    /// The type of the resource.
    pub type_url: String,
    /// What the proxy says, cut to a bounded length by who writes it here.
    pub message: String,
    /// When.
    pub at: Timestamp,
}

/// An agent stream.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentStatus {
    /// Since when.
    pub connected_since: Timestamp,
    /// `sidecar` or `gateway`.
    pub mode: String,
    /// The proxy's version.
    pub version: String,
    /// What its application is.
    pub health: WorkloadHealth,
    /// Why it is not healthy; empty when it is.
    pub reason: String,
    /// Addresses that it asked for and does not have.
    pub refused_addresses: Vec<RefusedClaim>,
    /// When its certificate ends.
    pub certificate_expiry: Option<Timestamp>,
    /// The revision it says is applied.
    pub revision: u64,
    /// The hash it says is applied, lower-case hexadecimal.
    pub revision_hash: String,
    /// The last sign of life.
    pub last_heartbeat: Timestamp,
}

/// What a proxy says of its application.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum WorkloadHealth {
    /// No heartbeat yet.
    Unknown,
    /// It takes new work.
    Healthy,
    /// Its checks fail.
    Unhealthy,
    /// It finishes what it has.
    Draining,
}

/// The connected proxies.
#[derive(Debug, Default)]
pub struct ProxyTable {
    proxies: Mutex<BTreeMap<ProxyKey, Entry>>,
    next: AtomicU64,
    nacks: AtomicU64,
}

#[derive(Debug, Default)]
struct Entry {
    discovery: Option<(u64, DiscoveryStatus)>,
    agent: Option<(u64, AgentStatus)>,
}

/// A configuration stream's part of the table; dropped when the stream ends.
#[derive(Debug)]
pub struct DiscoveryStream {
    table: Arc<ProxyTable>,
    key: ProxyKey,
    number: u64,
}

/// An agent stream's part of the table; dropped when the stream ends.
#[derive(Debug)]
pub struct AgentStream {
    table: Arc<ProxyTable>,
    key: ProxyKey,
    number: u64,
}

impl ProxyTable {
    /// Enters a configuration stream. A second one of the same proxy takes the place of the first.
    pub fn discovery(self: &Arc<Self>, key: ProxyKey, client: String, now: Timestamp) -> DiscoveryStream {
        let status = DiscoveryStatus {
            connected_since: now,
            client,
            subscriptions: 0,
            sent_revision: None,
            applied_revision: None,
            last_ack: None,
            nacks: BTreeMap::new(),
        };
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.proxies.lock().entry(key.clone()).or_default().discovery = Some((number, status));
        DiscoveryStream { table: Arc::clone(self), key, number }
    }

    /// Enters an agent stream. A second one of the same proxy takes the place of the first.
    pub fn agent(self: &Arc<Self>, key: ProxyKey, mode: String, version: String, now: Timestamp) -> AgentStream {
        let status = AgentStatus {
            connected_since: now,
            mode,
            version,
            health: WorkloadHealth::Unknown,
            reason: String::new(),
            refused_addresses: Vec::new(),
            certificate_expiry: None,
            revision: 0,
            revision_hash: String::new(),
            last_heartbeat: now,
        };
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.proxies.lock().entry(key.clone()).or_default().agent = Some((number, status));
        AgentStream { table: Arc::clone(self), key, number }
    }

    /// Every proxy, in the order of identity and name. Cost: a copy.
    pub fn list(&self) -> Vec<ProxyStatus> {
        let proxies = self.proxies.lock();
        proxies
            .iter()
            .map(|(key, entry)| ProxyStatus {
                key: key.clone(),
                discovery: entry.discovery.as_ref().map(|(_, status)| status.clone()),
                agent: entry.agent.as_ref().map(|(_, status)| status.clone()),
            })
            .collect()
    }

    /// How many proxies have a configuration stream.
    pub fn connected(&self) -> usize {
        self.proxies.lock().values().filter(|entry| entry.discovery.is_some()).count()
    }

    /// Every standing refusal: resource name, proxy, refusal.
    pub fn standing_nacks(&self) -> Vec<(String, ProxyKey, Nack)> {
        let proxies = self.proxies.lock();
        let of = |key: &ProxyKey, status: &DiscoveryStatus| -> Vec<_> {
            status.nacks.iter().map(|(name, nack)| (name.clone(), key.clone(), nack.clone())).collect()
        };
        proxies
            .iter()
            .filter_map(|(key, entry)| entry.discovery.as_ref().map(|(_, status)| of(key, status)))
            .flatten()
            .collect()
    }

    /// How many refusals there were since the start.
    pub fn nack_count(&self) -> u64 {
        self.nacks.load(Ordering::Relaxed)
    }

    fn leave(&self, key: &ProxyKey, clear: impl FnOnce(&mut Entry)) {
        let mut proxies = self.proxies.lock();
        if let Some(entry) = proxies.get_mut(key) {
            clear(entry);
            if entry.discovery.is_none() && entry.agent.is_none() {
                proxies.remove(key);
            }
        }
    }
}

impl DiscoveryStream {
    /// Writes what changed; nothing when a newer stream of this proxy is there.
    pub fn update(&self, change: impl FnOnce(&mut DiscoveryStatus)) {
        let mut proxies = self.table.proxies.lock();
        if let Some((number, status)) = proxies.get_mut(&self.key).and_then(|entry| entry.discovery.as_mut())
            && *number == self.number
        {
            change(status);
        }
    }

    /// Writes a refusal of these resources.
    pub fn nack(&self, names: impl IntoIterator<Item = String>, nack: Nack) {
        self.table.nacks.fetch_add(1, Ordering::Relaxed);
        self.update(|status| status.nacks.extend(names.into_iter().map(|name| (name, nack.clone()))));
    }

    /// Writes that these resources were accepted, which ends refusals of them.
    pub fn ack<'a>(&self, names: impl IntoIterator<Item = &'a str>, now: Timestamp) {
        self.update(|status| {
            status.last_ack = Some(now);
            for name in names {
                status.nacks.remove(name);
            }
        });
    }
}

impl AgentStream {
    /// Writes what changed; nothing when a newer stream of this proxy is there.
    pub fn update(&self, change: impl FnOnce(&mut AgentStatus)) {
        let mut proxies = self.table.proxies.lock();
        if let Some((number, status)) = proxies.get_mut(&self.key).and_then(|entry| entry.agent.as_mut())
            && *number == self.number
        {
            change(status);
        }
    }
}

impl Drop for DiscoveryStream {
    fn drop(&mut self) {
        self.table.leave(&self.key, |entry| {
            entry.discovery.take_if(|(number, _)| *number == self.number);
        });
    }
}

impl Drop for AgentStream {
    fn drop(&mut self) {
        self.table.leave(&self.key, |entry| {
            entry.agent.take_if(|(number, _)| *number == self.number);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> ProxyKey {
        ProxyKey {
            identity: Identity::parse("spiffe://weft.local/ns/shop/sa/order").unwrap(),
            name: "shop/order-1".into(),
        }
    }

    #[test]
    fn an_old_streams_end_leaves_the_newer_stream_alone() {
        let table = Arc::new(ProxyTable::default());
        let old = table.discovery(key(), "weft-proxy 0.1.0".into(), Timestamp::UNIX_EPOCH);
        let new = table.discovery(key(), "weft-proxy 0.1.1".into(), Timestamp::UNIX_EPOCH);
        old.update(|status| status.applied_revision = Some(1));
        new.update(|status| status.applied_revision = Some(2));
        drop(old);
        assert_eq!(table.list()[0].discovery.as_ref().unwrap().applied_revision, Some(2));
        let agent = table.agent(key(), "sidecar".into(), "0.1.1".into(), Timestamp::UNIX_EPOCH);
        drop(new);
        assert_eq!((table.connected(), table.list().len()), (0, 1));
        drop(agent);
        assert!(table.list().is_empty());
    }

    #[test]
    fn a_refusal_stands_until_the_resource_is_accepted() {
        let table = Arc::new(ProxyTable::default());
        let stream = table.discovery(key(), String::new(), Timestamp::UNIX_EPOCH);
        let nack = Nack { type_url: "t".into(), message: "bad".into(), at: Timestamp::UNIX_EPOCH };
        stream.nack(["svc/a/b:1".into(), "svc/a/c:1".into()], nack);
        stream.ack(["svc/a/b:1"], Timestamp::UNIX_EPOCH);
        let standing: Vec<_> = table.standing_nacks().into_iter().map(|(name, ..)| name).collect();
        assert_eq!((standing, table.nack_count()), (vec!["svc/a/c:1".to_owned()], 1));
    }
}
