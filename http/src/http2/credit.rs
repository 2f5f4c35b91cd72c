//! Flow control of what is received (RFC 9113 §5.2). Data that waits for the caller uses up the window of its stream only; the
//! connection's credit returns when data arrives. So a stream that nobody reads stops no other.
//! Memory: each stream may make the caller hold its window. All begin with the same small one; the windows of streams whose data
//! is consumed quickly grow, together by a bounded sum, of which each takes at most a part of what is left. A window that is no
//! longer used quickly shrinks again.

use super::{Connection, Stream, StreamId};

/// A window grows by at most this part of what all may still grow by, so that something is left for those that come later.
const PART: u32 = 8;

impl<T> Connection<T> {
    /// Returns flow-control credit of a stream for `count` bytes of data that the caller has consumed. WINDOW_UPDATE is sent once
    /// half a window is consumed, otherwise with the next tick, and only if the rest of the body does not fit into the window.
    pub fn consumed(&mut self, id: StreamId, count: usize) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.unreturned = stream.unreturned.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
        if stream.received_all || stream.reset {
            // Nothing more comes. Once all is consumed, the window is of no use.
            if stream.receive_window + i64::from(stream.unreturned) >= i64::from(stream.window) {
                self.growth += stream.window.saturating_sub(self.config.stream_window);
                stream.window = stream.window.min(self.config.stream_window);
            }
            return;
        }
        if stream.unreturned >= stream.window / 2 {
            self.return_stream_credit(id);
        }
    }

    /// Returns the credit of streams that have less than half of their window left. So a peer learns within a second that its data
    /// is read, however slowly.
    pub(super) fn return_all_credit(&mut self) {
        let owes = |stream: &Stream<T>| {
            let open = !stream.received_all && !stream.reset;
            open && stream.unreturned > 0 && stream.receive_window < i64::from(stream.window / 2)
        };
        let owed: Vec<StreamId> = self.streams.iter().filter(|(_, stream)| owes(stream)).map(|(id, _)| *id).collect();
        owed.into_iter().for_each(|id| self.return_stream_credit(id));
    }

    fn return_stream_credit(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let fits = |left: u64| i64::try_from(left).is_ok_and(|left| left <= stream.receive_window);
        if stream.body_left.is_some_and(fits) {
            return;
        }
        let mut credit = std::mem::take(&mut stream.unreturned);
        let is_fast = self.ticks.wrapping_sub(std::mem::replace(&mut stream.credited_at, self.ticks)) <= 1;
        if is_fast {
            let open = stream.receive_window.saturating_add_unsigned(credit.into());
            let missing =
                stream.body_left.map_or(u64::MAX, |left| left.saturating_sub(u64::try_from(open).unwrap_or(0)));
            let missing = u32::try_from(missing).unwrap_or(u32::MAX);
            let more = self.config.grown_window.saturating_sub(stream.window).min(self.growth / PART).min(missing);
            self.growth -= more;
            stream.window += more;
            credit += more;
        } else {
            let less = stream.window.saturating_sub(self.config.stream_window).min(credit);
            self.growth += less;
            stream.window -= less;
            credit -= less;
        }
        stream.receive_window += i64::from(credit);
        if credit > 0 {
            self.put_window_update(id, credit);
        }
    }

    /// Returns credit of the connection for received data.
    pub(super) fn return_credit(&mut self, count: u32) {
        self.unreturned += count;
        if self.unreturned >= self.config.connection_window / 2 {
            let credit = std::mem::take(&mut self.unreturned);
            self.receive_window += i64::from(credit);
            self.put_window_update(0, credit);
        }
    }
}
