//! Limits of messages and connections of HTTP, in one place.
//! Spec: RFC 9110 §15.5.15 (414), RFC 6585 §5 (431), RFC 9113 §6.5.2 (SETTINGS).

use weft_core::failure::Failure;
use weft_http::{head::Excess, http1::Limits};

use crate::telemetry::Direction;

/// Longest path and query, in bytes; above it 414.
pub(crate) const MAX_URI: usize = 8 * 1024;
/// Most fields of a head; above it 431.
pub(crate) const MAX_FIELDS: usize = 100;
/// Largest request head in HTTP/1, in bytes; above it 431.
const MAX_HEAD: usize = 16 * 1024;
/// Largest head in HTTP/2: the same, counted as RFC 9113 §10.5.1 does.
pub(crate) const MAX_HEAD_HTTP2: usize = 16 * 1024;
/// Largest head on the hop: every head that the proxy takes from a caller, with 32 bytes a field on top (RFC 9113 §10.5.1).
pub(crate) const MAX_HEAD_HOP: usize = 24 * 1024;
/// Limits of heads in HTTP/1.
pub(crate) const HTTP1: Limits = Limits { head: MAX_HEAD, fields: MAX_FIELDS, target: MAX_URI };
/// Interim answers (1xx) that an application may give before its answer.
pub(crate) const MAX_INTERIM: u32 = 16;
/// Requests in flight on one HTTP/2 connection from outside the mesh, at the edge.
const MAX_STREAMS_EDGE: u32 = 100;
/// The same on a connection from the workload, or from another proxy to the workload: gRPC channels carry every call of a process.
const MAX_STREAMS: u32 = 1_000;

const KIB: u32 = 1024;
const MIB: u32 = 1024 * KIB;

/// The peer of an HTTP/2 connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// Anyone, at the edge.
    Outside,
    /// The workload, or a caller in plaintext.
    Plain,
    /// A proxy of the mesh.
    Proxy,
}

impl Peer {
    /// The caller on a connection.
    pub(crate) fn of(direction: Direction, is_proxy: bool) -> Self {
        match direction {
            _ if is_proxy => Self::Proxy,
            Direction::Gateway => Self::Outside,
            Direction::Inbound | Direction::Outbound => Self::Plain,
        }
    }

    /// Requests that it may have in flight on one HTTP/2 connection unless the proxy's file says otherwise.
    pub(crate) fn max_streams(self) -> u32 {
        if self == Self::Outside { MAX_STREAMS_EDGE } else { MAX_STREAMS }
    }
}

/// Flow control of what a peer sends, in bytes. Data that waits for its reader is at most `stream` for each stream, and `growth` for
/// all of a connection together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Windows {
    /// Window that each stream begins with.
    pub(crate) stream: u32,
    /// Window that a stream may grow to while its reader is quick.
    pub(crate) grown: u32,
    /// What all windows together may grow by.
    pub(crate) growth: u32,
}

impl Windows {
    /// Window of a connection. It holds no stream back, since its credit returns when data arrives.
    pub(crate) const CONNECTION: u32 = 16 * MIB;

    /// The windows of a connection with at most so many streams: each begins with an equal share of 64 MiB, at the edge of 8 MiB,
    /// but not above 256 KiB, and not below what a peer may use before it has read SETTINGS. Between proxies they grow larger:
    /// each WINDOW_UPDATE costs both sides a wake-up, which was an eighth of the cost of large bodies.
    pub(crate) fn new(peer: Peer, streams: u32) -> Self {
        let total = if peer == Peer::Outside { 8 * MIB } else { 64 * MIB };
        let grown = if peer == Peer::Proxy { MIB } else { 256 * KIB };
        Self { stream: (total / streams.max(1)).clamp(64 * KIB - 1, 256 * KIB), grown, growth: total / 4 }
    }
}

/// A head or, where `trailers`, the trailers of a request or answer are above a limit.
pub(crate) fn too_large(request: bool, trailers: bool, excess: Excess) -> Failure {
    let part = if trailers { "trailers" } else { "head" };
    let text = format!("{part} too large: {excess}").into();
    if request { Failure::HeadTooLarge(text) } else { Failure::AnswerTooLarge(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (1)
    #[test]
    fn bodies_that_wait_have_a_bound_for_each_connection() {
        for (peer, streams, stream, total_mib) in [
            (Peer::Outside, 100, 83_886, 10),
            (Peer::Outside, 1_000, 65_535, 65),
            (Peer::Plain, 100, 262_144, 41),
            (Peer::Plain, 1_000, 67_108, 80),
            (Peer::Proxy, 100, 262_144, 41),
            (Peer::Proxy, 1_000, 67_108, 80),
            (Peer::Proxy, 10_000, 65_535, 641),
        ] {
            let windows = Windows::new(peer, streams);
            assert_eq!(windows.stream, stream, "{peer:?} {streams}");
            let total = u64::from(windows.stream) * u64::from(streams) + u64::from(windows.growth);
            assert_eq!(total.div_ceil(u64::from(MIB)), total_mib, "{peer:?} {streams}");
        }
    }
}
