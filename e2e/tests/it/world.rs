//! The harness itself: hosts reach each other by name, captures see the wire, nothing is left behind.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use weft_e2e::wire::Capture;
use weft_e2e::{DEADLINE, World, test, until};

#[test]
fn hosts_reach_each_other_by_name_and_address() {
    test("world-names", |world| {
        let (client, server) = (world.host("client")?, world.host("server")?);
        world.name("shop", &["240.0.0.9"])?;
        let mut listener = server.spawn("weft-e2e-probe", &["listen", "8080"], &[])?;
        listener.wait_for_output("ready", DEADLINE)?;
        for address in server.addresses() {
            let target = std::net::SocketAddr::new(address, 8080).to_string();
            assert_eq!(client.exec_ok("weft-e2e-probe", &["connect", &target])?, "8080 direct\n");
        }
        let known = client.exec_ok("getent", &["ahosts", "server"])?;
        assert!(known.contains(&server.ipv4().to_string()) && known.contains(&server.ipv6().to_string()), "{known}");
        assert!(client.exec_ok("getent", &["hosts", "shop"])?.starts_with("240.0.0.9"));
        Ok(())
    });
}

#[test]
fn a_capture_sees_what_is_sent_and_nothing_else() {
    test("world-wire", |world| {
        let (client, server) = (world.host("client")?, world.host("server")?);
        let mut listener = server.spawn("weft-e2e-probe", &["listen", "8080"], &[])?;
        listener.wait_for_output("ready", DEADLINE)?;
        let capture = Capture::start(&server, "tcp port 8080")?;
        let target = format!("{}:8080", server.ipv4());
        client.exec_ok("weft-e2e-probe", &["connect", &target, "--send", "in plain sight"])?;
        let packets = capture.stop()?;
        assert!(packets.contain(b"in plain sight"));
        assert!(format!("{:#}", packets.tls_only().unwrap_err()).contains("in plain sight"));
        assert!(!packets.contain(b"never sent"));
        Ok(())
    });
}

#[test]
fn a_world_takes_its_processes_and_namespaces_with_it() {
    let mut world = World::start("world-cleanup").unwrap();
    let host = world.host("short-lived").unwrap();
    let namespace = host.namespace().to_owned();
    let process = host.spawn("sleep", &["600"], &[]).unwrap();
    let proc = format!("/proc/{}", process.id());
    assert!(Path::new("/run/netns").join(&namespace).exists());
    drop((process, world));
    assert!(!Path::new(&proc).exists());
    assert!(!Path::new("/run/netns").join(&namespace).exists());
    assert!(!Path::new("/etc/netns").join(&namespace).exists());
}

#[test]
fn what_a_killed_run_left_is_removed() {
    // No process has this number: it is above the kernel's highest.
    let namespace = "weft-e4999999s1n0-old";
    let ip = |args: &[&str]| assert!(Command::new("ip").args(args).status().unwrap().success(), "{args:?}");
    ip(&["netns", "add", namespace]);
    let mut left = Command::new("ip").args(["netns", "exec", namespace, "sleep", "600"]).spawn().unwrap();
    until("the process to be in the namespace", DEADLINE, || {
        let pids = Command::new("ip").args(["netns", "pids", namespace]).output()?;
        ensure!(!pids.stdout.is_empty(), "no process is in the namespace yet");
        Ok(())
    })
    .unwrap();
    weft_e2e::world::remove_stale();
    assert!(!left.wait().unwrap().success());
    assert!(!Path::new("/run/netns").join(namespace).exists());
}

#[test]
fn a_process_that_ends_early_is_noticed_at_once() {
    test("world-early-end", |world| {
        let host = world.host("host")?;
        let mut process = host.spawn("sh", &["-c", "echo last words; exit 7"], &[])?;
        let error = process.wait_for_output("something else", DEADLINE).unwrap_err().to_string();
        assert!(error.contains("exit status: 7"), "{error}");
        assert_eq!(process.output()?, "last words\n");
        let refused: Result<_> = host.exec_ok("sh", &["-c", "echo why >&2; exit 3"]);
        assert!(format!("{:#}", refused.unwrap_err()).contains("why"));
        Ok(())
    });
}
