//! The floors of the demo.

/// From the highest floor to the lowest. A room imports from lower floors, or from its own floor without a circle.
const FLOORS: &[&[&str]] = &[
    &["story"],
    &["shop"],
    &["capture", "load", "metrics", "plan", "relay", "stage", "state"],
    &["netns", "process"],
    &["exchange", "places", "wait"],
    &["embedded"],
];

#[test]
fn imports_point_downwards() {
    let sources = weft_layers::Sources::read(env!("CARGO_MANIFEST_DIR")).unwrap();
    let violations = sources.violations(FLOORS, &[]);
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}
