//! Tests of the whole crate `weft-http`.

mod layers;
