//! Tests of the whole crate `weft-redirect`.

mod layers;
