//! The ports of a gateway: opened and closed as its configuration says.

use std::{
    collections::BTreeSet,
    net::{Ipv6Addr, SocketAddr},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::time::sleep;

use super::{ports::shared, threads::tell};
use crate::{
    control::{Command, View},
    listener::socket::Role,
};

/// A port that could not be opened is tried again after this.
const AGAIN: Duration = Duration::from_secs(1);

/// Follows the configuration until the program ends.
pub(super) async fn follow(view: Arc<View>) {
    let mut open: BTreeSet<u16> = BTreeSet::new();
    loop {
        // Registered before the look, so that a swap in between is not missed.
        let swapped = view.live.swapped.notified();
        let wanted: BTreeSet<u16> = {
            let live = view.live.load();
            let gateway = live.gateway.as_ref();
            gateway.map(|gateway| gateway.routes.keys().copied().collect()).unwrap_or_default()
        };
        let draining = *view.status.draining.borrow();
        for port in open.difference(&wanted).copied().collect::<Vec<_>>() {
            tracing::info!(port, "gateway port closed");
            open.remove(&port);
            for commands in &view.commands {
                tell(commands, Command::Close(port)).await;
            }
        }
        for port in wanted.difference(&open).copied().collect::<Vec<_>>() {
            // A draining gateway takes no new connections.
            if draining {
                continue;
            }
            let address = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
            match shared("gateway port", address, view.commands.len()) {
                Ok((_, sockets)) => {
                    tracing::info!(port, "gateway port open");
                    open.insert(port);
                    for (commands, socket) in view.commands.iter().zip(sockets) {
                        tell(commands, Command::Listen(port, socket, Role::Gateway(port))).await;
                    }
                }
                Err(error) => {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        port,
                        "gateway port not open; trying again"
                    );
                }
            }
        }
        // Ready only when every port is open; a port that is in use is tried again.
        let all = open == wanted;
        view.status.listening.store(all, Relaxed);
        if all || draining {
            swapped.await;
        } else {
            tokio::select! {
                () = swapped => {}
                () = sleep(AGAIN) => {}
            }
        }
    }
}
