//! Inbound: a connection to the workload, then ONE request, top to bottom.
//!
//! connection: captured -> mesh TLS (identity verified) or plaintext (by mode) -> HTTP, opaque, or the application's own TLS
//! request: strip -> authorize -> filters -> attempt (the application) -> answer
//!
//! Invariant: before the first configuration everything is refused; a denial names its rule in log and metric.

use std::{net::SocketAddr, sync::Arc, time::Duration};

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

use super::{
    authorize,
    deliver::{self, Application, Pools},
    exchange::{Attempted, Exchange},
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
        hop,
        serve::{Handler, Refused},
    },
    listener::{
        detect::{IDLE, PATIENCE, Speaks},
        socket::Accepted,
    },
    stream::{Stream, tls_error},
    telemetry::{Protocol, RequestLabels, RequestSeries, Security},
    tls::{ALPN_HTTP, SvidError, handshake, verify::Peer},
    upstream::pool::Version,
    worker::Worker,
};

/// Longest TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A TCP connection is closed after this time without a byte in either direction.
const TCP_IDLE: Duration = Duration::from_secs(3600);

/// Takes one connection that was on its way to the workload.
pub(crate) async fn connection(worker: Arc<Worker>, stream: TcpStream, accepted: Accepted) {
    let flow = accepted.flow;
    let port = flow.destination.port();
    let Some((mode, protocol)) = settings(&worker, port) else {
        return refuse::connection(&worker, flow, None, "", &Failure::NotConfigured);
    };
    // An opaque connection may have to be connected before either side speaks; where policy refuses it, bytes must come first.
    let silence = match (mode, protocol) {
        (InboundMode::Permissive, PortProtocol::Detect | PortProtocol::Tcp) if may_be_opaque(&worker, port) => {
            Silence::ServerMaySpeakFirst
        }
        (InboundMode::Permissive, _) => Silence::Bounded(IDLE),
        (InboundMode::Strict, _) => Silence::Bounded(PATIENCE),
    };
    let prelude = match prelude::read(stream, silence, deliver::connect(&worker, flow.destination)).await {
        Ok(prelude) => prelude,
        Err(error) => return error.end(&worker, flow),
    };
    if prelude.speaks == Speaks::MeshTls {
        return mesh(worker, prelude.into_parts(), accepted).await;
    }
    if mode == InboundMode::Strict {
        return refuse::connection(&worker, flow, None, "", &Failure::PlaintextRefused);
    }
    match (protocol, prelude.http()) {
        (PortProtocol::Detect | PortProtocol::Http | PortProtocol::Http2, Some(version)) => {
            serve(&worker, prelude.into_stream(), accepted, None, version);
        }
        (PortProtocol::Http | PortProtocol::Http2, None) if prelude.speaks != Speaks::ApplicationTls => {
            refuse::connection(&worker, flow, None, "", &Failure::ProtocolRefused);
        }
        (PortProtocol::Detect | PortProtocol::Tcp | PortProtocol::Http | PortProtocol::Http2, _) => {
            if let Ok((stream, application)) = prelude.into_opaque().await {
                opaque(worker, stream, accepted, None, application).await;
            }
        }
    }
}

/// Whether policy allows a plaintext connection that is not HTTP on this port.
fn may_be_opaque(worker: &Worker, port: u16) -> bool {
    let live = worker.shared.live.load();
    authorize::connection(&live, port, None).is_ok()
}

/// Mode and protocol of a port; `None` before the first configuration.
fn settings(worker: &Worker, port: u16) -> Option<(InboundMode, PortProtocol)> {
    let live = worker.shared.live.load();
    let port = live.inbound.as_ref()?.listener.port(port);
    Some((port.mode, port.protocol))
}

/// A connection from another proxy: its handshake, then HTTP or opaque bytes as its ALPN says.
async fn mesh(worker: Arc<Worker>, (stream, first): (TcpStream, Bytes), accepted: Accepted) {
    let flow = accepted.flow;
    let Some(tls) = worker.shared.tls.load_full() else {
        return refuse::connection(&worker, flow, None, "", &Failure::NotConfigured);
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
    worker.metrics.event("weft_tls_handshakes_total", &[("direction", "inbound"), ("kind", established.kind)]);
    let stream = Stream::Tls(established.session);
    if established.alpn.as_deref() == Some(ALPN_HTTP) {
        serve(&worker, stream, accepted, Some(verified), Version::Http2);
    } else {
        opaque(worker, stream, accepted, Some(verified), None).await;
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

/// Serves the requests of a connection.
fn serve(worker: &Arc<Worker>, stream: Stream, accepted: Accepted, verified: Option<Peer>, version: Version) {
    let flow = accepted.flow;
    let identity = verified.as_ref().map(|verified| &verified.identity);
    let security = Security::of(identity);
    let series = worker.metrics.series(&RequestLabels {
        direction: flow.direction,
        destination: flow.destination.port().to_string().into(),
        source: identity.map(short).unwrap_or_default().into(),
        security,
    });
    http::serve(worker, stream, accepted, verified, version, |connection| Inbound {
        worker: worker.clone(),
        connection,
        security,
        series,
        pools: Pools::default(),
    });
}

/// `<namespace>/<service account>`, or the whole ID where it has another form.
fn short(identity: &Identity) -> String {
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

impl Handler for Inbound {
    async fn handle(&self, mut head: Head, body: Body, in_flight: InFlight) -> Result<Answer, Refused> {
        let live = self.worker.shared.live.load_full();
        let (destination, identity) = (self.connection.flow.destination, self.connection.identity.as_ref());
        // strip: the reserved fields of the hop are believed from another proxy only
        if identity.is_some() {
            hop::receive(&mut head)
        } else {
            phases::strip(&mut head)
        }
        let mut exchange = Exchange::start(&self.worker, &self.connection, in_flight, &live, self.security, head);
        exchange.series = Some(self.series.clone());
        exchange.progress.attempts = 1;
        let body = exchange.count_request(body);
        // authorize
        let result = match authorize::request(&live, destination.port(), identity, &exchange.head) {
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
        let mesh = self.connection.identity.is_some();
        match exchange.hold(result) {
            Ok(answer) if answer.head.status == 101 => {
                Ok(exchange.switch(answer, self.connection.protocol == Protocol::Http2))
            }
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
}

/// Relays opaque bytes to the application, which may be connected already.
async fn opaque(
    worker: Arc<Worker>,
    stream: Stream,
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
        return refuse::connection(&worker, flow, identity.as_ref(), "", &failure);
    }
    // attempt
    let connected = match application {
        Some(application) => Ok(application),
        None => deliver::connect(&worker, flow.destination).await,
    };
    let Application { stream: application, slot: _slot } = match connected {
        Ok(application) => application,
        Err(failure) => return refuse::connection(&worker, flow, identity.as_ref(), "", &failure),
    };
    let revoked = authorize::connection_revoked(&worker, port, identity.clone());
    let opaque =
        Opaque { worker: &worker, flow, identity, valid_for, cluster: "", endpoint: None, idle: TCP_IDLE, started };
    opaque.relay(stream, application, revoked).await;
}
