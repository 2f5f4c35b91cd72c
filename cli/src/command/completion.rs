//! `weft completion`: a completion script for a shell.

use std::io::{self, Write as _};

use clap::CommandFactory as _;
use clap_complete::generate;

use crate::args::{Args, Completion, Shell};

/// Prints the script.
///
/// Errors: standard output is full.
pub fn run(args: &Completion) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(&script(args.shell))?;
    out.flush()
}

fn script(shell: Shell) -> Vec<u8> {
    let shell = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    generate(shell, &mut Args::command(), "weft", &mut script);
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_contain_the_commands() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = String::from_utf8(script(shell)).unwrap();
            assert!(script.contains("rollback"), "{shell:?}");
        }
    }
}
