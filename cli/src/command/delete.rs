//! `weft delete`: one object, or all objects in files, in reverse order.

use http::Method;
use weft_core::{api::Kind, text::clean_lines};

use super::{Reported, UsageError, apply, history};
use crate::{
    answer::{Changed, ChangedObject, Effect},
    args::{Delete, Format},
    client::{Client, ClientError, escape, query},
    documents::{Documents, ObjectName},
    kinds, output,
    style::Style,
};

/// Runs the command. A missing object does not keep the others from being deleted.
///
/// Errors: an unknown kind, a missing object (unless they are to be ignored), or a rejected request.
pub async fn run(client: &Client, args: &Delete) -> anyhow::Result<()> {
    let names = match (&args.kind, &args.name) {
        (Some(kind), Some(name)) => {
            let kind = Kind::named(kind).ok_or_else(|| UsageError(kinds::unknown(kind)))?;
            vec![ObjectName { kind, namespace: args.namespace.clone(), name: name.clone() }]
        }
        _ => Documents::read(&args.file)?.named(&args.namespace)?,
    };
    let table = args.output == Format::Table;
    let mut failed = false;
    let mut last: Option<Changed> = None;
    let mut all = Vec::new();
    for named in names.iter().rev() {
        match one(client, named, args).await {
            Ok(changed) => {
                if table {
                    let mut lines = apply::result_lines(&changed, Style::stdout());
                    lines.pop();
                    output::lines(&lines)?;
                }
                all.extend(changed.objects.iter().cloned());
                last = Some(changed);
            }
            Err(error) if error.is_missing() && args.ignore_not_found => {
                if table {
                    output::lines(&[format!("{} not found", label(named))])?;
                }
            }
            Err(error @ ClientError::Rejected { .. }) if names.len() > 1 => {
                failed = true;
                eprintln!("{} {}: {}", Style::stderr().red("error:"), label(named), clean_lines(&error.to_string()));
            }
            Err(error) => return Err(error.into()),
        }
    }
    // Each object has a revision of its own, and the last one contains the others: one line, or one answer, for all.
    if table {
        let line = last.and_then(|changed| apply::result_lines(&changed, Style::stdout()).pop());
        output::lines(&line.into_iter().collect::<Vec<_>>())?;
    } else {
        let revision = match last {
            Some(changed) => changed.revision,
            None => history::newest(client).await?,
        };
        let whole = Changed { revision, dry_run: args.dry_run, objects: all };
        output::print(args.output, &serde_json::to_value(whole)?, |_| Vec::new())?;
    }
    if failed { Err(Reported.into()) } else { Ok(()) }
}

async fn one(client: &Client, named: &ObjectName, args: &Delete) -> Result<Changed, ClientError> {
    let query = query(args.message.as_deref(), args.dry_run);
    let path = format!("/api/v1/{}/{}/{}{query}", named.kind.plural(), escape(&named.namespace), escape(&named.name));
    let changed: Changed = client.request(Method::DELETE, &path, None).await?.meaning;
    let is_it = |object: &ChangedObject| {
        let name = (object.kind, object.namespace.as_str(), object.name.as_str());
        object.result == Effect::Deleted && name == (named.kind, named.namespace.as_str(), named.name.as_str())
    };
    // Whatever answered, the object is not said to be deleted unless the answer says so.
    if changed.objects.iter().any(is_it) {
        Ok(changed)
    } else {
        Err(client.unexpected("the object is not in the answer"))
    }
}

fn label(named: &ObjectName) -> String {
    format!("{} {}/{}", named.kind.as_str().to_lowercase(), named.namespace, named.name)
}
