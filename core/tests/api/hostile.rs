//! Texts made to hurt: refused, and quickly. The bound on time is wide for a slow, shared machine; what it guards
//! against takes minutes or for ever.

use std::time::{Duration, Instant};

use weft_core::api::{MAX_ERRORS, parse_documents};

fn refused(name: &str, text: &str, reason: &str) {
    #[expect(clippy::disallowed_methods, reason = "a test of real time, without tokio")]
    let start = Instant::now();
    let errors = parse_documents(text).unwrap_err();
    let took = start.elapsed();
    println!("{name}: {took:?} {}", errors[0]);
    assert!(errors[0].to_string().contains(reason), "{name}: {}", errors[0]);
    assert!(errors.len() <= MAX_ERRORS + 1, "{name}: {} errors", errors.len());
    assert!(errors.iter().all(|error| error.to_string().len() < 10_000), "{name}: a long message");
    assert!(took < Duration::from_secs(20), "{name} took {took:?}");
}

#[test]
fn hostile_texts_are_refused_quickly() {
    let mut bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for (next, last) in ('b'..='z').zip('a'..) {
        let list = vec![format!("*{last}"); 10].join(", ");
        bomb.push_str(&format!("{next}: &{next} [{list}]\n"));
    }
    let head = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: ";
    for (name, text, reason) in [
        ("alias bomb", bomb, "more than 200000 values"),
        ("alias to itself", "a: &a [*a]\n".to_owned(), "document 1"),
        ("text bomb", format!("a: &a {}\nb: [{}]\n", "x".repeat(1 << 20), "*a, ".repeat(100)), "bytes of text"),
        (
            "many aliases",
            format!("a: &a {}\nb: [{}]\n", "x", "*a, ".repeat(200_000)),
            "more than 300000 lines, fields and list members",
        ),
        ("deep flow", format!("{head}{}", "[".repeat(1_000_000)), "deeper than"),
        ("deep flow, closed", format!("{head}{}{}", "[".repeat(10_000), "]".repeat(10_000)), "deeper than"),
        ("deep maps", "{a: ".repeat(10_000), "deeper than"),
        ("deep json", r#"{"a":"#.repeat(10_000), "deeper than"),
        ("deep block", format!("x:\n  {}a", "- ".repeat(10_000)), "document 1: "),
        ("deeper block", format!("x:\n  {}a", "- ".repeat(1_900_000)), "document 1: "),
        ("deep block, indented", (0..2_000).map(|n| format!("{}a:\n", " ".repeat(n))).collect(), "document 1: "),
        ("too large", " ".repeat(4 * 1024 * 1024 + 1), "larger than 4 MiB"),
        (
            "many values",
            format!("a:\n{}", "- a\n".repeat(1_000_000)),
            "more than 300000 lines, fields and list members",
        ),
        ("many documents", "---\na\n".repeat(600_000), "more than 20000 documents"),
        ("many documents that end", "a\n...\n".repeat(600_000), "more than 20000 documents"),
        ("many wrong documents", "---\na\n".repeat(20_000), "an object must be a map"),
        ("many directives", "%TAG ! tag:a\n".repeat(9) + "---\na\n", "more than 8 directives"),
        ("long kind", format!("apiVersion: v1\nkind: {}\n", "a".repeat(1 << 20)), "is not a kind that Weft knows"),
        (
            "many unknown fields",
            format!("{head}{{{}}}", (0..90_000).map(|n| format!("f{n}: 1, ")).collect::<String>()),
            "spec.f0: unknown field",
        ),
        ("many wrong members", format!("{head}{{ports: [{}]}}", "{}, ".repeat(50_000)), "spec.ports[0].port: required"),
        ("field twice", format!("{head}{{ports: [], ports: []}}"), "\"ports\" appears twice"),
        ("no text", "\u{0}\u{1}".to_owned(), "document 1: "),
        ("tag", format!("{head}!!python/object:os.system [x]"), "document 1, Service/default/a: "),
        ("merge key", format!("x: &x {{name: a}}\n{head}{{<<: *x, ports: [{{port: 80}}]}}"), "document 1"),
    ] {
        refused(name, &text, reason);
    }
}

#[test]
fn a_syntax_error_hides_no_mistake_in_another_document_and_counts_lines_from_the_start() {
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80}]}\n---\nkind: [\n---\nkind: Pod\napiVersion: v1\n";
    let errors: Vec<String> = parse_documents(text).unwrap_err().iter().map(ToString::to_string).collect();
    assert_eq!(errors.len(), 2, "{errors:?}");
    assert!(errors[0].starts_with("document 2: ") && errors[0].contains("at line 7"), "{errors:?}");
    assert!(
        errors[1]
            .starts_with("document 3: kind: \"Pod\" is not a kind that Weft knows; the kinds are MeshConfig, Service"),
        "{errors:?}"
    );
}

#[test]
fn the_same_object_twice_is_refused() {
    let one = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80}]}\n";
    let errors = parse_documents(&format!("{one}---\n{one}")).unwrap_err();
    let expected = "document 2, Service/default/a: metadata.name: the same object is already in this text";
    assert_eq!(errors[0].to_string(), expected);
}

#[test]
fn objects_without_kind_version_name_or_parts_say_so() {
    for (text, expected) in [
        ("a: 1", vec!["document 1: apiVersion: required", "document 1: kind: required"]),
        (
            "[a]",
            vec![
                "document 1: an object must be a map with apiVersion, kind, metadata and spec (MeshConfig, Service, Workload, Gateway, HTTPRoute, TrafficPolicy, AuthorizationPolicy)",
            ],
        ),
        (
            "apiVersion: v2\nkind: Service",
            vec![
                "document 1: apiVersion: must be \"v1\" for a Service, not \"v2\"",
                "document 1: metadata: required",
                "document 1: spec: required",
            ],
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 1}]}\n'': 1",
            vec![
                "document 1, Service/default/a: [\"\"]: unknown field; known are apiVersion, kind, metadata, spec, status",
            ],
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {}\nspec: {ports: [{port: 1}]}\ndata: 1",
            vec![
                "document 1: data: unknown field; known are apiVersion, kind, metadata, spec, status",
                "document 1: metadata.name: required",
            ],
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: A_b, labels: {'a b': 'c d', app.kubernetes.io/name: '-'}, ownerReferences: []}\nspec: {ports: [{port: 1}]}",
            vec!["document 1, Service/default/A_b: metadata.ownerReferences: not supported yet"],
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: a.b, labels: {app.kubernetes.io/name: '-'}}\nspec: {ports: [{port: 1}]}",
            vec![
                "document 1, Service/default/a.b: metadata.labels[\"app.kubernetes.io/name\"]: \"-\" is not a label value: use up to 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends",
                "document 1, Service/default/a.b: metadata.name: \"a.b\" is not a name: use 1 to 63 lower-case letters, digits and '-', with a letter or digit at both ends",
            ],
        ),
        (
            "apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {ports: [{}]}}]",
            vec!["document 1, Service/default/a: items[0].spec.ports[0].port: required"],
        ),
        (
            "apiVersion: weft.dev/v1alpha1\nkind: MeshConfig\nmetadata: {name: mine, namespace: shop}\nspec: {}",
            vec![
                "document 1, MeshConfig/shop/mine: metadata.name: must be \"default\": there is one MeshConfig",
                "document 1, MeshConfig/shop/mine: metadata.namespace: must be \"default\" or absent: there is one MeshConfig",
            ],
        ),
    ] {
        assert_eq!(crate::errors(text), expected, "{text}");
    }
}
