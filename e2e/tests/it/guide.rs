//! Runs every command block of docs/guide/first-mesh.md and compares the output.
//! A block ```` ```sh host=a ```` is typed into the terminal of that host (`a,b`: of both); a ```` ```text ```` block after
//! it is the complete expected output, where `…` is any text and a line `…` any lines. `repeat`: until it prints that.
//! The guide's own namespaces and /run are private to this test, so it can run beside the demo and other tests.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use weft_e2e::{DEADLINE, Host, Process, programs, test, until};

/// What every terminal is told first: a command that fails says so.
const PROLOGUE: &str = "trap 'echo \"--failed $?: $BASH_COMMAND\"' ERR";

#[test]
fn every_command_of_the_first_mesh_does_what_the_guide_says() {
    let guide = fs::read_to_string(programs::repository().join("docs/guide/first-mesh.md")).unwrap();
    let blocks = parse(&guide).unwrap();
    assert!(blocks.len() > 30, "only {} blocks were found", blocks.len());
    test("guide-first-mesh", |world| {
        let host = world.host("guide")?;
        let mut terminals = Terminals::start(&host)?;
        for block in &blocks {
            terminals
                .run(block)
                .with_context(|| format!("line {}: {}{}", block.line, block.commands, terminals.logs()))?;
        }
        let left = terminals.ask("machine", "ip netns list; ls /run | grep weft || true")?;
        ensure!(left.trim().is_empty(), "the guide does not remove: {left}");
        Ok(())
    });
}

#[test]
fn a_block_without_a_host_and_an_output_without_a_command_are_refused() {
    for (guide, mistake) in [
        ("```sh\nls\n```\n", "line 1: a command block names no host"),
        ("```sh host=moon\nls\n```\n", "line 1: no host moon"),
        ("```sh host=a often\nls\n```\n", "line 1: unknown word often"),
        ("text\n```text\nout\n```\n", "line 2: an output without a command block before it"),
        ("```sh host=a\nls\n```\n```text\nx\n```\n```text\ny\n```\n", "line 7: an output without"),
        ("```yaml\na: b\n```\n", "line 1: neither sh nor text"),
        ("```sh host=a\nls\n", "line 1: the block does not end"),
    ] {
        let error = parse(guide).unwrap_err().to_string();
        assert!(error.contains(mistake), "{guide:?}: {error}");
    }
}

#[test]
fn an_output_is_compared_whole() {
    for (expected, seen) in [
        ("one", "one\n"),
        ("a  b", "a b   \n"),
        ("rev …", "rev 12"),
        ("{\"t\":\"…\",\"x\":1}", "{\"t\":\"12\",\"x\":1}"),
        ("1… v1", "   152 v1"),
        ("a\n…\nz", "a\nb\nc\nz"),
        ("a\n…\nz", "a\nz"),
        ("…", ""),
        ("…", "x\ny"),
    ] {
        assert!(matches(expected, seen), "{expected:?} must match {seen:?}");
    }
    for (expected, seen) in [
        ("one", "one two"),
        ("one", "none"),
        ("one", "one\ntwo"),
        ("one\ntwo", "one"),
        ("", "one"),
        ("rev … x", "rev 12"),
        ("ab…bc", "abc"),
        ("1… v1", "52 v1"),
        ("a\n…\nz", "a\nb"),
    ] {
        assert!(!matches(expected, seen), "{expected:?} must not match {seen:?}");
    }
}

#[test]
fn the_page_on_operating_has_every_flag_with_its_status() {
    let read = |path: &str| fs::read_to_string(programs::repository().join(path)).unwrap();
    let (page, code) = (read("docs/guide/operating.md"), read("core/src/failure.rs"));
    // The arms of `Failure::reply`: `=> (403, "RBAC"),`. The enum cannot be listed at run time.
    let arms = code.lines().filter_map(|line| line.split_once(" => (")?.1.strip_suffix("\"),")?.split_once(", \""));
    let mut flags: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (status, flag) in arms {
        flags.entry(flag).or_default().push(status);
    }
    assert!(flags.len() > 20, "{flags:?}");
    let (_, table) = page.split_once("### Flags").unwrap();
    let rows: Vec<Vec<&str>> = table
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.split('|').map(str::trim).collect())
        .collect();
    for (flag, statuses) in &flags {
        let row = rows.iter().find(|row| row[1] == format!("`{flag}`"));
        let row = row.unwrap_or_else(|| panic!("{flag} is missing"));
        for status in statuses.iter().filter(|status| !status.starts_with('*')) {
            assert!(row[2].split(", ").any(|there| there == *status), "{flag}: {status} is missing");
        }
    }
    for row in &rows {
        assert!(flags.keys().any(|flag| row[1] == format!("`{flag}`")), "{} is no flag", row[1]);
    }
}

/// One command block.
#[derive(Debug)]
struct Block {
    /// Where it begins in the guide, from 1.
    line: usize,
    hosts: Vec<String>,
    commands: String,
    /// Again until the output is as expected.
    repeat: bool,
    /// `None`: the guide shows none, and there must be none.
    output: Option<String>,
}

/// The command blocks of the guide, in order.
fn parse(guide: &str) -> Result<Vec<Block>> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut lines = guide.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        let Some(info) = line.strip_prefix("```") else { continue };
        let at = index + 1;
        let mut text = String::new();
        loop {
            let Some((_, line)) = lines.next() else { bail!("line {at}: the block does not end") };
            if line == "```" {
                break;
            }
            text.push_str(line);
            text.push('\n');
        }
        let mut words = info.split_whitespace();
        match words.next() {
            Some("sh") => {
                let mut block = Block { line: at, hosts: Vec::new(), commands: text, repeat: false, output: None };
                for word in words {
                    match word.strip_prefix("host=") {
                        Some(hosts) => block.hosts = hosts.split(',').map(str::to_owned).collect(),
                        None if word == "repeat" => block.repeat = true,
                        None => bail!("line {at}: unknown word {word}"),
                    }
                }
                ensure!(!block.hosts.is_empty(), "line {at}: a command block names no host");
                for host in &block.hosts {
                    ensure!(["machine", "a", "b"].contains(&host.as_str()), "line {at}: no host {host}");
                }
                blocks.push(block);
            }
            Some("text") => {
                let block = blocks.last_mut().filter(|block| block.output.is_none());
                let block = block.with_context(|| format!("line {at}: an output without a command block before it"))?;
                block.output = Some(text);
            }
            _ => bail!("line {at}: neither sh nor text: {info}"),
        }
    }
    Ok(blocks)
}

/// Whether all of `seen` is as `expected` says. Runs of spaces count as one; the ends of lines do not count.
fn matches(expected: &str, seen: &str) -> bool {
    let plain = |text: &str| -> Vec<String> {
        text.trim_end().lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    };
    lines_match(&plain(expected), &plain(seen))
}

fn lines_match(expected: &[String], seen: &[String]) -> bool {
    match expected.split_first() {
        None => seen.is_empty(),
        Some((first, rest)) if first == "…" => (0..=seen.len()).any(|skipped| lines_match(rest, &seen[skipped..])),
        Some((first, rest)) => {
            seen.split_first().is_some_and(|(line, others)| line_matches(first, line) && lines_match(rest, others))
        }
    }
}

fn line_matches(expected: &str, seen: &str) -> bool {
    let Some((start, rest)) = expected.split_once('…') else { return expected == seen };
    let Some(seen) = seen.strip_prefix(start) else { return false };
    let ends = seen.char_indices().map(|(at, _)| at).chain([seen.len()]);
    ends.into_iter().any(|at| line_matches(rest, &seen[at..]))
}

/// A reader's three terminals.
#[derive(Debug)]
struct Terminals {
    directory: PathBuf,
    terminals: BTreeMap<String, Terminal>,
    /// Its end is the end of all.
    machine: Process,
    typed: usize,
}

#[derive(Debug)]
struct Terminal {
    input: File,
    output: PathBuf,
}

impl Terminals {
    /// A machine of its own (namespaces of processes, mounts and network) with one terminal.
    fn start(host: &Host) -> Result<Self> {
        let directory = host.directory().to_owned();
        let mut terminals = BTreeMap::new();
        // Opened for both ways: opening does not wait for the other end, and the other end never sees the end.
        let terminal = Terminal::new(host, "machine")?;
        // The private /run holds the guide's files and the names of its namespaces.
        let script = format!(
            "mount -t tmpfs tmpfs /run && exec bash --norc < {0}/machine.in > {0}/machine.out 2>&1",
            directory.display()
        );
        let machine = host.spawn(
            "unshare",
            &["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c", &script],
            &[],
        )?;
        terminals.insert("machine".to_owned(), terminal);
        let mut all = Self { directory, terminals, machine, typed: 0 };
        let programs = programs::find("weft-proxy")?;
        let programs = programs.parent().context("the program has no parent directory")?.display();
        let reply = all.ask("machine", &format!("export PATH={programs}:$PATH\n{PROLOGUE}"))?;
        ensure!(reply.is_empty(), "unexpected output of the terminal: {reply}");
        Ok(all)
    }

    /// Types a block on its hosts and compares.
    fn run(&mut self, block: &Block) -> Result<()> {
        for host in &block.hosts {
            self.open(host)?;
            let mut attempt = || {
                let seen = self.ask(host, &block.commands)?;
                let expected = block.output.as_deref().unwrap_or_default();
                ensure!(matches(expected, &seen), "on {host}, expected output:\n{expected}actual output:\n{seen}");
                anyhow::Ok(())
            };
            if block.repeat { until("the guide's output", DEADLINE, attempt)? } else { attempt()? }
        }
        Ok(())
    }

    /// The end of what the programs said, for whoever has to find out why a command failed.
    fn logs(&mut self) -> String {
        let logs = self.ask("machine", "tail -n 30 /run/weft-guide/*.err /run/weft-guide/*.log");
        logs.unwrap_or_else(|error| format!("no logs: {error:#}"))
    }

    /// Opens the terminal of a host that has none yet, as the guide says.
    fn open(&mut self, name: &str) -> Result<()> {
        if self.terminals.contains_key(name) {
            return Ok(());
        }
        let terminal = Terminal::at(&self.directory, name)?;
        self.terminals.insert(name.to_owned(), terminal);
        let files = self.directory.join(name).display().to_string();
        self.ask("machine", &format!("ip netns exec weft-{name} bash --norc < {files}.in > {files}.out 2>&1 &"))?;
        let reply = self.ask(name, PROLOGUE)?;
        ensure!(reply.is_empty(), "unexpected output of the terminal: {reply}");
        Ok(())
    }

    /// Types commands into a terminal and waits until they are done; all they printed.
    fn ask(&mut self, name: &str, commands: &str) -> Result<String> {
        self.typed += 1;
        let script = self.directory.join(format!("{}.sh", self.typed));
        fs::write(&script, commands)?;
        let end = format!("--end {}\n", self.typed);
        let terminal = self.terminals.get_mut(name).context("no such terminal")?;
        let before = fs::read_to_string(&terminal.output).map_or(0, |text| text.len());
        // Sourced: variables and background jobs stay, and nothing that reads its input eats the next block.
        writeln!(terminal.input, "source {} < /dev/null; echo '{}'", script.display(), end.trim_end())?;
        let output = terminal.output.clone();
        let text = until(format!("{name} to finish"), DEADLINE * 4, || {
            let text = fs::read_to_string(&output)?;
            let text = text.get(before..).unwrap_or_default().to_owned();
            ensure!(text.ends_with(&end), "output so far: {text}");
            Ok(text)
        })?;
        ensure!(self.machine.ended()?.is_none(), "the machine has exited");
        let text = text.trim_end_matches(&end).to_owned();
        ensure!(!text.contains("--failed"), "a command failed: {text}");
        Ok(text)
    }
}

impl Terminal {
    fn new(host: &Host, name: &str) -> Result<Self> {
        Self::at(host.directory(), name)
    }

    /// Its input, a named pipe, and its output, a file, in `directory`.
    fn at(directory: &Path, name: &str) -> Result<Self> {
        let input = directory.join(format!("{name}.in"));
        let made = std::process::Command::new("mkfifo").arg(&input).status()?;
        ensure!(made.success(), "mkfifo {}: {made}", input.display());
        let input = OpenOptions::new().read(true).write(true).open(input)?;
        Ok(Self { input, output: directory.join(format!("{name}.out")) })
    }
}
