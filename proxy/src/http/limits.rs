//! Limits of messages and connections of HTTP, in one place.
//! Spec: RFC 9110 §15.5.15 (414), RFC 6585 §5 (431), RFC 9113 §6.5.2 (SETTINGS).

use weft_http::http1::Limits;

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
/// Requests in flight on one HTTP/2 connection from a caller.
pub(crate) const MAX_STREAMS: u32 = 100;

/// Flow-control windows of one stream and one connection, in bytes.
const WINDOWS: (u32, u32) = (256 * 1024, 1024 * 1024);
/// The same between proxies. They are larger: each WINDOW_UPDATE costs both sides a wake-up, which was an eighth of the cost of
/// large bodies.
const WINDOWS_HOP: (u32, u32) = (1024 * 1024, 4 * 1024 * 1024);

/// How much one stream and one connection may have unread, in bytes. `mesh`: the peer is a proxy.
pub(crate) fn windows(mesh: bool) -> (u32, u32) {
    if mesh { WINDOWS_HOP } else { WINDOWS }
}
