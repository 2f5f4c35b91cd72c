//! Operations under load that must fail no request: renewal of certificates, replacement of instances, a change of routes.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weft_e2e::load::Load;
use weft_e2e::mesh::{Mesh, NAMESPACE, Workload, both_ways};
use weft_e2e::{DEADLINE, Host, Process, app, test, until};

const RATE: u32 = 60;

/// GETs and POSTs from the client to the service's first address.
struct Loads([Load; 2]);

impl Loads {
    fn start(client: &Host, at: SocketAddr) -> Result<Self> {
        let gets = Load::start(client, at, "server", "/seen", RATE)?;
        let mut loads = Self([gets, Load::start_posts(client, at, "server", "/slow/20", RATE)?]);
        loads.wait_for_more(60)?;
        Ok(loads)
    }

    fn wait_for_more(&mut self, count: usize) -> Result<()> {
        self.0.iter_mut().try_for_each(|load| load.wait_for_more(count))
    }

    fn ensure_no_failure(&mut self) -> Result<()> {
        self.0.iter_mut().try_for_each(Load::ensure_no_failure)
    }
}

/// One metric without labels.
fn metric(mesh: &Mesh<'_>, name: &str, metric: &str) -> Result<f64> {
    let text = mesh.metrics(name, "/metrics")?;
    let line = text.lines().find_map(|line| line.strip_prefix(metric)?.strip_prefix(' '));
    line.with_context(|| format!("{name} has no metric {metric}"))?.parse().context("not a number")
}

/// New keys and certificates on both sides, while requests run and a long one and a silent connection stay open.
#[test]
fn certificates_are_renewed_under_load_without_a_failure() {
    test("lifecycle-renewal", |world| {
        let mut mesh = Mesh::with_control_plane_flags(world, &["--svid-ttl", "20s"])?;
        let server = mesh.workload(app::workload("server-1").account("server"))?;
        let client = mesh.workload(Workload::of("client"))?;
        let [address, _] = mesh.service("server", &[(80, app::HTTP), (app::REDIS, app::REDIS)])?;
        mesh.settings(&json!({"inbound": "strict"}))?;
        mesh.up()?;
        let (_app, _redis) = (app::start(&server)?, app::start_redis(&server)?);
        let mut loads = Loads::start(&client, SocketAddr::new(address, 80))?;
        let mut long =
            client.spawn("curl", &["-sS", "-o", "/dev/null", "-w", "%{http_code}", "http://server/slow/24000"], &[])?;
        let mut silent = client.spawn("redis-cli", &["-h", "server", "BLPOP", "queue", "60"], &[])?;
        let names = ["server-1", "client"];
        let ends = |mesh: &Mesh<'_>| names.map(|name| metric(mesh, name, "weft_certificate_not_after_seconds"));
        let before = ends(&mesh);
        // The first ones have ended when this is over.
        for (name, before) in names.into_iter().zip(before) {
            let before = before?;
            until(format!("two renewals of {name}"), DEADLINE, || {
                let after = metric(&mesh, name, "weft_certificate_not_after_seconds")?;
                ensure!(after >= before + 12.0, "{before} before, {after} after");
                Ok(())
            })?;
        }
        ensure!(long.wait(DEADLINE)?.success() && long.output()? == "200", "{}", long.output()?);
        client.exec_ok("redis-cli", &["-h", "server", "RPUSH", "queue", "parcel"])?;
        silent.wait(DEADLINE)?;
        assert_eq!(silent.output()?, "queue\nparcel\n");
        for name in names {
            ensure!(metric(&mesh, name, "weft_certificate_renewals_total")? >= 3.0, "{name} was not renewed");
            assert_eq!(metric(&mesh, name, "weft_certificate_failures_total")?, 0.0, "{name}");
        }
        loads.wait_for_more(60)?;
        loads.ensure_no_failure()
    });
}

/// One by one: a new instance, then SIGTERM to the old one's proxy (it deregisters and drains), then the end of the old
/// application.
#[test]
fn instances_are_replaced_under_load_without_a_failure() {
    test("lifecycle-rolling", |world| {
        let mut mesh = Mesh::with_control_plane(world)?;
        let mut apps = Vec::new();
        for name in ["server-1", "server-2"] {
            mesh.workload(app::workload(name).account("server"))?;
        }
        let client = mesh.workload(Workload::of("client"))?;
        let [address, _] = mesh.service("server", &[(80, app::HTTP)])?;
        mesh.up()?;
        for name in ["server-1", "server-2"] {
            apps.push(app::start(&mesh.host(name)?)?);
        }
        let mut loads = Loads::start(&client, SocketAddr::new(address, 80))?;
        for (old, new) in [("server-1", "server-3"), ("server-2", "server-4")] {
            let host = mesh.workload(app::workload(new).account("server"))?;
            apps.push(app::start(&host)?);
            let status = mesh.proxy(old)?.terminate(DEADLINE)?;
            ensure!(status.success(), "the proxy of {old} exited with {status}");
            drop(apps.remove(0));
            loads.wait_for_more(60)?;
            loads.ensure_no_failure()?;
        }
        // Nobody else is left to answer.
        for _ in 0..20 {
            let seen = app::seen(&client, &["http://server/seen"])?;
            ensure!(["server-3", "server-4"].contains(&seen["app"].as_str().unwrap_or_default()), "{seen}");
        }
        loads.ensure_no_failure()
    });
}

/// Two routes change in one revision, again and again: no request fails, and nobody sees one of them changed and
/// afterwards the other one not.
#[test]
fn routes_change_under_load_all_at_once_and_without_a_failure() {
    test("lifecycle-routes", |world| {
        let mut mesh = Mesh::with_control_plane(world)?;
        let mut hosts = Vec::new();
        for version in ["v1", "v2"] {
            let workload = app::workload(&format!("{version}-1")).account("server").label("app", version);
            hosts.push(mesh.workload(workload)?);
        }
        let client = mesh.workload(Workload::of("client"))?;
        mesh.service("v1", &[(80, app::HTTP)])?;
        mesh.service("v2", &[(80, app::HTTP)])?;
        let [address, _] = mesh.service("first", &[(80, app::HTTP)])?;
        mesh.service("second", &[(80, app::HTTP)])?;
        mesh.apply_all(routes([1, 0]))?;
        mesh.up()?;
        let _apps = hosts.iter().map(app::start).collect::<Result<Vec<_>>>()?;

        let mut loads = Loads::start(&client, SocketAddr::new(address, 80))?;
        // One after the other, on one connection each.
        let urls = "url = \"http://first/seen\"\nurl = \"http://second/seen\"\n".repeat(20_000);
        let file = client.file("urls", urls)?.display().to_string();
        let mut calls = client.spawn("curl", &["-sS", "-4", "-K", &file], &[])?;
        let mut flips = 0;
        let settled = |calls: &Process, version: &str| {
            until(format!("answers of {version}"), DEADLINE, || {
                let seen = versions(&calls.output()?)?;
                let last: Vec<&String> = seen.iter().rev().take(20).collect();
                ensure!(
                    last.len() == 20 && last.into_iter().all(|answer| answer == version),
                    "responses of other versions"
                );
                Ok(())
            })
        };
        settled(&calls, "v1-1")?;
        for weights in [[0, 1], [1, 0], [0, 1], [1, 0], [0, 1]] {
            mesh.apply_all(routes(weights))?;
            flips += 1;
            settled(&calls, if weights == [0, 1] { "v2-1" } else { "v1-1" })?;
        }
        ensure!(calls.ended()?.is_none(), "too few requests: {}", versions(&calls.output()?)?.len());
        let seen = versions(&calls.output()?)?;
        let changes = seen.windows(2).filter(|pair| pair.first() != pair.last()).count();
        assert_eq!(changes, flips, "of {} answers", seen.len());
        // Shares instead of all or nothing, still without a failure.
        mesh.apply_all(routes([9, 1]))?;
        loads.wait_for_more(60)?;
        mesh.apply_all(routes([1, 1]))?;
        loads.wait_for_more(60)?;
        loads.ensure_no_failure()
    });
}

/// The Services `first` and `second`, both to `v1` and `v2` with these weights.
fn routes(weights: [u32; 2]) -> [Value; 2] {
    let [one, two] = weights;
    ["first", "second"].map(|name| {
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "HTTPRoute",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {
                "parentRefs": [{"group": "", "kind": "Service", "name": name}],
                "rules": [{"backendRefs": [
                    {"name": "v1", "port": 80, "weight": one},
                    {"name": "v2", "port": 80, "weight": two},
                ]}],
            },
        })
    })
}

/// Who answered, in order; a line that no application wrote is an error.
fn versions(output: &str) -> Result<Vec<String>> {
    let complete = output.rsplit_once('\n').map_or("", |(lines, _)| lines);
    complete
        .lines()
        .map(|line| {
            let seen: Value = serde_json::from_str(line).with_context(|| format!("unexpected response: {line:?}"))?;
            Ok(seen["app"].as_str().context("no application in the response")?.to_owned())
        })
        .collect()
}

/// Drain as an operator asks for it: readiness goes, what runs is finished, then the program ends.
#[test]
fn a_draining_proxy_finishes_what_it_has() {
    both_ways("lifecycle-drain", |mesh| {
        let server = mesh.workload(app::workload("server-1").account("server"))?;
        let client = mesh.workload(Workload::of("client"))?;
        mesh.service("server", &[(80, app::HTTP)])?;
        mesh.up()?;
        let _app = app::start(&server)?;
        let arguments = ["-sS", "-o", "/dev/null", "-w", "%{http_code}", "http://server/slow/3000"];
        let mut slow = client.spawn("curl", &arguments, &[])?;
        until("the request to be at the server's proxy", DEADLINE, || {
            let connections: Value = serde_json::from_str(&mesh.admin("server-1", "/connections")?)?;
            ensure!(connections.to_string().contains(&client.ipv4().to_string()), "{connections}");
            Ok(())
        })?;
        mesh.proxy("server-1")?.signal(rustix::process::Signal::TERM)?;
        until("readiness to go", DEADLINE, || {
            ensure!(mesh.metrics("server-1", "/readyz").is_err(), "still ready");
            Ok(())
        })?;
        let ended = mesh.proxy("server-1")?.wait(DEADLINE)?;
        ensure!(ended.success(), "{ended}");
        ensure!(slow.wait(DEADLINE)?.success() && slow.output()? == "200", "{}", slow.output()?);
        Ok(())
    });
}
