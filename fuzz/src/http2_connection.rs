//! One HTTP/2 connection and a hostile peer. The first byte of the input is made of the flags below; the rest is what the peer
//! sends, as bytes or as frames in a shorter form.
//! Oracles: the same bytes in other pieces mean the same events and answers; bounds of streams, of what waits to be written and
//! of data not yet consumed; the order of a stream's events; a request that was accepted, written as HTTP/1, is read by the strict
//! parser as the same request.
//! Spec: RFC 9113; for what a downgrade may not do: RFC 9113 §10.3, RFC 9112 §11.2.

use std::collections::BTreeMap;

use bytes::{Buf, Bytes, BytesMut};
use weft_http::{
    fields::{Fields, Name},
    head::{Request, Response, Version},
    http1::{self, Framing, Limits},
    http2::{Code, Config, Connection, Event, MAX_UNSENT, PREFACE, Role, StreamId},
};

use crate::{cuts, lines, must, some};

/// We are the client; three requests are under way.
pub const CLIENT: u8 = 1;
/// The peer's preface and SETTINGS are added before the input.
pub const GREETED: u8 = 2;
/// The input is frames in the short form: kind, flags, stream, length, payload. All are one byte but the payload.
pub const FRAMES: u8 = 4;
/// Requests are answered, with a body.
pub const ANSWERS: u8 = 8;
/// Data are consumed, and streams that are over forgotten.
pub const CONSUMES: u8 = 16;
/// A farewell is sent after the first event.
pub const LEAVES: u8 = 32;

/// Small, so that short inputs reach the limits.
const CONFIG: Config = Config {
    max_streams: 8,
    stream_window: 1024,
    grown_window: 4096,
    growth: 8192,
    connection_window: 70_000,
    max_head: 2048,
    max_fields: 16,
    connect_protocol: true,
};
/// What may wait beside data: answers to frames, heads, and what tells the peer the end.
const SLACK: usize = 128 * 1024;
/// Frames of an input: more only cost time.
const MOST_EVENTS: usize = 4096;

/// Runs the target.
pub fn run(bytes: &[u8]) {
    let Some((flags, rest)) = bytes.split_first() else { return };
    let mut input = Vec::new();
    if flags & GREETED != 0 {
        if flags & CLIENT == 0 {
            input.extend_from_slice(PREFACE);
        }
        input.extend_from_slice(&[0, 0, 0, 4, 0, 0, 0, 0, 0]);
    }
    if flags & FRAMES == 0 {
        input.extend_from_slice(rest);
    } else {
        frames(rest, &mut input);
    }
    let whole = Run::new(*flags).feed(&[&input]);
    for pieces in cuts::ways(&input) {
        let other = Run::new(*flags).feed(&pieces);
        assert_eq!(whole.events, other.events, "the cuts make a difference");
        assert!(whole.sent == other.sent, "the cuts make a difference in what is answered");
    }
}

/// Writes frames out of their short form.
fn frames(mut script: &[u8], out: &mut Vec<u8>) {
    while let [kind, flags, id, len, rest @ ..] = script {
        let (payload, after) = rest.split_at(usize::from(*len).min(rest.len()));
        out.extend_from_slice(&[0, 0, u8::try_from(payload.len()).unwrap_or_default(), *kind, *flags, 0, 0, 0, *id]);
        out.extend_from_slice(payload);
        script = after;
    }
}

/// How far the peer has come on one stream, by the events.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Progress {
    #[default]
    Unknown,
    Headed,
    Over,
}

/// A connection, its user, and what they did.
struct Run {
    flags: u8,
    connection: Connection<()>,
    progress: BTreeMap<StreamId, Progress>,
    highest: StreamId,
    /// Data that was not consumed.
    held: usize,
    uploads: BTreeMap<StreamId, Bytes>,
    events: Vec<String>,
    sent: Vec<u8>,
}

impl Run {
    fn new(flags: u8) -> Self {
        let role = if flags & CLIENT == 0 { Role::Server } else { Role::Client };
        let mut run = Self {
            flags,
            connection: Connection::new(role, CONFIG),
            progress: BTreeMap::new(),
            highest: 0,
            held: 0,
            uploads: BTreeMap::new(),
            events: Vec::new(),
            sent: Vec::new(),
        };
        if role == Role::Client {
            for (method, end) in [("GET", true), ("HEAD", true), ("POST", false)] {
                let head = Request::new(Version::Http2, method.as_bytes(), b"/", Some(b"shop"), Fields::default());
                let sent = run.connection.send_request(&must(head, "a valid head"), end, ());
                let id = must(sent, "room for a request");
                if !end {
                    run.upload(id, Bytes::from(vec![b'u'; 100_000]));
                }
            }
        }
        run
    }

    fn feed(mut self, pieces: &[&[u8]]) -> Self {
        let mut input = BytesMut::new();
        for piece in pieces {
            input.extend_from_slice(piece);
            loop {
                match self.connection.receive(&mut input) {
                    Ok(Some(event)) => self.take(event),
                    Ok(None) => break,
                    Err(error) => {
                        assert!(self.connection.sent_final_goaway(), "an error without GOAWAY");
                        self.events.push(format!("{error:?}"));
                        self.write();
                        return self;
                    }
                }
                if self.events.len() > MOST_EVENTS {
                    return self;
                }
            }
            // The largest frame and its head; more is never needed to go on.
            assert!(input.len() < 16_384 + 9 + PREFACE.len(), "a whole frame is not understood");
            self.check();
        }
        self
    }

    fn take(&mut self, event: Event) {
        self.events.push(format!("{event:?}"));
        if self.events.len() == 1 && self.flags & LEAVES != 0 {
            self.connection.go_away();
        }
        match event {
            Event::Request { id, head, end, .. } => {
                self.opened(id);
                self.headed(id, end);
                request(&head, end);
                self.answer(id);
            }
            Event::BadRequest { id, .. } => {
                self.opened(id);
                // The rest of it is discarded: no event of it may follow but its reset.
                self.progress.insert(id, Progress::Unknown);
                self.answer(id);
            }
            Event::Response { id, head, end } => {
                assert!(self.flags & CLIENT != 0 && !head.is_interim(), "an answer that is none");
                fields(&head.fields);
                self.headed(id, end);
            }
            Event::Interim { id, head } => {
                assert!(head.is_interim() && self.of(id) == Progress::Unknown, "an interim answer after the final one");
                fields(&head.fields);
            }
            Event::Data { id, data, end } => {
                assert_eq!(self.of(id), Progress::Headed, "data of {id}");
                assert!(end || !data.is_empty(), "data without any");
                if self.flags & CONSUMES == 0 {
                    self.held += data.len();
                } else {
                    self.connection.consumed(id, data.len());
                }
                self.ended(id, end);
            }
            Event::Trailers { id, fields: trailers } => {
                assert_eq!(self.of(id), Progress::Headed, "trailers of {id}");
                fields(&trailers);
                self.ended(id, true);
            }
            Event::TooLarge { id, trailers, .. } => {
                let expected = if trailers { Progress::Headed } else { Progress::Unknown };
                assert_eq!(self.of(id), expected, "a section of {id} that may not come now");
                self.ended(id, true);
            }
            Event::Reset { id, .. } => {
                assert!(self.connection.stream(id).is_some_and(|stream| stream.is_reset()), "a reset without a stream");
                self.progress.insert(id, Progress::Over);
                self.remove(id);
            }
            Event::Writable { id } => {
                let left = self.uploads.remove(&id).unwrap_or_default();
                self.upload(id, left);
            }
            Event::GoAway { .. } => assert!(self.connection.is_closing(), "room after GOAWAY"),
            Event::Pong | Event::HalfClosed { .. } => {}
        }
        self.write();
        self.check();
    }

    fn of(&self, id: StreamId) -> Progress {
        self.progress.get(&id).copied().unwrap_or_default()
    }

    fn opened(&mut self, id: StreamId) {
        assert!(id % 2 == 1 && id > self.highest, "stream {id} after {}", self.highest);
        self.highest = id;
    }

    fn headed(&mut self, id: StreamId, end: bool) {
        assert_eq!(self.of(id), Progress::Unknown, "a second head of {id}");
        self.progress.insert(id, Progress::Headed);
        self.ended(id, end);
    }

    fn ended(&mut self, id: StreamId, end: bool) {
        if end {
            self.progress.insert(id, Progress::Over);
            if self.connection.stream(id).is_some_and(|stream| stream.is_closed()) {
                self.remove(id);
            }
        }
    }

    fn answer(&mut self, id: StreamId) {
        if self.flags & ANSWERS != 0 {
            let head = Response::new(Version::Http2, 200, Fields::default());
            must(self.connection.send_response(id, &head, false), "a stream that may be answered");
            self.upload(id, Bytes::from(vec![b'd'; 40_000]));
        }
    }

    fn upload(&mut self, id: StreamId, mut data: Bytes) {
        match self.connection.send_data(id, &mut data, true) {
            Ok(true) | Err(_) => {}
            Ok(false) => drop(self.uploads.insert(id, data)),
        }
        if self.of(id) == Progress::Over {
            self.ended(id, true);
        }
    }

    fn remove(&mut self, id: StreamId) {
        if self.flags & CONSUMES != 0 {
            self.connection.remove(id, Code::Cancel);
            self.uploads.remove(&id);
        }
    }

    /// The socket takes all.
    fn write(&mut self) {
        let unsent = self.connection.unsent();
        while unsent.has_remaining() {
            let chunk = unsent.chunk();
            let len = chunk.len();
            assert!(len > 0, "an empty chunk before the end");
            self.sent.extend_from_slice(chunk);
            unsent.advance(len);
        }
        self.connection.written();
    }

    fn check(&mut self) {
        let streams = CONFIG.max_streams as usize;
        assert!(self.connection.len() <= 2 * streams, "{} streams", self.connection.len());
        let open = self.connection.streams().filter(|(_, stream)| !stream.is_closed()).count();
        assert!(open <= streams, "{open} open streams");
        let unsent = self.connection.unsent().len();
        assert!(unsent <= MAX_UNSENT + SLACK, "{unsent} bytes wait to be written");
        let most = 2 * streams * CONFIG.stream_window as usize + CONFIG.growth as usize;
        assert!(self.held <= most, "{} bytes of data beyond the windows", self.held);
    }
}

/// What holds for every accepted request.
fn request(head: &Request, end: bool) {
    fields(&head.fields);
    assert!(!head.fields.has(Name::Host), "Host beside the authority");
    let (lengths, tunnel) = (head.fields.all(Name::ContentLength).count(), head.method() == "CONNECT");
    assert!(lengths <= 1 && head.version == Version::Http2);
    if tunnel || head.authority().is_none() {
        return;
    }
    // The downgrade: the strict parser of HTTP/1 sees one request, and the same.
    let framing = if end { Framing::None } else { Framing::Chunked };
    let mut text = Vec::new();
    http1::write_request(head, framing, http1::Connection::KeepAlive, &mut text);
    let mut buffer = BytesMut::from(&text[..]);
    let read = http1::parse_request(&mut buffer, &Limits::default());
    // An expectation that HTTP/1 does not know is its own matter; the proxy judges it before.
    if head.fields.has(Name::Expect) && matches!(read, Err(http1::Error::Expectation)) {
        return;
    }
    let read = some(must(read, "a request that HTTP/1 accepts"), "a whole request");
    assert!(buffer.is_empty(), "one request became two: {}", text.escape_ascii());
    assert_eq!((read.head.method(), read.head.target(), read.framing), (head.method(), head.target(), framing));
    assert_eq!(read.head.authority(), head.authority());
    let (_, written) = lines::split(&text, true);
    assert!(lines::named(&written, "host").len() == 1, "a downgrade with another number of Host fields");
    let count = |fields: &Fields| fields.iter().filter(|field| !is_joined(field.known)).count();
    assert_eq!(count(&read.head.fields), count(&head.fields), "the downgrade changed the number of fields");
}

/// Fields that are not written one by one.
fn is_joined(name: Name) -> bool {
    matches!(name, Name::Cookie | Name::ContentLength | Name::TransferEncoding | Name::Http2Settings)
}

/// What holds for the fields of every head and trailer section (RFC 9113 §8.2).
fn fields(fields: &Fields) {
    let size: usize = fields.iter().map(|field| field.name.len() + field.value.len() + 32).sum();
    assert!(size <= CONFIG.max_head, "a head of {size} bytes");
    for field in fields.iter() {
        let name_ok = |byte: &u8| byte.is_ascii_graphic() && !byte.is_ascii_uppercase() && *byte != b':';
        assert!(!field.name.is_empty() && field.name.iter().all(name_ok), "the name of {field:?} was accepted");
        assert!(
            !field.value.iter().any(|byte| matches!(byte, 0 | b'\r' | b'\n')),
            "the value of {field:?} was accepted"
        );
        for name in ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"] {
            assert!(!field.is(name), "{field:?} was accepted");
        }
    }
    let own = fields.iter().filter(|field| field.known != Name::Reserved).count();
    assert!(own <= CONFIG.max_fields, "{own} fields were accepted");
}
