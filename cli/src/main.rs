//! `weft`: the program. Parses the command line, runs the command, prints the error and what to do next.

use std::process::ExitCode;

fn main() -> ExitCode {
    weft::run::main()
}
