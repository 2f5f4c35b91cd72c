//! The proxy's own log, on standard error. The access log is on standard output.

use std::io;

use tracing_subscriber::{EnvFilter, fmt};

use crate::config::{ConfigError, LogArgs, LogFormat, Mistake};

/// The filter.
/// Errors: it is malformed.
pub(super) fn filter(args: &LogArgs) -> Result<EnvFilter, ConfigError> {
    args.log.parse().map_err(|error: tracing_subscriber::filter::ParseError| ConfigError::Mistakes {
        path: "--log".into(),
        mistakes: vec![Mistake { line: None, text: error.to_string() }],
    })
}

/// Starts it for the whole program.
/// Errors: the filter is malformed.
pub(super) fn start(args: &LogArgs) -> anyhow::Result<()> {
    let filter = filter(args)?;
    let builder = fmt().with_env_filter(filter).with_writer(io::stderr);
    let result = match args.log_format {
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
        LogFormat::Text => builder.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).try_init(),
    };
    result.map_err(|error| anyhow::anyhow!("the log cannot be started: {error}"))
}
