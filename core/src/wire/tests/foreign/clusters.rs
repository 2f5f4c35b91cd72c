//! Clusters from others.

use std::time::Duration;

use envoy_types::pb::{
    envoy::config::{cluster::v3 as cluster, core::v3 as core},
    google::protobuf::UInt32Value,
};

use super::*;

fn eds(name: &str) -> cluster::Cluster {
    let source = core::ConfigSource {
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Ads(Default::default())),
        ..Default::default()
    };
    cluster::Cluster {
        name: name.into(),
        cluster_discovery_type: Some(cluster::cluster::ClusterDiscoveryType::Type(3)),
        eds_cluster_config: Some(cluster::cluster::EdsClusterConfig { eds_config: Some(source), ..Default::default() }),
        ..Default::default()
    }
}

#[test]
fn a_foreign_cluster_is_read_with_the_defaults_of_envoy_and_refused_where_it_asks_for_more() {
    let read = |message: &cluster::Cluster| {
        parse_cluster(ROUTE, &Any { type_url: ResourceType::Cluster.type_url().into(), value: message.encode_to_vec() })
    };
    let plain = read(&eds(ROUTE)).unwrap();
    assert_eq!((plain.connect_timeout, plain.http_idle), (Duration::from_secs(5), Duration::from_secs(3600)));
    assert_eq!((plain.limits.connections, plain.limits.pending, plain.outlier), (1024, 1024, None));
    let outlier = cluster::OutlierDetection { consecutive_5xx: Some(UInt32Value { value: 7 }), ..Default::default() };
    let outlier = read(&cluster::Cluster { outlier_detection: Some(outlier), ..eds(ROUTE) }).unwrap().outlier.unwrap();
    assert_eq!((outlier.consecutive_failures.get(), outlier.max_ejected), (7, 0.1));
    let refused = |message: cluster::Cluster| errors(ResourceType::Cluster, ROUTE, &message, parse_cluster);
    assert_eq!(
        refused(cluster::Cluster { transport_socket: Some(Default::default()), ..eds(ROUTE) }),
        "transport_socket: not supported\n"
    );
    assert_eq!(
        refused(cluster::Cluster { transport_socket_matches: vec![Default::default()], ..eds(ROUTE) }),
        "transport_socket_matches: not supported\n"
    );
    assert_eq!(refused(cluster::Cluster { lb_policy: 2, ..eds(ROUTE) }), "lb_policy: not supported\n");
    let dns = cluster::Cluster {
        cluster_discovery_type: Some(cluster::cluster::ClusterDiscoveryType::Type(1)),
        ..eds(ROUTE)
    };
    assert_eq!(refused(dns), "type: must be EDS, not \"1\"\n");
    let no_source = cluster::Cluster { eds_cluster_config: None, ..eds(ROUTE) };
    assert_eq!(refused(no_source), "eds_cluster_config: required\n");
    // A field that changes neither safety nor route is ignored.
    read(&cluster::Cluster { alt_stat_name: "x".into(), ignore_health_on_host_removal: true, ..eds(ROUTE) }).unwrap();
}
