//! Clusters to the wire.

use std::collections::BTreeMap;

use weft_proto::envoy::{
    config::{
        cluster::v3::{
            CircuitBreakers, Cluster as Message, OutlierDetection as OutlierMessage,
            circuit_breakers::{Thresholds, thresholds::RetryBudget as BudgetMessage},
            cluster::{ClusterDiscoveryType, DiscoveryType, EdsClusterConfig},
        },
        core::v3::{
            Http1ProtocolOptions, Http2ProtocolOptions, HttpProtocolOptions as CommonOptions, Metadata, RoutingPriority,
        },
    },
    extensions::upstreams::http::v3::{
        HttpProtocolOptions,
        http_protocol_options::{
            ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig, explicit_http_config::ProtocolConfig,
        },
    },
    r#type::v3::Percent,
};

use super::{HTTP_OPTIONS, MAX_EJECTED, RETRY_MIN, RETRY_RATIO, TCP_IDLE, ratio_of};
use crate::{
    cluster::{Cluster, HttpVersion, Limits, OutlierDetection, RetryBudget},
    outlier::MAX_EJECTION,
    wire::{ClientClass, Encoded, ResourceType, class::Form, duration, metadata, source::ads, types::pack},
};

/// Renders a cluster.
pub fn render_cluster(cluster: &Cluster, class: ClientClass) -> Encoded {
    let name = cluster.name.to_string();
    let form = class.form();
    let (lb_policy, load_balancing_policy) = (form.balancing)();
    let message = Message {
        name: name.clone(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(EdsClusterConfig { eds_config: Some(ads()), service_name: String::new() }),
        connect_timeout: Some(duration::encode(cluster.connect_timeout)),
        lb_policy: lb_policy.into(),
        load_balancing_policy,
        circuit_breakers: Some(encode_limits(&cluster.limits, &cluster.budget)),
        outlier_detection: cluster.outlier.as_ref().map(|outlier| encode_outlier(outlier, &form)),
        typed_extension_protocol_options: BTreeMap::from([(HTTP_OPTIONS.to_owned(), pack(&encode_http(cluster)))]),
        metadata: if form.metadata { encode_metadata(cluster) } else { None },
        ..Message::default()
    };
    Encoded::new(ResourceType::Cluster, name, &message)
}

fn encode_metadata(cluster: &Cluster) -> Option<Metadata> {
    let exact = cluster.outlier.as_ref().map(|outlier| outlier.max_ejected);
    let exact = exact.filter(|ratio| ratio.to_bits() != ratio_of(percent(*ratio)).to_bits());
    metadata::encode([
        (TCP_IDLE, metadata::text(duration::to_text(cluster.tcp_idle))),
        (MAX_EJECTED, exact.and_then(metadata::number)),
        (RETRY_RATIO, metadata::number(cluster.budget.ratio)),
        (RETRY_MIN, metadata::number(f64::from(cluster.budget.min_per_second))),
    ])
}

fn encode_limits(limits: &Limits, budget: &RetryBudget) -> CircuitBreakers {
    let retry_budget = BudgetMessage {
        budget_percent: Some(Percent { value: budget.ratio.clamp(0.0, 1.0) * 100.0 }),
        min_retry_concurrency: None,
    };
    let thresholds = Thresholds {
        priority: RoutingPriority::Default.into(),
        max_connections: Some(limits.connections),
        max_pending_requests: Some(limits.pending),
        max_requests: Some(limits.requests),
        retry_budget: Some(retry_budget),
        ..Thresholds::default()
    };
    CircuitBreakers { thresholds: vec![thresholds] }
}

fn encode_outlier(outlier: &OutlierDetection, form: &Form) -> OutlierMessage {
    OutlierMessage {
        consecutive_gateway_failure: Some(outlier.consecutive_failures.get()),
        enforcing_consecutive_gateway_failure: Some(100),
        enforcing_consecutive_5xx: Some(0),
        enforcing_success_rate: Some(0),
        base_ejection_time: Some(duration::encode(form.duration(outlier.base_ejection))),
        // Envoy refuses a maximum below the base.
        max_ejection_time: Some(duration::encode(MAX_EJECTION.max(outlier.base_ejection))),
        max_ejection_percent: Some(percent(outlier.max_ejected)),
        always_eject_one_host: Some(true),
        ..OutlierMessage::default()
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 100; not a number becomes 0")]
fn percent(ratio: f64) -> u32 {
    (ratio.clamp(0.0, 1.0) * 100.0).round() as u32
}

fn encode_http(cluster: &Cluster) -> HttpProtocolOptions {
    let upstream = match cluster.http {
        HttpVersion::AsReceived => UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
            http_protocol_options: Some(Http1ProtocolOptions {}),
            http2_protocol_options: Some(Http2ProtocolOptions {}),
        }),
        HttpVersion::Http2 => UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(ProtocolConfig::Http2ProtocolOptions(Http2ProtocolOptions {})),
            ..ExplicitHttpConfig::default()
        }),
    };
    HttpProtocolOptions {
        common_http_protocol_options: Some(CommonOptions { idle_timeout: Some(duration::encode(cluster.http_idle)) }),
        upstream_protocol_options: Some(upstream),
        ..HttpProtocolOptions::default()
    }
}
