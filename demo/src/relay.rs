//! A small relay: connections to an address of this machine go to the gateway in its namespace, byte for byte.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};
use tokio::{io::copy_bidirectional, net::TcpListener, task::JoinHandle, time::sleep};

use crate::netns::Inside;

/// A running relay; it ends when dropped.
#[derive(Debug)]
pub(crate) struct Relay {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    task: JoinHandle<()>,
}

impl Relay {
    /// Listens at the first of these addresses that is free (port 0 picks one) and connects to `to` from `inside`.
    ///
    /// Errors: none of the addresses can be had.
    pub(crate) async fn start(listen: &[SocketAddr], inside: Inside, to: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(listen).await.with_context(|| format!("listen on {listen:?} (--edge)"))?;
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
