//! Calls to destinations that are not services of the mesh: refused in the mesh's ranges, forwarded as without a mesh elsewhere.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use serde_json::json;
use weft_e2e::mesh::{Mesh, Workload, both_ways};
use weft_e2e::wire::Capture;
use weft_e2e::{DEADLINE, Host, app, test, until};

use crate::traffic;

/// Addresses of the mesh that no service has.
const UNKNOWN: [&str; 2] = ["240.0.99.99", "fd77:6566:7400::9999"];

/// The status of a GET, by HTTP/1.1 and by HTTP/2, which must be the same.
fn status(client: &Host, address: IpAddr, port: u16) -> Result<String> {
    let url = format!("http://{}/seen", SocketAddr::new(address, port));
    let all = ["--http1.1", "--http2-prior-knowledge"]
        .map(|version| app::curl(client, &[version, "-o", "/dev/null", "-w", "%{http_code}", &url]));
    let [one, two] = all;
    let (one, two) = (one?, two?);
    ensure!(one == two, "HTTP/1.1: {one}, HTTP/2: {two}");
    Ok(one)
}

/// The proxy counted why.
fn ensure_counted(mesh: &Mesh<'_>, flag: &str) -> Result<()> {
    let metrics = mesh.metrics("client", "/metrics")?;
    let counted = |line: &str| line.starts_with("weft_failures_total") && line.contains(&format!("flag=\"{flag}\""));
    ensure!(metrics.lines().any(counted), "flag {flag} is not in {metrics}");
    Ok(())
}

/// Whether opaque bytes come back.
fn answers(client: &Host, address: IpAddr, port: u16) -> Result<bool> {
    let at = SocketAddr::new(address, port).to_string();
    let output = client.exec("weft-e2e-probe", &["connect", &at, "--send", "\u{1}hello\n", "--timeout-ms", "8000"])?;
    Ok(String::from_utf8_lossy(&output.stdout).contains("hello"))
}

fn up(mesh: &mut Mesh<'_>) -> Result<(Host, Host, [app::App; 2])> {
    let outside = mesh.workload(Workload::outside("outside"))?;
    let server = mesh.workload(app::workload("server-1").account("server"))?;
    let client = mesh.workload(Workload::of("client"))?;
    mesh.service("server", &[(80, app::HTTP)])?;
    mesh.up()?;
    let apps = [app::start(&outside)?, app::start(&server)?];
    Ok((client, outside, apps))
}

#[test]
fn an_unknown_address_of_the_mesh_is_refused_and_never_leaves() {
    both_ways("outbound-unknown", |mesh| {
        let (client, _outside, _apps) = up(mesh)?;
        let capture = Capture::start(&client, "tcp and (net 240.0.0.0/4 or net fd77:6566:7400::/48)")?;
        for address in UNKNOWN {
            let address: IpAddr = address.parse()?;
            assert_eq!(status(&client, address, 80)?, "503", "{address}");
            ensure!(!answers(&client, address, app::TCP)?, "{address} answers");
        }
        let packets = capture.stop()?;
        ensure_counted(mesh, "NS")?;
        assert!(!packets.contain(b"hello") && !packets.contain(b"GET /seen"));
        assert_eq!(app::status(&client, "http://server/seen")?, "200");
        Ok(())
    });
}

/// By default as without a mesh; with `registered-only` not at all, while the mesh's own services go on.
#[test]
fn the_outside_is_allowed_until_only_registered_ones_are() {
    both_ways("outbound-outside", |mesh| {
        let (client, outside, _apps) = up(mesh)?;
        for address in outside.addresses() {
            let at = if address.is_ipv6() { format!("[{address}]") } else { address.to_string() };
            traffic::http1(&client, &at, app::HTTP)?;
            traffic::http2(&client, &at, app::HTTP2)?;
            traffic::tcp(&client, address, app::TCP, app::GREET, "outside")?;
        }
        traffic::grpc_and_websocket(&client, "outside", "outside", app::GRPC, app::HTTP)?;
        let seen = app::seen(&client, &[&format!("http://outside:{}/seen", app::HTTP)])?;
        ensure!(seen["headers"]["weft-client-id"].is_null(), "the caller's identity was sent outside the mesh: {seen}");

        mesh.settings(&json!({"outbound": "registered-only"}))?;
        for address in outside.addresses() {
            until("the outside to be refused", DEADLINE, || {
                let status = status(&client, address, app::HTTP2)?;
                ensure!(status == "502", "status {status}");
                Ok(())
            })?;
            ensure!(!answers(&client, address, app::TCP)?, "{address} answers");
        }
        ensure_counted(mesh, "REG")?;
        assert_eq!(app::status(&client, "http://server/seen")?, "200");
        Ok(())
    });
}

/// A workload whose proxy is taken away, and which is then written down as one without: its callers do not follow it into
/// plaintext.
#[test]
fn a_workload_that_was_in_the_mesh_is_not_called_in_plaintext() {
    test("outbound-left-the-mesh", |world| {
        let mut mesh = Mesh::with_control_plane(world)?;
        let server = mesh.workload(app::workload("server-1").account("server"))?;
        let client = mesh.workload(Workload::of("client"))?;
        mesh.service("server", &[(80, app::HTTP)])?;
        mesh.up()?;
        let _app = app::start(&server)?;
        assert_eq!(app::status(&client, "http://server/seen")?, "200");

        mesh.proxy("server-1")?.terminate(DEADLINE)?;
        server.exec_ok("weft-proxy", &["redirect", "--undo"])?;
        let capture = Capture::start(&client, &format!("tcp port {}", app::HTTP))?;
        mesh.apply(json!({
            "apiVersion": "weft.dev/v1alpha1",
            "kind": "Workload",
            "metadata": {"name": "plain", "namespace": "shop", "labels": {"app": "server"}},
            "spec": {
                "mesh": false,
                "addresses": server.addresses(),
                "ports": [{"name": "http", "port": app::HTTP, "protocol": "http"}],
            },
        }))?;
        until("the refusal", DEADLINE, || {
            app::status(&client, "http://server/seen")?;
            ensure_counted(&mesh, "NOID")
        })?;
        assert_eq!(app::status(&client, "http://server/seen")?, "503");
        assert_eq!(status(&client, server.addresses()[0], app::HTTP)?, "503", "nor by its own address");
        let packets = capture.stop()?;
        assert!(!packets.contain(b"/seen"), "nothing of a request was on the wire");
        let dump = mesh.admin("client", "/config_dump")?;
        ensure!(dump.contains("endpoints_withheld") && dump.contains("shop/plain"), "{dump}");

        // Whoever restarts has not known it in the mesh.
        mesh.proxy("client")?.terminate(DEADLINE)?;
        mesh.start_proxy("client")?;
        until("the caller to call it", DEADLINE, || {
            let status = app::status(&client, "http://server/seen")?;
            ensure!(status == "200", "status {status}");
            Ok(())
        })
    });
}

/// A workload claims an address of the outside, in its registration only: nobody else notices, neither while it is there nor
/// after. Its own second address counts once its proxy answers there. (30)
#[test]
fn an_outside_address_that_a_workload_only_claims_stays_as_it_was() {
    test("outbound-claimed", |world| {
        let mut mesh = Mesh::with_control_plane(world)?;
        let (client, outside, _apps) = up(&mut mesh)?;
        let reaches_it = || {
            for address in outside.addresses() {
                let url = format!("http://{}/seen", SocketAddr::new(address, app::HTTP));
                assert_eq!(app::status(&client, &url)?, "200", "{address}");
                ensure!(answers(&client, address, app::TCP)?, "{address} does not answer");
            }
            Ok(())
        };
        reaches_it()?;
        let thief = Workload::of("thief").spec(
            "workload",
            json!({
                "serviceAccount": "thief",
                "labels": {"app": "thief"},
                "addresses": ["10.0.0.1"],
            }),
        );
        let host = mesh.workload(thief)?;
        // Its address is known only now.
        let own: Vec<String> = host.addresses().iter().map(ToString::to_string).collect();
        let foreign: Vec<String> = outside.addresses().iter().map(ToString::to_string).collect();
        let claimed = [own.clone(), foreign.clone()].concat();
        mesh.proxy("thief")?.terminate(DEADLINE)?;
        let path = mesh.write_config("thief")?;
        let text = std::fs::read_to_string(&path)?;
        ensure!(text.contains("10.0.0.1"), "{text}");
        let list = format!("- \"{}\"", claimed.join("\"\n    - \""));
        std::fs::write(&path, text.replace("- 10.0.0.1", &list))?;
        let config = path.display().to_string();
        let mut proxy = host.spawn("weft-proxy", &["run", "--config", &config], &[])?;
        until("the probes", DEADLINE, || {
            let all: serde_json::Value = serde_json::from_str(&mesh.weft(&["get", "workload", "-A", "-o", "json"])?)?;
            let items = all["items"].as_array().map(Vec::as_slice).unwrap_or_default();
            let Some(it) = items.iter().find(|it| it["metadata"]["name"] == "thief") else {
                anyhow::bail!("no thief in {all}")
            };
            ensure!(it["spec"]["addresses"] == json!(own), "addresses {}", it["spec"]["addresses"]);
            let unproven = &it["metadata"]["annotations"]["weft.dev/unproven-addresses"];
            ensure!(*unproven == foreign.join(","), "unproven {unproven}");
            let status = mesh.weft(&["status"])?;
            ensure!(status.contains("not proven"), "{status}");
            Ok(())
        })?;
        reaches_it()?;
        proxy.terminate(DEADLINE)?;
        reaches_it()
    });
}
