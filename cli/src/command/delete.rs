//! `weft delete`: one object, or all objects in files, in reverse order.

use http::Method;
use weft_core::api::Kind;

use super::{Reported, UsageError};
use crate::{
    args::Delete,
    client::{Client, ClientError, escape},
    documents::{Documents, ObjectName},
    kinds, output,
    style::Style,
};

/// Runs the command. With files, a missing object is reported and is not a failure.
///
/// Errors: an unknown kind, a missing object, or a rejected request.
pub async fn run(client: &Client, args: &Delete) -> anyhow::Result<()> {
    if let (Some(kind), Some(name)) = (&args.kind, &args.name) {
        let kind = Kind::named(kind).ok_or_else(|| UsageError(kinds::unknown(kind)))?;
        let named = ObjectName { kind, namespace: args.namespace.clone(), name: name.clone() };
        one(client, &named, args.message.as_deref()).await?;
        return Ok(output::lines(&[format!("{} deleted", label(&named))])?);
    }
    let mut failed = false;
    for named in Documents::read(&args.file)?.named(&args.namespace)?.iter().rev() {
        match one(client, named, args.message.as_deref()).await {
            Ok(()) => output::lines(&[format!("{} deleted", label(named))])?,
            Err(error) if error.is_missing() => output::lines(&[format!("{} not found", label(named))])?,
            Err(error @ ClientError::Rejected { .. }) => {
                failed = true;
                eprintln!("{} {}: {error}", Style::stderr().red("error:"), label(named));
            }
            Err(error) => return Err(error.into()),
        }
    }
    if failed { Err(Reported.into()) } else { Ok(()) }
}

async fn one(client: &Client, named: &ObjectName, message: Option<&str>) -> Result<(), ClientError> {
    let query = message.map(|message| format!("?message={}", escape(message))).unwrap_or_default();
    let path = format!("/api/v1/{}/{}/{}{query}", named.kind.plural(), escape(&named.namespace), escape(&named.name));
    client.request(Method::DELETE, &path, None).await.map(drop)
}

fn label(named: &ObjectName) -> String {
    format!("{} {}/{}", named.kind.as_str().to_lowercase(), named.namespace, named.name)
}
