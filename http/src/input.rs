//! Takes parts of a body out of the read buffer.

use bytes::{Buf, Bytes, BytesMut};

/// Parts of bodies up to this size, in bytes, are copied out of the read buffer, so that a small part that is kept does not keep the
/// whole of a large buffer.
pub const SMALL: usize = 8 * 1024;

/// Removes the first `len` bytes, which must be there.
pub(crate) fn take(buffer: &mut BytesMut, len: usize) -> Bytes {
    match buffer.get(..len) {
        Some(small) if len <= SMALL => {
            let copy = Bytes::copy_from_slice(small);
            buffer.advance(len);
            copy
        }
        _ => buffer.split_to(len).freeze(),
    }
}
