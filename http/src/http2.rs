//! One HTTP/2 connection, client or server, as a state machine: [`Connection::receive`] takes bytes that were read and says what
//! they mean, one [`Event`] at a time; the `send_…` functions queue frames, and [`Connection::unsent`] is what is to be written.
//! Each stream carries a value of the user's (`T`), kept until [`Connection::forget`].
//! Spec: RFC 9113; extended CONNECT: RFC 8441.
//!
//! # Limits
//! Those of [`Config`]; 16 CONTINUATION frames a head; [`MAX_UNSENT`] bytes waiting to be written; [`PATIENCE`] frames that only
//! make work between two calls of [`Connection::tick`] that add up to the same time.

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

pub use stream::Stream;

use crate::{
    fields::Fields,
    head::{Request, Response},
    hpack,
    out::Unsent,
};

/// Number of a stream.
pub type StreamId = u32;

/// Bytes that may wait to be written before no more data is taken.
pub const MAX_UNSENT: usize = 256 * 1024;
/// Bytes of answers to frames (acknowledgements, resets) that may wait to be written: what the peer asks for and does not read.
const MAX_ANSWERS: usize = 64 * 1024;
/// How many frames that only make work (resets, pings, settings, empty data) a peer may send, halved with each tick.
pub const PATIENCE: u32 = 1_000;
/// Streams that an idle connection keeps room for.
const FEW: usize = 4;
/// What a client sends first (RFC 9113 §3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Which side we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// We open streams.
    Client,
    /// The peer opens streams.
    Server,
}

/// What we let the peer do.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Streams that the peer may have open.
    pub max_streams: u32,
    /// What one stream may send us unread, in bytes.
    pub stream_window: u32,
    /// What all streams may send us unread, in bytes.
    pub connection_window: u32,
    /// Largest head, as RFC 9113 §6.5.2 counts it.
    pub max_head: usize,
    /// Most fields of a head.
    pub max_fields: usize,
    /// Whether extended CONNECT is welcome (server).
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

/// What the peer's bytes mean.
#[derive(Debug)]
pub enum Event {
    /// A request begins (server). `end`: it has no body.
    Request {
        /// Its stream.
        id: StreamId,
        /// Its head.
        head: Request,
        /// No body and no trailers follow.
        end: bool,
    },
    /// A request whose head is too large or whose target is not valid (server): to be answered; its body, if any, is discarded.
    BadRequest {
        /// Its stream.
        id: StreamId,
        /// 431 or 400.
        status: u16,
        /// What is wrong.
        reason: &'static str,
    },
    /// The final answer begins (client).
    Response {
        /// Its stream.
        id: StreamId,
        /// Its head.
        head: Response,
        /// No body and no trailers follow.
        end: bool,
    },
    /// A 1xx before the final answer (client).
    Interim {
        /// Its stream.
        id: StreamId,
        /// Its head.
        head: Response,
    },
    /// A part of a body. Its flow-control credit is given back with [`Connection::consumed`].
    Data {
        /// Its stream.
        id: StreamId,
        /// The bytes; may be empty at the end.
        data: Bytes,
        /// It was the last part.
        end: bool,
    },
    /// Trailers, which end the body.
    Trailers {
        /// Its stream.
        id: StreamId,
        /// The fields.
        fields: Fields,
    },
    /// The stream is over before its end, by the peer or because it was malformed.
    Reset {
        /// Its stream.
        id: StreamId,
        /// Why.
        code: Code,
        /// Whether the peer said so; else what it sent was wrong, and it was told.
        by_peer: bool,
        /// The peer says that it has not looked at it (GOAWAY below it, or REFUSED_STREAM).
        unprocessed: bool,
    },
    /// Data may be sent again on a stream that [`Connection::send_data`] had stopped.
    Writable {
        /// Its stream.
        id: StreamId,
    },
    /// The peer opens no more streams and takes no new ones.
    GoAway {
        /// Why.
        code: Code,
    },
    /// An answer to [`Connection::ping`].
    Pong,
}

/// The connection is over: it was told why by GOAWAY, which waits in [`Connection::unsent`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("HTTP/2 connection error {code:?}: {reason}")]
pub struct Error {
    /// What the peer is told.
    pub code: Code,
    /// What it did.
    pub reason: &'static str,
}

/// Why nothing can be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The stream has ended or was reset.
    #[error("the stream is closed")]
    Closed,
    /// The connection takes no new streams: it is going away, its numbers are used up, or the peer's limit is reached.
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
    /// What the peer lets us do.
    peer: Peer,
    /// What we may send on the connection.
    send_window: i64,
    /// What the peer may still send on the connection, and what was read of it and not yet given back.
    receive_window: i64,
    to_give_back: u32,
    /// Streams of the peer's (server) or of ours (client) that count against the limit.
    open: u32,
    next_id: StreamId,
    /// The highest that the peer has opened, and the highest that was taken.
    last_peer_id: StreamId,
    last_taken_id: StreamId,
    /// Streams that wait for leave to send, first come first served.
    waiting: Vec<StreamId>,
    /// The same of those that could send nothing in their turn: they come first in the next.
    starved: Vec<StreamId>,
    /// Streams that got it, to be told as events.
    writable: VecDeque<StreamId>,
    /// Streams that ended by GOAWAY, to be told as events.
    lost: VecDeque<StreamId>,
    expects: Expects,
    head: Option<Pending>,
    /// A buffer for header blocks that are written.
    block: Vec<u8>,
    going: Going,
    work: u32,
    /// Bytes of answers since all was written last, halved with each tick: under load something always waits.
    answers: usize,
    pings: u8,
}

/// The peer's settings.
#[derive(Clone, Copy, Debug)]
struct Peer {
    max_frame: usize,
    initial_window: u32,
    max_streams: u32,
    connect_protocol: bool,
    settled: bool,
    /// It sent GOAWAY.
    gone: bool,
}

/// What has to come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expects {
    Preface,
    Settings,
    Frames,
}

/// A head whose frames have not all arrived.
#[derive(Debug)]
struct Pending {
    id: StreamId,
    end_stream: bool,
    block: Vec<u8>,
    frames: u32,
}

/// How far our own farewell has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Going {
    No,
    /// GOAWAY with the highest number was sent, and a ping after it: what the peer opens before it answers is still served.
    Announced,
    /// GOAWAY with the last number was sent.
    Gone,
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
    /// A connection whose first bytes, preface and settings, wait to be written.
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
                // What the RFC recommends at least; a peer that allows fewer says so before it can mind.
                max_streams: 100,
                connect_protocol: false,
                settled: false,
                gone: false,
            },
            send_window: i64::from(frame::INITIAL_WINDOW),
            receive_window: i64::from(config.connection_window.max(frame::INITIAL_WINDOW)),
            to_give_back: 0,
            open: 0,
            next_id: 1,
            last_peer_id: 0,
            last_taken_id: 0,
            waiting: Vec::new(),
            starved: Vec::new(),
            writable: VecDeque::new(),
            lost: VecDeque::new(),
            expects: if role == Role::Server { Expects::Preface } else { Expects::Settings },
            head: None,
            block: Vec::new(),
            going: Going::No,
            work: 0,
            answers: 0,
            pings: 0,
        };
        connection.greet();
        connection
    }

    /// What is to be written.
    pub fn unsent(&mut self) -> &mut Unsent {
        &mut self.out
    }

    /// To be called when much of [`Connection::unsent`] was written: streams may be writable again.
    pub fn written(&mut self) {
        if self.out.is_empty() {
            self.answers = 0;
        }
        if self.out.len() < MAX_UNSENT / 2 {
            self.grant();
        }
    }

    /// A stream that may send again; [`Connection::receive`] tells the same as an event.
    pub fn next_writable(&mut self) -> Option<StreamId> {
        self.writable.pop_front()
    }

    /// The user's value of a stream.
    pub fn stream(&mut self, id: StreamId) -> Option<&mut Stream<T>> {
        self.streams.get_mut(&id)
    }

    /// All streams.
    pub fn streams(&mut self) -> impl Iterator<Item = (StreamId, &mut Stream<T>)> {
        self.streams.iter_mut().map(|(id, stream)| (*id, stream))
    }

    /// Streams that are known, open or not yet forgotten.
    pub fn len(&self) -> usize {
        self.streams.len()
    }

    /// Whether no stream is known.
    pub fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// Whether a request can be sent now (client).
    pub fn has_room(&self) -> bool {
        !self.peer.gone
            && self.going == Going::No
            && self.open < self.peer.max_streams
            && self.next_id <= frame::MAX_STREAM_ID
    }

    /// Whether the connection will take no more streams, ever.
    pub fn is_closing(&self) -> bool {
        self.peer.gone || self.going != Going::No || self.next_id > frame::MAX_STREAM_ID
    }

    /// Whether the peer has heard our goodbye, or is told at once: nothing new comes from it.
    pub fn is_gone(&self) -> bool {
        self.going == Going::Gone
    }

    /// Whether the peer takes extended CONNECT; known once its settings have arrived.
    pub fn takes_connect_protocol(&self) -> bool {
        self.peer.connect_protocol
    }

    /// Lets go of a stream. One that is not over is reset.
    pub fn forget(&mut self, id: StreamId, code: Code) -> Option<T> {
        if self.streams.get(&id).is_some_and(|stream| !stream.is_over()) {
            self.reset(id, code);
        }
        let stream = self.streams.remove(&id)?;
        if stream.waits {
            self.waiting.retain(|waiting| *waiting != id);
            self.starved.retain(|starved| *starved != id);
        }
        Some(stream.into_value())
    }

    /// To be called about once a second: what a peer did long ago is forgiven, and what nobody needs now is given back.
    pub fn tick(&mut self) {
        self.work /= 2;
        self.answers /= 2;
        if self.streams.is_empty() {
            self.streams.shrink_to(FEW);
            self.waiting.shrink_to(FEW);
            self.starved.shrink_to(FEW);
            self.writable.shrink_to(FEW);
            self.lost.shrink_to(FEW);
            self.block.shrink_to(MAX_UNSENT / 512);
            self.out.shrink();
        }
    }
}

/// Stream numbers are spread by one multiplication: they come from the peer, but only as many at once as we allow.
#[derive(Debug, Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        // The low bits of a product depend on the low bits of its factors alone.
        self.0.rotate_left(26)
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u32(u32::from(*byte)));
    }
    fn write_u32(&mut self, id: u32) {
        self.0 = (self.0 ^ u64::from(id)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}
