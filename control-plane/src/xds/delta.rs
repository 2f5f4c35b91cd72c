//! The incremental variant on one stream: nonces, ACK and NACK, and the revision barrier, on top of [`Subscriptions`].
//! Shape: requests in; [`Session::collect`] decides the messages out. No task, no socket; calls on one [`Cache`] lock.
//! Spec: xDS transport protocol, incremental; the numbered rules are those of the head of `xds.rs`.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use weft_core::{identity::Identity, names::named_in, wire::REVISION_NAME};
use weft_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};

use super::{
    Limits,
    cache::Cache,
    client::{Client, ClientError},
    content::{self, Kind, revision_type},
    messages::{self, Outgoing},
    subscriptions::{Request, Subscriptions},
};
use crate::quota::{QuotaError, Share};

/// Messages in flight whose ACK or NACK can still be told apart; the oldest is evicted beyond it.
const MAX_IN_FLIGHT: usize = 1024;
/// Longest reason of a NACK that is kept, in characters.
const MAX_REASON: usize = 2000;

/// The protocol's state of one stream.
#[derive(Debug)]
pub(super) struct Session {
    peer: Identity,
    names: Share,
    limits: Limits,
    /// `None` before the first request, which has the client's node.
    subscriptions: Option<Subscriptions>,
    barrier: Option<Barrier>,
    nonce: u64,
    in_flight: VecDeque<InFlight>,
}

/// The client subscribes to the revision barrier.
#[derive(Debug, Default)]
struct Barrier {
    /// Number and hash that were last sent.
    sent: Option<(u64, [u8; 32])>,
    /// To be sent even if number and hash are the same.
    due: bool,
}

/// A message that has neither an ACK nor a NACK yet.
#[derive(Debug)]
struct InFlight {
    nonce: u64,
    type_url: &'static str,
    names: Vec<Arc<str>>,
    /// The number of the barrier, if it is one.
    revision: Option<u64>,
}

/// What a request says about a message that was sent before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// ACK of a barrier: the client applied this revision.
    Applied(u64),
    /// ACK of a message with these resources.
    Ack(Vec<Arc<str>>),
    /// NACK: the resources that it names, or all of the message if it names none, and the client's reason.
    Nack { type_url: &'static str, names: Vec<Arc<str>>, reason: String },
}

/// Why a stream is ended.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SessionError {
    #[error("the first request has no node")]
    NoNode,
    #[error("invalid node")]
    Client(#[from] ClientError),
    #[error("more than {0} names are subscribed to on one stream")]
    TooManyNames(usize),
    #[error("names of all streams")]
    Quota(#[from] QuotaError),
}

impl Session {
    /// The session of a client. `names`: of its identity by its certificate.
    pub(super) fn new(names: Share, limits: Limits) -> Self {
        Self {
            peer: names.identity().clone(),
            names,
            limits,
            subscriptions: None,
            barrier: None,
            nonce: 0,
            in_flight: VecDeque::new(),
        }
    }

    /// The client; `None` before its first request.
    pub(super) fn client(&self) -> Option<&Client> {
        self.subscriptions.as_ref().map(Subscriptions::client)
    }

    /// The client's identity by its certificate.
    pub(super) fn peer(&self) -> &Identity {
        &self.peer
    }

    /// The number of names that the client subscribes to or needs.
    pub(super) fn names(&self) -> usize {
        self.subscriptions.as_ref().map_or(0, Subscriptions::names)
    }

    /// The gateways that the client serves, by the names of their listeners.
    pub(super) fn gateways(&self) -> BTreeSet<Arc<str>> {
        self.subscriptions.as_ref().map(Subscriptions::gateways).unwrap_or_default()
    }

    /// The number of the last barrier that was sent.
    pub(super) fn revision(&self) -> Option<u64> {
        self.barrier.as_ref()?.sent.map(|(number, _)| number)
    }

    /// Takes one request in. Nothing is sent before [`Session::collect`].
    pub(super) fn request(&mut self, request: DeltaDiscoveryRequest) -> Result<Option<Reply>, SessionError> {
        let reply = self.reply(&request);
        let subscriptions = match &mut self.subscriptions {
            Some(subscriptions) => subscriptions,
            none => {
                let node = request.node.as_ref().ok_or(SessionError::NoNode)?;
                none.insert(Subscriptions::new(Client::new(node, &self.peer)?, self.peer.clone()))
            }
        };
        subscriptions.mark_dirty();
        if request.type_url == revision_type() {
            let names = |names: &[String]| names.iter().any(|name| name == REVISION_NAME || name == "*");
            if names(&request.resource_names_subscribe) {
                self.barrier.get_or_insert_default().due = true;
            }
            if names(&request.resource_names_unsubscribe) {
                self.barrier = None;
            }
            subscriptions.send_whole_trees(self.barrier.is_some());
        } else if let Some(kind) = Kind::parse(&request.type_url) {
            let request = Request {
                subscribe: request.resource_names_subscribe,
                unsubscribe: request.resource_names_unsubscribe,
                held: request.initial_resource_versions,
            };
            subscriptions.request(kind, request);
            if subscriptions.requested() > self.limits.names {
                return Err(SessionError::TooManyNames(self.limits.names));
            }
            self.names.set(subscriptions.requested())?;
        } else {
            subscriptions.request_unknown(&request.type_url, request.resource_names_subscribe);
        }
        Ok(reply)
    }

    /// Pairs a request with the message in flight that has its nonce; a stale nonce pairs with nothing.
    fn reply(&mut self, request: &DeltaDiscoveryRequest) -> Option<Reply> {
        let nonce: u64 = request.response_nonce.parse().ok()?;
        let at = self.in_flight.iter().position(|sent| sent.nonce == nonce)?;
        let InFlight { type_url, names, revision, .. } = self.in_flight.remove(at)?;
        Some(match (&request.error_detail, revision) {
            (Some(error), _) => {
                let reason: String = error.message.chars().take(MAX_REASON).collect();
                // A NACK is for the whole message; its text tells which resources are meant.
                let texts: BTreeSet<&str> = named_in(&reason).collect();
                let named: Vec<_> = names.iter().filter(|name| texts.contains(name.as_ref())).cloned().collect();
                Reply::Nack { type_url, names: if named.is_empty() { names } else { named }, reason }
            }
            (None, Some(number)) => Reply::Applied(number),
            (None, None) => Reply::Ack(names),
        })
    }

    /// Whether there can be something to send.
    pub(super) fn concerned(&mut self, cache: &Cache) -> bool {
        self.subscriptions.as_mut().is_some_and(|subscriptions| subscriptions.concerned(cache))
    }

    /// The messages that bring the client to the cache's state, in the order in which they have to be sent.
    /// Cost: linear in the names that this client holds.
    pub(super) fn collect(&mut self, cache: &mut Cache) -> Vec<Outgoing> {
        let Some(subscriptions) = &mut self.subscriptions else { return Vec::new() };
        let due = subscriptions.collect(cache);
        if let Some(barrier) = &mut self.barrier {
            // Even if the hash is that of the last barrier: a resource was unsubscribed and subscribed to again within one
            // batch, and the client has staged it.
            barrier.due |= due.is_staged();
        }
        let mut out: Vec<Outgoing> = Vec::new();
        for (type_url, names, mut outgoing) in messages::build(due) {
            outgoing.message.nonce = self.next_nonce(type_url, names, None);
            out.push(outgoing);
        }
        out.extend(self.barrier_message(cache).map(Outgoing::from));
        out
    }

    fn barrier_message(&mut self, cache: &Cache) -> Option<DeltaDiscoveryResponse> {
        let barrier = self.barrier.as_mut()?;
        let (number, hash) = (cache.world().revision(), self.subscriptions.as_ref()?.hash());
        if !std::mem::take(&mut barrier.due) && barrier.sent == Some((number, hash)) {
            return None;
        }
        barrier.sent = Some((number, hash));
        let nonce = self.next_nonce(revision_type(), vec![REVISION_NAME.into()], Some(number));
        Some(DeltaDiscoveryResponse {
            type_url: revision_type().into(),
            resources: vec![content::revision(number, hash).to_resource()],
            nonce,
            ..DeltaDiscoveryResponse::default()
        })
    }

    /// The nonce of a message that is in flight from now on.
    fn next_nonce(&mut self, type_url: &'static str, names: Vec<Arc<str>>, revision: Option<u64>) -> String {
        self.nonce += 1;
        self.in_flight.push_back(InFlight { nonce: self.nonce, type_url, names, revision });
        if self.in_flight.len() > MAX_IN_FLIGHT {
            self.in_flight.pop_front();
        }
        self.nonce.to_string()
    }
}
