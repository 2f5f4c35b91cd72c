//! The bench: Weft beside Envoy and beside a byte relay, in one run on one machine.
//!
//! Path measured: client -> outbound proxy -> mutual TLS -> inbound proxy -> server.
//!
//! Map:
//! - [`scenario`]: what is measured (connections, HTTP version).
//! - [`certs`]: the CA and the identities of one run, as PEM files and as rustls configurations.
//! - [`programs`]: where wrk, h2load, nginx, Envoy and Weft are; what to install when they are not.
//! - [`process`]: child programs: pinned to a CPU, logged, killed with the bench.
//! - [`server`]: nginx, the application behind every pair; it also counts the requests.
//! - [`floor`]: the relay that forwards bytes and reads nothing.
//! - [`pairs`]: one file per proxy: how a pair is configured and started.
//! - [`verify`]: a pair must answer rightly, and refuse a wrong identity, before it is measured.
//! - [`load`]: wrk and h2load, and what they print.
//! - [`measure`]: processor time and memory from /proc; medians and percentiles.
//! - [`run`]: the interleaved rounds.
//! - [`report`]: the table and `latest.json`.
//!
//! Errors are `anyhow` throughout: this is a tool, and nobody matches on its errors.

pub mod certs;
pub mod floor;
pub mod load;
pub mod measure;
pub mod pairs;
pub mod process;
pub mod programs;
pub mod report;
pub mod run;
pub mod scenario;
pub mod server;
pub mod verify;
