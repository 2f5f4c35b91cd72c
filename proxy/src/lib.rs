//! The Weft proxy: moves bytes beside a workload or at the edge.
//!
//! A connection is accepted by `serve`, travels through `request` (inbound, outbound or gateway), and leaves through `upstream`
//! (HTTP) or `tcp` (opaque bytes). Its configuration is in [`live`]; the state it uses on its way is its [`worker`]'s.
//!
//! Beside that way: [`app`] puts everything together from [`config`]; `discovery` or [`file`] provides the configuration, `identity`
//! gets the certificate, `agent` tells the control plane how we do, `admin` tells everyone else.

mod admin;
mod agent;
pub mod app;
mod buffer;
mod capture;
pub mod command;
pub mod config;
pub mod connection;
mod control;
mod control_plane;
mod discovery;
pub mod drain;
pub mod file;
#[doc(hidden)]
pub mod fuzzing;
mod http;
pub mod identity;
pub mod listener;
pub mod live;
mod request;
pub mod serve;
mod slot;
pub mod status;
mod stream;
mod tcp;
pub mod telemetry;
pub mod tls;
mod upstream;
pub mod worker;
