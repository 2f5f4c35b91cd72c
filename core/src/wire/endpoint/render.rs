//! Endpoint sets to the wire.

use std::collections::BTreeMap;

use weft_proto::envoy::config::{
    core::v3::{Address, HealthStatus, Locality, SocketAddress, socket_address::PortSpecifier},
    endpoint::v3::{ClusterLoadAssignment, Endpoint as EndpointMessage, LbEndpoint, LocalityLbEndpoints},
};

use super::{IDENTITY, WORKLOAD};
use crate::{
    endpoint::{Endpoint, EndpointSet, Health},
    wire::{ClientClass, Encoded, ResourceType, class::Form, metadata},
};

/// Renders an endpoint set.
pub fn render_endpoints(set: &EndpointSet, class: ClientClass) -> Encoded {
    let form = class.form();
    let mut zones: BTreeMap<&str, Vec<&Endpoint>> = BTreeMap::new();
    for endpoint in &set.endpoints {
        if endpoint.identity.is_none() || form.mesh_endpoints {
            zones.entry(&endpoint.zone).or_default().push(endpoint);
        }
    }
    let weight = |endpoints: &[&Endpoint]| endpoints.iter().map(|one| u64::from(one.weight.get())).sum::<u64>();
    let total: u64 = zones.values().map(|endpoints| weight(endpoints)).sum();
    // Sums of weights have to fit into 32 bits: of localities always, of endpoints where the client adds them up.
    let shift = (u64::BITS - total.leading_zeros()).saturating_sub(31);
    let scale = |weight: u64| u32::try_from(weight >> shift).unwrap_or(u32::MAX).max(1);
    let endpoints = zones.into_iter().map(|(zone, endpoints)| LocalityLbEndpoints {
        locality: Some(Locality { zone: zone.into(), ..Locality::default() }),
        load_balancing_weight: Some(scale(weight(&endpoints))),
        lb_endpoints: endpoints
            .into_iter()
            .map(|endpoint| LbEndpoint {
                load_balancing_weight: Some(if form.sums_weights {
                    scale(u64::from(endpoint.weight.get()))
                } else {
                    endpoint.weight.get()
                }),
                ..encode_endpoint(endpoint, &form)
            })
            .collect(),
        ..LocalityLbEndpoints::default()
    });
    let name = set.cluster.to_string();
    let message = ClusterLoadAssignment { cluster_name: name.clone(), endpoints: endpoints.collect() };
    Encoded::new(ResourceType::Endpoints, name, &message)
}

fn encode_endpoint(endpoint: &Endpoint, form: &Form) -> LbEndpoint {
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
    let metadata = form.metadata.then(|| {
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
