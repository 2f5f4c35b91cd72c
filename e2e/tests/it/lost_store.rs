//! A control plane whose data is lost, or that is of another mesh, takes neither strict mode nor access rules from proxies.

use std::{fs, net::SocketAddr};

use anyhow::{Result, bail, ensure};
use serde_json::json;
use weft_e2e::mesh::{Mesh, Workload};
use weft_e2e::{DEADLINE, app, test, until};

/// (27.1)
#[test]
fn a_lost_store_and_a_forged_mesh_leave_strict_mode_and_access_rules_in_force() {
    test("lost-store", |world| {
        let mut mesh = Mesh::with_control_plane(world)?;
        let server = mesh.workload(app::workload("server-1").account("server"))?;
        let client = mesh.workload(Workload::of("client"))?;
        let outside = mesh.workload(Workload::outside("outside"))?;
        let [address, _] = mesh.service("server", &[(80, app::HTTP)])?;
        mesh.settings(&json!({"inbound": "strict"}))?;
        mesh.apply(json!({
            "apiVersion": "weft.dev/v1alpha1",
            "kind": "AuthorizationPolicy",
            "metadata": {"name": "seen-only", "namespace": "shop"},
            "spec": {
                "selector": {"matchLabels": {"app": "server"}},
                "action": "Allow",
                "rules": [{"name": "seen", "to": [{"paths": ["/seen"]}]}],
            },
        }))?;
        mesh.up()?;
        let _app = app::start(&server)?;
        let (service, direct) = (SocketAddr::new(address, 80), SocketAddr::new(server.ipv4().into(), app::HTTP));
        let guarded = |when: &str| -> Result<()> {
            let code = |path: &str| {
                let format = ["-s", "-o", "/dev/null", "-w", "%{http_code}"];
                client.exec_ok("curl", &[&format[..], &[&format!("http://{service}{path}")]].concat())
            };
            until("the allowed path to be served", DEADLINE, || {
                let code = code("/seen")?;
                ensure!(code == "200", "{when}: {code}");
                Ok(())
            })?;
            let denied = code("/other")?;
            ensure!(denied == "403", "{when}: a denied path is answered with {denied}");
            if app::seen(&outside, &["-f", "-m", "5", &format!("http://{direct}/seen")]).is_ok() {
                bail!("{when}: plaintext from outside is served");
            }
            Ok(())
        };
        until("the rules to be in force", DEADLINE, || guarded("before"))?;

        let data = mesh.control()?.directory().join("data");
        mesh.control_plane()?.terminate(DEADLINE)?;
        fs::rename(data.join("store.redb"), data.join("lost"))?;
        let refused = format!("{:#}", mesh.start_control_plane().expect_err("it starts without its store"));
        ensure!(refused.contains("store.redb is missing") && refused.contains("--new-mesh"), "{refused}");
        guarded("without a control plane")?;

        // Another mesh of the same root, and so one that proxies connect to.
        let root = fs::read(data.join("ca.pem"))?;
        fs::rename(&data, data.with_extension("old"))?;
        fs::create_dir(&data)?;
        fs::write(data.join("ca.pem"), root)?;
        mesh.start_control_plane()?;
        until("weft status to show the refusal", DEADLINE, || {
            let status = mesh.weft(&["status"])?;
            ensure!(status.contains("is of mesh") && status.contains("restart the proxy"), "{status}");
            Ok(())
        })?;
        guarded("under a forged mesh")?;
        // Status may have heard of the other proxy first.
        until("the server's proxy to refuse", DEADLINE, || {
            ensure!(mesh.admin("server-1", "/config_dump")?.contains("this control plane is of mesh"));
            Ok(())
        })?;
        let metrics = mesh.metrics("server-1", "/metrics")?;
        ensure!(metrics.lines().any(|line| line == "weft_config_control_plane_refused 1"), "{metrics}");

        // Its own store again: accepted, without a restart of any proxy.
        mesh.control_plane()?.terminate(DEADLINE)?;
        fs::remove_dir_all(&data)?;
        fs::rename(data.with_extension("old"), &data)?;
        fs::rename(data.join("lost"), data.join("store.redb"))?;
        mesh.start_control_plane()?;
        until("the proxies to accept their mesh again", DEADLINE, || {
            let metrics = mesh.metrics("server-1", "/metrics")?;
            ensure!(metrics.lines().any(|line| line == "weft_config_control_plane_refused 0"), "{metrics}");
            Ok(())
        })?;
        guarded("with the store again")
    });
}

/// (27.1)
#[test]
fn proxies_refuse_an_older_revision_until_the_operator_accepts_the_restored_store() {
    test("older-store", |world| {
        let mut mesh = Mesh::with_control_plane(world)?;
        mesh.workload(app::workload("server-1").account("server"))?;
        mesh.service("server", &[(80, app::HTTP)])?;
        mesh.up()?;
        let data = mesh.control()?.directory().join("data");
        mesh.control_plane()?.terminate(DEADLINE)?;
        let backup = ["store.redb", "store.redb.mark"].map(|name| fs::read(data.join(name)));
        mesh.start_control_plane()?;
        mesh.settings(&json!({"inbound": "strict"}))?;
        let revision = |dump: &str| -> Result<u64> {
            let dump: serde_json::Value = serde_json::from_str(dump)?;
            Ok(dump["revision"].as_u64().unwrap_or(0))
        };
        let newest = revision(&mesh.admin("server-1", "/config_dump")?)?;
        until("strict mode to be in force", DEADLINE, || {
            let dump = mesh.admin("server-1", "/config_dump")?;
            ensure!(dump.contains("trict"), "{dump}");
            Ok(())
        })?;

        // The whole former state, its mark too: nothing here shows that it is older.
        mesh.control_plane()?.terminate(DEADLINE)?;
        for (name, bytes) in ["store.redb", "store.redb.mark"].into_iter().zip(backup) {
            fs::write(data.join(name), bytes?)?;
        }
        mesh.start_control_plane()?;
        until("weft status to show the refusal", DEADLINE, || {
            let status = mesh.weft(&["status"])?;
            ensure!(status.contains("--accept-older-store"), "{status}");
            Ok(())
        })?;
        let dump = mesh.admin("server-1", "/config_dump")?;
        ensure!(revision(&dump)? >= newest && dump.contains("trict"), "{dump}");

        // Told by the operator: as documented, store and root in an empty directory.
        mesh.control_plane()?.terminate(DEADLINE)?;
        fs::remove_file(data.join("mesh.json"))?;
        mesh.start_control_plane()?;
        until("the proxy to take the older revision", DEADLINE, || {
            let dump = mesh.admin("server-1", "/config_dump")?;
            ensure!(dump.contains("\"refused_control_plane\":null"), "{dump}");
            ensure!(!dump.contains("trict"), "{dump}");
            Ok(())
        })
    });
}
