//! The command line. Every command's `--help` ends with examples; a test parses all of them.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum, ValueHint};
use weft_core::api::duration::parse_time;

/// Configure and inspect a Weft mesh
#[derive(Debug, Parser)]
#[command(name = "weft", version, after_help = EXAMPLES, max_term_width = 100, arg_required_else_help = true)]
pub struct Args {
    /// Address of the control plane, and credentials.
    #[command(flatten)]
    pub connection: Connection,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  weft demo                               the mesh on this machine, step by step (as root)
  weft apply -f shop.yaml -m \"first try\"
  weft get services -A
  weft status
  weft history show 12
  weft rollback 11

Without --server, weft uses the socket of the control plane on this machine, /var/lib/weft/api.sock.
Exit codes: 0 success; 64 the command line, a setting or a file is wrong; 1 any other failure.";

/// Address of the control plane, and credentials.
#[derive(Debug, Clone, Default, ClapArgs)]
#[command(next_help_heading = "Connection")]
pub struct Connection {
    /// The control plane: https://host[:port] (default port 8080), or unix:PATH for its socket
    #[arg(long, global = true, env = "WEFT_SERVER", value_name = "URL|unix:PATH")]
    pub server: Option<String>,
    /// Admin token; not needed on the Unix socket
    #[arg(long, global = true, env = "WEFT_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// File with the admin token
    #[arg(long, global = true, env = "WEFT_TOKEN_FILE", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub token_file: Option<PathBuf>,
    /// PEM file with the root certificate that verifies the control plane
    #[arg(long, global = true, env = "WEFT_CA", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub ca: Option<PathBuf>,
    /// Author of a change, recorded in the history [default: the user's name]
    #[arg(long, global = true, env = "WEFT_AUTHOR", value_name = "NAME")]
    pub author: Option<String>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create or change objects: all of them, or none if one is invalid
    Apply(Apply),
    /// Print objects
    Get(Get),
    /// Print the objects of the mesh as they were written, for a file that `apply` accepts
    Export(Export),
    /// Delete objects
    Delete(Delete),
    /// Print the revisions, newest first, or the changes of one revision
    History(History),
    /// Restore the objects of an earlier revision, as a new revision
    Rollback(Rollback),
    /// Print the proxies: identity, revision, certificate, health
    Status(Status),
    /// Manage join tokens, with which a proxy enrols for the first time, and the admin token
    #[command(subcommand)]
    Token(Token),
    /// Run a shop in the mesh on this machine, as a guided tour or as a test (as root)
    Demo(Demo),
    /// Print the script that sets up completion in a shell
    Completion(Completion),
    /// Print the version
    Version,
}

/// Output format.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For scripts: stable.
    Json,
    /// As `apply` accepts it.
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
    /// Validate and print the changes without making them
    #[arg(long)]
    pub dry_run: bool,
    /// Reason for the change; recorded with the revision
    #[arg(short, long, value_name = "TEXT")]
    pub message: Option<String>,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
}

/// `weft get`
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  weft get svc                            services of the namespace `default`
  weft get httproutes -A                  routes of all namespaces
  weft get gateway edge -n shop -o yaml
  weft get httproutes -A -o yaml          a `v1` List, as `apply` accepts it
  weft get workloads -l app=product,version=v2
  weft get kinds                          the names of all kinds")]
pub struct Get {
    /// Kind: singular, plural or short name (svc, route, gw, ap, tp, wl, mc)
    pub kind: String,
    /// Name of one object
    pub name: Option<String>,
    /// The namespaces.
    #[command(flatten)]
    pub scope: Scope,
    /// Only objects with these labels
    #[arg(short = 'l', long = "label", value_name = "KEY=VALUE,…")]
    pub labels: Option<String>,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
}

/// `weft export`
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  weft export > mesh.yaml
  weft export services httproutes -n shop
  weft apply -f mesh.yaml

Without uid, resourceVersion, generation, creation time and status; without workloads that their proxies register.
All objects are of one revision.")]
pub struct Export {
    /// Kinds: singular, plural or short names [default: all kinds]
    pub kinds: Vec<String>,
    /// Only objects of this namespace [default: all namespaces]
    #[arg(short, long, value_name = "NAME")]
    pub namespace: Option<String>,
    /// Only objects with these labels
    #[arg(short = 'l', long = "label", value_name = "KEY=VALUE,…")]
    pub labels: Option<String>,
    /// YAML documents, or one `v1` List in JSON
    #[arg(short, long, value_enum, default_value_t)]
    pub output: ExportFormat,
}

/// Format of an export.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
#[expect(missing_docs, reason = "they are their names")]
pub enum ExportFormat {
    #[default]
    Yaml,
    Json,
}

/// One namespace, or all.
#[derive(Debug, ClapArgs)]
pub struct Scope {
    /// Namespace
    #[arg(short, long, value_name = "NAME", default_value = "default")]
    pub namespace: String,
    /// All namespaces
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub all_namespaces: bool,
}

/// `weft delete`
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  weft delete httproute product -n shop
  weft delete httproute product -n shop --dry-run
  weft delete -f shop.yaml --ignore-not-found

With files, each object is deleted in a revision of its own, the last one first.")]
pub struct Delete {
    /// Kind: singular, plural or short name
    #[arg(required_unless_present = "file", requires = "name", conflicts_with = "file")]
    pub kind: Option<String>,
    /// Name of the object
    pub name: Option<String>,
    /// Reason for the change; recorded with the revision
    #[arg(short, long, value_name = "TEXT")]
    pub message: Option<String>,
    /// Print what would be deleted without deleting it
    #[arg(long)]
    pub dry_run: bool,
    /// Count an object that does not exist as deleted, instead of as a failure
    #[arg(long)]
    pub ignore_not_found: bool,
    /// Delete the objects in this file, directory or - (standard input); repeatable
    #[arg(short, long, value_name = "FILE|DIR|-", value_hint = ValueHint::AnyPath)]
    pub file: Vec<PathBuf>,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
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
    /// `show`, or none for the list.
    #[command(subcommand)]
    pub command: Option<HistoryCommand>,
    /// Number of revisions, 1 to 1000
    #[arg(long, value_name = "N", default_value = "20", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub limit: u32,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
}

/// `weft history show`
#[derive(Debug, Subcommand)]
pub enum HistoryCommand {
    /// Print one revision and its differences from the previous one
    Show {
        /// Number of the revision
        #[arg(value_parser = parse_revision)]
        revision: u64,
        /// Output format
        #[arg(short, long, value_enum, default_value_t)]
        output: Format,
    },
}

/// `weft rollback`
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  weft history                            find the last working revision
  weft rollback 11 --dry-run
  weft rollback 11

Registered workloads are not part of a revision and do not change.")]
pub struct Rollback {
    /// Number of the revision to restore
    #[arg(value_parser = parse_revision)]
    pub revision: u64,
    /// Print what would change without changing it
    #[arg(long)]
    pub dry_run: bool,
    /// Reason for the rollback; recorded with the new revision
    #[arg(short, long, value_name = "TEXT")]
    pub message: Option<String>,
    /// Output format
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
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
}

/// `weft token`
#[derive(Debug, Subcommand)]
pub enum Token {
    /// Create a join token and print it; it is not shown again
    #[command(after_help = "\
Examples:
  weft token create -n shop --service-account order > /run/weft/token
  weft token create -n shop --service-account product --reusable --ttl 7d

In the proxy's file: spec.controlPlane.joinTokenFile.")]
    Create {
        /// Namespace of the workload
        #[arg(short, long, value_name = "NAME")]
        namespace: String,
        /// Service account of the workload; with the namespace it forms the identity
        #[arg(short, long, value_name = "NAME")]
        service_account: String,
        /// Lifetime, up to 365d, for example 30m, 24h or 7d
        #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_time)]
        ttl: Duration,
        /// Valid for any number of proxies instead of one
        #[arg(long)]
        reusable: bool,
        /// Output format; table prints only the token on standard output
        #[arg(short, long, value_enum, default_value_t)]
        output: Format,
    },
    /// Print the join tokens, without their secrets
    #[command(after_help = "\
Examples:
  weft token list
  weft token list -o json")]
    List {
        /// Output format
        #[arg(short, long, value_enum, default_value_t)]
        output: Format,
    },
    /// Revoke a join token
    #[command(after_help = "\
Examples:
  weft token revoke 1f0c5a")]
    Revoke {
        /// Id of the token, as `weft token list` prints it
        id: String,
    },
    /// Replace the admin token and print the new one; the old one is no longer valid. Only on the control plane's machine
    #[command(after_help = "\
Examples:
  weft --server unix:/var/lib/weft/api.sock token admin > admin-token

For a lost or stolen admin token. Requires the Unix socket, which only the control plane's user and root can open.")]
    Admin,
}

/// `weft demo`
#[derive(Debug, Clone, ClapArgs)]
#[command(after_help = "\
Examples:
  weft demo                               the tour; then the shop runs until Ctrl-C
  weft demo --check                       assert every step, one line per check
  weft demo --cleanup                     remove the remains of a killed demo

Requires root: the demo creates network namespaces (weft-demo-…) with nftables rules, and removes them at its end.")]
pub struct Demo {
    /// Assert every step, for use without a terminal; the last line is `demo: N passed, M failed`
    #[arg(long)]
    pub check: bool,
    /// Remove the remains of an earlier demo, and exit
    #[arg(long, conflicts_with = "check")]
    pub cleanup: bool,
    /// Address of the shop's edge on this machine; port 0 selects a free one [default: 127.0.0.1:8888; a free port if that is in use, or with --check]
    #[arg(long, value_name = "ADDR:PORT")]
    pub edge: Option<SocketAddr>,
    /// Requests per second of the load generator
    #[arg(long, value_name = "N", default_value = "60", value_parser = clap::value_parser!(u32).range(1..=2000))]
    pub rps: u32,
    /// Directory of weft-proxy, weft-control-plane, shop-order and shop-load [default: the directory of weft]
    #[arg(long, env = "WEFT_BIN", value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub bin: Option<PathBuf>,
    /// Directory to use instead of the files that the program contains, in the form of deploy/demo of the repository
    #[arg(long, env = "WEFT_DEMO", value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub shop: Option<PathBuf>,
}

/// `weft completion`
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  weft completion bash                    in ~/.bashrc: source <(weft completion bash)
  weft completion zsh                     in ~/.zshrc, after compinit: source <(weft completion zsh)
  weft completion fish                    in ~/.config/fish/config.fish: weft completion fish | source

Tab completes commands, flags, files and kinds, and what the control plane has: names, namespaces, service accounts, revisions
and tokens. It uses the control plane of the flags already typed, of WEFT_SERVER, or of this machine, and completes nothing
if that does not answer within a second.")]
pub struct Completion {
    /// The shell
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

/// The API takes 0 for the state before the first change. Here it is rather an unset variable of a script, and would delete all.
fn parse_revision(text: &str) -> Result<u64, String> {
    let number = text.parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| "must be the number of a revision, from 1, as `weft history` prints it".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn no_revision_is_not_a_state_to_go_back_to() {
        assert_eq!(parse_revision("1"), Ok(1));
        for text in ["0", "", "-1", "x"] {
            assert!(parse_revision(text).is_err(), "{text}");
        }
    }

    /// Every line `  weft …` below "Examples:", without the remark after two or more spaces.
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
}
