//! `weft apply`: all objects of the given files in one revision, or none.

use bytes::Bytes;
use http::Method;

use crate::{
    answer::{Answer, Changed, Effect},
    args::Apply,
    client::{Client, ClientError, query},
    documents::Documents,
    output,
    style::Style,
};

/// Runs the command.
///
/// Errors: unreadable files, and objects that the control plane rejects, with file and line of each mistake.
pub async fn run(client: &Client, args: &Apply) -> anyhow::Result<()> {
    let documents = Documents::read(&args.file)?;
    let answer = send(client, &documents, args.message.as_deref(), args.dry_run).await?;
    output::print(args.output, &answer.json, |_| result_lines(&answer.meaning, Style::stdout()))?;
    Ok(())
}

/// Applies documents.
///
/// Errors: [`ClientError`]; each mistake names its file and line.
pub async fn send(
    client: &Client,
    documents: &Documents,
    message: Option<&str>,
    dry_run: bool,
) -> Result<Answer<Changed>, ClientError> {
    let path = format!("/api/v1/apply{}", query(message, dry_run));
    let body = ("application/yaml", Bytes::from(documents.text()));
    client.request(Method::POST, &path, Some(body)).await.map_err(|error| located(error, documents))
}

/// Adds file and line to each mistake.
fn located(mut error: ClientError, documents: &Documents) -> ClientError {
    if let ClientError::Rejected { details, .. } = &mut error {
        for detail in details {
            let object = detail.object.as_deref().filter(|object| !object.is_empty());
            if let Some(place) = documents.place(detail.document, object, &detail.field) {
                detail.object = Some(match object {
                    Some(object) => format!("{place}: {object}"),
                    None => place,
                });
            }
        }
    }
    error
}

/// `service shop/product created`, or `would be created`, one line per object, and the revision.
pub fn result_lines(changed: &Changed, style: Style) -> Vec<String> {
    let mut lines = Vec::new();
    for object in &changed.objects {
        let result = match (object.result, changed.dry_run) {
            (Effect::Unchanged, _) | (_, false) => object.result.as_str().to_owned(),
            (_, true) => format!("would be {}", object.result.as_str()),
        };
        let result = match object.result {
            Effect::Created => style.green(&result),
            Effect::Configured | Effect::Deleted => style.yellow(&result),
            Effect::Unchanged => style.dim(&result),
        };
        let kind = object.kind.as_str().to_lowercase();
        lines.push(format!("{kind} {}/{} {result}", object.namespace, object.name));
        lines.extend(object.warnings.iter().map(|warning| format!("  {} {warning}", style.yellow("warning:"))));
    }
    let changes = changed.objects.iter().any(|object| object.result != Effect::Unchanged);
    lines.push(match (changed.dry_run, changes) {
        (true, _) => "dry run: nothing was changed".to_owned(),
        (false, true) => format!("revision {}", changed.revision),
        (false, false) => format!("no changes; still revision {}", changed.revision),
    });
    lines
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde::Deserialize as _;
    use serde_json::{Value, json};

    use super::*;
    use crate::answer::Detail;

    fn changed(dry_run: bool, results: &[&str]) -> Changed {
        let objects: Vec<Value> = results
            .iter()
            .map(|result| json!({"kind": "Service", "namespace": "shop", "name": "a", "result": result}))
            .collect();
        Changed::deserialize(json!({"revision": 4, "dryRun": dry_run, "objects": objects})).unwrap()
    }

    /// (26)
    #[test]
    fn the_result_of_each_object_and_the_revision_are_printed() {
        let lines = |dry_run, results| result_lines(&changed(dry_run, results), Style::PLAIN);
        assert_eq!(
            lines(false, &["created", "unchanged"]),
            ["service shop/a created", "service shop/a unchanged", "revision 4"]
        );
        assert_eq!(lines(false, &["unchanged"])[1], "no changes; still revision 4");
        assert_eq!(
            lines(true, &["configured", "deleted", "unchanged"]),
            [
                "service shop/a would be configured",
                "service shop/a would be deleted",
                "service shop/a unchanged",
                "dry run: nothing was changed",
            ]
        );
    }

    /// (26)
    #[test]
    fn a_mistake_names_file_and_line() {
        let mut documents = Documents::default();
        documents.add_text("a.yaml", "kind: A\n---\nkind: Service\nmetadata: {name: b}\nspec:\n  x: 1\n").unwrap();
        let detail = |document, object: Option<&str>| Detail {
            field: "spec.x".into(),
            reason: "required".into(),
            object: object.map(str::to_owned),
            document,
        };
        let details = vec![detail(Some(1), Some("Service/default/b")), detail(Some(0), None), detail(None, None)];
        let status = StatusCode::UNPROCESSABLE_ENTITY;
        let error = located(ClientError::Rejected { status, message: String::new(), details }, &documents);
        let ClientError::Rejected { details, .. } = error else { panic!("{error}") };
        let objects: Vec<_> = details.into_iter().map(|detail| detail.object).collect();
        assert_eq!(objects, [Some("a.yaml:6: Service/default/b".into()), Some("a.yaml:1".into()), None]);
    }
}
