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
mod state;
mod story;
mod wait;

use anyhow::{Context as _, Result, ensure};
use rustix::process::geteuid;
use tokio::signal::unix::{SignalKind, signal};

use self::{
    places::{LOGS, Places},
    stage::Stage,
    story::Story,
};
use weft::{args::Demo, command::Reported};

/// Runs the demo.
///
/// Errors: it cannot be brought up; with `--check` also when a check failed.
pub async fn run(args: &Demo) -> Result<()> {
    ensure!(
        geteuid().is_root(),
        "the demo makes network namespaces and nftables rules, which needs root: run `make demo`, or `sudo weft demo`"
    );
    let stage = Stage::new(args.check);
    let lock = state::lock()?;
    let removed = remove_left_over().await?;
    if args.cleanup {
        stage.note(&removed.unwrap_or("nothing was left of an earlier demo".to_owned()));
        state::remove(&lock)?;
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
    if failed > 0 || told.is_err() { Err(Reported.into()) } else { Ok(()) }
}

/// Removes what a killed demo left; says what that was.
async fn remove_left_over() -> Result<Option<String>> {
    let (namespaces, processes) = netns::remove_all().await.context("remove what an earlier demo left")?;
    state::empty()?;
    if namespaces == 0 && processes == 0 {
        return Ok(None);
    }
    Ok(Some(format!("removed {namespaces} namespaces and {processes} processes that an earlier demo had left")))
}
