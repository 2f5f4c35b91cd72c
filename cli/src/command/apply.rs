//! `weft apply`: all objects of the given files in one revision, or nothing.

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
/// Errors: files that cannot be read, and what the control plane refuses, with file and line of the document.
pub async fn run(client: &Client, args: &Apply) -> anyhow::Result<()> {
    let documents = Documents::read(&args.file)?;
    let answer = send(client, &documents, args.message.as_deref(), args.dry_run).await?;
    output::print(args.output, &answer, |answer| told(answer, args.dry_run, Style::stdout()))?;
    Ok(())
}

/// Applies documents; the control plane's answer: the revision and what became of each object.
///
/// Errors: [`ClientError`]; in a refusal each mistake names the file and line of its document.
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

/// Puts file and line before the object of each mistake.
fn located(mut error: ClientError, documents: &Documents) -> ClientError {
    if let ClientError::Refused { details, .. } = &mut error {
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

/// `service shop/product created`, one a line, and the revision.
pub fn told(answer: &Value, dry_run: bool, style: Style) -> Vec<String> {
    let mut lines = Vec::new();
    let mut changed = false;
    for object in items(answer, "/objects") {
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
    lines.extend(items(answer, "/warnings").map(|warning| format!("{} {}", style.yellow("warning:"), plain(warning))));
    let revision = answer.get("revision").map(plain).unwrap_or_default();
    lines.push(match (dry_run, changed) {
        (true, _) => "dry run: nothing was changed".to_owned(),
        (false, true) => format!("revision {revision}"),
        (false, false) => format!("nothing to change; still revision {revision}"),
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
    fn what_became_of_each_object_and_the_revision() {
        let object = |result: &str| json!({"kind": "Service", "namespace": "shop", "name": "a", "result": result});
        let answer = json!({"revision": 4, "objects": [object("created"), object("unchanged")]});
        let wanted = ["service shop/a created", "service shop/a unchanged", "revision 4"];
        assert_eq!(told(&answer, false, Style::PLAIN), wanted);
        let answer = json!({"revision": 4, "objects": [object("unchanged")]});
        assert_eq!(told(&answer, false, Style::PLAIN)[1], "nothing to change; still revision 4");
        assert_eq!(told(&answer, true, Style::PLAIN)[1], "dry run: nothing was changed");
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
        let error = located(ClientError::Refused { status, message: String::new(), details }, &documents);
        let ClientError::Refused { details, .. } = error else { panic!("{error}") };
        let objects: Vec<_> = details.into_iter().map(|detail| detail.object).collect();
        assert_eq!(objects, [Some("a.yaml:3: B/default/b".into()), Some("a.yaml:1".into()), None]);
    }
}
