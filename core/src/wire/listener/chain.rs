//! Filter chains and filters of listeners, towards the wire.

use std::num::NonZeroU16;

use weft_proto::envoy::{
    config::{
        core::v3::TransportSocket,
        listener::v3::{Filter, FilterChain, FilterChainMatch},
    },
    extensions::{
        filters::{
            http::{rbac::v3::Rbac as HttpRbac, router::v3::Router},
            network::{
                http_connection_manager::v3::{HttpConnectionManager, HttpFilter, Rds},
                rbac::v3::Rbac as NetworkRbac,
                tcp_proxy::v3::{
                    TcpProxy,
                    tcp_proxy::{ClusterSpecifier, WeightedCluster, weighted_cluster::ClusterWeight},
                },
            },
        },
        transport_sockets::tls::v3::{CommonTlsContext, DownstreamTlsContext, SdsSecretConfig},
    },
};

use super::{CERTIFICATE_SECRET, HTTP_ALPN, INBOUND_CLUSTER, MODE, MODES, PROTOCOL, PROTOCOLS, TCP_ALPN, TRUST_SECRET};
use crate::{
    listener::InboundPort,
    names::RouteName,
    wire::{
        authorization::{self, ALLOW_FILTER, DENY_FILTER},
        metadata,
        source::ads,
        types::{Typed, pack},
    },
};

/// The two chains of an inbound port: HTTP by ALPN, and everything else.
pub(super) fn inbound_chains(port: Option<NonZeroU16>, settings: &InboundPort) -> [FilterChain; 2] {
    let name = port.map_or_else(|| "default".to_owned(), |port| port.to_string());
    let destination_port = port.map(|port| u32::from(port.get()));
    let http = FilterChain {
        filter_chain_match: Some(FilterChainMatch {
            destination_port,
            application_protocols: HTTP_ALPN.map(str::to_owned).to_vec(),
            ..FilterChainMatch::default()
        }),
        transport_socket: Some(mesh_tls()),
        ..http_chain(format!("{name}/http"), http_manager("inbound", &settings.routes, &[DENY_FILTER, ALLOW_FILTER]))
    };
    let rbac = authorization::encode(&settings.authorization);
    let mut filters: Vec<Filter> =
        rbac.into_iter().filter_map(|(name, rules)| Some(rbac_filter(name, rules?))).collect();
    filters.push(tcp_filter(&[(INBOUND_CLUSTER.to_owned(), 1)]));
    let other = FilterChain {
        filter_chain_match: destination_port
            .map(|port| FilterChainMatch { destination_port: Some(port), ..FilterChainMatch::default() }),
        filters,
        metadata: metadata::encode([
            (MODE, metadata::word_of(&MODES, &settings.mode)),
            (PROTOCOL, metadata::word_of(&PROTOCOLS, &settings.protocol)),
        ]),
        transport_socket: Some(mesh_tls()),
        name: format!("{name}/tcp"),
        ..FilterChain::default()
    };
    [http, other]
}

/// A chain with an HTTP connection manager and nothing else.
pub(super) fn http_chain(name: String, manager: HttpConnectionManager) -> FilterChain {
    let filter = filter("envoy.filters.network.http_connection_manager", &manager);
    FilterChain { name, filters: vec![filter], ..FilterChain::default() }
}

/// An HTTP connection manager: routes by RDS, empty RBAC filters of these names, and the router.
pub(super) fn http_manager(statistics: &str, routes: &RouteName, filters: &[&str]) -> HttpConnectionManager {
    let rbac = filters.iter().map(|name| http_filter(name, &HttpRbac::default()));
    HttpConnectionManager {
        stat_prefix: statistics.into(),
        rds: Some(Rds { config_source: Some(ads()), route_config_name: routes.to_string() }),
        http_filters: rbac.chain([http_filter("envoy.filters.http.router", &Router::default())]).collect(),
        ..HttpConnectionManager::default()
    }
}

/// A TCP proxy to one cluster or several.
pub(super) fn tcp_filter(clusters: &[(String, u32)]) -> Filter {
    let specifier = match clusters {
        [(name, 1)] => ClusterSpecifier::Cluster(name.clone()),
        _ => {
            let weight = |(name, weight): &(String, u32)| ClusterWeight {
                name: name.clone(),
                weight: *weight,
                ..ClusterWeight::default()
            };
            ClusterSpecifier::WeightedClusters(WeightedCluster { clusters: clusters.iter().map(weight).collect() })
        }
    };
    let proxy = TcpProxy { stat_prefix: "tcp".into(), cluster_specifier: Some(specifier), ..TcpProxy::default() };
    filter("envoy.filters.network.tcp_proxy", &proxy)
}

fn rbac_filter(name: &str, rules: weft_proto::envoy::config::rbac::v3::Rbac) -> Filter {
    filter(name, &NetworkRbac { rules: Some(rules), stat_prefix: "inbound".into(), ..NetworkRbac::default() })
}

fn filter(name: &str, config: &impl Typed) -> Filter {
    Filter { name: name.into(), typed_config: Some(pack(config)), ..Filter::default() }
}

fn http_filter(name: &str, config: &impl Typed) -> HttpFilter {
    HttpFilter { name: name.into(), typed_config: Some(pack(config)), ..HttpFilter::default() }
}

/// Mutual TLS with the proxy's own identity.
fn mesh_tls() -> TransportSocket {
    let secret = |name: &str| SdsSecretConfig { name: name.into(), ..SdsSecretConfig::default() };
    let context = DownstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            alpn_protocols: HTTP_ALPN.into_iter().chain([TCP_ALPN]).map(str::to_owned).collect(),
            tls_certificate_sds_secret_configs: vec![secret(CERTIFICATE_SECRET)],
            validation_context_sds_secret_config: Some(secret(TRUST_SECRET)),
            ..CommonTlsContext::default()
        }),
        require_client_certificate: Some(true),
        ..DownstreamTlsContext::default()
    };
    TransportSocket { name: "envoy.transport_sockets.tls".into(), typed_config: Some(pack(&context)) }
}
