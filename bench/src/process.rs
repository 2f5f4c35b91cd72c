//! Child programs: in a process group of their own, pinned to one CPU, with a log file, and killed when the bench ends.
//!
//! Pinning and the parent-death signal need code between fork and exec, which safe Rust does not allow; so a child is
//! started as `weft-bench child --cpu N -- PROGRAM ARGS…`, which sets both on itself and then becomes the program.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, getppid, kill_process_group, set_parent_process_death_signal};
use rustix::thread::{CpuSet, gettid, sched_setaffinity};

/// How children are started.
#[derive(Clone, Debug)]
pub struct Launcher {
    bench: PathBuf,
    logs: PathBuf,
}

impl Launcher {
    /// A launcher that writes the children's logs to `logs`. `bench` is the `weft-bench` program itself.
    #[must_use]
    pub fn new(bench: PathBuf, logs: PathBuf) -> Self {
        Self { bench, logs }
    }

    /// The `weft-bench` program.
    #[must_use]
    pub fn bench(&self) -> &Path {
        &self.bench
    }

    /// Where logs go.
    #[must_use]
    pub fn logs(&self) -> &Path {
        &self.logs
    }

    /// Starts `program` on `cpu`; both output streams go to `<name>.log`.
    ///
    /// # Errors
    /// The log cannot be made or the process cannot be started. A missing program shows later, in the log.
    pub fn start<I, S>(&self, name: &str, cpu: usize, program: &Path, args: I) -> Result<Child>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let command = self.command(cpu, program, args);
        self.spawn(name, command)
    }

    /// The same, of a program that in life runs on another machine: here it gives way to what it shares `cpu` with.
    ///
    /// # Errors
    /// As above.
    pub fn start_elsewhere<I, S>(&self, name: &str, cpu: usize, program: &Path, args: I) -> Result<Child>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let yields = ["--yields".as_ref(), "--".as_ref(), program.as_os_str()];
        let mut command = self.child(cpu);
        command.args(yields).args(args);
        self.spawn(name, command)
    }

    fn spawn(&self, name: &str, mut command: tokio::process::Command) -> Result<Child> {
        let log = self.logs.join(format!("{name}.log"));
        // Emptied, and appended to, so that it can be emptied again.
        let output = File::create(&log).and_then(|_| OpenOptions::new().append(true).open(&log));
        let output = output.with_context(|| format!("create {}", log.display()))?;
        command.stdout(output.try_clone()?).stderr(output);
        let process = command.spawn().with_context(|| format!("start {name}"))?;
        Child::new(name, log, process)
    }

    fn command<I, S>(&self, cpu: usize, program: &Path, args: I) -> tokio::process::Command
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let mut command = self.child(cpu);
        command.arg("--").arg(program).args(args);
        command
    }

    /// This program, about to become another.
    fn child(&self, cpu: usize) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(&self.bench);
        command.arg("child").arg("--cpu").arg(cpu.to_string()).arg("--parent").arg(std::process::id().to_string());
        command.stdin(Stdio::null()).process_group(0).kill_on_drop(true);
        command
    }
}

/// A running child. Dropping it kills its whole process group.
#[derive(Debug)]
pub struct Child {
    name: String,
    log: PathBuf,
    group: Pid,
    process: tokio::process::Child,
}

impl Child {
    fn new(name: &str, log: PathBuf, process: tokio::process::Child) -> Result<Self> {
        let id = process.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let group = id.with_context(|| format!("{name} exited at once"))?;
        Ok(Self { name: name.to_owned(), log, group, process })
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.group.as_raw_nonzero().get()
    }

    /// Whether the child has not ended.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.process.try_wait()?.is_none())
    }

    /// Fails, with the end of the log, when the child is no longer running.
    ///
    /// # Errors
    /// The child has ended.
    pub fn check(&mut self) -> Result<()> {
        if let Some(status) = self.process.try_wait()? {
            bail!("{} exited with {status}; the end of its log:\n{}", self.name, self.log_tail());
        }
        Ok(())
    }

    /// Waits for the end and returns what the child printed.
    ///
    /// # Errors
    /// The child fails; the error carries the end of its log.
    pub async fn finish(mut self) -> Result<String> {
        let status = self.process.wait().await?;
        if !status.success() {
            bail!("{} exited with {status}; the end of its log:\n{}", self.name, self.log_tail());
        }
        std::fs::read_to_string(&self.log).with_context(|| format!("read {}", self.log.display()))
    }

    /// Empties the log.
    ///
    /// # Errors
    /// The log is gone.
    pub fn empty_log(&self) -> Result<()> {
        let log = OpenOptions::new().write(true).open(&self.log);
        log.and_then(|log| log.set_len(0)).with_context(|| format!("empty {}", self.log.display()))
    }

    /// The last lines of the log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let from = lines.len().saturating_sub(20);
        lines.get(from..).unwrap_or_default().iter().map(|line| format!("  | {line}\n")).collect()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Once the leader was waited for, its number may belong to somebody else.
        if self.process.id().is_some()
            && let Err(error) = kill_process_group(self.group, Signal::KILL)
        {
            eprintln!("cannot stop {}: {error}", self.name);
        }
    }
}

/// Becomes `program` on `cpu`, killed when `parent` dies. `yields`: runs only when that CPU is idle. Returns only on failure.
///
/// # Errors
/// There is no such CPU, the parent is gone already, or the program cannot be executed.
pub fn become_child(cpu: usize, yields: bool, parent: i32, program: &OsStr, args: &[OsString]) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("ask to be killed with the bench")?;
    if getppid().map(|pid| pid.as_raw_nonzero().get()) != Some(parent) {
        bail!("the bench is gone");
    }
    pin(cpu)?;
    if yields {
        give_way()?;
    }
    let error = std::process::Command::new(program).args(args).exec();
    Err(error).with_context(|| format!("cannot execute {}", Path::new(program).display()))
}

/// Runs the calling thread and its children only when their CPU is idle (SCHED_IDLE; a nice value is not enough, because a
/// running thread is not interrupted before the end of its slice).
///
/// # Errors
/// `chrt`, of util-linux, is missing or fails.
pub fn give_way() -> Result<()> {
    chrt("--idle", 0).context("give way to others")
}

/// Lets the calling thread run before all that are not as urgent (SCHED_FIFO), which takes root.
///
/// # Errors
/// `chrt`, of util-linux, is missing or fails.
pub fn go_first() -> Result<()> {
    chrt("--fifo", 50).context("go before others")
}

fn chrt(policy: &str, priority: u8) -> Result<()> {
    let thread = gettid().as_raw_nonzero().to_string();
    let chrt = std::process::Command::new("chrt").args([policy, "--pid", &priority.to_string(), &thread]).output();
    let made = chrt.context("start chrt")?;
    if !made.status.success() {
        bail!("{}", String::from_utf8_lossy(&made.stderr).trim());
    }
    Ok(())
}

/// Pins the calling thread, and what it starts, to one CPU.
///
/// # Errors
/// There is no such CPU.
pub fn pin(cpu: usize) -> Result<()> {
    if cpu >= CpuSet::MAX_CPU {
        bail!("CPU {cpu} is out of range");
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).with_context(|| format!("cannot use CPU {cpu}; the bench needs two CPUs"))
}
