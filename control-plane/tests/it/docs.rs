//! The examples of docs/reference/api.md, run in their order: each `http` block is sent, and its answer must have what
//! the `json` block after it shows.

use serde_json::Value;

use crate::harness::Mesh;

/// Whether everything in `shown` is in `found`: fields of objects, and elements of lists in their order.
fn has(found: &Value, shown: &Value) -> bool {
    match (found, shown) {
        (Value::Object(found), Value::Object(shown)) => {
            shown.iter().all(|(name, shown)| found.get(name).is_some_and(|found| has(found, shown)))
        }
        (Value::Array(found), Value::Array(shown)) => {
            found.len() == shown.len() && found.iter().zip(shown).all(|(found, shown)| has(found, shown))
        }
        _ => found == shown,
    }
}

#[tokio::test]
async fn the_documented_examples_are_true() {
    let text = include_str!("../../../docs/reference/api.md");
    let mesh = Mesh::start().await;
    let mut blocks = text.split("```").skip(1).step_by(2);
    let mut count = 0;
    while let Some(block) = blocks.next() {
        let request = block.strip_prefix("http\n").expect("an http block");
        let answer = blocks.next().and_then(|block| block.strip_prefix("json\n")).expect("its json block");
        let (line, body) = request.split_once('\n').unwrap();
        let (method, path) = line.split_once(' ').unwrap();
        let (status, found) = mesh.local(method.parse().unwrap(), path, body.trim().to_owned()).await;
        let (shown_status, shown) = answer.split_once('\n').unwrap();
        let shown: Value = serde_json::from_str(shown).unwrap();
        assert_eq!(status.as_str(), shown_status, "{line}: {found}");
        assert!(has(&found, &shown), "{line}\nshown: {shown}\nfound: {found}");
        count += 1;
    }
    assert!(count >= 6, "{count} examples");
}
