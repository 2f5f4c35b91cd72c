//! A world: network namespaces joined by one bridge, for one test, gone afterwards.
//! Namespaces are `weft-<run>-<host>`; the bridge has one of its own (`weft-<run>-wire`), so every world can use the
//! same addresses (10.77.0.0/16, fd00:77::/64), nothing appears on the machine's own network, and tests run in parallel.
//! `<run>` names the process, its start time and a count: what a dead process left is recognised and removed.

use std::fmt::Write as _;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use tempfile::TempDir;

use crate::host::Host;
use crate::process::run_ok;
use crate::programs;
use crate::wait::{DEADLINE, until};

/// Lines of each log that a failed test prints.
const LOG_TAIL: usize = 120;

/// Gives `body` a world of its own; fails the test, with every log, when it returns an error or panics.
#[expect(clippy::panic, reason = "this is how a test fails")]
pub fn test(name: &str, body: impl FnOnce(&mut World) -> Result<()>) {
    let mut world = match World::start(name) {
        Ok(world) => world,
        Err(error) => panic!("cannot make the world of {name}: {error:?}"),
    };
    match catch_unwind(AssertUnwindSafe(|| body(&mut world))) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            world.print_logs();
            panic!("{name}: {error:?}");
        }
        Err(panic) => {
            world.print_logs();
            resume_unwind(panic);
        }
    }
}

/// One bridge and the hosts on it. Dropping it kills what runs there and removes everything.
#[derive(Debug)]
pub struct World {
    run: String,
    logs: PathBuf,
    directory: TempDir,
    hosts: Vec<Host>,
    names: Vec<(String, String)>,
}

impl World {
    /// An empty world. `name` is the test's, unique among the tests: it names the directory of the logs.
    ///
    /// Errors: not root, or `ip` fails.
    pub fn start(name: &str) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        ensure!(geteuid().is_root(), "the end-to-end tests create network namespaces: run them as root");
        remove_stale_once();

        let logs = programs::logs().join(name);
        if logs.exists() {
            fs::remove_dir_all(&logs).with_context(|| format!("empty {}", logs.display()))?;
        }
        fs::create_dir_all(&logs).with_context(|| format!("create {}", logs.display()))?;
        let pid = std::process::id();
        let start = start_time(pid).context("find the start time of this process")?;
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let world = Self {
            run: format!("e{pid}s{start}n{count}"),
            logs,
            directory: tempfile::tempdir().context("create a directory for the world")?,
            hosts: Vec::new(),
            names: Vec::new(),
        };
        let wire = world.wire();
        run_ok("ip", &["netns", "add", &wire])?;
        run_ok("ip", &["-n", &wire, "link", "add", "wire0", "type", "bridge"])?;
        run_ok("ip", &["-n", &wire, "link", "set", "wire0", "up"])?;
        Ok(world)
    }

    /// A new host with one IPv4 and one IPv6 address on the bridge. Its name is known on every host.
    ///
    /// Errors: the name is taken or too strange for a namespace, or `ip` fails.
    pub fn host(&mut self, name: &str) -> Result<Host> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        ensure!(!name.is_empty() && name.chars().all(plain), "not a host name: {name:?}");
        ensure!(name != "wire" && self.hosts.iter().all(|host| host.name() != name), "the host {name} exists already");
        let number = u8::try_from(self.hosts.len() + 1).context("too many hosts")?;
        let directory = self.directory.path().join(name);
        fs::create_dir(&directory).with_context(|| format!("create {}", directory.display()))?;
        let host = Host::new(name, format!("weft-{}-{name}", self.run), number, directory, self.logs.clone())?;
        // Known from here on, so that a half-made one is removed too.
        self.hosts.push(host.clone());
        let (namespace, wire, port) = (host.namespace(), self.wire(), format!("p{number}"));
        self.name(name, &[&host.ipv4().to_string(), &host.ipv6().to_string()])?;

        run_ok("ip", &["netns", "add", namespace])?;
        run_ok("ip", &["-n", namespace, "link", "set", "lo", "up"])?;
        // Nobody else has our addresses: no waiting for duplicates.
        run_ok("ip", &["netns", "exec", namespace, "sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0"])?;
        run_ok("ip", &["-n", &wire, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", namespace])?;
        run_ok("ip", &["-n", &wire, "link", "set", &port, "master", "wire0", "up"])?;
        run_ok("ip", &["-n", namespace, "link", "set", "eth0", "up"])?;
        run_ok("ip", &["-n", namespace, "address", "add", &format!("{}/16", host.ipv4()), "dev", "eth0"])?;
        let v6 = format!("{}/64", host.ipv6());
        run_ok("ip", &["-n", namespace, "address", "add", &v6, "dev", "eth0", "nodad"])?;
        // The kernel adds the link-local address and its routes when the link is ready, which it tells later.
        until(format!("the link of {name}"), DEADLINE, || {
            let args = ["-n", namespace, "-6", "address", "show", "dev", "eth0", "scope", "link", "-tentative"];
            ensure!(run_ok("ip", &args)?.contains("fe80::"), "no link-local address");
            Ok(())
        })?;
        Ok(host)
    }

    /// Makes `name` mean `addresses` in `/etc/hosts` of every host, now and later.
    ///
    /// Errors: a hosts file cannot be written.
    pub fn name(&mut self, name: &str, addresses: &[&str]) -> Result<()> {
        self.names.extend(addresses.iter().map(|address| (name.to_owned(), (*address).to_owned())));
        self.write_hosts()
    }

    /// Like [`World::name`], in place of every address the name has so far.
    ///
    /// Errors: a hosts file cannot be written.
    pub fn rename(&mut self, name: &str, addresses: &[&str]) -> Result<()> {
        self.names.retain(|(known, _)| known != name);
        self.name(name, addresses)
    }

    fn write_hosts(&self) -> Result<()> {
        let mut text = String::from("127.0.0.1 localhost\n::1 localhost\n");
        for (name, address) in &self.names {
            writeln!(text, "{address} {name}")?;
        }
        for host in &self.hosts {
            host.write_hosts(&text)?;
        }
        Ok(())
    }

    /// A directory for files of this test, removed with the world.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Every host so far.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    fn wire(&self) -> String {
        format!("weft-{}-wire", self.run)
    }

    /// Prints the end of every log to standard error.
    pub fn print_logs(&self) {
        let Ok(entries) = fs::read_dir(&self.logs) else { return };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths.iter().filter(|path| path.extension().is_some_and(|end| end == "log")) {
            let bytes = fs::read(path).unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes);
            let lines: Vec<&str> = text.lines().collect();
            let tail = lines.get(lines.len().saturating_sub(LOG_TAIL)..).unwrap_or_default();
            eprintln!("--- {} ({} of {} lines)\n{}", path.display(), tail.len(), lines.len(), tail.join("\n"));
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let namespaces: Vec<String> = self.hosts.iter().map(|host| host.namespace().to_owned()).collect();
        for namespace in namespaces.into_iter().chain([self.wire()]) {
            if let Err(error) = remove_namespace(&namespace) {
                eprintln!("weft-e2e: remove {namespace}: {error:#}");
            }
        }
    }
}

/// Kills what runs in the namespace, then removes it and its files in /etc/netns.
fn remove_namespace(namespace: &str) -> Result<()> {
    for pid in run_ok("ip", &["netns", "pids", namespace]).unwrap_or_default().lines() {
        if let Some(pid) = pid.trim().parse().ok().and_then(Pid::from_raw) {
            // It may have ended meanwhile.
            kill_process(pid, Signal::KILL).ok();
        }
    }
    let files = Path::new("/etc/netns").join(namespace);
    if files.exists() {
        fs::remove_dir_all(&files).with_context(|| format!("remove {}", files.display()))?;
    }
    if Path::new("/run/netns").join(namespace).exists() {
        run_ok("ip", &["netns", "del", namespace])?;
    }
    Ok(())
}

/// Removes what dead processes left; once per process.
fn remove_stale_once() {
    static ONCE: Once = Once::new();
    ONCE.call_once(remove_stale);
}

/// Removes the namespaces of this harness whose process is gone, with what runs in them.
/// Failures are only printed: another run may be removing the same one.
pub fn remove_stale() {
    for directory in ["/run/netns", "/etc/netns"] {
        let Ok(entries) = fs::read_dir(directory) else { continue };
        for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
            let stale = owner(&name).is_some_and(|(pid, start)| start_time(pid) != Some(start));
            if stale {
                eprintln!("weft-e2e: removing {name}, left by a run that is gone");
                if let Err(error) = remove_namespace(&name) {
                    eprintln!("weft-e2e: remove {name}: {error:#}");
                }
            }
        }
    }
}

/// The process that made a namespace of this harness: `weft-e<pid>s<start>n<count>-<host>`.
fn owner(namespace: &str) -> Option<(u32, u64)> {
    let (run, _host) = namespace.strip_prefix("weft-e")?.split_once('-')?;
    let (process, count) = run.split_once('n')?;
    let (pid, start) = process.split_once('s')?;
    count.parse::<u32>().ok()?;
    Some((pid.parse().ok()?, start.parse().ok()?))
}

/// When a process started, in clock ticks after boot: with the number it names a process for good.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may contain spaces; the 20th field after it is the start time.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_namespaces_of_this_harness_have_an_owner() {
        assert_eq!(owner("weft-e12s345n6-product-1"), Some((12, 345)));
        for other in ["weft-demo-edge", "weft-e12-x", "weft-e12s3-x", "weft-edge", "weft-e12s345n6", "other"] {
            assert_eq!(owner(other), None, "{other}");
        }
    }

    #[test]
    fn this_process_has_a_start_time_and_a_dead_one_has_none() {
        assert!(start_time(std::process::id()).is_some());
        assert_eq!(start_time(u32::MAX), None);
    }
}
