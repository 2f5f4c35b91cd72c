//! Writes and removes the rules and the routes of a network namespace.

use std::fmt;

use ipnet::IpNet;

use crate::{Redirect, RedirectError, program, routes, rules};

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
    /// Writes the rules and the routes, replacing those of an earlier `apply`, and a pending undo with them. Brings the
    /// loopback interface up. `unconfirmed`: who may undo them until they are confirmed, see `undo`.
    ///
    /// Connections already open are not affected. After a failure half way, mesh addresses are refused rather than
    /// delivered elsewhere (rules come before routes): apply again, or call [`Redirect::remove`].
    ///
    /// Errors: [`RedirectError`]; blocking, milliseconds.
    pub fn apply(&self, unconfirmed: Option<&str>) -> Result<Report, RedirectError> {
        program::ip(&["link", "set", "lo", "up"])?;
        let (script, unconfirmed) = (self.rules(), unconfirmed.map(rules::unconfirmed).unwrap_or_default());
        program::nft_script(&format!("{script}{unconfirmed}"))?;
        // Another version of nft may print rules in a form that is not known here: then the hashes are those of what it prints.
        let listed = program::nft(&["list", "table", "inet", rules::TABLE])?;
        if let Some(script) = rules::as_listed(&script, &listed) {
            program::nft_script(&format!("{script}{unconfirmed}"))?;
        }
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

    /// The ports at which peers reach this host without the proxy, the proxy's own among them, as the rules in force say; sorted.
    ///
    /// Errors: [`RedirectError`], also if there are no rules; blocking, milliseconds.
    pub fn skipped_inbound() -> Result<Vec<u16>, RedirectError> {
        program::nft(&["list", "table", "inet", rules::TABLE]).map(|table| rules::skipped_inbound(&table))
    }

    /// Whether the table of an `apply` is there.
    ///
    /// Errors: [`RedirectError`]; blocking, milliseconds.
    pub fn exists() -> Result<bool, RedirectError> {
        match program::nft(&["list", "table", "inet", rules::TABLE]) {
            Ok(_) => Ok(true),
            Err(RedirectError::Failed { .. }) => Ok(false),
            Err(error) => Err(error),
        }
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
}
