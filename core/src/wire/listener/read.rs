//! Listeners from the wire.

use std::{collections::BTreeMap, net::Ipv6Addr, num::NonZeroU16};

use weft_proto::envoy::{
    config::{
        core::v3::{Address, TransportSocket, socket_address::PortSpecifier},
        listener::v3::{Filter, FilterChain, Listener as Message},
        rbac::v3::rbac::Action,
    },
    extensions::{
        filters::{
            http::{rbac::v3::Rbac as HttpRbac, router::v3::Router},
            network::{
                http_connection_manager::v3::{
                    HttpConnectionManager, HttpFilter, http_connection_manager::PathWithEscapedSlashesAction,
                },
                rbac::v3::Rbac as NetworkRbac,
                tcp_proxy::v3::{TcpProxy, tcp_proxy::ClusterSpecifier},
            },
        },
        transport_sockets::tls::v3::{CommonTlsContext, DownstreamTlsContext, SdsSecretConfig},
    },
};

use super::{
    ACCESS_LOG, ACCESS_LOGS, CERTIFICATE_SECRET, HTTP_ALPN, INBOUND_CLUSTER, MODE, MODES, PASSTHROUGH_CLUSTER,
    PROTOCOL, PROTOCOLS, TCP_ALPN, TRUST_SECRET,
};
use crate::{
    listener::{
        EncodedSlashes, Gateway, Inbound, InboundMode, InboundPort, Listener, Outbound, OutboundDefault,
        OutboundPolicy, Protocol,
    },
    names::{ListenerName, RouteName},
    policy::Authorization,
    route::WeightedCluster,
    wire::{
        authorization::{self, ALLOW_FILTER, DENY_FILTER},
        error::{At, Errors, Reason},
        metadata::Read,
        read::{check_name, collect, read_cluster_name},
        source::check_source,
        types::{Typed, holds, unpack},
    },
};

/// Listener filters that Weft's capture makes unnecessary; any other is refused.
const LISTENER_FILTERS: [&str; 3] = [
    "envoy.filters.listener.original_dst",
    "envoy.filters.listener.tls_inspector",
    "envoy.filters.listener.http_inspector",
];

pub(super) fn listener(
    name: &str,
    message: &Message,
    at: &At<'_>,
    errors: &mut Errors,
) -> Option<(ListenerName, Listener)> {
    check_name(&message.name, name, &at.field("name"), errors);
    for (index, filter) in message.listener_filters.iter().enumerate() {
        if !LISTENER_FILTERS.contains(&filter.name.as_str()) {
            errors.add(
                &at.index("listener_filters", index),
                Reason::expected(&filter.name, "a listener filter that Weft supports"),
            );
        }
    }
    let parsed = ListenerName::parse(name).map_err(|error| errors.add(&at.field("name"), error.into())).ok()?;
    let listener = match &parsed {
        ListenerName::Inbound => Listener::Inbound(inbound(message, at, errors)?),
        ListenerName::OutboundDefault => Listener::OutboundDefault(outbound_default(message, at, errors)?),
        ListenerName::Outbound(address) => {
            let (protocol, http, tcp) = outbound(message, at, errors)?;
            Listener::Outbound(Outbound { address: *address, protocol, http, tcp })
        }
        ListenerName::Gateway { namespace, name } => {
            let (ports, encoded_slashes) = gateway_ports(message, at, errors)?;
            let access_log = access_log(message, at, errors);
            Listener::Gateway(Gateway {
                namespace: namespace.clone(),
                name: name.clone(),
                ports,
                access_log,
                encoded_slashes,
            })
        }
    };
    Some((parsed, listener))
}

fn access_log(message: &Message, at: &At<'_>, errors: &mut Errors) -> crate::listener::AccessLog {
    Read::of(message.metadata.as_ref()).word(ACCESS_LOG, &ACCESS_LOGS, at, errors).unwrap_or_default()
}

fn refuse_if(condition: bool, at: &At<'_>, errors: &mut Errors) {
    if condition {
        errors.add(at, Reason::NotSupported);
    }
}

/// What one port's chains say, as far as they have been read.
#[derive(Default)]
struct Port {
    routes: Option<RouteName>,
    other: Option<(InboundMode, Protocol, Authorization)>,
}

fn inbound(message: &Message, at: &At<'_>, errors: &mut Errors) -> Option<Inbound> {
    refuse_if(message.api_listener.is_some(), &at.field("api_listener"), errors);
    let mut ports: BTreeMap<Option<NonZeroU16>, Port> = BTreeMap::new();
    for (index, chain) in message.filter_chains.iter().enumerate() {
        let at = at.index("filter_chains", index);
        let Some(port) = destination_port(chain, &at, errors) else { continue };
        let entry = ports.entry(port).or_default();
        if is_http(chain, &at, errors)? {
            let routes = inbound_http(chain, &at, errors)?;
            if entry.routes.replace(routes).is_some() {
                errors.add(&at, Reason::Duplicate);
            }
        } else {
            let other = inbound_other(chain, &at, errors)?;
            if entry.other.replace(other).is_some() {
                errors.add(&at, Reason::Duplicate);
            }
        }
    }
    if let Some(chain) = &message.default_filter_chain {
        let at = at.field("default_filter_chain");
        let other = inbound_other(chain, &at, errors)?;
        if ports.entry(None).or_default().other.replace(other).is_some() {
            errors.add(&at, Reason::Duplicate);
        }
    }
    let default = finish_port(None, ports.remove(&None).unwrap_or_default(), at, errors);
    let ports =
        ports.into_iter().filter_map(|(port, settings)| Some((port?, finish_port(port, settings, at, errors)?)));
    let ports = ports.collect();
    Some(Inbound { ports, default: default?, access_log: access_log(message, at, errors) })
}

fn finish_port(port: Option<NonZeroU16>, settings: Port, at: &At<'_>, errors: &mut Errors) -> Option<InboundPort> {
    let key = port.map_or_else(|| "*".to_owned(), |port| port.to_string());
    let at = at.key("filter_chains", &key);
    if settings.routes.is_none() {
        errors.add(&at.field("http_connection_manager"), Reason::Required);
    }
    if settings.other.is_none() {
        errors.add(&at.field("tcp_proxy"), Reason::Required);
    }
    let (mode, protocol, authorization) = settings.other?;
    Some(InboundPort { mode, protocol, routes: settings.routes?, authorization })
}

/// The port that a chain is for; the inner `None` is every other port.
fn destination_port(chain: &FilterChain, at: &At<'_>, errors: &mut Errors) -> Option<Option<NonZeroU16>> {
    let Some(port) = chain.filter_chain_match.as_ref().and_then(|m| m.destination_port) else { return Some(None) };
    match u16::try_from(port).ok().and_then(NonZeroU16::new) {
        Some(port) => Some(Some(port)),
        None => {
            let at = at.field("filter_chain_match");
            errors.refuse(&at.field("destination_port"), Reason::expected(port, "a port"))
        }
    }
}

/// Whether a chain is chosen by the mesh's ALPN for HTTP.
fn is_http(chain: &FilterChain, at: &At<'_>, errors: &mut Errors) -> Option<bool> {
    match chain.filter_chain_match.as_ref().map(|m| m.application_protocols.as_slice()) {
        None | Some([]) => Some(false),
        Some(protocols) if protocols == HTTP_ALPN => Some(true),
        Some(protocols) => {
            let at = at.field("filter_chain_match");
            let reason = Reason::expected(protocols.join(","), "weft-h2,h2,http/1.1");
            errors.refuse(&at.field("application_protocols"), reason)
        }
    }
}

fn inbound_http(chain: &FilterChain, at: &At<'_>, errors: &mut Errors) -> Option<RouteName> {
    match &chain.transport_socket {
        Some(socket) => check_mesh_tls(socket, &at.field("transport_socket"), errors),
        None => errors.add(&at.field("transport_socket"), Reason::Required),
    }
    http_routes(chain, &[DENY_FILTER, ALLOW_FILTER], at, errors).map(|(_manager, routes)| routes)
}

fn inbound_other(
    chain: &FilterChain,
    at: &At<'_>,
    errors: &mut Errors,
) -> Option<(InboundMode, Protocol, Authorization)> {
    let metadata = Read::of(chain.metadata.as_ref());
    let asked = metadata.word(MODE, &MODES, at, errors);
    let mode = match &chain.transport_socket {
        Some(socket) => {
            check_mesh_tls(socket, &at.field("transport_socket"), errors);
            asked.unwrap_or(InboundMode::Strict)
        }
        None => {
            if asked == Some(InboundMode::Strict) {
                errors.add(&at.field("transport_socket"), Reason::Required);
            }
            InboundMode::Permissive
        }
    };
    let protocol = metadata.word(PROTOCOL, &PROTOCOLS, at, errors).unwrap_or_default();
    let authorization = connection_filters(chain, at, errors)?;
    Some((mode, protocol, authorization))
}

/// Network RBAC filters, then a TCP proxy to the workload.
fn connection_filters(chain: &FilterChain, at: &At<'_>, errors: &mut Errors) -> Option<Authorization> {
    let Some((last, before)) = chain.filters.split_last() else {
        return errors.refuse(&at.field("filters"), Reason::Required);
    };
    let (mut deny, mut allow) = (None, None);
    for (index, filter) in before.iter().enumerate() {
        let at = at.index("filters", index);
        let rbac: NetworkRbac = read_filter(filter, &at, errors)?;
        let at = at.field(NetworkRbac::NAME);
        let Some(rules) = &rbac.rules else { continue };
        let at = at.field("rules");
        let twice = match Action::try_from(rules.action) {
            Ok(Action::Deny) => deny.replace(authorization::read(rules, Action::Deny, &at, errors)?).is_some(),
            Ok(Action::Allow) => allow.replace(authorization::read(rules, Action::Allow, &at, errors)?).is_some(),
            Ok(Action::Log) | Err(_) => {
                errors.add(&at.field("action"), Reason::NotSupported);
                false
            }
        };
        if twice {
            errors.add(&at, Reason::Duplicate);
        }
    }
    let at = at.index("filters", before.len());
    let proxy: TcpProxy = read_filter(last, &at, errors)?;
    single_cluster(&proxy, INBOUND_CLUSTER, &at, errors);
    Some(Authorization { deny: deny.unwrap_or_default(), allow })
}

fn outbound_default(message: &Message, at: &At<'_>, errors: &mut Errors) -> Option<OutboundDefault> {
    refuse_if(message.api_listener.is_some(), &at.field("api_listener"), errors);
    refuse_if(!message.filter_chains.is_empty(), &at.field("filter_chains"), errors);
    let Some(chain) = &message.default_filter_chain else {
        return Some(OutboundDefault { policy: OutboundPolicy::RegisteredOnly });
    };
    let at = at.field("default_filter_chain");
    let proxy = only_tcp_proxy(chain, &at, errors)?;
    single_cluster(&proxy, PASSTHROUGH_CLUSTER, &at.index("filters", 0), errors);
    Some(OutboundDefault { policy: OutboundPolicy::AllowAny })
}

type OutboundParts = (Protocol, Option<RouteName>, Vec<WeightedCluster>);

fn outbound(message: &Message, at: &At<'_>, errors: &mut Errors) -> Option<OutboundParts> {
    refuse_if(!message.filter_chains.is_empty(), &at.field("filter_chains"), errors);
    let http = match &message.api_listener {
        None => None,
        Some(api) => {
            let at = at.field("api_listener");
            let Some(any) = &api.api_listener else {
                return errors.refuse(&at.field("api_listener"), Reason::Required);
            };
            let at = at.field(HttpConnectionManager::NAME);
            let manager: HttpConnectionManager = unpack(any, &at, errors)?;
            Some(manager_routes(&manager, &[], &at, errors)?)
        }
    };
    let tcp = match &message.default_filter_chain {
        None => Vec::new(),
        Some(chain) => {
            let at = at.field("default_filter_chain");
            let proxy = only_tcp_proxy(chain, &at, errors)?;
            let at = at.index("filters", 0);
            weighted_clusters(&proxy, &at.field(TcpProxy::NAME), errors)?
        }
    };
    let metadata = Read::of(message.metadata.as_ref());
    let implied = match (&http, tcp.is_empty()) {
        (None, _) => Protocol::Tcp,
        (Some(_), true) => Protocol::Http,
        (Some(_), false) => Protocol::Detect,
    };
    let protocol = metadata.word(PROTOCOL, &PROTOCOLS, at, errors).unwrap_or(implied);
    match (protocol, &http) {
        (Protocol::Tcp, Some(_)) => errors.add(&at.field("api_listener"), Reason::NotSupported),
        (Protocol::Detect | Protocol::Http | Protocol::Http2, None) => {
            errors.add(&at.field("api_listener"), Reason::Required);
        }
        _ => {}
    }
    Some((protocol, http, tcp))
}

type GatewayParts = (BTreeMap<NonZeroU16, RouteName>, EncodedSlashes);

fn gateway_ports(message: &Message, at: &At<'_>, errors: &mut Errors) -> Option<GatewayParts> {
    refuse_if(message.api_listener.is_some(), &at.field("api_listener"), errors);
    refuse_if(message.default_filter_chain.is_some(), &at.field("default_filter_chain"), errors);
    let (mut ports, mut slashes) = (BTreeMap::new(), None);
    for (index, chain) in message.filter_chains.iter().enumerate() {
        let at = at.index("filter_chains", index);
        refuse_if(chain.transport_socket.is_some(), &at.field("transport_socket"), errors);
        refuse_if(is_http(chain, &at, errors)?, &at.field("filter_chain_match"), errors);
        let Some(Some(port)) = destination_port(chain, &at, errors) else {
            return errors.refuse(&at.field("filter_chain_match"), Reason::Required);
        };
        let (manager, routes) = http_routes(chain, &[], &at, errors)?;
        if ports.insert(port, routes).is_some() {
            errors.add(&at, Reason::Duplicate);
        }
        let at = at.index("filters", 0);
        let at = at.field(HttpConnectionManager::NAME);
        let at = at.field("path_with_escaped_slashes_action");
        let action = manager.path_with_escaped_slashes_action();
        let read = encoded_slashes(action, &at, errors)?;
        if *slashes.get_or_insert(read) != read {
            errors.add(&at, Reason::expected(action.as_str_name(), "the same in every filter chain"));
        }
    }
    let first = message.address.iter().map(|address| (at.field("address"), address));
    let more = message.additional_addresses.iter().enumerate().filter_map(|(index, additional)| {
        additional.address.as_ref().map(|address| (at.index("additional_addresses", index), address))
    });
    let mut bound = Vec::new();
    for (at, address) in first.chain(more) {
        bound.push(wildcard_port(address, &at, errors)?);
    }
    bound.sort_unstable();
    if !bound.iter().eq(ports.keys()) {
        errors.add(&at.field("address"), Reason::expected(format!("{bound:?}"), "the ports of the filter chains"));
    }
    Some((ports, slashes.unwrap_or_default()))
}

fn encoded_slashes(action: PathWithEscapedSlashesAction, at: &At<'_>, errors: &mut Errors) -> Option<EncodedSlashes> {
    use PathWithEscapedSlashesAction as Asked;
    match action {
        Asked::ImplementationSpecificDefault | Asked::RejectRequest => Some(EncodedSlashes::Refuse),
        Asked::KeepUnchanged => Some(EncodedSlashes::Keep),
        Asked::UnescapeAndRedirect | Asked::UnescapeAndForward => {
            errors.refuse(at, Reason::expected(action.as_str_name(), "KEEP_UNCHANGED or REJECT_REQUEST"))
        }
    }
}

fn wildcard_port(address: &Address, at: &At<'_>, errors: &mut Errors) -> Option<NonZeroU16> {
    let at = at.field("socket_address");
    let Some(socket) = &address.socket_address else { return errors.refuse(&at, Reason::Required) };
    if socket.address != Ipv6Addr::UNSPECIFIED.to_string() && socket.address != "0.0.0.0" {
        errors.add(&at.field("address"), Reason::expected(&socket.address, "\"::\" or \"0.0.0.0\""));
    }
    match socket.port_specifier {
        Some(PortSpecifier::PortValue(port)) => u16::try_from(port).ok().and_then(NonZeroU16::new),
        _ => None,
    }
    .or_else(|| errors.refuse(&at.field("port_value"), Reason::Required))
}

/// The manager and the routes of a chain that holds an HTTP connection manager and nothing else.
fn http_routes(
    chain: &FilterChain,
    rbac: &[&str],
    at: &At<'_>,
    errors: &mut Errors,
) -> Option<(HttpConnectionManager, RouteName)> {
    let filter = only_filter(chain, at, errors)?;
    let at = at.index("filters", 0);
    let manager: HttpConnectionManager = read_filter(filter, &at, errors)?;
    let routes = manager_routes(&manager, rbac, &at.field(HttpConnectionManager::NAME), errors)?;
    Some((manager, routes))
}

fn only_tcp_proxy(chain: &FilterChain, at: &At<'_>, errors: &mut Errors) -> Option<TcpProxy> {
    refuse_if(chain.transport_socket.is_some(), &at.field("transport_socket"), errors);
    let filter = only_filter(chain, at, errors)?;
    read_filter(filter, &at.index("filters", 0), errors)
}

fn only_filter<'a>(chain: &'a FilterChain, at: &At<'_>, errors: &mut Errors) -> Option<&'a Filter> {
    match chain.filters.as_slice() {
        [] => errors.refuse(&at.field("filters"), Reason::Required),
        [filter] => Some(filter),
        [_, ..] => errors.refuse(&at.index("filters", 1), Reason::NotSupported),
    }
}

/// The message of a network filter, which must be of that type.
fn read_filter<M: Typed>(filter: &Filter, at: &At<'_>, errors: &mut Errors) -> Option<M> {
    match &filter.typed_config {
        Some(any) => unpack(any, &at.field(M::NAME), errors),
        None => errors.refuse(&at.field("typed_config"), Reason::Required),
    }
}

fn manager_routes(
    manager: &HttpConnectionManager,
    rbac: &[&str],
    at: &At<'_>,
    errors: &mut Errors,
) -> Option<RouteName> {
    http_filters(&manager.http_filters, rbac, at, errors);
    let at = at.field("rds");
    let Some(rds) = &manager.rds else { return errors.refuse(&at, Reason::Required) };
    check_source(rds.config_source.as_ref(), &at.field("config_source"), errors);
    let at = at.field("route_config_name");
    if rds.route_config_name.is_empty() {
        return errors.refuse(&at, Reason::Required);
    }
    RouteName::parse(&rds.route_config_name).map_err(|error| errors.add(&at, error.into())).ok()
}

/// The router last; before it the RBAC filters of these names, without rules of their own; nothing else that is not optional.
fn http_filters(filters: &[HttpFilter], rbac: &[&str], at: &At<'_>, errors: &mut Errors) {
    let mut missing = rbac.to_vec();
    for (index, filter) in filters.iter().enumerate() {
        let at = at.index("http_filters", index);
        let Some(any) = &filter.typed_config else {
            errors.add(&at.field("typed_config"), Reason::Required);
            continue;
        };
        let last = index + 1 == filters.len();
        if holds::<Router>(any) && !filter.disabled {
            if !last {
                errors.add(&at, Reason::expected("before other filters", "the last filter"));
            }
        } else if holds::<HttpRbac>(any) {
            refuse_if(filter.disabled, &at.field("disabled"), errors);
            match missing.iter().position(|name| *name == filter.name) {
                Some(position) => drop(missing.swap_remove(position)),
                None => errors
                    .add(&at.field("name"), Reason::expected(&filter.name, "a filter that policy by RDS names, once")),
            }
            let config = unpack::<HttpRbac>(any, &at.field(HttpRbac::NAME), errors);
            let rules = config.is_some_and(|config| config.rules.is_some());
            refuse_if(rules, &at.field("rbac"), errors);
        } else if !filter.is_optional && !filter.disabled {
            errors.add(&at, Reason::expected(&any.type_url, "an HTTP filter that Weft supports"));
        }
    }
    for name in missing {
        errors.add(&at.key("http_filters", name), Reason::Required);
    }
    if !filters.last().and_then(|filter| filter.typed_config.as_ref()).is_some_and(holds::<Router>) {
        errors.add(&at.key("http_filters", "envoy.filters.http.router"), Reason::Required);
    }
}

fn single_cluster(proxy: &TcpProxy, name: &'static str, at: &At<'_>, errors: &mut Errors) {
    let at = at.field(TcpProxy::NAME);
    match &proxy.cluster_specifier {
        Some(ClusterSpecifier::Cluster(cluster)) if cluster == name => {}
        Some(ClusterSpecifier::Cluster(cluster)) => errors.add(&at.field("cluster"), Reason::expected(cluster, name)),
        Some(ClusterSpecifier::WeightedClusters(_)) => errors.add(&at.field("weighted_clusters"), Reason::NotSupported),
        None => errors.add(&at.field("cluster"), Reason::Required),
    }
}

fn weighted_clusters(proxy: &TcpProxy, at: &At<'_>, errors: &mut Errors) -> Option<Vec<WeightedCluster>> {
    let weighted = match &proxy.cluster_specifier {
        None => return errors.refuse(&at.field("cluster"), Reason::Required),
        Some(ClusterSpecifier::Cluster(name)) => {
            let cluster = read_cluster_name(name, &at.field("cluster"), errors)?;
            return Some(vec![WeightedCluster { cluster, weight: 1 }]);
        }
        Some(ClusterSpecifier::WeightedClusters(weighted)) => weighted,
    };
    let at = at.field("weighted_clusters");
    if weighted.clusters.iter().all(|entry| entry.weight == 0) {
        errors.add(&at.field("clusters"), Reason::expected("all weights 0", "a weight above 0"));
    }
    collect(weighted.clusters.iter().enumerate().map(|(index, entry)| {
        let at = at.index("clusters", index);
        let cluster = read_cluster_name(&entry.name, &at.field("name"), errors)?;
        Some(WeightedCluster { cluster, weight: entry.weight })
    }))
}

/// Only one form of TLS is known: mutual, with the proxy's own certificate and trust bundle.
fn check_mesh_tls(socket: &TransportSocket, at: &At<'_>, errors: &mut Errors) {
    let Some(any) = &socket.typed_config else { return errors.add(&at.field("typed_config"), Reason::Required) };
    let at = at.field(DownstreamTlsContext::NAME);
    let Some(context) = unpack::<DownstreamTlsContext>(any, &at, errors) else { return };
    if context.require_client_certificate != Some(true) {
        errors.add(&at.field("require_client_certificate"), Reason::expected("not true", "true"));
    }
    let at = at.field("common_tls_context");
    let Some(common) = &context.common_tls_context else { return errors.add(&at, Reason::Required) };
    check_common_tls(common, &at, errors);
}

fn check_common_tls(common: &CommonTlsContext, at: &At<'_>, errors: &mut Errors) {
    match common.tls_certificate_sds_secret_configs.as_slice() {
        [] => errors.add(&at.field("tls_certificate_sds_secret_configs"), Reason::Required),
        [secret] => {
            check_secret(secret, CERTIFICATE_SECRET, &at.index("tls_certificate_sds_secret_configs", 0), errors)
        }
        [_, ..] => errors.add(&at.index("tls_certificate_sds_secret_configs", 1), Reason::NotSupported),
    }
    let trust = at.field("validation_context_sds_secret_config");
    match &common.validation_context_sds_secret_config {
        Some(secret) => check_secret(secret, TRUST_SECRET, &trust, errors),
        None => errors.add(&trust, Reason::Required),
    }
    for (index, protocol) in common.alpn_protocols.iter().enumerate() {
        if protocol != TCP_ALPN && !HTTP_ALPN.contains(&protocol.as_str()) {
            errors.add(&at.index("alpn_protocols", index), Reason::expected(protocol, "a protocol of the mesh"));
        }
    }
}

fn check_secret(secret: &SdsSecretConfig, name: &'static str, at: &At<'_>, errors: &mut Errors) {
    if secret.name != name {
        errors.add(&at.field("name"), Reason::expected(&secret.name, name));
    }
}
