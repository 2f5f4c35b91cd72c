//! Micro-benchmarks of the codecs: heads from and to bytes, and one exchange on an HTTP/2 connection, both sides together.
//! Run: `make bench-micro`; the harness and its options are in `bench/micro.rs`.
#![expect(clippy::expect_used, reason = "what is measured has to work, or nothing is")]

#[path = "../../bench/micro.rs"]
mod micro;

use std::{hint::black_box, process::ExitCode};

use bytes::{Buf, Bytes, BytesMut};
use micro::Case;
use weft_http::{
    fields::{Fields, Name},
    head::{Request, Response, Version},
    http1::{self, Framing, Limits},
    http2::{Code, Config, Connection, Event, Role, StreamId},
};

const CASES: &[Case] = &[
    Case { name: "http1/read-request", make: read_request },
    Case { name: "http1/read-response", make: read_response },
    Case { name: "http1/write-request", make: write_request },
    Case { name: "http1/write-response", make: write_response },
    Case { name: "http2/exchange", make: || exchange(0) },
    Case { name: "http2/exchange-64k", make: || exchange(64 * 1024) },
];

/// What a browser asks an API.
const REQUEST: &[u8] = b"GET /api/v1/products/4711?fields=name,price HTTP/1.1\r\n\
    Host: shop.example:8080\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n\
    Accept: application/json, text/plain, */*\r\n\
    Accept-Language: en-US,en;q=0.5\r\n\
    Accept-Encoding: gzip, deflate, br\r\n\
    Referer: http://shop.example:8080/products\r\n\
    Cookie: session=0123456789abcdef0123456789abcdef\r\n\
    traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\
    Connection: keep-alive\r\n\r\n";

const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\n\
    Server: nginx/1.22.1\r\n\
    Date: Sat, 21 Nov 2026 10:00:00 GMT\r\n\
    Content-Type: application/json; charset=utf-8\r\n\
    Content-Length: 512\r\n\
    Cache-Control: max-age=60\r\n\
    ETag: \"637b4f3e-200\"\r\n\
    Connection: keep-alive\r\n\r\n";

fn main() -> ExitCode {
    micro::run(concat!(env!("CARGO_MANIFEST_DIR"), "/benches"), CASES)
}

fn request() -> Request {
    let parsed = http1::parse_request(&mut BytesMut::from(REQUEST), &Limits::default());
    parsed.expect("it is good").expect("it is whole").head
}

fn response() -> Response {
    let parsed = http1::parse_response(&mut BytesMut::from(RESPONSE), &Limits::default(), "GET");
    parsed.expect("it is good").expect("it is whole").head
}

fn read_request() -> Box<dyn FnMut(usize)> {
    let limits = Limits::default();
    Box::new(move |_| {
        let parsed = http1::parse_request(&mut BytesMut::from(REQUEST), &limits);
        assert!(black_box(parsed).is_ok_and(|parsed| parsed.is_some()));
    })
}

fn read_response() -> Box<dyn FnMut(usize)> {
    let limits = Limits::default();
    Box::new(move |_| {
        let parsed = http1::parse_response(&mut BytesMut::from(RESPONSE), &limits, "GET");
        assert!(black_box(parsed).is_ok_and(|parsed| parsed.is_some()));
    })
}

fn write_request() -> Box<dyn FnMut(usize)> {
    let (head, mut out) = (request(), Vec::new());
    Box::new(move |_| {
        out.clear();
        http1::write_request(black_box(&head), Framing::None, http1::Connection::KeepAlive, &mut out);
        assert!(!black_box(&out).is_empty());
    })
}

fn write_response() -> Box<dyn FnMut(usize)> {
    let (head, mut out) = (response(), Vec::new());
    Box::new(move |_| {
        out.clear();
        http1::write_response(black_box(&head), Framing::Length(512), http1::Connection::KeepAlive, &mut out);
        assert!(!black_box(&out).is_empty());
    })
}

/// One side of an HTTP/2 connection, and what has come for it.
struct Side {
    connection: Connection<()>,
    input: BytesMut,
}

impl Side {
    fn new(role: Role) -> Self {
        let config = Config {
            max_streams: 100,
            stream_window: 256 * 1024,
            grown_window: 1024 * 1024,
            growth: 16 * 1024 * 1024,
            connection_window: 16 * 1024 * 1024,
            max_head: 16 * 1024,
            max_fields: 100,
            connect_protocol: false,
        };
        Self { connection: Connection::new(role, config), input: BytesMut::new() }
    }

    /// Everything that waits is on its way to the other side.
    fn send_to(&mut self, other: &mut Self) {
        let unsent = self.connection.unsent();
        while unsent.has_remaining() {
            other.input.extend_from_slice(unsent.chunk());
            unsent.advance(unsent.chunk().len());
        }
        self.connection.written();
    }

    /// Takes in what has come. Returns the stream of the last request or answer, and how many bytes of data came.
    fn take(&mut self) -> (Option<StreamId>, usize) {
        let (mut stream, mut count) = (None, 0);
        while let Some(event) = self.connection.receive(&mut self.input).expect("the other side is ours") {
            match event {
                Event::Request { id, .. } | Event::Response { id, .. } => stream = Some(id),
                Event::Data { id, data, .. } => {
                    count += data.len();
                    self.connection.consumed(id, data.len());
                }
                Event::BadRequest { .. }
                | Event::TooLarge { .. }
                | Event::Interim { .. }
                | Event::Trailers { .. }
                | Event::Reset { .. }
                | Event::Writable { .. }
                | Event::GoAway { .. }
                | Event::HalfClosed { .. }
                | Event::Pong => {}
            }
        }
        (stream, count)
    }
}

/// A request and its answer with a body of `size`, from the one head to the other side's last event.
fn exchange(size: usize) -> Box<dyn FnMut(usize)> {
    let (mut client, mut server) = (Side::new(Role::Client), Side::new(Role::Server));
    let question = request();
    let answer = Response::new(Version::Http2, 200, fields(&response()));
    let body = Bytes::from(vec![b'x'; size]);
    Box::new(move |_| {
        let id = client.connection.send_request(&question, true, ()).expect("there is room");
        client.send_to(&mut server);
        assert_eq!(server.take().0, Some(id));
        server.connection.send_response(id, &answer, size == 0).expect("the stream is open");
        if size > 0 {
            assert_eq!(server.connection.send_data(id, &mut body.clone(), true), Ok(true));
        }
        server.send_to(&mut client);
        assert_eq!(client.take(), (Some(id), size));
        for side in [&mut client, &mut server] {
            assert!(side.connection.remove(id, Code::NoError).is_some());
        }
    })
}

/// Without what HTTP/2 does not have, and without a length, which `exchange` varies.
fn fields(head: &Response) -> Fields {
    let mut fields = Fields::default();
    for field in head.fields.iter().filter(|field| !matches!(field.known, Name::Connection | Name::ContentLength)) {
        fields.push(field.name, field.value);
    }
    fields
}
