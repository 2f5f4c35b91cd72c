//! Type URLs of the messages that Weft packs and unpacks, and the packing itself.

use prost::Message;
use prost_types::Any;
use weft_proto::{
    envoy::{
        config::{cluster, endpoint, listener, route},
        extensions::{
            filters::{
                http::{rbac as http_rbac, router},
                network::{http_connection_manager, rbac as network_rbac, tcp_proxy},
            },
            load_balancing_policies::{least_request, round_robin, wrr_locality},
            transport_sockets::tls,
            upstreams,
        },
    },
    weft,
};

use super::error::{At, Errors, Reason};

/// A message that travels in an `Any`.
pub(super) trait Typed: Message + Default {
    /// Its type URL.
    const TYPE_URL: &'static str;
    /// What its `Any` is called in field paths.
    const NAME: &'static str;
}

macro_rules! typed {
    ($($message:ty = $url:literal as $name:literal;)*) => {
        $(impl Typed for $message {
            const TYPE_URL: &'static str = concat!("type.googleapis.com/", $url);
            const NAME: &'static str = $name;
        })*
    };
}

typed! {
    listener::v3::Listener = "envoy.config.listener.v3.Listener" as "listener";
    route::v3::RouteConfiguration = "envoy.config.route.v3.RouteConfiguration" as "route_configuration";
    route::v3::FilterConfig = "envoy.config.route.v3.FilterConfig" as "filter_config";
    cluster::v3::Cluster = "envoy.config.cluster.v3.Cluster" as "cluster";
    endpoint::v3::ClusterLoadAssignment = "envoy.config.endpoint.v3.ClusterLoadAssignment" as "cluster_load_assignment";
    weft::v1::Revision = "weft.v1.Revision" as "revision";
    http_connection_manager::v3::HttpConnectionManager =
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager" as "http_connection_manager";
    tcp_proxy::v3::TcpProxy = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy" as "tcp_proxy";
    network_rbac::v3::Rbac = "envoy.extensions.filters.network.rbac.v3.RBAC" as "rbac";
    http_rbac::v3::Rbac = "envoy.extensions.filters.http.rbac.v3.RBAC" as "rbac";
    http_rbac::v3::RbacPerRoute = "envoy.extensions.filters.http.rbac.v3.RBACPerRoute" as "rbac_per_route";
    router::v3::Router = "envoy.extensions.filters.http.router.v3.Router" as "router";
    tls::v3::DownstreamTlsContext =
        "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext" as "downstream_tls_context";
    upstreams::http::v3::HttpProtocolOptions =
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions" as "http_protocol_options";
    least_request::v3::LeastRequest =
        "envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest" as "least_request";
    round_robin::v3::RoundRobin = "envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin" as "round_robin";
    wrr_locality::v3::WrrLocality =
        "envoy.extensions.load_balancing_policies.wrr_locality.v3.WrrLocality" as "wrr_locality";
}

/// A message in its `Any`.
pub(super) fn pack<M: Typed>(message: &M) -> Any {
    Any { type_url: M::TYPE_URL.into(), value: message.encode_to_vec() }
}

/// Whether an `Any` holds that message.
pub(super) fn holds<M: Typed>(any: &Any) -> bool {
    any.type_url == M::TYPE_URL
}

/// The message in an `Any`; `at` is the place of the message.
pub(super) fn unpack<M: Typed>(any: &Any, at: &At<'_>, errors: &mut Errors) -> Option<M> {
    check_type::<M>(any, at, errors)?;
    decode(&any.value, at, errors)
}

pub(super) fn check_type<M: Typed>(any: &Any, at: &At<'_>, errors: &mut Errors) -> Option<()> {
    if holds::<M>(any) {
        return Some(());
    }
    errors.refuse(at, Reason::expected(&any.type_url, M::TYPE_URL))
}

pub(super) fn decode<M: Message + Default>(bytes: &[u8], at: &At<'_>, errors: &mut Errors) -> Option<M> {
    M::decode(bytes).map_err(|error| errors.add(at, error.into())).ok()
}
