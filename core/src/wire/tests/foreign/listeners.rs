//! Listeners from others.

use envoy_types::pb::{
    envoy::{
        config::{core::v3 as core, listener::v3 as listener},
        extensions::{
            filters::network::{http_connection_manager::v3 as hcm, rbac::v3 as network_rbac, tcp_proxy::v3 as tcp},
            transport_sockets::tls::v3 as tls,
        },
    },
    google::protobuf::{self as pb, BoolValue},
};

use super::*;

fn api_listener(manager: &hcm::HttpConnectionManager) -> listener::Listener {
    let manager = any("envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", manager);
    listener::Listener {
        name: "outbound/240.0.0.1:80".into(),
        api_listener: Some(listener::ApiListener { api_listener: Some(manager) }),
        ..Default::default()
    }
}

fn refused_listener(message: &listener::Listener) -> String {
    errors(ResourceType::Listener, &message.name, message, parse_listener)
}

#[test]
fn a_connection_manager_needs_routes_and_only_filters_that_weft_knows() {
    let filter = |url: &str, is_optional| hcm::HttpFilter {
        name: url.into(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(any(url, &pb::Empty {}))),
        is_optional,
        ..Default::default()
    };
    let router = filter("envoy.extensions.filters.http.router.v3.Router", false);
    let source = core::ConfigSource {
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Ads(Default::default())),
        ..Default::default()
    };
    let manager = |filters, name: &str| hcm::HttpConnectionManager {
        route_specifier: Some(hcm::http_connection_manager::RouteSpecifier::Rds(hcm::Rds {
            config_source: Some(source.clone()),
            route_config_name: name.into(),
        })),
        http_filters: filters,
        ..Default::default()
    };
    let error = {
        let message = api_listener(&manager(vec![router.clone()], ""));
        let any = Any { type_url: ResourceType::Listener.type_url().into(), value: message.encode_to_vec() };
        parse_listener("outbound/240.0.0.1:80", &any).unwrap_err().to_string()
    };
    assert_eq!(
        error,
        "listener \"outbound/240.0.0.1:80\": api_listener.http_connection_manager.rds.route_config_name: required"
    );
    let fault = |optional| filter("envoy.extensions.filters.http.fault.v3.HTTPFault", optional);
    let text = refused_listener(&api_listener(&manager(vec![fault(false), router.clone()], ROUTE)));
    assert!(
        text.starts_with(
            "api_listener.http_connection_manager.http_filters[0]: must be an HTTP filter that Weft supports"
        ),
        "{text}"
    );
    let good = api_listener(&manager(vec![fault(true), router], ROUTE));
    let encoded = Any { type_url: ResourceType::Listener.type_url().into(), value: good.encode_to_vec() };
    let (_, Listener::Outbound(outbound)) = parse_listener(&good.name, &encoded).unwrap() else { panic!() };
    assert_eq!(outbound.http.unwrap().to_string(), ROUTE);
    let text = refused_listener(&api_listener(&manager(vec![], ROUTE)));
    assert!(text.contains("http_filters[\"envoy.filters.http.router\"]: required"), "{text}");
    let inline = hcm::HttpConnectionManager {
        route_specifier: Some(hcm::http_connection_manager::RouteSpecifier::RouteConfig(Default::default())),
        ..manager(vec![], ROUTE)
    };
    assert!(
        refused_listener(&api_listener(&inline))
            .starts_with("api_listener.http_connection_manager.route_config: not supported")
    );
}

/// An inbound listener as Weft renders it, through the types of Envoy, with a change to its first TLS context.
fn inbound_with_tls(change: impl FnOnce(&mut tls::DownstreamTlsContext)) -> String {
    let port = crate::listener::InboundPort {
        mode: Default::default(),
        protocol: Default::default(),
        routes: crate::names::RouteName::Inbound(None),
        authorization: Default::default(),
    };
    let model = crate::listener::Inbound { ports: Default::default(), default: port, access_log: Default::default() };
    let encoded = render_listener(&Listener::Inbound(model), ClientClass::Weft).unwrap();
    let mut message = listener::Listener::decode(&*encoded.value).unwrap();
    let socket = message.filter_chains[0].transport_socket.as_mut().unwrap();
    let Some(core::transport_socket::ConfigType::TypedConfig(config)) = &mut socket.config_type else { panic!() };
    let mut context = tls::DownstreamTlsContext::decode(&*config.value).unwrap();
    change(&mut context);
    config.value = context.encode_to_vec();
    refused_listener(&message)
}

#[test]
fn checks_of_tls_that_weft_does_not_know_are_refused_by_name() {
    let at = "filter_chains[0].transport_socket.downstream_tls_context";
    let starts = |text: String, field: &str, reason: &str| {
        assert!(text.starts_with(&format!("{at}.{field}: {reason}")), "{text}");
    };
    starts(inbound_with_tls(|c| c.require_client_certificate = None), "require_client_certificate", "must be true");
    starts(inbound_with_tls(|c| c.require_sni = Some(BoolValue { value: true })), "require_sni", "not supported");
    starts(inbound_with_tls(|c| c.ocsp_staple_policy = 2), "ocsp_staple_policy", "not supported");
    let common =
        |change: fn(&mut tls::CommonTlsContext)| inbound_with_tls(|c| change(c.common_tls_context.as_mut().unwrap()));
    // Present and empty.
    starts(common(|c| c.tls_params = Some(Default::default())), "common_tls_context.tls_params", "not supported");
    starts(
        common(|c| c.custom_handshaker = Some(Default::default())),
        "common_tls_context.custom_handshaker",
        "not supported",
    );
    starts(
        common(|c| c.tls_certificate_provider_instance = Some(Default::default())),
        "common_tls_context.tls_certificate_provider_instance",
        "not supported",
    );
    use tls::common_tls_context::ValidationContextType;
    let unverified = tls::CertificateValidationContext { trust_chain_verification: 1, ..Default::default() };
    let text = inbound_with_tls(|c| {
        c.common_tls_context.as_mut().unwrap().validation_context_type =
            Some(ValidationContextType::ValidationContext(unverified));
    });
    starts(text, "common_tls_context.validation_context", "not supported");
    let text = inbound_with_tls(|c| {
        c.common_tls_context.as_mut().unwrap().tls_certificate_sds_secret_configs[0].name = "other".into()
    });
    starts(text, "common_tls_context.tls_certificate_sds_secret_configs[0].name", "must be weft:svid");
    assert_eq!(inbound_with_tls(|c| c.common_tls_context = None), format!("{at}.common_tls_context: required\n"));
}

#[test]
fn what_decides_about_connections_is_refused_when_it_is_not_known() {
    let chain = |filters| listener::Listener {
        name: "outbound".into(),
        default_filter_chain: Some(listener::FilterChain { filters, ..Default::default() }),
        ..Default::default()
    };
    let filter = |config| listener::Filter {
        name: "f".into(),
        config_type: Some(listener::filter::ConfigType::TypedConfig(config)),
    };
    let url = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
    let proxy = |name: &str| tcp::TcpProxy {
        cluster_specifier: Some(tcp::tcp_proxy::ClusterSpecifier::Cluster(name.into())),
        ..Default::default()
    };
    let tunnel = tcp::TcpProxy { tunneling_config: Some(Default::default()), ..proxy("passthrough") };
    let text = refused_listener(&chain(vec![filter(any(url, &tunnel))]));
    assert_eq!(text, "default_filter_chain.filters[0].tcp_proxy.tunneling_config: not supported\n");
    let text = refused_listener(&chain(vec![filter(any(url, &proxy("elsewhere")))]));
    assert_eq!(text, "default_filter_chain.filters[0].tcp_proxy.cluster: must be passthrough, not \"elsewhere\"\n");
    let rbac = any("envoy.extensions.filters.network.rbac.v3.RBAC", &network_rbac::Rbac::default());
    let text = refused_listener(&chain(vec![filter(rbac), filter(any(url, &proxy("passthrough")))]));
    assert_eq!(text, "default_filter_chain.filters[1]: not supported\n");
    let matched = listener::FilterChainMatch { server_names: vec!["a".into()], ..Default::default() };
    let gateway = listener::Listener {
        name: "gateway/a/b".into(),
        filter_chains: vec![listener::FilterChain { filter_chain_match: Some(matched), ..Default::default() }],
        ..Default::default()
    };
    assert!(
        refused_listener(&gateway).starts_with("filter_chains[0].filter_chain_match.server_names: not supported\n")
    );
}

/// What Envoy would change in a path is not done, so it is refused. (37)
#[test]
fn escaped_slashes_are_kept_or_refused_at_every_port_alike() {
    use hcm::http_connection_manager::PathWithEscapedSlashesAction as Action;
    let source = core::ConfigSource {
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Ads(Default::default())),
        ..Default::default()
    };
    let router = hcm::HttpFilter {
        name: "envoy.filters.http.router".into(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(any(
            "envoy.extensions.filters.http.router.v3.Router",
            &pb::Empty {},
        ))),
        ..Default::default()
    };
    let socket = |port| core::Address {
        address: Some(core::address::Address::SocketAddress(core::SocketAddress {
            address: "::".into(),
            port_specifier: Some(core::socket_address::PortSpecifier::PortValue(port)),
            ..Default::default()
        })),
    };
    let chain = |port: u32, action: Action| {
        let manager = hcm::HttpConnectionManager {
            route_specifier: Some(hcm::http_connection_manager::RouteSpecifier::Rds(hcm::Rds {
                config_source: Some(source.clone()),
                route_config_name: format!("gateway/a/b:{port}"),
            })),
            http_filters: vec![router.clone()],
            path_with_escaped_slashes_action: action.into(),
            ..Default::default()
        };
        let url = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
        listener::FilterChain {
            filter_chain_match: Some(listener::FilterChainMatch {
                destination_port: Some(pb::UInt32Value { value: port }),
                ..Default::default()
            }),
            filters: vec![listener::Filter {
                name: "http".into(),
                config_type: Some(listener::filter::ConfigType::TypedConfig(any(url, &manager))),
            }],
            ..Default::default()
        }
    };
    let gateway = |one, two| listener::Listener {
        name: "gateway/a/b".into(),
        address: Some(socket(80)),
        additional_addresses: vec![listener::AdditionalAddress { address: Some(socket(81)), ..Default::default() }],
        filter_chains: vec![chain(80, one), chain(81, two)],
        ..Default::default()
    };
    let read = |message: &listener::Listener| {
        let any = Any { type_url: ResourceType::Listener.type_url().into(), value: message.encode_to_vec() };
        match parse_listener(&message.name, &any) {
            Ok((_, Listener::Gateway(gateway))) => format!("{:?}", gateway.encoded_slashes),
            Ok(_) => panic!("another kind"),
            Err(error) => error.to_string(),
        }
    };
    for (one, two, expected) in [
        (Action::KeepUnchanged, Action::KeepUnchanged, "Keep"),
        (Action::RejectRequest, Action::ImplementationSpecificDefault, "Refuse"),
        (Action::KeepUnchanged, Action::RejectRequest, "must be the same in every filter chain"),
        (Action::UnescapeAndForward, Action::UnescapeAndForward, "must be KEEP_UNCHANGED or REJECT_REQUEST"),
    ] {
        let found = read(&gateway(one, two));
        assert!(found.contains(expected), "{one:?} {two:?}: {found}");
    }
}
