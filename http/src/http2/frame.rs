//! Frame headers and the constants of frames and settings (RFC 9113 §4, §6).

use super::StreamId;

/// Size of a frame header (RFC 9113 §4.1).
pub(super) const HEADER_SIZE: usize = 9;
/// Largest payload that is sent and accepted: the initial SETTINGS_MAX_FRAME_SIZE, which every peer accepts.
pub(super) const MAX_FRAME: usize = 16_384;
/// Largest value of SETTINGS_MAX_FRAME_SIZE.
pub(super) const LARGEST_FRAME: u32 = 16_777_215;
pub(super) const INITIAL_WINDOW: u32 = 65_535;
pub(super) const MAX_WINDOW: i64 = 0x7fff_ffff;
pub(super) const MAX_STREAM_ID: StreamId = 0x7fff_ffff;
/// The initial SETTINGS_HEADER_TABLE_SIZE (RFC 9113 §6.5.2).
pub(super) const TABLE_SIZE: usize = 4_096;

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PUSH_PROMISE: u8 = 5;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

/// Between proxies: the caller of a request has closed its sending side, after the request. Others ignore it (RFC 9113 §5.5).
pub(super) const HALF_CLOSED: u8 = 0xb7;

pub(super) const END_STREAM: u8 = 0x1;
pub(super) const ACK: u8 = 0x1;
pub(super) const END_HEADERS: u8 = 0x4;
pub(super) const PADDED: u8 = 0x8;
pub(super) const PRIORITY_FLAG: u8 = 0x20;

pub(super) const SETTING_TABLE: u16 = 1;
pub(super) const SETTING_PUSH: u16 = 2;
pub(super) const SETTING_STREAMS: u16 = 3;
pub(super) const SETTING_WINDOW: u16 = 4;
pub(super) const SETTING_FRAME: u16 = 5;
pub(super) const SETTING_HEAD: u16 = 6;
pub(super) const SETTING_CONNECT: u16 = 8;

/// A frame header.
#[derive(Clone, Copy, Debug)]
pub(super) struct FrameHeader {
    pub(super) len: usize,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) id: StreamId,
}

impl FrameHeader {
    /// Decodes a header; `None` if `bytes` is too short.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let [a, b, c, kind, flags, i, j, k, l] = *bytes.first_chunk::<HEADER_SIZE>()?;
        Some(Self {
            len: usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c),
            kind,
            flags,
            id: u32::from_be_bytes([i, j, k, l]) & MAX_STREAM_ID,
        })
    }

    /// Encodes the header.
    pub(super) fn bytes(self) -> [u8; HEADER_SIZE] {
        let [_, a, b, c] = u32::try_from(self.len).unwrap_or(u32::MAX).to_be_bytes();
        let [i, j, k, l] = self.id.to_be_bytes();
        [a, b, c, self.kind, self.flags, i, j, k, l]
    }

    pub(super) fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// A 31-bit number; its reserved bit is ignored.
pub(super) fn number(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk::<4>().map(|bytes| u32::from_be_bytes(*bytes) & 0x7fff_ffff)
}
