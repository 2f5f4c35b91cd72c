//! The sub-commands of `weft-proxy`, and the one place that prints errors and chooses exit codes.
//!
//! | exit code | |
//! |---|---|
//! | 0 | done |
//! | 1 | it did not work |
//! | 64 | a wrong command line or file (sysexits.h `EX_USAGE`) |

mod call;
mod enrol;
mod log;

use std::{io, io::Write as _, process::ExitCode};

use clap::{CommandFactory as _, Parser, ValueEnum};
use weft_redirect::RedirectArgs;

use self::{
    call::{DrainArgs, ReadyArgs},
    enrol::IdentityArgs,
};
use crate::{
    app::{App, Signals},
    config::{ConfigError, LogArgs, SettingsArgs},
};

/// A wrong command line or file.
pub const USAGE: u8 = 64;

/// The data plane of Weft: carries the traffic of a workload, or of the edge
#[derive(Debug, Parser)]
#[command(
    name = "weft-proxy",
    version,
    after_help = "Examples:
  weft-proxy redirect && weft-proxy run --config proxy.yaml
  weft-proxy ready --wait 30s
  weft-proxy drain --wait 30s
  weft-proxy identity --config proxy.yaml --out /run/weft/svid"
)]
pub enum Command {
    /// Carry traffic: beside a workload, or as a gateway
    Run(RunArgs),
    /// Send the workload's TCP connections through the proxy
    Redirect(RedirectArgs),
    /// Keep a certificate of the mesh in files, for programs that speak mesh TLS themselves
    Identity(IdentityArgs),
    /// Tell whether the proxy on this host takes traffic
    Ready(ReadyArgs),
    /// Let the proxy on this host take no more connections
    Drain(DrainArgs),
    /// Print a completion script for a shell
    Completion {
        /// The shell
        shell: Shell,
    },
}

/// A shell that can complete.
#[derive(Clone, Copy, Debug, ValueEnum)]
#[expect(missing_docs, reason = "names of shells")]
pub enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Carry traffic: beside a workload, or as a gateway
///
/// Ends on SIGTERM or SIGINT: readiness goes off, the control plane is told, listeners close, and open connections are given
/// `spec.drain` (30s) to end. A second signal ends it at once. SIGHUP reads the objects in the file again.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weft-proxy run --config proxy.yaml
  WEFT_JOIN_TOKEN=weft1.… weft-proxy run --config proxy.yaml --control-plane 10.0.0.2:15012
  weft-proxy run --config proxy.yaml --check")]
pub struct RunArgs {
    #[command(flatten)]
    settings: SettingsArgs,

    #[command(flatten)]
    log: LogArgs,

    /// Only judge the file: exit 0 when it is good, 64 with every mistake when it is not
    #[arg(long)]
    check: bool,
}

/// Runs a command to its exit code.
pub fn run(command: Command) -> ExitCode {
    let result = match command {
        Command::Run(args) => carry(&args),
        Command::Redirect(args) => weft_redirect::run(&args).map_err(Into::into),
        Command::Identity(args) => enrol::run(&args),
        Command::Ready(args) => call::ready(&args),
        Command::Drain(args) => call::drain(&args),
        Command::Completion { shell } => completion(shell),
    };
    result.unwrap_or_else(|error| {
        eprintln!("weft-proxy: {error:#}");
        ExitCode::from(if error.is::<ConfigError>() { USAGE } else { 1 })
    })
}

fn carry(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let settings = args.settings.read()?;
    if args.check {
        println!("{}: good", args.settings.config.display());
        return Ok(ExitCode::SUCCESS);
    }
    log::start(&args.log)?;
    let runtime = runtime()?;
    let result = runtime.block_on(async {
        // Before anything else: a signal that comes during the start is not lost.
        let signals = Signals::listen()?;
        let app = Box::pin(App::start(settings)).await?;
        Box::pin(app.run(&args.settings, signals)).await;
        Ok(ExitCode::SUCCESS)
    });
    // A reader of our output that is stuck must not keep us.
    runtime.shutdown_background();
    result
}

/// The control thread's runtime.
fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

fn completion(shell: Shell) -> anyhow::Result<ExitCode> {
    let shell = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Command::command(), "weft-proxy", &mut script);
    io::stdout().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Command::command().debug_assert();
    }

    #[test]
    fn flags_are_read() {
        let args =
            ["weft-proxy", "run", "--config", "a.yaml", "--addresses", "10.0.0.1,fd00::1", "--log-format", "json"];
        let Command::Run(args) = Command::try_parse_from(args).unwrap() else { panic!("run") };
        assert_eq!(args.settings.overrides.addresses.len(), 2);
        for wrong in [&["run"][..], &["run", "--config"], &["ready", "--wait", "x"], &["fly"], &["completion", "tcsh"]]
        {
            let error = Command::try_parse_from(["weft-proxy"].iter().chain(wrong)).unwrap_err();
            assert!(error.use_stderr(), "{wrong:?}");
        }
    }
}
