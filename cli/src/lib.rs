//! What a person types: `weft`.
//!
//! - [`args`]: the command line. [`config`]: where the control plane is; the only reader of the environment.
//! - [`client`]: requests to the control plane's REST API, over TLS or its Unix socket.
//! - [`kinds`], [`documents`]: names of kinds; objects in files. [`table`], [`style`], [`output`]: what is printed.
//! - [`command`]: one file a command; each is *ask the API, print the answer*.
//!
//! Exit codes: 0 done, 1 failed, 64 wrong command line.

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
