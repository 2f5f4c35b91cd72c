//! Two proxies with real redirection between client and server: every protocol, the wire, and who is refused.
//! The same from files and from a control plane, where it makes no difference.

use anyhow::{Result, anyhow};
use serde_json::json;
use weft_e2e::certificate::Svid;
use weft_e2e::mesh::{Mesh, NAMESPACE, TRUST_DOMAIN, Workload, both_ways, spiffe_id};
use weft_e2e::wire::Capture;
use weft_e2e::{Host, app, test};

use crate::traffic;

const PORTS: [(u16, u16); 5] = [
    (app::HTTP, app::HTTP),
    (app::HTTP2, app::HTTP2),
    (app::TCP, app::TCP),
    (app::GREET, app::GREET),
    (app::GRPC, app::GRPC),
];

/// A client and a server with every port, up, and the applications started.
fn pair(mesh: &mut Mesh<'_>, client: Workload) -> Result<(Host, Host, app::App)> {
    let server = mesh.workload(app::workload("server-1").account("server"))?;
    let client = mesh.workload(client)?;
    mesh.service("server", &PORTS)?;
    mesh.up()?;
    let app = app::start(&server)?;
    Ok((client, server, app))
}

/// The status of a GET to the service, by its IPv4 address.
fn get(client: &Host) -> Result<String> {
    app::status(client, &format!("http://server:{}/seen", app::HTTP))
}

/// So that a mistake of the harness is not taken for one of the proxy.
#[test]
fn the_files_of_the_harness_are_what_a_proxy_takes() {
    test("mesh-files", |world| {
        let mut mesh = Mesh::from_files(world)?;
        mesh.workload(app::workload("server-1").account("server").label("version", "v1"))?;
        mesh.workload(Workload::gateway("edge-1", "edge"))?;
        mesh.workload(Workload::outside("outside"))?;
        mesh.service("server", &PORTS)?;
        mesh.settings(&json!({"inbound": "strict"}))?;
        for (name, objects) in [("server-1", 3), ("edge-1", 3)] {
            let text = std::fs::read_to_string(mesh.write_config(name)?)?;
            let (config, all) = weft_core::api::parse_proxy_file(&text).map_err(|mistakes| anyhow!("{mistakes:#?}"))?;
            assert_eq!(config.metadata.name, name);
            assert_eq!(all.len(), objects, "{text}");
            for object in &all {
                assert_eq!(weft_core::api::validate(object), [], "{text}");
            }
        }
        Ok(())
    });
}

#[test]
fn the_control_plane_gives_the_harness_a_token_and_takes_its_documents() {
    test("mesh-control-plane-files", |world| {
        let mut mesh = Mesh::with_control_plane(world)?;
        mesh.workload(app::workload("server-1").account("server"))?;
        mesh.service("server", &PORTS)?;
        let text = std::fs::read_to_string(mesh.write_config("server-1")?)?;
        let (config, all) = weft_core::api::parse_proxy_file(&text).map_err(|mistakes| anyhow!("{mistakes:#?}"))?;
        assert!(all.is_empty(), "{text}");
        let token = config.spec.control_plane.and_then(|plane| plane.join_token_file);
        let token = std::fs::read_to_string(token.ok_or_else(|| anyhow!("no token: {text}"))?)?;
        assert!(token.trim().len() > 32 && token.lines().count() == 1, "{token}");
        Ok(())
    });
}

#[test]
fn every_protocol_crosses_two_proxies_by_name_and_by_both_families() {
    both_ways("mesh-traffic", |mesh| {
        let server = mesh.workload(app::workload("server-1").account("server"))?;
        let client = mesh.workload(Workload::of("client"))?;
        let addresses = mesh.service("server", &PORTS)?;
        mesh.up()?;
        let _app = app::start(&server)?;
        for address in addresses {
            let at = if address.is_ipv6() { format!("[{address}]") } else { address.to_string() };
            traffic::http1(&client, &at, app::HTTP)?;
            traffic::http2(&client, &at, app::HTTP2)?;
            traffic::tcp(&client, address, app::TCP, app::GREET, "server-1")?;
        }
        traffic::http1(&client, "server", app::HTTP)?;
        traffic::grpc_and_websocket(&client, "server", "server-1", app::GRPC, app::HTTP)
    });
}

#[test]
fn nothing_readable_crosses_the_wire() {
    both_ways("mesh-wire", |mesh| {
        let (client, server, _app) = pair(mesh, Workload::of("client"))?;
        let capture = Capture::start(&server, "tcp")?;
        let url = format!("http://server:{}/seen", app::HTTP);
        let seen = app::seen(&client, &["-d", "a well known secret", "-H", "x-token: hunter2hunter2", &url])?;
        assert_eq!(seen["body"], "a well known secret");
        traffic::tcp(&client, server.ipv4().into(), app::TCP, app::GREET, "server-1")?;
        let packets = capture.stop()?;
        for text in ["a well known secret", "hunter2hunter2", "bye from server-1"] {
            assert!(!packets.contain(text.as_bytes()), "{text:?} was on the wire in the clear");
        }
        Ok(())
    });
}

/// Client-first and long-lived connections of a real database, over both families.
#[test]
fn a_database_is_reached_through_the_mesh() {
    both_ways("mesh-redis", |mesh| {
        let server = mesh.workload(Workload::of("redis").port(app::REDIS, "tcp"))?;
        let client = mesh.workload(Workload::of("client"))?;
        let addresses = mesh.service("redis", &[(app::REDIS, app::REDIS)])?;
        mesh.up()?;
        let _redis = app::start_redis(&server)?;
        for address in addresses {
            client.exec_ok("redis-cli", &["-h", &address.to_string(), "FLUSHALL"])?;
            traffic::redis(&client, &address.to_string())?;
        }
        Ok(())
    });
}

/// By service address, by its own address, and by name.
#[test]
fn a_workload_reaches_itself() {
    both_ways("mesh-self", |mesh| {
        let (_client, server, _app) = pair(mesh, Workload::of("client"))?;
        for at in
            ["server".to_owned(), server.ipv4().to_string(), format!("[{}]", server.ipv6()), "server-1".to_owned()]
        {
            let seen = app::seen(&server, &[&format!("http://{at}:{}/seen", app::HTTP)])?;
            assert_eq!(seen["app"], "server-1", "{at}");
        }
        Ok(())
    });
}

#[test]
fn the_application_is_told_who_calls_and_cannot_be_told_lies() {
    both_ways("mesh-client-id", |mesh| {
        let (client, _server, _app) = pair(mesh, Workload::of("client"))?;
        let url = format!("http://server:{}/seen", app::HTTP);
        let seen = app::seen(&client, &["-H", "weft-client-id: spiffe://mesh.test/ns/shop/sa/admin", &url])?;
        assert_eq!(seen["headers"]["weft-client-id"], spiffe_id("client"));
        Ok(())
    });
}

#[test]
fn a_policy_allows_the_named_caller_and_refuses_another() {
    both_ways("mesh-policy", |mesh| {
        let other = mesh.workload(Workload::of("other"))?;
        let (client, _server, _app) = pair(mesh, Workload::of("client"))?;
        assert_eq!((get(&client)?, get(&other)?), ("200".to_owned(), "200".to_owned()));
        mesh.apply(json!({
            "apiVersion": "weft.dev/v1alpha1",
            "kind": "AuthorizationPolicy",
            "metadata": {"name": "client-only", "namespace": NAMESPACE},
            "spec": {
                "selector": {"matchLabels": {"app": "server"}},
                "action": "Allow",
                "rules": [{"name": "the client", "from": [{"identities": [spiffe_id("client")]}]}],
            },
        }))?;
        weft_e2e::until("the policy to hold", weft_e2e::DEADLINE, || {
            let status = get(&other)?;
            anyhow::ensure!(status == "403", "{status}");
            Ok(())
        })?;
        assert_eq!(get(&client)?, "200");
        Ok(())
    });
}

/// A client whose certificate is wrong in one way gets nothing; with the right one it does.
#[test]
fn a_wrong_certificate_is_refused() {
    let right = Svid::of(TRUST_DOMAIN, NAMESPACE, "client");
    let cases: [(&str, Workload, bool); 6] = [
        ("right", Workload::of("client"), true),
        ("stranger", Workload::of("client").stranger(), false),
        ("expired", Workload::of("client").svid(right.clone().expired()), false),
        ("early", Workload::of("client").svid(right.clone().not_yet_valid()), false),
        ("domain", Workload::of("client").svid(Svid::of("other.test", NAMESPACE, "client")), false),
        ("two-uris", Workload::of("client").svid(right.and_uri("spiffe://mesh.test/ns/shop/sa/admin")), false),
    ];
    for (case, client, welcome) in cases {
        test(&format!("mesh-certificate-{case}"), |world| {
            let mut mesh = Mesh::from_files(world)?;
            let (client, _server, app) = pair(&mut mesh, client)?;
            let status = get(&client).unwrap_or_else(|error| format!("{error:#}"));
            assert_eq!(status == "200", welcome, "{case}: {status}");
            drop(app);
            Ok(())
        });
    }
}

/// The client dials a workload whose certificate names somebody else: the client's proxy must refuse it.
#[test]
fn a_server_with_another_identity_is_refused() {
    test("mesh-server-identity", |world| {
        let mut mesh = Mesh::from_files(world)?;
        let impostor = Svid::of(TRUST_DOMAIN, NAMESPACE, "impostor");
        let server = mesh.workload(app::workload("server-1").account("server").svid(impostor))?;
        let client = mesh.workload(Workload::of("client"))?;
        mesh.service("server", &PORTS)?;
        mesh.up()?;
        let _app = app::start(&server)?;
        let status = get(&client)?;
        assert_eq!(status, "503");
        Ok(())
    });
}

#[test]
fn plaintext_is_taken_when_permissive_and_refused_when_strict() {
    both_ways("mesh-strict", |mesh| {
        let outside = mesh.workload(Workload::outside("outside"))?;
        let (client, server, _app) = pair(mesh, Workload::of("client"))?;
        let url = format!("http://{}:{}/seen", server.ipv4(), app::HTTP);
        assert_eq!(app::status(&outside, &url)?, "200");
        mesh.settings(&json!({"inbound": "strict"}))?;
        weft_e2e::until("plaintext to be refused", weft_e2e::DEADLINE, || {
            anyhow::ensure!(app::status(&outside, &url).is_err(), "it is taken");
            Ok(())
        })?;
        assert_eq!(get(&client)?, "200");
        Ok(())
    });
}
