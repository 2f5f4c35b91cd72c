//! Listeners: sockets, where a captured connection was going, what it speaks, and which worker takes it.
//!
//! - [`socket`]: listening sockets, and the connections that they accept.
//! - [`detect`]: the protocol by its first bytes.
//! - [`spread`]: connections are spread evenly over the workers.

pub(crate) mod detect;
pub mod socket;
pub mod spread;
