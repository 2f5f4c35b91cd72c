//! One file a command. Each asks the control plane and prints the answer; the decisions are the control plane's.

pub mod apply;
pub mod completion;
pub mod delete;
pub mod demo;
pub mod get;
pub mod history;
pub mod rollback;
pub mod status;
pub mod token;

use crate::{args::Connection, client::Client, config::Settings};

/// A command line that clap lets through and we do not.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// A failure that has been told already; only the exit code is left.
#[derive(Debug, thiserror::Error)]
#[error("failed")]
pub struct AlreadyTold;

/// A client for what the command line says.
///
/// Errors: a setting that cannot be used.
pub(crate) fn client(connection: &Connection) -> anyhow::Result<Client> {
    Ok(Client::new(&Settings::of(connection)?)?)
}
