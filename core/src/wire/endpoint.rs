//! Endpoint sets <-> `envoy.config.endpoint.v3.ClusterLoadAssignment`.
//!
//! | model | xDS |
//! |---|---|
//! | `cluster` | `cluster_name` |
//! | `zone` | one `endpoints[]` per zone: `locality.zone`; region and sub-zone are ignored |
//! | `address` | `endpoint.address.socket_address`, a literal IP address |
//! | `weight` | `load_balancing_weight`, also of the locality (the sum); absent: 1 |
//! | `health` | `health_status` HEALTHY, DRAINING, UNHEALTHY; UNKNOWN is read as healthy, TIMEOUT and DEGRADED as unhealthy |
//! | `identity`, `workload` | `metadata["weft.dev"]` of the endpoint |
//!
//! For Envoy without metadata; endpoints with an identity only where the caller says so, and then in plaintext.
//! The order is that of the addresses, whatever came on the wire. Priorities are refused.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
};

use prost_types::Any;
use weft_proto::envoy::config::{
    core::v3::{
        Address, HealthStatus, Locality, SocketAddress,
        socket_address::{PortSpecifier, Protocol},
    },
    endpoint::v3::{ClusterLoadAssignment, Endpoint as EndpointMessage, LbEndpoint, LocalityLbEndpoints},
};

use super::{
    ClientClass, Encoded, ResourceType, WireError, check_name,
    error::{At, Errors, Reason},
    metadata, parse_with, read_cluster_name,
};
use crate::{
    endpoint::{Endpoint, EndpointSet, Health},
    identity::Identity,
};

const IDENTITY: &str = "identity";
const WORKLOAD: &str = "workload";

/// Renders an endpoint set.
pub fn render_endpoints(set: &EndpointSet, class: ClientClass) -> Encoded {
    let mut zones: BTreeMap<&str, Vec<&Endpoint>> = BTreeMap::new();
    for endpoint in &set.endpoints {
        let shown = match class {
            ClientClass::Weft => true,
            ClientClass::Envoy { plaintext_to_mesh } => endpoint.identity.is_none() || plaintext_to_mesh,
        };
        if shown {
            zones.entry(&endpoint.zone).or_default().push(endpoint);
        }
    }
    let weight = |endpoints: &[&Endpoint]| endpoints.iter().map(|one| u64::from(one.weight.get())).sum::<u64>();
    let total: u64 = zones.values().map(|endpoints| weight(endpoints)).sum();
    // Sums of weights have to fit into 32 bits: of localities for everyone, of endpoints for Envoy.
    let shift = (u64::BITS - total.leading_zeros()).saturating_sub(31);
    let scale = |weight: u64| u32::try_from(weight >> shift).unwrap_or(u32::MAX).max(1);
    let endpoints = zones.into_iter().map(|(zone, endpoints)| LocalityLbEndpoints {
        locality: Some(Locality { zone: zone.into(), ..Locality::default() }),
        load_balancing_weight: Some(scale(weight(&endpoints))),
        lb_endpoints: endpoints
            .into_iter()
            .map(|endpoint| LbEndpoint {
                load_balancing_weight: Some(match class {
                    ClientClass::Weft => endpoint.weight.get(),
                    ClientClass::Envoy { .. } => scale(u64::from(endpoint.weight.get())),
                }),
                ..encode_endpoint(endpoint, class)
            })
            .collect(),
        ..LocalityLbEndpoints::default()
    });
    let name = set.cluster.to_string();
    let message = ClusterLoadAssignment { cluster_name: name.clone(), endpoints: endpoints.collect() };
    Encoded::new(ResourceType::Endpoints, name, &message)
}

fn encode_endpoint(endpoint: &Endpoint, class: ClientClass) -> LbEndpoint {
    let socket_address = SocketAddress {
        address: endpoint.address.ip().to_string(),
        port_specifier: Some(PortSpecifier::PortValue(u32::from(endpoint.address.port()))),
        ..SocketAddress::default()
    };
    let health = match endpoint.health {
        Health::Healthy => HealthStatus::Healthy,
        Health::Draining => HealthStatus::Draining,
        Health::Unhealthy => HealthStatus::Unhealthy,
    };
    let metadata = (class == ClientClass::Weft).then(|| {
        metadata::encode([
            (IDENTITY, endpoint.identity.as_ref().and_then(|identity| metadata::text(identity.as_str()))),
            (WORKLOAD, metadata::text(endpoint.workload.as_str())),
        ])
    });
    LbEndpoint {
        endpoint: Some(EndpointMessage {
            address: Some(Address { socket_address: Some(socket_address), ..Address::default() }),
        }),
        health_status: health.into(),
        metadata: metadata.flatten(),
        ..LbEndpoint::default()
    }
}

/// Parses an endpoint set.
/// Errors: every field that is wrong, or that asks for what Weft cannot do.
pub fn parse_endpoints(name: &str, any: &Any) -> Result<EndpointSet, WireError> {
    parse_with(
        ResourceType::Endpoints,
        name,
        any,
        |message: &ClusterLoadAssignment, at: &At<'_>, errors: &mut Errors| {
            check_name(&message.cluster_name, name, &at.field("cluster_name"), errors);
            let cluster = read_cluster_name(name, &at.field("cluster_name"), errors);
            let mut endpoints = BTreeMap::new();
            for (index, locality) in message.endpoints.iter().enumerate() {
                let at = at.index("endpoints", index);
                if locality.priority != 0 {
                    errors.add(&at.field("priority"), Reason::NotSupported);
                }
                let zone = locality.locality.as_ref().map_or("", |locality| locality.zone.as_str());
                for (index, message) in locality.lb_endpoints.iter().enumerate() {
                    let at = at.index("lb_endpoints", index);
                    let Some(endpoint) = read_endpoint(message, zone, &at, errors) else { continue };
                    if endpoints.insert(endpoint.address, endpoint).is_some() {
                        errors.add(&at.field("endpoint"), Reason::Duplicate);
                    }
                }
            }
            Some(EndpointSet { cluster: cluster?, endpoints: endpoints.into_values().collect() })
        },
    )
}

fn read_endpoint(message: &LbEndpoint, zone: &str, at: &At<'_>, errors: &mut Errors) -> Option<Endpoint> {
    let weight = NonZeroU32::new(message.load_balancing_weight.unwrap_or(1));
    if weight.is_none() {
        errors.add(&at.field("load_balancing_weight"), Reason::expected(0, "at least 1"));
    }
    let health = match HealthStatus::try_from(message.health_status) {
        Ok(HealthStatus::Unknown | HealthStatus::Healthy) => Some(Health::Healthy),
        Ok(HealthStatus::Draining) => Some(Health::Draining),
        Ok(HealthStatus::Unhealthy | HealthStatus::Timeout | HealthStatus::Degraded) => Some(Health::Unhealthy),
        Err(_) => errors.refuse(&at.field("health_status"), Reason::expected(message.health_status, "a health status")),
    };
    let metadata = metadata::Read::of(message.metadata.as_ref());
    let identity = match metadata.text(IDENTITY, at, errors).map(Identity::parse) {
        None => None,
        Some(Ok(identity)) => Some(identity),
        Some(Err(error)) => return errors.refuse(&at.key("metadata", IDENTITY), error.into()),
    };
    let workload = metadata.text(WORKLOAD, at, errors).unwrap_or_default().to_owned();
    let address = message.endpoint.as_ref().and_then(|endpoint| endpoint.address.as_ref());
    let at = at.field("endpoint");
    let address = read_address(address, &at.field("address"), errors);
    Some(Endpoint { address: address?, workload, identity, weight: weight?, zone: zone.into(), health: health? })
}

fn read_address(address: Option<&Address>, at: &At<'_>, errors: &mut Errors) -> Option<SocketAddr> {
    let at = at.field("socket_address");
    let Some(socket) = address.and_then(|address| address.socket_address.as_ref()) else {
        return errors.refuse(&at, Reason::Required);
    };
    if socket.protocol != i32::from(Protocol::Tcp) {
        errors.add(&at.field("protocol"), Reason::NotSupported);
    }
    let ip = match socket.address.parse::<IpAddr>() {
        Ok(ip) => Some(ip),
        Err(_) => errors.refuse(&at.field("address"), Reason::expected(&socket.address, "an IP address")),
    };
    let port = match socket.port_specifier {
        Some(PortSpecifier::PortValue(port)) => u16::try_from(port).ok().filter(|port| *port != 0),
        _ => None,
    };
    if port.is_none() {
        errors.add(&at.field("port_value"), Reason::Required);
    }
    Some(SocketAddr::new(ip?, port?))
}
