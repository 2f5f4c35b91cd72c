//! Tests of the whole workspace: which crate may depend on which.

mod crates;
