//! Outbound: a connection of the workload, then ONE request, top to bottom.
//!
//! connection: captured -> the listener of its destination (asked for when unknown) -> HTTP or opaque
//! request: strip -> route -> filters -> attempt -> answer
//!
//! Invariant: losing the control plane never causes mesh traffic to be sent in plaintext, and a connection to an address in
//! the mesh's ranges leaves only if the address is known. Before the first configuration the outbound policy is not known
//! either: then no connection leaves that a control plane might know of.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::{
    net::TcpStream,
    time::{Instant, timeout},
};
use weft_core::{
    endpoint::Endpoint,
    failure::{Failure, Limit},
    listener::{OutboundPolicy, Protocol as PortProtocol},
    route::pick_weighted,
};

use super::{
    attempt,
    deliver::may_call_itself,
    exchange::Exchange,
    http,
    opaque::Opaque,
    phases,
    prelude::{self, Silence},
    refuse,
};
use crate::{
    connection::{Connection, InFlight},
    http::{
        answer::Answer,
        body::Body,
        head::Head,
        serve::{Handler, Refused},
    },
    listener::{
        detect::{IDLE, SILENCE},
        socket::Accepted,
    },
    live::{OutboundListener, Routes, Snapshot},
    slot::Slot,
    stream::{Stream, kernel::bound_unread},
    tcp,
    telemetry::{Flow, Security},
    upstream::{
        cluster::{Cluster, Counted},
        dial::plain,
        pool::Version,
    },
    worker::Worker,
};

/// The longest wait for the first bytes of a caller that is refused anyway.
const REFUSAL: Duration = Duration::from_millis(100);
/// Tries to connect an opaque connection.
const TCP_TRIES: usize = 3;
/// Longest time to connect to a destination outside the mesh.
const CONNECT: Duration = Duration::from_secs(10);

/// Takes one connection that the workload makes to `destination`.
pub(crate) async fn connection(worker: Arc<Worker>, stream: TcpStream, mut accepted: Accepted) {
    let found = find(&worker, accepted.flow.destination).await;
    // The time that discovery took to answer is not the caller's.
    accepted.since = Instant::now();
    match found {
        Ok(Some(target)) => in_mesh(worker, stream, accepted, target).await,
        Ok(None) => outside(worker, stream, accepted).await,
        Err(failure) => refused(worker, stream, accepted, &failure).await,
    }
}

/// Refuses a connection. A caller that speaks HTTP is answered, request by request: the next one may be allowed.
async fn refused(worker: Arc<Worker>, stream: TcpStream, accepted: Accepted, failure: &Failure) {
    let prelude = timeout(REFUSAL, prelude::read_within(stream, SILENCE)).await;
    match prelude {
        Ok(Ok(prelude)) => match prelude.http() {
            Some(version) => serve(&worker, prelude.into_stream(), accepted, version),
            None => refuse::connection(&worker, prelude.stream, accepted.flow, None, "", failure),
        },
        Ok(Err(_)) | Err(_) => refuse::outcome(&worker, accepted.flow, None, "", failure),
    }
}

/// The listener of a destination; `None` when it is outside the mesh and may be called.
async fn find(worker: &Worker, destination: SocketAddr) -> Result<Option<Arc<OutboundListener>>, Failure> {
    let shared = &worker.shared;
    if shared.interest.is_some() {
        shared.live.interest.touch(destination);
    }
    if let Some(known) = shared.live.load().outbound.get(&destination) {
        return match known {
            Some(target) => Ok(Some(target.clone())),
            None => unknown(worker, &shared.live.load(), destination, Failure::UnknownService),
        };
    }
    let Some(interest) = &shared.interest else {
        return unknown(worker, &shared.live.load(), destination, Failure::UnknownService);
    };
    let event = |result| worker.metrics.event("weft_discovery_waits_total", &[("result", result)]);
    if shared.live.interest.is_wait_pointless(destination) {
        return unknown(worker, &shared.live.load(), destination, Failure::NoDiscovery);
    }
    let answer = timeout(shared.discovery_wait, async {
        loop {
            let swapped = shared.live.swapped.notified();
            if let Some(known) = shared.live.load().outbound.get(&destination) {
                return known.clone();
            }
            // A full queue means that many destinations are being asked for: the next swap tries again.
            if interest.try_send(destination).is_err() {
                tracing::debug!(%destination, "too many destinations are being asked for");
            }
            swapped.await;
        }
    })
    .await;
    match answer {
        Ok(Some(target)) => {
            event("mesh");
            Ok(Some(target))
        }
        Ok(None) => {
            event("outside");
            unknown(worker, &shared.live.load(), destination, Failure::UnknownService)
        }
        Err(_elapsed) => {
            event("timeout");
            shared.live.interest.not_answered(destination);
            unknown(worker, &shared.live.load(), destination, Failure::NoDiscovery)
        }
    }
}

/// An unknown destination: refused inside the mesh's ranges, if it was in the mesh, and before the first configuration, which
/// holds the outbound policy. Otherwise the outbound policy decides.
fn unknown(
    worker: &Worker,
    live: &Snapshot,
    destination: SocketAddr,
    inside: Failure,
) -> Result<Option<Arc<OutboundListener>>, Failure> {
    if worker.in_mesh_ranges(destination.ip()) {
        return Err(inside);
    }
    if worker.shared.live.was_meshed(destination) {
        return Err(Failure::LostIdentity);
    }
    // A control plane that is not ours may have no `outbound`: then the default is in force with its `inbound`.
    let configured = live.outbound_default.is_some() || live.inbound.is_some() || worker.shared.interest.is_none();
    if !configured {
        return Err(Failure::NotConfigured);
    }
    match live.outbound_default.unwrap_or_default() {
        OutboundPolicy::AllowAny => Ok(None),
        OutboundPolicy::RegisteredOnly => Err(Failure::NotRegistered),
    }
}

/// Passes a connection through to a destination outside the mesh.
async fn outside(worker: Arc<Worker>, stream: TcpStream, accepted: Accepted) {
    let (flow, started) = (accepted.flow, accepted.since);
    bound_unread(&stream);
    let callee = match worker.dialer.tcp(flow.destination, CONNECT).await {
        Ok(callee) => callee,
        Err(failure) => return refuse::connection(&worker, stream, flow, None, "outside", &failure),
    };
    let opaque = Opaque {
        worker: &worker,
        flow,
        identity: None,
        security: Security::Plain,
        valid_for: None,
        cluster: "outside",
        endpoint: Some(flow.destination),
        idle: tcp::IDLE,
        started,
    };
    opaque.relay(stream, callee, std::future::pending()).await;
}

/// Serves a connection to a service of the mesh.
async fn in_mesh(worker: Arc<Worker>, stream: TcpStream, accepted: Accepted, target: Arc<OutboundListener>) {
    let flow = accepted.flow;
    if target.listener.protocol == PortProtocol::Tcp && !target.tcp.is_empty() {
        bound_unread(&stream);
        return opaque(worker, plain(stream), flow, &target, None).await;
    }
    let idle = target.tcp.iter().map(|(cluster, _)| cluster.settings.tcp_idle).max().unwrap_or(IDLE);
    let silence = match target.listener.protocol {
        PortProtocol::Detect if !target.tcp.is_empty() && target.server_first.load(Relaxed) => {
            Silence::ServerSpeaksFirst(idle)
        }
        PortProtocol::Detect if !target.tcp.is_empty() => Silence::ServerMaySpeakFirst(idle),
        PortProtocol::Detect | PortProtocol::Tcp | PortProtocol::Http | PortProtocol::Http2 => Silence::Bounded(IDLE),
    };
    let prelude = match prelude::read(plain(stream), silence, connect(&worker, &target)).await {
        Ok(prelude) => prelude,
        Err(error) => return error.end(&worker, flow),
    };
    if prelude.server.is_some() {
        target.server_first.store(prelude.server_spoke_first(), Relaxed);
    }
    // A forward proxy is called through its requests: those to others are not for the mesh to read.
    let proxied = !target.tcp.is_empty() && prelude.proxied().is_some_and(|authority| !target.is_named(authority));
    match prelude.http() {
        Some(version) if target.routes.is_some() && !proxied => {
            serve(&worker, prelude.into_stream(), accepted, version);
        }
        _ if target.tcp.is_empty() => {
            refuse::connection(&worker, prelude.stream, flow, None, "", &Failure::ProtocolRefused);
        }
        _ => {
            prelude.stream.bound_unread();
            if let Ok((stream, callee)) = prelude.into_opaque().await {
                opaque(worker, stream, flow, &target, callee).await;
            }
        }
    }
}

/// An opaque connection to an endpoint.
struct Callee {
    stream: Stream,
    cluster: Arc<Cluster>,
    counted: Counted,
    _slot: Slot,
}

impl AsMut<Stream> for Callee {
    fn as_mut(&mut self) -> &mut Stream {
        &mut self.stream
    }
}

/// Connects to an endpoint of a cluster of the listener, trying others when one does not answer: nothing was sent yet.
async fn connect(worker: &Arc<Worker>, target: &OutboundListener) -> Result<Callee, Failure> {
    let weights = target.tcp.iter().map(|(_, weight)| *weight);
    let index = pick_weighted(weights, fastrand::f64()).ok_or(Failure::RouteAnswers(500))?;
    let (cluster, _) = target.tcp.get(index).ok_or(Failure::NoEndpoint)?;
    let settings = &cluster.settings;
    let mut tried = Vec::new();
    loop {
        let started = Instant::now();
        let endpoint = attempt::pick(worker, cluster, &tried, started).await?;
        let slot = Slot::take(&cluster.state.counts.connections, settings.limits.connections, Limit::Connections)?;
        let address = endpoint.endpoint.address;
        // A connection that is being opened is in flight, and ages.
        let mut counted = Counted::start(&endpoint, started, worker.shared.live.at(started));
        let dialled = match &endpoint.endpoint.identity {
            identity @ Some(_) if worker.is_local(address, identity.as_ref()) => {
                may_call_itself(worker, address)?;
                worker.dialer.tcp(address, settings.connect_timeout).await.map(plain)
            }
            Some(identity) => worker.dialer.opaque(address, identity, settings.connect_timeout).await,
            None => worker.dialer.tcp(address, settings.connect_timeout).await.map(plain),
        };
        match dialled {
            Ok(stream) => {
                counted.answered(Instant::now(), true);
                endpoint.memory.record.succeeded();
                endpoint.memory.load.succeeded();
                return Ok(Callee { stream, cluster: cluster.clone(), counted, _slot: slot });
            }
            Err(failure) => {
                let Some(failed) = failure.failed() else { return Err(failure) };
                attempt::count_failure(worker, cluster, &endpoint, failed, worker.shared.live.now());
                tried.push(address);
                if tried.len() >= TCP_TRIES {
                    return Err(failure);
                }
            }
        }
    }
}

/// Relays opaque bytes to an endpoint, which may be connected already.
async fn opaque(worker: Arc<Worker>, stream: Stream, flow: Flow, target: &OutboundListener, callee: Option<Callee>) {
    let started = Instant::now();
    let callee = match callee {
        Some(callee) => Ok(callee),
        None => connect(&worker, target).await,
    };
    let mut callee = match callee {
        Ok(callee) => callee,
        Err(failure) => {
            let cluster = target.tcp.first().map_or("", |(cluster, _)| cluster.name.as_ref());
            return refuse::connection(&worker, stream, flow, None, cluster, &failure);
        }
    };
    let cluster = callee.cluster.clone();
    let opaque = Opaque {
        worker: &worker,
        flow,
        identity: None,
        security: Security::of(callee.counted.endpoint.endpoint.identity.as_ref()),
        valid_for: None,
        cluster: &cluster.name,
        endpoint: Some(callee.counted.endpoint.endpoint.address),
        idle: cluster.settings.tcp_idle,
        started,
    };
    // What allows the caller its connection is its identity: the peer is shown each new certificate.
    let endpoint = callee.counted.endpoint.clone();
    let keep_proven = async {
        match &endpoint.endpoint {
            Endpoint { address, identity: Some(identity), .. } => worker.dialer.keep_proven(*address, identity).await,
            _ => std::future::pending().await,
        }
    };
    opaque.relay(stream, &mut callee.stream, keep_proven).await;
}

/// Serves the requests of a connection.
fn serve(worker: &Arc<Worker>, stream: Stream, accepted: Accepted, version: Version) {
    http::serve(worker, stream, accepted, None, version, |connection| Outbound { worker: worker.clone(), connection });
}

/// The requests of one connection of the workload.
struct Outbound {
    worker: Arc<Worker>,
    connection: Arc<Connection>,
}

impl Handler for Outbound {
    async fn handle(&self, mut head: Head, body: Body, in_flight: InFlight) -> Result<Answer, Refused> {
        let live = self.worker.shared.live.load_full();
        // strip
        phases::strip(&mut head);
        let mut exchange = Exchange::start(&self.worker, &self.connection, in_flight, &live, Security::Plain, head);
        let body = exchange.count_request(body);
        // route -> filters -> attempt -> filters, on the way back
        let result = phases::forward(&self.worker, self.routes(&live, &exchange.head), &mut exchange, body).await;
        // answer
        Ok(phases::answer(exchange, result))
    }

    fn refuse(&self, failure: &Failure) -> Answer {
        refuse::head(&self.worker, &self.connection, failure)
    }
}

impl Outbound {
    /// The route table of the connection's destination.
    fn routes<'a>(&self, live: &'a Snapshot, head: &Head) -> Result<&'a Routes, Failure> {
        let authority = head.request.authority().filter(|_| head.absolute);
        match live.outbound.get(&self.connection.flow.destination) {
            Some(Some(target)) if authority.is_some_and(|authority| !target.is_named(authority)) => {
                Err(Failure::ForwardProxy)
            }
            Some(Some(target)) => target.routes.as_deref().ok_or(Failure::NoRoute),
            known => Err(self.unknown(live, known.is_some())),
        }
    }

    /// Why no service is there now. `asked`: the control plane has said so.
    fn unknown(&self, live: &Snapshot, asked: bool) -> Failure {
        let waiting = self.worker.shared.interest.is_some() && !asked;
        let inside = if waiting { Failure::NoDiscovery } else { Failure::UnknownService };
        // What may be called outside is not served here: only a new connection goes there.
        unknown(&self.worker, live, self.connection.flow.destination, inside).err().unwrap_or(Failure::NotRegistered)
    }
}
