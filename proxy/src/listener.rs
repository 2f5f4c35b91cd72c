//! Listeners: where connections come in.

pub mod original_dst;
