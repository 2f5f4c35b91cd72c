//! Real proxies over loopback: traffic through pairs of them, and one against a fake control plane.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "shared bodies of tests: what is missing fails the test"
)]

mod apps;
mod balance;
mod beside;
mod chain;
mod control;
mod drain;
mod ends;
mod fallback;
mod files;
mod filter;
mod followed;
mod foreign;
mod forge;
mod gateway;
mod grpc;
mod half_closed;
mod heads;
mod hostile;
mod http1;
mod http2;
mod interim;
mod lasting;
mod layers;
mod leaving;
mod limits;
mod outliers;
mod pair;
mod path;
mod plane;
mod records;
mod restart;
mod resumption;
mod retry;
mod revoke;
mod same;
mod shares;
mod stall;
mod telemetry;
mod traffic;
mod unread;
mod upgrade;
