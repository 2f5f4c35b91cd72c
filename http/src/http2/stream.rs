//! One stream: its state and its flow-control windows (RFC 9113 §5.1, §5.2).

use super::ended::End;

/// A stream with a value of the caller's.
#[derive(Debug)]
pub struct Stream<T> {
    /// The value of the caller's.
    pub value: T,
    /// In bytes; negative after a SETTINGS_INITIAL_WINDOW_SIZE that is lower (RFC 9113 §6.9.2).
    pub(super) send_window: i64,
    /// What the peer may still send. Together with `unreturned` and the data that the caller holds it is `window`.
    pub(super) receive_window: i64,
    /// Size of the receive window, in bytes: the most that this stream can make the caller hold.
    pub(super) window: u32,
    /// Credit for consumed data that no WINDOW_UPDATE has returned yet.
    pub(super) unreturned: u32,
    /// The tick of the last WINDOW_UPDATE, or of the stream's beginning.
    pub(super) credited_at: u32,
    /// END_STREAM is sent: half-closed (local).
    pub(super) sent_all: bool,
    /// END_STREAM was received: half-closed (remote).
    pub(super) received_all: bool,
    /// The peer said that the caller of the request has closed its sending side.
    pub(super) caller_half_closed: bool,
    /// RST_STREAM was sent or received.
    pub(super) reset: bool,
    /// RST_STREAM was received.
    pub(super) reset_by_peer: bool,
    /// The tick at which it was opened.
    pub(super) opened: u32,
    /// The head of the peer was received (client: of the final response).
    pub(super) received_head: bool,
    pub(super) blocked: Blocked,
    /// Ticks since the last byte of DATA, while blocked.
    pub(super) waits: u32,
    /// The peer has returned credit for DATA of this stream: its reader reads.
    pub(super) taken: bool,
    /// Received data is discarded.
    pub(super) discards: bool,
    /// Content-Length minus the received data.
    pub(super) body_left: Option<u64>,
    /// The request was HEAD, so the Content-Length of the response announces no body (client).
    pub(super) is_head: bool,
}

/// What a stream with DATA to send waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blocked {
    No,
    /// Credit for the stream itself. It costs the connection nothing until then.
    Stream,
    /// Credit for the connection, or room in the write queue: it is in one of the connection's lists.
    Connection,
}

impl<T> Stream<T> {
    pub(super) fn new(value: T, send_window: u32, window: u32, tick: u32) -> Self {
        Self {
            value,
            send_window: i64::from(send_window),
            receive_window: i64::from(window),
            window,
            unreturned: 0,
            credited_at: tick,
            sent_all: false,
            received_all: false,
            caller_half_closed: false,
            reset: false,
            reset_by_peer: false,
            opened: tick,
            received_head: false,
            blocked: Blocked::No,
            waits: 0,
            taken: false,
            discards: false,
            body_left: None,
            is_head: false,
        }
    }

    /// Whether the stream is closed (RFC 9113 §5.1).
    pub fn is_closed(&self) -> bool {
        self.reset || (self.sent_all && self.received_all)
    }

    /// Whether the stream was reset, by either side.
    pub fn is_reset(&self) -> bool {
        self.reset
    }

    /// Whether END_STREAM is sent.
    pub fn has_sent_all(&self) -> bool {
        self.sent_all
    }

    /// How it ended, once it has.
    pub(super) fn end(&self) -> End {
        match (self.reset, self.reset_by_peer) {
            (true, true) => End::Reset,
            (true, false) => End::Here,
            (false, _) => End::Whole,
        }
    }

    pub(super) fn into_value(self) -> T {
        self.value
    }
}
