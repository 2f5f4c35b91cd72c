//! Frames on streams that have ended or were never opened, and other cases of h2spec that once failed.

use super::*;

/// A block with the four pseudo-header fields of `GET /`.
const BLOCK: &[u8] = &[0x82, 0x84, 0x86, 0x41, 1, b'a'];
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;

/// What the server sends back to `frames`, one after the other: the kinds and codes of RST_STREAM and GOAWAY. Requests are answered
/// and removed where `answers`.
fn sent(frames: &[(u8, u8, StreamId, &[u8])], answers: bool) -> Vec<(u8, u32)> {
    let mut pair = Pair::new();
    for (kind, flags, id, payload) in frames {
        let wire = &mut pair.wires[0];
        wire.extend_from_slice(&FrameHeader { len: payload.len(), kind: *kind, flags: *flags, id: *id }.bytes());
        wire.extend_from_slice(payload);
        loop {
            match pair.server.receive(wire) {
                Ok(Some(Event::Request { id, .. })) if answers => {
                    pair.server.send_response(id, &ok(), true).unwrap();
                    pair.server.remove(id, Code::NoError);
                }
                Ok(Some(Event::Reset { id, .. })) => drop(pair.server.remove(id, Code::Cancel)),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => break,
            }
        }
    }
    let mut out = BytesMut::new();
    carry(&mut pair.server, &mut out, usize::MAX);
    let mut seen = Vec::new();
    while let Some(header) = FrameHeader::read(&out) {
        let frame = out.split_to(9 + header.len);
        let code = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().unwrap());
        match header.kind {
            RST_STREAM => seen.push((RST_STREAM, code(9))),
            7 => seen.push((7, code(13))),
            _ => {}
        }
    }
    seen
}

/// (36, 38)
#[test]
fn frames_on_streams_that_the_peer_has_ended_or_skipped_are_answered_as_rfc_9113_says() {
    const GOAWAY: u8 = 7;
    let (open, request, more) = ((HEADERS, 0x4, 1, BLOCK), (HEADERS, 0x5, 1, BLOCK), (DATA, 0, 1, &b"x"[..]));
    let reset = (RST_STREAM, 0, 1, &[0, 0, 0, 8][..]);
    // DATA and HEADERS after the peer's RST_STREAM.
    assert_eq!(sent(&[open, reset, more], false), [(RST_STREAM, 5)]);
    assert_eq!(sent(&[open, reset, request], false), [(RST_STREAM, 5)]);
    // After both sides have ended the stream.
    assert_eq!(sent(&[request, more], true), [(RST_STREAM, 5)]);
    assert_eq!(sent(&[request, request], true), [(GOAWAY, 5)]);
    // After the peer's END_STREAM only.
    assert_eq!(sent(&[request, more], false), [(RST_STREAM, 5)]);
    assert_eq!(sent(&[request, request], false), [(RST_STREAM, 5)]);
    // What was in flight when the server ended the stream.
    assert_eq!(sent(&[open, more, (HEADERS, 0x5, 1, &[0, 1, b'x', 1, b'y'])], true), [(RST_STREAM, 0)]);
    // A stream below the last one that was never opened.
    assert_eq!(sent(&[(HEADERS, 0x5, 5, BLOCK), (HEADERS, 0x5, 3, BLOCK)], true), [(GOAWAY, 1)]);
    assert_eq!(
        sent(&[(HEADERS, 0x5, 5, BLOCK), (RST_STREAM, 0, 3, &[0, 0, 0, 8])], true),
        [],
        "it is closed, not idle"
    );
    assert_eq!(sent(&[(HEADERS, 0x5, 5, BLOCK), (HEADERS, 0x5, 7, BLOCK)], true), []);
}

/// (38)
#[test]
fn malformed_requests_of_h2spec_are_reset() {
    let depends_on_itself = [&[0, 0, 0, 1, 200][..], BLOCK].concat();
    assert_eq!(sent(&[(HEADERS, 0x25, 1, &depends_on_itself)], false), [(RST_STREAM, 1)]);
    let other = [&[0, 0, 0, 3, 200][..], BLOCK].concat();
    assert_eq!(sent(&[(HEADERS, 0x25, 1, &other)], true), []);
    // RFC 9113 §5.3.2: ignored.
    assert_eq!(sent(&[(PRIORITY, 0, 1, &[0, 0, 0, 1, 200])], true), []);
    let empty_path = [0x82, 0x86, 0x41, 1, b'a', 0x04, 0];
    assert_eq!(sent(&[(HEADERS, 0x5, 1, &empty_path)], false), [(RST_STREAM, 1)]);
}
