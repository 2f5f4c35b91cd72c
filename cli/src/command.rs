//! The commands, one file each: send a request, print the response. All decisions are the control plane's.

pub mod apply;
pub mod completion;
pub mod delete;
pub mod demo;
pub mod export;
pub mod get;
pub mod history;
pub mod rollback;
pub mod status;
pub mod token;

use crate::{args::Connection, client::Client, config::Settings};

/// A wrong command line that clap accepts.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// A failure that has been printed already; it only sets the exit code.
#[derive(Debug, thiserror::Error)]
#[error("failed")]
pub struct Reported;

/// A client for the connection flags of the command line.
///
/// Errors: an invalid setting.
pub(crate) fn client(connection: &Connection) -> anyhow::Result<Client> {
    Ok(Client::new(&Settings::of(connection)?)?)
}
