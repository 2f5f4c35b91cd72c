//! `weft demo`: replaces this program by `weft-demo`, which lies beside it, with the same flags.

use std::{ffi::OsString, os::unix::process::CommandExt as _, process::Command};

use anyhow::{Context as _, Result};

use crate::args::Demo;

/// Starts the demo in this process; returns only when that fails.
///
/// Errors: `weft-demo` is not beside this program, or cannot be executed.
pub fn run(args: &Demo) -> Result<()> {
    let program = std::env::current_exe().context("find this program")?.with_file_name("weft-demo");
    let failure = Command::new(&program).args(flags(args)).exec();
    Err(failure).with_context(|| {
        format!(
            "cannot start {}, which belongs beside this program; cargo build -p weft-demo makes it",
            program.display()
        )
    })
}

/// The flags that parse to `args` again.
fn flags(args: &Demo) -> Vec<OsString> {
    let Demo { check, cleanup, edge, rps, bin, shop } = args;
    let mut flags: Vec<OsString> = vec![format!("--rps={rps}").into()];
    flags.extend(check.then(|| "--check".into()));
    flags.extend(cleanup.then(|| "--cleanup".into()));
    flags.extend(edge.map(|edge| format!("--edge={edge}").into()));
    for (flag, directory) in [("--bin=", bin), ("--shop=", shop)] {
        if let Some(directory) = directory {
            let mut word = OsString::from(flag);
            word.push(directory);
            flags.push(word);
        }
    }
    flags
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        demo: Demo,
    }

    #[test]
    fn the_flags_parse_to_the_same_arguments() {
        for line in [
            &["demo", "--rps=7", "--check", "--edge=[::1]:80", "--bin=/a b", "--shop=-x"][..],
            &["demo", "--cleanup", "--bin=bin"],
        ] {
            let args = Program::try_parse_from(line).unwrap().demo;
            let again = Program::try_parse_from([OsString::from("demo")].into_iter().chain(flags(&args)));
            assert_eq!(format!("{:?}", again.unwrap_or_else(|error| panic!("{error}")).demo), format!("{args:?}"));
        }
    }
}
