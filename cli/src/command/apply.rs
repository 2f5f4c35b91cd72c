//! `weft apply`: all objects of the given files in one revision, or none.

use bytes::Bytes;
use http::Method;
use serde_json::Value;

use crate::{
    args::Apply,
    client::{Client, ClientError, escape},
    documents::Documents,
    kinds::{items, plain},
    output,
    style::Style,
};

/// Runs the command.
///
/// Errors: unreadable files, and objects that the control plane rejects, with file and line of the document.
pub async fn run(client: &Client, args: &Apply) -> anyhow::Result<()> {
    let documents = Documents::read(&args.file)?;
    let response = send(client, &documents, args.message.as_deref(), args.dry_run).await?;
    output::print(args.output, &response, |response| result_lines(response, args.dry_run, Style::stdout()))?;
    Ok(())
}

/// Applies documents. The response contains the revision and the result of each object.
///
/// Errors: [`ClientError`]; each mistake names the file and line of its document.
pub async fn send(
    client: &Client,
    documents: &Documents,
    message: Option<&str>,
    dry_run: bool,
) -> Result<Value, ClientError> {
    let mut path = "/api/v1/apply".to_owned();
    let query =
        [dry_run.then(|| "dryRun=true".to_owned()), message.map(|message| format!("message={}", escape(message)))];
    for (index, part) in query.into_iter().flatten().enumerate() {
        path.push(if index == 0 { '?' } else { '&' });
        path.push_str(&part);
    }
    let body = ("application/yaml", Bytes::from(documents.text.clone()));
    client.request(Method::POST, &path, Some(body)).await.map_err(|error| located(error, documents))
}

/// Adds file and line to the object of each mistake.
fn located(mut error: ClientError, documents: &Documents) -> ClientError {
    if let ClientError::Rejected { details, .. } = &mut error {
        for detail in details {
            let source = detail.document.and_then(|number| documents.sources.get(number));
            if let Some(source) = source {
                let place = format!("{}:{}", source.file, source.line);
                detail.object = Some(match detail.object.take().filter(|object| !object.is_empty()) {
                    Some(object) => format!("{place}: {object}"),
                    None => place,
                });
            }
        }
    }
    error
}

/// `service shop/product created`, one line per object, and the revision.
pub fn result_lines(response: &Value, dry_run: bool, style: Style) -> Vec<String> {
    let mut lines = Vec::new();
    let mut changed = false;
    for object in items(response, "/objects") {
        let of = |name: &str| object.get(name).map(plain).unwrap_or_default();
        let result = of("result");
        let result = match result.as_str() {
            "created" => style.green(&result),
            "configured" | "deleted" => style.yellow(&result),
            _ => style.dim(&result),
        };
        changed |= of("result") != "unchanged";
        lines.push(format!("{} {}/{} {result}", of("kind").to_lowercase(), of("namespace"), of("name")));
        lines.extend(
            items(object, "/warnings").map(|warning| format!("  {} {}", style.yellow("warning:"), plain(warning))),
        );
    }
    lines
        .extend(items(response, "/warnings").map(|warning| format!("{} {}", style.yellow("warning:"), plain(warning))));
    let revision = response.get("revision").map(plain).unwrap_or_default();
    lines.push(match (dry_run, changed) {
        (true, _) => "dry run: nothing was changed".to_owned(),
        (false, true) => format!("revision {revision}"),
        (false, false) => format!("no changes; still revision {revision}"),
    });
    lines
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::json;

    use super::*;
    use crate::client::Detail;

    #[test]
    fn the_result_of_each_object_and_the_revision_are_printed() {
        let object = |result: &str| json!({"kind": "Service", "namespace": "shop", "name": "a", "result": result});
        let response = json!({"revision": 4, "objects": [object("created"), object("unchanged")]});
        let wanted = ["service shop/a created", "service shop/a unchanged", "revision 4"];
        assert_eq!(result_lines(&response, false, Style::PLAIN), wanted);
        let response = json!({"revision": 4, "objects": [object("unchanged")]});
        assert_eq!(result_lines(&response, false, Style::PLAIN)[1], "no changes; still revision 4");
        assert_eq!(result_lines(&response, true, Style::PLAIN)[1], "dry run: nothing was changed");
    }

    #[test]
    fn a_mistake_names_file_and_line() {
        let mut documents = Documents::default();
        documents.add_text("a.yaml", "kind: A\n---\nkind: B\n").unwrap();
        let detail = |document, object: Option<&str>| Detail {
            field: "spec".into(),
            reason: "required".into(),
            object: object.map(str::to_owned),
            document,
        };
        let details = vec![detail(Some(1), Some("B/default/b")), detail(Some(0), None), detail(None, None)];
        let status = StatusCode::UNPROCESSABLE_ENTITY;
        let error = located(ClientError::Rejected { status, message: String::new(), details }, &documents);
        let ClientError::Rejected { details, .. } = error else { panic!("{error}") };
        let objects: Vec<_> = details.into_iter().map(|detail| detail.object).collect();
        assert_eq!(objects, [Some("a.yaml:3: B/default/b".into()), Some("a.yaml:1".into()), None]);
    }
}
