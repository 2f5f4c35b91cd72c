//! One running program: its output goes to a log file, its process group dies with the value.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::wait::{self, until_some};

/// A started program. Dropping it kills the whole process group with SIGKILL and waits for it.
#[derive(Debug)]
pub struct Process {
    name: String,
    log: PathBuf,
    child: Child,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts `command` with both outputs in the file `log`, in a process group of its own.
    ///
    /// Errors: the program cannot be started, or the log not written.
    pub(crate) fn start(name: &str, mut command: Command, log: PathBuf) -> Result<Self> {
        let file = File::create(&log).with_context(|| format!("create {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().context("share the log")?)
            .stderr(file)
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {name}: {command:?}"))?;
        Ok(Self { name: name.to_owned(), log, child, ended: None })
    }

    /// The process number, the same in every namespace the harness makes.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote so far, both outputs together.
    ///
    /// Errors: the log cannot be read.
    pub fn output(&self) -> Result<String> {
        let bytes = fs::read(&self.log).with_context(|| format!("read {}", self.log.display()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Where its output is.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Waits until its output contains `text`.
    ///
    /// Errors: it ended before, or `deadline` passed.
    pub fn wait_for_output(&mut self, text: &str, deadline: Duration) -> Result<()> {
        let what = format!("{} to print {text:?}", self.name);
        until_some(what, deadline, || {
            // The exit is checked first: otherwise output could arrive between the two checks.
            let ended = self.ended()?;
            if self.output()?.contains(text) {
                return Ok(Some(()));
            }
            match ended {
                Some(status) => bail!("{} exited ({status}) before it printed {text:?}", self.name),
                None => Ok(None),
            }
        })
    }

    /// How it ended, if it did.
    ///
    /// Errors: the system refuses to tell.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().with_context(|| format!("wait for {}", self.name))?;
        }
        Ok(self.ended)
    }

    /// Waits for its end.
    ///
    /// Errors: `deadline` passed; it goes on running.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let name = self.name.clone();
        until_some(format!("the end of {name}"), deadline, || self.ended())
    }

    /// Asks it to end (SIGTERM to the group) and waits.
    ///
    /// Errors: as [`Process::wait`].
    pub fn terminate(&mut self, deadline: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait(deadline)
    }

    /// `kill -9` for the group, and waits.
    ///
    /// Errors: as [`Process::wait`].
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::KILL)?;
        self.wait(wait::DEADLINE)
    }

    /// Sends a signal to the whole group; nothing happens when it has ended.
    ///
    /// Errors: the system refuses.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.ended()?.is_some() {
            return Ok(());
        }
        let group = i32::try_from(self.id()).ok().and_then(Pid::from_raw).context("not a process ID")?;
        kill_process_group(group, signal).with_context(|| format!("send {signal:?} to {}", self.name))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("weft-e2e: {error:#}");
        }
    }
}

/// A command that runs to its end: its output, whatever its status.
///
/// Errors: it cannot be started, or does not end before `deadline` (it is killed then).
pub(crate) fn run(mut command: Command, deadline: Duration) -> Result<Output> {
    let directory = tempfile::tempdir().context("create a directory for output")?;
    let path = |name| directory.path().join(name);
    let file = |name| File::create(path(name)).with_context(|| format!("create a file for {name}"));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(file("stdout")?)
        .stderr(file("stderr")?)
        .process_group(0)
        .spawn()
        .with_context(|| format!("start {command:?}"))?;
    let ended =
        until_some(format!("the end of {command:?}"), deadline, || child.try_wait().context("wait for the command"));
    let status = match ended {
        Ok(status) => status,
        Err(error) => {
            if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                kill_process_group(group, Signal::KILL).context("kill it")?;
            }
            child.wait().context("wait for it")?;
            return Err(error);
        }
    };
    let read = |name| fs::read(path(name)).with_context(|| format!("read {name}"));
    Ok(Output { status, stdout: read("stdout")?, stderr: read("stderr")? })
}

/// Like [`run`], and the command must succeed: its standard output.
///
/// Errors: also a status other than 0, with what it said.
pub(crate) fn run_ok(program: impl AsRef<OsStr>, args: &[&str]) -> Result<String> {
    let mut command = Command::new(program.as_ref());
    command.args(args);
    let output = run(command, wait::DEADLINE)?;
    ensure_success(program.as_ref(), &args.iter().map(OsString::from).collect::<Vec<_>>(), &output)
}

/// The standard output of a command that succeeded.
///
/// Errors: it did not.
pub(crate) fn ensure_success(program: &OsStr, args: &[OsString], output: &Output) -> Result<String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(
        output.status.success(),
        "{program:?} {args:?} ended with {}: {}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    Ok(text(&output.stdout))
}
