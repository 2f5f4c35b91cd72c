//! `weft rollback`: restores the objects of an earlier revision, as a new revision.

use http::Method;

use crate::{
    answer::{Answer, Changed},
    args::Rollback,
    client::{Client, ClientError, query},
    command::apply,
    output,
    style::Style,
};

/// Runs the command.
///
/// Errors: an unknown revision, or a rejected request.
pub async fn run(client: &Client, args: &Rollback) -> anyhow::Result<()> {
    let answer = send(client, args.revision, args.message.as_deref(), args.dry_run).await?;
    output::print(args.output, &answer.json, |_| apply::result_lines(&answer.meaning, Style::stdout()))?;
    Ok(())
}

/// Sends the rollback.
///
/// Errors: [`ClientError`].
pub async fn send(
    client: &Client,
    revision: u64,
    message: Option<&str>,
    dry_run: bool,
) -> Result<Answer<Changed>, ClientError> {
    let path = format!("/api/v1/rollback/{revision}{}", query(message, dry_run));
    client.request(Method::POST, &path, None).await
}
