//! `weft`, the command line of the mesh; also the client library of the demo.
//!
//! - [`args`]: the command line. [`config`]: where the control plane is; the only reader of the environment.
//! - [`client`]: requests to the control plane's REST API, over TLS or its Unix socket. [`answer`]: what it may answer.
//! - [`kinds`], [`documents`]: names of kinds; objects in files. [`table`], [`style`], [`output`]: what is printed.
//! - [`command`]: one file per command: send a request, print the response.
//!
//! Exit codes: 0 done, 1 failed, 64 wrong command line.

pub mod answer;
pub mod args;
pub mod client;
pub mod command;
pub mod config;
pub mod documents;
pub mod kinds;
pub mod output;
pub mod run;
pub mod style;
pub mod table;
