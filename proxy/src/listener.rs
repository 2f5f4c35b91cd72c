//! Listeners: where connections come in, where they were going, and what they speak.

pub mod accept;
pub(crate) mod detect;
pub mod original_dst;
pub mod spread;
