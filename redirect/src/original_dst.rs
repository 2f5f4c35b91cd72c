//! The original destination of a captured connection, and the mark that exempts a connection from capture.
//! Shape: an accepted stream in, [`Destination`] out. Two socket options, no state; safe calls of socket2.
//! A dual-stack listener sees IPv4 peers as v4-mapped addresses: the kernel answers only the IPv4 call for them.
//! Invariant: an address is `Captured` only when it differs from the address at which the connection arrived,
//! because the kernel's call also succeeds for a connection that was not redirected.

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::fd::AsFd;

use rustix::io::Errno;
use socket2::SockRef;

/// Whether a connection came through the redirect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// Redirected here; the address is the client's destination, never v4-mapped.
    Captured(SocketAddr),
    /// The client connected to this listener itself. Such a connection must be closed: its destination is the
    /// listener, so forwarding it is a loop.
    Direct,
}

/// Asks the kernel for the original destination of `stream`.
///
/// Errors: the socket is gone (`ENOTCONN`), or is not IP. No conntrack entry, or a kernel without
/// netfilter, is `Ok(Direct)`.   Cost: at most four system calls.
pub fn original_dst<S: AsFd>(stream: &S) -> io::Result<Destination> {
    let socket = SockRef::from(stream);
    let peer = ip_of(&socket.peer_addr()?)?;
    let local = ip_of(&socket.local_addr()?)?;
    let answer = if peer.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    let original = match answer {
        Ok(address) => ip_of(&address)?,
        Err(error) if without_conntrack(&error) => return Ok(Destination::Direct),
        Err(error) => return Err(error),
    };
    Ok(if same_address(original, local) { Destination::Direct } else { Destination::Captured(original) })
}

/// Sets `SO_MARK`, which exempts the connection from capture. Call before `connect`.
///
/// Errors: `EPERM` without `CAP_NET_ADMIN` (or `CAP_NET_RAW`) in the namespace's user namespace.
pub fn set_mark<S: AsFd>(socket: &S, mark: u32) -> io::Result<()> {
    SockRef::from(socket).set_mark(mark)
}

fn ip_of(address: &socket2::SockAddr) -> io::Result<SocketAddr> {
    let address = address.as_socket().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not an IP socket"))?;
    Ok(unmapped(address))
}

/// `::ffff:10.0.0.1` becomes `10.0.0.1`; everything else stays.
fn unmapped(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(_) => address,
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => SocketAddr::new(IpAddr::V4(v4), v6.port()),
            None => SocketAddr::V6(SocketAddrV6::new(*v6.ip(), v6.port(), 0, v6.scope_id())),
        },
    }
}

/// Compares address and port; the scope of a link-local address is not part of the kernel's answer.
fn same_address(a: SocketAddr, b: SocketAddr) -> bool {
    a.ip() == b.ip() && a.port() == b.port()
}

/// No entry, or no netfilter at all in this kernel.
fn without_conntrack(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOENT | Errno::NOPROTOOPT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_address_becomes_ipv4() {
        assert_eq!(unmapped("[::ffff:10.1.2.3]:80".parse().unwrap()), "10.1.2.3:80".parse().unwrap());
        assert_eq!(unmapped("[fd77::1]:80".parse().unwrap()), "[fd77::1]:80".parse().unwrap());
        assert_eq!(unmapped("10.1.2.3:80".parse().unwrap()), "10.1.2.3:80".parse().unwrap());
    }

    #[test]
    fn a_connection_to_the_listener_itself_is_direct() {
        for listen in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
            let listener = std::net::TcpListener::bind(listen).unwrap();
            let port = listener.local_addr().unwrap().port();
            let dial = if listen.starts_with("[::1]") { "[::1]" } else { "127.0.0.1" };
            let _client = std::net::TcpStream::connect(format!("{dial}:{port}")).unwrap();
            let (server, _) = listener.accept().unwrap();
            assert_eq!(original_dst(&server).unwrap(), Destination::Direct, "{listen}");
        }
    }
}
