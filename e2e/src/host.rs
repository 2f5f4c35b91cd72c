//! One host of a world: a network namespace with addresses, a hosts file and a directory.
//! Programs enter it as children of `ip netns exec`, which also puts the hosts file in place.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

use crate::process::{Process, ensure_success, run};
use crate::{programs, wait};

/// A handle; clones name the same host.
#[derive(Debug, Clone)]
pub struct Host(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    namespace: String,
    number: u8,
    directory: PathBuf,
    logs: PathBuf,
    started: AtomicU32,
}

impl Host {
    pub(crate) fn new(name: &str, namespace: String, number: u8, directory: PathBuf, logs: PathBuf) -> Result<Self> {
        let host = Self(Arc::new(Inner {
            name: name.to_owned(),
            namespace,
            number,
            directory,
            logs,
            started: AtomicU32::new(0),
        }));
        // `ip netns exec` binds the file only if it is there.
        host.write_hosts("")?;
        Ok(host)
    }

    /// Its short name, as the other hosts know it.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The network namespace, for `ip -n`.
    pub fn namespace(&self) -> &str {
        &self.0.namespace
    }

    /// 10.77.0.11 for the first host, and so on.
    pub fn ipv4(&self) -> Ipv4Addr {
        Ipv4Addr::from(0x0a4d_0000_u32 + 10 + u32::from(self.0.number))
    }

    /// fd00:77::11 for the first host: the same digits as in IPv4.
    pub fn ipv6(&self) -> Ipv6Addr {
        let number = 10 + u16::from(self.0.number);
        let digits = ((number / 100) << 8) | ((number / 10 % 10) << 4) | (number % 10);
        Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, digits)
    }

    /// Both.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.ipv4().into(), self.ipv6().into()]
    }

    /// A directory of its own, removed with the world.
    pub fn directory(&self) -> &Path {
        &self.0.directory
    }

    /// Writes a file into its directory.
    ///
    /// Errors: the file cannot be written.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> Result<PathBuf> {
        let path = self.0.directory.join(name);
        fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }

    /// Starts a program and lets it run. Names that begin with `weft-` are ours (see [`programs`]).
    /// Output goes to `target/e2e-logs/<test>/<host>-<n>-<program>.log`.
    ///
    /// Errors: it cannot be started. A program that `ip netns exec` does not find shows as an early end.
    pub fn spawn(&self, program: &str, args: &[&str], env: &[(&str, &str)]) -> Result<Process> {
        let number = self.0.started.fetch_add(1, Ordering::Relaxed);
        let short = Path::new(program).file_name().and_then(OsStr::to_str).unwrap_or("program");
        let log = self.0.logs.join(format!("{}-{number}-{short}.log", self.name()));
        let mut command = self.command(program, args)?;
        command.envs(env.iter().copied());
        Process::start(&format!("{short} on {}", self.name()), command, log)
    }

    /// Runs a program to its end, whatever its status.
    ///
    /// Errors: it cannot be started, or runs longer than [`wait::DEADLINE`].
    pub fn exec(&self, program: &str, args: &[&str]) -> Result<Output> {
        run(self.command(program, args)?, wait::DEADLINE)
    }

    /// Runs a program that must succeed; its standard output.
    ///
    /// Errors: as [`Host::exec`], and a status other than 0, with what it said.
    pub fn exec_ok(&self, program: &str, args: &[&str]) -> Result<String> {
        let output = self.exec(program, args)?;
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        ensure_success(OsStr::new(program), &args, &output).with_context(|| format!("on {}", self.name()))
    }

    /// Captures its connections with `weft-proxy redirect` and these flags.
    ///
    /// Errors: as [`Host::exec_ok`].
    pub fn redirect(&self, flags: &[&str]) -> Result<()> {
        self.exec_ok("weft-proxy", &[&["redirect"], flags].concat()).map(drop)
    }

    fn command(&self, program: &str, args: &[&str]) -> Result<Command> {
        let program = match program.strip_prefix("weft-") {
            Some(_) => programs::find(program)?.into_os_string(),
            None => OsString::from(program),
        };
        let mut command = Command::new("ip");
        command.args(["netns", "exec", self.namespace()]).arg(program).args(args);
        command.current_dir(self.directory());
        Ok(command)
    }

    /// Writes in place: running programs have this very file bound over /etc/hosts.
    pub(crate) fn write_hosts(&self, text: &str) -> Result<()> {
        let directory = Path::new("/etc/netns").join(self.namespace());
        fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
        let path = directory.join("hosts");
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    }
}
