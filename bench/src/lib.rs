//! The bench: compares Weft with Envoy and with a byte relay, in one run on one machine.
//!
//! Path measured: client -> outbound proxy -> mutual TLS -> inbound proxy -> server.
//!
//! Map:
//! - [`scenario`]: the rows: method and participants of each. [`bars`]: the limits that each must meet.
//! - [`certs`]: the CA and the identities of one run, as PEM files and as rustls configurations.
//! - [`programs`]: the paths of wrk, h2load, nginx, Envoy and Weft; what to install if one is missing.
//! - [`awake`]: keeps CPUs from sleeping. [`stolen`]: detects when the hypervisor takes one away.
//! - [`process`]: child programs: pinned to a CPU, logged, killed with the bench.
//! - [`server`]: nginx, the application behind every pair; it also counts the requests. [`app`]: the server for other protocols.
//! - [`floor`]: the relay that forwards bytes and parses nothing.
//! - [`pairs`]: one file per proxy: how a pair is configured and started. [`mesh`]: one proxy with a control plane.
//! - [`verify`]: before it is measured, a pair must answer correctly and refuse a wrong identity.
//! - [`load`]: wrk and h2load, and their output. Own loads: [`bulk`] (bytes), [`open_loop`] (a fixed rate),
//!   [`handshakes`] (new connections), [`memory`] (idle connections).
//! - [`measure`]: processor time and memory from /proc; medians and percentiles.
//! - [`run`]: the interleaved rounds.
//! - [`report`]: the table and `latest.json`.
//!
//! Errors are `anyhow` throughout: this is a tool, and no code matches on its errors.

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
