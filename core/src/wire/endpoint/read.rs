//! Endpoint sets from the wire.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
};

use prost_types::Any;
use weft_proto::envoy::config::{
    core::v3::{
        Address, HealthStatus,
        socket_address::{PortSpecifier, Protocol},
    },
    endpoint::v3::{ClusterLoadAssignment, LbEndpoint},
};

use super::{IDENTITY, WORKLOAD};
use crate::{
    endpoint::{Endpoint, EndpointSet, Health},
    identity::Identity,
    wire::{
        ResourceType, WireError,
        error::{At, Errors, Reason},
        metadata,
        read::{check_name, parse_with, read_cluster_name},
    },
};

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
