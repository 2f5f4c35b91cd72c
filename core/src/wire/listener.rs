//! Listeners <-> `envoy.config.listener.v3.Listener`.
//!
//! | model | xDS |
//! |---|---|
//! | kind and key | `name`; `traffic_direction` for readers only |
//! | `access_log` (inbound, gateway) | `metadata.access_log`: `off`, `errors`, `all`; absent: `errors` |
//! | **inbound** port | two `filter_chains` with `filter_chain_match.destination_port`; the default: one without, and `default_filter_chain` |
//! | … `routes` | chain with `application_protocols` [`HTTP_ALPN`]: HTTP connection manager, `rds.route_config_name`; its http filters `weft.rbac.deny` and `weft.rbac.allow` are declared empty, their rules travel by RDS |
//! | … `authorization` | chain without `application_protocols`: network RBAC filters, then `tcp_proxy` to [`INBOUND_CLUSTER`] |
//! | … `mode` | `transport_socket` with a required client certificate on both chains: mesh TLS; `metadata.mode` `permissive` on the chain without ALPN: plaintext too. Lost metadata so means strict |
//! | … `protocol` | `metadata.protocol` on the chain without ALPN: `detect`, `http`, `http2`, `tcp`; absent: `detect` |
//! | **outbound default** `policy` | `default_filter_chain` with `tcp_proxy` to [`PASSTHROUGH_CLUSTER`]; no chain: `registered-only` |
//! | **outbound** `address` | in the name |
//! | … `protocol` | `metadata.protocol`; absent: what the parts below imply |
//! | … `http` | `api_listener`: HTTP connection manager, `rds.route_config_name` |
//! | … `tcp` | `default_filter_chain` with `tcp_proxy`: `cluster` for one of weight 1, else `weighted_clusters` |
//! | **gateway** `ports` | `address` and `additional_addresses` (`[::]`, both families), and a chain per `destination_port` with its `rds` |
//!
//! Certificates are named by SDS ([`CERTIFICATE_SECRET`], [`TRUST_SECRET`], never sent): the form that gRPC wants is in
//! no message, since Envoy takes it and verifies nothing. A transport socket other than this one is refused.

mod chain;
mod read;

use std::num::NonZeroU16;

use prost_types::Any;
use weft_proto::envoy::config::{
    core::v3::{Address, SocketAddress, TrafficDirection, socket_address::PortSpecifier},
    listener::v3::{AdditionalAddress, ApiListener, FilterChain, FilterChainMatch, Listener as Message},
};

use self::chain::{http_chain, http_manager, inbound_chains, tcp_filter};
pub(super) use self::{chain::ads, read::check_source};
use super::{ClientClass, Encoded, NotForClient, ResourceType, WireError, metadata, parse_with, types::pack};
use crate::{
    listener::{
        AccessLog, Gateway, Inbound, InboundMode, Listener, Outbound, OutboundDefault, OutboundPolicy, Protocol,
    },
    names::ListenerName,
    route::WeightedCluster,
};

/// The cluster of traffic that is handed to the workload: the connection's original destination.
pub const INBOUND_CLUSTER: &str = "inbound";
/// The cluster of traffic that leaves the mesh untouched: the connection's original destination.
pub const PASSTHROUGH_CLUSTER: &str = "passthrough";
/// The secret that stands for the proxy's own certificate.
pub const CERTIFICATE_SECRET: &str = "weft:svid";
/// The secret that stands for the proxy's trust bundle.
pub const TRUST_SECRET: &str = "weft:trust-bundle";
/// ALPN of the mesh, HTTP of every version.
pub const HTTP_ALPN: [&str; 3] = ["weft-h2", "h2", "http/1.1"];
/// ALPN of the mesh, opaque bytes.
pub const TCP_ALPN: &str = "weft-tcp";

const ACCESS_LOG: &str = "access_log";
const MODE: &str = "mode";
const PROTOCOL: &str = "protocol";

const ACCESS_LOGS: [(&str, AccessLog); 3] =
    [("off", AccessLog::Off), ("errors", AccessLog::Errors), ("all", AccessLog::All)];
const MODES: [(&str, InboundMode); 2] = [("permissive", InboundMode::Permissive), ("strict", InboundMode::Strict)];
const PROTOCOLS: [(&str, Protocol); 4] =
    [("detect", Protocol::Detect), ("http", Protocol::Http), ("http2", Protocol::Http2), ("tcp", Protocol::Tcp)];

/// The name of a listener's resource.
pub fn listener_name(listener: &Listener) -> ListenerName {
    match listener {
        Listener::Inbound(_) => ListenerName::Inbound,
        Listener::OutboundDefault(_) => ListenerName::OutboundDefault,
        Listener::Outbound(outbound) => ListenerName::Outbound(outbound.address),
        Listener::Gateway(gateway) => {
            ListenerName::Gateway { namespace: gateway.namespace.clone(), name: gateway.name.clone() }
        }
    }
}

/// Renders a listener.
/// Errors: the class of client gets no listeners.
pub fn render_listener(listener: &Listener, class: ClientClass) -> Result<Encoded, NotForClient> {
    if class != ClientClass::Weft {
        return Err(NotForClient::Listener);
    }
    let name = listener_name(listener).to_string();
    let mut message = match listener {
        Listener::Inbound(inbound) => render_inbound(inbound),
        Listener::OutboundDefault(outbound) => render_outbound_default(outbound),
        Listener::Outbound(outbound) => render_outbound(outbound),
        Listener::Gateway(gateway) => render_gateway(gateway),
    };
    message.name.clone_from(&name);
    Ok(Encoded::new(ResourceType::Listener, name, &message))
}

/// Parses a listener.
/// Errors: every field that is wrong, or that asks for what Weft cannot do.
pub fn parse_listener(name: &str, any: &Any) -> Result<(ListenerName, Listener), WireError> {
    parse_with(ResourceType::Listener, name, any, |message, at, errors| read::listener(name, message, at, errors))
}

fn render_inbound(inbound: &Inbound) -> Message {
    let mut filter_chains = Vec::new();
    for (port, settings) in &inbound.ports {
        filter_chains.extend(inbound_chains(Some(*port), settings));
    }
    let [http, tcp] = inbound_chains(None, &inbound.default);
    filter_chains.push(http);
    Message {
        filter_chains,
        default_filter_chain: Some(tcp),
        metadata: metadata::encode([(ACCESS_LOG, metadata::word_of(&ACCESS_LOGS, &inbound.access_log))]),
        traffic_direction: TrafficDirection::Inbound.into(),
        ..Message::default()
    }
}

fn render_outbound_default(outbound: &OutboundDefault) -> Message {
    let default_filter_chain = match outbound.policy {
        OutboundPolicy::AllowAny => Some(FilterChain {
            filters: vec![tcp_filter(&[(PASSTHROUGH_CLUSTER.to_owned(), 1)])],
            ..FilterChain::default()
        }),
        OutboundPolicy::RegisteredOnly => None,
    };
    Message { default_filter_chain, traffic_direction: TrafficDirection::Outbound.into(), ..Message::default() }
}

fn render_outbound(outbound: &Outbound) -> Message {
    let api_listener = outbound
        .http
        .as_ref()
        .map(|routes| ApiListener { api_listener: Some(pack(&http_manager("outbound", routes, &[]))) });
    let default_filter_chain = (!outbound.tcp.is_empty()).then(|| {
        let clusters: Vec<_> =
            outbound.tcp.iter().map(|WeightedCluster { cluster, weight }| (cluster.to_string(), *weight)).collect();
        FilterChain { filters: vec![tcp_filter(&clusters)], ..FilterChain::default() }
    });
    Message {
        api_listener,
        default_filter_chain,
        metadata: metadata::encode([(PROTOCOL, metadata::word_of(&PROTOCOLS, &outbound.protocol))]),
        traffic_direction: TrafficDirection::Outbound.into(),
        ..Message::default()
    }
}

fn render_gateway(gateway: &Gateway) -> Message {
    let mut addresses = gateway.ports.keys().map(|port| wildcard_address(*port));
    let address = addresses.next();
    let additional_addresses = addresses.map(|address| AdditionalAddress { address: Some(address) }).collect();
    let chains = gateway.ports.iter().map(|(port, routes)| FilterChain {
        filter_chain_match: Some(FilterChainMatch {
            destination_port: Some(u32::from(port.get())),
            ..FilterChainMatch::default()
        }),
        ..http_chain(port.to_string(), "gateway", routes, &[])
    });
    Message {
        address,
        additional_addresses,
        filter_chains: chains.collect(),
        metadata: metadata::encode([(ACCESS_LOG, metadata::word_of(&ACCESS_LOGS, &gateway.access_log))]),
        traffic_direction: TrafficDirection::Inbound.into(),
        ..Message::default()
    }
}

/// Every address of both families.
fn wildcard_address(port: NonZeroU16) -> Address {
    let socket_address = SocketAddress {
        address: "::".into(),
        port_specifier: Some(PortSpecifier::PortValue(u32::from(port.get()))),
        ipv4_compat: true,
        ..SocketAddress::default()
    };
    Address { socket_address: Some(socket_address), ..Address::default() }
}
