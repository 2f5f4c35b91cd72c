//! Streams that are not read, beside others (RFC 9113 §5.2).

use super::*;
use crate::http2::stream::Blocked;

const MIB: usize = 1024 * 1024;

/// Opens uploads that send as much as they may and are not consumed. Returns their streams.
fn stall(pair: &mut Pair, count: usize) -> Vec<StreamId> {
    let body = Bytes::from(vec![7; 64 * MIB]);
    let mut uploads: Vec<(StreamId, Bytes)> =
        (0..count).map(|_| (pair.client.send_request(&get("/"), false, ()).unwrap(), body.clone())).collect();
    loop {
        let before: usize = uploads.iter().map(|(_, left)| left.len()).sum();
        for (id, left) in &mut uploads {
            assert!(!pair.client.send_data(*id, left, true).unwrap());
        }
        pair.talk(usize::MAX);
        if before == uploads.iter().map(|(_, left)| left.len()).sum() {
            return uploads.into_iter().map(|(id, _)| id).collect();
        }
    }
}

/// Data that arrived on a stream and was not consumed.
fn held(connection: &Connection<()>) -> i64 {
    let held = connection
        .streams
        .values()
        .map(|stream| i64::from(stream.window) - i64::from(stream.unreturned) - stream.receive_window);
    held.sum()
}

/// (1)
#[test]
fn uploads_that_are_not_read_hold_a_window_each_and_no_other_stream() {
    for count in [1, 4, 5, 8, 20, 99] {
        let mut pair = Pair::new();
        let stalled = stall(&mut pair, count);
        assert_eq!(held(&pair.server), count as i64 * i64::from(CONFIG.stream_window), "{count}");
        let id = pair.client.send_request(&get("/"), false, ()).unwrap();
        assert_eq!(upload(&mut pair, id, &mut Bytes::from(vec![7; 5 * MIB]), 50_000), 5 * MIB, "{count}");
        // They cost nothing at each write: none is in a list.
        assert!(pair.client.blocked.is_empty() && pair.client.starved.is_empty());
        assert!(stalled.iter().all(|id| pair.client.streams[id].blocked == Blocked::Stream));
        // Once they are read, all of them go on.
        for id in stalled {
            pair.server.consumed(id, CONFIG.stream_window as usize);
        }
        let writable =
            pair.talk(usize::MAX).iter().filter(|event| matches!(event, (false, Event::Writable { .. }))).count();
        assert_eq!(writable, count);
    }
}

/// (1)
#[test]
fn windows_grow_where_data_is_consumed_quickly_and_together_by_a_bound() {
    let mut pair = Pair::new();
    let body = Bytes::from(vec![7; 64 * MIB]);
    let mut uploads: Vec<(StreamId, Bytes)> =
        (0..100).map(|_| (pair.client.send_request(&get("/"), false, ()).unwrap(), body.clone())).collect();
    // Every one is read for a while, and then none.
    for reads in [true, true, true, true, true, false, false, false, false, false] {
        for (id, left) in &mut uploads {
            assert!(!pair.client.send_data(*id, left, true).unwrap());
            for (_, event) in pair.talk(usize::MAX) {
                if let Event::Data { id, data, .. } = event
                    && reads
                {
                    pair.server.consumed(id, data.len());
                }
            }
        }
        let windows: u64 = pair.server.streams.values().map(|stream| u64::from(stream.window)).sum();
        let granted = u64::from(CONFIG.growth - pair.server.growth);
        assert_eq!(windows, 100 * u64::from(CONFIG.stream_window) + granted);
        assert!(pair.server.streams.values().all(|stream| stream.window <= CONFIG.grown_window));
    }
    assert!(pair.server.growth < CONFIG.growth / 10, "{} are left", pair.server.growth);
    let most = 100 * i64::from(CONFIG.stream_window) + i64::from(CONFIG.growth);
    assert!((most / 2..=most).contains(&held(&pair.server)), "{}", held(&pair.server));
    // What ends gives back what it took.
    for (id, _) in &uploads {
        pair.server.remove(*id, Code::Cancel);
    }
    assert_eq!(pair.server.growth, CONFIG.growth);
}

/// (1)
#[test]
fn a_window_that_is_not_used_quickly_any_more_shrinks() {
    let mut pair = Pair::new();
    let id = pair.client.send_request(&get("/"), false, ()).unwrap();
    let send = |pair: &mut Pair, size: usize| {
        let mut left = Bytes::from(vec![7; size]);
        while !pair.client.send_data(id, &mut left, false).unwrap() || !left.is_empty() {
            for (_, event) in pair.talk(usize::MAX) {
                if let Event::Data { id, data, .. } = event {
                    pair.server.consumed(id, data.len());
                }
            }
        }
        for (_, event) in pair.talk(usize::MAX) {
            if let Event::Data { id, data, .. } = event {
                pair.server.consumed(id, data.len());
            }
        }
        pair.server.streams[&id].window
    };
    assert_eq!(send(&mut pair, 3 * MIB), CONFIG.grown_window);
    for _ in 0..40 {
        for _ in 0..10 {
            pair.server.tick();
        }
        send(&mut pair, 100_000);
    }
    assert_eq!(pair.server.streams[&id].window, CONFIG.stream_window);
    assert_eq!(pair.server.growth, CONFIG.growth);
    assert_eq!(send(&mut pair, 3 * MIB), CONFIG.grown_window);
}

/// (1)
#[test]
fn a_body_whose_rest_fits_into_the_window_costs_no_credit() {
    let mut pair = Pair::new();
    let length = |size: usize| {
        let fields = [("content-length", size.to_string().as_str())].into_iter().collect();
        Request::new(Version::Http2, b"POST", b"/", Some(b"shop"), fields).unwrap()
    };
    for (size, updates) in [(200_000, 0), (1_000_000, 1)] {
        let id = pair.client.send_request(&length(size), false, ()).unwrap();
        let before = pair.client.streams[&id].send_window;
        let mut credits = 0;
        let (mut left, mut window) = (Bytes::from(vec![7; size]), before);
        loop {
            let queued = left.len();
            let done = pair.client.send_data(id, &mut left, true).unwrap();
            window -= (queued - left.len()) as i64;
            for (_, event) in pair.talk(usize::MAX) {
                if let Event::Data { id, data, .. } = event {
                    pair.server.consumed(id, data.len());
                }
            }
            pair.talk(usize::MAX);
            if pair.client.streams[&id].send_window != window {
                (window, credits) = (pair.client.streams[&id].send_window, credits + 1);
            }
            if done {
                break;
            }
        }
        assert_eq!(credits, updates, "{size}");
        pair.server.remove(id, Code::NoError);
        pair.client.remove(id, Code::NoError);
    }
}

/// (32)
#[test]
fn a_stream_is_stalled_after_ticks_in_which_its_data_waits_and_none_is_taken() {
    let mut pair = Pair::new();
    let limit = |taken: bool| if taken { 20 } else { 5 };
    let silent = pair.client.send_request(&get("/"), false, ()).unwrap();
    let [unread] = stall(&mut pair, 1)[..] else { unreachable!() };
    let [paused] = stall(&mut pair, 1)[..] else { unreachable!() };
    // One has been read from before.
    pair.server.consumed(paused, CONFIG.stream_window as usize);
    pair.talk(usize::MAX);
    let mut left = Bytes::from(vec![7; 4 * MIB]);
    let mut before = 0;
    while std::mem::replace(&mut before, left.len()) != left.len() {
        assert!(!pair.client.send_data(paused, &mut left, true).unwrap());
        pair.talk(usize::MAX);
    }
    for tick in 0..25 {
        let expected = match tick {
            0..5 => vec![],
            5..20 => vec![unread],
            _ => vec![unread, paused],
        };
        let mut stalled = pair.client.stalled(limit);
        stalled.sort_unstable();
        assert_eq!(stalled, expected, "tick {tick}");
        pair.client.tick();
    }
    // A byte that moves starts the time anew.
    pair.server.consumed(unread, CONFIG.stream_window as usize);
    pair.talk(usize::MAX);
    assert!(!pair.client.send_data(unread, &mut left, true).unwrap());
    assert_eq!(pair.client.stalled(limit), [paused]);
    // An answer that has begun says that the rest of the request need not be read.
    pair.server.send_response(paused, &ok(), false).unwrap();
    pair.talk(usize::MAX);
    assert!(pair.client.stalled(limit).is_empty());
    assert!(pair.client.streams.contains_key(&silent));
}

/// (1)
#[test]
fn a_peer_that_holds_back_the_credit_of_its_connection_clogs_it() {
    let mut client = Connection::<()>::new(Role::Client, CONFIG);
    let mut wire = BytesMut::new();
    wire.extend_from_slice(&FrameHeader { len: 0, kind: SETTINGS, flags: 0, id: 0 }.bytes());
    client.receive(&mut wire).unwrap();
    assert!(client.has_settings());
    client.tick();
    assert!(!client.is_clogged());
    let id = client.send_request(&get("/"), false, ()).unwrap();
    assert!(client.send_data(id, &mut Bytes::from(vec![7; 50_000]), false).unwrap());
    assert!(!client.is_clogged());
    client.tick();
    assert!(client.is_clogged());
    wire.extend_from_slice(&FrameHeader { len: 4, kind: WINDOW_UPDATE, flags: 0, id: 0 }.bytes());
    wire.extend_from_slice(&40_000u32.to_be_bytes());
    client.receive(&mut wire).unwrap();
    client.tick();
    client.tick();
    assert!(!client.is_clogged());
    let other = client.send_request(&get("/"), false, ()).unwrap();
    assert!(client.send_data(other, &mut Bytes::from(vec![7; 55_000]), false).unwrap());
    assert!(client.is_clogged(), "at once when nothing is left");
}

/// (32)
#[test]
fn a_reader_that_takes_little_gives_credit_within_a_tick() {
    let mut pair = Pair::new();
    let [id] = stall(&mut pair, 1)[..] else { unreachable!() };
    pair.server.consumed(id, 1);
    assert!(pair.talk(usize::MAX).is_empty());
    pair.server.tick();
    let events = pair.talk(usize::MAX);
    assert!(matches!(events[..], [(false, Event::Writable { .. })]), "{events:?}");
    assert!(pair.client.streams[&id].taken);
}
