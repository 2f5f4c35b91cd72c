//! The command line. Every command's `--help` ends with examples; a test parses all of them.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum, ValueHint};

/// Steer a Weft mesh: say what you want, see what runs, go back
#[derive(Debug, Parser)]
#[command(name = "weft", version, after_help = EXAMPLES, max_term_width = 100, arg_required_else_help = true)]
pub struct Args {
    /// Where the control plane is, and as whom.
    #[command(flatten)]
    pub connection: Connection,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  weft demo                               see all of it on this machine (as root)
  weft apply -f shop.yaml -m \"first try\"
  weft get services -A
  weft status
  weft history show 12
  weft rollback 11

Without --server, weft talks to the control plane on this machine through /var/lib/weft/api.sock.
Exit codes: 0 done, 1 failed, 64 wrong command line.";

/// Where the control plane is, and as whom.
#[derive(Debug, Clone, Default, ClapArgs)]
#[command(next_help_heading = "Connection")]
pub struct Connection {
    /// The control plane: https://host[:port] (port 8080 when left out), or unix:PATH of its socket
    #[arg(long, global = true, env = "WEFT_SERVER", value_name = "URL|unix:PATH")]
    pub server: Option<String>,
    /// Admin token; not needed on the Unix socket
    #[arg(long, global = true, env = "WEFT_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// File with the admin token
    #[arg(long, global = true, env = "WEFT_TOKEN_FILE", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub token_file: Option<PathBuf>,
    /// PEM file with the root that the control plane's certificate comes from
    #[arg(long, global = true, env = "WEFT_CA", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub ca: Option<PathBuf>,
    /// Who changes something, for the history [default: the user's name]
    #[arg(long, global = true, env = "WEFT_AUTHOR", value_name = "NAME")]
    pub author: Option<String>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create or change objects; all of them or, if one is wrong, none
    Apply(Apply),
    /// Print objects
    Get(Get),
    /// Delete objects
    Delete(Delete),
    /// Print the revisions, newest first, or what one of them changed
    History(History),
    /// Make the objects as they were at a revision; this is a new revision too
    Rollback(Rollback),
    /// Print the proxies: identity, revision, certificate, health
    Status(Status),
    /// Join tokens, with which a proxy enrols for the first time, and the admin token
    #[command(subcommand)]
    Token(Token),
    /// Bring up a shop in the mesh on this machine, and show what the mesh does (as root)
    Demo(Demo),
    /// Print a completion script for a shell
    Completion(Completion),
    /// Print the version
    Version,
}

/// How something is printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For scripts: stable.
    Json,
    /// The shape of `apply`.
    Yaml,
}

/// `weft apply`
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  weft apply -f shop.yaml
  weft apply -f shop/ -m \"two versions of product\"
  weft apply -f shop.yaml --dry-run
  generate | weft apply -f -")]
pub struct Apply {
    /// File, directory (its .yaml, .yml and .json files) or - for standard input; repeatable
    #[arg(short, long, required = true, value_name = "FILE|DIR|-", value_hint = ValueHint::AnyPath)]
    pub file: Vec<PathBuf>,
    /// Check and say what would change, but change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Why; kept with the revision
    #[arg(short, long, value_name = "TEXT")]
    pub message: Option<String>,
    /// How to print what changed
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
}

/// `weft get`
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  weft get svc                            services of the namespace `default`
  weft get httproutes -A                  of all namespaces
  weft get gateway edge -n shop -o yaml
  weft get workloads -l app=product,version=v2
  weft get kinds                          the kinds there are")]
pub struct Get {
    /// Kind: singular, plural or short (svc, route, gw, ap, tp, wl, mc)
    pub kind: String,
    /// Name of one object
    pub name: Option<String>,
    /// Where to look.
    #[command(flatten)]
    pub scope: Scope,
    /// Only objects with these labels
    #[arg(short = 'l', long = "label", value_name = "KEY=VALUE,…")]
    pub labels: Option<String>,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
}

/// In which namespace.
#[derive(Debug, ClapArgs)]
pub struct Scope {
    /// Namespace
    #[arg(short, long, value_name = "NAME", default_value = "default")]
    pub namespace: String,
    /// Every namespace
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub all_namespaces: bool,
}

/// `weft delete`
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  weft delete httproute product -n shop
  weft delete -f shop.yaml")]
pub struct Delete {
    /// Kind: singular, plural or short
    #[arg(required_unless_present = "file", requires = "name", conflicts_with = "file")]
    pub kind: Option<String>,
    /// Name of the object
    pub name: Option<String>,
    /// Why; kept with the revision
    #[arg(short, long, value_name = "TEXT")]
    pub message: Option<String>,
    /// Delete the objects that this file, directory or - (standard input) names; repeatable
    #[arg(short, long, value_name = "FILE|DIR|-", value_hint = ValueHint::AnyPath)]
    pub file: Vec<PathBuf>,
    /// Namespace
    #[arg(short, long, value_name = "NAME", default_value = "default")]
    pub namespace: String,
}

/// `weft history`
#[derive(Debug, ClapArgs)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  weft history
  weft history --limit 3 -o json
  weft history show 12"
)]
pub struct History {
    /// One of them.
    #[command(subcommand)]
    pub command: Option<HistoryCommand>,
    /// How many
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub limit: u32,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
}

/// `weft history show`
#[derive(Debug, Subcommand)]
pub enum HistoryCommand {
    /// Print one revision with its differences to the one before
    Show {
        /// Number of the revision
        revision: u64,
        /// How to print
        #[arg(short, long, value_enum, default_value_t)]
        output: Format,
    },
}

/// `weft rollback`
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  weft history                            find the revision that was good
  weft rollback 11

Registered workloads are not touched: what runs is not a matter of revisions.")]
pub struct Rollback {
    /// Number of the revision to go back to
    pub revision: u64,
    /// Why; kept with the new revision
    #[arg(short, long, value_name = "TEXT")]
    pub message: Option<String>,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
}

/// `weft status`
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  weft status
  weft status -n shop
  weft status -o json")]
pub struct Status {
    /// Only proxies of this namespace
    #[arg(short, long, value_name = "NAME")]
    pub namespace: Option<String>,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
}

/// `weft token`
#[derive(Debug, Subcommand)]
pub enum Token {
    /// Make a join token and print it; it is not shown again
    #[command(after_help = "\
Examples:
  weft token create -n shop --service-account order > /run/weft/token
  weft token create -n shop --service-account product --reusable --ttl 7d

The proxy's file names it: controlPlane.joinTokenFile.")]
    Create {
        /// Namespace of the workload
        #[arg(short, long, value_name = "NAME")]
        namespace: String,
        /// Service account of the workload: with the namespace, its identity
        #[arg(short, long, value_name = "NAME")]
        service_account: String,
        /// How long it can be used, for example 30m, 24h or 7d
        #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_duration)]
        ttl: Duration,
        /// Usable by several proxies, not only by the first
        #[arg(long)]
        reusable: bool,
        /// How to print; table prints the token alone on standard output
        #[arg(short, long, value_enum, default_value_t)]
        output: Format,
    },
    /// Print the join tokens (not their secrets)
    #[command(after_help = "\
Examples:
  weft token list
  weft token list -o json")]
    List {
        /// How to print
        #[arg(short, long, value_enum, default_value_t)]
        output: Format,
    },
    /// Make a join token useless
    #[command(after_help = "\
Examples:
  weft token revoke 1f0c5a")]
    Revoke {
        /// Its id, as `weft token list` prints it
        id: String,
    },
    /// Make a new admin token and print it; the old one is unknown from then on. Only on the control plane's machine
    #[command(after_help = "\
Examples:
  weft --server unix:/var/lib/weft/api.sock token admin > admin-token

For a lost or stolen admin token. It needs the Unix socket, which the control plane's user and root can open.")]
    Admin,
}

/// `weft demo`
#[derive(Debug, Clone, ClapArgs)]
#[command(after_help = "\
Examples:
  weft demo                               the story, then it stays up until Ctrl-C
  weft demo --check                       every step asserted, one line per check
  weft demo --cleanup                     remove what a killed demo left

Needs root: it makes network namespaces (weft-demo-…) and nftables rules in them, and removes them again.")]
pub struct Demo {
    /// Assert every step without a terminal; the last line is `demo: N passed, M failed`
    #[arg(long)]
    pub check: bool,
    /// Only remove what an earlier demo left behind
    #[arg(long, conflicts_with = "check")]
    pub cleanup: bool,
    /// Where the shop's edge is reachable on this machine (port 0 picks a free one) [default: 127.0.0.1:8888, or a free port when that is taken or with --check]
    #[arg(long, value_name = "ADDR:PORT")]
    pub edge: Option<SocketAddr>,
    /// Requests a second of the load generator
    #[arg(long, value_name = "N", default_value = "60", value_parser = clap::value_parser!(u32).range(1..=2000))]
    pub rps: u32,
    /// Where the programs weft-proxy, weft-control-plane, shop-order and shop-load are [default: beside weft]
    #[arg(long, env = "WEFT_BIN", value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub bin: Option<PathBuf>,
    /// Where the shop is: deploy/demo of the repository [default: looked for above this program and above here]
    #[arg(long, env = "WEFT_DEMO", value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub shop: Option<PathBuf>,
}

/// `weft completion`
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  weft completion bash > /etc/bash_completion.d/weft
  weft completion zsh > ~/.zfunc/_weft
  weft completion fish > ~/.config/fish/completions/weft.fish")]
pub struct Completion {
    /// Which shell
    #[arg(value_enum)]
    pub shell: Shell,
}

/// The shells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[expect(missing_docs, reason = "they are their names")]
pub enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// `250ms`, `30s`, `15m`, `24h` or `7d`.
///
/// Errors: no number, no unit, or too large.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} needs a number with a unit, such as 30s, 15m, 24h or 7d");
    let split = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at_checked(split).ok_or_else(wrong)?;
    let milliseconds: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_not_a_number| wrong())?;
    number.checked_mul(milliseconds).map(Duration::from_millis).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// Every line `  weft …` below "Examples:", without the remark that two or more spaces set apart.
    fn examples(command: &clap::Command, found: &mut Vec<String>) {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        for line in help.lines().filter_map(|line| line.strip_prefix("  ")) {
            let line = line.split("   ").next().unwrap();
            let line = line.rsplit_once(" | ").map_or(line, |(_, last)| last);
            found.push(line.split(" > ").next().unwrap().trim().to_owned());
        }
        command.get_subcommands().for_each(|sub| examples(sub, found));
    }

    fn words(line: &str) -> Vec<String> {
        line.split('"')
            .enumerate()
            .flat_map(|(index, part)| match index % 2 {
                0 => part.split_whitespace().map(str::to_owned).collect(),
                _ => vec![part.to_owned()],
            })
            .collect()
    }

    #[test]
    fn every_example_of_every_help_parses() {
        let mut found = Vec::new();
        examples(&Args::command(), &mut found);
        assert!(found.len() > 25, "{found:#?}");
        for line in found {
            assert!(line.starts_with("weft "), "{line}");
            if let Err(error) = Args::try_parse_from(words(&line)) {
                panic!("{line}: {error}");
            }
        }
    }

    #[test]
    fn every_command_has_examples() {
        for command in Args::command().get_subcommands() {
            let nested = command.get_subcommands().all(|sub| sub.get_after_help().is_some());
            let has = command.get_after_help().is_some() || (command.has_subcommands() && nested);
            assert!(has || command.get_name() == "version", "{}", command.get_name());
        }
        Args::command().debug_assert();
    }

    #[test]
    fn contradictions_are_refused() {
        for line in [
            "weft delete svc",
            "weft delete",
            "weft delete svc a -f x.yaml",
            "weft get svc -A -n shop",
            "weft apply",
            "weft token create -n shop",
            "weft token create -n shop -s a --ttl 5",
            "weft rollback last",
            "weft demo --rps 0",
        ] {
            assert!(Args::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(parse_duration("7d"), Ok(Duration::from_secs(604_800)));
        for bad in ["", "5", "s", "1.5h", "-1s", "99999999999999999999s", "18446744073709551615d"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
