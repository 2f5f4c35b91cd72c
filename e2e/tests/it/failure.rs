//! `kill -9` of each program under load: what fails is counted, and traffic recovers.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use weft_e2e::load::Load;
use weft_e2e::mesh::{Mesh, Workload, both_ways};
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

fn load(client: &Host, address: IpAddr) -> Result<Load> {
    let mut load = Load::start(client, SocketAddr::new(address, 80), "server", "/seen", RATE)?;
    load.wait_for_more(100)?;
    Ok(load)
}

/// GET is idempotent: whatever was in flight on the killed instance is tried on the other.
#[test]
fn a_killed_application_instance_costs_no_get() {
    both_ways("failure-app", |mesh| {
        let (mut servers, mut load) = under_load(mesh)?;
        servers[0].1.node.kill()?;
        load.wait_for_more(300)?;
        let (host, app) = servers.swap_remove(0);
        drop(app);
        let _back = app::start(&host)?;
        load.wait_for_more(300)?;
        assert_eq!(load.tally()?.keys().collect::<Vec<_>>(), ["200"], "{:?}", load.tally()?);
        Ok(())
    });
}

/// Without its proxy a workload is closed, not open; with it traffic is back.
#[test]
fn a_killed_proxy_is_replaced_by_the_other_instance_and_comes_back() {
    both_ways("failure-proxy", |mesh| {
        let (_servers, mut load) = under_load(mesh)?;
        mesh.proxy("server-1")?.kill()?;
        load.wait_for_more(300)?;
        mesh.start_proxy("server-1")?;
        load.wait_for_more(300)?;
        assert_eq!(load.tally()?.keys().collect::<Vec<_>>(), ["200"], "{:?}", load.tally()?);

        mesh.proxy("client")?.kill()?;
        until("the client to be refused", DEADLINE, || {
            ensure!(load.tally()?.contains_key("error: ConnectionRefused"), "nothing failed");
            Ok(())
        })?;
        mesh.start_proxy("client")?;
        load.wait_for_more(300)
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

/// Every change that `weft apply` reported is there after a kill right behind it.
#[test]
fn an_acknowledged_change_survives_the_control_planes_kill() {
    test("failure-store", |world| {
        let mut mesh = Mesh::with_control_plane(world)?;
        for round in 0..5 {
            let name = format!("kept-{round}");
            mesh.up()?;
            mesh.service(&name, &[(80, 8080)])?;
            mesh.control_plane()?.kill()?;
            mesh.start_control_plane()?;
            let kept = mesh.weft(&["get", "services", "-n", "shop", "-o", "json"])?;
            ensure!(kept.contains(&format!("\"{name}\"")), "{name} is gone: {kept}");
        }
        Ok(())
    });
}
