//! `weft rollback`: restores the objects of an earlier revision, as a new revision.

use http::Method;
use serde_json::Value;

use crate::{
    args::Rollback,
    client::{Client, ClientError, escape},
    command::apply,
    output,
    style::Style,
};

/// Runs the command.
///
/// Errors: an unknown revision, or a rejected request.
pub async fn run(client: &Client, args: &Rollback) -> anyhow::Result<()> {
    let response = send(client, args.revision, args.message.as_deref()).await?;
    output::print(args.output, &response, |response| apply::result_lines(response, false, Style::stdout()))?;
    Ok(())
}

/// Sends the rollback. The response is that of apply.
///
/// Errors: [`ClientError`].
pub async fn send(client: &Client, revision: u64, message: Option<&str>) -> Result<Value, ClientError> {
    let query = message.map(|message| format!("?message={}", escape(message))).unwrap_or_default();
    client.request(Method::POST, &format!("/api/v1/rollback/{revision}{query}"), None).await
}
