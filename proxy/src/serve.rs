//! Accepting connections: the worker that serves each of them, and the handler in `request` that takes it.
//! Invariant: a connection that was not captured is closed, unless its listener has a fixed destination; so is a connection to
//! one of the proxy's own ports.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    time::{Instant, sleep},
};
use weft_core::failure::Failure;
use weft_redirect::original_dst::{Destination, original_dst};

use crate::{
    listener::{
        socket::{Accepted, Role, bind},
        spread::{Handed, Reservation},
    },
    request::{gateway, inbound, outbound, refuse},
    telemetry::Flow,
    worker::Worker,
};

/// The pause after an accept that failed, so that a lack of files does not become a busy loop.
const PAUSE: Duration = Duration::from_millis(50);

/// The pause after a listener that could not be opened again.
const REOPEN: Duration = Duration::from_secs(1);

/// Accepts for as long as it runs. While the proxy drains, nothing listens for connections from outside: callers are refused at
/// once, and do not wait in a backlog.
pub async fn serve(worker: Arc<Worker>, mut listener: TcpListener, role: Role) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop(&worker, role) => {
                let Some(again) = reopened(&worker, listener).await else { return };
                listener = again;
                continue;
            }
        };
        match accepted {
            Ok((stream, peer)) => take(&worker, stream, unmapped(peer), role),
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                sleep(PAUSE).await;
            }
        }
    }
}

/// Closes a listener until the proxy drains no longer.
async fn reopened(worker: &Worker, listener: TcpListener) -> Option<TcpListener> {
    let address = match listener.local_addr() {
        Ok(address) => address,
        Err(error) => {
            tracing::error!(%error, "a listener has no address; it stays closed");
            return None;
        }
    };
    drop(listener);
    loop {
        worker.drain.ended().await;
        match bind(address) {
            Ok(listener) => return Some(listener),
            Err(error) => {
                tracing::error!(%address, %error, "a listener cannot be opened again after the drain; trying again");
                sleep(REOPEN).await;
            }
        }
    }
}

/// Draining ends new connections from outside; the workload itself may call until it ends.
async fn stop(worker: &Worker, role: Role) {
    match role {
        Role::Outbound(_) => std::future::pending().await,
        Role::Inbound(_) | Role::Gateway(_) => worker.drain.begun().await,
    }
}

/// Serves a connection, here or at a worker that has fewer.
fn take(worker: &Arc<Worker>, stream: TcpStream, peer: SocketAddr, role: Role) {
    let spread = &worker.shared.spread;
    let direction = role.direction();
    let reservation = match spread.choose(worker.index, direction, peer.ip()) {
        Ok(reservation) => reservation,
        Err(limit) => {
            let flow = Flow { direction, peer, destination: peer };
            return refuse::connection(worker, stream, flow, None, "", &Failure::Overloaded(limit));
        }
    };
    if reservation.worker() == worker.index {
        return worker.spawn(connection(worker.clone(), stream, peer, role, reservation));
    }
    match stream.into_std() {
        Ok(stream) => {
            if let Err(back) = spread.hand(Handed { stream, peer, role, reservation }) {
                handed(worker, back);
            }
        }
        Err(error) => tracing::warn!(%error, %peer, "a connection could not be handed to another worker"),
    }
}

/// Serves a connection that another worker has accepted.
pub(crate) fn handed(worker: &Arc<Worker>, Handed { stream, peer, role, reservation }: Handed) {
    match TcpStream::from_std(stream) {
        Ok(stream) => worker.spawn(connection(worker.clone(), stream, peer, role, reservation)),
        Err(error) => tracing::warn!(%error, %peer, "a connection that another worker has accepted is lost"),
    }
}

async fn connection(worker: Arc<Worker>, stream: TcpStream, peer: SocketAddr, role: Role, reservation: Reservation) {
    let captured = |fixed: Option<SocketAddr>| match fixed {
        Some(destination) => Some(destination),
        None => captured_destination(&worker, &stream, peer, role),
    };
    let destination = match role {
        Role::Outbound(fixed) | Role::Inbound(fixed) => captured(fixed),
        Role::Gateway(_) => Some(stream.local_addr().map_or(peer, unmapped)),
    };
    let Some(destination) = destination else { return };
    let flow = Flow { direction: role.direction(), peer, destination };
    let accepted = Accepted { flow, since: Instant::now(), reservation };
    match role {
        Role::Outbound(_) => outbound::connection(worker, stream, accepted).await,
        Role::Inbound(_) => inbound::connection(worker, stream, accepted).await,
        Role::Gateway(port) => gateway::connection(worker, stream, accepted, port).await,
    }
}

/// Where a captured connection was going; `None` when it was not captured, goes to ourselves, or is the self-probe.
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
            (!worker.shared.self_probe.takes(destination)).then_some(destination)
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
