//! Tests of the whole crate `weft-core`.

mod layers;
mod routes;
