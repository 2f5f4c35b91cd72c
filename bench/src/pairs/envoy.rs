//! Envoy, configured to do what Weft does by default, and nothing more.
//!
//! On: mutual TLS 1.3, the server's SAN checked, RBAC on the client's principal, retries under a budget, outlier detection,
//! power of two choices, statistics. Off, in Envoy's favour: access log (but in the row about it), request ids, admin port, hot
//! restart.
//! One worker thread, like all other proxies here.

use std::net::SocketAddr;

use anyhow::Result;
use serde_json::{Value, json};

use super::{Plan, Started, Variant};
use crate::certs::{Certs, Identity};
use crate::floor::Side;
use crate::scenario::Protocol;
use crate::verify::Hop;

pub(super) fn start(plan: &Plan<'_>, between: Protocol) -> Result<Started> {
    let certs = &plan.place.certs;
    let run = |side: Side, config: &Value| {
        let path = plan.write(&format!("{}.json", side.name()), &serde_json::to_string_pretty(config)?)?;
        let path = path.display().to_string();
        let args = ["--config-path", &path, "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"];
        plan.launch(side, &plan.place.envoy, &args)
    };
    if plan.protocol == Protocol::Tcp {
        let inbound = run(Side::Inbound, &inbound_tcp(plan.middle, plan.server, certs))?;
        let outbound = run(Side::Outbound, &outbound(plan, Protocol::Tcp))?;
        return Ok((
            outbound,
            inbound,
            Some(Hop { alpn: alpn(Protocol::Tcp), protocol: Protocol::Tcp, caller: Protocol::Tcp }),
        ));
    }
    let inbound = run(Side::Inbound, &inbound(plan, alpn(between)))?;
    let outbound = run(Side::Outbound, &outbound(plan, between))?;
    Ok((outbound, inbound, Some(Hop { alpn: alpn(between), protocol: between, caller: plan.protocol })))
}

fn is_logged(plan: &Plan<'_>) -> bool {
    plan.variant == Variant::Logged(true)
}

/// Every request as one JSON object a line on standard output, with what Weft's lines tell.
fn access_log() -> Value {
    json!([{
        "name": "envoy.access_loggers.stdout",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
            "log_format": {"json_format": {
                "time": "%START_TIME%",
                "protocol": "%PROTOCOL%",
                "method": "%REQ(:METHOD)%",
                "authority": "%REQ(:AUTHORITY)%",
                "path": "%REQ(:PATH)%",
                "status": "%RESPONSE_CODE%",
                "flag": "%RESPONSE_FLAGS%",
                "source": "%DOWNSTREAM_REMOTE_ADDRESS%",
                "source_identity": "%DOWNSTREAM_PEER_URI_SAN%",
                "destination": "%DOWNSTREAM_LOCAL_ADDRESS%",
                "cluster": "%UPSTREAM_CLUSTER%",
                "endpoint": "%UPSTREAM_HOST%",
                "route": "%ROUTE_NAME%",
                "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
                "duration_ms": "%DURATION%",
                "bytes_sent": "%BYTES_RECEIVED%",
                "bytes_received": "%BYTES_SENT%",
                "traceparent": "%REQ(TRACEPARENT)%",
            }},
        },
    }])
}

fn alpn(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Http1 => "http/1.1",
        Protocol::Http2 => "h2",
        Protocol::Tcp => "tcp",
    }
}

fn outbound(plan: &Plan<'_>, between: Protocol) -> Value {
    let certs = &plan.place.certs;
    // Weft's defaults: connect failure and REFUSED_STREAM; for idempotent methods also reset and 502, 503, 504;
    // two tries, 25 ms, budget 20 %. Envoy restricts all reasons to the methods named.
    let methods = ["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"];
    let retry = json!({
        "retry_on": "connect-failure,refused-stream,reset,gateway-error",
        "num_retries": 1,
        "retry_back_off": {"base_interval": "0.025s"},
        "retriable_request_headers": methods.map(|method| json!({"name": ":method", "string_match": {"exact": method}})),
    });
    let tls = json!({
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context": tls_context(certs, Identity::Client, alpn(between), json!([{
            "san_type": "URI", "matcher": {"exact": Identity::Server.spiffe_id()},
        }])),
    });
    let mut cluster = cluster("peer", plan.middle, between);
    if let Some(cluster) = cluster.as_object_mut() {
        cluster
            .insert("transport_socket".to_owned(), json!({"name": "envoy.transport_sockets.tls", "typed_config": tls}));
        cluster.insert(
            "circuit_breakers".to_owned(),
            json!({"thresholds": [{
                "max_pending_requests": 1024, "max_connections": 10000, "max_requests": 10000,
                "retry_budget": {"budget_percent": {"value": 20.0}, "min_retry_concurrency": 10},
            }]}),
        );
        cluster.insert(
            "outlier_detection".to_owned(),
            json!({
                "consecutive_gateway_failure": 5, "enforcing_consecutive_gateway_failure": 100,
                "enforcing_consecutive_5xx": 0, "enforcing_success_rate": 0,
                "base_ejection_time": "30s", "max_ejection_percent": 50,
            }),
        );
    }
    if between == Protocol::Tcp {
        return listen_with("outbound", plan.entry, None, &json!([tcp_proxy("peer")]), &cluster);
    }
    let route = json!({"cluster": "peer", "timeout": "0s", "retry_policy": retry});
    bootstrap("outbound", plan.entry, None, &route, &[], &cluster, is_logged(plan))
}

fn inbound(plan: &Plan<'_>, alpn: &str) -> Value {
    let socket = downstream_tls(&plan.place.certs, alpn, plan.resumption);
    let rbac = json!({
        "name": "envoy.filters.http.rbac",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
            "rules": rules(),
        },
    });
    let route = json!({"cluster": "server", "timeout": "0s"});
    let cluster = cluster("server", plan.server, plan.protocol);
    bootstrap("inbound", plan.middle, Some(socket), &route, &[rbac], &cluster, is_logged(plan))
}

fn inbound_tcp(listen: SocketAddr, server: SocketAddr, certs: &Certs) -> Value {
    let rbac = json!({
        "name": "envoy.filters.network.rbac",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC",
            "stat_prefix": "inbound",
            "rules": rules(),
        },
    });
    let filters = json!([rbac, tcp_proxy("server")]);
    let socket = downstream_tls(certs, alpn(Protocol::Tcp), false);
    listen_with("inbound", listen, Some(socket), &filters, &cluster("server", server, Protocol::Tcp))
}

/// Who may call.
fn rules() -> Value {
    json!({"action": "ALLOW", "policies": {"client": {
        "permissions": [{"any": true}],
        "principals": [{"authenticated": {"principal_name": {"exact": Identity::Client.spiffe_id()}}}],
    }}})
}

fn tcp_proxy(cluster: &str) -> Value {
    json!({
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": cluster, "cluster": cluster,
        },
    })
}

fn downstream_tls(certs: &Certs, alpn: &str, resumption: bool) -> Value {
    let tls = json!({
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "require_client_certificate": true,
        "disable_stateless_session_resumption": !resumption,
        "common_tls_context": tls_context(certs, Identity::Server, alpn, json!([])),
    });
    json!({"name": "envoy.transport_sockets.tls", "typed_config": tls})
}

/// One listener with one route to one cluster.
fn bootstrap(
    name: &str,
    listen: SocketAddr,
    socket: Option<Value>,
    route: &Value,
    filters: &[Value],
    cluster: &Value,
    logged: bool,
) -> Value {
    let mut filters = filters.to_vec();
    filters.push(json!({
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
    }));
    let http = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "codec_type": "AUTO",
        "generate_request_id": false,
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": route}]}]},
        "http_filters": filters,
        "access_log": if logged { access_log() } else { json!([]) },
    });
    let filters = json!([{"name": "envoy.filters.network.http_connection_manager", "typed_config": http}]);
    listen_with(name, listen, socket, &filters, cluster)
}

/// One listener with these network filters.
fn listen_with(name: &str, listen: SocketAddr, socket: Option<Value>, filters: &Value, cluster: &Value) -> Value {
    let mut chain = json!({"filters": filters});
    if let (Some(chain), Some(socket)) = (chain.as_object_mut(), socket) {
        chain.insert("transport_socket".to_owned(), socket);
    }
    json!({
        "node": {"id": name, "cluster": "bench"},
        "static_resources": {
            "listeners": [{"name": name, "address": address(listen), "filter_chains": [chain]}],
            "clusters": [cluster],
        },
    })
}

fn cluster(name: &str, endpoint: SocketAddr, protocol: Protocol) -> Value {
    let options = match protocol {
        Protocol::Http1 | Protocol::Tcp => json!({"http_protocol_options": {}}),
        Protocol::Http2 => json!({"http2_protocol_options": {}}),
    };
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "lb_policy": "LEAST_REQUEST",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(endpoint)}}]}],
        },
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": options,
        }},
    })
}

fn tls_context(certs: &Certs, identity: Identity, alpn: &str, peers: Value) -> Value {
    let mut validation = json!({"trusted_ca": {"filename": certs.ca()}});
    if let (Some(validation), Some([_, ..])) = (validation.as_object_mut(), peers.as_array().map(Vec::as_slice)) {
        validation.insert("match_typed_subject_alt_names".to_owned(), peers);
    }
    json!({
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "alpn_protocols": [alpn],
        "tls_certificates": [{
            "certificate_chain": {"filename": certs.certificate(identity)},
            "private_key": {"filename": certs.key(identity)},
        }],
        "validation_context": validation,
    })
}

fn address(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}})
}
