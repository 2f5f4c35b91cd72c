//! Gateway: a connection from outside to a port of its own, then ONE request to a service of the mesh, top to bottom.
//!
//! request: strip -> path (read in one way only) -> route (the table of the port) -> filters -> attempt -> answer

use std::{net::IpAddr, sync::Arc};

use tokio::net::TcpStream;
use weft_core::{failure::Failure, listener::EncodedSlashes};
use weft_http::fields::{Fields, Name};

use super::{exchange::Exchange, http, phases, prelude, refuse};
use crate::{
    connection::{Connection, InFlight},
    http::{
        answer::Answer,
        body::Body,
        head::Head,
        path, respond,
        serve::{Handler, Refused},
    },
    listener::{
        detect::{PATIENCE, Speaks},
        socket::Accepted,
    },
    live::{GatewayListener, Snapshot},
    telemetry::Security,
    worker::Worker,
};

/// Fields that callers at the edge are not believed.
const CLAIMS: [&[u8]; 3] = [b"x-forwarded-client-cert", b"client-cert", b"client-cert-chain"];

/// Takes one connection to a port of the gateway, by its number in the Gateway object.
pub(crate) async fn connection(worker: Arc<Worker>, stream: TcpStream, accepted: Accepted, port: u16) {
    let flow = accepted.flow;
    let prelude = match prelude::read_within(stream, PATIENCE).await {
        Ok(prelude) => prelude,
        Err(error) => return error.end(&worker, flow),
    };
    match (prelude.http(), prelude.speaks) {
        (Some(version), _) => {
            http::serve(&worker, prelude.into_stream(), accepted, None, version, |connection| Gateway {
                worker: worker.clone(),
                connection,
                port,
            });
        }
        (None, Speaks::Silent) => {}
        (None, _) => refuse::connection(&worker, prelude.stream, flow, None, "", &Failure::ProtocolRefused),
    }
}

/// The requests of one connection to a port.
struct Gateway {
    worker: Arc<Worker>,
    connection: Arc<Connection>,
    port: u16,
}

impl Handler for Gateway {
    async fn handle(&self, mut head: Head, body: Body, in_flight: InFlight) -> Result<Answer, Refused> {
        let live = self.worker.shared.live.load_full();
        // strip
        phases::strip(&mut head);
        head.request.fields.retain(|field| !is_claim(field.name));
        forwarded(&mut head.request.fields, self.connection.flow.peer.ip());
        let mut exchange = Exchange::start(&self.worker, &self.connection, in_flight, &live, Security::Plain, head);
        let body = exchange.count_request(body);
        // route -> filters -> attempt -> filters, on the way back
        let routes = gateway(&live).and_then(|gateway| {
            check(exchange.head.request.path(), gateway.encoded_slashes)?;
            gateway.routes.get(&self.port).map(AsRef::as_ref).ok_or(Failure::NotConfigured)
        });
        let mut result = phases::forward(&self.worker, routes, &mut exchange, body).await;
        if let Ok(answer) = &mut result {
            respond::without_names(answer);
        }
        // answer
        Ok(phases::answer(exchange, result))
    }

    fn refuse(&self, failure: &Failure) -> Answer {
        refuse::head(&self.worker, &self.connection, failure)
    }
}

/// Whether a field tells the application what only a proxy may tell it: who calls, by certificate, or how a proxy is to
/// route (RFC 9440 §2.4; Envoy's `x-forwarded-client-cert` and `x-envoy-*`). CGI and WSGI take `_` for `-`.
fn is_claim(name: &[u8]) -> bool {
    let is = |text: &[u8]| {
        name.get(..text.len()).is_some_and(|start| {
            start.iter().zip(text).all(|(a, b)| a.eq_ignore_ascii_case(b) || (*a == b'_' && *b == b'-'))
        })
    };
    is(b"x-envoy-") || CLAIMS.iter().any(|claim| name.len() == claim.len() && is(claim))
}

fn gateway(live: &Snapshot) -> Result<&GatewayListener, Failure> {
    live.gateway.as_deref().ok_or(Failure::NotConfigured)
}

/// Refuses a path that applications read in different ways.
fn check(path: &str, slashes: EncodedSlashes) -> Result<(), Failure> {
    let readings = match slashes {
        EncodedSlashes::Refuse => path::readings(path),
        EncodedSlashes::Keep => path::readings(&path::with_slashes(path)),
    };
    readings.map(drop).map_err(Failure::BadRequest)
}

/// Tells the application where a request from outside came from, as gateways do.
fn forwarded(fields: &mut Fields, client: IpAddr) {
    let client = client.to_string();
    let before = fields.all(Name::XForwardedFor).chain([client.as_bytes()]);
    let chain = before.collect::<Vec<_>>().join(&b", "[..]);
    fields.set("x-forwarded-for", &chain);
    fields.set("x-forwarded-proto", b"http");
}
