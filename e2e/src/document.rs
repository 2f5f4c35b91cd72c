//! YAML documents for proxies and `weft apply`: values in, one file of `---` separated documents out.
//! The shapes are written with `serde_json::json!`, as people write them, so that a test does not share the types
//! (and the mistakes) of the programs under test.

use anyhow::{Context, Result};
use serde_json::Value;

/// The text of a file with these documents, in this order.
///
/// Errors: none for values that came from JSON.
pub fn yaml(documents: &[Value]) -> Result<String> {
    let mut text = String::new();
    for document in documents {
        text.push_str("---\n");
        text.push_str(&serde_norway::to_string(document).context("write a document")?);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn documents_come_back_in_order() {
        let documents = [json!({"kind": "A", "list": [1, "x: y"]}), json!({"kind": "B"})];
        let text = yaml(&documents).unwrap();
        let back: Vec<Value> = serde_norway::Deserializer::from_str(&text)
            .map(|document| serde::Deserialize::deserialize(document).unwrap())
            .collect();
        assert_eq!(back, documents);
    }
}
