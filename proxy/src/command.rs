//! The sub-commands of `weft-proxy`, and the one place that prints errors and chooses exit codes.
//!
//! | exit code | |
//! |---|---|
//! | 0 | success |
//! | 1 | failure |
//! | 64 | mistakes in the command line or file (sysexits.h `EX_USAGE`) |

mod call;
mod enrol;
mod log;

use std::{io, io::Write as _, process::ExitCode};

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser, ValueEnum};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use weft_core::{api::line_in, text::clean_lines};
use weft_redirect::RedirectArgs;

use self::{
    call::{DrainArgs, ReadyArgs, UndrainArgs},
    enrol::IdentityArgs,
};
use crate::{
    app::{App, Signals},
    config::{ConfigError, LogArgs, Mistake, Settings, SettingsArgs, Source},
    file,
};

/// Exit code for mistakes in the command line or file.
pub const USAGE: u8 = 64;

/// The data plane of Weft: carries the traffic of one workload, or of a gateway
#[derive(Debug, Parser)]
#[expect(missing_docs, reason = "clap shows the documentation of a command's arguments only if the command has none")]
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
    Run(RunArgs),
    Redirect(RedirectArgs),
    Identity(IdentityArgs),
    Ready(ReadyArgs),
    Drain(DrainArgs),
    Undrain(UndrainArgs),
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

/// Carry traffic, beside a workload or as a gateway
///
/// Drains on SIGTERM or SIGINT, then exits: readiness fails, the control plane is told, listeners close, and open connections
/// have `spec.drain` (30s) to end; idle ones of the workload are not waited for. A second signal exits at once. SIGHUP reloads the objects in the file.
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

    /// Only check the file: exit 0 if it is valid, or 64 with every mistake
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
        Command::Undrain(args) => call::undrain(&args),
        Command::Completion { shell } => completion(shell),
    };
    result.unwrap_or_else(|error| {
        eprintln!("weft-proxy: {}", clean_lines(&format!("{error:#}")));
        ExitCode::from(if error.is::<ConfigError>() || error.is::<call::UrlError>() { USAGE } else { 1 })
    })
}

fn carry(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let settings = args.settings.read()?;
    check(args, &settings)?;
    if args.check {
        println!("{}: OK", args.settings.config.display());
        return Ok(ExitCode::SUCCESS);
    }
    log::start(&args.log)?;
    files()?;
    let runtime = runtime()?;
    let result = runtime.block_on(async {
        // First of all, so that a signal during the start is not lost.
        let signals = Signals::listen()?;
        let app = Box::pin(App::start(settings)).await?;
        Box::pin(app.run(&args.settings, signals)).await;
        Ok(ExitCode::SUCCESS)
    });
    // A blocked write to standard output must not delay the exit.
    runtime.shutdown_background();
    result
}

/// Raises the number of files that this process may open to the hard limit: each connection through the proxy takes two, and the
/// soft limit of a shell or service is often 1024.
fn files() -> anyhow::Result<()> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
            .context("raising the limit of open files failed")?;
    }
    Ok(())
}

/// Checks what the file and the flags refer to.
/// Errors: a mistake that would keep the proxy from starting.
fn check(args: &RunArgs, settings: &Settings) -> Result<(), ConfigError> {
    log::filter(&args.log)?;
    if let Source::File { identity: Some(files), .. } = &settings.source {
        file::read_identity(files, settings.tls.records).map_err(|error| {
            let path = args.settings.config.clone();
            // The settings have no lines; the file is read again for this one mistake.
            let line = std::fs::read_to_string(&path).ok().map(|text| line_in(&text, 0, "spec.identity"));
            let text = format!("{:#}", anyhow::Error::from(error));
            ConfigError::Mistakes { path, mistakes: vec![Mistake { line, text }] }
        })?;
    }
    Ok(())
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

    /// (26)
    #[test]
    fn every_command_shows_its_long_help_and_examples() {
        for command in Command::command().get_subcommands_mut().filter(|command| command.get_name() != "completion") {
            let name = command.get_name().to_owned();
            let (short, long) = (command.render_help().to_string(), command.render_long_help().to_string());
            assert!(long.len() > short.len() && long.contains("Examples:\n  weft-proxy "), "{name}: {long}");
            assert!(command.get_long_about().is_some(), "{name}");
        }
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
