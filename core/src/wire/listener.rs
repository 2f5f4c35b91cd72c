//! Listeners <-> `envoy.config.listener.v3.Listener`.
//!
//! | model | xDS |
//! |---|---|
//! | kind and key | `name`; `traffic_direction` for readers only |
//! | `access_log` (inbound, gateway) | `metadata.access_log`: `off`, `errors`, `all`; absent: `errors` |
//! | **inbound** port | two `filter_chains` with `filter_chain_match.destination_port`; the default: one without, and `default_filter_chain` |
//! | … `routes` | chain with `application_protocols` [`HTTP_ALPN`]: HTTP connection manager, `rds.route_config_name`; its http filters `weft.rbac.deny` and `weft.rbac.allow` are declared empty, their rules travel by RDS |
//! | … `authorization` | chain without `application_protocols`: network RBAC filters, then `tcp_proxy` to [`INBOUND_CLUSTER`] |
//! | … `mode` | `transport_socket` with a required client certificate on both chains: mesh TLS; `metadata.mode` `permissive` on the chain without ALPN: plaintext too. Lost metadata so means strict |
//! | … `protocol` | `metadata.protocol` on the chain without ALPN: `detect`, `http`, `http2`, `tcp`; absent: `detect` |
//! | **outbound default** `policy` | `default_filter_chain` with `tcp_proxy` to [`PASSTHROUGH_CLUSTER`]; no chain: `registered-only` |
//! | **outbound** `address` | in the name |
//! | … `protocol` | `metadata.protocol`; absent: what the parts below imply |
//! | … `http` | `api_listener`: HTTP connection manager, `rds.route_config_name` |
//! | … `tcp` | `default_filter_chain` with `tcp_proxy`: `cluster` for one of weight 1, else `weighted_clusters` |
//! | **gateway** `ports` | `address` and `additional_addresses` (`[::]`, both families), and a chain per `destination_port` with its `rds` |
//! | … `encoded_slashes` | `path_with_escaped_slashes_action` of the HTTP connection managers, the same in all: `REJECT_REQUEST` or the default, `KEEP_UNCHANGED` |
//!
//! Certificates are named by SDS ([`CERTIFICATE_SECRET`], [`TRUST_SECRET`], never sent): the form that gRPC wants is in
//! no message, since Envoy takes it and verifies nothing. A transport socket other than this one is refused.

mod chain;
mod read;
mod render;

use prost_types::Any;

pub use self::render::render_listener;
use super::{ResourceType, WireError, read::parse_with};
use crate::{
    listener::{AccessLog, InboundMode, Listener, Protocol},
    names::ListenerName,
};

/// The cluster of traffic that is handed to the workload: the connection's original destination.
pub const INBOUND_CLUSTER: &str = "inbound";
/// The cluster of traffic that leaves the mesh untouched: the connection's original destination.
pub const PASSTHROUGH_CLUSTER: &str = "passthrough";
/// The secret that stands for the proxy's own certificate.
pub const CERTIFICATE_SECRET: &str = "weft:svid";
/// The secret that stands for the proxy's trust bundle.
pub const TRUST_SECRET: &str = "weft:trust-bundle";
/// ALPN of the mesh, HTTP of every version.
pub const HTTP_ALPN: [&str; 3] = ["weft-h2", "h2", "http/1.1"];
/// ALPN of the mesh, opaque bytes.
pub const TCP_ALPN: &str = "weft-tcp";

const ACCESS_LOG: &str = "access_log";
const MODE: &str = "mode";
const PROTOCOL: &str = "protocol";

const ACCESS_LOGS: [(&str, AccessLog); 3] =
    [("off", AccessLog::Off), ("errors", AccessLog::Errors), ("all", AccessLog::All)];
const MODES: [(&str, InboundMode); 2] = [("permissive", InboundMode::Permissive), ("strict", InboundMode::Strict)];
const PROTOCOLS: [(&str, Protocol); 4] =
    [("detect", Protocol::Detect), ("http", Protocol::Http), ("http2", Protocol::Http2), ("tcp", Protocol::Tcp)];

/// The name of a listener's resource.
pub fn listener_name(listener: &Listener) -> ListenerName {
    match listener {
        Listener::Inbound(_) => ListenerName::Inbound,
        Listener::OutboundDefault(_) => ListenerName::OutboundDefault,
        Listener::Outbound(outbound) => ListenerName::Outbound(outbound.address),
        Listener::Gateway(gateway) => {
            ListenerName::Gateway { namespace: gateway.namespace.clone(), name: gateway.name.clone() }
        }
    }
}

/// Parses a listener.
/// Errors: every field that is wrong, or that asks for what Weft cannot do.
pub fn parse_listener(name: &str, any: &Any) -> Result<(ListenerName, Listener), WireError> {
    parse_with(ResourceType::Listener, name, any, |message, at, errors| read::listener(name, message, at, errors))
}
