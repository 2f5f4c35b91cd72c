//! The floors between crates (ARCHITECTURE.md): `proto <- core <- {proxy, control-plane, cli} <- e2e`,
//! `{http, redirect} <- proxy`, `cli <- demo`. Proxy and control plane meet only on the wire.

use std::{collections::BTreeMap, process::Command};

/// Every crate with the crates of the workspace that it may depend on; tests and benches may depend on others.
const ALLOWED: &[(&str, &[&str])] = &[
    ("weft-proto", &[]),
    ("weft-http", &[]),
    ("weft-redirect", &[]),
    ("weft-layers", &[]),
    ("weft-core", &["weft-proto"]),
    ("weft-proxy", &["weft-core", "weft-http", "weft-proto", "weft-redirect"]),
    ("weft-control-plane", &["weft-core", "weft-proto"]),
    ("weft", &["weft-core"]),
    ("weft-demo", &["weft", "weft-core"]),
    ("weft-demo-order", &[]),
    ("weft-e2e", &["weft-redirect"]),
    ("weft-bench", &[]),
    ("weft-fuzz", &["weft-core", "weft-http", "weft-proxy"]),
];

#[test]
fn crates_depend_only_on_lower_floors() {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    let metadata = ["metadata", "--no-deps", "--offline", "--format-version=1", "--manifest-path", manifest];
    let output = Command::new(env!("CARGO")).args(metadata).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();

    let mut allowed: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();
    for package in metadata["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        let may = allowed.remove(name).unwrap_or_else(|| panic!("{name} is on no floor"));
        for dependency in package["dependencies"].as_array().unwrap() {
            let to = dependency["name"].as_str().unwrap();
            // The kind is null for an ordinary dependency. A path marks a crate of the workspace.
            if dependency["kind"] != "dev" && !dependency["path"].is_null() {
                assert!(may.contains(&to), "{name} may not depend on {to}");
            }
        }
    }
    assert!(allowed.is_empty(), "no crates of the workspace: {allowed:?}");
}
