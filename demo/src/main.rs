//! `weft-demo`: the program that `weft demo` starts.

use std::process::ExitCode;

use clap::Parser;
use weft::args::Demo;

/// Run a shop in the mesh on this machine, with a live view; `weft demo` starts this program
#[derive(Debug, Parser)]
#[command(name = "weft-demo", version, max_term_width = 100)]
struct Args {
    #[command(flatten)]
    demo: Demo,
}

fn main() -> ExitCode {
    weft::run::program(async |args: Args| weft_demo::run(&args.demo).await)
}
