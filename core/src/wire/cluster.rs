//! Clusters <-> `envoy.config.cluster.v3.Cluster`.
//!
//! | model | xDS |
//! |---|---|
//! | `name` | `name`; `type` EDS, endpoints by ADS under the same name |
//! | `connect_timeout` | `connect_timeout`; absent: 5 s, as in Envoy |
//! | `http`, `http_idle` | `typed_extension_protocol_options`: `HttpProtocolOptions` with `explicit_http_config` HTTP/2 or `use_downstream_protocol_config`; `common_http_protocol_options.idle_timeout`, absent: 1 h |
//! | `tcp_idle` | `metadata.tcp_idle`; absent: 1 h |
//! | `limits` | `circuit_breakers.thresholds` of priority DEFAULT: `max_connections`, `max_pending_requests`, `max_requests`; absent: 1024 |
//! | `outlier` | `outlier_detection`: `consecutive_gateway_failure` (enforced, every other kind not), `base_ejection_time`, `max_ejection_percent`, the exact ratio in `metadata.max_ejected` when it is no whole percentage |
//! | `budget` | `retry_budget.budget_percent`, and exactly in `metadata.retry_ratio` and `metadata.retry_min_per_second` |
//!
//! For Envoy (without metadata) `load_balancing_policy` names least_request, then wrr_locality: all clients take this
//! form. TLS is not in here for Weft: each endpoint says who is expected. A transport socket is refused, as are other
//! discovery types and balancing by hash.

mod policy;

use std::{collections::BTreeMap, num::NonZeroU32, time::Duration};

use prost_types::Any;
use weft_proto::envoy::{
    config::{
        cluster::v3::{
            CircuitBreakers, Cluster as Message, OutlierDetection as OutlierMessage,
            circuit_breakers::{Thresholds, thresholds::RetryBudget as BudgetMessage},
            cluster::{ClusterDiscoveryType, DiscoveryType, EdsClusterConfig, LbPolicy},
        },
        core::v3::{Http1ProtocolOptions, Http2ProtocolOptions, HttpProtocolOptions as CommonOptions, RoutingPriority},
    },
    extensions::upstreams::http::v3::{
        HttpProtocolOptions,
        http_protocol_options::{
            ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig, explicit_http_config::ProtocolConfig,
        },
    },
    r#type::v3::Percent,
};

use super::{
    ClientClass, Encoded, ResourceType, WireError, check_name, duration,
    error::{At, Errors, Reason},
    listener::{ads, check_source},
    metadata::{self, Read},
    parse_with, read_cluster_name,
    types::{Typed, holds, pack, unpack},
};
use crate::{
    cluster::{Cluster, HttpVersion, Limits, OutlierDetection, RetryBudget},
    outlier::MAX_EJECTION,
};

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
const TCP_IDLE: &str = "tcp_idle";
const MAX_EJECTED: &str = "max_ejected";
const RETRY_RATIO: &str = "retry_ratio";
const RETRY_MIN: &str = "retry_min_per_second";

/// What Envoy does when `connect_timeout` is absent.
const ABSENT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// What Envoy does when `idle_timeout` is absent, for HTTP and TCP.
const ABSENT_IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
/// What Envoy does when a threshold is absent.
const ABSENT_LIMIT: u32 = 1024;

/// Renders a cluster.
pub fn render_cluster(cluster: &Cluster, class: ClientClass) -> Encoded {
    let name = cluster.name.to_string();
    let (lb_policy, load_balancing_policy) = match class {
        ClientClass::Weft => (LbPolicy::LeastRequest, None),
        ClientClass::Envoy { .. } => (LbPolicy::RoundRobin, Some(policy::for_everyone())),
    };
    let message = Message {
        name: name.clone(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(EdsClusterConfig { eds_config: Some(ads()), service_name: String::new() }),
        connect_timeout: Some(duration::encode(cluster.connect_timeout)),
        lb_policy: lb_policy.into(),
        load_balancing_policy,
        circuit_breakers: Some(encode_limits(&cluster.limits, &cluster.budget)),
        outlier_detection: cluster.outlier.as_ref().map(|outlier| encode_outlier(outlier, class)),
        typed_extension_protocol_options: BTreeMap::from([(HTTP_OPTIONS.to_owned(), pack(&encode_http(cluster)))]),
        metadata: if class == ClientClass::Weft { encode_metadata(cluster) } else { None },
        ..Message::default()
    };
    Encoded::new(ResourceType::Cluster, name, &message)
}

fn encode_metadata(cluster: &Cluster) -> Option<weft_proto::envoy::config::core::v3::Metadata> {
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

fn encode_outlier(outlier: &OutlierDetection, class: ClientClass) -> OutlierMessage {
    OutlierMessage {
        consecutive_gateway_failure: Some(outlier.consecutive_failures.get()),
        enforcing_consecutive_gateway_failure: Some(100),
        enforcing_consecutive_5xx: Some(0),
        enforcing_success_rate: Some(0),
        base_ejection_time: Some(duration::encode(class.above_zero(outlier.base_ejection))),
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

fn ratio_of(percent: u32) -> f64 {
    f64::from(percent) / 100.0
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

/// Parses a cluster.
/// Errors: every field that is wrong, or that asks for what Weft cannot do.
pub fn parse_cluster(name: &str, any: &Any) -> Result<Cluster, WireError> {
    parse_with(ResourceType::Cluster, name, any, |message: &Message, at: &At<'_>, errors: &mut Errors| {
        check_name(&message.name, name, &at.field("name"), errors);
        check_discovery(message, at, errors);
        policy::check(message, at, errors);
        let parsed = read_cluster_name(name, &at.field("name"), errors);
        let metadata = Read::of(message.metadata.as_ref());
        let connect = &at.field("connect_timeout");
        let connect_timeout =
            duration::read_or(message.connect_timeout.as_ref(), ABSENT_CONNECT_TIMEOUT, connect, errors);
        if connect_timeout == Some(Duration::ZERO) {
            errors.add(connect, Reason::expected("0", "above 0"));
        }
        let http = read_http(message, at, errors);
        let tcp_idle = match metadata.text(TCP_IDLE, at, errors) {
            None => Some(ABSENT_IDLE_TIMEOUT),
            Some(text) => duration::from_text(text)
                .or_else(|| errors.refuse(&at.key("metadata", TCP_IDLE), Reason::expected(text, "a duration"))),
        };
        let (limits, budget) = read_limits(message.circuit_breakers.as_ref(), metadata, at, errors);
        let outlier = match &message.outlier_detection {
            None => Some(None),
            Some(outlier) => {
                read_outlier(outlier, metadata.ratio(MAX_EJECTED, at, errors), &at.field("outlier_detection"), errors)
            }
        };
        let (http, http_idle) = http?;
        Some(Cluster {
            name: parsed?,
            http,
            connect_timeout: connect_timeout?,
            http_idle,
            tcp_idle: tcp_idle?,
            limits,
            outlier: outlier?,
            budget: budget?,
        })
    })
}

fn check_discovery(message: &Message, at: &At<'_>, errors: &mut Errors) {
    match message.cluster_discovery_type {
        Some(ClusterDiscoveryType::Type(kind)) if kind == i32::from(DiscoveryType::Eds) => {}
        Some(ClusterDiscoveryType::Type(kind)) => errors.add(&at.field("type"), Reason::expected(kind, "EDS")),
        None => errors.add(&at.field("type"), Reason::Required),
    }
    let at = at.field("eds_cluster_config");
    let Some(eds) = &message.eds_cluster_config else { return errors.add(&at, Reason::Required) };
    check_source(eds.eds_config.as_ref(), &at.field("eds_config"), errors);
    if !eds.service_name.is_empty() && eds.service_name != message.name {
        errors.add(&at.field("service_name"), Reason::expected(&eds.service_name, "the cluster's name"));
    }
}

fn read_http(message: &Message, at: &At<'_>, errors: &mut Errors) -> Option<(HttpVersion, Duration)> {
    let mut version =
        if message.http2_protocol_options.is_some() { HttpVersion::Http2 } else { HttpVersion::AsReceived };
    let mut common = message.common_http_protocol_options;
    for (key, any) in &message.typed_extension_protocol_options {
        let at = at.key("typed_extension_protocol_options", key);
        if !holds::<HttpProtocolOptions>(any) {
            errors.add(&at, Reason::expected(&any.type_url, HTTP_OPTIONS));
            continue;
        }
        let at = at.field(HttpProtocolOptions::NAME);
        let options: HttpProtocolOptions = unpack(any, &at, errors)?;
        common = options.common_http_protocol_options.or(common);
        match options.upstream_protocol_options {
            None | Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(_)) => version = HttpVersion::AsReceived,
            Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)) => match explicit.protocol_config {
                Some(ProtocolConfig::Http2ProtocolOptions(_)) => version = HttpVersion::Http2,
                Some(ProtocolConfig::HttpProtocolOptions(_)) | None => {
                    errors.add(&at.field("explicit_http_config"), Reason::NotSupported);
                }
            },
        }
    }
    let idle = common.as_ref().and_then(|common| common.idle_timeout.as_ref());
    let at = at.field("common_http_protocol_options");
    let idle = duration::read_or(idle, ABSENT_IDLE_TIMEOUT, &at.field("idle_timeout"), errors)?;
    Some((version, idle))
}

fn read_limits(
    breakers: Option<&CircuitBreakers>,
    metadata: Read<'_>,
    at: &At<'_>,
    errors: &mut Errors,
) -> (Limits, Option<RetryBudget>) {
    let priority = i32::from(RoutingPriority::Default);
    let thresholds = breakers.and_then(|breakers| breakers.thresholds.iter().find(|one| one.priority == priority));
    let limit = |of: fn(&Thresholds) -> Option<u32>| thresholds.and_then(of).unwrap_or(ABSENT_LIMIT);
    let limits = Limits {
        connections: limit(|t| t.max_connections),
        pending: limit(|t| t.max_pending_requests),
        requests: limit(|t| t.max_requests),
    };
    let default = RetryBudget::default();
    let percent = thresholds.and_then(|t| t.retry_budget.as_ref()?.budget_percent).map(|percent| percent.value);
    let ratio = match (metadata.ratio(RETRY_RATIO, at, errors), percent) {
        (Some(exact), _) => Some(exact),
        (None, None) => Some(default.ratio),
        (None, Some(percent)) if (0.0..=100.0).contains(&percent) => Some(percent / 100.0),
        (None, Some(percent)) => {
            let at = at.field("circuit_breakers");
            errors.refuse(&at.field("budget_percent"), Reason::expected(percent, "0 to 100"))
        }
    };
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked to be a whole number in range"
    )]
    let min_per_second = match metadata.number(RETRY_MIN, at, errors) {
        None => Some(default.min_per_second),
        Some(number) if number.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&number) => Some(number as u32),
        Some(number) => errors.refuse(&at.key("metadata", RETRY_MIN), Reason::expected(number, "a whole number")),
    };
    let budget = ratio.zip(min_per_second).map(|(ratio, min_per_second)| RetryBudget { ratio, min_per_second });
    (limits, budget)
}

/// The inner `None`: nothing is enforced.
fn read_outlier(
    message: &OutlierMessage,
    exact: Option<f64>,
    at: &At<'_>,
    errors: &mut Errors,
) -> Option<Option<OutlierDetection>> {
    // Envoy's defaults: consecutive 5xx are enforced, gateway failures are not. Both count gateway failures here.
    let failures = if message.enforcing_consecutive_gateway_failure.unwrap_or(0) > 0 {
        message.consecutive_gateway_failure.unwrap_or(5)
    } else if message.enforcing_consecutive_5xx.unwrap_or(100) > 0 {
        message.consecutive_5xx.unwrap_or(5)
    } else {
        return Some(None);
    };
    let consecutive_failures = NonZeroU32::new(failures);
    if consecutive_failures.is_none() {
        errors.add(&at.field("consecutive_gateway_failure"), Reason::expected(0, "at least 1"));
    }
    let base = message.base_ejection_time.as_ref();
    let base_ejection = duration::read_or(base, Duration::from_secs(30), &at.field("base_ejection_time"), errors);
    let percent = message.max_ejection_percent.unwrap_or(10);
    if percent > 100 {
        errors.add(&at.field("max_ejection_percent"), Reason::expected(percent, "0 to 100"));
    }
    let max_ejected = exact.unwrap_or_else(|| ratio_of(percent));
    Some(Some(OutlierDetection {
        consecutive_failures: consecutive_failures?,
        base_ejection: base_ejection?,
        max_ejected,
    }))
}
