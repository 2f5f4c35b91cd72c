//! Accepting: listeners with SO_REUSEPORT, one per worker and port, and what each accepted connection becomes.
//! Invariant: a connection that was not captured is closed, unless its listener says where it goes; so is one to our own ports.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{Instant, sleep},
};
use weft_core::failure::Failure;
use weft_redirect::original_dst::{Destination, original_dst};

use super::spread::{Handed, Place};
use crate::{gateway, inbound, outbound, telemetry::Direction, worker::Worker};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4_096;

/// What a listener is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// What the workload sends: by capture, or always to one destination.
    Outbound(Option<SocketAddr>),
    /// What arrives for the workload: by capture, or always to one destination.
    Inbound(Option<SocketAddr>),
    /// A port of a gateway, by the number it has in the Gateway object.
    Gateway(u16),
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
    // What is accepted inherits it.
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Accepts until draining has ended the need for it.
pub async fn serve(worker: Arc<Worker>, listener: TcpListener, role: Role) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop(&worker, role) => return,
        };
        match accepted {
            Ok((stream, peer)) => take(&worker, stream, unmapped(peer), role),
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// New connections from outside end with draining; the workload itself may call to its own end.
async fn stop(worker: &Worker, role: Role) {
    match role {
        Role::Outbound(_) => std::future::pending().await,
        Role::Inbound(_) | Role::Gateway(_) => worker.drain.begun().await,
    }
}

/// A connection that was accepted.
#[derive(Debug)]
pub(crate) struct Accepted {
    /// Who calls.
    pub(crate) peer: SocketAddr,
    /// Where the connection was going.
    pub(crate) destination: SocketAddr,
    /// Since when it is waited for the caller.
    pub(crate) since: Instant,
    /// Held until the connection has ended.
    pub(crate) place: Place,
}

/// Serves a connection, here or at a worker that has fewer.
fn take(worker: &Arc<Worker>, stream: TcpStream, peer: SocketAddr, role: Role) {
    let spread = &worker.shared.spread;
    let Some(place) = spread.choose(worker.index, direction(role), peer.ip()) else {
        let failure = Failure::Overloaded("connections of the proxy");
        return inbound::refuse(worker, direction(role), peer, peer, None, "", &failure);
    };
    if place.worker() == worker.index {
        return worker.spawn(connection(worker.clone(), stream, peer, role, place));
    }
    match stream.into_std() {
        Ok(stream) => {
            if let Err(back) = spread.hand(Handed { stream, peer, role, place }) {
                handed(worker, back);
            }
        }
        Err(error) => tracing::warn!(%error, %peer, "a connection could not be handed to another worker"),
    }
}

/// Serves a connection that another worker has accepted.
pub(crate) fn handed(worker: &Arc<Worker>, Handed { stream, peer, role, place }: Handed) {
    match TcpStream::from_std(stream) {
        Ok(stream) => worker.spawn(connection(worker.clone(), stream, peer, role, place)),
        Err(error) => tracing::warn!(%error, %peer, "a connection that another worker has accepted is lost"),
    }
}

async fn connection(worker: Arc<Worker>, stream: TcpStream, peer: SocketAddr, role: Role, place: Place) {
    let captured = |fixed: Option<SocketAddr>| match fixed {
        Some(destination) => Some(destination),
        None => captured_destination(&worker, &stream, peer, role),
    };
    let destination = match role {
        Role::Outbound(fixed) | Role::Inbound(fixed) => captured(fixed),
        Role::Gateway(_) => Some(stream.local_addr().map_or(peer, unmapped)),
    };
    let Some(destination) = destination else { return };
    let accepted = Accepted { peer, destination, since: Instant::now(), place };
    match role {
        Role::Outbound(_) => outbound::connection(worker, stream, accepted).await,
        Role::Inbound(_) => inbound::connection(worker, stream, accepted).await,
        Role::Gateway(port) => gateway::connection(worker, stream, accepted, port).await,
    }
}

/// Where a captured connection was going; `None` when it was not captured or goes to ourselves.
fn captured_destination(worker: &Worker, stream: &TcpStream, peer: SocketAddr, role: Role) -> Option<SocketAddr> {
    let refused = |why: &'static str| {
        worker.metrics.event("weft_loops_refused_total", &[("why", why)]);
        tracing::debug!(%peer, why, "connection closed");
    };
    match original_dst(stream) {
        Ok(Destination::Captured(destination)) => {
            if is_own(&worker.shared.own_ports, &worker.shared.own_addresses, destination, role) {
                refused("own port");
                return None;
            }
            Some(destination)
        }
        Ok(Destination::Direct) => {
            refused("not captured");
            None
        }
        Err(error) => {
            tracing::debug!(%error, %peer, "original destination");
            refused("no original destination");
            None
        }
    }
}

/// Whether a captured connection was going to one of the proxy's own ports. What arrives was going to this host, whatever
/// addresses the file says it has.
fn is_own(ports: &[u16], addresses: &[IpAddr], destination: SocketAddr, role: Role) -> bool {
    let here = match role {
        Role::Inbound(_) | Role::Gateway(_) => true,
        Role::Outbound(_) => destination.ip().is_loopback() || addresses.contains(&destination.ip()),
    };
    here && ports.contains(&destination.port())
}

fn direction(role: Role) -> Direction {
    match role {
        Role::Outbound(_) => Direction::Outbound,
        Role::Inbound(_) => Direction::Inbound,
        Role::Gateway(_) => Direction::Gateway,
    }
}

/// `::ffff:10.0.0.1` becomes `10.0.0.1`.
fn unmapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_captured_connection_to_a_port_of_the_proxy_itself_is_a_loop() {
        let (ports, addresses) = ([15001, 15006], ["10.0.0.1".parse().unwrap()]);
        let own = |destination: &str, role| is_own(&ports, &addresses, destination.parse().unwrap(), role);
        let (outbound, inbound) = (Role::Outbound(None), Role::Inbound(None));
        for destination in ["127.0.0.1:15001", "[::1]:15006", "10.0.0.1:15006"] {
            assert!(own(destination, outbound) && own(destination, inbound), "{destination}");
        }
        assert!(!own("10.0.0.2:15006", outbound), "that is another proxy's");
        assert!(
            own("10.0.0.2:15006", inbound),
            "what arrives was going to this host, also at an address not written down"
        );
        assert!(!own("10.0.0.1:8080", inbound) && !own("10.0.0.1:8080", outbound));
    }
}
