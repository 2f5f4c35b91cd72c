//! Listeners: sockets, where a captured connection was going, what it speaks, and which worker takes it.
//!
//! - [`socket`]: listening sockets, and the connections that they accept.
//! - [`detect`]: the protocol by its first bytes.
//! - [`request_line`]: whether they are a request of HTTP/1.
//! - [`spread`]: connections are spread evenly over the workers.
//! - [`sources`]: no source takes more than its share.

pub(crate) mod detect;
mod request_line;
pub mod socket;
mod sources;
pub mod spread;
