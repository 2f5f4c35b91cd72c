//! Verifies that the redirect is in force: opens connections in this namespace and observes where they arrive.
//! Shape: [`Redirect`] in, [`Check`] out: one [`Finding`] per property, in the order of the checks.
//! Rooms: `port` observes arrivals at the proxy's outbound port; `exempt` opens the connections that must bypass it.
//! None of it needs the cooperation of a running proxy.
//! Inbound capture needs a peer on another host, so for it only the rules in force are compared with the settings and with what was written.

mod exempt;
mod port;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;

use self::exempt::LocalListener;
use self::port::OutboundPort;
use crate::{Half, InForce, Redirect, RedirectError, program, routes, rules};

pub(crate) use exempt::probe;

/// Bound on one connection attempt of a probe.
const CONNECT: Duration = Duration::from_secs(2);

const RUN_REDIRECT: &str = "run `weft-proxy redirect` with the same flags";

/// The findings of one check, in the order of the checks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// One per checked property.
    pub findings: Vec<Finding>,
}

impl Check {
    /// Nothing failed, and at least one property was verified.
    pub fn passed(&self) -> bool {
        !self.findings.iter().any(|finding| matches!(finding.outcome, Outcome::Failed { .. }))
            && self.findings.iter().any(|finding| finding.outcome == Outcome::Passed)
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Finding { property, outcome } in &self.findings {
            match outcome {
                Outcome::Passed => writeln!(f, "ok      {property}")?,
                Outcome::Skipped { reason } => writeln!(f, "skipped {property}: {reason}")?,
                Outcome::Failed { reason, next } => writeln!(f, "FAILED  {property}: {reason}; {next}")?,
            }
        }
        Ok(())
    }
}

/// One checked property.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The property, as a sentence that is true when the check passed.
    pub property: String,
    /// Whether it holds.
    pub outcome: Outcome,
}

/// Whether one property holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It holds.
    Passed,
    /// It could not be checked in this environment.
    Skipped {
        /// The reason.
        reason: String,
    },
    /// It does not hold.
    Failed {
        /// The observation.
        reason: String,
        /// The remedy, as an instruction.
        next: String,
    },
}

fn failed(reason: impl Into<String>, next: impl Into<String>) -> Outcome {
    Outcome::Failed { reason: reason.into(), next: next.into() }
}

fn skipped(reason: impl Into<String>) -> Outcome {
    Outcome::Skipped { reason: reason.into() }
}

impl Redirect {
    /// Verifies with probe connections that these settings are in force, with or without a running proxy.
    ///
    /// The probes of [`Redirect::uids`] and [`Redirect::gids`] start the calling program again, as
    /// `PROGRAM redirect --probe ADDRESS`; that sub-command must end in [`run`].
    ///
    /// Errors: only when a probe cannot be set up at all; a failed probe is a [`Finding`].
    pub fn check(&self) -> Result<Check, RedirectError> {
        check(self)
    }
}

/// See [`Redirect::check`].
fn check(redirect: &Redirect) -> Result<Check, RedirectError> {
    let mut findings = Vec::new();
    let mut note = |property: String, outcome: Outcome| findings.push(Finding { property, outcome });

    note("the applied rules, inbound and outbound, match these settings".to_owned(), applied(redirect)?);
    // An exempt process cannot observe capture: every probe below would bypass the proxy.
    if let Some(exemption) = own_exemption(redirect) {
        let next = "run --check as another user or group".to_owned();
        note("this check itself is not exempt".to_owned(), failed(format!("it runs as {exemption}"), next));
        return Ok(Check { findings });
    }

    let outbound = OutboundPort::observe(redirect)?;
    let ipv6 = redirect.ipv6 && routes::loopback_ipv6();
    for range in &redirect.mesh_ranges {
        let property = format!("a connection to the mesh range {range} reaches the proxy");
        if matches!(range, IpNet::V6(_)) && !ipv6 {
            note(property, skipped("no IPv6 on the loopback interface, or switched off"));
            continue;
        }
        let target = SocketAddr::new(last_address(range), 9);
        note(property, outbound.captured(target));
        // A mesh address has no host: a connection that bypasses the proxy must be refused, not routed.
        if let Some(mark) = redirect.mark {
            let property = format!("a connection with the mark {mark:#x} to the mesh range {range} is refused");
            note(property, exempt::refused_with_mark(target, mark)?);
        }
    }
    for address in own_addresses(redirect, ipv6)? {
        let listener = LocalListener::bind(redirect, address)?;
        let property = format!("a connection to this host's own address {address} reaches the proxy");
        note(property, outbound.captured(listener.address));
        if let Some(mark) = redirect.mark {
            let property = format!("a connection with the mark {mark:#x} to {address} bypasses the proxy");
            note(property, listener.reached_with_mark(mark)?);
        }
        for (kind, ids) in [("uid", &redirect.uids), ("gid", &redirect.gids)] {
            for id in ids {
                let property = format!("a connection of {kind} {id} to {address} bypasses the proxy");
                note(property, listener.reached_as(kind, *id)?);
            }
        }
    }
    Ok(Check { findings })
}

/// Compares the table's comment with the comment of these settings. The ports of SSH are those of the table: they were found
/// when it was written, perhaps in another session.
fn applied(redirect: &Redirect) -> Result<Outcome, RedirectError> {
    let same = |table: &str| {
        let found = rules::ssh_ports(table);
        let ssh_ports =
            if redirect.ssh_ports.is_empty() || found.is_empty() { redirect.ssh_ports.clone() } else { found };
        let written = rules::comment(&Redirect { ssh_ports, ..redirect.clone() });
        table.contains(&format!("comment \"{written}\""))
    };
    match program::nft(&["list", "table", "inet", rules::TABLE]) {
        Ok(table) if same(&table) => {
            let InForce { outbound, inbound, .. } = InForce::of(table);
            let broken =
                [("outbound", outbound), ("inbound", inbound)].into_iter().find(|(_, half)| *half != Half::Whole);
            Ok(broken.map_or(Outcome::Passed, |(direction, half)| {
                let what = if half == Half::Gone { "missing" } else { "changed since they were written" };
                failed(format!("the {direction} rules are {what}"), RUN_REDIRECT)
            }))
        }
        Ok(_) => Ok(failed(
            "the table inet weft was written with other settings or by another version",
            "apply again with these flags, or check with the flags that were applied",
        )),
        Err(RedirectError::NotPermitted { detail, .. }) => Ok(skipped(detail)),
        Err(RedirectError::Failed { detail, .. }) => {
            Ok(failed(format!("there is no table inet weft ({detail})"), RUN_REDIRECT))
        }
        Err(error) => Err(error),
    }
}

/// The uid or gid of this process, if it is exempt.
fn own_exemption(redirect: &Redirect) -> Option<String> {
    let uid = rustix::process::geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    if redirect.uids.contains(&uid) {
        return Some(format!("the exempt uid {uid}"));
    }
    redirect.gids.contains(&gid).then(|| format!("the exempt gid {gid}"))
}

/// The last host address of the range, which a service is unlikely to have.
fn last_address(range: &IpNet) -> IpAddr {
    match range {
        // The last address of the range may be a broadcast address.
        IpNet::V4(range) => range.hosts().next_back().unwrap_or(range.addr()).into(),
        IpNet::V6(range) => range.broadcast().into(),
    }
}

#[derive(Deserialize)]
struct Interface {
    #[serde(default)]
    addr_info: Vec<InterfaceAddress>,
}

#[derive(Deserialize)]
struct InterfaceAddress {
    local: Option<IpAddr>,
}

/// One global address of this host per family whose connections are captured, if there is one.
fn own_addresses(redirect: &Redirect, ipv6: bool) -> Result<Vec<IpAddr>, RedirectError> {
    let json = program::ip(&["-j", "address", "show", "up", "scope", "global"])?;
    let interfaces: Vec<Interface> =
        serde_json::from_str(&json).map_err(|source| RedirectError::Unreadable { program: "ip", source })?;
    let addresses: Vec<IpAddr> = interfaces
        .iter()
        .flat_map(|interface| interface.addr_info.iter().filter_map(|info| info.local))
        .filter(|address| !redirect.skip_outbound_ranges.iter().any(|range| range.contains(address)))
        .collect();
    let v4 = addresses.iter().find(|address| address.is_ipv4());
    let v6 = addresses.iter().find(|address| address.is_ipv6() && ipv6);
    Ok(v4.into_iter().chain(v6).copied().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probed_address_is_inside_the_range_and_no_broadcast() {
        for (range, expected) in [
            ("240.0.0.0/4", "255.255.255.254"),
            ("10.0.0.7/32", "10.0.0.7"),
            ("fd77:6566:7400::/48", "fd77:6566:7400:ffff:ffff:ffff:ffff:ffff"),
        ] {
            assert_eq!(last_address(&range.parse().unwrap()), expected.parse::<IpAddr>().unwrap());
        }
    }

    #[test]
    fn only_skipped_findings_prove_nothing() {
        let finding = |outcome| Finding { property: String::new(), outcome };
        assert!(!Check { findings: vec![] }.passed());
        assert!(!Check { findings: vec![finding(skipped("x"))] }.passed());
        assert!(Check { findings: vec![finding(Outcome::Passed), finding(skipped("x"))] }.passed());
        assert!(!Check { findings: vec![finding(Outcome::Passed), finding(failed("x", "y"))] }.passed());
    }
}
