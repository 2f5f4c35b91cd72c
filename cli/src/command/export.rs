//! `weft export`: the objects of the mesh as their authors wrote them, to be kept and applied again, also to another mesh.

use serde_json::Value;
use weft_core::api::Kind;

use super::{UsageError, get};
use crate::{
    args::{Export, ExportFormat},
    client::Client,
    kinds::{self, items},
    output,
};

/// Attempts to read all kinds at one revision, while others change them.
const ATTEMPTS: usize = 10;
/// Metadata that the control plane sets.
const BOOKKEEPING: [&str; 4] = ["uid", "resourceVersion", "generation", "creationTimestamp"];
/// Annotation: the origin of a workload in a list.
const SOURCE: &str = "weft.dev/source";
/// Annotations that the control plane sets.
const ANNOTATIONS: [&str; 2] = [SOURCE, "weft.dev/unproven-addresses"];

/// Runs the command.
///
/// Errors: an unknown kind, or a failed request.
pub async fn run(client: &Client, args: &Export) -> anyhow::Result<()> {
    let mut kinds = Vec::new();
    for text in &args.kinds {
        kinds.push(Kind::named(text).ok_or_else(|| UsageError(kinds::unknown(text)))?);
    }
    let wanted = |kind: &&Kind| kinds.is_empty() || kinds.contains(kind);
    let kinds: Vec<Kind> = Kind::ALL.iter().filter(wanted).copied().collect();
    let (objects, revision) = objects(client, &kinds, args.namespace.as_deref(), args.labels.as_deref()).await?;
    let lines = match args.output {
        ExportFormat::Json => vec![serde_json::to_string_pretty(&output::list(objects, revision))?],
        ExportFormat::Yaml => {
            let mut lines = vec![format!("# revision {revision}, {} objects", objects.len())];
            for object in &objects {
                lines.push("---".to_owned());
                lines.push(output::yaml(object)?.trim_end().to_owned());
            }
            lines
        }
    };
    Ok(output::lines(&lines)?)
}

/// All objects of these kinds at one revision, in the order of the kinds.
async fn objects(
    client: &Client,
    kinds: &[Kind],
    namespace: Option<&str>,
    labels: Option<&str>,
) -> anyhow::Result<(Vec<Value>, u64)> {
    for _ in 0..ATTEMPTS {
        let (mut objects, mut revisions) = (Vec::new(), Vec::new());
        for kind in kinds {
            let list = get::all(client, *kind, namespace, labels).await?;
            revisions.push(list.meaning.revision);
            objects.extend(items(&list.json, "/items").filter_map(|object| stated(object.clone())));
        }
        if let Some(revision) = revisions.first().filter(|first| revisions.iter().all(|other| other == *first)) {
            return Ok((objects, *revision));
        }
    }
    anyhow::bail!("the objects changed {ATTEMPTS} times while they were read: try again")
}

/// An object without what the control plane added; `None` for a workload that its proxy registered.
fn stated(mut object: Value) -> Option<Value> {
    let source = object.pointer("/metadata/annotations").and_then(|all| all.get(SOURCE)).and_then(Value::as_str);
    if source.is_some_and(|source| source != "static") {
        return None;
    }
    object.as_object_mut()?.remove("status");
    let metadata = object.get_mut("metadata").and_then(Value::as_object_mut)?;
    metadata.retain(|name, _| !BOOKKEEPING.contains(&name.as_str()));
    if let Some(Value::Object(annotations)) = metadata.get_mut("annotations") {
        annotations.retain(|name, _| !ANNOTATIONS.contains(&name.as_str()));
    }
    metadata.retain(|_, value| !value.as_object().is_some_and(serde_json::Map::is_empty));
    Some(object)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// (21)
    #[test]
    fn an_exported_object_is_what_its_author_wrote() {
        let written = json!({"kind": "Workload", "metadata": {"name": "a", "namespace": "shop"}, "spec": {"x": {}}});
        let mut read = written.clone();
        read["status"] = json!({});
        for name in BOOKKEEPING {
            read["metadata"][name] = json!("1");
        }
        read["metadata"]["annotations"] =
            json!({"weft.dev/source": "static", "weft.dev/unproven-addresses": "10.0.0.1"});
        assert_eq!(stated(read.clone()), Some(written));
        read["metadata"]["annotations"] = json!({"weft.dev/source": "registered gateway"});
        assert_eq!(stated(read), None);
    }
}
