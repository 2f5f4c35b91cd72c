//! One running program of the demo: in a namespace, its output in a log file, dead when the demo is.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    process::{Child, Command},
    time::timeout,
};

use crate::wait::until;

/// A program to start.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    /// For messages and the log's name.
    pub(crate) name: String,
    /// The namespace; `None` for the machine's own.
    pub(crate) namespace: Option<String>,
    /// User instead of root.
    pub(crate) user: Option<&'static str>,
    /// Program and arguments.
    pub(crate) command: Vec<String>,
    /// Variables.
    pub(crate) env: Vec<(String, String)>,
    /// Working directory.
    pub(crate) directory: PathBuf,
    /// Signal for an orderly end.
    pub(crate) stop: Signal,
}

/// A started program. Dropping it kills its process group; so does the kernel when the demo is killed.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    log: PathBuf,
    child: Child,
    group: Pid,
    stop: Signal,
}

impl Program {
    /// Starts it; output is appended to `<logs>/<name>.log`.
    ///
    /// Errors: it cannot be started. A missing program appears as an early end.
    pub(crate) fn start(&self, logs: &Path) -> Result<Process> {
        let (mut command, log) = self.command(logs)?;
        let file = File::options().create(true).append(true).open(&log);
        let file = file.with_context(|| format!("open {}", log.display()))?;
        command.stdout(file.try_clone().context("share the log")?).stderr(file);
        self.spawn(command, log)
    }

    /// Starts it with its standard output as a pipe, which the caller takes with [`Process::take_stdout`].
    ///
    /// Errors: as [`Program::start`].
    pub(crate) fn start_piped(&self, logs: &Path) -> Result<Process> {
        let (mut command, log) = self.command(logs)?;
        let file = File::options().create(true).append(true).open(&log);
        command.stdout(Stdio::piped()).stderr(file.with_context(|| format!("open {}", log.display()))?);
        self.spawn(command, log)
    }

    fn command(&self, logs: &Path) -> Result<(Command, PathBuf)> {
        let mut words: Vec<&str> = Vec::new();
        if let Some(namespace) = &self.namespace {
            words.extend(["ip", "netns", "exec", namespace]);
        }
        // setpriv sets the death signal after the change of user, which would clear it.
        let signal = if self.stop == Signal::INT { "INT" } else { "KILL" };
        words.extend(["setpriv", "--pdeathsig", signal]);
        let user = self.user.map(|user| [format!("--reuid={user}"), format!("--regid={user}")]);
        if let Some([uid, gid]) = &user {
            words.extend([uid.as_str(), gid.as_str(), "--clear-groups"]);
        }
        words.push("--");
        words.extend(self.command.iter().map(String::as_str));
        let (program, args) = words.split_first().context("an empty command")?;
        let mut command = Command::new(program);
        command.args(args).envs(self.env.iter().map(|(name, value)| (name, value))).current_dir(&self.directory);
        command.env("NO_COLOR", "1").stdin(Stdio::null()).process_group(0).kill_on_drop(true);
        Ok((command, logs.join(format!("{}.log", self.name))))
    }

    fn spawn(&self, mut command: Command, log: PathBuf) -> Result<Process> {
        let child = command.spawn().with_context(|| format!("start {}: {}", self.name, self.command.join(" ")))?;
        let group =
            child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw).context("a process number")?;
        Ok(Process { name: self.name.clone(), log, child, group, stop: self.stop })
    }
}

impl Process {
    /// Process id, the same in every namespace of the demo.
    pub(crate) fn id(&self) -> i32 {
        self.group.as_raw_nonzero().get()
    }

    /// Its standard output, when it was started with a pipe.
    pub(crate) fn take_stdout(&mut self) -> Option<tokio::process::ChildStdout> {
        self.child.stdout.take()
    }

    /// Its output so far.
    ///
    /// Errors: the log cannot be read.
    pub(crate) fn output(&self) -> Result<String> {
        let bytes = fs::read(&self.log).with_context(|| format!("read {}", self.log.display()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Fails if it has ended, with the last line of its output.
    pub(crate) fn running(&mut self) -> Result<()> {
        match self.child.try_wait().with_context(|| format!("ask for {}", self.name))? {
            None => Ok(()),
            Some(status) => {
                let output = self.output().unwrap_or_default();
                let last = output.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no output");
                bail!("{} ended ({status}): {last}", self.name)
            }
        }
    }

    /// Polls `ready` while the process runs.
    ///
    /// Errors: it ended, or `deadline` passed.
    pub(crate) async fn until(
        &mut self,
        what: &str,
        deadline: Duration,
        mut ready: impl AsyncFnMut() -> Result<()>,
    ) -> Result<()> {
        let mut ended = None;
        let result = until(what, deadline, async || {
            if let Err(error) = self.running() {
                ended = Some(error);
                return Ok(());
            }
            ready().await
        });
        result.await?;
        ended.map_or(Ok(()), Err)
    }

    /// Waits until its output contains `text`.
    ///
    /// Errors: it ended before, or `deadline` passed.
    pub(crate) async fn prints(&mut self, text: &str, deadline: Duration) -> Result<()> {
        let log = self.log.clone();
        let what = format!("{} to print {text:?}", self.name);
        self.until(&what, deadline, async || {
            let said = fs::read(&log).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(text));
            ensure!(said, "not yet");
            Ok(())
        })
        .await
    }

    /// `kill -9`, and waits until it is dead.
    ///
    /// Errors: it cannot be killed.
    pub(crate) async fn kill(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::KILL);
        let ended = timeout(Duration::from_secs(10), self.child.wait()).await;
        ended
            .with_context(|| format!("{} did not end after kill -9", self.name))?
            .with_context(|| format!("wait for {}", self.name))
    }

    /// Sends its stop signal, and kills it if it does not end within `deadline`.
    ///
    /// Errors: it cannot be killed.
    pub(crate) async fn end(&mut self, deadline: Duration) -> Result<()> {
        self.signal(self.stop);
        match timeout(deadline, self.child.wait()).await {
            Ok(ended) => ended.map(drop).with_context(|| format!("wait for {}", self.name)),
            Err(_late) => self.kill().await.map(drop),
        }
    }

    /// Sends a signal to its group, unless it has ended.
    pub(crate) fn signal(&mut self, signal: Signal) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // It may end at this very moment.
            kill_process_group(self.group, signal).ok();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}
