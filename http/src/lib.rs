//! HTTP/1 and HTTP/2 as bytes: no socket, task, clock or lock. Whoever has a connection feeds in what it reads and writes what
//! comes out.
//! Shape: [`head`] and [`fields`] are what both versions carry, with names in their case and order; [`http1`] parses and writes
//! HTTP/1 messages; [`http2`] is one HTTP/2 connection, [`hpack`] its compression of heads.
//! Invariant: nothing that arrives panics or makes a buffer grow without bound; what is malformed is refused, never mended.

pub mod fields;
pub mod head;
pub mod hpack;
pub mod http1;
pub mod http2;
mod input;
pub mod out;

pub use input::SMALL;
