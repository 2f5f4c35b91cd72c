//! `kill -9` of each program under load: failures are counted, and traffic recovers.

use std::net::{IpAddr, SocketAddr};
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Result, ensure};
use serde_json::json;
use weft_e2e::document::yaml;
use weft_e2e::load::{Load, unix_millis};
use weft_e2e::mesh::{Mesh, Workload, both_ways, weft};
use weft_e2e::{DEADLINE, Host, app, test, until};

const RATE: u32 = 100;

/// Two instances of `server`, a client, and load on the service's first address.
fn under_load(mesh: &mut Mesh<'_>) -> Result<(Vec<(Host, app::App)>, Load)> {
    let hosts = ["server-1", "server-2"].map(|name| mesh.workload(app::workload(name).account("server")));
    let client = mesh.workload(Workload::of("client"))?;
    let [address, _] = mesh.service("server", &[(80, app::HTTP)])?;
    mesh.up()?;
    let mut servers = Vec::new();
    for host in hosts {
        let host = host?;
        let app = app::start(&host)?;
        servers.push((host, app));
    }
    let load = load(&client, address)?;
    Ok((servers, load))
}

/// Where the service `server` is called: the same in every test here.
fn load_address(mesh: &Mesh<'_>) -> Result<SocketAddr> {
    let hosts = mesh.host("client")?.exec_ok("getent", &["ahostsv4", "server"])?;
    let address = hosts.split_whitespace().next().unwrap_or_default().parse()?;
    Ok(SocketAddr::new(address, 80))
}

fn load(client: &Host, address: IpAddr) -> Result<Load> {
    let mut load = Load::start(client, SocketAddr::new(address, 80), "server", "/seen", RATE)?;
    load.wait_for_more(100)?;
    Ok(load)
}

/// GET is idempotent: whatever was in flight on the killed instance is tried on the other. Of the POSTs only those may
/// fail that were in flight at the kill.
#[test]
fn a_killed_application_instance_costs_no_get_and_no_new_post() {
    both_ways("failure-app", |mesh| {
        let (mut servers, mut load) = under_load(mesh)?;
        let client = mesh.host("client")?;
        let at = load_address(mesh)?;
        let mut posts = Load::start_posts(&client, at, "server", "/slow/50", RATE / 2)?;
        posts.wait_for_more(100)?;
        let before = unix_millis()?;
        servers[0].1.node.kill()?;
        let killed = before..=unix_millis()?;
        load.wait_for_more(300)?;
        posts.wait_for_more(150)?;
        let (host, app) = servers.swap_remove(0);
        drop(app);
        let _back = app::start(&host)?;
        load.wait_for_more(300)?;
        posts.wait_for_more(150)?;
        load.ensure_no_failure()?;
        let failed = posts.failures()?;
        ensure!(failed.iter().all(|outcome| outcome.overlaps(&killed)), "killed at {killed:?}: {failed:?}");
        Ok(())
    });
}

/// Without its proxy a workload is closed, not open; with it traffic is back. Of the POSTs only those may fail that were
/// in flight at the kill.
#[test]
fn a_killed_proxy_is_replaced_by_the_other_instance_and_comes_back() {
    both_ways("failure-proxy", |mesh| {
        let (_servers, mut load) = under_load(mesh)?;
        let (client, at) = (mesh.host("client")?, load_address(mesh)?);
        let mut posts = Load::start_posts(&client, at, "server", "/slow/50", RATE / 2)?;
        posts.wait_for_more(100)?;
        let before = unix_millis()?;
        mesh.proxy("server-1")?.kill()?;
        let killed = before..=unix_millis()?;
        load.wait_for_more(300)?;
        mesh.start_proxy("server-1")?;
        load.wait_for_more(300)?;
        posts.wait_for_more(150)?;
        let failed = posts.failures()?;
        ensure!(failed.iter().all(|outcome| outcome.overlaps(&killed)), "killed at {killed:?}: {failed:?}");
        assert_eq!(load.tally()?.keys().collect::<Vec<_>>(), ["200"], "{:?}", load.tally()?);

        mesh.proxy("client")?.kill()?;
        until("the client to be refused", DEADLINE, || {
            ensure!(load.tally()?.contains_key("error: ConnectionRefused"), "no request failed with ConnectionRefused");
            Ok(())
        })?;
        mesh.start_proxy("client")?;
        load.wait_for_more(300)
    });
}

/// The gateway is alone at the edge: without it nothing is served, with it again everything is.
#[test]
fn a_killed_gateway_comes_back() {
    both_ways("failure-gateway", |mesh| {
        let server = mesh.workload(app::workload("server-1").account("server"))?;
        let outside = mesh.workload(Workload::outside("outside"))?;
        let edge = mesh.workload(Workload::gateway("edge-1", "edge"))?;
        mesh.service("server", &[(80, app::HTTP)])?;
        mesh.apply(json!({
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "Gateway",
            "metadata": {"name": "edge", "namespace": "shop"},
            "spec": {"gatewayClassName": "weft", "listeners": [{"name": "http", "port": 8888, "protocol": "HTTP"}]},
        }))?;
        mesh.apply(json!({
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "HTTPRoute",
            "metadata": {"name": "edge", "namespace": "shop"},
            "spec": {
                "parentRefs": [{"name": "edge"}],
                "rules": [{"backendRefs": [{"name": "server", "port": 80}]}],
            },
        }))?;
        mesh.up()?;
        let _app = app::start(&server)?;
        let at = SocketAddr::new(edge.ipv4().into(), 8888);
        until("the gateway to serve", DEADLINE, || app::seen(&outside, &["-f", &format!("http://{at}/seen")]))?;
        let mut load = Load::start(&outside, at, "shop.example", "/seen", RATE)?;
        load.wait_for_more(100)?;
        load.ensure_no_failure()?;
        mesh.proxy("edge-1")?.kill()?;
        until("callers to be refused", DEADLINE, || {
            ensure!(load.tally()?.contains_key("error: ConnectionRefused"), "no request failed with ConnectionRefused");
            Ok(())
        })?;
        mesh.start_proxy("edge-1")?;
        load.wait_for_more(100)?;
        // Ready means ready: from here on nothing fails.
        let ready = unix_millis()?;
        load.wait_for_more(200)?;
        let failures = load.failures()?;
        ensure!(failures.iter().all(|failure| failure.at < ready), "ready at {ready}: {failures:?}");
        Ok(())
    });
}

#[test]
fn a_killed_control_plane_costs_nothing_and_forgets_nothing() {
    test("failure-control-plane", |world| {
        let mut mesh = Mesh::with_control_plane(world)?;
        let (_servers, mut load) = under_load(&mut mesh)?;
        let before = mesh.weft(&["history", "-o", "json"])?;
        mesh.control_plane()?.kill()?;
        load.wait_for_more(500)?;
        mesh.start_control_plane()?;
        load.wait_for_more(500)?;
        assert_eq!(mesh.weft(&["history", "-o", "json"])?, before);
        assert_eq!(load.tally()?.keys().collect::<Vec<_>>(), ["200"], "{:?}", load.tally()?);
        Ok(())
    });
}

/// Neither after a kill, however long ago, nor after a stop does the restarted control plane tell anybody of fewer
/// endpoints than there are, also past the time in which heartbeats are missed.
#[test]
fn a_restarted_control_plane_empties_nothing() {
    test("failure-restarts", |world| {
        let mut mesh = Mesh::with_control_plane_flags(world, &["--heartbeat-interval", "300ms"])?;
        let (_servers, mut load) = under_load(&mut mesh)?;
        for round in 0..3 {
            match round {
                1 => drop(mesh.control_plane()?.terminate(DEADLINE)?),
                _ => drop(mesh.control_plane()?.kill()?),
            }
            if round == 2 {
                // So long that doubled waits between tries would be longer than the window.
                load.wait_for_more(RATE as usize * 4)?;
            }
            mesh.start_control_plane()?;
            // A proxy that knows nothing yet asks at once, and the others go on for three windows.
            mesh.start_proxy("server-2")?;
            let until = unix_millis()? + 2700;
            while unix_millis()? < until {
                let workloads = mesh.weft(&["get", "workloads", "-n", "shop", "-o", "json"])?;
                for name in ["server-1", "server-2", "client"] {
                    ensure!(workloads.contains(&format!("\"{name}\"")), "{name} is not in {workloads}");
                }
                let dump = mesh.admin("client", "/config_dump")?;
                let endpoint = mesh.host("server-1")?.ipv4().to_string();
                ensure!(dump.contains(&endpoint), "{endpoint} is not in {dump}");
            }
        }
        load.wait_for_more(100)?;
        load.ensure_no_failure()
    });
}

/// Every change that `weft apply` reported is there after a kill, also when it came in the middle of one.
#[test]
fn an_acknowledged_change_survives_the_control_planes_kill() {
    test("failure-store", |world| {
        let mut mesh = Mesh::with_control_plane(world)?;
        let mut acknowledged: Vec<String> = Vec::new();
        for round in 0..3 {
            let (control, count) = (mesh.control()?, AtomicUsize::new(0));
            let written = thread::scope(|scope| {
                let writer = scope.spawn(|| write_until_refused(&control, round, &count));
                let killed = until("four changes", DEADLINE, || {
                    ensure!(count.load(Ordering::SeqCst) >= 4, "fewer than four changes so far");
                    Ok(())
                })
                .and_then(|()| mesh.control_plane()?.kill().map(drop));
                let written = writer.join().unwrap_or_else(|panic| resume_unwind(panic))?;
                killed.map(|()| written)
            })?;
            acknowledged.extend(written);
            mesh.start_control_plane()?;
            let kept = mesh.weft(&["get", "services", "-n", "shop", "-o", "json"])?;
            for name in &acknowledged {
                ensure!(kept.contains(&format!("\"{name}\"")), "{name} is missing: {kept}");
            }
        }
        ensure!(acknowledged.len() >= 12, "{acknowledged:?}");
        Ok(())
    });
}

/// Applies one Service after the other until the control plane is gone; the names of those it acknowledged.
fn write_until_refused(control: &Host, round: u32, count: &AtomicUsize) -> Result<Vec<String>> {
    let mut acknowledged = Vec::new();
    loop {
        let name = format!("kept-{round}-{}", acknowledged.len());
        let document = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": "shop"},
            "spec": {"selector": {"app": name}, "ports": [{"port": 80}]},
        });
        let file = control.file("written.yaml", yaml(&[document])?)?.display().to_string();
        if weft(control, &["apply", "-f", &file]).is_err() {
            return Ok(acknowledged);
        }
        acknowledged.push(name);
        count.store(acknowledged.len(), Ordering::SeqCst);
    }
}
