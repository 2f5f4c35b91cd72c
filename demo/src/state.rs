//! The demo's directory in `/run`, and the lock in it that admits one demo at a time.

use std::{
    fs::{self, File, TryLockError},
    io::{Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::Path,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::places::STATE;

/// The lock of a running demo; the kernel releases it with the process.
#[derive(Debug)]
pub(crate) struct Lock(#[expect(dead_code, reason = "held, never read")] File);

/// Creates the state directory and takes its lock.
///
/// Errors: another demo is running.
pub(crate) fn lock() -> Result<Lock> {
    let state = Path::new(STATE);
    let make = fs::DirBuilder::new().recursive(true).mode(0o755).create(state);
    make.with_context(|| format!("create {STATE}"))?;
    let own = fs::symlink_metadata(state).with_context(|| format!("look at {STATE}"))?;
    ensure!(own.is_dir() && own.uid() == 0, "{STATE} is not a directory owned by root");
    let path = state.join("lock");
    let mut file = File::options().create(true).truncate(false).read(true).write(true).open(&path);
    let file = file.as_mut().map_err(|error| std::io::Error::new(error.kind(), error.to_string()));
    let file = file.with_context(|| format!("open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            file.read_to_string(&mut pid).context("read the lock")?;
            bail!("a demo is already running (process {}); end it with Ctrl-C or kill {}", pid.trim(), pid.trim());
        }
        Err(TryLockError::Error(error)) => return Err(error).with_context(|| format!("lock {}", path.display())),
    }
    file.set_len(0).context("empty the lock")?;
    write!(file, "{}", std::process::id()).context("write the lock")?;
    Ok(Lock(file.try_clone().context("keep the lock")?))
}

/// Removes everything in the directory except the lock.
///
/// Errors: a file cannot be removed.
pub(crate) fn empty() -> Result<()> {
    let directory = Path::new(STATE);
    for entry in fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))? {
        let entry = entry.context("list")?;
        if entry.file_name() == "lock" {
            continue;
        }
        let kind = entry.file_type().context("list")?;
        let result = if kind.is_dir() { fs::remove_dir_all(entry.path()) } else { fs::remove_file(entry.path()) };
        result.with_context(|| format!("remove {}", entry.path().display()))?;
    }
    Ok(())
}

/// Removes the state directory. The lock is held until the process ends.
pub(crate) fn remove(_held: &Lock) -> Result<()> {
    fs::remove_dir_all(STATE).with_context(|| format!("remove {STATE}"))
}
