//! `weft history`: the revisions, and the changes of one revision.

use jiff::Timestamp;
use serde_json::Value;
use weft_core::text::clean;

use crate::{
    answer::{Answer, List, Revision},
    args::{History, HistoryCommand},
    client::{Client, ClientError},
    kinds::{items, plain},
    output,
    style::Style,
    table::Table,
};

/// Runs the command.
///
/// Errors: an unknown revision, or a failed request.
pub async fn run(client: &Client, args: &History) -> anyhow::Result<()> {
    match &args.command {
        Some(HistoryCommand::Show { revision, output }) => {
            let response = client.read::<Revision>(&format!("/api/v1/revisions/{revision}")).await?.json;
            output::print(*output, &response, |response| revision_lines(response, Style::stdout()))?;
        }
        None => {
            let response = revisions(client, args.limit).await?.json;
            output::print(args.output, &response, listed)?;
        }
    }
    Ok(())
}

/// `{items: [...]}`, newest first.
///
/// Errors: [`ClientError`].
pub async fn revisions(client: &Client, limit: u32) -> Result<Answer<List<Revision>>, ClientError> {
    client.read(&format!("/api/v1/revisions?limit={limit}")).await
}

fn listed(response: &Value) -> Vec<String> {
    let mut table = Table::new(&["REVISION", "AGE", "AUTHOR", "CHANGES", "MESSAGE"]);
    let now = Timestamp::now();
    for revision in items(response, "/items") {
        let of = |name: &str| revision.get(name).map(plain).unwrap_or_default();
        let changes = match revision.get("changes") {
            Some(Value::Array(changes)) => changes.len().to_string(),
            Some(count) => plain(count),
            None => String::new(),
        };
        table.row([
            of("number").into(),
            revision.get("time").map(|time| output::age(time, now)).unwrap_or_default().into(),
            of("author").into(),
            changes.into(),
            message(revision).into(),
        ]);
    }
    output::table_or(&table, "no revisions yet: `weft apply -f FILE` creates the first")
}

fn message(revision: &Value) -> String {
    let of = |name: &str| revision.get(name).map(plain).unwrap_or_default();
    match (of("rollbackTo").as_str(), of("message").as_str()) {
        ("", message) => message.to_owned(),
        (to, "") => format!("rollback to {to}"),
        (to, message) => format!("rollback to {to}: {message}"),
    }
}

fn revision_lines(response: &Value, style: Style) -> Vec<String> {
    let of = |name: &str| response.get(name).map(plain).unwrap_or_default();
    let mut lines = vec![
        style.bold(&format!("revision {}", of("number"))),
        format!("time     {}", response.get("time").map(output::time).unwrap_or_default()),
        format!("author   {}", of("author")),
    ];
    let message = message(response);
    if !message.is_empty() {
        lines.push(format!("message  {message}"));
    }
    for change in items(response, "/changes") {
        let key = change.get("key").map(plain).unwrap_or_default();
        let (before, after) = (change.get("before"), change.get("after"));
        let (before, after) = (before.filter(|value| !value.is_null()), after.filter(|value| !value.is_null()));
        lines.push(String::new());
        lines.push(match (before, after) {
            (None, Some(_)) => style.green(&format!("+ {key} created")),
            (Some(_), None) => style.red(&format!("- {key} deleted")),
            _ => style.yellow(&format!("~ {key} changed")),
        });
        match change.get("diff").and_then(Value::as_str) {
            Some(diff) => lines.extend(diff.lines().map(|line| coloured(line, style))),
            None => {
                lines.extend(difference(&yaml(before), &yaml(after)).into_iter().map(|line| coloured(&line, style)))
            }
        }
    }
    lines
}

/// An object as users write it, without the metadata of the control plane.
fn yaml(value: Option<&Value>) -> Vec<String> {
    let mut value = value.cloned();
    let metadata = value.as_mut().and_then(|value| value.get_mut("metadata")).and_then(Value::as_object_mut);
    if let Some(metadata) = metadata {
        for name in ["uid", "resourceVersion", "generation", "creationTimestamp"] {
            metadata.remove(name);
        }
    }
    let text = value.and_then(|value| output::yaml(&value).ok()).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn coloured(line: &str, style: Style) -> String {
    let line = clean(line);
    match line.chars().next() {
        Some('+') => style.green(&line),
        Some('-') => style.red(&line),
        _ => line.into_owned(),
    }
}

/// The lines of both texts, those only in the first with `-`, only in the second with `+`, and unchanged lines further
/// than three from a change left out. By longest common subsequence; texts above 2,000 lines are shown whole.
fn difference(before: &[String], after: &[String]) -> Vec<String> {
    const CONTEXT: usize = 3;
    const MOST: usize = 2_000;
    let mut marked: Vec<(char, &str)> = Vec::new();
    if before.len() > MOST || after.len() > MOST {
        marked.extend(before.iter().map(|line| ('-', line.as_str())));
        marked.extend(after.iter().map(|line| ('+', line.as_str())));
    } else {
        // A table instead of recursion: each suffix pair is computed once, from the ends backwards.
        // common[i][j]: length of the longest common subsequence of before[i..] and after[j..].
        let width = after.len() + 1;
        let mut common = vec![0_u32; (before.len() + 1) * width];
        let at = |common: &[u32], i: usize, j: usize| common.get(i * width + j).copied().unwrap_or(0);
        for (i, old) in before.iter().enumerate().rev() {
            for (j, new) in after.iter().enumerate().rev() {
                let value = match old == new {
                    true => at(&common, i + 1, j + 1) + 1,
                    false => at(&common, i + 1, j).max(at(&common, i, j + 1)),
                };
                if let Some(place) = common.get_mut(i * width + j) {
                    *place = value;
                }
            }
        }
        // Walk from the start along the longest common subsequence; on a tie the removed line comes first.
        let (mut i, mut j) = (0, 0);
        loop {
            match (before.get(i), after.get(j)) {
                (Some(old), Some(new)) if old == new => {
                    marked.push((' ', old));
                    (i, j) = (i + 1, j + 1);
                }
                (Some(old), new) if new.is_none() || at(&common, i + 1, j) >= at(&common, i, j + 1) => {
                    marked.push(('-', old));
                    i += 1;
                }
                (_, Some(new)) => {
                    marked.push(('+', new));
                    j += 1;
                }
                (_, None) => break,
            }
        }
    }
    let near = |index: usize| {
        let range = index.saturating_sub(CONTEXT)..(index + CONTEXT + 1).min(marked.len());
        marked.get(range).into_iter().flatten().any(|(mark, _)| *mark != ' ')
    };
    let mut lines = Vec::new();
    let mut skipped = false;
    for (index, (mark, line)) in marked.iter().enumerate() {
        if near(index) {
            lines.push(format!("{mark} {line}"));
            skipped = false;
        } else if !skipped {
            lines.push("  …".to_owned());
            skipped = true;
        }
    }
    lines
}

/// The newest revision's number; 0 when there is none.
///
/// Errors: [`ClientError`].
pub async fn newest(client: &Client) -> Result<u64, ClientError> {
    let answer = revisions(client, 1).await?;
    Ok(answer.meaning.items.first().map_or(0, |revision| revision.number))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_difference_shows_what_changed_and_little_else() {
        let before = lines("a\nb\nc\nd\ne\nf\ng\nh");
        let after = lines("a\nb\nc\nd\ne\nF\ng\nh\ni");
        let wanted = ["  …", "  c", "  d", "  e", "- f", "+ F", "  g", "  h", "+ i"];
        assert_eq!(difference(&before, &after), wanted);
        assert_eq!(difference(&[], &lines("a")), ["+ a"]);
        assert_eq!(difference(&lines("a"), &[]), ["- a"]);
        assert!(difference(&before, &before).iter().all(|line| line == "  …"));
    }

    #[test]
    fn a_revision_is_printed_with_its_changes() {
        let response = json!({
            "number": 7, "time": "2026-01-10T12:00:00Z", "author": "admin", "message": "", "rollbackTo": 5,
            "changes": [
                {"key": "Service/shop/a", "before": {"metadata": {"generation": 1}, "spec": 1},
                 "after": {"metadata": {"generation": 2}, "spec": 2}},
                {"key": "Service/shop/b", "before": null, "after": {"spec": 1}},
                {"key": "Service/shop/c", "before": {"spec": 1}},
            ],
        });
        let text = revision_lines(&response, Style::PLAIN).join("\n");
        for part in [
            "message  rollback to 5",
            "~ Service/shop/a changed\n  metadata: {}\n- spec: 1\n+ spec: 2",
            "+ Service/shop/b created\n+ spec: 1",
            "- Service/shop/c deleted\n- spec: 1",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }
}
