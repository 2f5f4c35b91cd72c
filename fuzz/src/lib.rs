//! Bodies of the fuzz targets: one module for each target, with `run(bytes)` and its assertions.
//!
//! A target takes bytes as an attacker sends them and compares the code under test with an oracle: a second implementation, a
//! naive reference in the same file, or the same code with the bytes cut differently. A violated assertion panics.
//! `fuzz/libfuzzer` (outside the workspace) lets libFuzzer call the targets; `tests/corpus.rs` replays the committed corpora
//! under `cargo test`. See docs/adr/0024.

pub mod client_hello;
mod cuts;
pub mod hpack;
pub mod http1_body;
pub mod http1_head;
pub mod http2_connection;
pub mod identity;
mod lines;
pub mod mesh_tls;
pub mod path_policy;
pub mod xds_decode;
pub mod yaml_objects;

/// A target: its name, which is that of its corpus folder and of its libFuzzer program, and its body.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("client_hello", client_hello::run),
    ("hpack", hpack::run),
    ("http1_body", http1_body::run),
    ("http1_head", http1_head::run),
    ("http2_connection", http2_connection::run),
    ("identity", identity::run),
    ("mesh_tls", mesh_tls::run),
    ("path_policy", path_policy::run),
    ("xds_decode", xds_decode::run),
    ("yaml_objects", yaml_objects::run),
];

/// Reports a violated assertion.
#[expect(clippy::panic, reason = "a panic is how a target reports a violated assertion")]
pub(crate) fn violated(what: std::fmt::Arguments<'_>) -> ! {
    panic!("{what}")
}

/// The value of an outcome that has to be good; `what` completes "expected …".
pub(crate) fn must<T, E: std::fmt::Debug>(outcome: Result<T, E>, what: &str) -> T {
    outcome.unwrap_or_else(|error| violated(format_args!("expected {what}: {error:?}")))
}

/// The value of an option that has to be there; `what` completes "expected …".
pub(crate) fn some<T>(value: Option<T>, what: &str) -> T {
    value.unwrap_or_else(|| violated(format_args!("expected {what}")))
}
