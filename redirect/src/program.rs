//! Runs `nft` and `ip`, and turns their failures into a [`RedirectError`].

use std::io::{self, Write};
use std::process::{Command, Output, Stdio};

use crate::RedirectError;

/// One of the two programs.
#[derive(Clone, Copy)]
struct Program {
    name: &'static str,
    package: &'static str,
}

const NFT: Program = Program { name: "nft", package: "nftables" };
const IP: Program = Program { name: "ip", package: "iproute2" };

/// `nft -f -` with `script` on its standard input: all or nothing.
pub(crate) fn nft_script(script: &str) -> Result<(), RedirectError> {
    run(NFT, &["-f", "-"], script).map(drop)
}

/// `nft` with arguments; its standard output.
pub(crate) fn nft(arguments: &[&str]) -> Result<String, RedirectError> {
    run(NFT, arguments, "")
}

/// `ip` with arguments; its standard output.
pub(crate) fn ip(arguments: &[&str]) -> Result<String, RedirectError> {
    run(IP, arguments, "")
}

fn run(program: Program, arguments: &[&str], input: &str) -> Result<String, RedirectError> {
    let output = spawn_and_feed(program, arguments, input).map_err(|source| {
        if source.kind() == io::ErrorKind::NotFound {
            RedirectError::MissingProgram { program: program.name, package: program.package }
        } else {
            RedirectError::Run { program: program.name, source }
        }
    })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let detail = first_lines(&String::from_utf8_lossy(&output.stderr));
    Err(if detail.contains("Operation not permitted") || detail.contains("Permission denied") {
        RedirectError::NotPermitted { program: program.name, detail }
    } else {
        RedirectError::Failed { program: program.name, arguments: arguments.join(" "), status: output.status, detail }
    })
}

/// Searches PATH, then /usr/sbin, which the PATH of an unprivileged user often lacks.
fn spawn_and_feed(program: Program, arguments: &[&str], input: &str) -> io::Result<Output> {
    let spawn = |path: &str| {
        Command::new(path)
            .args(arguments)
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
    };
    let mut child = match spawn(program.name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => spawn(&format!("/usr/sbin/{}", program.name))?,
        other => other?,
    };
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(input.as_bytes()) {
            // The program ended before it read everything: its exit status and error output say why.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            other => other?,
        }
    }
    child.wait_with_output()
}

/// The first three lines that are not empty, joined.
fn first_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).take(3).collect();
    lines.join("; ")
}
