//! What arrives at the workload: one connection, then one request, top to bottom.
//!
//! connection: captured -> mesh TLS (identity verified) or plaintext (mode) -> HTTP, opaque, or the application's own TLS
//! request: authorization -> the application
//!
//! Invariant: before the first configuration everything is refused; a denial names its rule in log and metric.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    time::{Instant, timeout},
};
use weft_core::{
    failure::Failure,
    identity::Identity,
    listener::{AccessLog as LogPolicy, InboundMode, Protocol},
    policy::{self, Verdict},
    retry::is_idempotent,
};
use weft_http::head::Version as HttpVersion;

use crate::{
    connection::{Connection, Running},
    http::{
        body::Body,
        exchange::{Answer, Exchange, Flight},
        head::Head,
        hop, path,
        serve::{self, Handler, Refused},
    },
    listener::{
        accept::Accepted,
        detect::{IDLE, PATIENCE, SILENCE, Speaks, detect, first_speaker},
    },
    live::{InboundLive, Live},
    stream::{Stream, tls_error},
    tcp,
    telemetry::{Direction, RequestLabels, RequestSeries, Security, access_log},
    tls::{ALPN_HTTP, SvidError, handshake, verify::Peer},
    upstream::{
        dial::{Slot, plain},
        pool::{Bounds, Pool, SendError, Version},
    },
    worker::{APPLICATION, Worker},
};

/// Longest TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A TCP connection with no byte either way is closed after this.
const TCP_IDLE: Duration = Duration::from_secs(3600);

/// Takes one connection that was on its way to `destination`.
pub(crate) async fn connection(worker: Arc<Worker>, mut stream: TcpStream, accepted: Accepted) {
    let Accepted { peer, destination, .. } = accepted;
    let Some((mode, protocol)) = settings(&worker, destination.port()) else {
        return refuse_connection(&worker, peer, destination, None, &Failure::NotConfigured);
    };
    let mut bytes = BytesMut::new();
    // An opaque connection may have to be dialled before anybody speaks; where that is not allowed, bytes must come first.
    let silence = match (mode, protocol) {
        (InboundMode::Permissive, Protocol::Detect | Protocol::Tcp) if may_be_opaque(&worker, destination.port()) => {
            SILENCE
        }
        (InboundMode::Permissive, _) => IDLE,
        (InboundMode::Strict, _) => PATIENCE,
    };
    let mut application = None;
    let mut greeting = BytesMut::new();
    let speaks = match detect(&mut stream, &mut bytes, silence).await {
        Ok(Speaks::Silent) if silence == SILENCE => match dial(&worker, destination).await {
            Ok((mut server, slot)) => {
                let first = first_speaker(&mut stream, &mut bytes, &mut server, &mut greeting).await;
                application = Some((server, slot));
                first
            }
            Err(failure) => return refuse_connection(&worker, peer, destination, None, &failure),
        },
        other => other,
    };
    let speaks = match speaks {
        Ok(Speaks::Closed) => return,
        Ok(speaks) => speaks,
        Err(error) => return tracing::debug!(%error, %peer, "inbound connection broke"),
    };
    if speaks == Speaks::MeshTls {
        drop(application);
        return mesh(worker, (stream, bytes.freeze()), accepted).await;
    }
    if mode == InboundMode::Strict {
        return refuse_connection(&worker, peer, destination, None, &Failure::PlaintextRefused);
    }
    match (protocol, speaks) {
        (Protocol::Detect | Protocol::Http | Protocol::Http2, Speaks::Http1 | Speaks::Http2) => {
            drop(application);
            let version = if speaks == Speaks::Http1 { Version::Http1 } else { Version::Http2 };
            let stream = Stream::tcp(stream, bytes.freeze());
            http(&worker, stream, accepted, None, version);
        }
        (Protocol::Detect | Protocol::Tcp, _) | (_, Speaks::ApplicationTls) => {
            if stream.write_all(&greeting).await.is_ok() {
                opaque(worker, Stream::tcp(stream, bytes.freeze()), peer, destination, None, application).await;
            }
        }
        (Protocol::Http | Protocol::Http2, _) => {
            refuse_connection(&worker, peer, destination, None, &Failure::ProtocolRefused);
        }
    }
}

/// Whether a plaintext connection that is not HTTP would be let in on this port.
fn may_be_opaque(worker: &Worker, port: u16) -> bool {
    let live = worker.shared.state.live();
    live.inbound.as_ref().is_some_and(|inbound| decide_opaque(inbound, port, None).is_ok())
}

/// Mode and protocol of a port; `None` before the first configuration.
fn settings(worker: &Worker, port: u16) -> Option<(InboundMode, Protocol)> {
    let live = worker.shared.state.live();
    let port = live.inbound.as_ref()?.listener.port(port);
    Some((port.mode, port.protocol))
}

/// A connection from another proxy.
async fn mesh(worker: Arc<Worker>, (stream, first): (TcpStream, Bytes), accepted: Accepted) {
    let Accepted { peer, destination, .. } = accepted;
    let Some(tls) = worker.shared.tls.load_full() else {
        return refuse_connection(&worker, peer, destination, None, &Failure::NotConfigured);
    };
    let shaken = match timeout(HANDSHAKE, handshake::accept(tls.server.clone(), stream, first)).await {
        Ok(Ok(shaken)) => shaken,
        Ok(Err(error)) => return tls_failed(&worker, peer, &error),
        Err(_elapsed) => {
            return worker.metrics.event("weft_tls_failures_total", &[("direction", "inbound"), ("reason", "timeout")]);
        }
    };
    let verified = match shaken.peer {
        Ok(verified) => verified,
        Err(error) => {
            tracing::debug!(%error, %peer, "peer certificate is not fit for the mesh");
            let reason = if matches!(error, SvidError::NotCurrent) { "Expired" } else { "not an SVID" };
            let labels = [("direction", "inbound"), ("reason", reason)];
            return worker.metrics.event("weft_tls_failures_total", &labels);
        }
    };
    worker.metrics.event("weft_tls_handshakes_total", &[("direction", "inbound"), ("kind", shaken.kind)]);
    let stream = Stream::Tls(shaken.session);
    if shaken.alpn.as_deref() == Some(ALPN_HTTP) {
        http(&worker, stream, accepted, Some(verified), Version::Http2);
    } else {
        opaque(worker, stream, peer, destination, Some(verified), None).await;
    }
}

fn tls_failed(worker: &Worker, peer: SocketAddr, error: &std::io::Error) {
    let reason = match tls_error(error) {
        Some(rustls::Error::InvalidCertificate(reason)) => format!("{reason:?}"),
        Some(rustls::Error::NoCertificatesPresented) => "no client certificate".to_owned(),
        Some(rustls::Error::AlertReceived(alert)) => format!("alert {alert:?}"),
        Some(_) => "protocol".to_owned(),
        None => "connection".to_owned(),
    };
    // Certificate errors hold names and dates of the peer's; the first word is from a closed set.
    let reason = reason.split(['(', '{']).next().unwrap_or_default().trim();
    tracing::debug!(%error, %peer, "inbound TLS handshake failed");
    worker.metrics.event("weft_tls_failures_total", &[("direction", "inbound"), ("reason", reason)]);
}

/// Serves the requests of a connection, in a task of its own: what it took to find out what it speaks is not kept.
fn http(
    worker: &Arc<Worker>,
    stream: Stream,
    Accepted { peer, destination, since, place }: Accepted,
    verified: Option<Peer>,
    version: Version,
) {
    let protocol = if version == Version::Http1 { "http1" } else { "http2" };
    let security = if verified.is_some() { Security::Mtls } else { Security::Plain };
    let valid_for = verified.as_ref().map(Peer::valid_for);
    let identity = verified.map(|verified| verified.identity);
    let series = worker.metrics.series(&RequestLabels {
        direction: Direction::Inbound,
        destination: destination.port().to_string().into(),
        source: identity.as_ref().map(short).unwrap_or_default().into(),
        security,
    });
    let entry = worker.connections.open(Direction::Inbound, peer, destination, identity, protocol);
    let connection = entry.connection.clone();
    let guards = (worker.metrics.connection(Direction::Inbound), entry, place);
    connection.http_begins(since);
    if let Some(valid_for) = valid_for {
        connection.valid_for(valid_for);
    }
    let pools = Default::default();
    let handler = Arc::new(Inbound { worker: worker.clone(), connection: connection.clone(), security, series, pools });
    match version {
        Version::Http1 => {
            worker.spawn(serve::http1(stream, connection, handler, worker.clone()).map(|()| drop(guards)))
        }
        Version::Http2 => {
            worker.spawn(serve::http2(stream, connection, handler, worker.clone()).map(|()| drop(guards)))
        }
    }
}

/// `<namespace>/<service account>`, or the whole ID where it has another form.
pub(crate) fn short(identity: &Identity) -> String {
    match (identity.namespace(), identity.service_account()) {
        (Some(namespace), Some(account)) => format!("{namespace}/{account}"),
        _ => identity.to_string(),
    }
}

/// The requests of one inbound connection.
struct Inbound {
    worker: Arc<Worker>,
    connection: Arc<Connection>,
    security: Security,
    series: Arc<RequestSeries>,
    pools: Pools,
}

/// The pools to the application that a connection uses, by version.
type Pools = [OnceLock<Arc<Pool>>; 2];

impl Handler for Inbound {
    async fn handle(&self, mut head: Head, body: Body, running: Running) -> Result<Answer, Refused> {
        let live = self.worker.shared.state.live_full();
        let mesh = self.connection.identity.is_some();
        if mesh {
            hop::receive(&mut head);
        } else {
            hop::strip(&mut head.request.fields);
            head.tell_tunnels_method();
        }
        let policy = self.worker.log_policy(live.access_log);
        let mut exchange = Exchange::start(&self.worker, &self.connection, running, policy, self.security, head);
        exchange.series = Some(self.series.clone());
        exchange.attempts = 1;
        let body = exchange.count_request(body);
        let (destination, identity) = (self.connection.destination, self.connection.identity.as_ref());
        let result = match decide(&live, destination.port(), identity, &exchange.head) {
            Ok(()) => {
                let mut flight = Flight::default();
                let head = &mut exchange.head;
                let result = deliver(&self.worker, &self.pools, destination, identity, head, body, &mut flight).await;
                exchange.flight = Some(flight);
                result
            }
            Err(failure) => Err(failure),
        };
        match result {
            Ok(answer) if answer.head.status == 101 => Ok(exchange.switch(answer, self.connection.protocol == "http2")),
            Ok(mut answer) => {
                if mesh && exchange.head.upgrade.is_some() {
                    hop::hide_success(&mut answer.head);
                }
                Ok(exchange.answer(answer))
            }
            // Nothing reached the application: another instance may do better, whatever the method.
            Err(failure @ (Failure::Connect(_) | Failure::ConnectTimeout | Failure::Overloaded(_))) if mesh => {
                exchange.refuse(failure);
                Err(Refused)
            }
            Err(failure) => Ok(exchange.fail(failure)),
        }
    }

    fn refuse(&self, failure: &Failure) -> Answer {
        refuse_head(&self.worker, &self.connection, failure)
    }
}

/// Judges a request: pure.
fn decide(live: &Live, port: u16, identity: Option<&Identity>, head: &Head) -> Result<(), Failure> {
    let inbound = live.inbound.as_ref().ok_or(Failure::NotConfigured)?;
    let settings = inbound.listener.port(port);
    if settings.mode == InboundMode::Strict && identity.is_none() {
        return Err(Failure::PlaintextRefused);
    }
    let requests = inbound.requests.get(&settings.routes).ok_or(Failure::NotConfigured)?;
    if requests.allows_all() {
        return Ok(());
    }
    let judge = |path: &str| {
        let request = policy::Request { identity, port, http: Some((head.request.method(), path)) };
        verdict(requests.check(&request))
    };
    judge(head.request.path())?;
    // A rule on paths must hold however the application reads the path.
    if requests.judges_paths() {
        for reading in path::readings(head.request.path()).map_err(Failure::BadRequest)? {
            judge(&reading)?;
        }
    }
    Ok(())
}

/// Judges an opaque connection of the workload to itself by its own policy.
pub(crate) fn may_call_itself(worker: &Worker, destination: SocketAddr) -> Result<(), Failure> {
    let live = worker.shared.state.live();
    let identity = worker.shared.tls.load_full().map(|tls| tls.identity.clone());
    decide_opaque(live.inbound.as_ref().ok_or(Failure::NotConfigured)?, destination.port(), identity.as_ref())
}

/// Judges a connection that is not HTTP: pure.
fn decide_opaque(inbound: &InboundLive, port: u16, identity: Option<&Identity>) -> Result<(), Failure> {
    verdict(inbound.connections(port).check(&policy::Request { identity, port, http: None }))
}

fn verdict(verdict: Verdict<'_>) -> Result<(), Failure> {
    match verdict {
        Verdict::Allow(_) => Ok(()),
        Verdict::DeniedBy(rule) => Err(Failure::Denied(rule.into())),
        Verdict::NotAllowed => Err(Failure::NotAllowed),
    }
}

/// Hands a request to the application, in the version that its caller spoke.
async fn deliver(
    worker: &Arc<Worker>,
    [http1, http2]: &Pools,
    application: SocketAddr,
    client: Option<&Identity>,
    head: &mut Head,
    body: Body,
    flight: &mut Flight,
) -> Result<Answer, Failure> {
    head.write_for_hop(false);
    hop::strip(&mut head.request.fields);
    if let Some(client) = client {
        head.request.fields.push(hop::CLIENT_ID.as_bytes(), client.as_str().as_bytes());
    }
    let (version, body) = match (&head.upgrade, head.version) {
        (Some(_), _) => {
            head.request.version = HttpVersion::Http11;
            (Version::Http1, Body::Empty)
        }
        (None, HttpVersion::Http2) => (Version::Http2, body),
        (None, version) => {
            head.request.version = version;
            (Version::Http1, body)
        }
    };
    let (request, upgrade) = (&head.request, head.upgrade.as_deref());
    let repeatable = upgrade.is_none() && matches!(body, Body::Empty) && is_idempotent(request.method());
    let pool = if version == Version::Http1 { http1 } else { http2 };
    let pool = pool.get_or_init(|| worker.application(application, version));
    let mut sent = pool.send(worker.opener(), APPLICATION, request, upgrade, body, &mut flight.far).await;
    // The connection was idle, and the application closed it while the request was on its way (RFC 9112 §9.3.1). The caller
    // knows nothing of our pool, so this is ours to mend, on a connection that is not out of it.
    if let Err(SendError { failure: Failure::Reset(_), reused: true, .. }) = &sent
        && repeatable
    {
        let fresh = Bounds { idle: Duration::ZERO, ..APPLICATION };
        sent = pool.send(worker.opener(), fresh, request, upgrade, Body::Empty, &mut flight.far).await;
    }
    let (mut response, body, lease) = sent.map_err(|error| error.failure)?;
    flight.lease = Some(lease);
    if response.status != 101 {
        hop::strip(&mut response.fields);
    }
    Ok(Answer::new(response, body))
}

/// A request of the workload to itself: no hop, but its own policy.
pub(crate) async fn from_self(
    worker: &Arc<Worker>,
    destination: SocketAddr,
    head: &mut Head,
    body: Body,
    flight: &mut Flight,
) -> Result<Answer, Failure> {
    head.write_for_hop(false);
    let live = worker.shared.state.live_full();
    let identity = worker.shared.tls.load_full().map(|tls| tls.identity.clone());
    decide(&live, destination.port(), identity.as_ref(), head)?;
    deliver(worker, &Pools::default(), destination, identity.as_ref(), head, body, flight).await
}

/// Copies opaque bytes to the application, which may be connected already.
pub(crate) async fn opaque(
    worker: Arc<Worker>,
    stream: Stream,
    peer: SocketAddr,
    destination: SocketAddr,
    verified: Option<Peer>,
    application: Option<(Stream, Slot)>,
) {
    let started = Instant::now();
    let valid_for = verified.as_ref().map(Peer::valid_for);
    let identity = verified.map(|verified| verified.identity);
    let live = worker.shared.state.live_full();
    let decision = match &live.inbound {
        Some(inbound) => decide_opaque(inbound, destination.port(), identity.as_ref()),
        None => Err(Failure::NotConfigured),
    };
    if let Err(failure) = decision {
        return refuse_connection(&worker, peer, destination, identity.as_ref(), &failure);
    }
    let dialled = match application {
        Some(application) => Ok(application),
        None => dial(&worker, destination).await,
    };
    let (application, _slot) = match dialled {
        Ok(application) => application,
        Err(failure) => return refuse_connection(&worker, peer, destination, identity.as_ref(), &failure),
    };
    let entry = worker.connections.open(Direction::Inbound, peer, destination, identity, "tcp");
    let _open = worker.metrics.connection(Direction::Inbound);
    if let Some(valid_for) = valid_for {
        entry.connection.valid_for(valid_for);
    }
    let relayed = tokio::select! {
        relayed = tcp::relay(stream, application, TCP_IDLE) => relayed,
        () = entry.connection.cut() => return,
        failure = revoked(&worker, &entry.connection) => {
            let identity = entry.connection.identity.as_ref();
            return refuse_connection(&worker, peer, destination, identity, &failure);
        }
    };
    let policy = worker.log_policy(live.access_log);
    tcp_ended(&worker, &entry.connection, &relayed, policy, "", None, started);
}

/// Ends when a new configuration no longer lets this opaque connection in. Requests are judged one by one; here there are none.
async fn revoked(worker: &Worker, connection: &Connection) -> Failure {
    let state = &worker.shared.state;
    loop {
        let swapped = state.swapped.notified();
        let (port, identity) = (connection.destination.port(), connection.identity.as_ref());
        if let Some(inbound) = &state.live().inbound {
            if identity.is_none() && inbound.listener.port(port).mode == InboundMode::Strict {
                return Failure::PlaintextRefused;
            }
            if let Err(failure) = decide_opaque(inbound, port, identity) {
                return failure;
            }
        }
        swapped.await;
    }
}

/// Ends when a new configuration no longer allows a request that has become a tunnel.
pub(crate) async fn revoked_request(worker: &Worker, connection: &Connection, head: &Head) -> Failure {
    if connection.direction != Direction::Inbound {
        return std::future::pending().await;
    }
    let state = &worker.shared.state;
    loop {
        let swapped = state.swapped.notified();
        if let Err(failure) = decide(&state.live(), connection.destination.port(), connection.identity.as_ref(), head) {
            return failure;
        }
        swapped.await;
    }
}

async fn dial(worker: &Arc<Worker>, destination: SocketAddr) -> Result<(Stream, Slot), Failure> {
    let slot = Slot::take(&worker.application_counts.connections, APPLICATION.connections, "connections")?;
    let stream = worker.dialer.tcp(destination, APPLICATION.connect).await?;
    tcp::bound_unread(&stream);
    Ok((plain(stream), slot))
}

/// Metrics and log line of an opaque connection that has ended.
pub(crate) fn tcp_ended(
    worker: &Worker,
    connection: &Connection,
    (relayed, result): &(tcp::Relayed, Result<(), tcp::RelayError>),
    policy: LogPolicy,
    cluster: &str,
    endpoint: Option<SocketAddr>,
    started: Instant,
) {
    let direction = connection.direction.as_str();
    let metrics = &worker.metrics;
    for (way, bytes) in [("sent", relayed.sent), ("received", relayed.received)] {
        metrics.events_by(
            "weft_tcp_bytes_total",
            &[("direction", direction), ("cluster", cluster), ("way", way)],
            bytes,
        );
    }
    let reason = result.as_ref().err().map(ToString::to_string).unwrap_or_default();
    if access_log::wanted(policy, 0, false) {
        let entry = crate::telemetry::Entry {
            time: access_log::timestamp(),
            direction,
            protocol: "tcp",
            reason: &reason,
            source: &connection.peer.to_string(),
            source_identity: connection.identity.as_ref().map(Identity::as_str),
            destination: connection.destination.to_string(),
            cluster,
            endpoint: endpoint.map(|endpoint| endpoint.to_string()),
            attempts: 1,
            security: if connection.identity.is_some() { "mtls" } else { "plain" },
            duration_us: access_log::micros(started.elapsed()),
            bytes_sent: relayed.sent,
            bytes_received: relayed.received,
            ..crate::telemetry::Entry::default()
        };
        worker.log.write(&entry, metrics);
    }
}

/// Answer, metrics and log line of a request whose head is not fit to be looked at further.
pub(crate) fn refuse_head(worker: &Worker, connection: &Connection, failure: &Failure) -> Answer {
    let answer = crate::http::respond::to(failure, false);
    let (metrics, reply, direction) = (&worker.metrics, failure.reply(), connection.direction);
    let security = if connection.identity.is_some() { Security::Mtls } else { Security::Plain };
    let labels = RequestLabels { direction, destination: "".into(), source: "".into(), security };
    metrics.series(&labels).record(reply.status, Duration::ZERO, 0, 0);
    let labels = [("direction", direction.as_str()), ("destination", ""), ("flag", reply.flag)];
    metrics.event("weft_failures_total", &labels);
    if access_log::wanted(worker.log_policy(worker.shared.state.live().access_log), reply.status, true) {
        let entry = crate::telemetry::Entry {
            time: access_log::timestamp(),
            direction: direction.as_str(),
            protocol: connection.protocol,
            status: reply.status,
            flag: reply.flag,
            reason: &failure.to_string(),
            source: &connection.peer.to_string(),
            source_identity: connection.identity.as_ref().map(Identity::as_str),
            destination: connection.destination.to_string(),
            security: security.as_str(),
            ..crate::telemetry::Entry::default()
        };
        worker.log.write(&entry, metrics);
    }
    answer
}

/// Metrics and log line of a connection that is closed without a byte.
pub(crate) fn refuse_connection(
    worker: &Worker,
    peer: SocketAddr,
    destination: SocketAddr,
    identity: Option<&Identity>,
    failure: &Failure,
) {
    refuse(worker, Direction::Inbound, peer, destination, identity, "", failure);
}

/// The same for both directions.
pub(crate) fn refuse(
    worker: &Worker,
    direction: Direction,
    peer: SocketAddr,
    destination: SocketAddr,
    identity: Option<&Identity>,
    cluster: &str,
    failure: &Failure,
) {
    let flag = failure.reply().flag;
    let direction = direction.as_str();
    let metrics = &worker.metrics;
    metrics.event("weft_failures_total", &[("direction", direction), ("destination", cluster), ("flag", flag)]);
    if let Failure::Denied(rule) = failure {
        metrics.event("weft_denied_total", &[("rule", rule)]);
    } else if matches!(failure, Failure::NotAllowed) {
        metrics.event("weft_denied_total", &[("rule", "no rule allows it")]);
    }
    if access_log::wanted(worker.log_policy(worker.shared.state.live().access_log), 0, true) {
        let reason = failure.to_string();
        let entry = crate::telemetry::Entry {
            time: access_log::timestamp(),
            direction,
            protocol: "tcp",
            flag,
            reason: &reason,
            source: &peer.to_string(),
            source_identity: identity.map(Identity::as_str),
            destination: destination.to_string(),
            cluster,
            security: if identity.is_some() { "mtls" } else { "plain" },
            ..crate::telemetry::Entry::default()
        };
        worker.log.write(&entry, metrics);
    }
}
