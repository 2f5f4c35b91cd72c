//! The floors of the model: `api` and the model are below what translates them.

/// From the highest floor to the lowest. A room imports from lower floors, or from its own floor without a circle.
const FLOORS: &[&[&str]] = &[
    &["compile", "wire", "snapshot", "answer"],
    &["api", "listener"],
    &["route", "failure"],
    &["filter", "policy", "retry", "outlier"],
    &["cluster", "endpoint", "balancer"],
    &["identity", "lookup", "names", "text"],
];

/// Imports that do not fit the floors yet. The test fails if one of them is gone, so that this list only shrinks.
const PENDING: &[(&str, &str)] = &[];

#[test]
fn imports_point_downwards() {
    let sources = weft_layers::Sources::read(env!("CARGO_MANIFEST_DIR")).unwrap();
    let violations = sources.violations(FLOORS, PENDING);
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}
