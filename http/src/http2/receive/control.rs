//! Receiving the frames that steer the connection or a stream: SETTINGS, WINDOW_UPDATE, RST_STREAM, PING and GOAWAY.

use super::super::{
    Code, Connection, Error, Event, Role, Shutdown, account,
    frame::{
        ACK, FrameHeader, LARGEST_FRAME, MAX_FRAME, MAX_WINDOW, SETTING_CONNECT, SETTING_FRAME, SETTING_PUSH,
        SETTING_STREAMS, SETTING_TABLE, SETTING_WINDOW, number,
    },
    send::{KEEPALIVE_PING, SHUTDOWN_PING},
    stream::Blocked,
};

/// Most settings of one frame: INITIAL_WINDOW_SIZE changes every stream.
const MAX_SETTINGS: usize = 64;
/// Largest answer to a PING or SETTINGS frame, in bytes.
const ANSWER_SIZE: usize = 17;

impl<T: Default> Connection<T> {
    pub(super) fn settings(&mut self, header: FrameHeader, payload: &[u8]) -> Result<(), Error> {
        if header.id != 0 {
            return Err(self.connection_error(Code::ProtocolError, "SETTINGS on a stream"));
        }
        if header.has(ACK) {
            return if payload.is_empty() {
                Ok(())
            } else {
                Err(self.connection_error(Code::FrameSizeError, "SETTINGS acknowledgement with payload"))
            };
        }
        let (settings, rest) = payload.as_chunks::<6>();
        if !rest.is_empty() {
            return Err(self.connection_error(Code::FrameSizeError, "SETTINGS of invalid size"));
        }
        if settings.len() > MAX_SETTINGS {
            return Err(self.connection_error(Code::EnhanceYourCalm, "too many settings"));
        }
        for [a, b, value @ ..] in settings {
            self.setting(u16::from_be_bytes([*a, *b]), u32::from_be_bytes(*value))?;
        }
        // The first SETTINGS is part of the preface; later ones bring little.
        if self.peer.sent_settings {
            self.idle_frame()?;
        }
        self.peer.sent_settings = true;
        self.answers += ANSWER_SIZE;
        self.put_settings_ack();
        Ok(())
    }

    fn setting(&mut self, setting: u16, value: u32) -> Result<(), Error> {
        match setting {
            SETTING_TABLE => self.encoder.limit(value as usize),
            // RFC 9113 §6.5.2: 0 or 1, and a server must not send 1.
            SETTING_PUSH if value > 1 || (value == 1 && self.role == Role::Client) => {
                return Err(self.connection_error(Code::ProtocolError, "invalid ENABLE_PUSH"));
            }
            SETTING_STREAMS => self.peer.max_streams = value,
            SETTING_WINDOW => {
                if i64::from(value) > MAX_WINDOW {
                    return Err(self.connection_error(Code::FlowControlError, "INITIAL_WINDOW_SIZE too large"));
                }
                // RFC 9113 §6.9.2: a change applies to the windows of all streams, which may become negative.
                let change = i64::from(value) - i64::from(self.peer.initial_window);
                self.peer.initial_window = value;
                let mut over = false;
                for (id, stream) in &mut self.streams {
                    stream.send_window += change;
                    over |= stream.send_window > MAX_WINDOW;
                    if stream.blocked == Blocked::Stream && stream.send_window > 0 {
                        stream.blocked = Blocked::Connection;
                        self.starved.push(*id);
                    }
                }
                if over {
                    return Err(self.connection_error(
                        Code::FlowControlError,
                        "INITIAL_WINDOW_SIZE overflows the window of a stream",
                    ));
                }
                self.unblock();
            }
            SETTING_FRAME => {
                let valid = (MAX_FRAME..=LARGEST_FRAME as usize).contains(&(value as usize));
                if !valid {
                    return Err(self.connection_error(Code::ProtocolError, "invalid MAX_FRAME_SIZE"));
                }
                // Not used: frames larger than 16 KiB bring nothing, since one already fills a TLS record.
            }
            SETTING_CONNECT if value > 1 => {
                return Err(self.connection_error(Code::ProtocolError, "invalid ENABLE_CONNECT_PROTOCOL"));
            }
            // RFC 9113 §6.5.2: unknown settings are ignored.
            _ => {}
        }
        Ok(())
    }

    pub(super) fn window_update(&mut self, header: FrameHeader, payload: &[u8]) -> Result<Option<Event>, Error> {
        let Some(credit) = number(payload).filter(|_| payload.len() == 4) else {
            return Err(self.connection_error(Code::FrameSizeError, "WINDOW_UPDATE of invalid size"));
        };
        if header.id == 0 {
            self.send_window += i64::from(credit);
            self.most_send_window = self.most_send_window.max(self.send_window);
            (self.credited, self.clogged) = (true, false);
            if credit == 0 || self.send_window > MAX_WINDOW {
                let code = if credit == 0 { Code::ProtocolError } else { Code::FlowControlError };
                return Err(self.connection_error(code, "invalid WINDOW_UPDATE of the connection"));
            }
            self.unblock();
            return Ok(None);
        }
        // RFC 9113 §5.1: WINDOW_UPDATE may be in flight on a closed stream and is ignored.
        let Some(stream) = self.streams.get_mut(&header.id).filter(|stream| !stream.is_closed()) else {
            return self.check_not_idle(header.id).map(|()| None);
        };
        // Credit before any DATA only enlarges the window.
        stream.taken |= stream.send_window < i64::from(self.peer.initial_window);
        stream.send_window += i64::from(credit);
        if credit == 0 {
            return self.stream_error(header.id, Code::ProtocolError);
        }
        if stream.send_window > MAX_WINDOW {
            return self.stream_error(header.id, Code::FlowControlError);
        }
        if stream.blocked == Blocked::Stream && stream.send_window > 0 {
            stream.blocked = Blocked::Connection;
            self.starved.push(header.id);
            self.unblock();
        }
        Ok(None)
    }

    pub(super) fn rst_stream(&mut self, header: FrameHeader, payload: &[u8]) -> Result<Option<Event>, Error> {
        let Some(code) = payload.first_chunk::<4>().filter(|_| payload.len() == 4) else {
            return Err(self.connection_error(Code::FrameSizeError, "RST_STREAM of invalid size"));
        };
        let code = Code::of(u32::from_be_bytes(*code));
        let Some(stream) = self.streams.get_mut(&header.id).filter(|stream| !stream.is_closed()) else {
            return self.check_not_idle(header.id).map(|()| None);
        };
        (stream.reset, stream.reset_by_peer) = (true, true);
        let opened = stream.opened;
        self.open = self.open.saturating_sub(1);
        // Rapid reset (CVE-2023-44487).
        if self.ticks.wrapping_sub(opened) <= account::YOUNG {
            self.waste(account::GIVEN_UP);
        }
        let unprocessed = code == Code::RefusedStream;
        Ok(Some(Event::Reset { id: header.id, code, by_peer: true, unprocessed }))
    }

    pub(super) fn ping_frame(&mut self, header: FrameHeader, payload: &[u8]) -> Result<Option<Event>, Error> {
        let Some(data) = payload.first_chunk::<8>().filter(|_| payload.len() == 8) else {
            return Err(self.connection_error(Code::FrameSizeError, "PING of invalid size"));
        };
        if header.id != 0 {
            return Err(self.connection_error(Code::ProtocolError, "PING on a stream"));
        }
        if !header.has(ACK) {
            // Not counted as idle: gRPC clients send many PINGs to estimate the bandwidth. `MAX_ANSWERS` bounds the unread answers.
            self.answers += ANSWER_SIZE;
            self.put_ping(ACK, *data);
            return Ok(None);
        }
        // The peer has received the first GOAWAY, so no streams are in flight that it opened without knowing of the shutdown.
        if *data == SHUTDOWN_PING && self.shutdown == Shutdown::Announced {
            self.shutdown = Shutdown::Final;
            self.put_goaway(self.last_accepted_id, self.farewell);
            return Ok(None);
        }
        if *data != KEEPALIVE_PING {
            return self.idle_frame().map(|()| None);
        }
        self.pings = 0;
        Ok(Some(Event::Pong))
    }

    pub(super) fn goaway(&mut self, header: FrameHeader, payload: &[u8]) -> Result<Event, Error> {
        let (Some(last), Some(code)) = (number(payload), payload.get(4..).and_then(|rest| rest.first_chunk::<4>()))
        else {
            return Err(self.connection_error(Code::FrameSizeError, "GOAWAY of invalid size"));
        };
        if header.id != 0 {
            return Err(self.connection_error(Code::ProtocolError, "GOAWAY on a stream"));
        }
        self.peer.sent_goaway = true;
        self.idle_frame()?;
        // RFC 9113 §6.8: streams above the last stream identifier were not processed and can be retried.
        if self.role == Role::Client {
            for (id, stream) in &mut self.streams {
                if *id > last && !stream.is_closed() {
                    stream.reset = true;
                    self.open = self.open.saturating_sub(1);
                    self.unprocessed.push_back(*id);
                }
            }
        }
        Ok(Event::GoAway { code: Code::of(u32::from_be_bytes(*code)) })
    }
}
