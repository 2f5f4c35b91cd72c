//! One stream: how far each side has come, and what each may send (RFC 9113 §5.1, §5.2).

/// A stream and the user's value.
#[derive(Debug)]
pub struct Stream<T> {
    /// The user's.
    pub value: T,
    pub(super) send_window: i64,
    pub(super) receive_window: i64,
    /// Read by the user and not yet given back to the peer.
    pub(super) to_give_back: u32,
    /// We have sent all.
    pub(super) sent_all: bool,
    /// The peer has sent all.
    pub(super) received_all: bool,
    /// Over before its end.
    pub(super) reset: bool,
    /// The peer's head has come (client: the final one).
    pub(super) headed: bool,
    /// Waits for leave to send.
    pub(super) waits: bool,
    /// What the peer sends is thrown away.
    pub(super) discards: bool,
    /// What Content-Length promised and has not come.
    pub(super) promised: Option<u64>,
    /// The request was HEAD: its answer's Content-Length promises nothing (client).
    pub(super) bodiless: bool,
}

impl<T> Stream<T> {
    pub(super) fn new(value: T, send_window: u32, receive_window: u32) -> Self {
        Self {
            value,
            send_window: i64::from(send_window),
            receive_window: i64::from(receive_window),
            to_give_back: 0,
            sent_all: false,
            received_all: false,
            reset: false,
            headed: false,
            waits: false,
            discards: false,
            promised: None,
            bodiless: false,
        }
    }

    /// Whether nothing more can happen on it.
    pub fn is_over(&self) -> bool {
        self.reset || (self.sent_all && self.received_all)
    }

    /// Whether it was reset.
    pub fn is_reset(&self) -> bool {
        self.reset
    }

    /// Whether we have sent all.
    pub fn has_sent_all(&self) -> bool {
        self.sent_all
    }

    pub(super) fn into_value(self) -> T {
        self.value
    }
}
