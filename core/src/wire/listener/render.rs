//! Listeners to the wire.

use std::num::NonZeroU16;

use weft_proto::envoy::{
    config::{
        core::v3::{Address, SocketAddress, TrafficDirection, socket_address::PortSpecifier},
        listener::v3::{AdditionalAddress, ApiListener, FilterChain, FilterChainMatch, Listener as Message},
    },
    extensions::filters::network::http_connection_manager::v3::{
        HttpConnectionManager, http_connection_manager::PathWithEscapedSlashesAction,
    },
};

use super::{
    ACCESS_LOG, ACCESS_LOGS, PASSTHROUGH_CLUSTER, PROTOCOL, PROTOCOLS,
    chain::{http_chain, http_manager, inbound_chains, tcp_filter},
    listener_name,
};
use crate::{
    listener::{EncodedSlashes, Gateway, Inbound, Listener, Outbound, OutboundDefault, OutboundPolicy},
    route::WeightedCluster,
    wire::{ClientClass, Encoded, NotForClient, ResourceType, metadata, types::pack},
};

/// Renders a listener.
/// Errors: the class of client gets no listeners.
pub fn render_listener(listener: &Listener, class: ClientClass) -> Result<Encoded, NotForClient> {
    if !class.form().listeners {
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
    let slashes = match gateway.encoded_slashes {
        EncodedSlashes::Refuse => PathWithEscapedSlashesAction::RejectRequest,
        EncodedSlashes::Keep => PathWithEscapedSlashesAction::KeepUnchanged,
    };
    let chains = gateway.ports.iter().map(|(port, routes)| FilterChain {
        filter_chain_match: Some(FilterChainMatch {
            destination_port: Some(u32::from(port.get())),
            ..FilterChainMatch::default()
        }),
        ..http_chain(
            port.to_string(),
            HttpConnectionManager {
                path_with_escaped_slashes_action: slashes.into(),
                ..http_manager("gateway", routes, &[])
            },
        )
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
