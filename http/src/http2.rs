//! One HTTP/2 connection, client or server, as a state machine: [`Connection::receive`] decodes received bytes into [`Event`]s; the
//! `send_…` functions queue frames in [`Connection::unsent`], which the caller writes. Each stream carries a value of the caller's
//! (`T`) until [`Connection::remove`].
//! Spec: RFC 9113; extended CONNECT: RFC 8441.
//!
//! # Limits
//! Those of [`Config`]; 16 CONTINUATION frames per header block; [`MAX_UNSENT`] bytes queued before DATA waits; 64 KiB of unread
//! answers to PING and SETTINGS; 1,000 frames that bring nothing (SETTINGS, empty DATA and the like) more than bring something,
//! halved by each [`Connection::tick`].
//! A client that wastes work (more than 240 streams, of 480, that it gives up within a second, or a third of that by violations)
//! is sent GOAWAY with ENHANCE_YOUR_CALM: what runs ends, and new streams go to a new connection. After half as many more its new
//! streams are ignored.

mod account;
mod credit;
mod ended;
mod frame;
mod heads;
mod receive;
mod send;
mod stream;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasherDefault, Hasher},
};

use bytes::Bytes;

pub use self::stream::Stream;
use self::{account::Account, ended::Ended, stream::Blocked};

use crate::{
    fields::Fields,
    head::{Excess, Request, Response},
    hpack,
    out::Unsent,
};

/// A stream identifier (RFC 9113 §5.1.1).
pub type StreamId = u32;

/// Queued bytes, above which no more DATA is accepted.
pub const MAX_UNSENT: usize = 256 * 1024;
/// Most bytes of queued answers to PING and SETTINGS, which a peer can request without reading them (CVE-2019-9512, CVE-2019-9515).
const MAX_ANSWERS: usize = 64 * 1024;
/// Capacity, in streams, that an idle connection keeps.
const FEW: usize = 4;
/// The connection preface of a client (RFC 9113 §3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The local side of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The local side opens streams.
    Client,
    /// The peer opens streams.
    Server,
}

/// Limits for the peer, announced in SETTINGS and enforced.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Concurrent streams of the peer (SETTINGS_MAX_CONCURRENT_STREAMS).
    pub max_streams: u32,
    /// Receive window that a stream begins with, in bytes (SETTINGS_INITIAL_WINDOW_SIZE). At least 65,535, since a peer may use
    /// as much before it has read SETTINGS (RFC 9113 §6.9.2).
    pub stream_window: u32,
    /// The most that the window of a stream whose data is consumed quickly grows to, in bytes.
    pub grown_window: u32,
    /// What the windows of all streams together may have grown by, in bytes. Data that waits for the caller is at most this and
    /// `stream_window` for each stream.
    pub growth: u32,
    /// Receive window of the connection, in bytes; at least 65,535. It bounds no memory: its credit returns when data arrives, so
    /// that a stream whose data waits never holds another.
    pub connection_window: u32,
    /// Largest field section, in bytes as RFC 9113 §6.5.2 counts them (SETTINGS_MAX_HEADER_LIST_SIZE).
    pub max_head: usize,
    /// Most fields of a field section, not counting reserved ones.
    pub max_fields: usize,
    /// Whether extended CONNECT is accepted (server; SETTINGS_ENABLE_CONNECT_PROTOCOL, RFC 8441).
    pub connect_protocol: bool,
}

/// Error codes (RFC 9113 §7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the RFC")]
pub enum Code {
    NoError,
    ProtocolError,
    InternalError,
    FlowControlError,
    SettingsTimeout,
    StreamClosed,
    FrameSizeError,
    RefusedStream,
    Cancel,
    CompressionError,
    ConnectError,
    EnhanceYourCalm,
    InadequateSecurity,
    Http11Required,
    Unknown(u32),
}

/// A decoded event.
#[derive(Debug)]
pub enum Event {
    /// The head of a request (server).
    Request {
        /// The stream.
        id: StreamId,
        /// The head.
        head: Request,
        /// No body and no trailers follow.
        end: bool,
        /// Bytes of its header block, as it came.
        wire: usize,
    },
    /// A request with a head that is too large or an invalid target (server). The caller answers it; its body is discarded.
    BadRequest {
        /// The stream.
        id: StreamId,
        /// What is wrong.
        reason: BadRequest,
    },
    /// A section of a message is above a limit: the trailers of a request (server), which is complete without them, or the head or
    /// trailers of a response (client), whose stream is reset.
    TooLarge {
        /// The stream.
        id: StreamId,
        /// It is the trailers; otherwise the head.
        trailers: bool,
        /// The limit.
        excess: Excess,
    },
    /// The head of the final response (client).
    Response {
        /// The stream.
        id: StreamId,
        /// The head.
        head: Response,
        /// No body and no trailers follow.
        end: bool,
    },
    /// An interim response, 1xx (client).
    Interim {
        /// The stream.
        id: StreamId,
        /// The head.
        head: Response,
    },
    /// A part of a body. [`Connection::consumed`] returns its flow-control credit.
    Data {
        /// The stream.
        id: StreamId,
        /// The bytes; may be empty if `end`.
        data: Bytes,
        /// It is the last part.
        end: bool,
    },
    /// The trailers; they end the body.
    Trailers {
        /// The stream.
        id: StreamId,
        /// The fields.
        fields: Fields,
    },
    /// The stream has ended early: the peer has reset it, or has violated the protocol on it.
    Reset {
        /// The stream.
        id: StreamId,
        /// The error code that was received or sent.
        code: Code,
        /// Whether the peer has reset it; otherwise RST_STREAM is queued for the peer.
        by_peer: bool,
        /// The peer has not processed the request: GOAWAY with a lower stream, or REFUSED_STREAM (RFC 9113 §8.7).
        unprocessed: bool,
    },
    /// A stream that was blocked in [`Connection::send_data`] may send again.
    Writable {
        /// The stream.
        id: StreamId,
    },
    /// GOAWAY: the peer accepts no new streams.
    GoAway {
        /// The error code.
        code: Code,
    },
    /// The acknowledgement of [`Connection::ping`].
    Pong,
    /// The peer, a proxy, says that the caller of a request has closed its sending side (server): [`Connection::half_close`].
    HalfClosed {
        /// The stream.
        id: StreamId,
    },
}

/// Why a request is answered without its application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadRequest {
    /// The head is above a limit: 431.
    TooLarge(Excess),
    /// The target is invalid: 400.
    Target(&'static str),
}

/// A connection error (RFC 9113 §5.4.1). GOAWAY with its code is queued in [`Connection::unsent`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("HTTP/2 connection error {code:?}: {reason}")]
pub struct Error {
    /// The code in GOAWAY.
    pub code: Code,
    /// The violation.
    pub reason: &'static str,
}

/// Why a frame cannot be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The stream has ended or was reset.
    #[error("stream closed")]
    Closed,
    /// The connection accepts no new streams: it shuts down, has no stream identifiers left, or is at the limit of the peer.
    #[error("no new stream can be opened")]
    Full,
}

/// One connection.
#[derive(Debug)]
pub struct Connection<T> {
    role: Role,
    config: Config,
    decoder: hpack::Decoder,
    encoder: hpack::Encoder,
    streams: HashMap<StreamId, Stream<T>, BuildHasherDefault<IdHasher>>,
    out: Unsent,
    /// The state that the peer has announced.
    peer: Peer,
    /// Send window of the connection, in bytes (RFC 9113 §6.9).
    send_window: i64,
    /// Receive window of the connection, in bytes.
    receive_window: i64,
    /// Credit for received data that no WINDOW_UPDATE has returned yet.
    unreturned: u32,
    /// What the windows of streams may still grow by, in bytes.
    growth: u32,
    /// Calls of [`Connection::tick`], wrapping.
    ticks: u32,
    /// The most that the send window has been.
    most_send_window: i64,
    /// The peer has returned credit for the connection since the last tick.
    credited: bool,
    /// See [`Connection::is_clogged`].
    clogged: bool,
    /// Streams that count against the limit: those of the peer (server) or of the local side (client).
    open: u32,
    next_id: StreamId,
    /// The highest stream that the peer has opened.
    last_peer_id: StreamId,
    /// The highest stream that was accepted: the last stream identifier of GOAWAY.
    last_accepted_id: StreamId,
    /// Streams that are blocked on the connection's flow control or the write queue, in order.
    blocked: Vec<StreamId>,
    /// Blocked streams that sent little in their last turn; they have priority in the next.
    starved: Vec<StreamId>,
    /// Unblocked streams without an event yet.
    writable: VecDeque<StreamId>,
    /// Streams above the last stream identifier of the peer's GOAWAY, without an event yet.
    unprocessed: VecDeque<StreamId>,
    expects: Expects,
    /// A header block whose CONTINUATION frames are not complete.
    partial: Option<PartialBlock>,
    /// A reused buffer for encoded header blocks.
    block: Vec<u8>,
    shutdown: Shutdown,
    /// Why: the code of its GOAWAY.
    farewell: Code,
    account: Account,
    ended: Ended,
    /// Bytes of answers to PING and SETTINGS since the queue was last empty, halved by each tick, since the queue of a busy
    /// connection is never empty.
    answers: usize,
    /// Keepalive PINGs without an acknowledgement.
    pings: u8,
}

/// Settings and state of the peer.
#[derive(Clone, Copy, Debug)]
struct Peer {
    max_frame: usize,
    initial_window: u32,
    max_streams: u32,
    /// SETTINGS was received.
    sent_settings: bool,
    /// GOAWAY was received.
    sent_goaway: bool,
}

/// What the next bytes must be (RFC 9113 §3.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expects {
    Preface,
    Settings,
    Frames,
}

/// A header block of which END_HEADERS has not arrived.
#[derive(Debug)]
struct PartialBlock {
    id: StreamId,
    kind: BlockKind,
    block: Vec<u8>,
    frames: u32,
}

/// What the HEADERS frame says of its block.
#[derive(Clone, Copy, Debug)]
struct BlockKind {
    /// END_STREAM.
    end: bool,
    /// Its message is malformed whatever the block holds.
    malformed: bool,
}

/// The graceful shutdown of the local side (RFC 9113 §6.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shutdown {
    No,
    /// GOAWAY with the highest stream identifier and a PING are sent: streams that the peer opens before it acknowledges the PING
    /// are accepted.
    Announced,
    /// GOAWAY with the last accepted stream is sent.
    Final,
}

impl Code {
    fn number(self) -> u32 {
        match self {
            Self::NoError => 0,
            Self::ProtocolError => 1,
            Self::InternalError => 2,
            Self::FlowControlError => 3,
            Self::SettingsTimeout => 4,
            Self::StreamClosed => 5,
            Self::FrameSizeError => 6,
            Self::RefusedStream => 7,
            Self::Cancel => 8,
            Self::CompressionError => 9,
            Self::ConnectError => 10,
            Self::EnhanceYourCalm => 11,
            Self::InadequateSecurity => 12,
            Self::Http11Required => 13,
            Self::Unknown(number) => number,
        }
    }

    fn of(number: u32) -> Self {
        match number {
            0 => Self::NoError,
            1 => Self::ProtocolError,
            2 => Self::InternalError,
            3 => Self::FlowControlError,
            4 => Self::SettingsTimeout,
            5 => Self::StreamClosed,
            6 => Self::FrameSizeError,
            7 => Self::RefusedStream,
            8 => Self::Cancel,
            9 => Self::CompressionError,
            10 => Self::ConnectError,
            11 => Self::EnhanceYourCalm,
            12 => Self::InadequateSecurity,
            13 => Self::Http11Required,
            other => Self::Unknown(other),
        }
    }
}

impl<T> Connection<T> {
    /// A connection with preface and SETTINGS queued.
    pub fn new(role: Role, config: Config) -> Self {
        let mut connection = Self {
            role,
            config,
            decoder: hpack::Decoder::new(frame::TABLE_SIZE),
            encoder: hpack::Encoder::new(),
            streams: HashMap::default(),
            out: Unsent::default(),
            peer: Peer {
                max_frame: frame::MAX_FRAME,
                initial_window: frame::INITIAL_WINDOW,
                // The minimum that RFC 9113 §6.5.2 recommends, until SETTINGS arrives; the initial value is unlimited.
                max_streams: 100,
                sent_settings: false,
                sent_goaway: false,
            },
            send_window: i64::from(frame::INITIAL_WINDOW),
            receive_window: i64::from(config.connection_window.max(frame::INITIAL_WINDOW)),
            unreturned: 0,
            growth: config.growth,
            ticks: 0,
            most_send_window: i64::from(frame::INITIAL_WINDOW),
            credited: false,
            clogged: false,
            open: 0,
            next_id: 1,
            last_peer_id: 0,
            last_accepted_id: 0,
            blocked: Vec::new(),
            starved: Vec::new(),
            writable: VecDeque::new(),
            unprocessed: VecDeque::new(),
            expects: if role == Role::Server { Expects::Preface } else { Expects::Settings },
            partial: None,
            block: Vec::new(),
            shutdown: Shutdown::No,
            farewell: Code::NoError,
            account: Account::default(),
            ended: Ended::default(),
            answers: 0,
            pings: 0,
        };
        connection.send_preface();
        connection
    }

    /// The queue of bytes to write.
    pub fn unsent(&mut self) -> &mut Unsent {
        &mut self.out
    }

    /// Must be called after bytes of [`Connection::unsent`] were written, since that may unblock streams.
    pub fn written(&mut self) {
        if self.out.is_empty() {
            self.answers = 0;
        }
        if self.out.len() < MAX_UNSENT / 2 {
            self.unblock();
        }
    }

    /// A stream that may send again: the same as [`Event::Writable`], without a call of [`Connection::receive`].
    pub fn next_writable(&mut self) -> Option<StreamId> {
        self.writable.pop_front()
    }

    /// A stream, until [`Connection::remove`].
    pub fn stream(&mut self, id: StreamId) -> Option<&mut Stream<T>> {
        self.streams.get_mut(&id)
    }

    /// All streams.
    pub fn streams(&mut self) -> impl Iterator<Item = (StreamId, &mut Stream<T>)> {
        self.streams.iter_mut().map(|(id, stream)| (*id, stream))
    }

    /// The role of the local side.
    pub fn role(&self) -> Role {
        self.role
    }

    /// The number of streams that are not removed, open or closed.
    pub fn len(&self) -> usize {
        self.streams.len()
    }

    /// Whether there are no streams.
    pub fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// Whether a request can be sent now (client): no shutdown, and below the limit of the peer.
    pub fn has_room(&self) -> bool {
        !self.peer.sent_goaway
            && self.shutdown == Shutdown::No
            && self.open < self.peer.max_streams
            && self.next_id <= frame::MAX_STREAM_ID
    }

    /// Whether SETTINGS of the peer have come: before, [`Connection::has_room`] is a guess.
    pub fn has_settings(&self) -> bool {
        self.peer.sent_settings
    }

    /// Whether the peer allows no stream at all (client).
    pub fn takes_none(&self) -> bool {
        self.peer.max_streams == 0
    }

    /// Whether data of a new stream would wait for other streams, which the peer perhaps does not read: the window of the connection
    /// is used up, or three quarters of it are and the peer has returned no credit for a second.
    pub fn is_clogged(&self) -> bool {
        self.clogged || self.send_window < self.most_send_window / 16
    }

    /// Streams whose DATA has waited for so many ticks without a byte that could be sent. `limit`: in ticks, for a stream that the
    /// peer has read from before (`true`), and for one that it has not.
    /// A client's stream whose answer has begun is not among them: the peer need not want the rest of the request.
    pub fn stalled(&self, limit: impl Fn(bool) -> u32) -> Vec<StreamId> {
        let stalled = self.streams.iter().filter(|(_, stream)| {
            let wanted = self.role == Role::Server || !stream.received_head;
            wanted && stream.blocked != Blocked::No && !stream.is_closed() && stream.waits >= limit(stream.taken)
        });
        stalled.map(|(id, _)| *id).collect()
    }

    /// Whether the connection never accepts another stream.
    pub fn is_closing(&self) -> bool {
        self.peer.sent_goaway || self.shutdown != Shutdown::No || self.next_id > frame::MAX_STREAM_ID
    }

    /// Whether the final GOAWAY is queued or sent: streams that the peer opens now are ignored.
    pub fn sent_final_goaway(&self) -> bool {
        self.shutdown == Shutdown::Final
    }

    /// Removes a stream and returns its value. A stream that is not closed is reset with `code`.
    pub fn remove(&mut self, id: StreamId, code: Code) -> Option<T> {
        if self.streams.get(&id).is_some_and(|stream| !stream.is_closed()) {
            self.reset(id, code);
        }
        let stream = self.streams.remove(&id)?;
        self.ended.push(id, stream.end());
        self.growth += stream.window.saturating_sub(self.config.stream_window);
        if stream.blocked == Blocked::Connection {
            self.blocked.retain(|blocked| *blocked != id);
            self.starved.retain(|starved| *starved != id);
        }
        Some(stream.into_value())
    }

    /// Must be called about once per second: decays the counts of wasted work and answers, and frees memory of an idle connection.
    pub fn tick(&mut self) {
        self.answers /= 2;
        self.ticks = self.ticks.wrapping_add(1);
        self.account.tick(self.ticks);
        self.return_all_credit();
        self.clogged = !std::mem::take(&mut self.credited) && self.send_window < self.most_send_window / 4;
        for stream in self.streams.values_mut().filter(|stream| stream.blocked != Blocked::No) {
            stream.waits = stream.waits.saturating_add(1);
        }
        if self.streams.is_empty() {
            self.streams.shrink_to(FEW);
            self.blocked.shrink_to(FEW);
            self.starved.shrink_to(FEW);
            self.writable.shrink_to(FEW);
            self.unprocessed.shrink_to(FEW);
            self.block.shrink_to(MAX_UNSENT / 512);
            self.ended.clear(self.last_peer_id.max(self.next_id - 1));
            self.out.shrink();
        }
    }
}

/// A hash of stream identifiers by one multiplication. It need not resist collisions: the peer chooses the identifiers, but
/// [`Config::max_streams`] bounds their number.
#[derive(Debug, Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        // `HashMap` uses the low bits, but the low bits of a product depend only on the low bits of its factors.
        self.0.rotate_left(26)
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u32(u32::from(*byte)));
    }
    fn write_u32(&mut self, id: u32) {
        self.0 = (self.0 ^ u64::from(id)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}
