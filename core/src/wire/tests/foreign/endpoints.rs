//! Endpoint sets from others.

use envoy_types::pb::{
    envoy::config::{core::v3 as core, endpoint::v3 as endpoint},
    google::protobuf::{self as pb, UInt32Value},
};

use super::*;

#[test]
fn an_endpoint_is_an_ip_address_with_a_weight_and_a_real_identity() {
    let at = |address: &str, port: u32| core::Address {
        address: Some(core::address::Address::SocketAddress(core::SocketAddress {
            address: address.into(),
            port_specifier: Some(core::socket_address::PortSpecifier::PortValue(port)),
            ..Default::default()
        })),
    };
    let one = |address| endpoint::LbEndpoint {
        host_identifier: Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(endpoint::Endpoint {
            address: Some(address),
            ..Default::default()
        })),
        ..Default::default()
    };
    let set = |endpoints, priority| endpoint::ClusterLoadAssignment {
        cluster_name: ROUTE.into(),
        endpoints: vec![endpoint::LocalityLbEndpoints { lb_endpoints: endpoints, priority, ..Default::default() }],
        ..Default::default()
    };
    let refused = |set| errors(ResourceType::Endpoints, ROUTE, &set, parse_endpoints);
    let here = "endpoints[0].lb_endpoints[0]";
    assert_eq!(
        refused(set(vec![one(at("a.example", 80))], 0)),
        format!("{here}.endpoint.address.socket_address.address: must be an IP address, not \"a.example\"\n")
    );
    assert_eq!(
        refused(set(vec![one(at("10.0.0.1", 0))], 0)),
        format!("{here}.endpoint.address.socket_address.port_value: required\n")
    );
    assert_eq!(refused(set(vec![one(at("10.0.0.1", 80))], 1)), "endpoints[0].priority: not supported\n");
    assert_eq!(
        refused(set(vec![one(at("10.0.0.1", 80)), one(at("10.0.0.1", 80))], 0)),
        "endpoints[0].lb_endpoints[1].endpoint: appears twice\n"
    );
    let text = |text: &str| pb::Value { kind: Some(pb::value::Kind::StringValue(text.into())) };
    let fields = pb::Struct { fields: [("identity".to_owned(), text("spiffe://x"))].into() };
    let metadata = core::Metadata { filter_metadata: [("weft.dev".to_owned(), fields)].into(), ..Default::default() };
    let unnamed = endpoint::LbEndpoint {
        metadata: Some(metadata),
        load_balancing_weight: Some(UInt32Value { value: 0 }),
        ..one(at("10.0.0.1", 80))
    };
    assert_eq!(
        refused(set(vec![unnamed], 0)),
        format!(
            "{here}.load_balancing_weight: must be at least 1, not \"0\"\n{here}.metadata[\"identity\"]: the path is missing\n"
        )
    );
}
