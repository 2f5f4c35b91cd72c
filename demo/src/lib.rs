//! `weft demo`: a shop of real services in network namespaces of this machine, with a proxy beside each; as a show on
//! a terminal, and as a test with `--check`.
//!
//! - `places`: what has to be there. `netns`, `process`, `capture`, `relay`, `exchange`, `wait`: mechanics.
//! - `plan`: who is in the shop. `shop`: how it is started. `load`, `metrics`: what is measured.
//! - `stage`: what the audience sees. `story`: the steps, one file each.
//!
//! Invariants: one demo at a time (a lock in `/run/weft-demo`); all that it makes is found again by name, so the next
//! start, and `--cleanup`, remove what a killed one left.

mod capture;
mod exchange;
mod load;
mod metrics;
mod netns;
mod places;
mod plan;
mod process;
mod relay;
mod shop;
mod stage;
mod story;
mod wait;

use std::{
    fs::{self, File, TryLockError},
    io::{Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::Path,
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::geteuid;
use tokio::signal::unix::{SignalKind, signal};

use self::{
    places::{LOGS, Places, STATE},
    stage::Stage,
    story::Story,
};
use weft::{args::Demo, run::AlreadyTold};

/// Runs the demo.
///
/// Errors: it cannot be brought up; with `--check` also when a check failed.
pub async fn run(args: &Demo) -> Result<()> {
    ensure!(
        geteuid().is_root(),
        "the demo makes network namespaces and nftables rules, which needs root: run `make demo`, or `sudo weft demo`"
    );
    let stage = Stage::new(args.check);
    let lock = lock()?;
    let removed = remove_left_over().await?;
    if args.cleanup {
        stage.note(&removed.unwrap_or("nothing was left of an earlier demo".to_owned()));
        remove_state(&lock)?;
        return Ok(());
    }
    if let Some(removed) = removed {
        stage.note(&format!("# {removed}"));
    }
    let places = Places::find(args)?;
    let before = story::Machine::look().await?;

    let mut story = Story::new(stage.clone(), args.clone(), places);
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut hangup = signal(SignalKind::hangup()).context("SIGHUP")?;
    let (told, interrupted) = tokio::select! {
        told = story.tell() => (told, false),
        _ = interrupt.recv() => (Ok(()), true),
        _ = terminate.recv() => (Ok(()), true),
        _ = hangup.recv() => (Ok(()), true),
    };
    stage.table(Vec::new());
    if let Err(error) = &told {
        stage.note(&format!("the story ends here: {error:#}"));
    }
    if interrupted && !args.check {
        stage.note("taking everything down");
    }
    let cleaned = story.clean_up(&lock, &before).await;
    if interrupted && args.check {
        stage.check("the demo", Err(anyhow::anyhow!("interrupted")));
    }
    stage.check("cleanup: no namespace, process, nft table, mount or file is left", cleaned);
    let (passed, failed) = stage.counts();
    if failed > 0 || told.is_err() {
        stage.note(&format!("# what the programs said is in {LOGS}"));
    }
    if args.check {
        stage.note(&format!("demo: {passed} passed, {failed} failed"));
    }
    if failed > 0 || told.is_err() { Err(AlreadyTold.into()) } else { Ok(()) }
}

/// The lock that says a demo runs; it goes with the process.
#[derive(Debug)]
struct Lock(#[expect(dead_code, reason = "held, not looked at")] File);

/// Makes the state directory and takes its lock.
///
/// Errors: another demo runs.
fn lock() -> Result<Lock> {
    let state = Path::new(STATE);
    let make = fs::DirBuilder::new().recursive(true).mode(0o755).create(state);
    make.with_context(|| format!("create {STATE}"))?;
    let own = fs::symlink_metadata(state).with_context(|| format!("look at {STATE}"))?;
    ensure!(own.is_dir() && own.uid() == 0, "{STATE} is not a directory of root's");
    let path = state.join("lock");
    let mut file = File::options().create(true).truncate(false).read(true).write(true).open(&path);
    let file = file.as_mut().map_err(|error| std::io::Error::new(error.kind(), error.to_string()));
    let file = file.with_context(|| format!("open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            file.read_to_string(&mut pid).context("read the lock")?;
            bail!("a demo runs already (process {}); end it with Ctrl-C or kill {}", pid.trim(), pid.trim());
        }
        Err(TryLockError::Error(error)) => return Err(error).with_context(|| format!("lock {}", path.display())),
    }
    file.set_len(0).context("empty the lock")?;
    write!(file, "{}", std::process::id()).context("write the lock")?;
    Ok(Lock(file.try_clone().context("keep the lock")?))
}

/// Removes what a killed demo left; says what that was.
async fn remove_left_over() -> Result<Option<String>> {
    let (namespaces, processes) = netns::remove_all().await.context("remove what an earlier demo left")?;
    empty(Path::new(STATE), "lock")?;
    if namespaces == 0 && processes == 0 {
        return Ok(None);
    }
    Ok(Some(format!("removed {namespaces} namespaces and {processes} processes that an earlier demo had left")))
}

/// Removes everything in a directory but one file.
fn empty(directory: &Path, but: &str) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))? {
        let entry = entry.context("list")?;
        if entry.file_name() == but {
            continue;
        }
        let kind = entry.file_type().context("list")?;
        let result = if kind.is_dir() { fs::remove_dir_all(entry.path()) } else { fs::remove_file(entry.path()) };
        result.with_context(|| format!("remove {}", entry.path().display()))?;
    }
    Ok(())
}

/// Removes the state directory. The lock is held until the process ends.
fn remove_state(_held: &Lock) -> Result<()> {
    fs::remove_dir_all(STATE).with_context(|| format!("remove {STATE}"))
}
