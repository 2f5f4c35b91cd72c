//! Listening sockets with SO_REUSEPORT, one per worker and port, and the connections that they accept.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::{net::TcpListener, time::Instant};

use super::spread::Reservation;
use crate::{
    stream::kernel::notice_gone,
    telemetry::{Direction, Flow},
};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4_096;

/// The purpose of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Connections of the workload: by capture, or always to one destination.
    Outbound(Option<SocketAddr>),
    /// Connections to the workload: by capture, or always to one destination.
    Inbound(Option<SocketAddr>),
    /// A port of a gateway, by the number it has in the Gateway object.
    Gateway(u16),
}

/// A connection that was accepted.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) flow: Flow,
    /// The start of the caller's time limit: when it was accepted, or when discovery had answered.
    pub(crate) since: Instant,
    /// Held until the connection has ended.
    pub(crate) reservation: Reservation,
}

impl Role {
    /// The direction at the workload.
    pub(crate) fn direction(self) -> Direction {
        match self {
            Self::Outbound(_) => Direction::Outbound,
            Self::Inbound(_) => Direction::Inbound,
            Self::Gateway(_) => Direction::Gateway,
        }
    }
}

/// Opens a listening socket that other workers can share. An unspecified IPv6 address takes IPv4 as well; where there is no
/// IPv6, an unspecified IPv4 address is used instead.
/// Errors: the address is in use or not ours.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let bound = bind_exactly(address);
    let unspecified: SocketAddr = (Ipv6Addr::UNSPECIFIED, address.port()).into();
    match bound {
        Err(error) if address == unspecified && error.kind() != io::ErrorKind::AddrInUse => {
            bind_exactly((Ipv4Addr::UNSPECIFIED, address.port()).into())
        }
        bound => bound,
    }
}

fn bind_exactly(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    // Accepted connections inherit both.
    socket.set_tcp_nodelay(true)?;
    notice_gone(&socket);
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}
