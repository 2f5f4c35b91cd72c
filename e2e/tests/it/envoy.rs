//! An Envoy from PyPI in the mesh's network: its certificate from `weft-proxy identity`, its routes and endpoints from
//! the control plane by delta ADS on mutual TLS, its calls in plaintext to workloads that take it.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weft_e2e::document::yaml;
use weft_e2e::mesh::{Mesh, NAMESPACE, Workload};
use weft_e2e::{DEADLINE, Host, Process, app, programs, test, until};

const HTTP_ENTRY: u16 = 10_080;
const GRPC_ENTRY: u16 = 10_051;

/// The program in the repository's own Python environment, which `make test` sets up.
fn program() -> Result<String> {
    let lib = programs::repository().join(".tools/venv/lib");
    let versions = fs::read_dir(&lib).with_context(|| format!("read {}: run `make test`", lib.display()))?;
    let mut paths = versions.flatten().map(|version| version.path().join("site-packages/envoy/_bin/envoy"));
    let path = paths.find(|path| path.is_file()).context("Envoy is missing: run `make test`")?;
    Ok(path.display().to_string())
}

/// A listener whose routes come from the control plane.
fn listener(name: &str, port: u16, route: &str) -> Value {
    let router = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
    json!({
        "name": name,
        "address": {"socket_address": {"address": "0.0.0.0", "port_value": port}},
        "filter_chains": [{"filters": [{
            "name": "http",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                "stat_prefix": name,
                "rds": {"route_config_name": route, "config_source": {"resource_api_version": "V3", "ads": {}}},
                "http_filters": [{"name": "router", "typed_config": {"@type": router}}],
            },
        }]}],
    })
}

fn bootstrap(control: &Host, svid: &str) -> Value {
    let file = |name: &str| json!({"filename": format!("{svid}/{name}")});
    let source = json!({"resource_api_version": "V3", "ads": {}});
    let address = control.ipv4().to_string();
    json!({
        "node": {"id": "envoy-1", "cluster": "test"},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 9901}}},
        "dynamic_resources": {
            "lds_config": source,
            "cds_config": source,
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": "ads"}}],
            },
        },
        "static_resources": {
            "listeners": [
                listener("http", HTTP_ENTRY, "svc/shop/server:80"),
                listener("grpc", GRPC_ENTRY, "svc/shop/server:50051"),
            ],
            "clusters": [{
                "name": "ads",
                "connect_timeout": "5s",
                "typed_extension_protocol_options": {
                    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                        "explicit_http_config": {"http2_protocol_options": {}},
                    },
                },
                "load_assignment": {"cluster_name": "ads", "endpoints": [{"lb_endpoints": [{"endpoint": {
                    "address": {"socket_address": {"address": address, "port_value": 15012}},
                }}]}]},
                "transport_socket": {"name": "tls", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                    "common_tls_context": {
                        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
                        "tls_certificates": [{"certificate_chain": file("cert.pem"), "private_key": file("key.pem")}],
                        "validation_context": {
                            "trusted_ca": file("bundle.pem"),
                            "match_typed_subject_alt_names": [{"san_type": "IP_ADDRESS", "matcher": {"exact": address}}],
                        },
                    },
                }},
            }],
        },
    })
}

/// Enrols, starts Envoy; returns when it listens.
fn start(mesh: &Mesh<'_>, host: &Host) -> Result<Process> {
    let config = mesh.write_config("envoy")?.display().to_string();
    let svid = host.directory().join("svid").display().to_string();
    host.exec_ok("weft-proxy", &["identity", "--config", &config, "--out", &svid, "--once"])?;
    let bootstrap = bootstrap(&mesh.control()?, &svid);
    let file = host.file("envoy.yaml", yaml(&[bootstrap])?)?.display().to_string();
    let mut envoy =
        host.spawn(&program()?, &["-c", &file, "--use-dynamic-base-id", "--concurrency", "1", "-l", "info"], &[])?;
    envoy.wait_for_output("starting workers", DEADLINE)?;
    Ok(envoy)
}

fn route(backend: &str) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": "server", "namespace": NAMESPACE},
        "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": "server", "port": 80}],
            "rules": [{"backendRefs": [{"name": backend, "port": 80}]}],
        },
    })
}

#[test]
fn an_envoy_gets_routes_and_endpoints_and_completes_calls() {
    test("envoy-delta", |world| {
        let mut mesh = Mesh::with_control_plane(world)?;
        let envoy_host = mesh.workload(Workload::outside("envoy"))?;
        let outside = mesh.workload(Workload::outside("outside"))?;
        let one = mesh.workload(app::workload("server-1").account("server"))?;
        let two = mesh.workload(app::workload("other-1").account("other"))?;
        mesh.service("server", &[(80, app::HTTP), (app::GRPC, app::GRPC)])?;
        mesh.service("other", &[(80, app::HTTP)])?;
        mesh.up()?;
        let _apps = [app::start(&one)?, app::start(&two)?];
        let _envoy = start(&mesh, &envoy_host)?;

        let url = format!("http://envoy:{HTTP_ENTRY}/seen");
        let becomes = |status: &str, app: Option<&str>| {
            until(format!("Envoy to answer {status} {app:?}"), DEADLINE, || {
                let seen = app::status(&outside, &url)?;
                ensure!(seen == status, "status {seen}");
                if let Some(app) = app {
                    let seen = app::seen(&outside, &[&url])?;
                    ensure!(seen["app"] == app && seen["headers"]["weft-client-id"].is_null(), "{seen}");
                }
                Ok(())
            })
        };
        becomes("200", Some("server-1"))?;
        app::grpc_calls(&outside, &format!("envoy:{GRPC_ENTRY}"))?;
        // Envoy is listed and rejected no resource.
        let status = mesh.weft(&["status", "-o", "json"])?;
        ensure!(status.contains("envoy-1"), "{status}");

        mesh.apply(route("other"))?;
        becomes("200", Some("other-1"))?;
        // A second instance of the other service, and the end of the first.
        let three = mesh.workload(app::workload("other-2").account("other"))?;
        let _third = app::start(&three)?;
        mesh.proxy("other-1")?.terminate(DEADLINE)?;
        becomes("200", Some("other-2"))?;
        // Where plaintext is refused, an Envoy without mesh TLS gets no endpoint.
        mesh.settings(&json!({"inbound": "strict"}))?;
        becomes("503", None)?;
        mesh.settings(&json!({"inbound": "permissive"}))?;
        becomes("200", Some("other-2"))
    });
}
