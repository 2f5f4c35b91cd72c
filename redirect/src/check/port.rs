//! Observes whether a connection arrives at the proxy's outbound port.
//! If the port is free, a stand-in listens there during the check and reads the original destination. If it is in use,
//! the kernel's table of TCP connections must list the other end of the connection at that port.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::{CONNECT, Outcome, RUN_REDIRECT, failed};
use crate::original_dst::{Destination, original_dst};
use crate::{Redirect, RedirectError};

const POLL: Duration = Duration::from_millis(10);
const POLLS: usize = 50;
/// Attempts for a connection that is closed before its arrival can be observed.
const ATTEMPTS: usize = 5;

/// The outbound port, and how the check observes a connection that arrives there.
pub(super) enum OutboundPort {
    /// The port was free: this listener stands in for the proxy, and the kernel reports the original destination.
    StandIn(TcpListener),
    /// The proxy listens there: the kernel's table of TCP connections shows each arrival.
    InUse(u16),
}

impl OutboundPort {
    /// Listens on the port if it is free; otherwise takes its listener for the proxy.
    pub(super) fn observe(redirect: &Redirect) -> Result<Self, RedirectError> {
        let port = redirect.outbound_port.get();
        let probe = |step| move |source| RedirectError::Probe { step, source };
        match listen_everywhere(port) {
            Ok(listener) => {
                listener.set_nonblocking(true).map_err(probe("make the listener non-blocking"))?;
                Ok(Self::StandIn(listener))
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(Self::InUse(port)),
            Err(error) => Err(probe("listen on the outbound port")(error)),
        }
    }

    /// Connects to `target`; passes when the connection arrived at the outbound port.
    pub(super) fn captured(&self, target: SocketAddr) -> Outcome {
        let mut reason = String::new();
        for _ in 0..ATTEMPTS {
            match self.connect(target) {
                Ok(Arrival::Captured) => return Outcome::Passed,
                Ok(Arrival::Closed) => {
                    "every connection was closed before its arrival could be observed".clone_into(&mut reason)
                }
                Ok(Arrival::Elsewhere(observation)) => {
                    reason = observation;
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

    /// Opens one connection and observes its arrival.
    fn connect(&self, target: SocketAddr) -> io::Result<Arrival> {
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
        // Delays the last step of the handshake (tcp(7): TCP_QUICKACK). Until then the proxy cannot accept the
        // connection, and so cannot close it before the kernel's table has been read.
        socket.set_tcp_quickack(false)?;
        socket.connect_timeout(&target.into(), CONNECT)?;
        let stream = TcpStream::from(socket);
        let client = stream.local_addr()?;
        match self {
            Self::StandIn(listener) => {
                let Some(accepted) = accept_from(listener, client)? else {
                    return Ok(Arrival::Elsewhere("it did not arrive at the outbound port".to_owned()));
                };
                Ok(match original_dst(&accepted)? {
                    Destination::Captured(address) if address == target => Arrival::Captured,
                    other @ (Destination::Captured(_) | Destination::Direct) => {
                        Arrival::Elsewhere(format!("it arrived with another original destination ({other:?})"))
                    }
                })
            }
            Self::InUse(port) => {
                stream.set_nonblocking(true)?;
                for _ in 0..POLLS {
                    if arrived_at(*port, client)? {
                        return Ok(Arrival::Captured);
                    }
                    // A proxy without such a destination resets the connection, which removes it from the table.
                    match stream.peek(&mut [0]) {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(POLL),
                        Ok(_) | Err(_) => return Ok(Arrival::Closed),
                    }
                }
                Ok(Arrival::Elsewhere(format!("the connection was accepted, but not at port {port}")))
            }
        }
    }
}

/// Where a connection arrived.
enum Arrival {
    /// At the outbound port.
    Captured,
    /// Somewhere else; the observation for the report.
    Elsewhere(String),
    /// Unknown: it was closed before it could be observed.
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

/// Accepts until the peer is `client`, for half a second; closes all other connections.
pub(super) fn accept_from(listener: &TcpListener, client: SocketAddr) -> io::Result<Option<TcpStream>> {
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
}
