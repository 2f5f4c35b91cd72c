//! The same bytes in other pieces: a network may cut them anywhere.
//! The cuts depend on the bytes alone, so an input always means the same run.

/// So many bytes are fed one by one.
const SINGLE: usize = 128;
/// So many bytes are fed in small pieces.
const SMALL: usize = 4096;

/// Ways to cut `bytes`: one by one (the first 128 of them), in small pieces (the first 4096), in large pieces. All pieces joined are `bytes`.
pub(crate) fn ways(bytes: &[u8]) -> [Vec<&[u8]>; 3] {
    let mut random = Random::of(bytes);
    let [single, small] = [SINGLE, SMALL].map(|most| {
        let (first, rest) = bytes.split_at_checked(most).unwrap_or((bytes, &[]));
        let mut pieces = cut(first, || if most == SINGLE { 1 } else { 1 + random.below(16) });
        pieces.extend(Some(rest).filter(|rest| !rest.is_empty()));
        pieces
    });
    let most = bytes.len();
    let large = cut(bytes, || 1 + random.below(most));
    [single, small, large]
}

/// Pieces of the lengths that `len` says.
fn cut(bytes: &[u8], mut len: impl FnMut() -> usize) -> Vec<&[u8]> {
    let mut pieces = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(len().min(rest.len()));
        pieces.push(piece);
        rest = after;
    }
    pieces
}

/// Numbers that depend on a seed alone (xorshift).
pub(crate) struct Random(u64);

impl Random {
    /// Seeded by bytes (FNV-1a).
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Self(hash | 1)
    }

    /// Below `most`; 0 when that is 0.
    pub(crate) fn below(&mut self, most: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap_or_default().checked_rem(most).unwrap_or_default()
    }
}
