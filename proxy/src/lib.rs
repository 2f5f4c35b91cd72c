//! The Weft proxy: moves bytes beside a workload or at the edge.

pub mod listener;
pub mod redirect;
