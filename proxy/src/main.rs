//! `weft-proxy`: the program. Parses the command line and starts what it names.

use std::process::ExitCode;

use clap::Parser;
use weft_proxy::command::{self, Command};

fn main() -> ExitCode {
    match Command::try_parse() {
        Ok(command) => command::run(command),
        Err(error) => {
            let code = if error.use_stderr() { command::USAGE } else { 0 };
            if error.print().is_ok() { ExitCode::from(code) } else { ExitCode::FAILURE }
        }
    }
}
