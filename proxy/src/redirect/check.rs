//! Proof that the redirect is in force: real connections from this namespace, and where they arrived.
//! Where nobody listens on the outbound port, a stand-in listens there for the time of the check and asks the kernel
//! for the original destination. Beside a running proxy the kernel's table of TCP connections is the witness: the
//! other end of our connection must be at the outbound port. Neither needs the proxy's help.
//! Inbound capture needs a peer on another host, so here only the applied rules are compared with the settings.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;
use socket2::{Domain, Protocol, Socket, Type};

use super::{Redirect, RedirectError, program, routes, rules};
use crate::listener::original_dst::{Destination, original_dst, set_mark};

const CONNECT: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(10);
const POLLS: usize = 50;
/// How often a connection is tried again that was closed too fast to be seen.
const ATTEMPTS: usize = 5;

const RUN_REDIRECT: &str = "run `weft-proxy redirect` with the same flags";

/// What the check found, in the order it looked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// One per question.
    pub findings: Vec<Finding>,
}

impl Check {
    /// Nothing failed, and at least one connection was seen to be captured.
    pub fn passed(&self) -> bool {
        !self.findings.iter().any(|finding| matches!(finding.verdict, Verdict::Failed { .. }))
            && self.findings.iter().any(|finding| finding.verdict == Verdict::Passed)
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            match &finding.verdict {
                Verdict::Passed => writeln!(f, "ok      {}", finding.what)?,
                Verdict::Skipped { reason } => writeln!(f, "skipped {}: {reason}", finding.what)?,
                Verdict::Failed { reason, next } => writeln!(f, "FAILED  {}: {reason}; {next}", finding.what)?,
            }
        }
        Ok(())
    }
}

/// One question and its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What should be so.
    pub what: String,
    /// Whether it is.
    pub verdict: Verdict,
}

/// The answer to one question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Seen to be so.
    Passed,
    /// Could not be looked at here.
    Skipped {
        /// Why.
        reason: String,
    },
    /// Seen not to be so.
    Failed {
        /// What was seen.
        reason: String,
        /// What to do.
        next: String,
    },
}

fn failed(reason: impl Into<String>, next: impl Into<String>) -> Verdict {
    Verdict::Failed { reason: reason.into(), next: next.into() }
}

fn skipped(reason: impl Into<String>) -> Verdict {
    Verdict::Skipped { reason: reason.into() }
}

/// See [`Redirect::check`].
pub(super) fn check(redirect: &Redirect) -> Result<Check, RedirectError> {
    let mut findings = Vec::new();
    let mut note = |what: String, verdict: Verdict| findings.push(Finding { what, verdict });

    note("these settings are the applied ones, inbound and outbound".to_owned(), applied(redirect)?);
    if let Some(exemption) = own_exemption(redirect) {
        let next = "run --check as another user or group".to_owned();
        note("this check is not exempt itself".to_owned(), failed(format!("it runs as {exemption}"), next));
        return Ok(Check { findings });
    }

    let witness = Witness::find(redirect)?;
    let ipv6 = redirect.ipv6 && routes::loopback_ipv6();
    for range in &redirect.mesh_ranges {
        let what = format!("a connection to the mesh range {range} reaches the proxy");
        if matches!(range, IpNet::V6(_)) && !ipv6 {
            note(what, skipped("no IPv6 on the loopback interface, or switched off"));
            continue;
        }
        let target = SocketAddr::new(last_address(range), 9);
        note(what, witness.captured(target));
        if let Some(mark) = redirect.mark {
            let what = format!("a connection with the mark {mark:#x} to {range} does not");
            note(what, refused_with_mark(target, mark)?);
        }
    }
    for address in own_addresses(redirect, ipv6)? {
        let listener = Bystander::listen(redirect, address)?;
        let what = format!("a connection to this host's own address {address} reaches the proxy");
        note(what, witness.captured(listener.address));
        if let Some(mark) = redirect.mark {
            let what = format!("a connection with the mark {mark:#x} to {address} does not");
            note(what, listener.reached_with_mark(mark)?);
        }
        for (kind, ids) in [("uid", &redirect.uids), ("gid", &redirect.gids)] {
            for id in ids {
                let what = format!("a connection of the {kind} {id} to {address} does not");
                note(what, listener.reached_as(kind, *id)?);
            }
        }
    }
    Ok(Check { findings })
}

/// Compares the table's comment with what these settings would write.
fn applied(redirect: &Redirect) -> Result<Verdict, RedirectError> {
    match program::nft(&["list", "table", "inet", rules::TABLE]) {
        Ok(table) if table.contains(&format!("comment \"{}\"", rules::comment(redirect))) => Ok(Verdict::Passed),
        Ok(_) => Ok(failed(
            "the table inet weft was written with other settings or by another version",
            "apply again with these flags, or check with the flags that were applied",
        )),
        Err(RedirectError::NotPermitted { detail, .. }) => Ok(skipped(detail)),
        Err(RedirectError::Failed { detail, .. }) => {
            Ok(failed(format!("there is no table inet weft ({detail})"), RUN_REDIRECT))
        }
        Err(error) => Err(error),
    }
}

/// The uid or gid of this process, if the rules let it pass.
fn own_exemption(redirect: &Redirect) -> Option<String> {
    let uid = rustix::process::geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    if redirect.uids.contains(&uid) {
        return Some(format!("the exempt uid {uid}"));
    }
    redirect.gids.contains(&gid).then(|| format!("the exempt gid {gid}"))
}

/// An address deep in the range that no service is likely to have.
fn last_address(range: &IpNet) -> IpAddr {
    match range {
        // The last one may be a broadcast address.
        IpNet::V4(range) => range.hosts().next_back().unwrap_or(range.addr()).into(),
        IpNet::V6(range) => range.broadcast().into(),
    }
}

/// Who can tell that a connection arrived at the outbound port.
enum Witness {
    /// The port was free: we listen there meanwhile.
    StandIn(TcpListener),
    /// Somebody, the proxy, listens there: the kernel's table tells.
    Kernel { port: u16 },
}

impl Witness {
    fn find(redirect: &Redirect) -> Result<Self, RedirectError> {
        let port = redirect.outbound_port.get();
        let probe = |step| move |source| RedirectError::Probe { step, source };
        match listen_everywhere(port) {
            Ok(listener) => {
                listener.set_nonblocking(true).map_err(probe("make the listener non-blocking"))?;
                Ok(Self::StandIn(listener))
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(Self::Kernel { port }),
            Err(error) => Err(probe("listen on the outbound port")(error)),
        }
    }

    /// Connects to `target` and tells whether the connection arrived at the outbound port.
    fn captured(&self, target: SocketAddr) -> Verdict {
        let mut reason = String::new();
        for _ in 0..ATTEMPTS {
            match self.connect(target) {
                Ok(Seen::Captured) => return Verdict::Passed,
                Ok(Seen::Closed) => "every connection was closed before it was seen where".clone_into(&mut reason),
                Ok(Seen::Elsewhere(what)) => {
                    reason = what;
                    break;
                }
                Err(error) => {
                    reason = error.to_string();
                    break;
                }
            }
        }
        failed(format!("connecting to {target}: {reason}"), RUN_REDIRECT)
    }

    /// One connection, and where it went.
    fn connect(&self, target: SocketAddr) -> io::Result<Seen> {
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
        // Delays the last step of the handshake (tcp(7): TCP_QUICKACK). Until then the proxy cannot see the connection,
        // and so cannot close it before the kernel's table has been read.
        socket.set_tcp_quickack(false)?;
        socket.connect_timeout(&target.into(), CONNECT)?;
        let stream = TcpStream::from(socket);
        let client = stream.local_addr()?;
        match self {
            Self::StandIn(listener) => {
                let Some(accepted) = accept_from(listener, client)? else {
                    return Ok(Seen::Elsewhere("the connection went elsewhere".to_owned()));
                };
                Ok(match original_dst(&accepted)? {
                    Destination::Captured(address) if address == target => Seen::Captured,
                    other @ (Destination::Captured(_) | Destination::Direct) => {
                        Seen::Elsewhere(format!("it arrived with another original destination ({other:?})"))
                    }
                })
            }
            Self::Kernel { port } => {
                stream.set_nonblocking(true)?;
                for _ in 0..POLLS {
                    if arrived_at(*port, client)? {
                        return Ok(Seen::Captured);
                    }
                    // A proxy that knows no such destination may have reset it: then nothing is left to see.
                    match stream.peek(&mut [0]) {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(POLL),
                        Ok(_) | Err(_) => return Ok(Seen::Closed),
                    }
                }
                Ok(Seen::Elsewhere(format!("the connection was accepted, but not at port {port}")))
            }
        }
    }
}

/// Where a connection went.
enum Seen {
    /// To the outbound port.
    Captured,
    /// Somewhere else; in words.
    Elsewhere(String),
    /// Its other end was gone before it could be looked at.
    Closed,
}

/// A dual-stack listener, or IPv4 alone where there is no IPv6.
fn listen_everywhere(port: u16) -> io::Result<TcpListener> {
    let listen = |domain: Domain, address: IpAddr| -> io::Result<TcpListener> {
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        if domain == Domain::IPV6 {
            socket.set_only_v6(false)?;
        }
        socket.bind(&SocketAddr::new(address, port).into())?;
        socket.listen(128)?;
        Ok(TcpListener::from(socket))
    };
    match listen(Domain::IPV6, IpAddr::V6(Ipv6Addr::UNSPECIFIED)) {
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => listen(Domain::IPV4, IpAddr::from([0, 0, 0, 0])),
        other => other,
    }
}

/// The accepted connection whose peer is `client`; others that come meanwhile are closed.
fn accept_from(listener: &TcpListener, client: SocketAddr) -> io::Result<Option<TcpStream>> {
    for _ in 0..POLLS {
        match listener.accept() {
            Ok((stream, peer)) if same(peer, client) => return Ok(Some(stream)),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(POLL),
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

fn same(a: SocketAddr, b: SocketAddr) -> bool {
    a.ip().to_canonical() == b.ip().to_canonical() && a.port() == b.port()
}

/// Whether this namespace has a connection from `client` at the local port `port`.
fn arrived_at(port: u16, client: SocketAddr) -> io::Result<bool> {
    for table in ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"] {
        let text = match std::fs::read_to_string(table) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        if text
            .lines()
            .skip(1)
            .filter_map(connection)
            .any(|(local, remote)| local.port() == port && same(remote, client))
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Local and remote address of one line of `/proc/net/tcp` or `tcp6`.
fn connection(line: &str) -> Option<(SocketAddr, SocketAddr)> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    Some((endpoint(fields.next()?)?, endpoint(fields.next()?)?))
}

/// `0100007F:3A99`: 32-bit words in the byte order of the machine, port in hexadecimal.
fn endpoint(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let mut bytes = Vec::with_capacity(16);
    for start in (0..address.len()).step_by(8) {
        let word = u32::from_str_radix(address.get(start..start + 8)?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let ip = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        _ => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

/// A connected socket that carries `mark`, or why not.
fn connect_with_mark(target: SocketAddr, mark: u32) -> Result<io::Result<Socket>, io::Error> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
    set_mark(&socket, mark)?;
    let connected = socket.connect_timeout(&target.into(), CONNECT);
    Ok(connected.map(|()| socket))
}

/// A marked connection to a mesh address must find nobody.
fn refused_with_mark(target: SocketAddr, mark: u32) -> Result<Verdict, RedirectError> {
    Ok(match connect_with_mark(target, mark) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => skipped("setting a mark needs CAP_NET_ADMIN"),
        Err(source) => {
            return Err(RedirectError::Probe { step: "mark a socket", source });
        }
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Verdict::Passed,
        Ok(Err(error)) => failed(format!("it was not refused but: {error}"), RUN_REDIRECT),
        Ok(Ok(_)) => failed("it was accepted", RUN_REDIRECT),
    })
}

/// A listener that exempt connections must reach, and others not.
struct Bystander {
    listener: TcpListener,
    address: SocketAddr,
}

impl Bystander {
    fn listen(redirect: &Redirect, address: IpAddr) -> Result<Self, RedirectError> {
        let attempt = || -> io::Result<Self> {
            loop {
                let listener = TcpListener::bind((address, 0))?;
                let address = listener.local_addr()?;
                let skipped = [&redirect.own_ports, &redirect.skip_outbound_ports];
                if skipped.iter().any(|ports| ports.contains(&address.port())) {
                    continue;
                }
                listener.set_nonblocking(true)?;
                return Ok(Self { listener, address });
            }
        };
        attempt().map_err(|source| RedirectError::Probe { step: "listen on this host's own address", source })
    }

    fn reached_by(&self, client: io::Result<SocketAddr>) -> Verdict {
        match client.and_then(|client| accept_from(&self.listener, client)) {
            Ok(Some(_)) => Verdict::Passed,
            Ok(None) => failed("it did not arrive where it was going", RUN_REDIRECT),
            Err(error) => failed(error.to_string(), RUN_REDIRECT),
        }
    }

    fn reached_with_mark(&self, mark: u32) -> Result<Verdict, RedirectError> {
        Ok(match connect_with_mark(self.address, mark) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                skipped("setting a mark needs CAP_NET_ADMIN")
            }
            Err(source) => {
                return Err(RedirectError::Probe { step: "mark a socket", source });
            }
            Ok(Err(error)) => failed(error.to_string(), RUN_REDIRECT),
            Ok(Ok(socket)) => {
                let client = socket.local_addr().and_then(|address| {
                    address.as_socket().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
                });
                self.reached_by(client)
            }
        })
    }

    /// A child of this program, run as another user or group, connects and says from where.
    fn reached_as(&self, kind: &str, id: u32) -> Result<Verdict, RedirectError> {
        let probe = |step| move |source| RedirectError::Probe { step, source };
        let program = std::env::current_exe().map_err(probe("find this program"))?;
        let mut command = Command::new(program);
        command.args(["redirect", "--probe", &self.address.to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        match kind {
            "uid" => command.uid(id),
            _ => command.gid(id),
        };
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => {
                return Ok(skipped(format!("cannot run a probe as the {kind} {id}: {error}")));
            }
        };
        let verdict = match reported_address(&mut child) {
            Some(client) => self.reached_by(Ok(client)),
            None => failed("it could not connect", RUN_REDIRECT),
        };
        // Its standard input closes here, which ends it.
        drop(child.stdin.take());
        child.wait().map_err(probe("wait for the probe"))?;
        Ok(verdict)
    }
}

fn reported_address(child: &mut Child) -> Option<SocketAddr> {
    let mut line = String::new();
    BufReader::new(child.stdout.take()?).read_line(&mut line).ok()?;
    line.trim().parse().ok()
}

/// The child's side of [`Bystander::reached_as`]: connects, prints its own address, stays until its input ends.
pub(super) fn probe(target: SocketAddr) -> io::Result<()> {
    let stream = TcpStream::connect_timeout(&target, CONNECT)?;
    let mut out = io::stdout().lock();
    writeln!(out, "{}", stream.local_addr()?)?;
    out.flush()?;
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

#[derive(Deserialize)]
struct Interface {
    #[serde(default)]
    addr_info: Vec<InterfaceAddress>,
}

#[derive(Deserialize)]
struct InterfaceAddress {
    local: Option<IpAddr>,
}

/// One global address of this host per family, if it has one whose connections are captured.
fn own_addresses(redirect: &Redirect, ipv6: bool) -> Result<Vec<IpAddr>, RedirectError> {
    let json = program::ip(&["-j", "address", "show", "up", "scope", "global"])?;
    let interfaces: Vec<Interface> =
        serde_json::from_str(&json).map_err(|source| RedirectError::Unreadable { program: "ip", source })?;
    let addresses: Vec<IpAddr> = interfaces
        .iter()
        .flat_map(|interface| interface.addr_info.iter().filter_map(|info| info.local))
        .filter(|address| !redirect.skip_outbound_ranges.iter().any(|range| range.contains(address)))
        .collect();
    let v4 = addresses.iter().find(|address| address.is_ipv4());
    let v6 = addresses.iter().find(|address| address.is_ipv6() && ipv6);
    Ok(v4.into_iter().chain(v6).copied().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_kernels_table() {
        let v4 = "   0: 0100007F:3A99 0B004D0A:9C4A 01 00000000:00000000 00:00000000 00000000     0        0 1 1 0";
        let v6 = "   1: 0000000000000000FFFF00000100007F:3A99 00000000000000000000000001000000:9C4A 06 0:0";
        if cfg!(target_endian = "little") {
            let expected = ("127.0.0.1:15001".parse().unwrap(), "10.77.0.11:40010".parse().unwrap());
            assert_eq!(connection(v4), Some(expected));
            let (local, remote) = connection(v6).unwrap();
            assert_eq!(local.ip().to_canonical(), IpAddr::from([127, 0, 0, 1]));
            assert_eq!(remote, "[::1]:40010".parse().unwrap());
        }
        assert_eq!(connection("garbage"), None);
        assert_eq!(connection("0: 01:2 zz:3"), None);
    }

    #[test]
    fn sees_a_real_connection_in_the_kernels_table() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let address = client.local_addr().unwrap();
        assert!(arrived_at(port, address).unwrap());
        assert!(!arrived_at(port.wrapping_add(1), address).unwrap());
    }

    #[test]
    fn the_probed_address_is_inside_the_range_and_no_broadcast() {
        for (range, expected) in [
            ("240.0.0.0/4", "255.255.255.254"),
            ("10.0.0.7/32", "10.0.0.7"),
            ("fd77:6566:7400::/48", "fd77:6566:7400:ffff:ffff:ffff:ffff:ffff"),
        ] {
            assert_eq!(last_address(&range.parse().unwrap()), expected.parse::<IpAddr>().unwrap());
        }
    }

    #[test]
    fn only_skipped_findings_prove_nothing() {
        let finding = |verdict| Finding { what: String::new(), verdict };
        assert!(!Check { findings: vec![] }.passed());
        assert!(!Check { findings: vec![finding(skipped("x"))] }.passed());
        assert!(Check { findings: vec![finding(Verdict::Passed), finding(skipped("x"))] }.passed());
        assert!(!Check { findings: vec![finding(Verdict::Passed), finding(failed("x", "y"))] }.passed());
    }
}
