//! The bench: Weft beside Envoy and beside a byte relay, in one run on one machine.
//!
//! Path measured: client -> outbound proxy -> mutual TLS -> inbound proxy -> server.
//!
//! Map:
//! - [`scenario`]: the rows: what is measured, how, and who takes part. [`bars`]: what each must reach.
//! - [`certs`]: the CA and the identities of one run, as PEM files and as rustls configurations.
//! - [`programs`]: where wrk, h2load, nginx, Envoy and Weft are; what to install when they are not.
//! - [`awake`]: CPUs that do not sleep meanwhile. [`stolen`]: when the hypervisor took one away.
//! - [`process`]: child programs: pinned to a CPU, logged, killed with the bench.
//! - [`server`]: nginx, the application behind every pair; it also counts the requests. [`app`]: what nginx cannot serve.
//! - [`floor`]: the relay that forwards bytes and reads nothing.
//! - [`pairs`]: one file per proxy: how a pair is configured and started. [`mesh`]: one proxy with a control plane.
//! - [`verify`]: a pair must answer rightly, and refuse a wrong identity, before it is measured.
//! - [`load`]: wrk and h2load, and what they print. Own loads: [`bulk`] (bytes), [`open_loop`] (a fixed rate),
//!   [`handshakes`] (new connections), [`memory`] (idle connections).
//! - [`measure`]: processor time and memory from /proc; medians and percentiles.
//! - [`run`]: the interleaved rounds.
//! - [`report`]: the table and `latest.json`.
//!
//! Errors are `anyhow` throughout: this is a tool, and nobody matches on its errors.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "scenarios and settings differ from the rest in one point at a time; `scenario` itself lists them all"
)]

pub mod app;
pub mod awake;
pub mod bars;
pub mod bulk;
pub mod certs;
pub mod floor;
pub mod handshakes;
pub mod load;
pub mod measure;
pub mod memory;
pub mod mesh;
pub mod open_loop;
pub mod pairs;
pub mod process;
pub mod programs;
pub mod report;
pub mod run;
pub mod scenario;
pub mod server;
pub mod stolen;
pub mod verify;
