//! The flags of `weft-proxy redirect`, the action each one selects, and its output.

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use ipnet::IpNet;

use crate::undo::{self, Confirmed, Timer};
use crate::{DEFAULT_MARK, Redirect, RedirectError, check, ssh};

/// Exit status of a wrong command line (sysexits.h `EX_USAGE`).
const USAGE: u8 = 64;

/// Send the workload's TCP connections through the proxy, in this network namespace
///
/// Writes the nftables table `inet weft` and local routes for the mesh's address ranges, for IPv4 and IPv6.
/// A second run replaces the rules and routes of the first; `--undo` removes them. Needs the programs `nft` and `ip`,
/// and root or CAP_NET_ADMIN in the namespace. Connections already open are not affected. UDP is not captured.
///
/// SSH stays reachable without the proxy: port 22, the port of the current session, and the ports on which sshd listens.
/// The output lists everything that is not captured.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  weft-proxy redirect
  weft-proxy redirect --undo-after 2m     then, in a new session: weft-proxy redirect --confirm
  weft-proxy redirect --skip-inbound-ports 9100
  weft-proxy redirect --check
  weft-proxy redirect --undo")]
#[expect(clippy::struct_excessive_bools, reason = "one per flag")]
pub struct RedirectArgs {
    /// Port of the proxy that receives the workload's outgoing connections
    #[arg(long, value_name = "PORT", default_value = "15001")]
    pub outbound_port: NonZeroU16,

    /// Port of the proxy that receives connections to the workload
    #[arg(long, value_name = "PORT", default_value = "15006")]
    pub inbound_port: NonZeroU16,

    /// Other ports of the proxy on this host: never captured
    #[arg(long, value_name = "PORT,…", value_delimiter = ',', default_value = "15000,15020")]
    pub own_ports: Vec<NonZeroU16>,

    /// Do not capture connections opened by this user (repeatable)
    #[arg(long, value_name = "UID")]
    pub proxy_uid: Vec<u32>,

    /// Do not capture connections opened by this group (repeatable)
    #[arg(long, value_name = "GID")]
    pub proxy_gid: Vec<u32>,

    /// Do not capture connections with this SO_MARK; decimal or 0x…
    ///
    /// Must equal `spec.mark` in the proxy's file. Only a process with CAP_NET_ADMIN or CAP_NET_RAW can set a mark.
    #[arg(long, value_name = "MARK", value_parser = parse_mark, default_value = "0x77656674")]
    pub mark: u32,

    /// Exempt no connection by mark; requires --proxy-uid or --proxy-gid
    #[arg(long)]
    pub no_mark: bool,

    /// Capture SSH too: port 22, the port of the current session, and the ports on which sshd listens
    ///
    /// Without a running proxy that accepts them, no one can then log in over the network.
    #[arg(long)]
    pub capture_ssh: bool,

    /// The session of the caller, as sshd describes it.
    #[arg(long, env = "SSH_CONNECTION", hide = true)]
    pub ssh_connection: Option<String>,

    /// Ports of this host that peers reach without the proxy (no mTLS, no policy)
    #[arg(long, value_name = "PORT,…", value_delimiter = ',')]
    pub skip_inbound_ports: Vec<NonZeroU16>,

    /// Destination ports that the workload reaches without the proxy; does not apply to mesh ranges
    #[arg(long, value_name = "PORT,…", value_delimiter = ',')]
    pub skip_outbound_ports: Vec<NonZeroU16>,

    /// Destinations that the workload reaches without the proxy; does not apply to mesh ranges
    #[arg(long, value_name = "CIDR,…", value_delimiter = ',', value_parser = parse_range)]
    pub skip_outbound_ranges: Vec<IpNet>,

    /// Address ranges of the mesh's services: always captured, never sent to the network
    #[arg(long, value_name = "CIDR,…", value_delimiter = ',', value_parser = parse_range,
          default_value = "240.0.0.0/4,fd77:6566:7400::/48")]
    pub mesh_ranges: Vec<IpNet>,

    /// Do not capture IPv6: IPv6 connections bypass the proxy
    #[arg(long)]
    pub no_ipv6: bool,

    /// Print the nftables script without applying it
    #[arg(long, group = "action")]
    pub print: bool,

    /// Verify with probe connections that capture works with these flags; exit 1 with the reason if not
    #[arg(long, group = "action")]
    pub check: bool,

    /// Remove the table and the routes; succeeds also when only some or none of them exist
    #[arg(long, group = "action")]
    pub undo: bool,

    /// Undo after this time, unless `redirect --confirm` is run before: 1s to 24h
    ///
    /// A process of its own waits for it, and survives the end of this session.
    #[arg(long, value_name = "TIME", value_parser = parse_undo_after, conflicts_with_all = ["print", "check", "undo", "confirm"])]
    pub undo_after: Option<Duration>,

    /// Keep a redirection that was applied with --undo-after
    #[arg(long, group = "action")]
    pub confirm: bool,

    /// Wait for --undo-after, then undo what is not confirmed (used by --undo-after).
    #[arg(long, value_name = "NAME", group = "action", hide = true, requires = "undo_after")]
    pub undo_timer: Option<String>,

    /// Connect to ADDRESS, print the local address, stay connected until end of standard input (used by --check)
    #[arg(long, value_name = "ADDRESS", group = "action", hide = true)]
    pub probe: Option<SocketAddr>,
}

fn parse_mark(text: &str) -> Result<u32, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|error| format!("{error}: expected a 32-bit number such as {DEFAULT_MARK:#x}"))
}

/// `10.0.0.0/8`, or a bare address, which is the range of that address alone.
fn parse_range(text: &str) -> Result<IpNet, String> {
    let bare = || text.parse().ok().map(|address: std::net::IpAddr| IpNet::from(address));
    text.parse().ok().or_else(bare).ok_or_else(|| "expected a range such as 10.0.0.0/8 or fd00::/8".to_owned())
}

/// A time as the other flags of the programs take it, such as `90s` or `1m30s`: from one second to one day. This crate depends
/// on no other of the workspace (docs/adr/0023), so it reads the grammar itself; a test of weft-proxy holds it to that of
/// weft-core.
fn parse_undo_after(text: &str) -> Result<Duration, String> {
    const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];
    let read = || {
        let (mut rest, mut total) = (text, 0_u64);
        loop {
            let (number, tail) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?);
            let (unit, tail) = tail.split_at(tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len()));
            let (_, millis) = UNITS.iter().find(|(name, _)| *name == unit && !number.is_empty())?;
            total = total.saturating_add(number.parse().unwrap_or(u64::MAX).saturating_mul(*millis));
            if tail.is_empty() {
                return Some(total);
            }
            rest = tail;
        }
    };
    let form = "must be a time such as 250ms, 30s, 1m30s, 24h or 90d (units d, h, m, s, ms; no sign, no fraction)";
    let millis = read().ok_or(form)?;
    (1_000..=86_400_000)
        .contains(&millis)
        .then(|| Duration::from_millis(millis))
        .ok_or_else(|| "must be 1s to 1d".to_owned())
}

impl From<&RedirectArgs> for Redirect {
    fn from(args: &RedirectArgs) -> Self {
        let ports = |ports: &[NonZeroU16]| ports.iter().map(|port| port.get()).collect();
        Self {
            outbound_port: args.outbound_port,
            inbound_port: args.inbound_port,
            own_ports: ports(&args.own_ports),
            uids: args.proxy_uid.clone(),
            gids: args.proxy_gid.clone(),
            mark: (!args.no_mark).then_some(args.mark),
            ssh_ports: if args.capture_ssh { Vec::new() } else { ssh::ports(args.ssh_connection.as_deref()) },
            skip_inbound_ports: ports(&args.skip_inbound_ports),
            skip_outbound_ports: ports(&args.skip_outbound_ports),
            skip_outbound_ranges: args.skip_outbound_ranges.clone(),
            mesh_ranges: args.mesh_ranges.clone(),
            ipv6: !args.no_ipv6,
        }
    }
}

/// Carries out the action that the flags select. Blocking; call it before any runtime starts.
///
/// Returns 0; 1 for a failed check; 64 for flags that contradict each other (printed to standard error).
/// Errors: [`RedirectError`], for the caller to print; exit 1.
pub fn run(args: &RedirectArgs) -> Result<ExitCode, RedirectError> {
    // These need no settings, so mistakes in them do not matter.
    if let (Some(name), Some(after)) = (&args.undo_timer, args.undo_after) {
        undo::run(name, after)?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.confirm {
        let (said, code) = match undo::confirm()? {
            Confirmed::Now => ("confirmed; it will not be undone", ExitCode::SUCCESS),
            Confirmed::Before => ("in force; no undo was pending", ExitCode::SUCCESS),
            Confirmed::Absent => {
                ("nothing to confirm: nothing is redirected, or it was undone already", ExitCode::FAILURE)
            }
        };
        eprintln!("redirect: {said}");
        return Ok(code);
    }
    if let Some(target) = args.probe {
        check::probe(target)?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.undo {
        let report = Redirect::remove()?;
        eprintln!("redirect: removed {report}");
        return Ok(ExitCode::SUCCESS);
    }
    let redirect = Redirect::from(args);
    let mistakes = redirect.mistakes();
    if !mistakes.is_empty() {
        for mistake in mistakes {
            eprintln!("redirect: {mistake}");
        }
        return Ok(ExitCode::from(USAGE));
    }
    if args.print {
        print!("{}", redirect.rules());
        return Ok(ExitCode::SUCCESS);
    }
    if args.check {
        let check = redirect.check()?;
        print!("{check}");
        return Ok(if check.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let timer = args.undo_after.map(Timer::start).transpose()?;
    let report = redirect.apply(timer.as_ref().map(|timer| timer.name.as_str()))?;
    eprintln!("redirect: applied {report}");
    for line in redirect.not_captured() {
        eprintln!("redirect: {line}");
    }
    if let Some(after) = args.undo_after {
        eprintln!("redirect: undone in {after:?} unless confirmed; in a new session: weft-proxy redirect --confirm");
    }
    if redirect.ipv6 && !report.loopback_ipv6 {
        eprintln!("redirect: the loopback interface has no IPv6 address; the IPv6 mesh ranges have no route");
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        redirect: RedirectArgs,
    }

    fn parse(arguments: &[&str]) -> Result<Redirect, String> {
        let program =
            Program::try_parse_from([&["redirect"], arguments].concat()).map_err(|error| error.to_string())?;
        Ok(Redirect::from(&program.redirect))
    }

    #[test]
    fn no_flags_are_the_defaults() {
        // Where the tests run, there may be SSH on other ports too.
        let parsed = parse(&[]).unwrap();
        assert_eq!(parsed.ssh_ports.first(), Redirect::default().ssh_ports.first());
        assert_eq!(Redirect { ssh_ports: vec![22], ..parsed }, Redirect::default());
    }

    #[test]
    fn flags_reach_the_settings() {
        let redirect = parse(&[
            "--mark=7",
            "--proxy-uid=1",
            "--proxy-uid=2",
            "--skip-outbound-ports=22,25",
            "--skip-outbound-ranges=10.0.0.0/8,192.0.2.1",
            "--no-ipv6",
        ])
        .unwrap();
        assert_eq!(redirect.mark, Some(7));
        assert_eq!(redirect.uids, [1, 2]);
        assert_eq!(redirect.skip_outbound_ports, [22, 25]);
        assert_eq!(redirect.skip_outbound_ranges[1].to_string(), "192.0.2.1/32");
        assert!(!redirect.ipv6);
        assert_eq!(parse(&["--no-mark"]).unwrap().mark, None);
        assert!(parse(&["--ssh-connection=192.0.2.1 5 192.0.2.2 2222"]).unwrap().ssh_ports.contains(&2222));
        assert_eq!(parse(&["--capture-ssh"]).unwrap().ssh_ports, [0_u16; 0]);
    }

    #[test]
    fn wrong_flags_are_refused_by_name() {
        for (arguments, word) in [
            (&["--mark=0xzz"][..], "--mark"),
            (&["--outbound-port=0"], "--outbound-port"),
            (&["--skip-inbound-ports=70000"], "--skip-inbound-ports"),
            (&["--mesh-ranges=240.0.0.0/40"], "--mesh-ranges"),
            (&["--check", "--undo"], "--undo"),
            (&["--confirm", "--undo"], "--undo"),
            (&["--undo-after=0s"], "--undo-after"),
            (&["--undo-after=25h"], "--undo-after"),
            (&["--undo-after=-0"], "--undo-after"),
            (&["--undo-after=2m", "--check"], "--check"),
        ] {
            let error = parse(arguments).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
