//! What a proxy knows of its redirection: the ports that it leaves out, and that it is gone.

use std::net::SocketAddr;

use anyhow::ensure;
use serde_json::json;
use weft_e2e::mesh::{Mesh, Workload};
use weft_e2e::{DEADLINE, app, test, until};

/// A port that the callee's redirection leaves out, and the port of its proxy's metrics, are reached from inside the mesh as they
/// are from outside; its other ports as before. (17)
#[test]
fn a_skipped_port_is_reached_from_inside_the_mesh() {
    test("redirect-skipped", |world| {
        let mut mesh = Mesh::with_control_plane(world)?;
        let skipped = app::TCP.to_string();
        let server = app::workload("server-1").account("server").redirect(&["--skip-inbound-ports", &skipped]);
        let server = mesh.workload(server)?;
        let client = mesh.workload(Workload::of("client"))?;
        let service = mesh.service("server", &[(80, app::HTTP), (90, app::TCP)])?;
        mesh.settings(&json!({"inbound": "strict"}))?;
        mesh.up()?;
        let _app = app::start(&server)?;
        for address in server.addresses() {
            let metrics = format!("http://{}/readyz", SocketAddr::new(address, 15020));
            assert_eq!(app::status(&client, &metrics)?, "200", "{address}");
            let http = format!("http://{}/seen", SocketAddr::new(address, app::HTTP));
            let seen = app::seen(&client, &[&http])?;
            ensure!(!seen["headers"]["weft-client-id"].is_null(), "through both proxies: {seen}");
        }
        let own = server.addresses().into_iter().map(|address| SocketAddr::new(address, app::TCP));
        for at in own.chain(service.map(|address| SocketAddr::new(address, 90))) {
            let probe = ["connect", &at.to_string(), "--send", "\u{1}hello\n", "--timeout-ms", "8000"];
            let output = client.exec("weft-e2e-probe", &probe)?;
            ensure!(String::from_utf8_lossy(&output.stdout).contains("hello"), "{at} does not answer");
        }
        Ok(())
    });
}

/// The rules are gone: readiness and status say so, and they come back. (19)
#[test]
fn a_proxy_without_its_redirection_is_not_ready_and_status_says_why() {
    test("redirect-gone", |world| {
        let mut mesh = Mesh::with_control_plane(world)?;
        let server = mesh.workload(app::workload("server-1").account("server"))?;
        mesh.up()?;
        server.exec_ok("weft-proxy", &["ready", "--proxy"])?;
        server.exec_ok("weft-proxy", &["redirect", "--undo"])?;
        until("the proxy to notice", DEADLINE, || {
            let output = server.exec("weft-proxy", &["ready", "--proxy"])?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(!output.status.success() && said.contains("run weft-proxy redirect"), "{said}");
            let status = mesh.weft(&["status"])?;
            ensure!(status.contains("nothing is redirected"), "{status}");
            Ok(())
        })?;
        server.exec_ok("weft-proxy", &["redirect"])?;
        until("the proxy to be ready again", DEADLINE, || {
            let output = server.exec("weft-proxy", &["ready", "--proxy"])?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let status = mesh.weft(&["status"])?;
            ensure!(!status.contains("nothing is redirected"), "{status}");
            Ok(())
        })
    });
}

/// One half of the redirection is gone or was changed by hand, or one family bypasses it: readiness and status name it, and all is
/// well again after `weft-proxy redirect`. (27.3)
#[test]
fn half_a_redirection_is_noticed_and_named() {
    test("redirect-half", |world| {
        let mut mesh = Mesh::with_control_plane(world)?;
        let server = mesh.workload(app::workload("server-1").account("server"))?;
        mesh.up()?;
        let ready = |server: &weft_e2e::host::Host| -> anyhow::Result<(bool, String)> {
            let output = server.exec("weft-proxy", &["ready", "--proxy"])?;
            Ok((output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned()))
        };
        let bypass = "add table ip6 other; add chain ip6 other out { type nat hook output priority -150; }; \
                      add rule ip6 other out tcp dport 1 redirect to :1";
        for (broken, named) in [
            ("flush chain inet weft inbound", "inbound connections are not redirected to the proxy"),
            ("flush chain inet weft outbound", "outbound connections are not redirected to the proxy"),
            (
                "insert rule inet weft inbound meta nfproto ipv6 return",
                "the rules for inbound connections were changed",
            ),
            (
                "insert rule inet weft inbound tcp dport 8000-8100 return",
                "the rules for inbound connections were changed",
            ),
            ("insert rule inet weft inbound tcp dport 8080 return", "the rules for inbound connections were changed"),
            ("insert rule inet weft outbound tcp dport 80 return", "the rules for outbound connections were changed"),
            ("insert rule inet weft outbound meta nfproto ipv6 return", "outbound IPv6 connections are not redirected"),
            (bypass, "outbound IPv6 connections are not redirected"),
            ("add table inet weft { flags dormant; }", "nothing is redirected to the proxy"),
        ] {
            server.exec_ok("nft", &[broken])?;
            until(broken, DEADLINE, || {
                let (good, said) = ready(&server)?;
                ensure!(!good && said.contains(named) && said.contains("weft-proxy redirect"), "{broken}: {said}");
                let status = mesh.weft(&["status"])?;
                ensure!(status.contains(named), "{broken}: {status}");
                Ok(())
            })?;
            if broken == bypass {
                server.exec_ok("nft", &["delete table ip6 other"])?;
            }
            // What the flags leave out is no fault. nft prints these sets in its own way.
            let ports = (20_000..20_060).map(|port| port.to_string()).collect::<Vec<_>>().join(",");
            let flags =
                ["redirect", "--skip-inbound-ports", &ports, "--skip-outbound-ranges", "192.0.2.7,fc00::/7,10.0.0.0/8"];
            let flags = if broken.starts_with("flush") { &flags[..] } else { &["redirect", "--no-ipv6"] };
            server.exec_ok("weft-proxy", if broken == bypass { &["redirect"] } else { flags })?;
            until("the proxy to be ready again", DEADLINE, || {
                let (good, said) = ready(&server)?;
                ensure!(good, "{said}");
                let status = mesh.weft(&["status"])?;
                ensure!(!status.contains(named), "{status}");
                let metrics = mesh.metrics("server-1", "/metrics")?;
                let known = ["inbound", "outbound"].map(|it| format!("weft_redirected{{direction=\"{it}\"}} 1"));
                ensure!(known.iter().all(|line| metrics.contains(line)), "{metrics}");
                Ok(())
            })?;
            server.exec_ok("weft-proxy", &["redirect"])?;
        }
        Ok(())
    });
}
