//! Whether the connections of this host's workload, and those to it, still reach the proxy. After a reboot, or when the rules of
//! the redirection are removed, the proxy would run on without traffic, and the workload would be called and call around it.
//! Shape: [`Capture::watch`] opens a connection without the proxy's mark to the workload's own address, of each family, where
//! nothing listens; with a redirection it arrives at the outbound listener, which counts it and closes it. No connection of this
//! host passes the inbound rules, so these are read, and compared with what was written (docs/adr/0040). The result is in
//! [`Status::captured`], from which readiness, metrics and heartbeats are made.
//! Where the redirection exempts the proxy's user or group, or the address, a connection of the proxy's own shows nothing: then
//! only the rules count.
//!
//! # Defaults
//! Only for a sidecar with a mark and without `forward`, unless `spec.expectRedirect` says otherwise. Every 10 s, each connection
//! for at most 1 s; after a failure every second. Two failures in a row count, at the start one.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};
use weft_redirect::{Half, InForce, RedirectError};

use crate::{
    config::{Mode, Settings},
    control_plane::dial,
    status::{Captured, Redirected, SelfProbe, Status},
};

/// Between probes.
const INTERVAL: Duration = Duration::from_secs(10);
/// Between probes after a failure, and the longest time for one.
const AGAIN: Duration = Duration::from_secs(1);
/// How often the arrival of a probe is looked for.
const LOOK: Duration = Duration::from_millis(5);
/// The port of the probe: nothing listens there.
const PORT: u16 = 1;

/// Whether connections must be redirected to a proxy with these settings.
pub(crate) fn expected(settings: &Settings) -> bool {
    let redirected = settings.mode == Mode::Sidecar && settings.mark.is_some() && settings.forward.is_empty();
    settings.expect_redirect.unwrap_or(redirected)
}

/// Where a proxy with these settings probes: one address of each family. Empty where no redirection is expected.
pub(crate) fn targets(settings: &Settings) -> Vec<SocketAddr> {
    if !expected(settings) {
        return Vec::new();
    }
    // An address of another machine, such as one behind NAT, would send the probe there.
    let own = |address: &&IpAddr| !address.is_loopback() && is_local(**address);
    let of = |ipv6| settings.workload.addresses.iter().filter(own).find(|address| address.is_ipv6() == ipv6);
    [false, true].into_iter().filter_map(of).map(|address| SocketAddr::new(*address, PORT)).collect()
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
    /// Looks for ever.
    pub(crate) async fn watch(self) {
        let (mut failures, mut unread) = (0, false);
        loop {
            let rules = rules().await;
            if let Err(error) = &rules
                && !std::mem::replace(&mut unread, true)
            {
                let error = error as &dyn std::error::Error;
                tracing::warn!(
                    error,
                    "the rules of the redirection cannot be read: nothing shows whether inbound is redirected"
                );
            }
            let before = *self.status.captured.borrow();
            let found = self.look(rules.ok(), before.inbound).await;
            let faults = found.faults();
            failures = if faults.is_empty() { 0 } else { failures + 1 };
            if failures != 1 || before == Captured::default() {
                self.status.captured.send_if_modified(|captured| std::mem::replace(captured, found) != found);
                if before != found && !faults.is_empty() {
                    tracing::warn!(reason = faults.join("; "), "the workload is reached or calls without the proxy");
                } else if before != found && !before.faults().is_empty() {
                    tracing::info!("connections of this host are redirected to the proxy");
                }
            }
            sleep(if faults.is_empty() { INTERVAL } else { AGAIN }).await;
        }
    }

    /// What connections of the proxy and these rules show: `None` if the rules cannot be read, `Some(None)` without a table of ours.
    /// `before`: what was known of inbound.
    async fn look(&self, rules: Option<Option<InForce>>, before: Redirected) -> Captured {
        let (mut arrived, mut lost) = (0, Vec::new());
        for target in self.probe.targets() {
            // Only rules that are as they were written may say that a probe need not arrive.
            let written = rules.iter().flatten().find(|rules| rules.outbound == Half::Whole);
            if written.is_some_and(|rules| rules.exempts_this_process(target.ip())) {
                continue;
            }
            if self.arrives(target).await { arrived += 1 } else { lost.push(target) }
        }
        let half = |half| match half {
            Half::Whole => Redirected::Yes,
            Half::Changed => Redirected::Changed,
            Half::Gone => Redirected::No,
        };
        let outbound = match (lost.as_slice(), &rules) {
            ([one], _) if arrived > 0 && one.is_ipv6() => Redirected::NotIpv6,
            ([_], _) if arrived > 0 => Redirected::NotIpv4,
            ([_, ..], _) => Redirected::No,
            ([], Some(Some(rules))) => half(rules.outbound),
            // Rules of another program capture, and nothing shows whether inbound too.
            ([], _) if arrived > 0 => Redirected::Yes,
            // No own address to probe.
            ([], Some(None) | None) => Redirected::Unknown,
        };
        let inbound = match rules {
            Some(Some(rules)) => half(rules.inbound),
            Some(None) if outbound == Redirected::No => Redirected::No,
            // A failure to read takes nothing back that is known to be missing.
            None if before.known() == Some(false) => before,
            Some(None) | None => Redirected::Unknown,
        };
        Captured { outbound, inbound }
    }

    /// Whether one connection reaches the outbound listener.
    async fn arrives(&self, target: SocketAddr) -> bool {
        let before = self.probe.arrived(target);
        let connecting = timeout(AGAIN, dial(target, None)).await;
        let Ok(Ok(_stream)) = connecting else { return false };
        let until = Instant::now() + AGAIN;
        while self.probe.arrived(target) == before {
            if Instant::now() >= until {
                return false;
            }
            sleep(LOOK).await;
        }
        true
    }
}

/// The rules in force; `None` if there is no table of ours.
async fn rules() -> Result<Option<InForce>, RedirectError> {
    // It fails only while the proxy stops.
    tokio::task::spawn_blocking(InForce::read).await.unwrap_or(Ok(None))
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
        assert_eq!(targets(&settings("mark: 1")), [], "neither address is one to probe");
        assert!(is_local([127, 0, 0, 1].into()) && !is_local([192, 0, 2, 1].into()));
        // Nothing listens there: the connection is refused. Nor do rules exempt this process.
        let probe = Arc::new(SelfProbe::new(vec![([127, 0, 0, 1], 1).into()]));
        let status = Arc::<Status>::default();
        let watching = tokio::spawn(Capture { probe, status: status.clone() }.watch());
        let mut captured = status.captured.subscribe();
        captured.changed().await.unwrap();
        assert_eq!(captured.borrow().faults(), ["nothing is redirected to the proxy: run weft-proxy redirect"]);
        watching.abort();
    }
}
