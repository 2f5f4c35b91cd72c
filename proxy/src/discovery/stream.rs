//! One stream, from the first request to its end.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    convert::Infallible,
    net::SocketAddr,
    pin::pin,
    sync::atomic::Ordering::Relaxed,
    time::Duration,
};

use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval_at, sleep, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use weft_core::{
    names::ListenerName,
    snapshot::Resources,
    wire::{REVISION_NAME, ResourceType, Revision},
};
use weft_proto::{
    envoy::{
        config::core::v3::Node,
        service::discovery::v3::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse,
            aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
        },
    },
    google::rpc,
};

use super::{
    Discovery, StreamError,
    held::{self, Taken},
    origin::Origin,
    subscriptions::Added,
};
use crate::status::Applied;

/// Longest wait for a stream to open.
const OPEN: Duration = Duration::from_secs(10);
/// Longest wait for its first answer.
const FIRST_ANSWER: Duration = Duration::from_secs(15);
/// A server of ours sends its barrier within this time of its first answer; another one never does.
const BARRIER: Duration = Duration::from_secs(1);
/// How often unused subscriptions are looked for.
const SWEEP: Duration = Duration::from_secs(30);
/// Requests that wait to be sent.
const REQUESTS: usize = 1024;
/// Destinations asked for with one request.
const TOGETHER: usize = 256;
/// A NACK has this long to be sent before its stream ends.
const NACK_SENT: Duration = Duration::from_millis(50);
/// gRPC's INVALID_ARGUMENT.
const INVALID_ARGUMENT: i32 = 3;

/// The sending side of a stream.
pub(super) struct Wire {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    node: Option<Node>,
    /// With a server that is not ours: the names subscribed to below the listeners.
    asked: BTreeSet<(ResourceType, String)>,
    /// When a server that has sent no barrier is taken for one that is not ours.
    foreign_at: Option<Instant>,
}

impl Discovery {
    /// Connects, and stays until the stream ends.
    pub(super) async fn stream(&mut self) -> Result<Infallible, StreamError> {
        let (plane, tls) = (self.plane.clone(), self.tls.clone());
        let mut connecting = pin!(async move { plane.connect(&tls).await });
        let channel = loop {
            tokio::select! {
                channel = &mut connecting => break channel?,
                Some(destination) = self.interest.recv() => self.called(destination),
            }
        };
        let (requests, receiver) = mpsc::channel(REQUESTS);
        let mut wire = Wire::new(requests, self.node.clone());
        self.begin(&mut wire)?;
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let mut opening = pin!(timeout(OPEN, client.delta_aggregated_resources(ReceiverStream::new(receiver))));
        let opened = loop {
            tokio::select! {
                opened = &mut opening => break opened,
                Some(destination) = self.interest.recv() => self.subscribe(vec![destination], &mut wire)?,
            }
        };
        let opened = opened.map_err(|_elapsed| StreamError::Silent)?.map_err(ended)?;
        self.compare(Origin::read(opened.metadata()));
        let mut answers = opened.into_inner();
        let silent_at = Instant::now() + FIRST_ANSWER;
        let mut sweep = interval_at(Instant::now() + SWEEP, SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let foreign_at = wire.foreign_at;
            tokio::select! {
                answer = answers.message() => {
                    let answer = answer.map_err(ended)?.ok_or_else(|| ended(tonic::Status::ok("closed")))?;
                    if let Some(refusal) = self.refusal() {
                        wire.answer(answer.type_url, answer.nonce, Some(refusal))?;
                        continue;
                    }
                    if !self.status.discovery.is_up() {
                        tracing::info!(control_plane = self.plane.address, "discovery connected");
                    }
                    // Only an answer shows that the server works; an open stream does not.
                    self.status.discovery.up();
                    self.live.interest.set_discovered(true);
                    // The error may have queued a NACK, which ends with the stream.
                    if let Err(error) = self.take(answer, &mut wire) {
                        sleep(NACK_SENT).await;
                        return Err(error);
                    }
                }
                Some(destination) = self.interest.recv() => {
                    if self.refusing {
                        // As without a stream.
                        self.called(destination);
                        continue;
                    }
                    // A burst of new destinations goes out with one request.
                    let mut destinations = vec![destination];
                    while destinations.len() < TOGETHER && let Ok(another) = self.interest.try_recv() {
                        destinations.push(another);
                    }
                    self.subscribe(destinations, &mut wire)?;
                }
                _ = sweep.tick(), if !self.refusing => self.sweep(&mut wire)?,
                () = sleep_until(foreign_at.unwrap_or(silent_at)), if foreign_at.is_some() => {
                    tracing::info!("the control plane sends no revisions; each complete listener comes into force");
                    wire.foreign_at = None;
                    self.foreign = true;
                    self.settle(&mut wire)?;
                }
                () = sleep_until(silent_at), if !self.refusing && !self.status.discovery.is_up() => return Err(StreamError::Silent),
            }
            self.status.subscriptions.store(self.subscriptions.len(), Relaxed);
        }
    }

    /// The first request of each type: the versions held and the names subscribed to, the barrier last (rule 7).
    pub(super) fn begin(&mut self, wire: &mut Wire) -> Result<(), StreamError> {
        self.held.rewind();
        self.in_force = None;
        self.unsubscribing = false;
        if self.foreign {
            wire.asked = self.needs();
        }
        for kind in [ResourceType::Cluster, ResourceType::Endpoints, ResourceType::Route] {
            let names = wire.asked.iter().filter(|(asked, _)| *asked == kind).map(|(_, name)| name.clone()).collect();
            let versions = self.held.versions(kind);
            if !versions.is_empty() {
                wire.request(kind, names, Vec::new(), versions)?;
            }
        }
        let names = self.subscriptions.names().map(ToString::to_string).collect();
        let versions = self.held.versions(ResourceType::Listener);
        wire.request(ResourceType::Listener, names, Vec::new(), versions)?;
        wire.request(ResourceType::Revision, vec![REVISION_NAME.to_owned()], Vec::new(), BTreeMap::new())
    }

    /// Stages one response, and sends its ACK or NACK.
    pub(super) fn take(&mut self, response: DeltaDiscoveryResponse, wire: &mut Wire) -> Result<(), StreamError> {
        let (type_url, nonce) = (response.type_url.clone(), response.nonce.clone());
        let Some(kind) = ResourceType::from_type_url(&type_url) else {
            return wire.answer(type_url, nonce, Some("this type was not asked for".to_owned()));
        };
        if kind == ResourceType::Listener {
            for name in response.resources.iter().filter_map(|resource| ListenerName::parse(&resource.name).ok()) {
                self.subscriptions.set_absent(&name, false);
            }
        }
        // There is a certificate wherever there is a stream.
        let tls = self.tls.load_full();
        let trust_domain = tls.as_deref().map(|tls| tls.identity.trust_domain());
        let taken = self.held.take(kind, response, trust_domain)?;
        let Taken { refused, endpoints, absent, revision, no_revision } = taken;
        endpoints.iter().for_each(|set| self.live.set_endpoints(set));
        self.note_absent(&absent)?;
        if let Some(revision) = revision {
            wire.foreign_at = None;
            return self.barrier(revision, nonce, wire);
        }
        if refused.is_empty() {
            wire.answer(type_url, nonce, None)?;
        } else {
            self.status.refused.fetch_add(u64::try_from(refused.len()).unwrap_or(u64::MAX), Relaxed);
            let reason = held::nack(&refused);
            tracing::warn!(reason, "resources rejected, keeping their last good versions");
            wire.answer(type_url, nonce, Some(reason))?;
        }
        if no_revision {
            (self.foreign, wire.foreign_at) = (true, None);
        }
        if self.foreign {
            // Endpoints have applied, and are needed by nothing.
            return if kind == ResourceType::Endpoints { Ok(()) } else { self.settle(wire) };
        }
        if wire.foreign_at.is_none() && self.status.applied.borrow().hash.is_none() {
            wire.foreign_at = Some(Instant::now() + BARRIER);
        }
        Ok(())
    }

    /// The barrier: every resource of this revision has been sent, and it comes into force.
    fn barrier(&mut self, revision: Revision, nonce: String, wire: &mut Wire) -> Result<(), StreamError> {
        self.foreign = false;
        let hash = self.held.hash();
        let type_url = ResourceType::Revision.type_url().to_owned();
        if hash != revision.hash {
            if self.unsubscribing {
                // Rule 9: the server had not read our unsubscription yet; the next barrier counts it.
                tracing::debug!(revision = revision.number, "a barrier from before an unsubscription");
                return Ok(());
            }
            let error = StreamError::Hash { number: revision.number };
            wire.answer(type_url, nonce, Some(error.to_string()))?;
            return Err(error);
        }
        self.unsubscribing = false;
        self.note_origin(revision.number);
        self.keep_called(wire)?;
        let mut problems = self.held.refused();
        let made_of = (self.held.changes(), self.subscriptions.changes());
        let before = self.live.load().resources.clone();
        let make = || self.held.resources(self.subscriptions.names(), self.subscriptions.absent(), &before);
        if self.in_force == Some(made_of) {
            debug_assert_eq!(make().0, *before, "the configuration in force is made of the same resources");
        } else {
            let (resources, incomplete) = make();
            self.apply(resources, &before)?;
            self.in_force = incomplete.is_empty().then_some(made_of);
            problems.extend(incomplete.iter().map(ToString::to_string));
        }
        if problems.is_empty() {
            tracing::debug!(revision = revision.number, "revision in force");
            self.status.applied.send_replace(Applied { revision: revision.number, hash: Some(hash) });
            return wire.answer(type_url, nonce, None);
        }
        let reason = format!("in force but for what is refused: {}", held::nack(&problems));
        tracing::warn!(revision = revision.number, reason, "revision not wholly in force");
        // A barrier shows a server of ours; the revision before stays the last one that is wholly in force.
        self.status.applied.send_modify(|applied| applied.hash = Some(hash));
        wire.answer(type_url, nonce, Some(reason))
    }

    /// Puts a configuration in force; new clusters get the endpoints that arrived before them.
    fn apply(&self, resources: Resources, before: &Resources) -> Result<(), StreamError> {
        let new: Vec<_> =
            resources.clusters.keys().filter(|name| !before.clusters.contains_key(*name)).cloned().collect();
        self.live.replace(resources)?;
        for set in new.iter().filter_map(|name| self.held.endpoints(name)) {
            self.live.set_endpoints(set);
        }
        self.status.swaps.fetch_add(1, Relaxed);
        Ok(())
    }

    /// Names that do not exist. Where no listener is in force the answer applies at once, because no barrier need follow (its
    /// hash does not change); a listener in force stays until the barrier.
    fn note_absent(&mut self, absent: &[ListenerName]) -> Result<(), StreamError> {
        let before = self.live.load().resources.clone();
        let mut now = Vec::new();
        for name in absent {
            self.subscriptions.set_absent(name, true);
            self.kept.forget(name);
            if self.subscriptions.contains(name)
                && !before.listeners.contains_key(name)
                && !before.absent.contains(name)
            {
                now.push(name.clone());
            }
        }
        if now.is_empty() {
            return Ok(());
        }
        let mut resources = Resources::clone(&before);
        resources.absent.extend(now);
        self.apply(resources, &before)
    }

    /// Subscribes to destinations that the workload calls.
    pub(super) fn subscribe(&mut self, destinations: Vec<SocketAddr>, wire: &mut Wire) -> Result<(), StreamError> {
        self.restore(&destinations);
        let now = Instant::now();
        let (mut new, mut gone) = (Vec::new(), Vec::new());
        for destination in destinations {
            let name = ListenerName::Outbound(destination);
            let mut added = self.subscriptions.add(name.clone(), now);
            if added == Added::Full
                && let Some(oldest) = self.subscriptions.take_oldest(now)
            {
                gone.push(oldest);
                added = self.subscriptions.add(name.clone(), now);
            }
            match added {
                Added::Known => {}
                Added::New => new.push(name.to_string()),
                Added::Full => {
                    tracing::warn!(%destination, "too many destinations in use; not subscribing to this one")
                }
            }
        }
        self.unsubscribed(&gone, wire)?;
        if new.is_empty() && gone.is_empty() {
            return Ok(());
        }
        let gone = gone.iter().map(ToString::to_string).collect();
        wire.request(ResourceType::Listener, new, gone, BTreeMap::new())
    }

    /// Unsubscribes from destinations that are not in use.
    pub(super) fn sweep(&mut self, wire: &mut Wire) -> Result<(), StreamError> {
        let mut used = self.live.interest.take_touched();
        used.extend((self.open)());
        let now = Instant::now();
        self.subscriptions.used(&used, now);
        let idle = self.subscriptions.take_idle(now);
        if idle.is_empty() {
            return Ok(());
        }
        tracing::debug!(count = idle.len(), "unsubscribed from destinations that are not called");
        self.unsubscribed(&idle, wire)?;
        let names = idle.iter().map(ToString::to_string).collect();
        wire.request(ResourceType::Listener, Vec::new(), names, BTreeMap::new())
    }

    /// Forgets names that were unsubscribed from: a listener in force goes with the next barrier, an absence goes now.
    fn unsubscribed(&mut self, names: &[ListenerName], wire: &mut Wire) -> Result<(), StreamError> {
        for name in names {
            self.unsubscribing |= self.held.forget(ResourceType::Listener, &name.to_string());
        }
        let before = self.live.load().resources.clone();
        for name in names {
            self.kept.keep(name, &before, |cluster| self.held.endpoints(cluster).cloned());
        }
        if names.iter().any(|name| before.absent.contains(name)) {
            let mut resources = Resources::clone(&before);
            resources.absent.retain(|name| !names.contains(name));
            self.apply(resources, &before)?;
        }
        if self.foreign { self.settle(wire) } else { Ok(()) }
    }

    /// Subscribes again to destinations that are called between their unsubscription and the barrier that removes them.
    fn keep_called(&mut self, wire: &mut Wire) -> Result<(), StreamError> {
        let touched: HashSet<SocketAddr> = self.live.interest.take_touched();
        self.subscriptions.used(&touched, Instant::now());
        let live = self.live.load().resources.clone();
        let given_up = touched.into_iter().filter(|destination| {
            let name = ListenerName::Outbound(*destination);
            live.listeners.contains_key(&name) && !self.subscriptions.contains(&name)
        });
        let given_up = given_up.collect();
        self.subscribe(given_up, wire)
    }

    /// With a server that is not ours: subscribes to the names that the listeners need, puts in force what is complete, and
    /// unsubscribes from the names that nothing needs any more.
    fn settle(&mut self, wire: &mut Wire) -> Result<(), StreamError> {
        self.follow(wire)?;
        let before = self.live.load().resources.clone();
        let (resources, incomplete) =
            self.held.resources(self.subscriptions.names(), self.subscriptions.absent(), &before);
        for missing in incomplete {
            tracing::debug!(%missing, "waiting for a resource; what it is for stays as it is");
        }
        if resources == *before {
            return Ok(());
        }
        self.apply(resources, &before)?;
        self.follow(wire)
    }

    /// Subscribes to the names that are needed and not subscribed to, and unsubscribes from the others.
    fn follow(&mut self, wire: &mut Wire) -> Result<(), StreamError> {
        let needs = self.needs();
        for kind in [ResourceType::Cluster, ResourceType::Endpoints, ResourceType::Route] {
            let of = |names: &mut dyn Iterator<Item = &(ResourceType, String)>| -> Vec<String> {
                names.filter(|(of, _)| *of == kind).map(|(_, name)| name.clone()).collect()
            };
            let new = of(&mut needs.difference(&wire.asked));
            let gone = of(&mut wire.asked.difference(&needs));
            for name in &gone {
                self.held.forget(kind, name);
            }
            if !new.is_empty() || !gone.is_empty() {
                wire.request(kind, new, gone, BTreeMap::new())?;
            }
        }
        wire.asked = needs;
        Ok(())
    }

    /// The names that the listeners need, by their newest versions and by those in force.
    fn needs(&self) -> BTreeSet<(ResourceType, String)> {
        self.held.needs(self.subscriptions.names(), &self.live.load().resources)
    }
}

impl Wire {
    pub(super) fn new(requests: mpsc::Sender<DeltaDiscoveryRequest>, node: Node) -> Self {
        Self { requests, node: Some(node), asked: BTreeSet::new(), foreign_at: None }
    }

    fn request(
        &mut self,
        kind: ResourceType,
        subscribe: Vec<String>,
        unsubscribe: Vec<String>,
        versions: BTreeMap<String, String>,
    ) -> Result<(), StreamError> {
        self.send(DeltaDiscoveryRequest {
            type_url: kind.type_url().to_owned(),
            resource_names_subscribe: subscribe,
            resource_names_unsubscribe: unsubscribe,
            initial_resource_versions: versions,
            ..DeltaDiscoveryRequest::default()
        })
    }

    /// An ACK, or a NACK with its reason.
    fn answer(&mut self, type_url: String, nonce: String, refused: Option<String>) -> Result<(), StreamError> {
        let error_detail =
            refused.map(|message| rpc::Status { code: INVALID_ARGUMENT, message, ..rpc::Status::default() });
        self.send(DeltaDiscoveryRequest {
            type_url,
            response_nonce: nonce,
            error_detail,
            ..DeltaDiscoveryRequest::default()
        })
    }

    fn send(&mut self, mut request: DeltaDiscoveryRequest) -> Result<(), StreamError> {
        request.node = self.node.take();
        self.requests.try_send(request).map_err(|_full| StreamError::Stuck)
    }
}

fn ended(status: tonic::Status) -> StreamError {
    StreamError::Ended { code: status.code(), message: status.message().to_owned() }
}
