//! The floors of the control plane (ARCHITECTURE.md).

/// From the highest floor to the lowest. A room imports from lower floors, or from its own floor without a circle.
const FLOORS: &[&[&str]] = &[
    &["app"],
    &["api", "xds", "agent", "identity"],
    &["serve", "status"],
    &["tls", "state"],
    &["registry"],
    &["desired", "tokens", "ca", "data_dir"],
    &["store", "files", "crypto", "metrics", "config"],
    &["quota"],
];

#[test]
fn imports_point_downwards() {
    let sources = weft_layers::Sources::read(env!("CARGO_MANIFEST_DIR")).unwrap();
    let violations = sources.violations(FLOORS, &[]);
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}
