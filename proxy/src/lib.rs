//! The Weft proxy: moves bytes beside a workload or at the edge.
//!
//! A connection enters by [`listener`], is taken by `inbound`, `outbound` or `gateway`, and leaves through `upstream` (HTTP) or
//! `tcp` (opaque bytes). What it obeys is in [`live`]; what it may touch on its way is its [`worker`].

pub mod connection;
pub mod drain;
mod gateway;
mod http;
mod inbound;
pub mod listener;
pub mod live;
mod outbound;
pub mod redirect;
mod stream;
mod tcp;
pub mod telemetry;
pub mod tls;
mod upstream;
pub mod worker;
