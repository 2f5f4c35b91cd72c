//! A pair given on the command line: `NAME=OUTBOUND COMMAND -- INBOUND COMMAND`, words separated by blanks.
//!
//! In the words, and in files that they name as `{file:PATH}`, these are replaced: `{entry}` (where the outbound proxy
//! listens), `{middle}` (where the inbound proxy listens and the outbound one connects), `{server}` (the application), each
//! `address:port`, also as `{entry-port}` and so on; `{certs}` (the directory with ca.pem, client.pem, client.key,
//! server.pem, server.key); `{dir}` (a directory of this pair's own). Anything else in braces stays.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result};

use super::{Plan, Started};
use crate::floor::Side;

/// Programs to start as a pair.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Other {
    /// The name in the report.
    pub name: String,
    outbound: Vec<String>,
    inbound: Vec<String>,
}

impl FromStr for Other {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = "NAME=OUTBOUND COMMAND -- INBOUND COMMAND";
        let (name, commands) = text.split_once('=').ok_or(format!("expected {form}"))?;
        let is_name = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        if !is_name(name) || super::Proxy::ALL.iter().any(|known| known.name() == name) {
            return Err(format!(
                "{name:?} is no name for a pair: letters, digits and dashes, and none of the bench's own"
            ));
        }
        let words = |command: &str| command.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let (outbound, inbound) = commands.split_once(" -- ").ok_or(format!("expected {form}"))?;
        let (outbound, inbound) = (words(outbound), words(inbound));
        if outbound.is_empty() || inbound.is_empty() {
            return Err(format!("expected two commands: {form}"));
        }
        Ok(Self { name: name.to_owned(), outbound, inbound })
    }
}

impl Other {
    pub(super) fn start(&self, plan: &Plan<'_>) -> Result<Started> {
        let run = |side: Side, words: &[String]| {
            let words: Vec<String> = words.iter().map(|word| expand(word, plan)).collect::<Result<_>>()?;
            let (program, args) = words.split_first().context("no command")?;
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            plan.launch(side, &find(program), &args)
        };
        let inbound = run(Side::Inbound, &self.inbound)?;
        let outbound = run(Side::Outbound, &self.outbound)?;
        Ok((outbound, inbound, None))
    }
}

/// exec looks for a bare name in PATH by itself, but not where Debian keeps servers.
fn find(program: &str) -> PathBuf {
    let path = Path::new("/usr/sbin").join(program);
    if path.is_file() { path } else { PathBuf::from(program) }
}

/// A word with its placeholders replaced. A file is copied with its own replaced, and stands as the copy's path.
fn expand(word: &str, plan: &Plan<'_>) -> Result<String> {
    let Some((before, rest)) = word.split_once("{file:") else { return Ok(replace(word, plan)) };
    let (path, after) = rest.split_once('}').with_context(|| format!("{word:?} has no closing brace"))?;
    let text = std::fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    let name = Path::new(path).file_name().and_then(|name| name.to_str()).context("a file's name")?;
    let copy = plan.write(name, &replace(&text, plan))?;
    Ok(format!("{}{}{}", replace(before, plan), copy.display(), replace(after, plan)))
}

fn replace(text: &str, plan: &Plan<'_>) -> String {
    let mut text = text
        .replace("{certs}", &plan.place.certs.dir().display().to_string())
        .replace("{dir}", &plan.dir.display().to_string());
    for (name, address) in [("entry", plan.entry), ("middle", plan.middle), ("server", plan.server)] {
        text = text
            .replace(&format!("{{{name}}}"), &address.to_string())
            .replace(&format!("{{{name}-port}}"), &address.port().to_string());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_a_name_and_two_commands() {
        let other: Other = "nginx=nginx -c {file:a.conf} -- nginx -c {file:b.conf}".parse().unwrap();
        assert_eq!(other.name, "nginx");
        assert_eq!(other.outbound, ["nginx", "-c", "{file:a.conf}"]);
        assert_eq!(other.inbound, ["nginx", "-c", "{file:b.conf}"]);
        for wrong in ["", "nginx", "nginx=a", "nginx=a -- ", "=a -- b", "weft=a -- b", "a b=c -- d"] {
            assert!(wrong.parse::<Other>().is_err(), "{wrong:?}");
        }
    }
}
