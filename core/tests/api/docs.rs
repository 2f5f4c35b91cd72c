//! The examples of docs/reference/objects.md are read and valid, and every kind and field is on that page.

use weft_core::api::{Kind, parse_documents, parse_proxy_file};

fn page() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/objects.md")).unwrap()
}

fn examples(page: &str) -> Vec<&str> {
    page.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect()
}

#[test]
fn every_example_of_the_page_is_read() {
    let page = page();
    let mut kinds = std::collections::BTreeSet::new();
    let mut proxies = 0;
    for example in examples(&page) {
        if example.contains("kind: ProxyConfig") {
            parse_proxy_file(example).unwrap_or_else(|errors| panic!("{errors:?}\n{example}"));
            proxies += 1;
        } else {
            let objects = parse_documents(example).unwrap_or_else(|errors| panic!("{errors:?}\n{example}"));
            assert!(!objects.is_empty(), "{example}");
            kinds.extend(objects.iter().map(|object| object.kind()));
        }
    }
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), Kind::ALL, "one example for each kind");
    assert!(proxies >= 1, "an example of a ProxyConfig");
}

/// The list of known fields that an unknown one is answered with must be on the page, whole.
#[test]
fn every_field_is_on_the_page() {
    let page = page();
    let mut seen = 0;
    for kind in Kind::ALL {
        let text = crate::document(kind.as_str(), "{qqqqqqqqqqqq: 1}");
        let errors = crate::errors(&text);
        let known = errors[0].split_once("known are ").unwrap_or_else(|| panic!("{}", errors[0])).1;
        let start = page.find(&format!("## {kind}\n")).unwrap_or_else(|| panic!("no part about {kind}"));
        let part = page[start + 3..].split("\n## ").next().unwrap();
        for field in known.split(", ") {
            assert!(part.contains(&format!("`{field}")), "{kind}.spec.{field} is not on the page");
            seen += 1;
        }
    }
    assert!(seen > 25);
}
