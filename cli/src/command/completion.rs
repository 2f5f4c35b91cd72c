//! `weft completion`: the script that registers completion in a shell, and the answers to that script's questions.
//! On every Tab the script runs `COMPLETE=<shell> weft -- <words>`, so that objects can be completed too ([`values`]).
//! The protocol of each shell is clap_complete's "unstable-dynamic"; only this module and `values` depend on it.

mod values;

use std::{
    ffi::{OsStr, OsString},
    io::{self, Write as _},
};

use clap::CommandFactory as _;
use clap_complete::{
    engine,
    env::{self, EnvCompleter},
};

use crate::{
    args::{Args, Completion, Shell},
    config::{self, Completing},
};

/// Prints the script.
///
/// Errors: standard output is full.
pub fn run(args: &Completion) -> io::Result<()> {
    print(&script(args.shell)?)
}

/// Answers a shell, if one asks (`COMPLETE=<shell>`): prints the completions of a word, or the script if there are no words.
/// Returns whether one asked.
///
/// Errors: an unknown shell, or standard output is full.
pub(crate) fn answer() -> io::Result<bool> {
    let Some(Completing { shell, index, separator }) = config::completing() else { return Ok(false) };
    let shell = <Shell as clap::ValueEnum>::from_str(&shell, false)
        .map_err(|_unknown| io::Error::other(format!("COMPLETE={shell:?}: expected bash, zsh or fish")))?;
    let words: Vec<OsString> = std::env::args_os().skip_while(|word| word != "--").skip(1).collect();
    let last = words.len().saturating_sub(1);
    let text = match shell {
        _ if words.is_empty() => script(shell)?,
        Shell::Bash => bash(&words, index.unwrap_or(last).min(last), separator.as_deref().unwrap_or("\n")),
        Shell::Zsh | Shell::Fish => {
            let mut text = Vec::new();
            let mut command = values::completed(Args::command(), words.clone(), index.unwrap_or(last).min(last));
            let directory = std::env::current_dir().ok();
            of(shell).write_complete(&mut command, words, directory.as_deref(), &mut text)?;
            text
        }
    };
    print(&text)?;
    Ok(true)
}

/// The completions for bash, which breaks words at `:` and `=` and replaces only the part behind the last of them.
fn bash(words: &[OsString], index: usize, separator: &str) -> Vec<u8> {
    let (words, index, before) = joined(words, index);
    let mut command = values::completed(Args::command(), words.clone(), index);
    let directory = std::env::current_dir().ok();
    let found = engine::complete(&mut command, words, index, directory.as_deref()).unwrap_or_default();
    let values = found.iter().map(|candidate| candidate.get_value().to_string_lossy());
    let values: Vec<_> = values.filter_map(|value| value.strip_prefix(before.as_str()).map(str::to_owned)).collect();
    values.join(separator).into_bytes()
}

/// The words as they were typed, the index of the current one, and the part of it that bash does not replace.
fn joined(words: &[OsString], index: usize) -> (Vec<OsString>, usize, String) {
    let breaks = |word: &OsStr| !word.is_empty() && word.as_encoded_bytes().iter().all(|byte| b":=".contains(byte));
    let (mut out, mut current, mut before): (Vec<OsString>, _, _) = (Vec::new(), 0, OsString::new());
    for (at, word) in words.iter().enumerate() {
        let previous = at.checked_sub(1).and_then(|at| words.get(at));
        let continues = breaks(word) || previous.is_some_and(|previous| breaks(previous));
        match out.last_mut() {
            // The first word is the program.
            Some(last) if continues && at > 1 => {
                if at == index {
                    before = last.clone();
                }
                last.push(word);
            }
            _ => out.push(word.clone()),
        }
        if at == index {
            current = out.len() - 1;
        }
    }
    (out, current, before.to_string_lossy().into_owned())
}

fn script(shell: Shell) -> io::Result<Vec<u8>> {
    let mut script = Vec::new();
    of(shell).write_registration(config::COMPLETE, "weft", "weft", "weft", &mut script)?;
    Ok(script)
}

fn of(shell: Shell) -> &'static dyn EnvCompleter {
    match shell {
        Shell::Bash => &env::Bash,
        Shell::Zsh => &env::Zsh,
        Shell::Fish => &env::Fish,
    }
}

fn print(text: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text)?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    /// (20.26)
    #[test]
    fn words_that_bash_broke_are_whole_again() {
        for (line, index, whole, current, before) in [
            ("weft get svc", 2, "weft get svc", 2, ""),
            ("weft --server unix : /a.sock get svc ", 7, "weft --server unix:/a.sock get svc ", 5, ""),
            ("weft get svc --namespace = sh", 5, "weft get svc --namespace=sh", 3, "--namespace="),
            ("weft --server https : //a : 80 get ", 8, "weft --server https://a:80 get ", 4, ""),
        ] {
            let expected = (words(whole), current, before.to_owned());
            assert_eq!(joined(&words(line), index), expected, "{line}");
        }
    }
}
