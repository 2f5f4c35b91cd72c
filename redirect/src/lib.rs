//! Sends a workload's TCP connections to its proxy with nftables rules, and takes that back.
//! Shape: [`Redirect`] (settings) -> `rules()` (one nftables script) -> `apply` / `remove` / `check`.
//! It works in the network namespace of the calling thread: table `inet weft`, and local routes with protocol 119.
//! Rooms: `rules` (pure text), `routes` and `program` (`ip`, `nft`), `check` (probe connections), `args` (flags),
//! [`original_dst`] (the two socket options on which proxy and rules agree).
//! Invariants: the table is replaced in one netfilter transaction; the proxy's own ports and exempt connections are
//! never captured; an address of a mesh range reaches the proxy or is refused, and never reaches another listener of
//! this host. The crate knows nothing of the proxy (docs/adr/0022).

mod args;
mod check;
mod error;
pub mod original_dst;
mod program;
mod routes;
mod rules;

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;

use ipnet::IpNet;

pub use args::{RedirectArgs, run};
pub use check::{Check, Finding, Outcome};
pub use error::RedirectError;

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
    /// Ports 15001 and 15006, own ports 15000 and 15020, mark `0x77656674`, no uid or gid, nothing skipped,
    /// mesh ranges `240.0.0.0/4` and `fd77:6566:7400::/48`, IPv6 on.
    fn default() -> Self {
        Self {
            outbound_port: NonZeroU16::MIN.saturating_add(15_000),
            inbound_port: NonZeroU16::MIN.saturating_add(15_005),
            own_ports: vec![15_000, 15_020],
            uids: Vec::new(),
            gids: Vec::new(),
            mark: Some(DEFAULT_MARK),
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

/// The routes after `apply`, or those that `remove` removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Local routes now present (`apply`), or removed (`remove`).
    pub routes: Vec<IpNet>,
    /// Whether the loopback interface has an IPv6 address; without it the IPv6 mesh ranges get no route.
    pub loopback_ipv6: bool,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let routes: Vec<String> = self.routes.iter().map(ToString::to_string).collect();
        write!(f, "table inet weft, local routes [{}]", routes.join(", "))
    }
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

    /// The nftables script, as `nft -f -` takes it. Pure: same settings, same text.
    pub fn rules(&self) -> String {
        rules::script(self)
    }

    /// Writes the rules and the routes, replacing those of an earlier `apply`. Brings the loopback interface up.
    ///
    /// Connections already open are not affected. After a failure half way, mesh addresses are refused rather than
    /// delivered elsewhere (rules come before routes): apply again, or call [`Redirect::remove`].
    ///
    /// Errors: [`RedirectError`]; blocking, milliseconds.
    pub fn apply(&self) -> Result<Report, RedirectError> {
        program::ip(&["link", "set", "lo", "up"])?;
        program::nft_script(&self.rules())?;
        let loopback_ipv6 = routes::loopback_ipv6();
        let wanted: Vec<IpNet> = self
            .mesh_ranges
            .iter()
            .map(IpNet::trunc)
            .filter(|range| matches!(range, IpNet::V4(_)) || (self.ipv6 && loopback_ipv6))
            .collect();
        routes::replace_all(&wanted, loopback_ipv6)?;
        Ok(Report { routes: wanted, loopback_ipv6 })
    }

    /// Removes everything that `apply` wrote, also after an incomplete `apply`, also when nothing is there.
    ///
    /// Errors: [`RedirectError`]; the table is removed even when the routes cannot be.
    pub fn remove() -> Result<Report, RedirectError> {
        let loopback_ipv6 = routes::loopback_ipv6();
        let routes = routes::remove_all(loopback_ipv6);
        program::nft_script(&rules::removal())?;
        Ok(Report { routes: routes?, loopback_ipv6 })
    }

    /// Verifies with probe connections that these settings are in force, with or without a running proxy.
    ///
    /// The probes of [`Redirect::uids`] and [`Redirect::gids`] start the calling program again, as
    /// `PROGRAM redirect --probe ADDRESS`; that sub-command must end in [`run`].
    ///
    /// Errors: only when a probe cannot be set up at all; a failed probe is a [`Finding`].
    pub fn check(&self) -> Result<Check, RedirectError> {
        check::check(self)
    }
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
