//! `weft-bench`: measures Weft beside Envoy and beside a byte relay. See `--help` and docs/performance.md.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use weft_bench::certs::Certs;
use weft_bench::floor::{Relay, Side};
use weft_bench::pairs::Proxy;
use weft_bench::run::{Settings, run};
use weft_bench::scenario::Scenario;
use weft_bench::{process, programs, report};

/// Measures Weft beside Envoy and beside a byte relay, in one run on this machine.
///
/// The path is client -> outbound proxy -> mutual TLS -> inbound proxy -> nginx. Both proxies of a pair share one CPU,
/// the client and nginx another. Needs Linux with two CPUs, and nginx, wrk and nghttp2-client from Debian; Envoy comes
/// from PyPI by itself. docs/performance.md tells how to read the table.
#[derive(Parser)]
#[command(name = "weft-bench", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Run the bench (the default).
    Run(RunArgs),
    /// The floor: one half of a TLS relay that forwards bytes and reads nothing.
    Relay(RelayArgs),
    /// Become another program on one CPU, killed when the bench dies.
    #[command(hide = true)]
    Child(ChildArgs),
}

#[derive(Args)]
struct RunArgs {
    /// At most 3 minutes: 3 rounds of 2 s instead of 5 rounds of 6 s.
    #[arg(long)]
    quick: bool,
    /// Measure only these proxies, separated by commas.
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["weft", "envoy-h1", "envoy-h2", "floor"], hide_default_value = true)]
    only: Vec<Proxy>,
    /// Measure only these scenarios, separated by commas.
    #[arg(long = "scenario", value_enum, value_delimiter = ',', default_values = ["http1-1", "http1-32", "http2-32"], hide_default_value = true)]
    scenarios: Vec<Scenario>,
    /// Measurements of each pair in each scenario; the median counts.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: Option<u16>,
    /// Length of one measurement's load in seconds.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: Option<u64>,
    /// Where to write the results as JSON [default: bench/out/latest.json of the repository].
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// The directory with weft-proxy [default: target/release of the repository].
    #[arg(long, env = "WEFT_BIN", value_name = "DIR")]
    weft_bin: Option<PathBuf>,
    /// An Envoy program to use instead of the one from PyPI.
    #[arg(long, value_name = "FILE")]
    envoy: Option<PathBuf>,
    /// The CPU of both proxies of a pair.
    #[arg(long, default_value_t = 0, value_name = "N")]
    proxy_cpu: usize,
    /// The CPU of the client and the server.
    #[arg(long, default_value_t = 1, value_name = "N")]
    load_cpu: usize,
}

#[derive(Args)]
struct RelayArgs {
    /// Plain in and TLS out, or TLS in and plain out.
    #[arg(long, value_enum)]
    side: Side,
    /// Where to listen.
    #[arg(long, value_name = "IP:PORT")]
    listen: SocketAddr,
    /// Where to forward to.
    #[arg(long, value_name = "IP:PORT")]
    connect: SocketAddr,
    /// The directory with ca.pem, client.pem, client.key, server.pem and server.key.
    #[arg(long, value_name = "DIR")]
    certs: PathBuf,
    /// The size of each of a connection's two buffers.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=16_384))]
    buffer_kib: u32,
}

#[derive(Args)]
struct ChildArgs {
    #[arg(long)]
    cpu: usize,
    #[arg(long)]
    parent: i32,
    #[arg(required = true, last = true)]
    command: Vec<OsString>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command.unwrap_or(Command::Run(cli.run)) {
        Command::Run(args) => measure(args),
        Command::Relay(args) => relay(&args),
        Command::Child(args) => child(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")
}

fn measure(args: RunArgs) -> Result<()> {
    if cfg!(debug_assertions) {
        eprintln!("weft-bench: built without optimisation, so the floor is far too slow; use cargo run --release");
    }
    let (rounds, seconds) = if args.quick { (3, 2) } else { (5, 6) };
    let settings = Settings {
        // In the order of the report and each once, however they were named.
        proxies: Proxy::ALL.into_iter().filter(|proxy| args.only.contains(proxy)).collect(),
        scenarios: Scenario::ALL.into_iter().filter(|scenario| args.scenarios.contains(scenario)).collect(),
        rounds: args.rounds.map_or(rounds, usize::from),
        seconds: args.seconds.unwrap_or(seconds),
        weft: args.weft_bin,
        envoy: args.envoy,
        proxy_cpu: args.proxy_cpu,
        load_cpu: args.load_cpu,
    };
    let out = args.out.unwrap_or_else(|| programs::repository().join("bench/out/latest.json"));
    let rounds = runtime()?.block_on(async {
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        tokio::select! {
            rounds = Box::pin(run(&settings)) => rounds,
            _ = interrupt.recv() => bail!("interrupted; nothing was written"),
            _ = terminate.recv() => bail!("terminated; nothing was written"),
        }
    })?;
    let rows = report::rows(&rounds, &settings.proxies);
    println!("{}", report::table(&rows));
    report::write_json(&rows, &out)?;
    eprintln!("wrote {}", out.display());
    Ok(())
}

fn relay(args: &RelayArgs) -> Result<()> {
    let buffer = usize::try_from(args.buffer_kib)? * 1024;
    let relay = Relay::new(args.side, args.connect, &Certs::open(&args.certs), buffer)?;
    runtime()?.block_on(async {
        let listener = TcpListener::bind(args.listen).await.with_context(|| format!("listen on {}", args.listen))?;
        relay.serve(listener).await
    })
}

fn child(args: &ChildArgs) -> Result<()> {
    let (program, rest) = args.command.split_first().context("no program")?;
    process::become_child(args.cpu, args.parent, program, rest)
}
