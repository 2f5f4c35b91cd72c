//! Whether the rules in force are those that were written: the table is listed, and each half compared with its hash in the
//! table's comment (docs/adr/0040). This shows what no connection of this host can: that connections from others are captured.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::{
    RedirectError,
    listed::{self, Direction},
    program, rules,
};

/// The rules in force in this network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InForce {
    /// The rules for connections of this host.
    pub outbound: Half,
    /// The rules for connections to this host.
    pub inbound: Half,
    table: String,
}

/// The state of one half of the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// As `weft-proxy redirect` wrote it.
    Whole,
    /// Some rule was added, removed or changed since.
    Changed,
    /// Nothing is captured by it.
    Gone,
}

impl InForce {
    /// Reads the rules with `nft`; `None` if there is no table of ours.
    ///
    /// Errors: `nft` is missing or fails, or this process is not permitted to read them; blocking, milliseconds.
    pub fn read() -> Result<Option<Self>, RedirectError> {
        match program::nft(&["list", "table", "inet", rules::TABLE]) {
            Ok(table) => Ok(Some(Self::of(table))),
            Err(RedirectError::Failed { detail, .. }) if detail.contains("No such file") => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn of(table: String) -> Self {
        let hashes = rules::comment_in(&table).and_then(|comment| comment.get(..16)).unwrap_or_default();
        let half = |direction, hash: Option<&str>| {
            if !listed::redirects(&table, direction) {
                Half::Gone
            } else if hash == Some(&listed::hash(&table, direction)) {
                Half::Whole
            } else {
                Half::Changed
            }
        };
        let (outbound, inbound) =
            (half(Direction::Outbound, hashes.get(..8)), half(Direction::Inbound, hashes.get(8..)));
        Self { outbound, inbound, table }
    }

    /// Whether these rules let a connection of this process to one of its own addresses pass the proxy: its user or group, or the
    /// address, is exempt, or its family is not captured.
    pub fn exempts_this_process(&self, address: IpAddr) -> bool {
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        rules::exempts(&self.table, uid, gid) || self.lets_pass(address)
    }

    fn lets_pass(&self, address: IpAddr) -> bool {
        let (ipv6, family) = (address.is_ipv6(), if address.is_ipv6() { "ip6 daddr " } else { "ip daddr " });
        listed::chain(&self.table, "outbound").any(|rule| {
            let ranges = rule.strip_prefix(family).and_then(|rest| rest.strip_suffix(" return")).unwrap_or_default();
            let contains = |range: &str| match (range.parse::<IpNet>(), range.parse::<IpAddr>()) {
                (Ok(range), _) => range.contains(&address),
                (_, Ok(one)) => one == address,
                _ => false,
            };
            (ipv6 && rule == "meta nfproto ipv6 return") || ranges.split(", ").any(contains)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Redirect;

    /// (27.3)
    #[test]
    fn each_half_is_judged_by_its_own_rules() {
        let written = Redirect { skip_inbound_ports: vec![9100], ..Redirect::default() }.rules();
        let state = |table: &str| {
            let rules = InForce::of(table.to_owned());
            (rules.outbound, rules.inbound)
        };
        assert_eq!(state(&written), (Half::Whole, Half::Whole));
        let to_inbound = "\t\tmeta l4proto tcp redirect to :15006\n";
        let first = |chain: &str| format!("chain {chain} {{\n");
        let added = |chain: &str| written.replace(&first(chain), &(first(chain) + "\t\ttcp dport 8080 return\n"));
        for (table, state_of_it) in [
            (written.replace(to_inbound, ""), (Half::Whole, Half::Gone)),
            (written.replace("\t\ttcp dport { 9100 } return\n", ""), (Half::Whole, Half::Changed)),
            (added("inbound"), (Half::Whole, Half::Changed)),
            (added("outbound"), (Half::Changed, Half::Whole)),
            (added("guard_output"), (Half::Changed, Half::Whole)),
            (added("guard_input"), (Half::Whole, Half::Changed)),
            (written.replace(to_inbound, &format!("{to_inbound}\t\taccept\n")), (Half::Whole, Half::Gone)),
            (
                written.replace("hook prerouting priority -100", "hook prerouting priority 7"),
                (Half::Whole, Half::Changed),
            ),
            (written.replace("\tcomment", "\tflags dormant\n\tcomment"), (Half::Gone, Half::Gone)),
            (written.replace("weft-proxy redirect ", "of others "), (Half::Changed, Half::Changed)),
            (String::new(), (Half::Gone, Half::Gone)),
        ] {
            assert_eq!(state(&table), state_of_it, "{table}");
        }
    }

    /// (27.3)
    #[test]
    fn a_form_of_nft_that_is_not_known_here_counts_as_written() {
        let script = Redirect::default().rules();
        let listed = script.replace("redirect to :", "redirect  to  : ");
        assert_eq!(rules::as_listed(&script, &script), None);
        let again = rules::as_listed(&script, &listed).unwrap();
        let comment = |script: &str| rules::comment_in(script).unwrap().to_owned();
        let table = listed.replace(&comment(&script), &comment(&again));
        assert_ne!(comment(&script), comment(&again));
        assert_eq!(rules::as_listed(&again, &table), None);
    }

    #[test]
    fn an_address_that_the_rules_leave_out_is_not_captured() {
        let redirect = Redirect {
            skip_outbound_ranges: vec!["10.0.0.0/8".parse().unwrap(), "192.0.2.7/32".parse().unwrap()],
            ..Redirect::default()
        };
        let exempt =
            |redirect: &Redirect, address: &str| InForce::of(redirect.rules()).lets_pass(address.parse().unwrap());
        for (address, passes) in [("10.1.2.3", true), ("192.0.2.7", true), ("192.0.2.8", false), ("fd00::1", false)] {
            assert_eq!(exempt(&redirect, address), passes, "{address}");
        }
        let without_ipv6 = Redirect { ipv6: false, ..redirect };
        assert!(exempt(&without_ipv6, "fd00::1") && !exempt(&without_ipv6, "192.0.2.8"));
    }
}
