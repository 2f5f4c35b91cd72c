//! Codecs for HTTP/1 and HTTP/2 on byte buffers: no socket, task, clock or lock. The caller reads and writes the connection.
//! Shape: [`head`] and [`fields`] hold the parts that both versions share, with field names in their original case and order;
//! [`http1`] parses and writes HTTP/1 messages; [`http2`] is the state machine of one HTTP/2 connection, [`hpack`] its header
//! compression; [`spelling`] tells the case of names beside it; [`out`] is the queue of bytes to write.
//! Invariant: no input causes a panic or grows a buffer without bound. Malformed input is rejected, never repaired.

pub mod fields;
pub mod head;
pub mod hpack;
pub mod http1;
pub mod http2;
mod input;
pub mod out;
pub mod spelling;

pub use input::SMALL;
