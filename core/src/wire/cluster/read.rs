//! Clusters from the wire.

use std::{num::NonZeroU32, time::Duration};

use prost_types::Any;
use weft_proto::envoy::{
    config::{
        cluster::v3::{
            CircuitBreakers, Cluster as Message, OutlierDetection as OutlierMessage,
            circuit_breakers::Thresholds,
            cluster::{ClusterDiscoveryType, DiscoveryType, LbPolicy},
        },
        core::v3::RoutingPriority,
    },
    extensions::{
        load_balancing_policies::{
            least_request::v3::LeastRequest, round_robin::v3::RoundRobin, wrr_locality::v3::WrrLocality,
        },
        upstreams::http::v3::{
            HttpProtocolOptions,
            http_protocol_options::{UpstreamProtocolOptions, explicit_http_config::ProtocolConfig},
        },
    },
};

use super::{HTTP_OPTIONS, MAX_EJECTED, RETRY_MIN, RETRY_RATIO, TCP_IDLE, ratio_of};
use crate::{
    cluster::{Cluster, HttpVersion, Limits, OutlierDetection, RetryBudget},
    wire::{
        ResourceType, WireError, duration,
        error::{At, Errors, Reason},
        metadata::Read,
        read::{check_name, parse_with, read_cluster_name},
        source::check_source,
        types::{Typed, holds, unpack},
    },
};

/// What Envoy does when `connect_timeout` is absent.
const ABSENT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// What Envoy does when `idle_timeout` is absent, for HTTP and TCP.
const ABSENT_IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
/// What Envoy does when a threshold is absent.
const ABSENT_LIMIT: u32 = 1024;
const RANDOM: &str = "type.googleapis.com/envoy.extensions.load_balancing_policies.random.v3.Random";

/// Parses a cluster.
/// Errors: every field that is wrong, or that asks for what Weft cannot do.
pub fn parse_cluster(name: &str, any: &Any) -> Result<Cluster, WireError> {
    parse_with(ResourceType::Cluster, name, any, |message: &Message, at: &At<'_>, errors: &mut Errors| {
        check_name(&message.name, name, &at.field("name"), errors);
        check_discovery(message, at, errors);
        check_balancing(message, at, errors);
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

/// Whether what is asked for can be served by balancing on load: not, where a request has to stick to an endpoint.
fn check_balancing(message: &Message, at: &At<'_>, errors: &mut Errors) {
    let Some(list) = &message.load_balancing_policy else {
        return match LbPolicy::try_from(message.lb_policy) {
            Ok(LbPolicy::RoundRobin | LbPolicy::LeastRequest | LbPolicy::Random) => {}
            Ok(
                LbPolicy::RingHash | LbPolicy::Maglev | LbPolicy::ClusterProvided | LbPolicy::LoadBalancingPolicyConfig,
            )
            | Err(_) => errors.add(&at.field("lb_policy"), Reason::NotSupported),
        };
    };
    let known = [LeastRequest::TYPE_URL, RoundRobin::TYPE_URL, WrrLocality::TYPE_URL, RANDOM];
    let mut configs =
        list.policies.iter().filter_map(|policy| policy.typed_extension_config.as_ref()?.typed_config.as_ref());
    if !configs.any(|config| known.contains(&config.type_url.as_str())) {
        errors.add(&at.field("load_balancing_policy"), Reason::NotSupported);
    }
}
