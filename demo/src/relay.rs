//! A small relay: connections to an address of this machine go to the gateway in its namespace, byte for byte.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::{io::copy_bidirectional, net::TcpListener, task::JoinHandle, time::sleep};

use crate::netns::Inside;

/// Default address of the edge on this machine.
const EDGE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8888);

/// A running relay; it ends when dropped.
#[derive(Debug)]
pub(crate) struct Relay {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    task: JoinHandle<()>,
}

impl Relay {
    /// Listens at `edge` (port 0 picks one). Without it at [`EDGE`], or at a free port of the same address if that one is
    /// in use or when the demo checks. Connections wait in the backlog until [`Relay::start`].
    ///
    /// Errors: the address cannot be had.
    pub(crate) async fn listen(edge: Option<SocketAddr>, check: bool) -> Result<TcpListener> {
        let any = SocketAddr::new(EDGE.ip(), 0);
        let addresses = match edge {
            Some(edge) => vec![edge],
            None if check => vec![any],
            None => vec![EDGE, any],
        };
        TcpListener::bind(addresses.as_slice()).await.with_context(|| {
            let edge = edge.unwrap_or(any);
            format!("--edge {edge}: cannot listen there; give a free port of an address of this machine, or none")
        })
    }

    /// Connects what `listener` accepts to `to` from `inside`.
    ///
    /// Errors: the listener has no address.
    pub(crate) fn start(listener: TcpListener, inside: Inside, to: SocketAddr) -> Result<Self> {
        let address = listener.local_addr().context("the relay's address")?;
        let task = tokio::spawn(async move {
            loop {
                let Ok((mut outer, _)) = listener.accept().await else {
                    // Out of files, say: not at once again.
                    sleep(Duration::from_millis(20)).await;
                    continue;
                };
                let inside = inside.clone();
                tokio::spawn(async move {
                    // An error ends the connection, which is all that its two ends can see of it.
                    if outer.set_nodelay(true).is_ok()
                        && let Ok(mut inner) = inside.connect(to).await
                    {
                        copy_bidirectional(&mut outer, &mut inner).await.ok();
                    }
                });
            }
        });
        Ok(Self { address, task })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (27)
    #[tokio::test]
    async fn an_edge_that_is_taken_or_elsewhere_is_refused_by_name_and_the_default_gives_way() {
        let first = Relay::listen(None, true).await.unwrap();
        let taken = first.local_addr().unwrap();
        for edge in [taken, "192.0.2.1:8888".parse().unwrap()] {
            let error = Relay::listen(Some(edge), false).await.unwrap_err();
            assert!(format!("{error:#}").starts_with(&format!("--edge {edge}: cannot listen there")), "{error:#}");
        }
        let one = Relay::listen(None, false).await.unwrap();
        let other = Relay::listen(None, false).await.unwrap();
        assert_ne!(one.local_addr().unwrap(), other.local_addr().unwrap());
        assert_ne!(other.local_addr().unwrap(), EDGE);
    }
}
