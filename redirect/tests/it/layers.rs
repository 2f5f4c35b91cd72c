//! The floors of the redirect.

/// From the highest floor to the lowest. A room imports from lower floors, or from its own floor without a circle.
const FLOORS: &[&[&str]] = &[
    &["args"],
    &["undo"],
    &["apply", "check"],
    &["in_force"],
    &["rules", "routes"],
    &["settings", "listed"],
    &["ssh", "original_dst", "program"],
    &["error"],
];

#[test]
fn imports_point_downwards() {
    let sources = weft_layers::Sources::read(env!("CARGO_MANIFEST_DIR")).unwrap();
    let violations = sources.violations(FLOORS, &[]);
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}
