//! HPACK (RFC 7541): header compression.
//! Shape: [`Decoder`] and [`Encoder`] hold one dynamic table each (`table`); `huffman` decodes Huffman code. The encoder never
//! writes Huffman code: bandwidth between proxies is cheap, while the code costs both sides time for every byte of a value.
//! Invariant: the tables of both sides are equal after every block, also after one whose fields were rejected; otherwise the
//! connection ends.

mod decode;
mod encode;
mod huffman;
mod table;
#[cfg(test)]
mod tests;

pub use decode::Decoder;
pub use encode::Encoder;

/// Why a header block cannot be decoded. Each is a connection error: of type COMPRESSION_ERROR (RFC 9113 §4.3), or
/// ENHANCE_YOUR_CALM for [`Error::Copies`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The block ends inside a field.
    #[error("header block ends inside a field")]
    Truncated,
    /// An integer of more than five bytes; a valid one is below 2^28 + 128.
    #[error("integer too large in a header block")]
    Integer,
    /// Index 0, or an index beyond the tables (RFC 7541 §6.1, §2.3.3).
    #[error("invalid index in a header block")]
    Index,
    /// A size update that is above SETTINGS_HEADER_TABLE_SIZE, after a field, or the third of its block (RFC 7541 §4.2).
    #[error("invalid dynamic table size update in a header block")]
    SizeUpdate,
    /// Names of old entries copied into new ones, of more than 64 KiB in all: no peer that compresses does that.
    #[error("names copied too often in a header block")]
    Copies,
    /// Invalid Huffman code: EOS, or wrong padding (RFC 7541 §5.2).
    #[error("invalid Huffman code in a header block")]
    Huffman,
}
