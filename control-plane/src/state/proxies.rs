//! The connected proxies: the state of their discovery and agent streams, for the API and for the status of objects.
//! Shape: a stream adds its entry with [`ProxyTable::discovery`] or [`ProxyTable::agent`] and holds the returned value; when
//! that is dropped, the entry is removed. A proxy without an entry that has not deregistered is shown as lost.
//!
//! # Defaults
//! A lost proxy is shown for an hour; at most 10,000 of them, beyond which the one that was lost first is forgotten.
//! Invariant: a late end of an old stream never removes the entry of a newer stream of the same proxy.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use serde::Serialize;
use weft_core::{api::proxy_config::ProxyMode, compile::Requester, identity::Identity};

use crate::registry::RefusedClaim;

/// A proxy: its identity by the certificate, and its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ProxyKey {
    /// By its certificate.
    pub identity: Identity,
    /// `<namespace>/<name>` of the workload for a Weft proxy; the `node.id` of another client.
    pub name: Arc<str>,
}

/// The state of one proxy.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProxyStatus {
    /// The proxy.
    pub key: ProxyKey,
    /// Its configuration stream, while there is one.
    pub discovery: Option<DiscoveryStatus>,
    /// Its agent stream, while there is one.
    pub agent: Option<AgentStatus>,
    /// There is neither, and it has not deregistered.
    pub lost: Option<Lost>,
}

/// A proxy whose streams have ended without a deregistration.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Lost {
    /// When the last one ended.
    pub since: Timestamp,
    /// The proxy's version, or the name that another client gave itself.
    pub version: String,
    /// When its certificate expires, as it last said.
    pub certificate_expiry: Option<Timestamp>,
}

/// A configuration stream.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DiscoveryStatus {
    /// When it was opened.
    pub connected_since: Timestamp,
    /// `user_agent_name` and version of the client.
    pub client: String,
    /// Number of subscribed resources.
    pub subscriptions: usize,
    /// The last revision whose barrier was sent.
    pub sent_revision: Option<u64>,
    /// The last revision with an ACK, which means applied.
    pub applied_revision: Option<u64>,
    /// When the last ACK came.
    pub last_ack: Option<Timestamp>,
    /// The listeners of the gateways that it serves.
    pub gateways: BTreeSet<Arc<str>>,
    /// What its own resources are rendered for; `None` before its first request.
    #[serde(skip)]
    pub requester: Option<Arc<Requester>>,
    /// NACKs by resource name, until an ACK of the resource; a NACK of a whole message is there under each name in it.
    pub nacks: BTreeMap<String, Nack>,
}

/// A rejection of a resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Nack {
    /// The type of the resource.
    pub type_url: String,
    /// The proxy's reason, cut to a bounded length by the caller.
    pub message: String,
    /// When it came.
    pub at: Timestamp,
}

/// An agent stream.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentStatus {
    /// When it was opened.
    pub connected_since: Timestamp,
    /// `sidecar` or `gateway`.
    pub mode: ProxyMode,
    /// Where its session comes from.
    pub address: Option<IpAddr>,
    /// The proxy's version.
    pub version: String,
    /// The health of its application.
    pub health: WorkloadHealth,
    /// Why it is not healthy; empty if it is.
    pub reason: String,
    /// Addresses that it claims and does not have.
    pub refused_addresses: Vec<RefusedClaim>,
    /// When its certificate expires.
    pub certificate_expiry: Option<Timestamp>,
    /// The revision that it reports as applied.
    pub revision: u64,
    /// The hash that it reports as applied, lower-case hexadecimal.
    pub revision_hash: String,
    /// When the last heartbeat came.
    pub last_heartbeat: Timestamp,
}

/// The health of an application, as its proxy reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum WorkloadHealth {
    /// No heartbeat yet.
    Unknown,
    /// It accepts new work.
    Healthy,
    /// Its checks fail.
    Unhealthy,
    /// It completes the work in flight.
    Draining,
}

/// How long a lost proxy is shown.
const LOST: SignedDuration = SignedDuration::from_hours(1);
/// Most lost proxies that are shown.
const MAX_LOST: usize = 10_000;

/// The connected proxies, and the lost ones.
#[derive(Debug, Default)]
pub struct ProxyTable {
    proxies: Mutex<BTreeMap<ProxyKey, Streams>>,
    /// The lost ones, the first one first. One that came back, or was lost again, is in here until its time is over.
    lost: Mutex<VecDeque<(Timestamp, ProxyKey)>>,
    next: AtomicU64,
    nacks: AtomicU64,
}

#[derive(Debug, Default)]
struct Streams {
    discovery: Option<(u64, DiscoveryStatus)>,
    agent: Option<(u64, AgentStatus)>,
    /// When the last one ended.
    lost: Option<Timestamp>,
    /// What those that have ended said of the proxy's version, and of the end of its certificate.
    version: String,
    certificate_expiry: Option<Timestamp>,
    /// It has deregistered: its end is no loss.
    left: bool,
}

/// A configuration stream's entry in the table; dropped when the stream ends.
#[derive(Debug)]
pub struct DiscoveryStream {
    table: Arc<ProxyTable>,
    key: ProxyKey,
    number: u64,
}

/// An agent stream's entry in the table; dropped when the stream ends.
#[derive(Debug)]
pub struct AgentStream {
    table: Arc<ProxyTable>,
    key: ProxyKey,
    number: u64,
}

impl ProxyTable {
    /// Adds a configuration stream. A second one of the same proxy replaces the first.
    pub fn discovery(self: &Arc<Self>, key: ProxyKey, client: String, now: Timestamp) -> DiscoveryStream {
        let status = DiscoveryStatus {
            connected_since: now,
            client,
            subscriptions: 0,
            sent_revision: None,
            applied_revision: None,
            last_ack: None,
            gateways: BTreeSet::new(),
            requester: None,
            nacks: BTreeMap::new(),
        };
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.proxies.lock().entry(key.clone()).or_default().discovery = Some((number, status));
        self.found(&key);
        DiscoveryStream { table: Arc::clone(self), key, number }
    }

    /// Adds an agent stream. A second one of the same proxy replaces the first.
    pub fn agent(self: &Arc<Self>, key: ProxyKey, mode: ProxyMode, version: String, now: Timestamp) -> AgentStream {
        let status = AgentStatus {
            connected_since: now,
            mode,
            address: None,
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
        self.found(&key);
        AgentStream { table: Arc::clone(self), key, number }
    }

    /// Every proxy, in the order of identity and name. Cost: a copy.
    pub fn list(&self) -> Vec<ProxyStatus> {
        self.forget(Timestamp::now());
        let proxies = self.proxies.lock();
        proxies
            .iter()
            .map(|(key, streams)| ProxyStatus {
                key: key.clone(),
                discovery: streams.discovery.as_ref().map(|(_, status)| status.clone()),
                agent: streams.agent.as_ref().map(|(_, status)| status.clone()),
                lost: streams.lost.map(|since| Lost {
                    since,
                    version: streams.version.clone(),
                    certificate_expiry: streams.certificate_expiry,
                }),
            })
            .collect()
    }

    /// Number of proxies with a configuration stream.
    pub fn connected(&self) -> usize {
        self.proxies.lock().values().filter(|streams| streams.discovery.is_some()).count()
    }

    /// Every NACK without a later ACK: resource name, proxy, NACK.
    pub fn standing_nacks(&self) -> Vec<(String, ProxyKey, Nack)> {
        let proxies = self.proxies.lock();
        let of = |key: &ProxyKey, status: &DiscoveryStatus| -> Vec<_> {
            status.nacks.iter().map(|(name, nack)| (name.clone(), key.clone(), nack.clone())).collect()
        };
        proxies
            .iter()
            .filter_map(|(key, streams)| streams.discovery.as_ref().map(|(_, status)| of(key, status)))
            .flatten()
            .collect()
    }

    /// Number of NACKs since the start.
    pub fn nack_count(&self) -> u64 {
        self.nacks.load(Ordering::Relaxed)
    }

    /// A proxy is not lost, or not any more.
    fn found(&self, key: &ProxyKey) {
        if let Some(streams) = self.proxies.lock().get_mut(key) {
            (streams.lost, streams.left) = (None, false);
        }
    }

    /// Ends a stream. The last one of a proxy that has not deregistered leaves it lost.
    fn leave(&self, key: &ProxyKey, now: Timestamp, clear: impl FnOnce(&mut Streams)) {
        {
            let mut proxies = self.proxies.lock();
            let Some(streams) = proxies.get_mut(key) else { return };
            clear(streams);
            if streams.discovery.is_some() || streams.agent.is_some() || streams.lost.is_some() {
                return;
            }
            if streams.left {
                proxies.remove(key);
                return;
            }
            streams.lost = Some(now);
        }
        self.lost.lock().push_back((now, key.clone()));
        self.forget(now);
    }

    /// Forgets proxies that were lost for too long, and the first of too many.
    fn forget(&self, now: Timestamp) {
        let mut lost = self.lost.lock();
        while lost.len() > MAX_LOST || lost.front().is_some_and(|(since, _)| now.duration_since(*since) >= LOST) {
            let Some((since, key)) = lost.pop_front() else { return };
            let mut proxies = self.proxies.lock();
            if proxies.get(&key).is_some_and(|streams| streams.lost == Some(since)) {
                proxies.remove(&key);
            }
        }
    }
}

impl DiscoveryStream {
    /// Changes the entry, unless a newer stream of this proxy has replaced it.
    pub fn update(&self, change: impl FnOnce(&mut DiscoveryStatus)) {
        let mut proxies = self.table.proxies.lock();
        if let Some((number, status)) = proxies.get_mut(&self.key).and_then(|streams| streams.discovery.as_mut())
            && *number == self.number
        {
            change(status);
        }
    }

    /// Records a NACK of these resources.
    pub fn nack(&self, names: impl IntoIterator<Item = String>, nack: Nack) {
        self.table.nacks.fetch_add(1, Ordering::Relaxed);
        self.update(|status| status.nacks.extend(names.into_iter().map(|name| (name, nack.clone()))));
    }

    /// Records an ACK of these resources, which ends NACKs of them.
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
    /// The proxy has deregistered: it is not lost when its streams end.
    pub fn deregistered(self) {
        if let Some(streams) = self.table.proxies.lock().get_mut(&self.key) {
            streams.left = true;
        }
    }

    /// Changes the entry, unless a newer stream of this proxy has replaced it.
    pub fn update(&self, change: impl FnOnce(&mut AgentStatus)) {
        let mut proxies = self.table.proxies.lock();
        if let Some((number, status)) = proxies.get_mut(&self.key).and_then(|streams| streams.agent.as_mut())
            && *number == self.number
        {
            change(status);
        }
    }
}

impl Drop for DiscoveryStream {
    fn drop(&mut self) {
        self.table.leave(&self.key, Timestamp::now(), |streams| {
            let ended = streams.discovery.take_if(|(number, _)| *number == self.number);
            if let Some((_, status)) = ended.filter(|_| streams.version.is_empty()) {
                streams.version = status.client;
            }
        });
    }
}

impl Drop for AgentStream {
    fn drop(&mut self) {
        self.table.leave(&self.key, Timestamp::now(), |streams| {
            if let Some((_, status)) = streams.agent.take_if(|(number, _)| *number == self.number) {
                (streams.version, streams.certificate_expiry) = (status.version, status.certificate_expiry);
            }
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
        let agent = table.agent(key(), ProxyMode::Sidecar, "0.1.1".into(), Timestamp::UNIX_EPOCH);
        drop(new);
        assert_eq!((table.connected(), table.list().len()), (0, 1));
        agent.deregistered();
        assert!(table.list().is_empty());
    }

    /// (19)
    #[test]
    fn a_proxy_that_goes_without_a_word_is_lost_for_an_hour() {
        let table = Arc::new(ProxyTable::default());
        let discovery = table.discovery(key(), "weft-proxy 0.1.0".into(), Timestamp::UNIX_EPOCH);
        let agent = table.agent(key(), ProxyMode::Sidecar, "0.1.0".into(), Timestamp::UNIX_EPOCH);
        drop(agent);
        assert!(table.list()[0].lost.is_none(), "one stream is left");
        drop(discovery);
        let lost = || table.list().first().map(|proxy| proxy.lost.clone().unwrap());
        assert_eq!((lost().unwrap().version.as_str(), table.connected()), ("0.1.0", 0));
        let since = lost().unwrap().since;
        table.forget(since + SignedDuration::from_mins(59));
        assert!(lost().is_some());
        // It is back, and lost again: its hour begins anew.
        drop(table.discovery(key(), String::new(), Timestamp::UNIX_EPOCH));
        let again = lost().unwrap().since;
        table.forget(since + LOST);
        assert!(again == since || lost().is_some());
        table.forget(again + LOST);
        assert!(table.list().is_empty());
    }

    /// (19)
    #[test]
    fn lost_proxies_are_bounded() {
        let table = Arc::new(ProxyTable::default());
        for number in 0..MAX_LOST + 5 {
            let key = ProxyKey { name: format!("shop/p{number}").into(), ..key() };
            drop(table.discovery(key, String::new(), Timestamp::UNIX_EPOCH));
        }
        let all = table.list();
        assert_eq!(all.len(), MAX_LOST);
        assert!(!all.iter().any(|proxy| &*proxy.key.name == "shop/p0"));
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
