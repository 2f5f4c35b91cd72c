//! The harness of the whole-mesh tests: real programs, real redirection, one kernel.
//! Rooms, from below: `programs` (paths of the binaries), `wait` (poll until, with a deadline), `process` (one
//! running program and its log), `world` (namespaces on a bridge) and `host` (one of them), `wire` (tcpdump, and whether it saw TLS only),
//! `certificate` (SVIDs, good and bad), `document` (YAML files), `mesh` (proxies and control plane),
//! `app` (the applications: HTTP, gRPC, databases) and `load` (requests whose every outcome is kept).
//! A test is `weft_e2e::test("name", |world| …)`: it gets a world of its own, and on failure every log is printed.
//! Invariants: nothing outlives its value (processes, namespaces, directories), what a killed run left is removed by
//! the next one, nothing waits by sleeping a fixed time, and a missing privilege is a failure, never a skip.

pub mod app;
pub mod certificate;
pub mod document;
pub mod host;
pub mod load;
pub mod mesh;
pub mod process;
pub mod programs;
pub mod wait;
pub mod wire;
pub mod world;

pub use host::Host;
pub use process::Process;
pub use wait::{DEADLINE, until};
pub use world::{World, test};
