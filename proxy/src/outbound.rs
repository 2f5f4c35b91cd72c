//! What the workload sends: one connection, then one request, top to bottom.
//!
//! connection: captured -> the listener of its destination (asked for when unknown) -> HTTP or opaque
//! request: route -> tries -> answer
//!
//! Invariant: what is in the mesh never leaves in plaintext because the control plane is away, and an address in the mesh's
//! ranges never leaves at all unless it is known. Before the first configuration nothing leaves that a control plane might
//! know, as the outbound policy is not known either.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, atomic::Ordering::Relaxed},
};

use bytes::BytesMut;
use futures_util::FutureExt;
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    time::{Instant, timeout},
};
use weft_core::{
    failure::Failure,
    listener::{OutboundPolicy, Protocol},
    route::{Action, Forward, pick_weighted},
};
use weft_http::fields::{Fields, Name};

use crate::{
    connection::{Connection, Running},
    http::{
        body::Body,
        exchange::{Answer, Exchange},
        head::Head,
        hop,
        serve::{self, Handler, Refused},
        upgrade,
    },
    inbound::{may_call_itself, refuse, refuse_head, tcp_ended},
    listener::{
        accept::Accepted,
        detect::{IDLE, SILENCE, Speaks, detect, first_speaker},
    },
    live::{Live, OutboundLive, Routes},
    stream::Stream,
    tcp,
    telemetry::{Direction, RequestLabels, Security},
    upstream::{
        attempt,
        cluster::{Cluster, EndpointState},
        dial::{Alpn, Slot, plain},
        pool::Version,
    },
    worker::Worker,
};

/// A passed-through connection with no byte either way is closed after this.
const TCP_IDLE: std::time::Duration = std::time::Duration::from_secs(3600);
/// Longest look at what a caller speaks that is refused anyway.
const REFUSAL: std::time::Duration = std::time::Duration::from_millis(100);
/// Tries to connect an opaque connection.
const TCP_TRIES: usize = 3;

/// Takes one connection that the workload makes to `destination`.
pub(crate) async fn connection(worker: Arc<Worker>, stream: TcpStream, mut accepted: Accepted) {
    let found = find(&worker, accepted.destination).await;
    // What the control plane took to answer is not the caller's time.
    accepted.since = Instant::now();
    match found {
        Ok(Some(target)) => in_mesh(worker, stream, accepted, target).await,
        Ok(None) => outside(worker, stream, accepted).await,
        Err(failure) => refused(worker, stream, accepted, &failure).await,
    }
}

/// Refuses a connection. A caller that speaks HTTP is answered, request by request: the next one may be welcome.
async fn refused(worker: Arc<Worker>, mut stream: TcpStream, accepted: Accepted, failure: &Failure) {
    let mut bytes = BytesMut::new();
    let speaks = timeout(REFUSAL, detect(&mut stream, &mut bytes, SILENCE)).await;
    let version = match speaks.unwrap_or(Ok(Speaks::Unknown)) {
        Ok(Speaks::Http1) => Version::Http1,
        Ok(Speaks::Http2) => Version::Http2,
        Ok(Speaks::MeshTls | Speaks::ApplicationTls | Speaks::Unknown | Speaks::Silent | Speaks::Closed) | Err(_) => {
            let Accepted { peer, destination, .. } = accepted;
            return refuse(&worker, Direction::Outbound, peer, destination, None, "", failure);
        }
    };
    let stream = Stream::tcp(stream, bytes.freeze());
    http(&worker, stream, accepted, Serves::Service, version);
}

/// The listener of a destination; `None` when it is outside the mesh and may be called.
async fn find(worker: &Worker, destination: SocketAddr) -> Result<Option<Arc<OutboundLive>>, Failure> {
    let shared = &worker.shared;
    if shared.interest.is_some() {
        shared.state.touch(destination);
    }
    if let Some(known) = shared.state.live().outbound.get(&destination) {
        return match known {
            Some(target) => Ok(Some(target.clone())),
            None => unknown(worker, &shared.state.live(), destination, Failure::UnknownService),
        };
    }
    let Some(interest) = &shared.interest else {
        return unknown(worker, &shared.state.live(), destination, Failure::UnknownService);
    };
    let event = |result| worker.metrics.event("weft_discovery_waits_total", &[("result", result)]);
    if shared.state.waits_in_vain(destination) {
        return unknown(worker, &shared.state.live(), destination, Failure::NoDiscovery);
    }
    let answer = timeout(shared.discovery_wait, async {
        loop {
            let swapped = shared.state.swapped.notified();
            if let Some(known) = shared.state.live().outbound.get(&destination) {
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
            unknown(worker, &shared.state.live(), destination, Failure::UnknownService)
        }
        Err(_elapsed) => {
            event("timeout");
            shared.state.not_answered(destination);
            unknown(worker, &shared.state.live(), destination, Failure::NoDiscovery)
        }
    }
}

/// What is not known: refused inside the mesh's ranges, where it was in the mesh, and before there is a configuration, which
/// is what says the outbound policy; else that.
fn unknown(
    worker: &Worker,
    live: &Live,
    destination: SocketAddr,
    inside: Failure,
) -> Result<Option<Arc<OutboundLive>>, Failure> {
    if worker.in_mesh_ranges(destination.ip()) {
        return Err(inside);
    }
    if worker.shared.state.was_meshed(destination) {
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

/// Passes a connection through to where it was going.
async fn outside(worker: Arc<Worker>, stream: TcpStream, accepted: Accepted) {
    let Accepted { peer, destination, since: started, .. } = accepted;
    tcp::bound_unread(&stream);
    let callee = match worker.dialer.tcp(destination, std::time::Duration::from_secs(10)).await {
        Ok(callee) => callee,
        Err(failure) => {
            return refuse(&worker, Direction::Outbound, peer, destination, None, "outside", &failure);
        }
    };
    let entry = worker.connections.open(Direction::Outbound, peer, destination, None, "tcp");
    let _open = worker.metrics.connection(Direction::Outbound);
    let relayed = tokio::select! {
        relayed = tcp::relay(stream, callee, TCP_IDLE) => relayed,
        () = entry.connection.cut() => return,
    };
    let policy = worker.log_policy(worker.shared.state.live().access_log);
    tcp_ended(&worker, &entry.connection, &relayed, policy, "outside", Some(destination), started);
}

/// Serves a connection to a service of the mesh.
async fn in_mesh(worker: Arc<Worker>, mut stream: TcpStream, accepted: Accepted, target: Arc<OutboundLive>) {
    let Accepted { peer, destination, .. } = accepted;
    let mut bytes = BytesMut::new();
    let mut dialled = None;
    let mut greeting = BytesMut::new();
    let speaks = match target.listener.protocol {
        Protocol::Tcp => Ok(Speaks::Unknown),
        Protocol::Detect if !target.tcp.is_empty() => match speaks_first(&target, &mut stream, &mut bytes).await {
            Ok(Speaks::Silent) => match dial(&worker, &target).await {
                Ok(mut callee) => {
                    let first = first_speaker(&mut stream, &mut bytes, &mut callee.stream, &mut greeting).await;
                    // A server that gives up on a silent connection (408) is still one of HTTP.
                    let greeted = !greeting.is_empty() && !greeting.starts_with(b"HTTP/");
                    target.server_first.store(greeted, Relaxed);
                    dialled = Some(callee);
                    first
                }
                Err(failure) => {
                    return refuse(&worker, Direction::Outbound, peer, destination, None, "", &failure);
                }
            },
            other => other,
        },
        Protocol::Detect | Protocol::Http | Protocol::Http2 => detect(&mut stream, &mut bytes, IDLE).await,
    };
    let speaks = match speaks {
        Ok(Speaks::Closed) => return,
        Ok(speaks) => speaks,
        Err(error) => return tracing::debug!(%error, %peer, "outbound connection broke"),
    };
    let is_http = matches!(speaks, Speaks::Http1 | Speaks::Http2) && target.routes.is_some();
    if is_http {
        drop(dialled);
        let version = if speaks == Speaks::Http1 { Version::Http1 } else { Version::Http2 };
        let stream = Stream::tcp(stream, bytes.freeze());
        http(&worker, stream, accepted, Serves::Service, version);
    } else if target.tcp.is_empty() {
        refuse(&worker, Direction::Outbound, peer, destination, None, "", &Failure::ProtocolRefused);
    } else if stream.write_all(&greeting).await.is_ok() {
        tcp::bound_unread(&stream);
        opaque(worker, Stream::tcp(stream, bytes.freeze()), peer, destination, &target, dialled).await;
    }
}

/// The caller's first bytes. Where the server was the first to speak last time nobody waits for them: silence is taken for
/// granted, and [`first_speaker`] still sees who it is this time.
async fn speaks_first(target: &OutboundLive, stream: &mut TcpStream, bytes: &mut BytesMut) -> io::Result<Speaks> {
    if target.server_first.load(Relaxed) {
        return Ok(Speaks::Silent);
    }
    detect(stream, bytes, SILENCE).await
}

/// An opaque connection to an endpoint.
struct Callee {
    stream: Stream,
    upstream: Arc<Cluster>,
    endpoint: Arc<EndpointState>,
    _slot: Slot,
}

impl Drop for Callee {
    fn drop(&mut self) {
        self.endpoint.memory.load.end();
    }
}

/// Connects to an endpoint of a cluster of the listener, trying others when one does not answer: nothing was sent yet.
async fn dial(worker: &Arc<Worker>, target: &OutboundLive) -> Result<Callee, Failure> {
    let weights = target.tcp.iter().map(|(_, weight)| *weight);
    let index = pick_weighted(weights, fastrand::f64()).ok_or(Failure::RouteAnswers(500))?;
    let (upstream, _) = target.tcp.get(index).ok_or(Failure::NoEndpoint)?;
    let settings = &upstream.settings;
    let mut tried = Vec::new();
    loop {
        let endpoint = attempt::pick(worker, upstream, &tried, Instant::now()).await?;
        let slot = Slot::take(&upstream.state.counts.connections, settings.limits.connections, "connections")?;
        let address = endpoint.endpoint.address;
        let dialled = match &endpoint.endpoint.identity {
            identity @ Some(_) if worker.is_local(address, identity.as_ref()) => {
                may_call_itself(worker, address)?;
                worker.dialer.tcp(address, settings.connect_timeout).await.map(plain)
            }
            Some(identity) => worker.dialer.mesh(address, identity, Alpn::Tcp, settings.connect_timeout).await,
            None => worker.dialer.tcp(address, settings.connect_timeout).await.map(plain),
        };
        match dialled {
            Ok(stream) => {
                endpoint.memory.record.succeeded();
                endpoint.memory.load.start();
                return Ok(Callee { stream, upstream: upstream.clone(), endpoint, _slot: slot });
            }
            Err(failure) => {
                if upstream.state.failed(&endpoint, settings, worker.shared.state.now()) {
                    worker.metrics.event("weft_ejections_total", &[("cluster", &upstream.name)]);
                }
                tried.push(address);
                if failure.retry().is_none() || tried.len() >= TCP_TRIES {
                    return Err(failure);
                }
            }
        }
    }
}

/// Copies opaque bytes to an endpoint, which may be connected already.
async fn opaque(
    worker: Arc<Worker>,
    stream: Stream,
    peer: SocketAddr,
    destination: SocketAddr,
    target: &OutboundLive,
    dialled: Option<Callee>,
) {
    let started = Instant::now();
    let callee = match dialled {
        Some(callee) => Ok(callee),
        None => dial(&worker, target).await,
    };
    let mut callee = match callee {
        Ok(callee) => callee,
        Err(failure) => {
            let cluster = target.tcp.first().map_or("", |(upstream, _)| upstream.name.as_ref());
            return refuse(&worker, Direction::Outbound, peer, destination, None, cluster, &failure);
        }
    };
    let (name, address) = (callee.upstream.name.clone(), callee.endpoint.endpoint.address);
    let identity = callee.endpoint.endpoint.identity.clone();
    let entry = worker.connections.open(Direction::Outbound, peer, destination, identity, "tcp");
    let _open = worker.metrics.connection(Direction::Outbound);
    let idle = callee.upstream.settings.tcp_idle;
    let relayed = tokio::select! {
        relayed = tcp::relay(stream, &mut callee.stream, idle) => relayed,
        () = entry.connection.cut() => return,
    };
    let policy = worker.log_policy(worker.shared.state.live().access_log);
    tcp_ended(&worker, &entry.connection, &relayed, policy, &name, Some(address), started);
}

/// Whose requests these are.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Serves {
    /// The workload's, to the service at the connection's destination.
    Service,
    /// Anyone's, to this port of a gateway.
    Gateway(u16),
}

/// Serves the requests of a connection.
pub(crate) fn http(
    worker: &Arc<Worker>,
    stream: Stream,
    Accepted { peer, destination, since, place }: Accepted,
    serves: Serves,
    version: Version,
) {
    let direction = match serves {
        Serves::Service => Direction::Outbound,
        Serves::Gateway(_) => Direction::Gateway,
    };
    let protocol = if version == Version::Http1 { "http1" } else { "http2" };
    let entry = worker.connections.open(direction, peer, destination, None, protocol);
    let connection = entry.connection.clone();
    let guards = (worker.metrics.connection(direction), entry, place);
    connection.http_begins(since);
    let handler = Arc::new(Outbound { worker: worker.clone(), connection: connection.clone(), serves });
    match version {
        Version::Http1 => {
            worker.spawn(serve::http1(stream, connection, handler, worker.clone()).map(|()| drop(guards)))
        }
        Version::Http2 => {
            worker.spawn(serve::http2(stream, connection, handler, worker.clone()).map(|()| drop(guards)))
        }
    }
}

/// The requests of one connection that leave.
struct Outbound {
    worker: Arc<Worker>,
    connection: Arc<Connection>,
    serves: Serves,
}

impl Handler for Outbound {
    async fn handle(&self, mut head: Head, body: Body, running: Running) -> Result<Answer, Refused> {
        let live = self.worker.shared.state.live_full();
        hop::strip(&mut head.request.fields);
        head.tell_tunnels_method();
        if let Serves::Gateway(_) = self.serves {
            forwarded(&mut head.request.fields, self.connection.peer.ip());
        }
        let policy = self.worker.log_policy(live.access_log);
        let mut exchange = Exchange::start(&self.worker, &self.connection, running, policy, Security::Plain, head);
        let body = exchange.count_request(body);
        let result = match self.decide(&live, &mut exchange) {
            Ok((rule, upstream)) => attempt::run(&self.worker, rule, upstream, body, &mut exchange).await,
            Err(failure) => Err(failure),
        };
        let upgrade = exchange.head.upgrade.is_some();
        match result {
            Ok(answer) if upgrade && upgrade::was_accepted(&answer.head) => {
                Ok(exchange.switch(answer, self.connection.protocol == "http2"))
            }
            Ok(mut answer) => {
                if upgrade {
                    hop::reveal_success(&mut answer.head);
                }
                hop::strip_answer(&mut answer.head.fields);
                Ok(exchange.answer(answer))
            }
            Err(failure) => Ok(exchange.fail(failure)),
        }
    }

    fn refuse(&self, failure: &Failure) -> Answer {
        refuse_head(&self.worker, &self.connection, failure)
    }
}

/// Tells the application where a request from outside came from, as gateways do.
fn forwarded(fields: &mut Fields, client: IpAddr) {
    let client = client.to_string();
    let before = fields.all(Name::XForwardedFor).chain([client.as_bytes()]);
    let chain = before.collect::<Vec<_>>().join(&b", "[..]);
    fields.set("x-forwarded-for", &chain);
    fields.set("x-forwarded-proto", b"http");
}

impl Outbound {
    /// Finds the rule and the cluster of a request: pure but for the dice.
    fn decide<'a>(&self, live: &'a Live, exchange: &mut Exchange) -> Result<(&'a Forward, &'a Arc<Cluster>), Failure> {
        let routes = self.routes(live)?;
        let (host, rule) = routes.matcher.find_index(&exchange.head).ok_or(Failure::NoRoute)?;
        let found =
            routes.matcher.table().hosts.get(host).and_then(|host| host.rules.get(rule)).ok_or(Failure::NoRoute)?;
        exchange.route = Some(found.name.clone());
        let forward = match &found.action {
            Action::Forward(forward) => forward,
            Action::Respond(status) => return Err(Failure::RouteAnswers(*status)),
            Action::Deliver => return Err(Failure::NoRoute),
        };
        let targets = routes.targets.get(host).and_then(|rules| rules.get(rule)).ok_or(Failure::NoRoute)?;
        let index = forward.pick(fastrand::f64()).ok_or(Failure::RouteAnswers(500))?;
        let upstream = targets.get(index).ok_or(Failure::RouteAnswers(500))?;
        exchange.cluster = Some(upstream.name.clone());
        exchange.security = if upstream.is_meshed() { Security::Mtls } else { Security::Plain };
        exchange.series = Some(upstream.series(self.worker.index, || {
            self.worker.metrics.series(&RequestLabels {
                direction: self.connection.direction,
                destination: upstream.name.clone(),
                source: "".into(),
                security: exchange.security,
            })
        }));
        Ok((forward, upstream))
    }

    /// Why no service is there now. `asked`: the control plane has said so.
    fn unknown(&self, live: &Live, asked: bool) -> Failure {
        let waiting = self.worker.shared.interest.is_some() && !asked;
        let inside = if waiting { Failure::NoDiscovery } else { Failure::UnknownService };
        // What may be called outside is not served here: only a new connection goes there.
        unknown(&self.worker, live, self.connection.destination, inside).err().unwrap_or(Failure::NotRegistered)
    }

    fn routes<'a>(&self, live: &'a Live) -> Result<&'a Routes, Failure> {
        match self.serves {
            Serves::Gateway(port) => {
                let gateway = live.gateway.as_ref().ok_or(Failure::NotConfigured)?;
                gateway.routes.get(&port).map(AsRef::as_ref).ok_or(Failure::NotConfigured)
            }
            Serves::Service => match live.outbound.get(&self.connection.destination) {
                Some(Some(target)) => target.routes.as_deref().ok_or(Failure::NoRoute),
                known => Err(self.unknown(live, known.is_some())),
            },
        }
    }
}
