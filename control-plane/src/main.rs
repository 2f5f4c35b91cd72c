//! `weft-control-plane`: the program. Flags, log, start, signals, stop.
//! Standard output has one line of JSON with its addresses. Everything else goes to standard error.
//! Exit codes: 0 stopped by a signal, 64 wrong flags, 1 start failed, 70 a part failed.

use std::{io::IsTerminal, process::ExitCode};

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use weft_control_plane::{
    app::{self, Running},
    config::{Config, Flags},
};

fn main() -> ExitCode {
    let flags = match Flags::try_parse() {
        Ok(flags) => flags,
        Err(error) => {
            let code = if error.use_stderr() { 64 } else { 0 };
            return match error.print() {
                Ok(()) => ExitCode::from(code),
                Err(_) => ExitCode::FAILURE,
            };
        }
    };
    let config = match flags.check() {
        Ok(config) => config,
        Err(mistakes) => {
            for mistake in mistakes {
                eprintln!("weft-control-plane: {mistake}");
            }
            eprintln!("See weft-control-plane --help.");
            return ExitCode::from(64);
        }
    };
    let filter = tracing_subscriber::EnvFilter::new(&config.log);
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
    let result = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(anyhow::Error::from);
    match result.and_then(|runtime| runtime.block_on(run(config))) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("weft-control-plane: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(config: Config) -> anyhow::Result<ExitCode> {
    tracing::info!(version = env!("CARGO_PKG_VERSION"), settings = serde_json::to_string(&config)?, "starting");
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let data_dir = config.data_dir.clone();
    let mut running = app::start(config).await?;
    println!("{}", serde_json::to_string(running.addresses())?);
    welcome(&running, &data_dir);
    let code = tokio::select! {
        _ = terminate.recv() => ExitCode::SUCCESS,
        _ = interrupt.recv() => ExitCode::SUCCESS,
        () = running.failed() => ExitCode::from(70),
    };
    tracing::info!("stopping");
    running.stop().await;
    Ok(code)
}

/// Says at the first start where the admin token is and how it is used. The token itself is never printed: logs are kept and
/// read by others.
fn welcome(running: &Running, data_dir: &std::path::Path) {
    let Some(token) = running.admin_token() else { return };
    let (addresses, data_dir) = (running.addresses(), data_dir.display());
    eprintln!(
        "\nThis is the first start. The admin token of the API is in {}.\n\n\
         On this machine:    weft --server unix:{} status   (needs no token)\n\
         From elsewhere:     weft --server https://HOST:{} --ca root.pem --token-file admin-token status\n\
         \x20                   (with copies of {data_dir}/root.pem and of the token)\n",
        token.display(),
        addresses.api_socket.display(),
        addresses.api.port(),
    );
}
