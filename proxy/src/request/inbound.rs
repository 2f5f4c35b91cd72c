//! Inbound: a connection to the workload, then ONE request, top to bottom.
//!
//! connection: captured -> mesh TLS (identity verified) or plaintext (by mode) -> HTTP, opaque, or the application's own TLS
//! request: strip -> authorize -> filters -> attempt (the application) -> answer
//!
//! Invariant: before the first configuration everything is refused; a denial names its rule in log and metric.

use std::{net::SocketAddr, num::NonZeroU16, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout},
};
use weft_core::{
    failure::Failure,
    identity::Identity,
    listener::{InboundMode, Protocol as PortProtocol},
};
use weft_http::fields::Name;

use super::{
    authorize,
    deliver::{self, Application, Pools},
    exchange::{Attempted, Exchange},
    http,
    opaque::Opaque,
    phases,
    prelude::{self, Prelude, Silence},
    refuse,
};
use crate::{
    connection::{Connection, InFlight},
    http::{
        answer::Answer,
        body::Body,
        head::Head,
        hop,
        serve::{Handler, Refused},
        upgrade,
    },
    listener::{
        detect::{IDLE, PATIENCE, Speaks},
        socket::Accepted,
    },
    stream::{self, Duplex, Stream, tls_error},
    tcp::{
        self,
        guard::{Guard, Guarded},
    },
    telemetry::{Protocol, RequestLabels, RequestSeries, Security},
    tls::{ALPN_HTTP, ALPN_VERDICT, SvidError, handshake, verify::Peer},
    upstream::{dial::plain, pool::Version, verdict},
    worker::Worker,
};

/// Longest TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Takes one connection that was on its way to the workload.
pub(crate) async fn connection(worker: Arc<Worker>, stream: TcpStream, accepted: Accepted) {
    let flow = accepted.flow;
    let port = flow.destination.port();
    let Some((mode, protocol)) = settings(&worker, port) else {
        return refuse::connection(&worker, stream, flow, None, "", &Failure::NotConfigured);
    };
    // An opaque connection may have to be connected before either side speaks; where policy refuses it, bytes must come first.
    let silence = match (mode, protocol) {
        (InboundMode::Permissive, PortProtocol::Detect | PortProtocol::Tcp) if may_be_opaque(&worker, port, None) => {
            Silence::ServerMaySpeakFirst(IDLE)
        }
        (InboundMode::Permissive, _) => Silence::Bounded(IDLE),
        (InboundMode::Strict, _) => Silence::Bounded(PATIENCE),
    };
    let prelude = match prelude::read(plain(stream), silence, deliver::connect(&worker, flow.destination)).await {
        Ok(prelude) => prelude,
        Err(error) => return error.end(&worker, flow),
    };
    if prelude.speaks == Speaks::MeshTls {
        let Some(parts) = prelude.into_parts() else { return };
        return mesh(worker, parts, accepted).await;
    }
    if mode == InboundMode::Strict {
        return refuse::connection(&worker, prelude.stream, flow, None, "", &Failure::PlaintextRefused);
    }
    let is_tls = prelude.speaks == Speaks::ApplicationTls;
    match (protocol, prelude.http()) {
        (PortProtocol::Http | PortProtocol::Http2, Some(version)) => {
            serve(&worker, prelude.into_stream(), accepted, None, Caller::Direct, version);
        }
        (PortProtocol::Http | PortProtocol::Http2, None) if !is_tls => {
            refuse::connection(&worker, prelude.stream, flow, None, "", &Failure::ProtocolRefused);
        }
        (PortProtocol::Tcp, _) | (PortProtocol::Http | PortProtocol::Http2, None) => {
            if let Ok((stream, application)) = prelude.into_opaque().await {
                opaque(worker, stream, accepted, None, application).await;
            }
        }
        (PortProtocol::Detect, _) => detected(worker, prelude, accepted, None).await,
    }
}

/// A connection to a port of no declared protocol, from its first bytes on: HTTP is served, also where the caller's proxy took
/// it for opaque bytes, and what a lenient server could read as HTTP passes on without reserved fields only.
async fn detected(worker: Arc<Worker>, prelude: Prelude<Application>, accepted: Accepted, verified: Option<Peer>) {
    // The application may be a forward proxy, which is called through requests to others. Rules on paths are for requests that
    // the proxy reads.
    let (destination, identity) = (accepted.flow.destination, verified.as_ref().map(|verified| &verified.identity));
    let proxied = prelude.proxied().is_some_and(|authority| !is_address(authority, destination))
        && may_be_opaque(&worker, destination.port(), identity);
    match prelude.http() {
        Some(version) if !proxied => {
            serve(&worker, prelude.into_stream(), accepted, verified, Caller::Direct, version);
        }
        _ => {
            let guard = prelude.guard();
            let Ok((stream, application)) = prelude.into_opaque().await else { return };
            if guard == Guard::Nothing {
                opaque(worker, stream, accepted, verified, application).await;
            } else {
                opaque(worker, Guarded::new(stream, guard), accepted, verified, application).await;
            }
        }
    }
}

/// Whether an authority is an address that the connection leads to, with or without its port.
fn is_address(authority: &str, destination: SocketAddr) -> bool {
    authority == destination.to_string()
        || authority.trim_start_matches('[').trim_end_matches(']').parse() == Ok(destination.ip())
}

/// Whether policy allows a connection that is not HTTP on this port.
fn may_be_opaque(worker: &Worker, port: u16, identity: Option<&Identity>) -> bool {
    let live = worker.shared.live.load();
    authorize::connection(&live, port, identity).is_ok()
}

/// Mode and protocol of a port; `None` before the first configuration.
fn settings(worker: &Worker, port: u16) -> Option<(InboundMode, PortProtocol)> {
    let live = worker.shared.live.load();
    let port = live.inbound.as_ref()?.listener.port(port);
    Some((port.mode, port.protocol))
}

/// A connection from another proxy: its handshake, then HTTP or opaque bytes as its ALPN says.
async fn mesh(worker: Arc<Worker>, (stream, first): (TcpStream, Bytes), mut accepted: Accepted) {
    let flow = accepted.flow;
    let Some(tls) = worker.shared.tls.load_full() else {
        return refuse::connection(&worker, stream, flow, None, "", &Failure::NotConfigured);
    };
    let handshake = handshake::accept(tls.records, tls.server.clone(), stream, first);
    let established = match timeout(HANDSHAKE, handshake).await {
        Ok(Ok(established)) => established,
        Ok(Err(error)) => return handshake_failed(&worker, flow.peer, &error),
        Err(_elapsed) => return tls_failed(&worker, "timeout"),
    };
    let verified = match established.peer {
        Ok(verified) => verified,
        Err(error) => {
            tracing::debug!(%error, peer = %flow.peer, "peer certificate is not valid in the mesh");
            return tls_failed(&worker, if matches!(error, SvidError::NotCurrent) { "Expired" } else { "not an SVID" });
        }
    };
    worker.shared.live.proven.record(&verified.identity, verified.valid_for());
    worker.metrics.event("weft_tls_handshakes_total", &[("direction", "inbound"), ("kind", established.kind)]);
    let stream = Stream::Tls(established.session);
    let is_http = established.alpn.as_deref() == Some(ALPN_HTTP);
    let waits = established.alpn.as_deref() == Some(ALPN_VERDICT);
    if let Err(limit) = accepted.reservation.identify(&verified.identity) {
        let failure = Failure::Overloaded(limit);
        refuse::outcome(&worker, flow, Some(&verified.identity), "", &failure);
        return match (is_http, waits) {
            (true, _) => refuse::http2(stream).await,
            (false, true) => verdict::refuse(stream, &failure).await,
            (false, false) => stream::refuse(stream),
        };
    }
    if is_http {
        return serve(&worker, stream, accepted, Some(verified), Caller::Proxy, Version::Http2);
    }
    told_opaque(worker, stream, accepted, verified, waits).await;
}

/// Opaque bytes, says the peer. They are not where the port speaks HTTP, whatever the peer says. `waits`: for a verdict.
async fn told_opaque(worker: Arc<Worker>, mut stream: Stream, accepted: Accepted, verified: Peer, waits: bool) {
    let flow = accepted.flow;
    let port = flow.destination.port();
    let allowed = match settings(&worker, port) {
        None => Err(Failure::NotConfigured),
        Some((_, PortProtocol::Http | PortProtocol::Http2)) => Err(Failure::ProtocolRefused),
        Some((_, protocol @ (PortProtocol::Detect | PortProtocol::Tcp))) => {
            let live = worker.shared.live.load();
            authorize::connection(&live, port, Some(&verified.identity)).map(|()| protocol)
        }
    };
    let connected = match allowed {
        Ok(protocol) => {
            let connected = if waits {
                deliver::connect_for(&worker, flow.destination, &mut stream).await
            } else {
                deliver::connect(&worker, flow.destination).await
            };
            connected.map(|application| (protocol, application))
        }
        Err(failure) => Err(failure),
    };
    let (protocol, application) = match connected {
        Ok(connected) => connected,
        Err(failure) => {
            if waits {
                refuse::outcome(&worker, flow, Some(&verified.identity), "", &failure);
                verdict::refuse(stream, &failure).await;
            } else {
                refuse::connection(&worker, stream, flow, Some(&verified.identity), "", &failure);
            }
            return;
        }
    };
    if waits && let Err(error) = verdict::connected(&mut stream).await {
        tracing::debug!(%error, peer = %flow.peer, "the caller's proxy is gone");
        return;
    }
    if protocol == PortProtocol::Detect {
        match prelude::read(stream, Silence::ServerSpeaksFirst(tcp::IDLE_HOP), std::future::ready(Ok(application)))
            .await
        {
            Ok(prelude) => detected(worker, prelude, accepted, Some(verified)).await,
            Err(error) => error.end(&worker, flow),
        }
    } else {
        opaque(worker, stream, accepted, Some(verified), Some(application)).await;
    }
}

fn handshake_failed(worker: &Worker, peer: SocketAddr, error: &std::io::Error) {
    let reason = match tls_error(error) {
        Some(rustls::Error::InvalidCertificate(reason)) => format!("{reason:?}"),
        Some(rustls::Error::NoCertificatesPresented) => "no client certificate".to_owned(),
        Some(rustls::Error::AlertReceived(alert)) => format!("alert {alert:?}"),
        Some(_) => "protocol".to_owned(),
        None => "connection".to_owned(),
    };
    tracing::debug!(%error, %peer, "inbound TLS handshake failed");
    // Certificate errors hold names and dates of the peer's; the first word is from a closed set.
    tls_failed(worker, reason.split(['(', '{']).next().unwrap_or_default().trim());
}

fn tls_failed(worker: &Worker, reason: &str) {
    worker.metrics.event("weft_tls_failures_total", &[("direction", "inbound"), ("reason", reason)]);
}

/// Whose words the requests of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Caller {
    /// Another proxy's, by HTTP on the hop: its reserved fields are believed.
    Proxy,
    /// The caller's own, in plaintext or passed on by its proxy as opaque bytes.
    Direct,
}

/// Serves the requests of a connection.
fn serve(
    worker: &Arc<Worker>,
    stream: Stream,
    accepted: Accepted,
    verified: Option<Peer>,
    caller: Caller,
    version: Version,
) {
    let flow = accepted.flow;
    let identity = verified.as_ref().map(|verified| &verified.identity);
    let security = Security::of(identity);
    let series = worker.metrics.series(&RequestLabels {
        direction: flow.direction,
        destination: port_label(worker, flow.destination.port()),
        source: identity.map(|identity| short(worker, identity)).unwrap_or_default().into(),
        security,
    });
    http::serve(worker, stream, accepted, verified, version, |connection| Inbound {
        worker: worker.clone(),
        connection,
        caller,
        security,
        series,
        pools: Pools::default(),
    });
}

/// A declared port; `other` for those that anybody may try (permissive workloads are reached at all).
fn port_label(worker: &Worker, port: u16) -> Arc<str> {
    let live = worker.shared.live.load();
    let listed = |port| live.inbound.as_ref().is_some_and(|inbound| inbound.listener.ports.contains_key(&port));
    let declared = worker.shared.declared.contains(&port) || NonZeroU16::new(port).is_some_and(listed);
    if declared { port.to_string().into() } else { "other".into() }
}

/// `<namespace>/<service account>`, or the whole ID where it has another form or is of another trust domain.
fn short(worker: &Worker, identity: &Identity) -> String {
    let tls = worker.shared.tls.load_full();
    let ours = tls.is_some_and(|tls| tls.identity.trust_domain() == identity.trust_domain());
    match (identity.namespace(), identity.service_account()) {
        (Some(namespace), Some(account)) if ours => format!("{namespace}/{account}"),
        _ => identity.to_string(),
    }
}

/// The requests of one inbound connection.
struct Inbound {
    worker: Arc<Worker>,
    connection: Arc<Connection>,
    caller: Caller,
    security: Security,
    series: Arc<RequestSeries>,
    pools: Pools,
}

impl Handler for Inbound {
    async fn handle(&self, mut head: Head, body: Body, in_flight: InFlight) -> Result<Answer, Refused> {
        let live = self.worker.shared.live.load_full();
        let (destination, identity) = (self.connection.flow.destination, self.connection.identity.as_ref());
        // strip: the reserved fields of the hop are believed from another proxy only
        let received = match self.caller {
            Caller::Proxy => hop::receive(&mut head),
            Caller::Direct => {
                phases::strip(&mut head);
                Ok(())
            }
        };
        let mut exchange = Exchange::start(&self.worker, &self.connection, in_flight, &live, self.security, head);
        exchange.series = Some(self.series.clone());
        exchange.progress.attempts = 1;
        let body = exchange.count_request(body);
        // authorize
        let allowed = received.and_then(|()| authorize::request(&live, destination.port(), identity, &exchange.head));
        let result = match allowed {
            // attempt: the application
            Ok(()) => {
                let head = &mut exchange.head;
                deliver::request(&self.worker, &self.pools, destination, identity, head, body).await
            }
            Err(failure) => Err(failure),
        };
        // answer
        self.answer(exchange, result)
    }

    fn refuse(&self, failure: &Failure) -> Answer {
        refuse::head(&self.worker, &self.connection, failure)
    }
}

impl Inbound {
    fn answer(&self, mut exchange: Box<Exchange>, result: Attempted) -> Result<Answer, Refused> {
        let mesh = self.caller == Caller::Proxy;
        match exchange.hold(result) {
            Ok(answer) if answer.head.status == 101 => {
                let to = match self.connection.protocol == Protocol::Http2 {
                    true if mesh => upgrade::To::Hop,
                    true => upgrade::To::Http2,
                    false => upgrade::To::Http1,
                };
                Ok(exchange.switch(answer, to))
            }
            Ok(mut answer) => {
                if mesh {
                    hop::send_answer(&mut answer.head);
                    if self.is_from_behind(&exchange, answer.head.status) {
                        hop::mark_retried(&mut answer.head);
                    }
                }
                if mesh && exchange.head.upgrade.is_some() {
                    hop::hide_success(&mut answer.head);
                }
                Ok(exchange.answer(answer))
            }
            // Nothing reached the application: another instance may do better, whatever the method.
            Err(
                failure @ (Failure::Connect(_)
                | Failure::ConnectTimeout
                | Failure::Overloaded(_)
                | Failure::RefusedStream),
            ) if mesh => {
                exchange.refuse(failure);
                Err(Refused)
            }
            Err(failure) if mesh => {
                let marked = self.is_from_behind(&exchange, failure.reply().status);
                let mut answer = exchange.fail(failure);
                if marked {
                    hop::mark_retried(&mut answer.head);
                }
                Ok(answer)
            }
            Err(failure) => Ok(exchange.fail(failure)),
        }
    }

    /// Whether an answer with this status is the consequence of a failure behind the workload, which its proxy, this one, has
    /// retried already.
    fn is_from_behind(&self, exchange: &Exchange, status: u16) -> bool {
        let live = &self.worker.shared.live;
        let trace = exchange.head.request.fields.first(Name::Traceparent);
        status >= 500 && live.behind.explains(trace, live.at(exchange.started), live.now())
    }
}

/// Relays opaque bytes to the application, which may be connected already.
async fn opaque(
    worker: Arc<Worker>,
    stream: impl Duplex,
    accepted: Accepted,
    verified: Option<Peer>,
    application: Option<Application>,
) {
    let (started, flow) = (Instant::now(), accepted.flow);
    let port = flow.destination.port();
    let valid_for = verified.as_ref().map(Peer::valid_for);
    let identity = verified.map(|verified| verified.identity);
    // authorize
    let allowed = authorize::connection(&worker.shared.live.load(), port, identity.as_ref());
    if let Err(failure) = allowed {
        return refuse::connection(&worker, stream, flow, identity.as_ref(), "", &failure);
    }
    // attempt
    let connected = match application {
        Some(application) => Ok(application),
        None => deliver::connect(&worker, flow.destination).await,
    };
    let Application { stream: application, slot: _slot } = match connected {
        Ok(application) => application,
        Err(failure) => return refuse::connection(&worker, stream, flow, identity.as_ref(), "", &failure),
    };
    let revoked = authorize::connection_revoked(&worker, port, identity.clone());
    let idle = if identity.is_some() { tcp::IDLE_HOP } else { tcp::IDLE };
    let opaque = Opaque {
        worker: &worker,
        flow,
        security: Security::of(identity.as_ref()),
        identity,
        valid_for,
        cluster: "",
        endpoint: None,
        idle,
        started,
    };
    opaque.relay(stream, application, revoked).await;
}
