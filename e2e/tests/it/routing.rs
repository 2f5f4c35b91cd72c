//! Routes: a share of the traffic, by header, through the gateway at the edge, and back by rollback.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use weft_e2e::mesh::{Mesh, NAMESPACE, Workload, both_ways, spiffe_id};
use weft_e2e::{DEADLINE, Host, app, test, until};

/// Two versions behind services of their own, `server-v1` and `server-v2`, and `server` in front; a client.
fn versions(mesh: &mut Mesh<'_>) -> Result<(Host, Vec<app::App>)> {
    let mut hosts = Vec::new();
    for version in ["v1", "v2"] {
        let workload =
            app::workload(&format!("{version}-1")).account("server").label("app", &format!("server-{version}"));
        hosts.push(mesh.workload(workload.label("version", version))?);
    }
    let client = mesh.workload(Workload::of("client"))?;
    for name in ["server", "server-v1", "server-v2"] {
        mesh.service(name, &[(80, app::HTTP)])?;
    }
    mesh.apply(route(&json!([{"backendRefs": [{"name": "server-v1", "port": 80}]}])))?;
    mesh.up()?;
    let apps = hosts.iter().map(app::start).collect::<Result<_>>()?;
    Ok((client, apps))
}

/// An HTTPRoute on the Service `server`.
fn route(rules: &Value) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": "server", "namespace": NAMESPACE},
        "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "server"}], "rules": rules},
    })
}

/// How many of `count` requests each application answered.
fn shares(client: &Host, count: u32, args: &[&str]) -> Result<BTreeMap<String, u32>> {
    let url = format!("http://server/seen?[1-{count}]");
    let mut shares = BTreeMap::new();
    for line in app::curl(client, &[&["-4", url.as_str()], args].concat())?.lines() {
        let seen: Value = serde_json::from_str(line)?;
        *shares.entry(seen["app"].as_str().unwrap_or("nobody").to_owned()).or_default() += 1;
    }
    Ok(shares)
}

#[test]
fn a_share_of_the_traffic_goes_to_the_new_version() {
    both_ways("routing-weights", |mesh| {
        let (client, _apps) = versions(mesh)?;
        assert_eq!(shares(&client, 100, &[])?, BTreeMap::from([("v1-1".to_owned(), 100)]));
        let refs =
            json!([{"name": "server-v1", "port": 80, "weight": 9}, {"name": "server-v2", "port": 80, "weight": 1}]);
        mesh.apply(route(&json!([{"backendRefs": refs}])))?;
        until("v2 to get traffic", DEADLINE, || {
            ensure!(shares(&client, 100, &[])?.contains_key("v2-1"), "no response of v2 yet");
            Ok(())
        })?;
        // 10 % of 1,000 with a standard deviation of 9.5: outside of six of them is no chance.
        let shares = shares(&client, 1000, &[])?;
        assert!((43..=157).contains(&shares["v2-1"]), "{shares:?}");
        assert_eq!(shares["v1-1"] + shares["v2-1"], 1000);
        Ok(())
    });
}

#[test]
fn a_header_chooses_the_version() {
    both_ways("routing-header", |mesh| {
        let (client, _apps) = versions(mesh)?;
        mesh.apply(route(&json!([
            {
                "matches": [{"headers": [{"name": "x-beta", "value": "yes"}]}],
                "backendRefs": [{"name": "server-v2", "port": 80}],
            },
            {"backendRefs": [{"name": "server-v1", "port": 80}]},
        ])))?;
        until("the route to hold", DEADLINE, || {
            ensure!(shares(&client, 1, &["-H", "X-Beta: yes"])?.contains_key("v2-1"), "response of v1");
            Ok(())
        })?;
        assert_eq!(shares(&client, 50, &["-H", "X-Beta: yes"])?, BTreeMap::from([("v2-1".to_owned(), 50)]));
        assert_eq!(shares(&client, 50, &["-H", "X-Beta: no"])?, BTreeMap::from([("v1-1".to_owned(), 50)]));
        Ok(())
    });
}

#[test]
fn a_rollback_brings_the_old_route_back() {
    test("routing-rollback", |world| {
        let mut mesh = Mesh::with_control_plane(world)?;
        let (client, _apps) = versions(&mut mesh)?;
        let history: Value = serde_json::from_str(&mesh.weft(&["history", "--limit", "1", "-o", "json"])?)?;
        mesh.apply(route(&json!([{"backendRefs": [{"name": "server-v2", "port": 80}]}])))?;
        let all_from = |name: &str| {
            until(format!("traffic to {name}"), DEADLINE, || {
                let shares = shares(&client, 20, &[])?;
                ensure!(shares == BTreeMap::from([(name.to_owned(), 20)]), "{shares:?}");
                Ok(())
            })
        };
        all_from("v2-1")?;
        let newest = history.as_array().and_then(|all| all.first()).unwrap_or(&history);
        let good = newest["revision"].as_u64().or_else(|| newest["number"].as_u64());
        let good = good.ok_or_else(|| anyhow::anyhow!("no revision in {history}"))?;
        mesh.weft(&["rollback", &good.to_string()])?;
        all_from("v1-1")
    });
}

#[test]
fn the_gateway_takes_requests_from_outside_to_a_service() {
    both_ways("routing-gateway", |mesh| {
        let server = mesh.workload(app::workload("server-1").account("server"))?;
        let outside = mesh.workload(Workload::outside("outside"))?;
        let edge = mesh.workload(Workload::gateway("edge-1", "edge"))?;
        mesh.service("server", &[(80, app::HTTP)])?;
        mesh.apply(json!({
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "Gateway",
            "metadata": {"name": "edge", "namespace": NAMESPACE},
            "spec": {"gatewayClassName": "weft", "listeners": [{"name": "http", "port": 8888, "protocol": "HTTP"}]},
        }))?;
        mesh.apply(json!({
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "HTTPRoute",
            "metadata": {"name": "edge", "namespace": NAMESPACE},
            "spec": {
                "parentRefs": [{"name": "edge"}],
                "rules": [{
                    "matches": [{"path": {"type": "PathPrefix", "value": "/seen"}}],
                    "backendRefs": [{"name": "server", "port": 80}],
                }],
            },
        }))?;
        mesh.settings(&json!({"inbound": "strict"}))?;
        mesh.up()?;
        let _app = app::start(&server)?;
        for address in edge.addresses() {
            let at = std::net::SocketAddr::new(address, 8888);
            let seen =
                until("the gateway to serve", DEADLINE, || app::seen(&outside, &["-f", &format!("http://{at}/seen")]))?;
            assert_eq!(seen["app"], "server-1");
            assert_eq!(seen["headers"]["weft-client-id"], spiffe_id("edge-1"));
            assert_eq!(app::status(&outside, &format!("http://{at}/other"))?, "404");
        }
        Ok(())
    });
}

/// By host, path and header to different services; what no route wants is answered by the gateway itself.
#[test]
fn the_gateway_chooses_by_host_path_and_header() {
    both_ways("routing-gateway-rules", |mesh| {
        let hosts = ["one", "two"].map(|name| mesh.workload(app::workload(&format!("{name}-1")).account(name)));
        let outside = mesh.workload(Workload::outside("outside"))?;
        mesh.workload(Workload::gateway("edge-1", "edge"))?;
        mesh.service("one", &[(80, app::HTTP), (app::GRPC, app::GRPC)])?;
        mesh.service("two", &[(80, app::HTTP)])?;
        mesh.apply(json!({
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "Gateway",
            "metadata": {"name": "edge", "namespace": NAMESPACE},
            "spec": {"gatewayClassName": "weft", "listeners": [{"name": "http", "port": 8888, "protocol": "HTTP"}]},
        }))?;
        let edge = |name: &str, host: &str, rules: Value| {
            json!({
                "apiVersion": "gateway.networking.k8s.io/v1",
                "kind": "HTTPRoute",
                "metadata": {"name": name, "namespace": NAMESPACE},
                "spec": {"parentRefs": [{"name": "edge"}], "hostnames": [host], "rules": rules},
            })
        };
        let to = |name: &str, port: u16| json!([{"name": name, "port": port}]);
        let grpc = json!([{"path": {"type": "PathPrefix", "value": "/weft.e2e.Echo"}}]);
        mesh.apply(edge(
            "a",
            "a.example",
            json!([
                {"matches": [{"headers": [{"name": "x-to", "value": "two"}]}], "backendRefs": to("two", 80)},
                {"backendRefs": to("one", 80)},
            ]),
        ))?;
        mesh.apply(edge(
            "b",
            "*.b.example",
            json!([
                {"matches": [{"path": {"type": "PathPrefix", "value": "/seen/two"}}], "backendRefs": to("two", 80)},
                {"matches": [{"path": {"type": "Exact", "value": "/seen"}}], "backendRefs": to("one", 80)},
            ]),
        ))?;
        mesh.apply(edge("grpc", "edge-1", json!([{"matches": grpc, "backendRefs": to("one", app::GRPC)}])))?;
        mesh.settings(&json!({"inbound": "strict"}))?;
        mesh.up()?;
        let mut apps = Vec::new();
        for host in hosts {
            apps.push(app::start(&host?)?);
        }
        let call = |host: &str, path: &str, more: &[&str]| {
            let (host, url) = (format!("Host: {host}"), format!("http://edge-1:8888{path}"));
            app::curl(&outside, &[&["-w", "%{http_code}", "-H", &host], more, &[&url]].concat())
        };
        for (host, path, more, expected) in [
            ("a.example", "/seen", &[][..], "one-1"),
            ("a.example", "/seen", &["-H", "x-to: two"], "two-1"),
            ("a.example:8888", "/seen", &["--http2-prior-knowledge"], "one-1"),
            ("www.b.example", "/seen", &[], "one-1"),
            ("www.b.example", "/seen/two/three", &[], "two-1"),
            ("www.b.example", "/seen/twofold", &[], "404"),
            ("b.example", "/seen", &[], "404"),
            ("c.example", "/seen", &[], "404"),
        ] {
            until(format!("{host}{path} {more:?} to be answered by {expected}"), DEADLINE, || {
                let seen = call(host, path, more)?;
                let app = format!("\"app\":\"{expected}\"");
                ensure!(seen.ends_with(expected) || seen.ends_with("200") && seen.contains(&app), "{seen}");
                Ok(())
            })?;
        }
        app::grpc_calls(&outside, "edge-1:8888").map(drop)
    });
}
