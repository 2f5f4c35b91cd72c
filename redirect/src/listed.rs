//! A table of rules as text, as `rules` writes it and as `nft list` prints it: both have one canonical form, and a hash by half.
//! nft prints sets of one element without braces, names of priorities and interfaces, and some matches in another way than they
//! were written, which depends on its version.

use sha2::{Digest, Sha256};

/// Half of the rules: a chain that captures, and the one that guards the mesh ranges beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Outbound,
    Inbound,
}

impl Direction {
    fn chains(self) -> [&'static str; 2] {
        match self {
            Self::Outbound => ["outbound", "guard_output"],
            Self::Inbound => ["inbound", "guard_input"],
        }
    }
}

/// The first four bytes of SHA-256 over the rules of one half, in hexadecimal.
pub(crate) fn hash(table: &str, direction: Direction) -> String {
    let mut text = String::new();
    for name in direction.chains() {
        text.push_str(name);
        for rule in chain(table, name) {
            text.push('\n');
            text.push_str(&rule);
        }
    }
    Sha256::digest(text.as_bytes()).iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

/// Whether a connection can be captured at all: the half's first chain ends in a rule that redirects, and the table works.
pub(crate) fn redirects(table: &str, direction: Direction) -> bool {
    let [name, _] = direction.chains();
    // A dormant table keeps its rules and applies none.
    let dormant = table.lines().map(str::trim).any(|line| line.starts_with("flags ") && line.contains("dormant"));
    !dormant && chain(table, name).last().is_some_and(|rule| rule.starts_with("meta l4proto tcp redirect to :"))
}

/// The lines of one chain, canonical.
pub(crate) fn chain<'a>(table: &'a str, name: &str) -> impl Iterator<Item = String> + use<'a> {
    let first = format!("chain {name} {{");
    let lines = table.lines().map(str::trim).skip_while(move |line| *line != first).skip(1);
    lines.take_while(|line| *line != "}").map(canonical)
}

fn canonical(line: &str) -> String {
    let words = line.split([' ', '\t', '{', '}', '"']).filter(|word| !word.is_empty());
    // A prefix that is one address is printed as the address.
    let one = |word: &str| if word.contains(':') { "/128" } else { "/32" };
    let words: Vec<String> = words.map(|word| word.replace(one(word), "")).collect();
    let mut line = words.join(" ");
    for (printed, written) in [
        ("tcp flags != syn / fin,syn,rst,ack", "tcp flags & (fin | syn | rst | ack) != syn"),
        ("tcp flags & (fin|syn|rst|ack) != syn", "tcp flags & (fin | syn | rst | ack) != syn"),
        ("priority dstnat - 10;", "priority -110;"),
        ("priority dstnat;", "priority -100;"),
        ("priority filter;", "priority 0;"),
        ("icmpx type ", "icmpx "),
    ] {
        line = line.replace(printed, written);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (27.3)
    #[test]
    fn a_rule_has_one_form_however_nft_prints_it() {
        for (printed, written) in [
            ("\t\ttcp dport 22 return", "tcp dport { 22 } return"),
            ("tcp flags != syn / fin,syn,rst,ack return", "tcp flags & (fin | syn | rst | ack) != syn return"),
            (
                "type nat hook prerouting priority dstnat; policy accept;",
                "type nat hook prerouting priority -100; policy accept;",
            ),
            ("iif \"lo\" return", "iif lo return"),
            ("ip daddr { 10.0.0.0/8, 172.16.0.1 } return", "ip daddr { 10.0.0.0/8, 172.16.0.1/32 } return"),
            ("reject with icmpx type admin-prohibited", "reject with icmpx admin-prohibited"),
        ] {
            assert_eq!(canonical(printed), canonical(written));
        }
        assert_ne!(canonical("tcp dport 22 return"), canonical("tcp dport 22 accept"));
        assert_ne!(
            canonical("tcp flags != syn / fin,syn return"),
            canonical("tcp flags != syn / fin,syn,rst,ack return")
        );
    }
}
