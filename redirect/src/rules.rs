//! The nftables script: settings in, text out. No IO.
//! Two NAT chains capture connections (`outbound` in the output hook, `inbound` in prerouting), two filter chains
//! guard the mesh ranges: their local route would otherwise deliver an uncaptured packet to any listener of this host.
//! The table's comment carries a hash of each half of the rules, by which `check` sees whether these settings are applied and
//! `in_force` whether the rules are still as they were written, and the ports of SSH that were found when they were. A second table, empty, exists while an undo is pending.

use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::{
    Redirect,
    listed::{Direction, hash},
};

/// Name of the table, in family `inet`.
pub(crate) const TABLE: &str = "weft";
/// Name of the table that exists while the rules are not confirmed. Its comment names the process that will undo them.
pub(crate) const UNCONFIRMED: &str = "weft_unconfirmed";

impl Redirect {
    /// The nftables script, as `nft -f -` takes it. Pure: same settings, same text.
    pub fn rules(&self) -> String {
        script(self)
    }
}

/// The whole script: removes the old tables and creates the new one in one transaction.
fn script(redirect: &Redirect) -> String {
    let chains = chains(redirect);
    format!("{}table inet {TABLE} {{\n\tcomment \"{}\"\n{chains}}}\n", removal(), comment_of(redirect, &chains))
}

/// Appended to the script: from now on the rules are not confirmed, and `who` may undo them.
pub(crate) fn unconfirmed(who: &str) -> String {
    format!("table inet {UNCONFIRMED} {{\n\tcomment \"{who}\"\n}}\n")
}

/// Removes both tables.
pub(crate) fn removal() -> String {
    format!("{}{}", removal_of(UNCONFIRMED), removal_of(TABLE))
}

/// Removes the rules if the table with this handle still exists; otherwise the transaction fails and changes nothing.
pub(crate) fn removal_if(handle: u64) -> String {
    format!("delete table inet handle {handle}\n{}", removal_of(TABLE))
}

/// The first line creates the table, because deleting a missing one is an error.
fn removal_of(table: &str) -> String {
    format!("table inet {table}\ndelete table inet {table}\n")
}

/// The table's comment when these settings are applied.
pub(crate) fn comment(redirect: &Redirect) -> String {
    comment_of(redirect, &chains(redirect))
}

/// A script whose comment has the hashes of the rules as they are listed; `None` if it has them already.
pub(crate) fn as_listed(script: &str, listed: &str) -> Option<String> {
    let (written, hashes) = (comment_in(script)?.get(..16)?, hashes(listed));
    (written != hashes).then(|| script.replacen(written, &hashes, 1))
}

fn hashes(chains: &str) -> String {
    hash(chains, Direction::Outbound) + &hash(chains, Direction::Inbound)
}

fn comment_of(redirect: &Redirect, chains: &str) -> String {
    let hash = hashes(chains);
    let ssh: Vec<String> = redirect.ssh_ports.iter().map(ToString::to_string).collect();
    let ssh = if ssh.is_empty() { String::new() } else { format!(" ssh {}", ssh.join(",")) };
    format!("weft-proxy redirect {hash}{ssh}")
}

/// What follows the program's name in the comment of a listed table.
pub(crate) fn comment_in(table: &str) -> Option<&str> {
    let comment = table.lines().find_map(|line| line.trim().strip_prefix("comment \"weft-proxy redirect "))?;
    Some(comment.trim_end_matches('"'))
}

/// The ports of SSH in the comment of a listed table; empty if SSH is captured.
pub(crate) fn ssh_ports(table: &str) -> Vec<u16> {
    let ports = comment_in(table).and_then(|comment| comment.split_once(" ssh ")).map(|(_, ports)| ports);
    ports.into_iter().flat_map(|ports| ports.split(',')).filter_map(|port| port.parse().ok()).collect()
}

/// The ports in a listed table at which peers reach this host without the proxy: those that `inbound` lets pass.
pub(crate) fn skipped_inbound(table: &str) -> Vec<u16> {
    let inbound =
        table.lines().map(str::trim).skip_while(|line| *line != "chain inbound {").take_while(|line| *line != "}");
    let mut ports: Vec<u16> = inbound.flat_map(|line| values(line, "tcp dport ")).collect();
    ports.sort_unstable();
    ports
}

/// Whether a listed table exempts connections of this user or group.
pub(crate) fn exempts(table: &str, uid: u32, gid: u32) -> bool {
    table.lines().map(str::trim).any(|line| {
        values(line, "meta skuid ").any(|exempt: u32| exempt == uid)
            || values(line, "meta skgid ").any(|exempt: u32| exempt == gid)
    })
}

/// The numbers in a rule `<matcher>{ a, b } return`, also as `nft list` prints it: one without braces.
fn values<T: FromStr>(rule: &str, matcher: &str) -> impl Iterator<Item = T> {
    let values = rule.strip_prefix(matcher).and_then(|rest| rest.strip_suffix(" return")).unwrap_or_default();
    values.trim_matches(['{', '}', ' ']).split(',').filter_map(|value| value.trim().parse().ok())
}

/// Only the first segment of a connection (SYN without ACK) is captured. Connection tracking begins with the table: to it,
/// the next segment of a connection that was open before is the first of a new one, and would be sent to the proxy.
const OPEN_ALREADY: &str = "tcp flags & (fin | syn | rst | ack) != syn return";

fn chains(redirect: &Redirect) -> String {
    let (mesh4, mesh6) = by_family(&redirect.mesh_ranges);
    let (skip4, skip6) = by_family(&redirect.skip_outbound_ranges);
    let mut out = String::new();

    // NAT priorities are numbers: nft 1.0 knows the name `dstnat` in prerouting only.
    let mut outbound = Chain::new("outbound", "nat hook output priority -100");
    outbound.rule("meta l4proto != tcp return");
    outbound.rule(OPEN_ALREADY);
    // Exemptions precede every capture rule, or the proxy would capture its own connections.
    if let Some(mark) = redirect.mark {
        outbound.rule(format!("meta mark {mark:#010x} return"));
    }
    outbound.rule_for_each("meta skuid", &redirect.uids, "return");
    outbound.rule_for_each("meta skgid", &redirect.gids, "return");
    if !redirect.ipv6 {
        outbound.rule("meta nfproto ipv6 return");
    }
    // Mesh ranges precede every skip rule: their addresses exist nowhere else.
    let to_proxy = format!("meta l4proto tcp redirect to :{}", redirect.outbound_port);
    outbound.rule_for_each("ip daddr", &mesh4, &to_proxy);
    outbound.rule_for_each("ip6 daddr", &mesh6, &to_proxy);
    outbound.rule("ip daddr 127.0.0.0/8 return");
    outbound.rule("ip6 daddr ::1 return");
    outbound.rule_for_each("fib daddr type local tcp dport", &own_ports(redirect), "return");
    outbound.rule_for_each("tcp dport", &sorted(&redirect.skip_outbound_ports), "return");
    outbound.rule_for_each("ip daddr", &skip4, "return");
    outbound.rule_for_each("ip6 daddr", &skip6, "return");
    outbound.rule(&to_proxy);
    out.push_str(&outbound.end());

    let mut inbound = Chain::new("inbound", "nat hook prerouting priority -100");
    inbound.rule("meta l4proto != tcp return");
    inbound.rule(OPEN_ALREADY);
    inbound.rule("iif lo return");
    if !redirect.ipv6 {
        inbound.rule("meta nfproto ipv6 return");
    }
    inbound.rule("fib daddr type != local return");
    inbound.rule_for_each("tcp dport", &own_ports(redirect), "return");
    inbound.rule_for_each("tcp dport", &sorted(&redirect.ssh_ports), "return");
    inbound.rule_for_each("tcp dport", &sorted(&redirect.skip_inbound_ports), "return");
    inbound.rule(format!("meta l4proto tcp redirect to :{}", redirect.inbound_port));
    out.push_str(&inbound.end());

    // After the output NAT: a packet that still carries a mesh address was not captured.
    let mut guard_output = Chain::new("guard_output", "filter hook output priority 0");
    guard_output.rule_for_each("ip daddr", &mesh4, "meta l4proto tcp reject with tcp reset");
    guard_output.rule_for_each("ip6 daddr", &mesh6, "meta l4proto tcp reject with tcp reset");
    guard_output.rule_for_each("ip daddr", &mesh4, "reject with icmpx admin-prohibited");
    guard_output.rule_for_each("ip6 daddr", &mesh6, "reject with icmpx admin-prohibited");
    out.push_str(&guard_output.end());

    // Before the inbound NAT: no other host may send to a mesh address.
    let mut guard_input = Chain::new("guard_input", "filter hook prerouting priority -110");
    guard_input.rule("iif lo return");
    guard_input.rule_for_each("ip daddr", &mesh4, "drop");
    guard_input.rule_for_each("ip6 daddr", &mesh6, "drop");
    out.push_str(&guard_input.end());
    out
}

/// Text of one chain under construction.
struct Chain(String);

impl Chain {
    fn new(name: &str, hook: &str) -> Self {
        Self(format!("\tchain {name} {{\n\t\ttype {hook}; policy accept;\n"))
    }

    fn rule(&mut self, rule: impl AsRef<str>) {
        self.0.push_str("\t\t");
        self.0.push_str(rule.as_ref());
        self.0.push('\n');
    }

    /// `<matcher> { a, b } <verdict>`; no rule for no values.
    fn rule_for_each<T: ToString>(&mut self, matcher: &str, values: &[T], verdict: &str) {
        if !values.is_empty() {
            let values: Vec<String> = values.iter().map(ToString::to_string).collect();
            self.rule(format!("{matcher} {{ {} }} {verdict}", values.join(", ")));
        }
    }

    fn end(mut self) -> String {
        self.0.push_str("\t}\n");
        self.0
    }
}

/// Every port that the proxy itself listens on.
fn own_ports(redirect: &Redirect) -> Vec<u16> {
    let mut ports = redirect.own_ports.clone();
    ports.extend([redirect.outbound_port.get(), redirect.inbound_port.get()]);
    sorted(&ports)
}

fn sorted(ports: &[u16]) -> Vec<u16> {
    let mut ports = ports.to_vec();
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// The ranges by family, merged and sorted: nft rejects overlapping ranges in one set.
fn by_family(ranges: &[IpNet]) -> (Vec<Ipv4Net>, Vec<Ipv6Net>) {
    let mut families = (Vec::new(), Vec::new());
    for range in IpNet::aggregate(&ranges.to_vec()) {
        match range {
            IpNet::V4(range) => families.0.push(range.trunc()),
            IpNet::V6(range) => families.1.push(range.trunc()),
        }
    }
    families
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The line numbers of the first rule that contains each text.
    fn positions(script: &str, texts: &[&str]) -> Vec<usize> {
        texts
            .iter()
            .map(|text| script.lines().position(|line| line.contains(text)).unwrap_or_else(|| panic!("no {text}")))
            .collect()
    }

    #[test]
    fn exemptions_come_first_and_mesh_ranges_before_anything_that_is_skipped() {
        let redirect = Redirect {
            uids: vec![1337],
            gids: vec![1338],
            skip_outbound_ports: vec![25, 22, 22],
            skip_outbound_ranges: vec!["10.0.0.0/8".parse().unwrap(), "10.1.0.0/16".parse().unwrap()],
            ..Redirect::default()
        };
        let script = redirect.rules();
        let order = positions(
            &script,
            &[
                "meta mark 0x77656674 return",
                "meta skuid { 1337 } return",
                "meta skgid { 1338 } return",
                "ip daddr { 240.0.0.0/4 } meta l4proto tcp redirect to :15001",
                "ip6 daddr { fd77:6566:7400::/48 } meta l4proto tcp redirect to :15001",
                "ip daddr 127.0.0.0/8 return",
                "fib daddr type local tcp dport { 15000, 15001, 15006, 15020 } return",
                "tcp dport { 22, 25 } return",
                "ip daddr { 10.0.0.0/8 } return",
            ],
        );
        assert!(order.is_sorted(), "{order:?}\n{script}");
    }

    #[test]
    fn the_comment_follows_the_settings() {
        let one = Redirect::default();
        let other = Redirect { skip_inbound_ports: vec![22], ..Redirect::default() };
        assert_eq!(comment(&one), comment(&one.clone()));
        assert_ne!(comment(&one), comment(&other));
        assert!(one.rules().contains(&format!("comment \"{}\"", comment(&one))));
    }

    /// Also as `nft list` prints it: one port without braces. (17)
    #[test]
    fn the_ports_that_bypass_the_proxy_are_read_from_the_table() {
        let redirect = Redirect { skip_inbound_ports: vec![9100, 8443], ..Redirect::default() };
        let script = redirect.rules();
        assert_eq!(skipped_inbound(&script), [22, 8443, 9100, 15000, 15001, 15006, 15020]);
        assert_eq!(skipped_inbound(&script.replace("{ 22 }", "22")), [22, 8443, 9100, 15000, 15001, 15006, 15020]);
        let outbound_only =
            Redirect { skip_outbound_ports: vec![25], own_ports: vec![], ssh_ports: vec![], ..redirect };
        assert_eq!(skipped_inbound(&outbound_only.rules()), [8443, 9100, 15001, 15006]);
        assert_eq!(skipped_inbound(""), [0_u16; 0]);
        let exempt = Redirect { uids: vec![7, 8], gids: vec![9], ..Redirect::default() }.rules();
        assert!(exempts(&exempt, 8, 0) && exempts(&exempt, 0, 9) && !exempts(&exempt, 9, 8) && !exempts(&script, 0, 0));
    }

    /// (16)
    #[test]
    fn ssh_is_not_captured_inbound_unless_told_to_and_the_comment_says_which_ports() {
        let redirect = Redirect { ssh_ports: vec![22, 2222], ..Redirect::default() };
        let script = redirect.rules();
        let order = positions(&script, &["chain inbound", "tcp dport { 22, 2222 } return", "redirect to :15006"]);
        assert!(order.is_sorted(), "{script}");
        assert_eq!(ssh_ports(&script), [22, 2222]);
        let captured = Redirect { ssh_ports: vec![], ..Redirect::default() }.rules();
        assert!(!captured.contains(" 22"), "{captured}");
        assert_eq!(ssh_ports(&captured), [0_u16; 0]);
    }

    #[test]
    fn without_ipv6_both_nat_chains_let_it_pass() {
        let script = Redirect { ipv6: false, ..Redirect::default() }.rules();
        assert_eq!(script.matches("meta nfproto ipv6 return").count(), 2, "{script}");
    }
}
