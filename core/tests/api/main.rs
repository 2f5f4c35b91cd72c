//! The shapes that people write, through the crate's public door.
//! Input is YAML as people write it; what is expected are exact texts of errors.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    reason = "tests, also outside of their functions"
)]

mod bad;
mod docs;
mod good;
mod hostile;
mod manifests;
mod round_trip;

use weft_core::api::parse_documents;

/// The errors of a text, as shown.
fn errors(text: &str) -> Vec<String> {
    match parse_documents(text) {
        Ok(_) => Vec::new(),
        Err(errors) => errors.iter().map(ToString::to_string).collect(),
    }
}

/// A whole document around a `spec` in flow or block style; a block starts on a new line with two spaces.
fn document(kind: &str, spec: &str) -> String {
    let version = match kind {
        "Service" => "v1",
        "HTTPRoute" | "Gateway" => "gateway.networking.k8s.io/v1",
        _ => "weft.dev/v1alpha1",
    };
    let name = if kind == "MeshConfig" { "name: default" } else { "name: x, namespace: shop" };
    format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{{name}}}\nspec: {spec}\n")
}
