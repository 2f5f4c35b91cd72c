//! Peers that are gone without a word: a host without power, a cut cable.

use std::time::Duration;

use anyhow::Result;
use weft_e2e::mesh::{Mesh, Workload};
use weft_e2e::{DEADLINE, Host, Process, test};

const PORT: u16 = 7000;
/// Keep-alive takes a minute.
const GONE: Duration = Duration::from_secs(100);

/// `serve PORT` or `call HOST PORT`: two connections of opaque bytes, one silent and one on which both sides keep sending. Prints
/// how each one ends.
const SCRIPT: &str = r#"
import socket, sys, threading, time
def watch(name, s, talks):
    def talk():
        try:
            while True: s.sendall(b"x"); time.sleep(.3)
        except OSError: pass
    if talks: threading.Thread(target=talk, daemon=True).start()
    began = time.time()
    try:
        while s.recv(1000): pass
        how = "end"
    except OSError as error: how = repr(error)
    print(f"{name} ended after {time.time() - began:.0f} s: {how}", flush=True)
def serve(s):
    kind = s.recv(1, socket.MSG_WAITALL)
    if not kind: return  # a check of the workload's health
    s.sendall(b"\1")
    watch("in-talks" if kind == b"\1" else "in-silent", s, kind == b"\1")
if sys.argv[1] == "serve":
    listener = socket.create_server(("", int(sys.argv[2]))); print("ready", flush=True)
    while True: threading.Thread(target=serve, args=(listener.accept()[0],)).start()
else:
    for kind in (b"\0", b"\1"):
        s = socket.create_connection((sys.argv[2], int(sys.argv[3]))); s.sendall(kind); s.recv(1, socket.MSG_WAITALL)
        threading.Thread(target=watch, args=("out-talks" if kind == b"\1" else "out-silent", s, kind == b"\1")).start()
    print("ready", flush=True)
"#;

fn run(host: &Host, args: &[&str]) -> Result<Process> {
    let mut process = host.spawn("python3", &[&["-c", SCRIPT], args].concat(), &[])?;
    process.wait_for_output("ready", DEADLINE)?;
    Ok(process)
}

/// Nothing that comes from outside, and nothing that goes there.
fn vanish(host: &Host) -> Result<()> {
    let chain = |hook: &str, lo: &str| {
        format!("chain {hook} {{ type filter hook {hook} priority -400; policy drop; {lo} lo accept; }}")
    };
    let rules = format!("table inet gone {{ {}; {}; }}", chain("input", "iif"), chain("output", "oif"));
    host.exec_ok("nft", &[&rules]).map(drop)
}

/// (27.4) The application beside a proxy learns that the other one is gone, whoever of them has called.
#[test]
#[ignore = "slow: a minute of the kernel's keep-alive"]
fn an_opaque_connection_to_a_host_that_is_gone_ends_in_both_directions() {
    test("vanished", |world| {
        let mut mesh = Mesh::from_files(world)?;
        let hosts = ["here", "called", "caller"].map(|name| mesh.workload(Workload::of(name).port(PORT, "tcp")));
        for name in ["here", "called"] {
            mesh.service(name, &[(PORT, PORT)])?;
        }
        mesh.up()?;
        let [here, called, caller] = hosts;
        let (here, called, caller) = (here?, called?, caller?);
        // Instead of 15 minutes for bytes that are on their way.
        here.exec_ok("sysctl", &["-w", "net.ipv4.tcp_retries2=5"])?;
        let port = PORT.to_string();
        let (mut serves, _called) = (run(&here, &["serve", &port])?, run(&called, &["serve", &port])?);
        let (mut calls, _caller) = (run(&here, &["call", "called", &port])?, run(&caller, &["call", "here", &port])?);
        vanish(&called)?;
        vanish(&caller)?;
        for kind in ["talks", "silent"] {
            for (process, way) in [(&mut serves, "in"), (&mut calls, "out")] {
                process.wait_for_output(&format!("{way}-{kind} ended"), GONE)?;
            }
        }
        println!("{}{}", serves.output()?, calls.output()?);
        Ok(())
    });
}
