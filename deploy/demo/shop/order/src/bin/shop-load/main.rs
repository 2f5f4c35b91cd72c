//! `shop-load`: an open-loop load generator for the shop's edge.
//!
//! Requests leave at fixed times whether or not earlier ones were answered; latency counts from the time a request
//! was due. At most `--concurrency` are in flight: requests due beyond that are counted as `not_sent`, not delayed.
//!
//! Map: `plan` chooses the next request, `send` makes it, `tally` counts outcomes, `report` prints.

mod plan;
mod report;
mod send;
mod tally;

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};
use clap::Parser;
use http::Uri;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout_at};

use crate::plan::Plan;
use crate::report::Report;
use crate::send::{Outcome, Sender};
use crate::tally::Tally;

/// Sends the shop's mix of requests at a fixed rate and reports once a second.
///
/// The mix: GET /products 30 %, GET /products/{id} 25 %, GET /users/{id} 20 %, GET /orders/{id} 15 % (orders that
/// this run placed), POST /orders 10 % (each with its own idempotency key).
#[derive(Debug, Parser)]
#[command(name = "shop-load", version)]
struct Args {
    /// URL of the shop's edge, for example http://127.0.0.1:8080
    #[arg(long)]
    edge: Uri,
    /// Host header, if it differs from the edge's own address.
    #[arg(long)]
    host: Option<String>,
    /// Requests per second.
    #[arg(long, default_value = "100", value_parser = clap::value_parser!(u32).range(1..=20_000))]
    rps: u32,
    /// Duration of the load in seconds; 0 until SIGTERM.
    #[arg(long, default_value = "0")]
    seconds: u64,
    /// Maximum number of requests in flight.
    #[arg(long, default_value = "256", value_parser = clap::value_parser!(u16).range(1..))]
    concurrency: u16,
    /// Timeout of one request, in milliseconds.
    #[arg(long, default_value = "10000", value_parser = clap::value_parser!(u64).range(1..=600_000))]
    timeout_ms: u64,
    /// Number of users in the shop: u1 to uN.
    #[arg(long, default_value = "20", value_parser = clap::value_parser!(u32).range(1..))]
    users: u32,
    /// Number of products in the shop: p1 to pN.
    #[arg(long, default_value = "12", value_parser = clap::value_parser!(u32).range(1..))]
    products: u32,
    /// Read every acknowledged order again at the end and report those that are missing.
    #[arg(long)]
    verify: bool,
    /// Print JSON lines instead of text.
    #[arg(long)]
    json_lines: bool,
}

/// Time for `--verify`.
const VERIFY: Duration = Duration::from_secs(20);

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if args.edge.scheme_str() != Some("http") || args.edge.authority().is_none() {
        bail!("--edge: expected http://host:port, not {}", args.edge);
    }
    let sender = Sender::new(&args.edge, args.host.as_deref(), Duration::from_millis(args.timeout_ms))?;
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;

    let mut plan = Plan::new(args.users, args.products);
    let mut report = Report::new(args.json_lines);
    let mut second = Tally::default();
    let mut total = Tally::default();
    let mut under_way = JoinSet::new();

    let start = Instant::now();
    let end = (args.seconds > 0).then(|| start + Duration::from_secs(args.seconds));
    // Counted from the start each time, so that rounding does not add up.
    let due_at = |index: u64| start + Duration::from_nanos(index * 1_000_000_000 / u64::from(args.rps));
    let (mut index, mut due) = (0, start);
    let mut ticks = interval_at(start + Duration::from_secs(1), Duration::from_secs(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);

    loop {
        tokio::select! {
            biased;
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = ticks.tick() => {
                report.second(&second, start.elapsed(), under_way.len())?;
                total.add(&std::mem::take(&mut second));
            }
            Some(joined) = under_way.join_next() => finish(joined, &mut plan, &mut second, &mut report)?,
            () = sleep_until(due) => {
                if end.is_some_and(|end| due >= end) {
                    break;
                }
                if under_way.len() < usize::from(args.concurrency) {
                    second.sent += 1;
                    under_way.spawn(sender.clone().send(plan.next(), due));
                } else {
                    second.not_sent += 1;
                }
                index += 1;
                due = due_at(index);
            }
        }
    }

    // Each request ends by its own timeout, so this does too; a second signal ends it at once.
    loop {
        tokio::select! {
            joined = under_way.join_next() => match joined {
                Some(joined) => finish(joined, &mut plan, &mut second, &mut report)?,
                None => break,
            },
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    // The rest of the last second, so that the seconds add up to the summary.
    report.second(&second, start.elapsed(), under_way.len())?;
    total.add(&second);
    total.cut_off = under_way.len();
    let missing = if args.verify { Some(verify(&sender, &plan).await?) } else { None };
    report.summary(&total, start.elapsed(), &plan, missing.as_ref())
}

fn finish(
    joined: Result<Outcome, tokio::task::JoinError>,
    plan: &mut Plan,
    second: &mut Tally,
    report: &mut Report,
) -> anyhow::Result<()> {
    let outcome = joined.context("the task of a request panicked")?;
    if let Some(order) = &outcome.order {
        plan.acknowledge(order);
    }
    second.record(&outcome);
    report.request(&outcome)
}

/// The acknowledged orders by result of reading them again.
#[derive(Debug, Default)]
struct Verified {
    found: usize,
    missing: Vec<String>,
    unreadable: usize,
}

/// Reads acknowledged orders again, eight at a time. 404 is missing; no response before the deadline is unreadable.
async fn verify(sender: &Sender, plan: &Plan) -> anyhow::Result<Verified> {
    let deadline = Instant::now() + VERIFY;
    let mut verified = Verified::default();
    let mut orders = plan.acknowledged().cloned().collect::<Vec<_>>().into_iter();
    let mut reads = JoinSet::new();
    loop {
        while reads.len() < 8
            && Instant::now() < deadline
            && let Some(order) = orders.next()
        {
            let (sender, request) = (sender.clone(), Plan::read(&order));
            reads.spawn(async move { (order, sender.send(request, Instant::now()).await) });
        }
        match timeout_at(deadline, reads.join_next()).await {
            Ok(Some(joined)) => match joined.context("the task of a request panicked")? {
                (_, outcome) if outcome.ok() => verified.found += 1,
                (order, outcome) if outcome.status == Some(404) => verified.missing.push(order),
                _ => verified.unreadable += 1,
            },
            Ok(None) => break,
            Err(_elapsed) => {
                verified.unreadable += reads.len();
                break;
            }
        }
    }
    verified.unreadable += orders.len();
    Ok(verified)
}

/// Unix time in milliseconds.
fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
