//! Connections that the rules exempt by mark, uid or gid: they must bypass the proxy.
//! To an own address of this host they must arrive at a listener of the check; to a mesh range they must be refused.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use socket2::{Domain, Protocol, Socket, Type};

use super::port::accept_from;
use super::{CONNECT, Outcome, RUN_REDIRECT, failed, skipped};
use crate::original_dst::set_mark;
use crate::{Redirect, RedirectError};

const MARK_NEEDS: &str = "setting a mark needs CAP_NET_ADMIN";

/// Connects with `mark`. The outer error is that of setting the mark, the inner one that of connecting.
fn connect_with_mark(target: SocketAddr, mark: u32) -> Result<io::Result<Socket>, io::Error> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
    set_mark(&socket, mark)?;
    let connected = socket.connect_timeout(&target.into(), CONNECT);
    Ok(connected.map(|()| socket))
}

/// A connection with `mark` to a mesh address must be refused.
pub(super) fn refused_with_mark(target: SocketAddr, mark: u32) -> Result<Outcome, RedirectError> {
    Ok(match connect_with_mark(target, mark) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => skipped(MARK_NEEDS),
        Err(source) => {
            return Err(RedirectError::Probe { step: "mark a socket", source });
        }
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Outcome::Passed,
        Ok(Err(error)) => failed(format!("instead of a refusal: {error}"), RUN_REDIRECT),
        Ok(Ok(_)) => failed("it was accepted", RUN_REDIRECT),
    })
}

/// A listener on this host that exempt connections must reach.
pub(super) struct LocalListener {
    listener: TcpListener,
    /// An own address of this host and a free port that the rules do not skip.
    pub(super) address: SocketAddr,
}

impl LocalListener {
    pub(super) fn bind(redirect: &Redirect, address: IpAddr) -> Result<Self, RedirectError> {
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

    /// Accepts the connection whose local address is `client`.
    fn reached_by(&self, client: io::Result<SocketAddr>) -> Outcome {
        match client.and_then(|client| accept_from(&self.listener, client)) {
            Ok(Some(_)) => Outcome::Passed,
            Ok(None) => failed("it did not arrive at its destination", RUN_REDIRECT),
            Err(error) => failed(error.to_string(), RUN_REDIRECT),
        }
    }

    /// A connection with `mark` must arrive here.
    pub(super) fn reached_with_mark(&self, mark: u32) -> Result<Outcome, RedirectError> {
        Ok(match connect_with_mark(self.address, mark) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => skipped(MARK_NEEDS),
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

    /// A connection of another user or group must arrive here: a child process opens it and prints its local address.
    pub(super) fn reached_as(&self, kind: &str, id: u32) -> Result<Outcome, RedirectError> {
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
        let outcome = match reported_address(&mut child) {
            Some(client) => self.reached_by(Ok(client)),
            None => failed("it could not connect", RUN_REDIRECT),
        };
        // The end of its standard input makes the child exit.
        drop(child.stdin.take());
        child.wait().map_err(probe("wait for the probe"))?;
        Ok(outcome)
    }
}

fn reported_address(child: &mut Child) -> Option<SocketAddr> {
    let mut line = String::new();
    BufReader::new(child.stdout.take()?).read_line(&mut line).ok()?;
    line.trim().parse().ok()
}

/// The child of [`LocalListener::reached_as`]: connects, prints its local address, stays connected until end of input.
pub(crate) fn probe(target: SocketAddr) -> Result<(), RedirectError> {
    connect_and_report(target).map_err(|source| RedirectError::Probe { step: "connect and print the address", source })
}

fn connect_and_report(target: SocketAddr) -> io::Result<()> {
    let stream = TcpStream::connect_timeout(&target, CONNECT)?;
    let mut out = io::stdout().lock();
    writeln!(out, "{}", stream.local_addr()?)?;
    out.flush()?;
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
