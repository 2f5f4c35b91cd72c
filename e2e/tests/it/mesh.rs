//! Two proxies with real redirection between client and server: every protocol, the wire, and refused callers.
//! The same from files and from a control plane, where it makes no difference.

use std::net::{IpAddr, SocketAddr};

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

/// Why a proxy whose certificate has ended is not ready.
const EXPIRED: &str = "the certificate has expired";

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
            traffic::grpc_and_websocket(&client, &at, "server-1", app::GRPC, app::HTTP)?;
        }
        traffic::http1(&client, "server", app::HTTP)?;
        traffic::grpc_and_websocket(&client, "server", "server-1", app::GRPC, app::HTTP)
    });
}

#[test]
fn proxies_with_either_record_layer_talk_to_each_other_both_ways() {
    both_ways("mesh-records", |mesh| {
        let own = mesh.workload(app::workload("own-1").account("own"))?;
        let rustls = app::workload("rustls-1").account("rustls").spec("tls", json!({"records": "rustls"}));
        let rustls = mesh.workload(rustls)?;
        let (own_addresses, rustls_addresses) = (mesh.service("own", &PORTS)?, mesh.service("rustls", &PORTS)?);
        mesh.settings(&json!({"inbound": "strict"}))?;
        mesh.up()?;
        let _apps = [app::start(&own)?, app::start(&rustls)?];
        for (client, server, name, addresses) in
            [(&own, "rustls", "rustls-1", rustls_addresses), (&rustls, "own", "own-1", own_addresses)]
        {
            traffic::http1(client, server, app::HTTP)?;
            traffic::http2(client, server, app::HTTP2)?;
            traffic::grpc_and_websocket(client, server, name, app::GRPC, app::HTTP)?;
            for address in addresses {
                traffic::tcp(client, address, app::TCP, app::GREET, name)?;
            }
        }
        Ok(())
    });
}

#[test]
fn nothing_readable_crosses_the_wire() {
    both_ways("mesh-wire", |mesh| {
        let (client, server, _app) = pair(mesh, Workload::of("client"))?;
        // Both families of the client; the server's own proxy also talks to its control plane.
        let filter = format!("tcp and (host {} or host {})", client.ipv4(), client.ipv6());
        let capture = Capture::start(&server, &filter)?;
        let url = format!("http://server:{}/seen", app::HTTP);
        let seen = app::seen(&client, &["-d", "a well known secret", "-H", "x-token: hunter2hunter2", &url])?;
        assert_eq!(seen["body"], "a well known secret");
        for address in server.addresses() {
            traffic::tcp(&client, address, app::TCP, app::GREET, "server-1")?;
        }
        traffic::grpc_and_websocket(&client, "server", "server-1", app::GRPC, app::HTTP)?;
        let packets = capture.stop()?;
        for text in ["a well known secret", "hunter2hunter2", "bye from server-1"] {
            assert!(!packets.contain(text.as_bytes()), "{text:?} was on the wire in the clear");
        }
        // HTTP's pool, and eight connections of opaque bytes; two directions each.
        let directions = packets.tls_only()?;
        assert!(directions >= 18, "{directions}");
        Ok(())
    });
}

/// Client-first and long-lived connections of real databases, over both families.
#[test]
fn databases_are_reached_through_the_mesh() {
    both_ways("mesh-databases", |mesh| {
        let server = mesh.workload(Workload::of("database").port(app::REDIS, "tcp").port(app::POSTGRES, "tcp"))?;
        let client = mesh.workload(Workload::of("client"))?;
        let ports = [(app::REDIS, app::REDIS), (app::POSTGRES, app::POSTGRES)];
        let addresses = mesh.service("database", &ports)?;
        mesh.settings(&json!({"inbound": "strict"}))?;
        mesh.up()?;
        let (_redis, _postgres) = (app::start_redis(&server)?, app::start_postgres(&server)?);
        for address in addresses {
            client.exec_ok("redis-cli", &["-h", &address.to_string(), "FLUSHALL"])?;
            traffic::redis(&client, &address.to_string())?;
            traffic::postgres(&client, &address.to_string())?;
        }
        Ok(())
    });
}

/// By service address, by its own address, and by name.
#[test]
fn a_workload_reaches_itself() {
    both_ways("mesh-self", |mesh| {
        let (_client, server, _app) = pair(mesh, Workload::of("client"))?;
        let own = server.addresses().map(|address| SocketAddr::new(address, app::HTTP).to_string());
        let by_name = ["server", "server-1"].map(|name| format!("{name}:{}", app::HTTP));
        for at in own.iter().chain(&by_name) {
            for family in ["-4", "-6"] {
                if at.starts_with('[') && family == "-4" || at.starts_with("10.") && family == "-6" {
                    continue;
                }
                let seen = app::seen(&server, &[family, &format!("http://{at}/seen")])?;
                assert_eq!(seen["app"], "server-1", "{at}");
            }
        }
        for address in server.addresses() {
            traffic::tcp(&server, address, app::TCP, app::GREET, "server-1")?;
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
                "rules": [{"name": "the-client", "from": [{"identities": [spiffe_id("client")]}]}],
            },
        }))?;
        weft_e2e::until("the policy to hold", weft_e2e::DEADLINE, || {
            let status = get(&other)?;
            anyhow::ensure!(status == "403", "status {status}");
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
    let cases: [(&str, Workload, bool); 5] = [
        ("right", Workload::of("client"), true),
        ("stranger", Workload::of("client").stranger(), false),
        ("expired", Workload::of("client").svid(right.clone().expired()).unready(EXPIRED), false),
        ("early", Workload::of("client").svid(right.not_yet_valid()), false),
        ("domain", Workload::of("client").svid(Svid::of("other.test", NAMESPACE, "client")), false),
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

/// Certificates with which no proxy of ours would start, shown by a client of its own: not one byte reaches the
/// application, nor an answer the client.
#[test]
fn a_client_of_its_own_needs_a_right_certificate_too() {
    test("mesh-own-client", |world| {
        let mut mesh = Mesh::from_files(world)?;
        let outside = mesh.workload(Workload::outside("outside"))?;
        let (_client, server, _app) = pair(&mut mesh, Workload::of("client"))?;
        let right = || Svid::of(TRUST_DOMAIN, NAMESPACE, "client");
        let cases = [
            ("right", Some(right()), false, true),
            ("none", None, false, false),
            ("stranger", Some(right()), true, false),
            ("expired", Some(right().expired()), false, false),
            ("two URIs", Some(right().and_uri(spiffe_id("admin"))), false, false),
            ("no SPIFFE ID", Some(Svid::uri("https://mesh.test/ns/shop/sa/client")), false, false),
        ];
        for (case, svid, stranger, welcome) in cases {
            let files = svid.map(|svid| mesh.sign(&svid, stranger, &outside)).transpose()?;
            for address in server.addresses() {
                let at = SocketAddr::new(address, app::GREET);
                let answer = app::tls_client(&outside, at, "weft-tcp", files.as_ref(), "hello");
                match (welcome, answer) {
                    (true, answer) => assert!(answer?.starts_with("220 server-1 ready\n"), "{case}"),
                    (false, Ok(answer)) => panic!("{case}: {answer:?}"),
                    (false, Err(refusal)) => assert!(format!("{refusal:#}").contains("refused: "), "{refusal:#}"),
                }
            }
        }
        Ok(())
    });
}

/// The client dials a workload whose certificate is wrong in one way: the client's proxy must refuse it.
#[test]
fn a_server_with_a_wrong_certificate_is_refused() {
    let right = Svid::of(TRUST_DOMAIN, NAMESPACE, "server");
    let impostor = Svid::of(TRUST_DOMAIN, NAMESPACE, "impostor");
    let server = || app::workload("server-1").account("server");
    let cases: [(&str, Workload, bool); 4] = [
        ("right", server(), true),
        ("impostor", server().svid(impostor), false),
        ("stranger", server().stranger(), false),
        ("expired", server().svid(right.expired()).unready(EXPIRED), false),
    ];
    for (case, server, welcome) in cases {
        test(&format!("mesh-server-{case}"), |world| {
            let mut mesh = Mesh::from_files(world)?;
            let server = mesh.workload(server)?;
            let client = mesh.workload(Workload::of("client"))?;
            mesh.service("server", &PORTS)?;
            mesh.up()?;
            let _app = app::start(&server)?;
            assert_eq!(get(&client)?, if welcome { "200" } else { "503" }, "{case}");
            Ok(())
        });
    }
}

/// The tool that tells an operator whether redirection works, on hosts with the proxy running.
#[test]
fn the_check_of_the_redirection_passes_beside_a_running_proxy() {
    test("mesh-redirect-check", |world| {
        let mut mesh = Mesh::from_files(world)?;
        let (client, server, _app) = pair(&mut mesh, Workload::of("client"))?;
        for host in [client, server] {
            let said = host.exec_ok("weft-proxy", &["redirect", "--check"])?;
            assert!(said.lines().count() >= 4 && said.lines().all(|line| line.starts_with("ok")), "{said}");
            host.exec_ok("weft-proxy", &["redirect", "--undo"])?;
            let output = host.exec("weft-proxy", &["redirect", "--check"])?;
            assert!(!output.status.success(), "{output:?}");
        }
        Ok(())
    });
}

#[test]
fn plaintext_is_taken_when_permissive_and_refused_when_strict() {
    both_ways("mesh-strict", |mesh| {
        let outside = mesh.workload(Workload::outside("outside"))?;
        let (client, server, _app) = pair(mesh, Workload::of("client"))?;
        let url = |address: IpAddr, port| format!("http://{}/seen", SocketAddr::new(address, port));
        let h2 = ["--http2-prior-knowledge", "-o", "/dev/null", "-w", "%{http_code}"];
        let tcp = |address: IpAddr, port| {
            let at = SocketAddr::new(address, port).to_string();
            let output = outside.exec("weft-e2e-probe", &["connect", &at, "--send", "\u{1}hello\n"])?;
            anyhow::Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        };
        for address in server.addresses() {
            assert_eq!(app::status(&outside, &url(address, app::HTTP))?, "200");
            assert_eq!(app::curl(&outside, &[&h2[..], &[&url(address, app::HTTP2)]].concat())?, "200");
            traffic::tcp(&outside, address, app::TCP, app::GREET, "server-1")?;
        }
        mesh.settings(&json!({"inbound": "strict"}))?;
        for address in server.addresses() {
            weft_e2e::until("plaintext to be refused", weft_e2e::DEADLINE, || {
                anyhow::ensure!(app::status(&outside, &url(address, app::HTTP)).is_err(), "plaintext is accepted");
                Ok(())
            })?;
            app::curl(&outside, &[&h2[..], &[&url(address, app::HTTP2)]].concat()).unwrap_err();
            for port in [app::TCP, app::GREET] {
                let said = tcp(address, port)?;
                assert!(!said.contains("hello") && !said.contains("server-1"), "{said}");
            }
        }
        assert_eq!(get(&client)?, "200");
        for address in server.addresses() {
            traffic::tcp(&client, address, app::TCP, app::GREET, "server-1")?;
        }
        Ok(())
    });
}
