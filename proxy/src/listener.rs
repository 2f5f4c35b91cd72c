//! Listeners: accept connections, spread them over the workers, detect their protocol.

pub mod accept;
pub(crate) mod detect;
pub mod spread;
