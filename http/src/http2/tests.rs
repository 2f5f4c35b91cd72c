//! A client and a server connected to each other, and hostile frames. Interoperability with other implementations: proxy/tests.
//!
//! - [`closed`]: frames on streams that have ended. [`flow`]: flow control. [`large`]: sections above a limit. [`waste`]: peers that waste work.

mod closed;
mod flow;
mod large;
mod waste;

use bytes::{Buf, Bytes, BytesMut};

use super::{
    BadRequest, Code, Config, Connection, Event, MAX_UNSENT, Role, StreamId,
    account::MAX_IDLE_FRAMES,
    frame::{DATA, END_STREAM, FrameHeader, PING, RST_STREAM, SETTINGS, WINDOW_UPDATE},
};
use crate::{
    fields::Fields,
    head::{Request, Response, Version},
};

const CONFIG: Config = Config {
    max_streams: 100,
    stream_window: 256 * 1024,
    grown_window: 1024 * 1024,
    growth: 8 * 1024 * 1024,
    connection_window: 1024 * 1024,
    max_head: 16 * 1024,
    max_fields: 100,
    connect_protocol: true,
};

/// A client and a server, and the bytes in flight.
struct Pair {
    client: Connection<()>,
    server: Connection<()>,
    wires: [BytesMut; 2],
}

/// Moves at most `most` bytes from the queue of one side to the input of the other.
fn carry(from: &mut Connection<()>, wire: &mut BytesMut, most: usize) -> usize {
    let mut left = most;
    while left > 0 && from.unsent().has_remaining() {
        let unsent: &mut crate::out::Unsent = from.unsent();
        let count = unsent.chunk().len().min(left);
        wire.extend_from_slice(&unsent.chunk()[..count]);
        unsent.advance(count);
        left -= count;
    }
    from.written();
    most - left
}

impl Pair {
    fn new() -> Self {
        let mut pair = Self {
            client: Connection::new(Role::Client, CONFIG),
            server: Connection::new(Role::Server, CONFIG),
            wires: Default::default(),
        };
        assert!(pair.talk(usize::MAX).is_empty());
        pair
    }

    /// Carries bytes, `step` at a time, until both queues are empty. Returns the events of both sides: `true` for the server.
    fn talk(&mut self, step: usize) -> Vec<(bool, Event)> {
        let mut events = Vec::new();
        loop {
            let [up, down] = &mut self.wires;
            let moved = carry(&mut self.client, up, step) + carry(&mut self.server, down, step);
            let before = events.len();
            while let Some(event) = self.server.receive(up).unwrap() {
                events.push((true, event));
            }
            while let Some(event) = self.client.receive(down).unwrap() {
                events.push((false, event));
            }
            if moved == 0 && events.len() == before {
                return events;
            }
        }
    }
}

fn get(path: &str) -> Request {
    let fields = [("accept", "*/*"), ("x-a", "1")].into_iter().collect();
    Request::new(Version::Http2, b"GET", path.as_bytes(), Some(b"shop"), fields).unwrap()
}

fn ok() -> Response {
    Response::new(Version::Http2, 200, [("content-type", "text/plain")].into_iter().collect())
}

#[test]
fn requests_and_responses_are_decoded_at_every_split() {
    for step in [1, 2, 7, 9, 10, 100, usize::MAX] {
        let mut pair = Pair::new();
        for round in 0..5 {
            let id = pair.client.send_request(&get("/a?b"), true, ()).unwrap();
            let events = pair.talk(step);
            let [(true, Event::Request { id: arrived, head, end: true, .. })] = &events[..] else {
                panic!("{events:?}")
            };
            assert_eq!((*arrived, head.target(), head.host()), (id, "/a?b", "shop"), "{round}");
            assert_eq!(head.fields, get("/").fields);
            pair.server.send_response(id, &ok(), false).unwrap();
            assert!(pair.server.send_data(id, &mut Bytes::from_static(b"hello"), false).unwrap());
            pair.server.send_trailers(id, &[("x-t", "1")].into_iter().collect()).unwrap();
            let events = pair.talk(step);
            let [
                (_, Event::Response { .. }),
                (_, Event::Data { data, end: false, .. }),
                (_, Event::Trailers { fields, .. }),
            ] = &events[..]
            else {
                panic!("{events:?}")
            };
            assert_eq!((&data[..], fields.len()), (&b"hello"[..], 1));
            assert!(pair.client.remove(id, Code::NoError).is_some() && pair.server.remove(id, Code::NoError).is_some());
            assert_eq!((pair.client.open, pair.server.open), (0, 0));
        }
        assert_eq!(pair.talk(step).len(), 0, "nothing is reset that is over");
    }
}

/// Sends as much as possible and returns credit for received data. Returns how many bytes the server received.
fn upload(pair: &mut Pair, id: StreamId, data: &mut Bytes, step: usize) -> usize {
    let (mut got, mut done) = (0, false);
    while !done {
        done = pair.client.send_data(id, data, true).unwrap();
        for (_, event) in pair.talk(step) {
            if let Event::Data { data, .. } = &event {
                got += data.len();
                pair.server.consumed(id, data.len());
            }
            assert!(!matches!(event, Event::Reset { .. } | Event::GoAway { .. }), "{event:?}");
        }
    }
    got
}

#[test]
fn flow_control_passes_whole_bodies_and_returns_all_credit() {
    let mut pair = Pair::new();
    for size in [0, 1, 65_535, 300_000, 3_000_000] {
        let id = pair.client.send_request(&get("/"), false, ()).unwrap();
        assert_eq!(upload(&mut pair, id, &mut Bytes::from(vec![7; size]), 50_000), size);
        pair.server.send_response(id, &ok(), true).unwrap();
        pair.talk(usize::MAX);
        pair.client.remove(id, Code::NoError);
        pair.server.remove(id, Code::NoError);
        let owed = i64::from(pair.server.unreturned);
        assert_eq!(pair.server.receive_window + owed, i64::from(CONFIG.connection_window), "{size}");
        assert_eq!(pair.client.send_window, pair.server.receive_window, "{size}");
    }
}

#[test]
fn the_write_queue_is_bounded_with_its_frame_headers() {
    let mut pair = Pair::new();
    let id = pair.client.send_request(&get("/"), false, ()).unwrap();
    pair.talk(usize::MAX);
    let mut data = Bytes::from(vec![7; 2 * MAX_UNSENT]);
    assert!(!pair.client.send_data(id, &mut data, true).unwrap());
    assert_eq!(pair.client.unsent().len(), MAX_UNSENT, "whole TLS records, and no small one behind them");
    assert_eq!(upload(&mut pair, id, &mut data, 50_000), 2 * MAX_UNSENT);
}

#[test]
fn data_of_a_removed_stream_returns_its_credit() {
    let mut pair = Pair::new();
    let id = pair.client.send_request(&get("/"), false, ()).unwrap();
    pair.talk(usize::MAX);
    pair.server.remove(id, Code::Cancel);
    // The client has not received the reset, and continues.
    for _ in 0..4 {
        assert!(pair.client.send_data(id, &mut Bytes::from(vec![7; 16_000]), false).unwrap());
    }
    carry(&mut pair.client, &mut pair.wires[0], usize::MAX);
    while pair.server.receive(&mut pair.wires[0]).unwrap().is_some() {}
    let owed = i64::from(pair.server.unreturned);
    assert_eq!(pair.server.receive_window + owed, i64::from(CONFIG.connection_window));
    let events = pair.talk(usize::MAX);
    assert!(matches!(&events[..], [(false, Event::Reset { by_peer: true, unprocessed: false, .. })]), "{events:?}");
}

#[test]
fn frames_after_the_end_of_a_closed_stream_are_no_event() {
    let mut pair = Pair::new();
    let id = pair.client.send_request(&get("/"), true, ()).unwrap();
    pair.talk(usize::MAX);
    pair.server.send_response(id, &ok(), true).unwrap();
    pair.talk(usize::MAX);
    let window = pair.server.receive_window + i64::from(pair.server.unreturned);
    pair.wires[0].extend_from_slice(&FrameHeader { len: 3, kind: DATA, flags: 0, id }.bytes());
    pair.wires[0].extend_from_slice(b"abc");
    let events = pair.talk(usize::MAX);
    let told = |event: &(bool, Event)| matches!(event, (true, Event::Reset { .. } | Event::Data { .. }));
    assert!(!events.iter().any(told), "the server's user has seen the end already: {events:?}");
    assert_eq!(pair.server.receive_window + i64::from(pair.server.unreturned), window);
    assert!(pair.server.remove(id, Code::NoError).is_some());
    assert_eq!(pair.server.open, 0);
}

#[test]
fn streams_blocked_on_the_connection_window_take_turns() {
    let mut pair = Pair::new();
    let body = Bytes::from(vec![7; 64 << 20]);
    let mut uploads: Vec<(StreamId, Bytes)> =
        (0..8).map(|_| (pair.client.send_request(&get("/"), false, ()).unwrap(), body.clone())).collect();
    for (id, data) in &mut uploads {
        pair.client.send_data(*id, data, false).unwrap();
    }
    let mut arrived: std::collections::BTreeMap<StreamId, usize> = uploads.iter().map(|(id, _)| (*id, 0)).collect();
    // Both sides handle every event at once, so that the stream that sent first always has credit of its own.
    for _ in 0..4000 {
        carry(&mut pair.client, &mut pair.wires[0], 32 * 1024);
        while let Some(event) = pair.server.receive(&mut pair.wires[0]).unwrap() {
            if let Event::Data { id, data, .. } = event {
                *arrived.get_mut(&id).unwrap() += data.len();
                pair.server.consumed(id, data.len());
            }
        }
        carry(&mut pair.server, &mut pair.wires[1], usize::MAX);
        while let Some(event) = pair.client.receive(&mut pair.wires[1]).unwrap() {
            assert!(matches!(event, Event::Writable { .. }), "{event:?}");
            let Event::Writable { id } = event else { continue };
            let (_, data) = uploads.iter_mut().find(|(upload, _)| *upload == id).unwrap();
            pair.client.send_data(id, data, false).unwrap();
        }
        while let Some(id) = pair.client.next_writable() {
            let (_, data) = uploads.iter_mut().find(|(upload, _)| *upload == id).unwrap();
            pair.client.send_data(id, data, false).unwrap();
        }
    }
    let (least, most) = (arrived.values().min().unwrap(), arrived.values().max().unwrap());
    assert!(*least > 1 << 20 && *most <= 2 * least, "{arrived:?}");
}

#[test]
fn a_graceful_shutdown_completes_streams_in_flight_and_accepts_no_new_ones() {
    let mut pair = Pair::new();
    let id = pair.client.send_request(&get("/"), true, ()).unwrap();
    pair.talk(usize::MAX);
    pair.server.go_away();
    assert!(!pair.server.sent_final_goaway());
    let events = pair.talk(usize::MAX);
    assert!(matches!(&events[..], [(false, Event::GoAway { code: Code::NoError }), ..]), "{events:?}");
    assert!(pair.server.sent_final_goaway() && pair.client.send_request(&get("/"), true, ()).is_err());
    pair.server.send_response(id, &ok(), true).unwrap();
    let events = pair.talk(usize::MAX);
    assert!(matches!(&events[..], [(false, Event::Response { end: true, .. })]), "{events:?}");
}

/// The result of a server for frames after a valid preface, with one open stream (1) and half a request.
fn judged(frames: &[(u8, u8, StreamId, &[u8])], times: usize) -> Result<usize, Code> {
    let mut pair = Pair::new();
    pair.client.send_request(&get("/"), false, ()).unwrap();
    pair.talk(usize::MAX);
    let mut input = BytesMut::new();
    let mut events = 0;
    for _ in 0..times {
        for (kind, flags, id, payload) in frames {
            input.extend_from_slice(&FrameHeader { len: payload.len(), kind: *kind, flags: *flags, id: *id }.bytes());
            input.extend_from_slice(payload);
        }
        while pair.server.receive(&mut input).map_err(|error| error.code)?.is_some() {
            events += 1;
        }
        let all = pair.server.unsent().remaining();
        pair.server.unsent().advance(all);
        pair.server.written();
    }
    Ok(events)
}

#[test]
fn protocol_violations_end_the_connection_with_the_right_code() {
    let cases: [(u8, u8, StreamId, &[u8], Code); 14] = [
        (DATA, 0, 0, b"x", Code::ProtocolError),
        (DATA, 0, 2, b"x", Code::ProtocolError),
        (DATA, 0, 9, b"x", Code::ProtocolError),
        (DATA, 0x8, 1, &[5, 1], Code::ProtocolError),
        (1, 0x4, 0, b"", Code::ProtocolError),
        (1, 0x4, 3, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff], Code::CompressionError),
        (RST_STREAM, 0, 1, b"123", Code::FrameSizeError),
        (RST_STREAM, 0, 9, &[0, 0, 0, 8], Code::ProtocolError),
        (SETTINGS, 0, 1, b"", Code::ProtocolError),
        (SETTINGS, 0, 0, b"1", Code::FrameSizeError),
        (5, 0, 1, b"1234", Code::ProtocolError),
        (PING, 0, 0, b"short", Code::FrameSizeError),
        (WINDOW_UPDATE, 0, 0, &[0, 0, 0, 0], Code::ProtocolError),
        (WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff], Code::FlowControlError),
    ];
    for (kind, flags, id, payload, code) in cases {
        assert_eq!(judged(&[(kind, flags, id, payload)], 1), Err(code), "{kind} {id} {payload:?}");
    }
    // Stream errors: more data than Content-Length, WINDOW_UPDATE of 0, DATA after END_STREAM.
    assert_eq!(judged(&[(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 0])], 1), Ok(1));
    assert_eq!(judged(&[(DATA, END_STREAM, 1, b"x"), (DATA, 0, 1, b"x")], 1), Ok(2));
}

#[test]
fn floods_end_the_connection_and_busy_peers_do_not() {
    let calm = Err(Code::EnhanceYourCalm);
    assert_eq!(judged(&[(DATA, 0, 1, b"")], MAX_IDLE_FRAMES as usize + 1), calm, "empty data");
    assert_eq!(judged(&[(SETTINGS, 0, 0, b"")], MAX_IDLE_FRAMES as usize + 1), calm);
    let settings = [0, 4, 0, 0, 0, 1].repeat(65);
    assert_eq!(judged(&[(SETTINGS, 0, 0, &settings)], 1), calm);
    assert!(judged(&[(PING, 0, 0, b"12345678")], 20_000).is_ok(), "they are read");
    assert!(judged(&[(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1])], 20_000).is_ok());
    // PINGs under load: the queue is never empty, and the count of answers decays.
    let mut pair = Pair::new();
    let ping = [&FrameHeader { len: 8, kind: PING, flags: 0, id: 0 }.bytes()[..], b"12345678"].concat();
    for _ in 0..100 {
        assert!(pair.server.receive(&mut BytesMut::from(&ping.repeat(500)[..])).unwrap().is_none());
        let most = pair.server.unsent().remaining() - 1;
        pair.server.unsent().advance(most);
        pair.server.written();
        pair.server.tick();
    }
    // PINGs with unread answers.
    let mut pair = Pair::new();
    let ping = [&FrameHeader { len: 8, kind: PING, flags: 0, id: 0 }.bytes()[..], b"12345678"].concat();
    let mut input = BytesMut::from(&ping.repeat(10_000)[..]);
    assert_eq!(pair.server.receive(&mut input).unwrap_err().code, Code::EnhanceYourCalm);
    assert!(pair.server.unsent().remaining() < 100 * 1024);
}

#[test]
fn malformed_heads_reset_their_stream_or_are_answered() {
    let mut pair = Pair::new();
    let mut send = |method: &str, fields: Fields| {
        let head = Request::new(Version::Http2, method.as_bytes(), b"/", Some(b"shop"), fields).unwrap();
        pair.client.send_request(&head, true, ()).unwrap();
        pair.talk(usize::MAX).into_iter().next()
    };
    let long = "x".repeat(20_000);
    let large = send("GET", [("x-long", long.as_str())].into_iter().collect());
    assert!(matches!(large, Some((true, Event::BadRequest { reason: BadRequest::TooLarge(_), .. }))), "{large:?}");
    let twice = send("GET", [("content-length", "0"), ("content-length", "0")].into_iter().collect());
    assert!(matches!(twice, Some((false, Event::Reset { code: Code::ProtocolError, .. }))), "{twice:?}");
    let promised = send("GET", [("content-length", "5")].into_iter().collect());
    assert!(matches!(promised, Some((false, Event::Reset { code: Code::ProtocolError, .. }))), "{promised:?}");
    let star = Request::new(Version::Http2, b"GET", b"*", Some(b"shop"), Fields::default());
    assert!(star.is_err() && Request::new(Version::Http2, b"OPTIONS", b"*", None, Fields::default()).is_ok());
    let connect = send("CONNECT", Fields::default());
    assert!(matches!(connect, Some((true, Event::Request { .. }))), "{connect:?}");
}

mod random {
    use proptest::prelude::*;

    use super::*;

    /// A step of a connection with uploads.
    #[derive(Clone, Debug)]
    enum Step {
        Upload(usize),
        /// At most so many bytes arrive, and their events are handled.
        Carry(usize),
        /// One side removes an upload.
        Forget(usize, bool),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            prop_oneof![Just(0), 1..1_000usize, 1_000..600_000usize].prop_map(Step::Upload),
            prop_oneof![1..100usize, 1..100_000usize].prop_map(Step::Carry),
            (any::<usize>(), any::<bool>()).prop_map(|(which, server)| Step::Forget(which, server)),
        ]
    }

    struct Upload {
        id: StreamId,
        left: Bytes,
        sent: bool,
        got: usize,
        ended: bool,
        removed: bool,
    }

    fn find(uploads: &mut [Upload], id: StreamId) -> &mut Upload {
        uploads.iter_mut().find(|upload| upload.id == id).unwrap()
    }

    /// Sends as much as possible, carries `most` bytes each way, and returns credit. Returns whether any byte moved.
    fn go_on(pair: &mut Pair, uploads: &mut [Upload], most: usize) -> bool {
        for upload in uploads.iter_mut().filter(|upload| !upload.sent && !upload.removed) {
            upload.sent = pair.client.send_data(upload.id, &mut upload.left, true).unwrap();
        }
        while pair.client.next_writable().is_some() {}
        let mut moved = carry(&mut pair.client, &mut pair.wires[0], most);
        while let Some(event) = pair.server.receive(&mut pair.wires[0]).unwrap() {
            if let Event::Data { id, data, end } = &event {
                pair.server.consumed(*id, data.len());
                let upload = find(uploads, *id);
                (upload.got, upload.ended) = (upload.got + data.len(), *end);
            } else if let Event::Reset { id, .. } = event {
                assert!(find(uploads, id).removed);
            } else {
                assert!(matches!(event, Event::Request { .. }), "{event:?}");
            }
        }
        moved += carry(&mut pair.server, &mut pair.wires[1], most);
        while let Some(event) = pair.client.receive(&mut pair.wires[1]).unwrap() {
            assert!(matches!(event, Event::Writable { .. } | Event::Reset { .. }), "{event:?}");
            if let Event::Reset { id, .. } = event {
                assert!(find(uploads, id).removed);
            }
        }
        moved > 0
    }

    proptest! {
        /// Whichever uploads are removed, and whenever: the others arrive whole, and the connection window recovers.
        #[test]
        fn removed_uploads_return_the_credit_of_the_connection(steps in prop::collection::vec(step(), 1..60)) {
            let mut pair = Pair::new();
            let (mut sizes, mut all) = (Vec::new(), Vec::new());
            for step in steps {
                match step {
                    Step::Upload(size) => {
                        let id = pair.client.send_request(&get("/"), false, ()).unwrap();
                        let left = Bytes::from(vec![7; size]);
                        all.push(Upload { id, left, sent: false, got: 0, ended: false, removed: false });
                        sizes.push(size);
                    }
                    Step::Carry(most) => {
                        go_on(&mut pair, &mut all, most);
                    }
                    Step::Forget(which, server) if !all.is_empty() => {
                        let which = which % all.len();
                        let upload = &mut all[which];
                        let side = if server { &mut pair.server } else { &mut pair.client };
                        upload.removed |= side.remove(upload.id, Code::Cancel).is_some();
                    }
                    Step::Forget(..) => {}
                }
                prop_assert!(pair.client.unsent().len() <= MAX_UNSENT + 16 * 1024);
            }
            while go_on(&mut pair, &mut all, 40_000) {}
            for (size, upload) in sizes.iter().zip(&all).filter(|(_, upload)| !upload.removed) {
                prop_assert_eq!((upload.got, upload.ended), (*size, true));
            }
            let owed = i64::from(pair.server.unreturned);
            prop_assert_eq!(pair.server.receive_window + owed, i64::from(CONFIG.connection_window));
            prop_assert_eq!(pair.client.send_window, pair.server.receive_window);
        }

        /// One byte changes in flight: the connection ends or continues without a panic or growth.
        #[test]
        fn a_changed_byte_causes_no_panic_and_no_growth(at in 0..70_000usize, to: u8, size in 0..60_000usize) {
            let mut pair = Pair::new();
            for _ in 0..3 {
                let id = pair.client.send_request(&get("/a"), false, ()).unwrap();
                pair.client.send_data(id, &mut Bytes::from(vec![7; size / 3]), true).unwrap();
            }
            carry(&mut pair.client, &mut pair.wires[0], usize::MAX);
            let [up, _] = &mut pair.wires;
            let len = up.len();
            up[at % len] = to;
            let mut seen = 0;
            while let Ok(Some(_)) = pair.server.receive(up) {
                seen += 1;
                prop_assert!(seen < 1_000);
            }
            prop_assert!(pair.server.unsent().remaining() < 128 * 1024);
            prop_assert!(pair.server.len() <= 100);
        }

        /// No input causes a panic or exceeds a bound.
        #[test]
        fn random_frames_neither_panic_nor_grow(
            frames in prop::collection::vec((0u8..12, any::<u8>(), 0u32..8, prop::collection::vec(any::<u8>(), 0..40)), 0..200),
            client: bool,
        ) {
            let mut pair = Pair::new();
            pair.client.send_request(&get("/"), false, ()).unwrap();
            pair.talk(usize::MAX);
            let one = if client { &mut pair.client } else { &mut pair.server };
            let mut input = BytesMut::new();
            for (kind, flags, id, payload) in frames {
                input.extend_from_slice(&FrameHeader { len: payload.len(), kind, flags, id }.bytes());
                input.extend_from_slice(&payload);
            }
            let mut seen = 0;
            while let Ok(Some(_)) = one.receive(&mut input) {
                seen += 1;
                prop_assert!(seen < 1_000);
            }
            prop_assert!(one.unsent().remaining() < 128 * 1024);
            prop_assert!(one.len() <= 200 && one.open <= 100);
        }
    }
}
