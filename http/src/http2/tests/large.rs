//! Sections above a limit: errors of their messages only.

use super::*;
use crate::head::Excess;

fn padded(size: usize) -> Fields {
    [("x-pad", "p".repeat(size).as_str()), ("x-after", "1")].into_iter().collect()
}

/// (2)
#[test]
fn a_section_above_the_limit_is_the_error_of_its_message_and_the_tables_of_hpack_stay_equal() {
    for size in [17_000, 30_000, 60_000, 200_000] {
        let mut pair = Pair::new();
        let other = pair.client.send_request(&get("/other"), true, ()).unwrap();
        pair.talk(usize::MAX);
        // The head of a request.
        let head = Request::new(Version::Http2, b"GET", b"/", Some(b"shop"), padded(size)).unwrap();
        let id = pair.client.send_request(&head, true, ()).unwrap();
        let events = pair.talk(usize::MAX);
        let reason = BadRequest::TooLarge(Excess::Bytes(CONFIG.max_head));
        assert!(
            matches!(&events[..], [(true, Event::BadRequest { id: bad, reason: told })] if *bad == id && *told == reason)
        );
        pair.server.send_response(id, &ok(), true).unwrap();
        assert!(matches!(&pair.talk(usize::MAX)[..], [(false, Event::Response { .. })]));
        // The trailers of a request: it is complete without them.
        let id = pair.client.send_request(&get("/"), false, ()).unwrap();
        pair.client.send_trailers(id, &padded(size)).unwrap();
        let events = pair.talk(usize::MAX);
        assert!(matches!(&events[..], [_, (true, Event::TooLarge { trailers: true, .. })]), "{events:?}");
        pair.server.send_response(id, &ok(), true).unwrap();
        assert!(matches!(&pair.talk(usize::MAX)[..], [(false, Event::Response { .. })]));
        // The head and the trailers of an answer.
        for trailers in [false, true] {
            let id = pair.client.send_request(&get("/"), true, ()).unwrap();
            pair.talk(usize::MAX);
            if trailers {
                pair.server.send_response(id, &ok(), false).unwrap();
                pair.server.send_trailers(id, &padded(size)).unwrap();
            } else {
                pair.server.send_response(id, &Response::new(Version::Http2, 200, padded(size)), false).unwrap();
            }
            let events = pair.talk(usize::MAX);
            let told = |event: &(bool, Event)| matches!(event, (false, Event::TooLarge { trailers: told, .. }) if *told == trailers);
            assert!(events.iter().any(told), "{size} {trailers}: {events:?}");
        }
        // The stream beside them lives, and the tables are in step.
        let fields = [("x-new", "value"), ("x-after", "1")].into_iter().collect();
        pair.server.send_response(other, &Response::new(Version::Http2, 200, fields), true).unwrap();
        let events = pair.talk(usize::MAX);
        let [(false, Event::Response { head, .. })] = &events[..] else { panic!("{events:?}") };
        assert_eq!(head.fields.len(), 2);
        assert_eq!(pair.client.open, 0);
    }
}

/// (2) Past a hard limit it is the error of the connection.
#[test]
fn a_section_that_never_ends_is_cut() {
    for part in [0, 200, 16_384] {
        let mut pair = Pair::new();
        let mut input = BytesMut::from(&FrameHeader { len: 0, kind: 1, flags: 0, id: 1 }.bytes()[..]);
        let mut frames = 0;
        let error = loop {
            match pair.server.receive(&mut input) {
                Ok(_) => {}
                Err(error) => break error,
            }
            input.extend_from_slice(&FrameHeader { len: part, kind: 9, flags: 0, id: 1 }.bytes());
            input.extend_from_slice(&vec![0; part]);
            frames += 1;
            assert!(frames <= 64);
        };
        assert_eq!(error.code, Code::EnhanceYourCalm);
    }
}
