//! `weft delete`: one object, or all that files name, the last named first.

use http::Method;
use weft_core::api::Kind;

use super::{AlreadyTold, UsageError};
use crate::{
    args::Delete,
    client::{Client, ClientError, escape},
    documents::{Documents, Named},
    kinds, output,
    style::Style,
};

/// Runs the command. With files, what is gone already is told and is no failure.
///
/// Errors: an unknown kind, no such object, or the control plane refuses.
pub async fn run(client: &Client, args: &Delete) -> anyhow::Result<()> {
    if let (Some(kind), Some(name)) = (&args.kind, &args.name) {
        let kind = Kind::named(kind).ok_or_else(|| UsageError(kinds::unknown(kind)))?;
        let named = Named { kind, namespace: args.namespace.clone(), name: name.clone() };
        one(client, &named, args.message.as_deref()).await?;
        return Ok(output::lines(&[format!("{} deleted", told(&named))])?);
    }
    let mut failed = false;
    for named in Documents::read(&args.file)?.named(&args.namespace)?.iter().rev() {
        match one(client, named, args.message.as_deref()).await {
            Ok(()) => output::lines(&[format!("{} deleted", told(named))])?,
            Err(error) if error.is_missing() => output::lines(&[format!("{} was not there", told(named))])?,
            Err(error @ ClientError::Refused { .. }) => {
                failed = true;
                eprintln!("{} {}: {error}", Style::stderr().red("error:"), told(named));
            }
            Err(error) => return Err(error.into()),
        }
    }
    if failed { Err(AlreadyTold.into()) } else { Ok(()) }
}

async fn one(client: &Client, named: &Named, message: Option<&str>) -> Result<(), ClientError> {
    let query = message.map(|message| format!("?message={}", escape(message))).unwrap_or_default();
    let path = format!("/api/v1/{}/{}/{}{query}", named.kind.plural(), escape(&named.namespace), escape(&named.name));
    client.request(Method::DELETE, &path, None).await.map(drop)
}

fn told(named: &Named) -> String {
    format!("{} {}/{}", named.kind.as_str().to_lowercase(), named.namespace, named.name)
}
