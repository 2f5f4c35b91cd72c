//! HPACK (RFC 7541): compression of heads.
//! Shape: [`Decoder`] and [`Encoder`] keep one dynamic table each (`table`); `huffman` reads Huffman code. The encoder never
//! writes it: one proxy's bytes to the next are cheap, and the code costs both of them time for every byte of a value.
//! Invariant: the tables of both ends agree after every block, also one whose head was refused, or the connection ends.

mod decode;
mod encode;
mod huffman;
mod table;
#[cfg(test)]
mod tests;

pub use decode::Decoder;
pub use encode::Encoder;

/// Why a block cannot be decoded. All are COMPRESSION_ERROR for the connection (RFC 9113 §4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The block ends within a field.
    #[error("the header block ends within a field")]
    Truncated,
    /// An integer above 2^28 or so, or in more than five bytes.
    #[error("an integer in the header block is too large")]
    Integer,
    /// Index 0, or one beyond the tables.
    #[error("the header block refers to a field that is in no table")]
    Index,
    /// A size update above what we announced, after a field, or the third in its block.
    #[error("a table size update in the header block is too large or out of place")]
    SizeUpdate,
    /// Not Huffman code: EOS, or wrong padding.
    #[error("a Huffman-coded string in the header block is not valid")]
    Huffman,
}
