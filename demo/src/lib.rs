//! The demo: a shop of real services in network namespaces of this machine, with a proxy beside each. A guided tour on a
//! terminal, and a test with `--check`.
//!
//! - `places`: required programs and files. `embedded`: the files that this program contains. `netns`, `process`, `capture`, `relay`, `exchange`, `wait`: mechanics.
//! - `plan`: the members of the shop. `shop`: their start. `load`, `metrics`: measurements.
//! - `stage`: the output. `story`: the steps, one file each. `state`: the lock and the demo's directory.
//!
//! Invariants: one demo at a time (a lock in `/run/weft-demo`). Everything that it creates has a known name, so that the
//! next start, and `--cleanup`, remove the remains of a killed demo.

mod capture;
mod embedded;
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
    relay::Relay,
    stage::Stage,
    story::Story,
};
use weft::{args::Demo, command::Reported};

/// Runs the demo.
///
/// Errors: the shop does not start, or a check failed.
pub async fn run(args: &Demo) -> Result<()> {
    ensure!(
        geteuid().is_root(),
        "the demo creates network namespaces and nftables rules, which requires root: run `make demo`, or `sudo weft demo`"
    );
    let stage = Stage::new(args.check);
    // The lock comes first: the remains of a killed demo may only be removed if no other demo runs.
    let lock = state::lock()?;
    let removed = remove_left_over().await?;
    if args.cleanup {
        stage.note(&removed.unwrap_or("no remains of an earlier demo".to_owned()));
        state::remove(&lock)?;
        return Ok(());
    }
    if let Some(removed) = removed {
        stage.note(&format!("# {removed}"));
    }
    // A wrong address is told before anything is started.
    let edge = Relay::listen(args.edge, args.check).await?;
    let places = Places::find(args)?;
    // Compared at the end, so that the demo proves it left nothing on the machine's own network.
    let before = story::Machine::look().await?;

    let mut story = Story::new(stage.clone(), args.clone(), places, edge);
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut hangup = signal(SignalKind::hangup()).context("SIGHUP")?;
    let (result, interrupted) = tokio::select! {
        result = story.run() => (result, false),
        _ = interrupt.recv() => (Ok(()), true),
        _ = terminate.recv() => (Ok(()), true),
        _ = hangup.recv() => (Ok(()), true),
    };
    // The table would be drawn over the lines that follow.
    stage.table(Vec::new());
    if let Err(error) = &result {
        stage.note(&format!("stopped: {error:#}"));
    }
    if interrupted && !args.check {
        stage.note("stopping the shop");
    }
    let cleaned = story.clean_up(&lock, &before).await;
    if interrupted && args.check {
        stage.check("the demo", Err(anyhow::anyhow!("interrupted")));
    }
    stage.check("cleanup: no namespace, process, nft table, mount or file is left", cleaned);
    let (passed, failed) = stage.counts();
    if failed > 0 || result.is_err() {
        stage.note(&format!("# the programs' logs are in {LOGS}"));
    }
    if args.check {
        stage.note(&format!("demo: {passed} passed, {failed} failed"));
    }
    if failed > 0 || result.is_err() { Err(Reported.into()) } else { Ok(()) }
}

/// Removes the remains of a killed demo; the text for the user, if there were any.
async fn remove_left_over() -> Result<Option<String>> {
    let (namespaces, processes) = netns::remove_all().await.context("remove the remains of an earlier demo")?;
    state::empty()?;
    if namespaces == 0 && processes == 0 {
        return Ok(None);
    }
    Ok(Some(format!("removed {namespaces} namespaces and {processes} processes of an earlier demo")))
}
