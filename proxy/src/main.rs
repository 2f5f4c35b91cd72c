//! `weft-proxy`: the program. Parses the command line and starts what it names.

use std::process::ExitCode;

use clap::Parser;
use weft_proxy::redirect::{self, RedirectArgs};

/// The data plane of Weft
#[derive(Parser)]
#[command(name = "weft-proxy", version)]
enum Command {
    // Its help is that of the arguments.
    Redirect(RedirectArgs),
}

fn main() -> ExitCode {
    let command = match Command::try_parse() {
        Ok(command) => command,
        Err(error) => {
            let code = if error.use_stderr() { 64 } else { 0 };
            return match error.print() {
                Ok(()) => ExitCode::from(code),
                Err(_) => ExitCode::FAILURE,
            };
        }
    };
    let result = match command {
        Command::Redirect(args) => redirect::run(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("weft-proxy: {error:#}");
        ExitCode::FAILURE
    })
}
