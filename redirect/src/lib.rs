//! Sends a workload's TCP connections to its proxy with nftables rules, and takes that back.
//! Shape: [`Redirect`] (settings) -> `rules()` (one nftables script) -> `apply` / `remove` / `check`.
//! It works in the network namespace of the calling thread: table `inet weft`, and local routes with protocol 119.
//! Rooms: `settings`, `rules` (pure text), `routes` and `program` (`ip`, `nft`), `apply`, `undo` (unless confirmed in time),
//! `check` (probe connections), `in_force` and `listed` (whether the rules are still whole), `ssh` (the ports that stay outside), `args` (flags), [`original_dst`] (the two socket options on which proxy and rules agree).
//! Invariants: the table is replaced in one netfilter transaction; the proxy's own ports and exempt connections are
//! never captured; an address of a mesh range reaches the proxy or is refused, and never reaches another listener of
//! this host. The crate knows nothing of the proxy (docs/adr/0023).

mod apply;
mod args;
mod check;
mod error;
mod in_force;
mod listed;
pub mod original_dst;
mod program;
mod routes;
mod rules;
mod settings;
mod ssh;
mod undo;

pub use apply::Report;
pub use args::{RedirectArgs, run};
pub use check::{Check, Finding, Outcome};
pub use error::RedirectError;
pub use in_force::{Half, InForce};
pub use settings::{DEFAULT_MARK, Redirect};
