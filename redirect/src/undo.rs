//! Undo unless confirmed: for a redirect over a connection that the redirect itself may cut.
//! Shape: [`Timer::start`] before `apply`, [`confirm`] from a new session; otherwise the timer undoes the redirect.
//! The timer is a process in a session of its own, so that it survives the caller's. The state is the kernel's: the table
//! `inet weft_unconfirmed`, whose comment names the timer. Whatever removes the table (a confirmation, another `apply`,
//! an undo) ends the timer's claim; the timer removes it and the rules in one transaction, or neither.

use std::io::{self, BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use crate::{Redirect, RedirectError, program, routes, rules};

/// A process that will undo an unconfirmed redirect.
pub(crate) struct Timer {
    /// Its name, in the comment of the table.
    pub(crate) name: String,
}

impl Timer {
    /// Starts the calling program again as `PROGRAM redirect --undo-timer NAME --undo-after TIME`, which ends in [`run`].
    /// Returns once the process no longer depends on the caller's session.
    pub(crate) fn start(after: Duration) -> Result<Self, RedirectError> {
        let probe = |step| move |source| RedirectError::Probe { step, source };
        let age = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let name = format!("undo {:x}-{:x}", std::process::id(), age.as_nanos());
        let program = std::env::current_exe().map_err(probe("find this program"))?;
        let mut child = Command::new(program)
            .args(["redirect", "--undo-timer", &name, "--undo-after", &format!("{}ms", after.as_millis())])
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(probe("start the timer of --undo-after"))?;
        let mut line = String::new();
        let output = child.stdout.take().ok_or_else(|| io::Error::from(io::ErrorKind::BrokenPipe));
        output.and_then(|output| BufReader::new(output).read_line(&mut line)).map_err(probe("wait for the timer"))?;
        if line.trim() != READY {
            return Err(probe("start the timer of --undo-after")(io::ErrorKind::BrokenPipe.into()));
        }
        Ok(Self { name })
    }
}

/// What the timer prints once it is on its own.
const READY: &str = "ready";

/// The timer's process: waits, then undoes the redirect that names it, if it is still unconfirmed.
pub(crate) fn run(name: &str, after: Duration) -> Result<(), RedirectError> {
    rustix::process::setsid()
        .map_err(|error| RedirectError::Probe { step: "leave the session", source: error.into() })?;
    println!("{READY}");
    std::thread::sleep(after);
    let Ok(table) = program::nft(&["-a", "list", "table", "inet", rules::UNCONFIRMED]) else { return Ok(()) };
    let handle = table.lines().find_map(|line| line.split_once("# handle ")?.1.trim().parse().ok());
    let Some(handle) = handle.filter(|_| table.contains(&format!("comment \"{name}\""))) else { return Ok(()) };
    match program::nft_script(&rules::removal_if(handle)) {
        Ok(()) => routes::remove_all(routes::loopback_ipv6()).map(drop),
        // Confirmed, or replaced, in this very moment; or the rules cannot be removed, which `--undo` reports too.
        Err(RedirectError::Failed { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// What [`confirm`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Confirmed {
    /// The undo is cancelled.
    Now,
    /// No undo was pending; the redirect is in force.
    Before,
    /// There is no redirect.
    Absent,
}

/// Cancels a pending undo.
pub(crate) fn confirm() -> Result<Confirmed, RedirectError> {
    match program::nft(&["delete", "table", "inet", rules::UNCONFIRMED]) {
        Ok(_) => Ok(Confirmed::Now),
        Err(RedirectError::Failed { .. }) => Ok(match Redirect::exists()? {
            true => Confirmed::Before,
            false => Confirmed::Absent,
        }),
        Err(error) => Err(error),
    }
}
