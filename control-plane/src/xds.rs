//! xDS: the ADS server, incremental variant. Resources by name, on demand; one barrier for each change.
//!
//! Map: `feed` follows desired state and the registry; `publish` compiles and encodes each subscribed resource that a
//! change touches, once, into the `cache`; `content` is one such resource.
//!
//! One stream: `client` is its node and identity; `subscriptions` is what the client asks for and holds, whatever the variant
//! of the protocol (`access`: which resources it may have), and returns what is `due`; `delta` is the incremental variant on
//! top of it, `messages` its encoding, `stream` its loop; `connected` is the client's entry in the table of proxies.
//!
//! # Rules of the wire
//! Spec: xDS transport protocol, incremental variant.
//!
//! 1. A client is identified by its certificate: namespace and service account. `node.id` is a label for logs. Without a
//!    certificate there is no stream. When the certificate expires, the stream ends with UNAUTHENTICATED.
//!    The node's data on the workload (labels, ports: see `client`) holds for the whole stream; a change needs a new one.
//! 2. `gateway/<ns>/…` is only for proxies of that namespace with `mode: gateway`, and of the service account that the
//!    Gateway's annotation names, if it names one; `inbound` is rendered for each client. A resource that a client may not
//!    have is answered like one that does not exist: in `removed_resources` at once, and in `resource_errors`
//!    (NOT_FOUND, PERMISSION_DENIED, or INVALID_ARGUMENT for a text that is no name).
//! 3. A repeated subscription gets a response again, even if nothing changed. A first request's
//!    `initial_resource_versions` are trusted: a resource with that version is not sent again, one that does not exist any
//!    more is removed. Versions are hashes of the content, so every replica agrees.
//! 4. `*`, and the first empty request for listeners or clusters, means everything; for a Weft proxy only `*` does. An
//!    Envoy gets no listener by it: ours are for captured traffic, and it has its own.
//! 5. Order: clusters, endpoints, listeners, routes, then removals. No waiting for ACKs. A message stays below 1 MiB.
//! 6. A NACK is recorded, by proxy and by resource. The resource is sent again when it changes, not before.
//!
//! # The barrier
//! 7. A client that subscribes to `revision` of type `weft.v1.Revision` is sent the whole dependency tree of its
//!    subscriptions, whether it subscribed to each name or not: listener -> route tables -> clusters -> endpoint sets. It may
//!    subscribe to these names as well, and has to list them in `initial_resource_versions` when it reconnects, or gets them
//!    again. When none of its subscriptions needs such a name any more, the name comes in `removed_resources`. Until it has
//!    subscribed to the barrier, a Weft proxy gets only its subscriptions and only these are removed, so it may reconnect
//!    with one request for each type, the barrier's last.
//! 8. `Revision {number, hash}` is sent last of every batch that changed anything but endpoints. A client holds every
//!    resource it was sent, without those that came in `removed_resources` and those that it unsubscribed from.
//!    `hash` covers these: SHA-256 over `<type url>\0<name>\0<version>\n`, sorted bytewise, without endpoint
//!    sets and the revision itself.
//! 9. The client stages everything but endpoints, and switches to what it holds in one step when the barrier comes; its
//!    ACK of the barrier means "applied". Endpoints apply at once, to the live and the staged resources, because their
//!    changes come from the registry and belong to no revision. A client with an unsubscription in flight may find
//!    another hash than its own: the next barrier, which the unsubscription causes, is the right one.
//! 10. Between two revisions the same number is sent again with another hash: after a new subscription, and after
//!     a workload's own address came or went. The client treats it as any other barrier, so a resource subscribed to on
//!     demand applies when the barrier right behind it comes: one round trip for the whole tree.
//! 11. A revision that changes nothing for a client is only the barrier with the new number.
//!
//! # Where it comes from
//! 12. The headers of the response name mesh, generation and revision (`weft-mesh`, `weft-generation`, `weft-revision`). A
//!     Weft proxy with configuration in force refuses another mesh, and an older generation or revision, before it takes any
//!     resource: it answers each message with a NACK that says so (docs/adr/0034). Other clients ignore these headers.
//!
//! # Bounds
//! 50,000 names on a stream, 10,000 streams; 500,000 names and 2,000 streams of one identity; requests of 4 MiB, 1,024 messages in flight per stream. A client that does
//! not read costs its cursor and one batch of references to shared resources.

use std::sync::Arc;

use futures_util::stream::BoxStream;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use weft_core::compile::World;
use weft_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
    aggregated_discovery_service_server::{AggregatedDiscoveryService, AggregatedDiscoveryServiceServer},
};

use self::cache::Cache;
pub use self::{client::WEFT_USER_AGENT, feed::Feed, publish::Change};
use crate::{quota::Quota, serve::Peer, state::ProxyTable, store::Origin};

mod access;
mod cache;
mod client;
mod connected;
mod content;
mod delta;
mod due;
mod feed;
mod messages;
mod publish;
mod stream;
mod subscriptions;

/// Bounds of the server.
///
/// # Defaults
/// 50,000 names, 10,000 streams; 500,000 names and 2,000 streams of one identity; 4 MiB.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Maximum number of names on one stream, of all types together.
    pub names: usize,
    /// Maximum number of streams.
    pub streams: usize,
    /// Maximum number of names on all streams of one identity.
    pub names_of_identity: usize,
    /// Maximum number of streams of one identity. Twice the number of its workloads, as a lost one is noticed late.
    pub streams_of_identity: usize,
    /// Maximum size of a request, in bytes.
    pub request: usize,
}

/// The delta ADS server. A clone is the same server.
#[derive(Clone, Debug)]
pub struct Ads {
    server: Arc<Server>,
}

#[derive(Debug)]
struct Server {
    cache: Mutex<Cache>,
    changed: watch::Sender<u64>,
    streams: Arc<Semaphore>,
    streams_of: Arc<Quota>,
    names_of: Arc<Quota>,
    limits: Limits,
    proxies: Arc<ProxyTable>,
    origin: Option<Origin>,
    closed: CancellationToken,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            names: 50_000,
            streams: 10_000,
            names_of_identity: 500_000,
            streams_of_identity: 2_000,
            request: 4 << 20,
        }
    }
}

impl Ads {
    /// A server of this world, until [`Ads::publish`] switches to another one.
    pub fn new(world: Arc<World>, proxies: Arc<ProxyTable>, limits: Limits, origin: Option<Origin>) -> Self {
        let server = Server {
            cache: Mutex::new(Cache::new(world)),
            changed: watch::Sender::new(1),
            streams: Arc::new(Semaphore::new(limits.streams)),
            streams_of: Quota::new(limits.streams_of_identity),
            names_of: Quota::new(limits.names_of_identity),
            limits,
            proxies,
            origin,
            closed: CancellationToken::new(),
        };
        Self { server: Arc::new(server) }
    }

    /// Ends every stream with UNAVAILABLE, so that its client connects to another replica; new streams are rejected.
    pub fn close(&self) {
        self.server.closed.cancel();
    }

    /// The gRPC service, to be put on the TLS listener.
    pub fn service(&self) -> AggregatedDiscoveryServiceServer<Self> {
        AggregatedDiscoveryServiceServer::new(self.clone()).max_decoding_message_size(self.server.limits.request)
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Ads {
    type StreamAggregatedResourcesStream = BoxStream<'static, Result<DiscoveryResponse, Status>>;
    type DeltaAggregatedResourcesStream = BoxStream<'static, Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("this control plane speaks the delta variant only (DeltaAggregatedResources)"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let svid = request.extensions().get::<Peer>().and_then(|peer| peer.svid.clone());
        let Some(svid) = svid else {
            return Err(Status::unauthenticated("discovery needs a client certificate of this mesh"));
        };
        let Ok(permit) = Arc::clone(&self.server.streams).try_acquire_owned() else {
            return Err(Status::resource_exhausted("too many discovery streams on this control plane"));
        };
        let share = self.server.streams_of.take(svid.identity.clone());
        let share = share.map_err(|error| Status::resource_exhausted(format!("discovery streams: {error}")))?;
        let answers = stream::answers(Arc::clone(&self.server), svid, request.into_inner(), (permit, share));
        let mut response = Response::new(Box::pin(answers) as Self::DeltaAggregatedResourcesStream);
        if let Some(origin) = &self.server.origin {
            let revision = self.server.cache.lock().world().revision();
            let unfit = |_error| Status::internal("the origin is no header value");
            let fields = [
                ("weft-mesh", origin.mesh.clone()),
                ("weft-generation", origin.generation.to_string()),
                ("weft-revision", revision.to_string()),
            ];
            for (name, value) in fields {
                response.metadata_mut().insert(name, value.parse().map_err(unfit)?);
            }
        }
        Ok(response)
    }
}

#[cfg(test)]
mod tests;
