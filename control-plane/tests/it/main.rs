//! The control plane as others see it: the real server in this process, on free ports, over real TLS and Unix sockets;
//! and, where it has to die, the real program.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "these are tests; their helpers fail them like this"
)]

mod agent;
mod api;
mod crash;
mod docs;
mod files;
mod harness;
mod identity;
mod layers;
mod ports;
mod program;
mod xds;
