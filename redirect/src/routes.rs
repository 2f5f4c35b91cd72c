//! Local routes for the mesh ranges: without a route, `connect` fails before nftables sees the packet.
//! They carry protocol 119 (`w`), by which they are found again; routes of other protocols are never touched.
//! The source is the loopback address: without it the kernel uses the destination as source.

use ipnet::IpNet;
use serde::Deserialize;

use crate::{RedirectError, program};

const PROTOCOL: &str = "119";

/// Whether `lo` has `::1`. The kernel's table is missing or empty when IPv6 is off.
pub(crate) fn loopback_ipv6() -> bool {
    std::fs::read_to_string("/proc/thread-self/net/if_inet6")
        .is_ok_and(|table| table.lines().any(|line| line.starts_with("00000000000000000000000000000001 ")))
}

/// Adds the routes of `wanted` and removes all others of protocol 119.
pub(crate) fn replace_all(wanted: &[IpNet], ipv6: bool) -> Result<(), RedirectError> {
    for range in wanted {
        let (family, source) = match range {
            IpNet::V4(_) => ("-4", "127.0.0.1"),
            IpNet::V6(_) => ("-6", "::1"),
        };
        let range = range.to_string();
        program::ip(&[family, "route", "replace", "local", &range, "dev", "lo", "src", source, "proto", PROTOCOL])?;
    }
    for stale in ours(ipv6)?.iter().filter(|range| !wanted.contains(range)) {
        remove(stale)?;
    }
    Ok(())
}

/// Removes every route of protocol 119 and returns them.
pub(crate) fn remove_all(ipv6: bool) -> Result<Vec<IpNet>, RedirectError> {
    let ours = ours(ipv6)?;
    for range in &ours {
        remove(range)?;
    }
    Ok(ours)
}

fn remove(range: &IpNet) -> Result<(), RedirectError> {
    let family = family(range);
    program::ip(&[family, "route", "del", "local", &range.to_string(), "dev", "lo", "proto", PROTOCOL]).map(drop)
}

fn family(range: &IpNet) -> &'static str {
    match range {
        IpNet::V4(_) => "-4",
        IpNet::V6(_) => "-6",
    }
}

#[derive(Deserialize)]
struct Route {
    dst: String,
}

/// The routes of protocol 119 in the local table.
pub(crate) fn ours(ipv6: bool) -> Result<Vec<IpNet>, RedirectError> {
    let families: &[&str] = if ipv6 { &["-4", "-6"] } else { &["-4"] };
    let mut routes = Vec::new();
    for family in families {
        let json = program::ip(&[family, "-j", "route", "show", "table", "local", "proto", PROTOCOL])?;
        routes.extend(parse(&json)?);
    }
    Ok(routes)
}

fn parse(json: &str) -> Result<Vec<IpNet>, RedirectError> {
    if json.trim().is_empty() {
        return Ok(Vec::new());
    }
    let routes: Vec<Route> =
        serde_json::from_str(json).map_err(|source| RedirectError::Unreadable { program: "ip", source })?;
    // A host route is printed without a prefix length.
    Ok(routes
        .iter()
        .filter_map(|route| {
            route.dst.parse::<IpNet>().ok().or_else(|| Some(route.dst.parse::<std::net::IpAddr>().ok()?.into()))
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_output_of_ip_is_parsed() {
        let json = r#"[{"type":"local","dst":"240.0.0.0/4","dev":"lo","flags":[]},{"type":"local","dst":"fd77::1","dev":"lo"}]"#;
        let routes: Vec<String> = parse(json).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(routes, ["240.0.0.0/4", "fd77::1/128"]);
        assert_eq!(parse("\n").unwrap(), []);
        assert!(parse("{").is_err());
    }
}
