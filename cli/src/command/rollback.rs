//! `weft rollback`: the objects as they were at a revision, as a new revision.

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
/// Errors: no such revision, or the control plane refuses.
pub async fn run(client: &Client, args: &Rollback) -> anyhow::Result<()> {
    let answer = send(client, args.revision, args.message.as_deref()).await?;
    output::print(args.output, &answer, |answer| apply::told(answer, false, Style::stdout()))?;
    Ok(())
}

/// Goes back; the control plane's answer as for apply.
///
/// Errors: [`ClientError`].
pub async fn send(client: &Client, revision: u64, message: Option<&str>) -> Result<Value, ClientError> {
    let query = message.map(|message| format!("?message={}", escape(message))).unwrap_or_default();
    client.request(Method::POST, &format!("/api/v1/rollback/{revision}{query}"), None).await
}
