//! `weft-proxy redirect` in real namespaces: what is captured, what is not, and that it comes and goes cleanly.
//! A probe stands in for the proxy: it answers with the original destination it was given, "15001 captured ADDRESS",
//! and for an application: "8080 direct".

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Result;
use weft_e2e::wait::until_some;
use weft_e2e::{DEADLINE, Host, Process, test};

const MARK: &str = "0x77656674";
const MARK_DECIMAL: &str = "2003134068";

/// Listens on `ports` and answers with the original destination.
fn listen(host: &Host, ports: &[&str]) -> Result<Process> {
    let mut process = host.spawn("weft-e2e-probe", &[&["listen"], ports].concat(), &[])?;
    process.wait_for_output("ready", DEADLINE)?;
    Ok(process)
}

/// What a connection from `host` is answered, or how it fails.
fn connect(host: &Host, address: IpAddr, port: u16, flags: &[&str]) -> Result<String> {
    let target = SocketAddr::new(address, port).to_string();
    let output = host.exec("weft-e2e-probe", &[&["connect", &target], flags].concat())?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn captured(by: u16, address: IpAddr, port: u16) -> String {
    format!("{by} captured {}", SocketAddr::new(address, port))
}

/// One mesh address of the same family.
fn mesh_address(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::from([240, 1, 2, 3]),
        IpAddr::V6(_) => IpAddr::from([0xfd77, 0x6566, 0x7400, 0, 0, 0, 0, 0xabc]),
    }
}

fn loopback(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::from(Ipv4Addr::LOCALHOST),
        IpAddr::V6(_) => IpAddr::from(Ipv6Addr::LOCALHOST),
    }
}

#[test]
fn outbound_connections_reach_the_proxy_with_their_destination() {
    test("redirect-outbound", |world| {
        let (client, server) = (world.host("client")?, world.host("server")?);
        client.redirect(&[])?;
        let _proxy = listen(&client, &["15001", "15006", "8080"])?;
        let _server = listen(&server, &["8080", "15001"])?;
        let marked = ["--mark", MARK_DECIMAL];
        for (own, peer) in client.addresses().into_iter().zip(server.addresses()) {
            let mesh = mesh_address(peer);
            let cases: &[(&str, IpAddr, u16, &[&str], String)] = &[
                ("a peer", peer, 8080, &[], captured(15001, peer, 8080)),
                ("a peer's port that is ours here", peer, 15001, &[], captured(15001, peer, 15001)),
                ("a mesh address", mesh, 80, &[], captured(15001, mesh, 80)),
                ("a mesh address and our port", mesh, 15001, &[], captured(15001, mesh, 15001)),
                ("the own address", own, 8080, &[], captured(15001, own, 8080)),
                ("loopback", loopback(own), 8080, &[], "8080 direct".to_owned()),
                ("the proxy's own ports", own, 15001, &[], "15001 direct".to_owned()),
                ("the proxy's own ports", own, 15006, &[], "15006 direct".to_owned()),
                ("marked to a peer", peer, 8080, &marked, "8080 direct".to_owned()),
                ("marked to the own address", own, 8080, &marked, "8080 direct".to_owned()),
                ("marked to a mesh address", mesh, 8080, &marked, "error: ConnectionRefused".to_owned()),
                ("another mark", peer, 8080, &["--mark", "7"], captured(15001, peer, 8080)),
            ];
            for (case, address, port, flags, expected) in cases {
                assert_eq!(&connect(&client, *address, *port, flags)?, expected, "{case}: {address} {port}");
            }
        }
        Ok(())
    });
}

#[test]
fn inbound_connections_reach_the_proxy_with_their_destination() {
    test("redirect-inbound", |world| {
        let (client, server) = (world.host("client")?, world.host("server")?);
        server.redirect(&["--skip-inbound-ports=9000"])?;
        let _proxy = listen(&server, &["15001", "15006", "15020", "8080", "9000"])?;
        for address in server.addresses() {
            for (port, expected) in [
                (8080, captured(15006, address, 8080)),
                (7, captured(15006, address, 7)),
                (9000, "9000 direct".to_owned()),
                (15001, "15001 direct".to_owned()),
                (15006, "15006 direct".to_owned()),
                (15020, "15020 direct".to_owned()),
            ] {
                assert_eq!(connect(&client, address, port, &[])?, expected, "{address} {port}");
            }
        }
        Ok(())
    });
}

/// The local route makes every mesh address an address of this host: from the wire they must not be.
#[test]
fn a_mesh_address_cannot_be_reached_from_another_host() {
    test("redirect-mesh-from-outside", |world| {
        let (client, server) = (world.host("client")?, world.host("server")?);
        server.redirect(&["--skip-inbound-ports=9000"])?;
        let _proxy = listen(&server, &["15006", "9000"])?;
        for address in server.addresses() {
            let mesh = mesh_address(address);
            let family = if address.is_ipv4() { "-4" } else { "-6" };
            client.exec_ok("ip", &[family, "route", "add", &mesh.to_string(), "via", &address.to_string()])?;
            assert_eq!(connect(&client, address, 9000, &[])?, "9000 direct");
            for port in [8080, 9000, 15006] {
                assert_eq!(connect(&client, mesh, port, &["--timeout-ms=500"])?, "error: TimedOut", "{mesh} {port}");
            }
        }
        // It is the guard that holds them off: without it they arrive.
        server.exec_ok("nft", &["flush", "chain", "inet", "weft", "guard_input"])?;
        for address in server.addresses() {
            assert_eq!(connect(&client, mesh_address(address), 9000, &[])?, "9000 direct");
        }
        Ok(())
    });
}

#[test]
fn skipped_ports_and_ranges_go_past_the_proxy_but_mesh_addresses_never_do() {
    test("redirect-skip", |world| {
        let (client, near, far) = (world.host("client")?, world.host("near")?, world.host("far")?);
        let ranges = format!("--skip-outbound-ranges={},{},240.0.0.0/4,fd77::/16", far.ipv4(), far.ipv6());
        client.redirect(&["--skip-outbound-ports=9000,22", &ranges])?;
        let _proxy = listen(&client, &["15001", "9000"])?;
        let _servers = (listen(&near, &["8080", "9000"])?, listen(&far, &["8080", "9000"])?);
        for (near, far) in near.addresses().into_iter().zip(far.addresses()) {
            let mesh = mesh_address(near);
            assert_eq!(connect(&client, near, 8080, &[])?, captured(15001, near, 8080));
            assert_eq!(connect(&client, near, 9000, &[])?, "9000 direct");
            assert_eq!(connect(&client, far, 8080, &[])?, "8080 direct");
            assert_eq!(connect(&client, mesh, 9000, &[])?, captured(15001, mesh, 9000));
        }
        Ok(())
    });
}

#[test]
fn connections_of_exempt_users_and_groups_are_not_captured() {
    test("redirect-uid", |world| {
        let (client, server) = (world.host("client")?, world.host("server")?);
        client.redirect(&["--no-mark", "--proxy-uid=1337", "--proxy-gid=1338"])?;
        let _proxy = listen(&client, &["15001", "8080"])?;
        let _server = listen(&server, &["8080"])?;
        let probe = weft_e2e::programs::find("weft-e2e-probe")?.display().to_string();
        let connect_as = |user: &[&str], address: IpAddr| -> Result<String> {
            let target = SocketAddr::new(address, 8080).to_string();
            let args = [user, &["--clear-groups", &probe, "connect", &target]].concat();
            Ok(client.exec_ok("setpriv", &args)?.trim().to_owned())
        };
        for address in server.addresses().into_iter().chain(client.addresses()) {
            assert_eq!(connect_as(&["--reuid=1337"], address)?, "8080 direct");
            assert_eq!(connect_as(&["--reuid=1400", "--regid=1338"], address)?, "8080 direct");
            let other = connect_as(&["--reuid=1338", "--regid=1337"], address)?;
            assert_eq!(other, captured(15001, address, 8080));
            assert_eq!(connect(&client, address, 8080, &["--mark", MARK_DECIMAL])?, captured(15001, address, 8080));
        }
        let flags = ["redirect", "--check", "--no-mark", "--proxy-uid=1337", "--proxy-gid=1338"];
        let check = client.exec_ok("weft-proxy", &flags)?;
        for id in ["uid 1337", "gid 1338"] {
            assert_eq!(check.lines().filter(|line| line.starts_with("ok") && line.contains(id)).count(), 2, "{check}");
        }
        Ok(())
    });
}

#[test]
fn ipv6_can_be_left_alone() {
    test("redirect-no-ipv6", |world| {
        let (client, server) = (world.host("client")?, world.host("server")?);
        client.redirect(&["--no-ipv6"])?;
        server.redirect(&["--no-ipv6"])?;
        let _proxies = (listen(&client, &["15001"])?, listen(&server, &["15006", "8080"])?);
        let [v4, v6] = server.addresses();
        assert_eq!(connect(&client, v4, 8080, &[])?, captured(15001, v4, 8080));
        assert_eq!(connect(&client, v4, 8080, &["--mark", MARK_DECIMAL])?, captured(15006, v4, 8080));
        assert_eq!(connect(&client, v6, 8080, &[])?, "8080 direct");
        client.exec_ok("weft-proxy", &["redirect", "--no-ipv6", "--check"])?;
        Ok(())
    });
}

/// A host without IPv6 at all: no route to fail on, nothing to probe, IPv4 captured as ever.
#[test]
fn it_works_where_ipv6_is_switched_off() {
    test("redirect-ipv6-disabled", |world| {
        let host = world.host("host")?;
        host.exec_ok("sysctl", &["-w", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1"])?;
        let before = state(&host)?;
        host.redirect(&[])?;
        let (passed, said) = check(&host, &[])?;
        assert!(passed, "{said}");
        assert!(said.contains("skipped a connection to the mesh range fd77:6566:7400::/48"), "{said}");
        assert_eq!(said.lines().filter(|line| line.starts_with("ok")).count(), 5, "{said}");
        host.redirect(&["--undo"])?;
        assert_eq!(state(&host)?, before);
        Ok(())
    });
}

/// Only the mesh's addresses, everything else past the proxy: what a careful migration starts with.
#[test]
fn everything_but_the_mesh_can_be_skipped() {
    test("redirect-mesh-only", |world| {
        let (client, server) = (world.host("client")?, world.host("server")?);
        let flags = ["--skip-outbound-ranges=0.0.0.0/0,::/0"];
        client.redirect(&flags)?;
        let _proxies = (listen(&client, &["15001"])?, listen(&server, &["8080"])?);
        for address in server.addresses() {
            assert_eq!(connect(&client, address, 8080, &[])?, "8080 direct");
            let mesh = mesh_address(address);
            assert_eq!(connect(&client, mesh, 80, &[])?, captured(15001, mesh, 80));
        }
        let (passed, said) = check(&client, &flags)?;
        assert!(passed, "{said}");
        Ok(())
    });
}

/// Two relays stand for two proxies: application, outbound capture, wire, inbound capture, application.
#[test]
fn a_connection_crosses_both_captures_once_and_a_workload_reaches_itself() {
    test("redirect-two-hops", |world| {
        let (client, server) = (world.host("client")?, world.host("server")?);
        let mut relays = Vec::new();
        for host in [&client, &server] {
            host.redirect(&[])?;
            let mut relay = host.spawn("weft-e2e-probe", &["relay", "15001", "15006", "--mark", MARK_DECIMAL], &[])?;
            relay.wait_for_output("ready", DEADLINE)?;
            relays.push(relay);
        }
        let _application = listen(&server, &["8080"])?;
        let lines = |relay: &Process, port: u16, address: SocketAddr| -> Result<usize> {
            let text = relay.output()?;
            Ok(text.lines().filter(|line| line.starts_with(&format!("{port} {address} "))).count())
        };
        for address in server.addresses() {
            let target = SocketAddr::new(address, 8080);
            assert_eq!(connect(&client, address, 8080, &["--send", "hello"])?, "8080 direct");
            assert_eq!(lines(&relays[0], 15001, target)?, 1);
            assert_eq!(lines(&relays[1], 15006, target)?, 1);
            assert_eq!(lines(&relays[1], 15001, target)?, 0);

            // Itself: captured on the way out, and not a second time.
            assert_eq!(connect(&server, address, 8080, &["--send", "hello"])?, "8080 direct");
            assert_eq!(lines(&relays[1], 15001, target)?, 1);
            assert_eq!(lines(&relays[1], 15006, target)?, 1);

            // The proxy's own ports, here and there: closed, not passed round in a circle.
            for (host, port) in [(&server, 15001), (&server, 15006), (&client, 15001), (&client, 15006)] {
                let answer = connect(host, address, port, &[])?;
                assert!(answer.is_empty() || answer == "error: ConnectionReset", "{answer}");
                assert!(lines(&relays[1], port, SocketAddr::new(address, port))? == 0, "a loop");
            }
        }
        Ok(())
    });
}

/// Everything that `redirect` may change in a namespace.
fn state(host: &Host) -> Result<String> {
    let mut state = host.exec_ok("nft", &["list", "ruleset"])?;
    for family in ["-4", "-6"] {
        state += &host.exec_ok("ip", &[family, "route", "show", "table", "all"])?;
    }
    Ok(state)
}

#[test]
fn applying_twice_is_applying_once_and_undo_leaves_nothing() {
    test("redirect-undo", |world| {
        let host = world.host("host")?;
        host.exec_ok("nft", &["add", "table", "inet", "other"])?;
        host.exec_ok("ip", &["route", "add", "local", "198.51.100.0/24", "dev", "lo"])?;
        let before = state(&host)?;

        host.redirect(&["--proxy-uid=1"])?;
        let once = state(&host)?;
        assert_ne!(before, once);
        host.redirect(&["--proxy-uid=1"])?;
        assert_eq!(state(&host)?, once);

        // Other settings replace, they do not add: the mesh range that is gone has no route any more.
        host.redirect(&["--mesh-ranges=250.0.0.0/8"])?;
        let other = state(&host)?;
        assert!(other.contains("local 250.0.0.0/8") && !other.contains("240.0.0.0/4"), "{other}");
        assert!(!other.contains("fd77:6566:7400::"), "{other}");
        host.redirect(&["--proxy-uid=1"])?;
        assert_eq!(state(&host)?, once);

        let undo = || host.redirect(&["--undo"]);
        undo()?;
        assert_eq!(state(&host)?, before);
        undo()?;
        assert_eq!(state(&host)?, before);

        // Half of it: the table alone, then the routes alone.
        host.redirect(&[])?;
        host.exec_ok("ip", &["route", "del", "local", "240.0.0.0/4", "dev", "lo"])?;
        host.exec_ok("ip", &["-6", "route", "del", "local", "fd77:6566:7400::/48", "dev", "lo"])?;
        undo()?;
        assert_eq!(state(&host)?, before);
        host.redirect(&[])?;
        host.exec_ok("nft", &["delete", "table", "inet", "weft"])?;
        undo()?;
        assert_eq!(state(&host)?, before);
        Ok(())
    });
}

/// Exchanges a line when the file `go` appears, and says how that went.
const OPEN_CONNECTION: &str = r#"
import os, socket, sys, time
c = socket.create_connection((sys.argv[1], 8080)); c.settimeout(5)
c.sendall(b"one"); assert c.recv(9) == b"one"; print("open", flush=True)
while not os.path.exists("go"): time.sleep(0.02)
try: c.sendall(b"two"); print("still open" if c.recv(9) == b"two" else "ended", flush=True)
except OSError as error: print("lost", error, flush=True)
"#;

/// Sends back what one client sends.
const ECHO: &str = r#"
import socket
s = socket.create_server(("::", 8080), family=socket.AF_INET6, dualstack_ipv6=True); print("ready", flush=True)
c, _ = s.accept()
while d := c.recv(9): c.sendall(d)
"#;

/// Connection tracking begins with the rules, and takes the next segment of an old connection for the first of a new one: the
/// SSH session in which `redirect` is typed would end. (16)
#[test]
fn a_connection_that_is_open_already_stays_open_on_both_sides() {
    for redirected in ["client", "server"] {
        test(&format!("redirect-open-{redirected}"), |world| {
            let (client, server) = (world.host("client")?, world.host("server")?);
            let mut echo = server.spawn("python3", &["-c", ECHO], &[])?;
            echo.wait_for_output("ready", DEADLINE)?;
            let mut open = client.spawn("python3", &["-c", OPEN_CONNECTION, &server.ipv4().to_string()], &[])?;
            open.wait_for_output("open", DEADLINE)?;
            if redirected == "client" { &client } else { &server }.redirect(&[])?;
            client.file("go", "")?;
            open.wait(DEADLINE)?;
            assert!(open.output()?.contains("still open"), "{}", open.output()?);
            Ok(())
        });
    }
}

/// (16)
#[test]
fn ssh_stays_reachable_without_a_proxy_unless_told_otherwise() {
    test("redirect-ssh", |world| {
        let (client, server) = (world.host("client")?, world.host("server")?);
        // By its name and user it is a server of SSH, on a port that only its socket tells.
        let probe = weft_e2e::programs::find("weft-e2e-probe")?;
        let sshd = server.directory().join("sshd");
        std::fs::copy(&probe, &sshd)?;
        let mut ssh = server.spawn(&sshd.display().to_string(), &["listen", "22", "2222", "2200"], &[])?;
        ssh.wait_for_output("ready", DEADLINE)?;
        let session = "SSH_CONNECTION=192.0.2.1 50000 192.0.2.2 2244";
        let _session = listen(&server, &["2244", "8080"])?;
        let program = weft_e2e::programs::find("weft-proxy")?.display().to_string();
        let output = server.exec("env", &[session, &program, "redirect"])?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("not captured inbound: ports 22, 2200, 2222, 2244 (ssh; --capture-ssh"), "{said}");
        for address in server.addresses() {
            for port in [22, 2200, 2222, 2244] {
                assert_eq!(connect(&client, address, port, &[])?, format!("{port} direct"));
            }
            // No proxy runs.
            assert_eq!(connect(&client, address, 8080, &[])?, "error: ConnectionRefused");
        }
        // The check comes from another session.
        let (passed, said) = check(&server, &[])?;
        assert!(passed, "{said}");
        let (passed, said) = check(&server, &["--capture-ssh"])?;
        assert!(!passed && said.contains("other settings"), "{said}");

        server.redirect(&["--capture-ssh"])?;
        let _proxy = listen(&server, &["15006"])?;
        for address in server.addresses() {
            assert_eq!(connect(&client, address, 22, &[])?, captured(15006, address, 22));
        }
        let (passed, said) = check(&server, &[])?;
        assert!(!passed && said.contains("other settings"), "{said}");
        Ok(())
    });
}

/// The session may end with the connection that the rules cut: here its whole process group is killed. (16)
#[test]
fn an_unconfirmed_redirect_is_undone_even_when_its_session_is_gone() {
    test("redirect-undo-after", |world| {
        let host = world.host("host")?;
        let before = state(&host)?;
        let program = weft_e2e::programs::find("weft-proxy")?.display().to_string();
        let session = "exec setsid -w sh -c '\"$0\" redirect --undo-after 2s; nft list tables; kill -9 0' \"$0\"";
        let said = host.exec("sh", &["-c", session, &program])?;
        let tables = String::from_utf8_lossy(&said.stdout);
        assert!(tables.contains("table inet weft_unconfirmed") && tables.contains("table inet weft\n"), "{tables}");
        until_some("the undo", DEADLINE, || Ok((state(&host)? == before).then_some(())))?;
        let output = host.exec("weft-proxy", &["redirect", "--confirm"])?;
        assert_eq!(output.status.code(), Some(1), "nothing is there to be confirmed");

        // Confirmed: it stays. So it does when it was applied again without a time.
        host.redirect(&["--undo-after=2s"])?;
        host.exec_ok("weft-proxy", &["redirect", "--confirm"])?;
        let confirmed = state(&host)?;
        host.redirect(&["--undo-after=1s"])?;
        host.redirect(&[])?;
        std::thread::sleep(std::time::Duration::from_secs(3));
        assert_eq!(state(&host)?, confirmed);
        host.exec_ok("weft-proxy", &["redirect", "--confirm"])?;
        Ok(())
    });
}

/// Runs `redirect --check` with more flags: whether it passed, and what it said.
fn check(host: &Host, flags: &[&str]) -> Result<(bool, String)> {
    let output = host.exec("weft-proxy", &[&["redirect", "--check"], flags].concat())?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(matches!(output.status.code(), Some(0 | 1)), "{said}");
    Ok((output.status.success(), said))
}

#[test]
fn the_check_tells_whether_capture_works_with_and_without_a_proxy() {
    test("redirect-check", |world| {
        let host = world.host("host")?;
        let (passed, said) = check(&host, &[])?;
        assert!(!passed && said.contains("there is no table inet weft") && said.contains("run `weft-proxy"), "{said}");

        host.redirect(&[])?;
        // Without a proxy, with one that answers, with one that resets what it does not know.
        for flags in [None, Some(&["15001", "15006"][..]), Some(&["15001", "--reset"])] {
            let proxy = flags.map(|flags| listen(&host, flags)).transpose()?;
            let (passed, said) = check(&host, &[])?;
            assert!(passed, "{flags:?} {said}");
            drop(proxy);
            // Rules, two mesh ranges, two own addresses, each without and with the mark.
            assert_eq!(said.lines().filter(|line| line.starts_with("ok")).count(), 9, "{said}");
        }

        let (passed, said) = check(&host, &["--skip-inbound-ports=22"])?;
        assert!(!passed && said.contains("other settings"), "{said}");
        let (passed, said) = check(&host, &["--outbound-port=15002"])?;
        assert!(!passed && said.contains("FAILED  a connection to the mesh range"), "{said}");
        let (passed, said) = check(&host, &["--mark=5"])?;
        assert!(!passed && said.contains("FAILED  a connection with the mark 0x5"), "{said}");
        let (passed, said) = check(&host, &["--proxy-uid=0"])?;
        assert!(!passed && said.contains("it runs as the exempt uid 0"), "{said}");

        // A rule removed by hand, while the table and its comment stay.
        host.exec_ok("nft", &["flush", "chain", "inet", "weft", "outbound"])?;
        let (passed, said) = check(&host, &[])?;
        assert!(!passed && said.contains("FAILED  a connection to this host's own address"), "{said}");

        // A missing route.
        host.redirect(&[])?;
        host.exec_ok("ip", &["-6", "route", "del", "local", "fd77:6566:7400::/48", "dev", "lo"])?;
        let (passed, said) = check(&host, &[])?;
        assert!(!passed && said.contains("FAILED  a connection to the mesh range fd77:6566:7400::/48"), "{said}");
        assert!(said.contains("ok      a connection to the mesh range 240.0.0.0/4"), "{said}");
        Ok(())
    });
}

#[test]
fn wrong_flags_missing_rights_and_missing_programs_are_named() {
    test("redirect-errors", |world| {
        let host = world.host("host")?;
        let before = state(&host)?;
        let program = weft_e2e::programs::find("weft-proxy")?.display().to_string();
        let hide = "mount -t tmpfs none /usr/sbin && PATH=/usr/bin:/bin exec \"$0\" redirect";
        let cases: &[(&[&str], i32, &str)] = &[
            (&[&program, "redirect", "--mark=seven"], 64, "--mark"),
            (&[&program, "redirect", "--mesh-ranges=10.0.0.0/33"], 64, "--mesh-ranges"),
            (&[&program, "redirect", "--no-mark"], 64, "nothing is exempt"),
            (&[&program, "redirect", "--outbound-port=15006"], 64, "both 15006"),
            (&[&program, "redirect", "--own-ports=15001"], 64, "15001"),
            (&[&program, "redirect", "--undo", "--check"], 64, "--check"),
            (&["setpriv", "--reuid=1000", "--clear-groups", &program, "redirect"], 1, "CAP_NET_ADMIN"),
            (&["setpriv", "--reuid=1000", "--clear-groups", &program, "redirect", "--undo"], 1, "CAP_NET_ADMIN"),
            (&["unshare", "-m", "sh", "-c", hide, &program], 1, "nft is missing: install the Debian package nftables"),
        ];
        for (command, code, word) in cases {
            let output = host.exec(command[0], &command[1..])?;
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(*code), "{command:?}: {said}");
            assert!(said.contains(word), "{command:?}: {said}");
        }
        assert_eq!(state(&host)?, before);

        let printed = host.exec_ok("weft-proxy", &["redirect", "--print", "--proxy-uid=1337"])?;
        assert!(printed.contains("meta skuid { 1337 } return"), "{printed}");
        assert_eq!(state(&host)?, before);
        Ok(())
    });
}

/// As an ordinary user in namespaces of one's own: only the mark exempts, and applications in a nested user
/// namespace cannot set it.
#[test]
fn it_works_without_root_in_a_user_namespace() {
    test("redirect-rootless", |world| {
        let host = world.host("host")?;
        let proxy = weft_e2e::programs::find("weft-proxy")?.display().to_string();
        let probe = weft_e2e::programs::find("weft-e2e-probe")?.display().to_string();
        let script = r#"
            set -e
            "$1" redirect
            "$1" redirect
            "$1" redirect --check
            echo checked
            "$2" listen 15001 8080 & listener=$!
            until "$2" connect 127.0.0.1:8080 >/dev/null; do :; done
            "$1" redirect --check >/dev/null
            for address in 240.0.0.1:80 '[fd77:6566:7400::1]:80' 127.0.0.1:8080; do
                unshare -U "$2" connect $address
            done
            unshare -U "$2" connect 240.0.0.1:80 --mark $3 || true
            "$2" connect 240.0.0.1:80 --mark $3 || true
            kill $listener
            "$1" redirect --undo
            nft list ruleset
            ip route show table all proto 119
            ip -6 route show table all proto 119
        "#;
        let user = ["--reuid=1000", "--regid=1000", "--clear-groups", "unshare", "-Urnm", "sh", "-c"];
        let args = [&user[..], &[script, "sh", &proxy, &probe, MARK_DECIMAL]].concat();
        let said = host.exec_ok("setpriv", &args)?;
        let (checks, rest) = said.split_once("checked\n").unwrap();
        assert_eq!(checks.lines().filter(|line| line.starts_with("ok")).count(), 5, "{said}");
        let (listener, client): (Vec<&str>, Vec<&str>) = rest
            .lines()
            .partition(|line| *line == "ready" || *line == "8080 direct" || line.starts_with("15001 error"));
        assert!(listener.contains(&"8080 direct"), "{said}");
        let mut seen = client.clone();
        seen.dedup();
        let expected = [
            "15001 captured 240.0.0.1:80",
            "15001 captured [fd77:6566:7400::1]:80",
            "error: PermissionDenied",
            "error: ConnectionRefused",
        ];
        for line in expected {
            assert!(seen.contains(&line), "{line}: {said}");
        }
        assert_eq!(seen.last(), Some(&"error: ConnectionRefused"), "nothing is left: {said}");
        assert_eq!(MARK, format!("{:#x}", MARK_DECIMAL.parse::<u32>()?));
        Ok(())
    });
}
