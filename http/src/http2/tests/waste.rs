//! Peers that give up, violate, and send what brings nothing: beside the honest ones that look alike.

use super::*;
use crate::http2::Shutdown;

/// How the connection of a client went.
#[derive(Debug)]
struct Course {
    /// Streams opened when the first GOAWAY was sent.
    warned: Option<u32>,
    /// Streams opened when its new streams were ignored.
    cut: Option<u32>,
}

/// What a side has queued is lost on its way.
fn lose(side: &mut Connection<()>) {
    let all = side.unsent().remaining();
    side.unsent().advance(all);
    side.written();
}

/// A client that opens `streams`, one after the other, `each` of them in a second, and gives up those for which `dies` says so; the
/// others are answered. It never acknowledges GOAWAY.
fn course(streams: u32, each: u32, dies: impl Fn(u32) -> bool) -> Course {
    let (mut course, mut pair) = (Course { warned: None, cut: None }, Pair::new());
    for number in 0..streams {
        if number % each == 0 {
            pair.server.tick();
        }
        // The client does not see what the server says.
        let id = pair.client.send_request(&get("/"), true, ()).unwrap();
        carry(&mut pair.client, &mut pair.wires[0], usize::MAX);
        let died = dies(number);
        if died {
            pair.client.remove(id, Code::Cancel);
            carry(&mut pair.client, &mut pair.wires[0], usize::MAX);
        } else {
            pair.client.remove(id, Code::NoError);
            lose(&mut pair.client);
            while pair.server.receive(&mut pair.wires[0]).unwrap().is_some() {}
            if pair.server.send_response(id, &ok(), true).is_ok() {
                pair.server.remove(id, Code::NoError);
            }
        }
        while let Some(event) = pair.server.receive(&mut pair.wires[0]).unwrap() {
            if let Event::Reset { id, .. } = event {
                pair.server.remove(id, Code::Cancel);
            }
        }
        lose(&mut pair.server);
        assert!(pair.server.len() <= 1, "{number}");
        match pair.server.shutdown {
            Shutdown::No => {}
            Shutdown::Announced => drop(course.warned.get_or_insert(number + 1)),
            Shutdown::Final => {
                course.cut = Some(number + 1);
                break;
            }
        }
    }
    course
}

/// (28)
#[test]
fn a_client_of_which_more_than_half_die_young_is_cut_within_500_streams_however_slowly_they_die() {
    for each in [100_000, 500, 100] {
        for (percent, most) in [(100, 500), (60, 1000), (51, 1500)] {
            let course = course(2000, each, |number| number % 100 < percent);
            let (warned, cut) = (course.warned.unwrap(), course.cut.unwrap());
            assert!(warned <= 500, "{percent} %, {each} a second: {warned}");
            assert!(cut <= most, "{percent} %, {each} a second: {cut}");
        }
    }
    let late = course(5000, 100_000, |number| number > 1000);
    assert!(late.cut.unwrap() <= 1500, "what it did well before does not count for ever");
}

/// (28)
#[test]
fn honest_clients_that_give_up_some_requests_are_never_cut() {
    let thirty = course(20_000, 200, |number| number % 10 < 3);
    assert_eq!((thirty.warned, thirty.cut), (None, None), "30 % at 200 a second");
    let burst = course(20_000, 1000, |number| number % 1000 < 200);
    assert_eq!((burst.warned, burst.cut), (None, None), "200 at once, each 1,000");
    let typing = course(5_000, 10, |_| true);
    assert_eq!((typing.warned, typing.cut), (None, None), "each of 10 a second, which is little work");
}

/// (28)
#[test]
fn what_is_given_up_after_some_seconds_was_worth_its_work() {
    let mut pair = Pair::new();
    for _ in 0..20 {
        let ids: Vec<_> = (0..100).map(|_| pair.client.send_request(&get("/"), true, ()).unwrap()).collect();
        pair.talk(usize::MAX);
        (0..3).for_each(|_| pair.server.tick());
        for id in ids {
            pair.client.remove(id, Code::Cancel);
            pair.talk(usize::MAX);
            pair.server.remove(id, Code::Cancel);
        }
    }
    assert_eq!(pair.server.shutdown, Shutdown::No);
}

/// (28)
#[test]
fn a_peer_that_carries_many_callers_is_sent_away_gracefully_and_nothing_that_runs_is_lost() {
    let mut pair = Pair::new();
    let running = pair.client.send_request(&get("/"), true, ()).unwrap();
    pair.talk(usize::MAX);
    let mut given_up = 0;
    while pair.client.has_room() {
        let id = pair.client.send_request(&get("/"), true, ()).unwrap();
        pair.client.remove(id, Code::Cancel);
        for (server, event) in pair.talk(usize::MAX) {
            if let (true, Event::Reset { id, .. }) = (server, event) {
                pair.server.remove(id, Code::Cancel);
            }
        }
        given_up += 1;
        assert!(given_up < 500);
    }
    pair.server.send_response(running, &ok(), true).unwrap();
    let events = pair.talk(usize::MAX);
    assert!(matches!(&events[..], [(false, Event::Response { end: true, .. })]), "{events:?}");
    assert!(pair.server.sent_final_goaway(), "the client has acknowledged the first GOAWAY");
}

/// (28)
#[test]
fn violations_are_cut_within_200() {
    for frame in [
        (WINDOW_UPDATE, 0, &[0, 0, 0, 0][..]),
        (WINDOW_UPDATE, 0, &[0x7f, 0xff, 0xff, 0xff]),
        (DATA, END_STREAM, b"x"),
        (1, 0x4, &[0x82]),
    ] {
        let mut pair = Pair::new();
        let mut faults = 0;
        while !pair.server.sent_final_goaway() {
            // Half closed, unless DATA that ends it follows.
            let id = pair.client.send_request(&get("/"), frame.0 != DATA, ()).unwrap();
            carry(&mut pair.client, &mut pair.wires[0], usize::MAX);
            pair.client.remove(id, Code::Cancel);
            lose(&mut pair.client);
            let times = if frame.0 == DATA { 2 } else { 1 };
            for _ in 0..times {
                let header = FrameHeader { len: frame.2.len(), kind: frame.0, flags: frame.1, id };
                pair.wires[0].extend_from_slice(&header.bytes());
                pair.wires[0].extend_from_slice(frame.2);
            }
            let mut reset = false;
            while let Some(event) = pair.server.receive(&mut pair.wires[0]).unwrap() {
                reset |= matches!(event, Event::Reset { by_peer: false, .. });
            }
            pair.server.remove(id, Code::Cancel);
            lose(&mut pair.server);
            faults += 1;
            assert!(faults <= 200 && (reset || pair.server.sent_final_goaway()), "{frame:?} {faults}");
        }
    }
}

/// (28)
#[test]
fn a_client_hears_any_number_of_resets() {
    let mut pair = Pair::new();
    for round in 0..3_000 {
        let id = pair.client.send_request(&get("/"), true, ()).unwrap();
        pair.talk(usize::MAX);
        pair.server.remove(id, if round % 2 == 0 { Code::RefusedStream } else { Code::InternalError });
        let events = pair.talk(usize::MAX);
        assert!(matches!(&events[..], [(false, Event::Reset { by_peer: true, .. })]), "{events:?}");
        pair.client.remove(id, Code::Cancel);
    }
    assert!(pair.client.has_room());
}

/// (28) An upload that is answered early is still on its way.
#[test]
fn late_frames_of_uploads_that_were_answered_early_cost_the_connection_nothing() {
    let mut pair = Pair::new();
    for _ in 0..200 {
        let id = pair.client.send_request(&get("/"), false, ()).unwrap();
        pair.talk(usize::MAX);
        pair.server.send_response(id, &ok(), true).unwrap();
        pair.server.remove(id, Code::NoError);
        for _ in 0..100 {
            pair.client.send_data(id, &mut Bytes::from_static(b"small"), false).unwrap();
        }
        pair.talk(usize::MAX);
        pair.client.remove(id, Code::Cancel);
        pair.talk(usize::MAX);
    }
    assert_eq!(pair.server.shutdown, Shutdown::No);
    // One that never stops is no upload.
    let id = pair.client.send_request(&get("/"), false, ()).unwrap();
    pair.talk(usize::MAX);
    pair.server.remove(id, Code::NoError);
    let frame = [&FrameHeader { len: 1, kind: DATA, flags: 0, id }.bytes()[..], b"x"].concat();
    let flood = pair.server.receive(&mut BytesMut::from(&frame.repeat(3_000)[..]));
    assert_eq!(flood.unwrap_err().code, Code::EnhanceYourCalm);
}

/// (28)
#[test]
fn empty_frames_beside_useful_ones_are_no_flood() {
    let mut pair = Pair::new();
    let id = pair.client.send_request(&get("/"), false, ()).unwrap();
    pair.talk(usize::MAX);
    let frames = [
        &FrameHeader { len: 0, kind: DATA, flags: 0, id }.bytes()[..],
        &FrameHeader { len: 1, kind: DATA, flags: 0, id }.bytes(),
        b"x",
    ];
    let mut input = BytesMut::from(&frames.concat().repeat(10_000)[..]);
    let mut got = 0;
    while pair.server.receive(&mut input).unwrap().is_some() {
        got += 1;
    }
    assert_eq!(got, 10_000);
}
