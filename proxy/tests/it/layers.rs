//! The floors of the proxy (docs/adr/0026).

/// From the highest floor to the lowest. A room imports from lower floors, or from its own floor without a circle.
const FLOORS: &[&[&str]] = &[
    &["command", "fuzzing"],
    &["app"],
    &["serve"],
    &["request", "discovery", "identity", "agent", "admin", "file", "capture"],
    &["control"],
    &["worker"],
    &["live"],
    &["upstream"],
    &["http", "tls", "stream", "listener", "tcp", "control_plane"],
    &["connection", "buffer", "drain", "config", "slot", "status", "telemetry"],
];

#[test]
fn imports_point_downwards() {
    let sources = weft_layers::Sources::read(env!("CARGO_MANIFEST_DIR")).unwrap();
    let violations = sources.violations(FLOORS, &[]);
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}
