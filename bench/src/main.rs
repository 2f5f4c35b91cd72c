//! `weft-bench`: compares Weft with Envoy and with a byte relay. See `--help` and docs/performance.md.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow};
use clap::{Args, Parser, Subcommand};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use weft_bench::certs::Certs;
use weft_bench::floor::{Relay, Side};
use weft_bench::pairs::Proxy;
use weft_bench::pairs::other::Other;
use weft_bench::run::{Rounds, Settings, run};
use weft_bench::scenario::{Chosen, Scenario};
use weft_bench::{process, programs, report};

/// Compares Weft with Envoy and with a byte relay, in one run on this machine.
///
/// The path is client -> outbound proxy -> mutual TLS -> inbound proxy -> nginx. Both proxies of a pair share one CPU,
/// the client and nginx another. Requires Linux with two CPUs, and nginx, wrk and nghttp2-client from Debian; Envoy is
/// installed from PyPI automatically. docs/performance.md explains the table.
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
    /// Run one half of the floor: a TLS relay that forwards bytes and parses nothing.
    Relay(RelayArgs),
    /// Replace this process by another program on one CPU, which is killed when the bench ends.
    #[command(hide = true)]
    Child(ChildArgs),
}

#[derive(Args)]
struct RunArgs {
    /// At most 3 minutes: 2 rounds of 1 s instead of 8 of 2 s, 1,000 peers instead of 10,000, one buffer size of the floor.
    #[arg(long)]
    quick: bool,
    /// Measure only these proxies, separated by commas.
    #[arg(long, value_delimiter = ',', default_values = ["weft", "envoy-h1", "envoy-h2", "floor"], hide_default_value = true)]
    only: Vec<Proxy>,
    /// Measure only these scenarios, separated by commas; a prefix selects several: `growth`, `memory`, `http1`.
    ///
    /// http1-1, http1-32, http2-32, grpc-32, grpc-stream, bodies-1m, tcp-bulk, handshakes, access-log, open-loop,
    /// open-loop-h2, memory-idle, memory-clients, memory-peers, services, start, growth-routes, growth-endpoints,
    /// growth-policies, churn, workers-2, workers-2-open
    #[arg(long = "scenario", value_delimiter = ',', value_name = "SCENARIO")]
    scenarios: Vec<Chosen>,
    /// Measure another pair too; may be given several times.
    ///
    /// NAME=OUTBOUND COMMAND -- INBOUND COMMAND, words separated by blanks. {entry}, {middle}, {server} (address:port),
    /// {entry-port}, {middle-port}, {server-port}, {certs} and {dir} are replaced, also in files given as {file:PATH}.
    /// docs/performance.md has an example.
    #[arg(long = "pair", value_name = "PAIR")]
    pairs: Vec<Other>,
    /// Requests per second of the open loops [default: 70 % of the better Envoy's peak; 8,000 without Envoy].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: Option<u32>,
    /// Measurements of each pair in each scenario; the median counts.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: Option<u16>,
    /// Duration of one measurement's load in seconds.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: Option<u64>,
    /// File for the results as JSON [default: bench/out/latest.json of the repository].
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// The directory with weft-proxy and weft-control-plane [default: target/release of the repository].
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
    /// Allow idle CPUs to sleep. On a virtual machine the figures then include the cost of waking them.
    #[arg(long)]
    cpus_may_sleep: bool,
}

#[derive(Args)]
struct RelayArgs {
    /// Plaintext in and TLS out, or TLS in and plaintext out.
    #[arg(long, value_enum)]
    side: Side,
    /// The address to listen on.
    #[arg(long, value_name = "IP:PORT")]
    listen: SocketAddr,
    /// The address to forward to.
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
    #[arg(long)]
    yields: bool,
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
        eprintln!("weft-bench: warning: this is a debug build, so the floor is far too slow; use cargo run --release");
    }
    let (rounds, seconds) = if args.quick { (2, 1) } else { (8, 2) };
    let chosen: Vec<Scenario> = args.scenarios.into_iter().flat_map(|Chosen(scenarios)| scenarios).collect();
    // A few, for the life of the program.
    let others = args.pairs.into_iter().map(|other| Proxy::Other(Box::leak(Box::new(other))));
    let settings = Settings {
        // In the order of the report and each once, however they were named.
        proxies: Proxy::ALL.into_iter().filter(|proxy| args.only.contains(proxy)).chain(others).collect(),
        scenarios: Scenario::ALL
            .into_iter()
            .filter(|scenario| chosen.is_empty() || chosen.contains(scenario))
            .collect(),
        quick: args.quick,
        rate: args.rate,
        rounds: args.rounds.map_or(rounds, usize::from),
        seconds: args.seconds.unwrap_or(seconds),
        weft: args.weft_bin,
        envoy: args.envoy,
        proxy_cpu: args.proxy_cpu,
        load_cpu: args.load_cpu,
        cpus_may_sleep: args.cpus_may_sleep,
    };
    let out = args.out.unwrap_or_else(|| programs::repository().join("bench/out/latest.json"));
    let mut rounds = Rounds::new();
    let result = runtime()?.block_on(async {
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        tokio::select! {
            result = Box::pin(run(&settings, &mut rounds)) => result,
            _ = interrupt.recv() => Err(anyhow!("interrupted")),
            _ = terminate.recv() => Err(anyhow!("terminated")),
        }
    });
    let rows = report::rows(&rounds, &settings.proxies);
    if result.is_err() && rows.is_empty() {
        return result.context("no scenario was completed, nothing was written");
    }
    println!("{}", report::table(&rows));
    report::write_json(&rows, &out)?;
    eprintln!("wrote {}", out.display());
    result.context("the results contain only the scenarios that were completed before this error")
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
    process::become_child(args.cpu, args.yields, args.parent, program, rest)
}
