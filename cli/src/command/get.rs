//! `weft get`: objects of one kind, or the list of kinds.

use jiff::Timestamp;
use serde_json::{Value, json};
use weft_core::api::Kind;

use super::{UsageError, client};
use crate::{
    answer::{Answer, List, Object},
    args::{Connection, Format, Get},
    client::{Client, ClientError, escape},
    kinds::{self, items, plain},
    output,
    table::Table,
};

/// Runs the command.
///
/// Errors: an unknown kind, a missing object, or a failed request.
pub async fn run(connection: &Connection, args: &Get) -> anyhow::Result<()> {
    if args.kind == "kinds" {
        let known = Kind::ALL.iter().map(|kind| {
            json!({"kind": kind.as_str(), "plural": kind.plural(), "shortNames": kind.short_names(), "apiVersion": kind.api_version()})
        });
        let known = Value::Array(known.collect());
        return Ok(output::print(args.output, &known, |_| kinds_table())?);
    }
    let kind = Kind::named(&args.kind).ok_or_else(|| UsageError(kinds::unknown(&args.kind)))?;
    let client = client(connection)?;
    if let Some(name) = &args.name {
        if args.scope.all_namespaces {
            return Err(UsageError("a name requires one namespace: use -n, not -A".to_owned()).into());
        }
        let object = one(&client, kind, &args.scope.namespace, name).await?;
        return Ok(output::print(args.output, &object, |object| table(kind, &mut std::iter::once(object), false))?);
    }
    let namespace = (!args.scope.all_namespaces).then_some(args.scope.namespace.as_str());
    let list = all(&client, kind, namespace, args.labels.as_deref()).await?;
    if args.output == Format::Table && list.meaning.items.is_empty() {
        let place = namespace
            .map_or("any namespace".to_owned(), |namespace| format!("the namespace {namespace}; -A searches all"));
        return Ok(output::lines(&[format!("no {} in {place}", kind.plural())])?);
    }
    let answer = list.json;
    let objects = output::list(items(&answer, "/items").cloned().collect(), list.meaning.revision);
    Ok(output::print(args.output, &objects, |_| table(kind, &mut items(&answer, "/items"), namespace.is_none()))?)
}

/// One object. A workload may be applied or registered, and only lists contain both.
///
/// Errors: [`ClientError`]; `is_missing` if it does not exist.
pub async fn one(client: &Client, kind: Kind, namespace: &str, name: &str) -> Result<Value, ClientError> {
    let path = format!("/api/v1/{}/{}/{}", kind.plural(), escape(namespace), escape(name));
    match client.read::<Object>(&path).await.map(|answer| answer.json) {
        Err(missing) if missing.is_missing() && kind == Kind::Workload => {
            let list = all(client, kind, Some(namespace), None).await?.json;
            let named = |object: &&Value| object.pointer("/metadata/name").and_then(Value::as_str) == Some(name);
            items(&list, "/items").find(named).cloned().ok_or(missing)
        }
        result => result,
    }
}

/// The objects of a kind, of one namespace or all, with these labels.
///
/// Errors: [`ClientError`].
pub async fn all(
    client: &Client,
    kind: Kind,
    namespace: Option<&str>,
    labels: Option<&str>,
) -> Result<Answer<List<Object>>, ClientError> {
    let mut query = Vec::new();
    query.extend(namespace.map(|namespace| format!("namespace={}", escape(namespace))));
    query.extend(
        labels.into_iter().flat_map(|labels| labels.split(',')).map(|label| format!("label={}", escape(label))),
    );
    let query = if query.is_empty() { String::new() } else { format!("?{}", query.join("&")) };
    client.read(&format!("/api/v1/{}{query}", kind.plural())).await
}

fn table(kind: Kind, objects: &mut dyn Iterator<Item = &Value>, with_namespace: bool) -> Vec<String> {
    let mut heading = if with_namespace { vec!["NAMESPACE", "NAME"] } else { vec!["NAME"] };
    heading.extend(kinds::columns(kind));
    heading.push("AGE");
    let mut table = Table::new(&heading);
    let now = Timestamp::now();
    for object in objects {
        let of = |pointer: &str| object.pointer(pointer).map(plain).unwrap_or_default();
        let mut row = Vec::new();
        if with_namespace {
            row.push(of("/metadata/namespace").into());
        }
        row.push(of("/metadata/name").into());
        row.extend(kinds::cells(kind, object));
        let created = object.pointer("/metadata/creationTimestamp");
        row.push(created.map(|created| output::age(created, now)).unwrap_or_default().into());
        table.row(row);
    }
    output::table_or(&table, "nothing")
}

fn kinds_table() -> Vec<String> {
    let mut table = Table::new(&["KIND", "PLURAL", "SHORT", "APIVERSION"]);
    for kind in Kind::ALL {
        let short = kind.short_names().join(",");
        table.row([kind.as_str().into(), kind.plural().into(), short.into(), kind.api_version().into()]);
    }
    output::table_or(&table, "none")
}
