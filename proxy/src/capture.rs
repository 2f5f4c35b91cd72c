//! The self-probe: whether the connections of this host's workload still reach the proxy. After a reboot, or when the rules of the
//! redirection are removed, the proxy would run on without traffic, and the workload would be called and call around it.
//! Shape: [`Capture::watch`] opens a connection without the proxy's mark to the workload's own address, where nothing listens; with
//! a redirection it arrives at the outbound listener, which counts it and closes it. The result is in [`Status::captured`], from
//! which readiness and heartbeats are made.
//! Where the redirection exempts the proxy's user or group instead of its mark, a connection of the proxy's own shows nothing:
//! then the rules count, if they can be read.
//!
//! # Defaults
//! Only for a sidecar with a mark and without `forward`, unless `spec.expectRedirect` says otherwise. Every 10 s, for at most
//! 1 s; after a failure every second. Two failures in a row count, at the start one.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};
use weft_redirect::Redirect;

use crate::{
    config::{Mode, Settings},
    control_plane::dial,
    status::{SelfProbe, Status},
};

/// Between probes.
const INTERVAL: Duration = Duration::from_secs(10);
/// Between probes after a failure, and the longest time for one.
const AGAIN: Duration = Duration::from_secs(1);
/// How often the arrival of a probe is looked for.
const LOOK: Duration = Duration::from_millis(5);
/// The port of the probe: nothing listens there.
const PORT: u16 = 1;

/// Where a proxy with these settings probes; `None` where no redirection is expected.
pub(crate) fn target(settings: &Settings) -> Option<SocketAddr> {
    let redirected = settings.mode == Mode::Sidecar && settings.mark.is_some() && settings.forward.is_empty();
    let expected = settings.expect_redirect.unwrap_or(redirected);
    // An address of another machine, such as one behind NAT, would send the probe there.
    let own = |address: &&IpAddr| !address.is_loopback() && is_local(**address);
    let address = settings.workload.addresses.iter().find(own).filter(|_| expected)?;
    Some(SocketAddr::new(*address, PORT))
}

/// Whether the kernel would send from an address to itself. No packet is sent.
fn is_local(address: IpAddr) -> bool {
    let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let from = UdpSocket::bind(any).and_then(|socket| {
        socket.connect(SocketAddr::new(address, PORT))?;
        socket.local_addr()
    });
    from.is_ok_and(|from| from.ip() == address)
}

/// The probe of a running proxy.
pub(crate) struct Capture {
    pub(crate) probe: Arc<SelfProbe>,
    pub(crate) status: Arc<Status>,
}

impl Capture {
    /// Probes for ever.
    pub(crate) async fn watch(self) {
        let Some(target) = self.probe.target else { return };
        let mut failures = 0;
        loop {
            let arrived = self.arrives(target).await || exempt().await;
            failures = if arrived { 0 } else { failures + 1 };
            let before = *self.status.captured.borrow();
            if arrived || failures > 1 || before.is_none() {
                self.status.captured.send_if_modified(|captured| captured.replace(arrived) != Some(arrived));
            }
            match (before, *self.status.captured.borrow()) {
                (None | Some(true), Some(false)) => tracing::warn!(
                    "nothing is redirected to this proxy: the workload is reached and calls without it; run weft-proxy redirect"
                ),
                (Some(false), Some(true)) => tracing::info!("connections of this host are redirected to the proxy"),
                _ => {}
            }
            sleep(if arrived { INTERVAL } else { AGAIN }).await;
        }
    }

    /// Whether one connection reaches the outbound listener.
    async fn arrives(&self, target: SocketAddr) -> bool {
        let before = self.probe.arrived();
        let connecting = timeout(AGAIN, dial(target, None)).await;
        let Ok(Ok(_stream)) = connecting else { return false };
        let until = Instant::now() + AGAIN;
        while self.probe.arrived() == before {
            if Instant::now() >= until {
                return false;
            }
            sleep(LOOK).await;
        }
        true
    }
}

/// Whether the rules exempt this process's user or group, so that no connection of its own is captured.
async fn exempt() -> bool {
    matches!(tokio::task::spawn_blocking(Redirect::exempts_this_process).await, Ok(Ok(true)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Overrides;

    fn settings(more: &str) -> Settings {
        let text = format!(
            "apiVersion: weft.dev/v1alpha1\nkind: ProxyConfig\nmetadata: {{name: a, namespace: shop}}\n\
             spec: {{mode: sidecar, workload: {{addresses: [192.0.2.1, 127.0.0.1]}}, {more}}}\n"
        );
        Settings::parse(&text, &Overrides::default()).unwrap()
    }

    /// (19)
    #[tokio::test(start_paused = true)]
    async fn a_probe_that_does_not_arrive_says_that_nothing_is_redirected() {
        assert_eq!(target(&settings("mark: 1")), None, "neither address is one to probe");
        assert!(is_local([127, 0, 0, 1].into()) && !is_local([192, 0, 2, 1].into()));
        // Nothing listens there: the connection is refused. Nor do rules exempt this process.
        let probe = Arc::new(SelfProbe::new(Some(([127, 0, 0, 1], 1).into())));
        let status = Arc::<Status>::default();
        let watching = tokio::spawn(Capture { probe, status: status.clone() }.watch());
        let mut captured = status.captured.subscribe();
        captured.changed().await.unwrap();
        assert_eq!(*captured.borrow(), Some(false));
        watching.abort();
    }
}
