//! Tests of the whole crate `weft-demo`.

mod layers;
