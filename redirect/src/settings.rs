//! The settings of a redirect: which connections are captured, and which are exempt.

use std::net::IpAddr;
use std::num::NonZeroU16;

use ipnet::IpNet;

/// The mark on the proxy's own connections: "weft" in ASCII.
pub const DEFAULT_MARK: u32 = 0x7765_6674;

/// Which connections are captured and which bypass the proxy. See [`Redirect::default`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// Port of the proxy that receives the workload's outgoing connections.
    pub outbound_port: NonZeroU16,
    /// Port of the proxy that receives connections to the workload.
    pub inbound_port: NonZeroU16,
    /// Other ports of the proxy on this host, never captured (admin, metrics).
    pub own_ports: Vec<u16>,
    /// Connections opened by these users are not captured.
    pub uids: Vec<u32>,
    /// Connections opened by these groups are not captured.
    pub gids: Vec<u32>,
    /// Connections with this `SO_MARK` are not captured.
    pub mark: Option<u32>,
    /// Ports of SSH on this host, which peers reach without the proxy, so that a machine is never locked out. Empty captures
    /// them too.
    pub ssh_ports: Vec<u16>,
    /// Ports of this host that peers reach without the proxy.
    pub skip_inbound_ports: Vec<u16>,
    /// Destination ports, on any host, that the workload reaches without the proxy. Not applied to mesh ranges.
    pub skip_outbound_ports: Vec<u16>,
    /// Destinations that the workload reaches without the proxy. Not applied to mesh ranges.
    pub skip_outbound_ranges: Vec<IpNet>,
    /// Addresses that exist only in the mesh: always captured, each with a local route.
    pub mesh_ranges: Vec<IpNet>,
    /// Whether IPv6 is captured.
    pub ipv6: bool,
}

impl Default for Redirect {
    /// # Defaults
    /// Ports 15001 and 15006, own ports 15000 and 15020, mark `0x77656674`, no uid or gid, nothing skipped
    /// but SSH on port 22, mesh ranges `240.0.0.0/4` and `fd77:6566:7400::/48`, IPv6 on.
    fn default() -> Self {
        Self {
            outbound_port: NonZeroU16::MIN.saturating_add(15_000),
            inbound_port: NonZeroU16::MIN.saturating_add(15_005),
            own_ports: vec![15_000, 15_020],
            uids: Vec::new(),
            gids: Vec::new(),
            mark: Some(DEFAULT_MARK),
            ssh_ports: vec![crate::ssh::PORT],
            skip_inbound_ports: Vec::new(),
            skip_outbound_ports: Vec::new(),
            skip_outbound_ranges: Vec::new(),
            mesh_ranges: default_mesh_ranges(),
            ipv6: true,
        }
    }
}

/// `240.0.0.0/4` and `fd77:6566:7400::/48`.
fn default_mesh_ranges() -> Vec<IpNet> {
    let v4 = IpNet::new_assert([240, 0, 0, 0].into(), 4);
    let v6 = IpNet::new_assert([0xfd77, 0x6566, 0x7400, 0, 0, 0, 0, 0].into(), 48);
    vec![v4, v6]
}

impl Redirect {
    /// Every mistake in the settings, one sentence each; empty when they can be applied.
    pub fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        if self.outbound_port == self.inbound_port {
            mistakes.push(format!("the outbound and the inbound port are both {}", self.outbound_port));
        }
        if self.uids.is_empty() && self.gids.is_empty() && self.mark.is_none() {
            mistakes.push(
                "nothing is exempt: without a mark, uid or gid the proxy captures its own connections".to_owned(),
            );
        }
        if self.mark == Some(0) {
            mistakes.push("the mark 0 exempts every connection: choose another".to_owned());
        }
        for port in [self.outbound_port.get(), self.inbound_port.get()] {
            if self.own_ports.contains(&port) {
                mistakes.push(format!("port {port} is both a capture port and another port of the proxy"));
            }
        }
        for range in &self.mesh_ranges {
            let loopback = match range {
                IpNet::V4(_) => IpAddr::from([127, 0, 0, 1]),
                IpNet::V6(_) => IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]),
            };
            if range.contains(&loopback) {
                mistakes.push(format!("the mesh range {range} contains {loopback}"));
            }
        }
        mistakes
    }

    /// What is not captured, one sentence for each direction, for people.
    pub fn not_captured(&self) -> Vec<String> {
        let mut own = self.own_ports.clone();
        own.extend([self.outbound_port.get(), self.inbound_port.get()]);
        own.sort_unstable();
        let mut inbound = Vec::new();
        inbound.extend(list("port", &self.ssh_ports).map(|ports| format!("{ports} (ssh; --capture-ssh captures it)")));
        inbound.extend(list("port", &self.skip_inbound_ports).map(|ports| format!("{ports} (--skip-inbound-ports)")));
        inbound.extend(list("port", &own).map(|ports| format!("{ports} (the proxy's own)")));
        let mut outbound = vec!["loopback".to_owned()];
        outbound.extend(self.mark.map(|mark| format!("the mark {mark:#x}")));
        outbound.extend(list("user", &self.uids));
        outbound.extend(list("group", &self.gids));
        outbound.extend(list("port", &self.skip_outbound_ports));
        outbound.extend(list("range", &self.skip_outbound_ranges));
        let mut both = vec!["connections that are open already", "UDP"];
        both.extend((!self.ipv6).then_some("IPv6"));
        [("inbound", inbound.join(", ")), ("outbound", outbound.join(", ")), ("in either direction", both.join(", "))]
            .map(|(direction, what)| format!("not captured {direction}: {what}"))
            .into()
    }
}

/// `port 22`, `ports 22, 2222`; nothing for none.
fn list<T: ToString>(noun: &str, values: &[T]) -> Option<String> {
    let texts: Vec<String> = values.iter().map(ToString::to_string).collect();
    let plural = if texts.len() == 1 { "" } else { "s" };
    (!texts.is_empty()).then(|| format!("{noun}{plural} {}", texts.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_settings_are_the_documented_ones_and_have_no_mistake() {
        let redirect = Redirect::default();
        assert_eq!((redirect.outbound_port.get(), redirect.inbound_port.get()), (15_001, 15_006));
        assert_eq!(redirect.mesh_ranges[0].to_string(), "240.0.0.0/4");
        assert_eq!(redirect.mesh_ranges[1].to_string(), "fd77:6566:7400::/48");
        assert_eq!(redirect.mistakes(), Vec::<String>::new());
    }

    /// (16)
    #[test]
    fn what_is_not_captured_is_told() {
        let told = Redirect {
            ssh_ports: vec![22, 2222],
            skip_inbound_ports: vec![9000],
            uids: vec![1337],
            skip_outbound_ranges: vec!["10.0.0.0/8".parse().unwrap()],
            ipv6: false,
            ..Redirect::default()
        }
        .not_captured();
        assert_eq!(
            told,
            [
                "not captured inbound: ports 22, 2222 (ssh; --capture-ssh captures it), port 9000 (--skip-inbound-ports), \
                 ports 15000, 15001, 15006, 15020 (the proxy's own)",
                "not captured outbound: loopback, the mark 0x77656674, user 1337, range 10.0.0.0/8",
                "not captured in either direction: connections that are open already, UDP, IPv6",
            ]
        );
        let captured = Redirect { ssh_ports: vec![], ..Redirect::default() }.not_captured();
        assert!(!captured.iter().any(|line| line.contains("ssh")), "{captured:?}");
    }

    #[test]
    fn every_mistake_is_named_at_once() {
        let redirect = Redirect {
            inbound_port: Redirect::default().outbound_port,
            mark: None,
            own_ports: vec![15_001],
            mesh_ranges: vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()],
            ..Redirect::default()
        };
        let mistakes = redirect.mistakes();
        assert_eq!(mistakes.len(), 6, "{mistakes:?}");
        assert!(Redirect { mark: Some(0), ..Redirect::default() }.mistakes()[0].contains("mark 0"));
    }
}
