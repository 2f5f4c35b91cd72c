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
pub mod out;

use bytes::{Buf, Bytes, BytesMut};

/// Parts of bodies up to this, in bytes, are copied out of what was read, so that a small part which somebody keeps does not keep
/// the whole of a large buffer.
pub const SMALL: usize = 8 * 1024;

/// Takes the first `len` bytes out, of which there are as many.
fn take(buffer: &mut BytesMut, len: usize) -> Bytes {
    match buffer.get(..len) {
        Some(small) if len <= SMALL => {
            let copy = Bytes::copy_from_slice(small);
            buffer.advance(len);
            copy
        }
        _ => buffer.split_to(len).freeze(),
    }
}
