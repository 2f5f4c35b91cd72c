//! Tests of HTTP/1: every rule of the parser, round trips of heads, bodies in any pieces, hostile bytes.

use bytes::BytesMut;
use proptest::prelude::*;

use super::*;
use crate::{
    fields::{Fields, Name},
    head::{Request, Response, Version},
};

fn request(text: impl AsRef<[u8]>) -> Result<Option<ParsedRequest>, Error> {
    parse_request(&mut BytesMut::from(text.as_ref()), &Limits::default())
}

fn response(text: impl AsRef<[u8]>, method: &str) -> Result<Option<ParsedResponse>, Error> {
    parse_response(&mut BytesMut::from(text.as_ref()), &Limits::default(), method)
}

/// Status of a request with these fields: 0 if it is accepted, 1 if it is incomplete.
fn status_with(fields: &str) -> u16 {
    status(format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n"))
}

fn status(text: impl AsRef<[u8]>) -> u16 {
    match request(text) {
        Ok(Some(_)) => 0,
        Ok(None) => 1,
        Err(error) => error.status(),
    }
}

#[test]
fn a_head_is_parsed_unchanged_and_removed() {
    let mut buffer = BytesMut::from("\r\nGET /a?b HTTP/1.1\r\nX-One: 1 \r\nHOST: A.example:80\r\nx-ONE:\r\n\r\nrest");
    let read = parse_request(&mut buffer, &Limits::default()).unwrap().unwrap();
    assert_eq!((read.head.method(), read.head.target(), read.head.authority()), ("GET", "/a?b", Some("A.example:80")));
    assert_eq!(format!("{:?}", read.head.fields), "[X-One: 1, x-ONE: ]");
    assert_eq!((read.framing, read.keep_alive, read.expects_continue), (Framing::None, true, false));
    assert_eq!(&buffer[..], b"rest");
}

#[test]
fn smuggling_vectors_are_rejected() {
    for (fields, expected) in [
        ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", 400),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", 400),
        ("Content-Length: 5\r\nContent-Length: 5\r\n", 400),
        ("Content-Length: 5\r\nContent-Length: 6\r\n", 400),
        ("Content-Length: 5, 5\r\n", 400),
        ("Content-Length: +5\r\n", 400),
        ("Content-Length: -5\r\n", 400),
        ("Content-Length: 0x5\r\n", 400),
        ("Content-Length: 5 5\r\n", 400),
        ("Content-Length: \r\n", 400),
        ("Content-Length: 18446744073709551616\r\n", 400),
        ("Content-Length: 18446744073709551615\r\n", 0),
        ("Content-Length: 005\r\n", 0),
        ("Content-Length : 5\r\n", 400),
        ("Content-Length\t: 5\r\n", 400),
        ("Content_Length: 5\r\n", 0),
        ("Transfer-Encoding: chunked\r\n", 0),
        ("transfer-encoding:\t CHUNKED \r\n", 0),
        ("Transfer-Encoding: xchunked\r\n", 501),
        ("Transfer-Encoding: gzip, chunked\r\n", 501),
        ("Transfer-Encoding: identity\r\n", 501),
        ("Transfer-Encoding: \"chunked\"\r\n", 501),
        ("Transfer-Encoding: chunked;a=b\r\n", 501),
        ("Transfer-Encoding: chunked, identity\r\n", 400),
        ("Transfer-Encoding: chunked, chunked\r\n", 400),
        ("Transfer-Encoding: chunked,\r\n", 400),
        ("Transfer-Encoding: ,chunked\r\n", 400),
        ("Transfer-Encoding:\r\n", 400),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", 400),
        ("Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n", 501),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", 400),
        ("Transfer-Encoding : chunked\r\n", 400),
        (" Transfer-Encoding: chunked\r\n", 400),
        ("X: y\r\n Transfer-Encoding: chunked\r\n", 400),
        ("X: y\r\n\tfolded\r\n", 400),
        ("X: y\nTransfer-Encoding: chunked\r\n", 400),
        ("X: y\rTransfer-Encoding: chunked\r\n", 400),
        ("X: y\r\r\n", 400),
        ("Transfer-Encoding:\u{b}chunked\r\n", 400),
        ("Transfer-Encoding: chunked\u{c}\r\n", 400),
        ("Transfer-Encoding: chunked\0\r\n", 400),
        ("Transfer\0-Encoding: chunked\r\n", 400),
        (": chunked\r\n", 400),
        ("chunked\r\n", 400),
        ("X\r\n: y\r\n", 400),
        ("Expect: 100-Continue\r\n", 0),
        ("Expect: 200-ok\r\n", 417),
        ("Host: a\r\n", 400),
        ("Host: b\r\n", 400),
    ] {
        assert_eq!(status_with(fields), expected, "{fields:?}");
    }
    assert_eq!(status("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), 400);
}

#[test]
fn request_lines_are_checked() {
    for (line, expected) in [
        ("GET / HTTP/1.1", 0),
        ("GET / HTTP/1.2", 505),
        ("GET / HTTP/2.0", 505),
        ("PRI * HTTP/2.0", 505),
        ("GET / HTTP/0.9", 505),
        ("GET / http/1.1", 400),
        ("GET / HTTP/1.1 ", 400),
        ("GET / HTTP/11", 400),
        ("GET /", 400),
        ("GET  / HTTP/1.1", 400),
        ("GET /  HTTP/1.1", 400),
        ("GET\t/ HTTP/1.1", 400),
        (" GET / HTTP/1.1", 400),
        ("G(T / HTTP/1.1", 400),
        ("GET /a b HTTP/1.1", 400),
        ("GET /a#b HTTP/1.1", 400),
        ("GET /a\0 HTTP/1.1", 400),
        ("GET /a\u{7f} HTTP/1.1", 400),
        ("GET a HTTP/1.1", 400),
        ("GET * HTTP/1.1", 400),
        ("OPTIONS * HTTP/1.1", 0),
        ("OPTIONS *a HTTP/1.1", 400),
        ("CONNECT a:443 HTTP/1.1", 400),
        ("CONNECT a HTTP/1.1", 400),
        ("CONNECT / HTTP/1.1", 400),
        ("GET ftp://a/ HTTP/1.1", 400),
        ("GET http:///x HTTP/1.1", 400),
        ("GET http://u@a/ HTTP/1.1", 400),
        ("GET http://b/ HTTP/1.1", 400),
        ("GET http://A:80/ HTTP/1.1", 0),
        ("GET http://a:81/ HTTP/1.1", 400),
        ("GET http://a:443/ HTTP/1.1", 400),
        ("GET HTTPS://a:443/ HTTP/1.1", 0),
    ] {
        assert_eq!(status(format!("{line}\r\nHost: a\r\n\r\n")), expected, "{line:?}");
    }
    for (text, expected) in [
        ("\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("\r\n\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 0),
        ("\r\n\r\n\r\n\r\n\r\n", 400),
        ("GET / HTTP/1.1\nHost: a\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\n\n", 400),
        ("GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET http://a/ HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.0\r\n\r\n", 0),
        ("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 0),
        ("CONNECT [::1] HTTP/1.0\r\n\r\n", 400),
    ] {
        assert_eq!(status(text), expected, "{text:?}");
    }
    for host in ["", "a, b", "u@a", "a/b", "a b", "a:b", "[::1"] {
        assert_eq!(status(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")), 400, "{host:?}");
    }
}

#[test]
fn targets_become_paths() {
    for (method, target, path) in [
        ("GET", "http://a", "/"),
        ("OPTIONS", "http://a", "*"),
        ("GET", "http://a?q", "/?q"),
        ("GET", "http://a:80/x?y", "/x?y"),
        ("GET", "/x?u=http://b/", "/x?u=http://b/"),
        ("GET", "//b/x", "//b/x"),
    ] {
        let read = request(format!("{method} {target} HTTP/1.1\r\nHost: a\r\n\r\n")).unwrap().unwrap();
        assert_eq!((read.head.target(), read.head.host()), (path, "a"), "{target}");
    }
}

#[test]
fn every_byte_of_names_and_values_is_checked() {
    // At each position in the SIMD vectors that `httparse` scans.
    for byte in 0..=255_u8 {
        for offset in [0, 1, 7, 15, 16, 31, 32, 40] {
            let with = |before: &str, after: &str| {
                let mut text = format!("GET / HTTP/1.1\r\nHost: a\r\n{before}{}", "y".repeat(offset)).into_bytes();
                text.push(byte);
                text.extend_from_slice(format!("{}{after}\r\n\r\n", "y".repeat(40)).as_bytes());
                status(text)
            };
            let good = if crate::head::is_value(byte) { 0 } else { 400 };
            assert_eq!(with("X: z", ""), good, "value {byte} at {offset}");
            let good = if crate::head::is_token(byte) || (byte == b':' && offset > 0) { 0 } else { 400 };
            assert_eq!(with("", ": v"), good, "name {byte} at {offset}");
        }
    }
}

#[test]
fn limits_have_their_own_statuses() {
    let fields = |count: usize| (0..count).map(|i| format!("x-{i}: 1\r\n")).collect::<String>();
    let reserved = |count: usize| (0..count).map(|i| format!("weft-{i}: 1\r\n")).collect::<String>();
    for (fields, expected) in [
        (fields(31), 0),
        (fields(99), 0),
        (fields(101), 431),
        (fields(200), 431),
        (fields(99) + &reserved(20), 0),
        (reserved(128), 431),
        (format!("x: {}\r\n", "a".repeat(15 * 1024)), 0),
        (format!("x: {}\r\n", "a".repeat(17 * 1024)), 431),
    ] {
        assert_eq!(status_with(&fields), expected, "{} bytes", fields.len());
    }
    let long = |len: usize| format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(len));
    assert_eq!(status(long(7 * 1024)), 0);
    assert_eq!(status(long(9 * 1024)), 414);
    assert_eq!(status(long(90 * 1024)), 414);
    assert_eq!(status(format!("GET /{}", "a".repeat(9 * 1024))), 414, "before its line ends");
    assert_eq!(status(format!("GET / HTTP/1.1\r\nx: {}", "a".repeat(17 * 1024))), 431, "before its line ends");
}

#[test]
fn connection_and_expect_are_parsed() {
    let read = |version: &str, fields: &str| {
        request(format!("POST / HTTP/{version}\r\nHost: a\r\nContent-Length: 1\r\n{fields}\r\n")).unwrap().unwrap()
    };
    for (version, fields, keep_alive) in [
        ("1.1", "", true),
        ("1.1", "Connection: x, CLOSE\r\n", false),
        ("1.0", "", false),
        ("1.0", "Connection: Keep-Alive\r\n", true),
        ("1.0", "Connection: keep-alive\r\nConnection: close\r\n", false),
    ] {
        assert_eq!(read(version, fields).keep_alive, keep_alive, "{version} {fields}");
    }
    assert!(read("1.1", "Expect: 100-continue\r\n").expects_continue);
    assert!(!read("1.0", "Expect: 100-continue\r\n").expects_continue);
    assert!(!request("GET / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n").unwrap().unwrap().expects_continue);
}

#[test]
fn responses_have_the_body_that_status_and_method_allow() {
    for (line, fields, method, framing, keep_alive) in [
        ("200 OK", "Content-Length: 3\r\n", "GET", Framing::Length(3), true),
        ("200 OK", "Content-Length: 3\r\n", "HEAD", Framing::None, true),
        ("200 OK", "Transfer-Encoding: chunked\r\n", "GET", Framing::Chunked, true),
        ("200 OK", "", "GET", Framing::UntilClose, false),
        ("304 Not Modified", "Content-Length: 3\r\n", "GET", Framing::None, true),
        ("204 No Content", "", "GET", Framing::None, true),
        ("204 No Content", "Content-Length: 3\r\n", "GET", Framing::None, false),
        ("204 No Content", "Content-Length: 0\r\n", "GET", Framing::None, true),
        ("100 Continue", "", "POST", Framing::None, true),
        ("101 Switching Protocols", "", "GET", Framing::None, true),
        ("200 OK", "", "CONNECT", Framing::None, true),
    ] {
        let read = response(format!("HTTP/1.1 {line}\r\n{fields}\r\n"), method).unwrap().unwrap();
        assert_eq!((read.framing, read.keep_alive), (framing, keep_alive), "{line} {fields} {method}");
        let kept = read.head.fields.has(Name::ContentLength);
        assert_eq!(kept, fields.starts_with("Content") && !line.starts_with("204"), "{line}");
    }
    let interim = "HTTP/1.1 103 Early Hints\r\nContent-Length: 3\r\n\r\n";
    assert_eq!(response(interim, "GET").unwrap_err().status(), 400);
}

#[test]
fn malformed_responses_are_rejected_and_reasons_kept() {
    for (line, reason) in [
        (&b"HTTP/1.1 200 Fine \xe4 thing"[..], Some(&b"Fine \xe4 thing"[..])),
        (b"HTTP/1.1 200 ", Some(b"")),
        (b"HTTP/1.1 200", Some(b"")),
        (b"HTTP/1.0 999 x\ty", Some(b"x\ty")),
        (b"HTTP/1.1 099 x", None),
        (b"HTTP/1.1 20 x", None),
        (b"HTTP/1.1 2000 x", None),
        (b"HTTP/1.1 200 a\0", None),
        (b"HTTP/1.1 200 a\rb", None),
        (b"HTTP/2.0 200 OK", None),
        (b"http/1.1 200 OK", None),
        (b"HTTP/1.1  200 OK", None),
        (b"\r\nHTTP/1.1 200 OK", None),
    ] {
        let text = [line, b"\r\nContent-Length: 0\r\n\r\n"].concat();
        let read = response(&text, "GET").ok().map(|read| read.unwrap().head.reason().unwrap().to_vec());
        assert_eq!(read.as_deref(), reason, "{}", line.escape_ascii());
    }
    for fields in [
        "Content-Length: 1\r\nContent-Length: 1\r\n",
        "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: gzip\r\n",
        "Content-Length : 1\r\n",
        "X: y\n",
        "X: y\r\n z\r\n",
    ] {
        assert!(response(format!("HTTP/1.1 200 OK\r\n{fields}\r\n"), "GET").is_err(), "{fields:?}");
    }
    assert!(response("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "GET").is_err());
}

/// A decoded body: data, trailers, whether it is complete, and the bytes after it.
type Read = (Vec<u8>, Option<Fields>, bool, Vec<u8>);

/// Decodes a body that arrives in pieces.
fn body(framing: Framing, pieces: &[&[u8]]) -> Result<Read, Error> {
    let mut decoder = BodyDecoder::new(framing);
    let (mut buffer, mut data, mut trailers) = (BytesMut::new(), Vec::new(), None);
    for piece in pieces {
        buffer.extend_from_slice(piece);
        while let Some(piece) = decoder.decode(&mut buffer, &Limits::default())? {
            match piece {
                Piece::Data(bytes) => data.extend_from_slice(&bytes),
                Piece::Trailers(fields) => trailers = Some(fields),
                Piece::End => break,
            }
        }
    }
    Ok((data, trailers, decoder.is_done(), buffer.to_vec()))
}

#[test]
fn chunks_are_checked() {
    for (text, expected) in [
        ("5\r\nhello\r\n0\r\n\r\n", Some("hello")),
        ("5;a=b\r\nhello\r\n00\r\n\r\n", Some("hello")),
        ("A ; a=\"b\"\r\n0123456789\r\n0\r\n\r\n", Some("0123456789")),
        ("0000000000000001\r\nx\r\n0\r\n\r\n", Some("x")),
        ("00000000000000001\r\nx\r\n0\r\n\r\n", None),
        ("10000000000000000\r\n", None),
        ("0x5\r\nhello\r\n0\r\n\r\n", None),
        ("+5\r\nhello\r\n0\r\n\r\n", None),
        (" 5\r\nhello\r\n0\r\n\r\n", None),
        ("5 \r\nhello\r\n0\r\n\r\n", None),
        ("\r\nhello\r\n", None),
        (";\r\n", None),
        ("5\nhello\r\n0\r\n\r\n", None),
        ("5;a\nb\r\nhello\r\n0\r\n\r\n", None),
        ("5;a\rb\r\nhello\r\n0\r\n\r\n", None),
        ("5\r\nhellox\r\n0\r\n\r\n", None),
        ("5\r\nhello\n0\r\n\r\n", None),
        ("5\r\nhello0\r\n\r\n", None),
        ("0\r\nx\r\n\r\n", None),
        ("0\r\nx : y\r\n\r\n", None),
        ("0\r\nx: y\n\n", None),
        ("0\r\nx: \0\r\n\r\n", None),
    ] {
        let read = body(Framing::Chunked, &[text.as_bytes()]);
        let data = read.ok().map(|(data, _, done, left)| {
            assert!(done && left.is_empty(), "{text:?}");
            String::from_utf8(data).unwrap()
        });
        assert_eq!(data.as_deref(), expected, "{text:?}");
    }
    let extension = |len: usize| format!("1;{}\r\nx\r\n", "a".repeat(len - 1));
    assert!(body(Framing::Chunked, &[extension(256).as_bytes()]).is_ok());
    assert!(body(Framing::Chunked, &[extension(257).as_bytes()]).is_err());
    assert!(body(Framing::Chunked, &[extension(200).repeat(100).as_bytes()]).is_err(), "all together");
    assert!(body(Framing::Chunked, &["f".repeat(300).as_bytes()]).is_err(), "no end of line");
    let many = |count: usize| format!("0\r\n{}\r\n", "x: y\r\n".repeat(count));
    assert_eq!(body(Framing::Chunked, &[many(100).as_bytes()]).unwrap().1.unwrap().len(), 100);
    assert_eq!(body(Framing::Chunked, &[many(101).as_bytes()]), Err(Error::TrailersTooLarge(Excess::Fields(100))));
    assert_eq!(
        body(Framing::Chunked, &[format!("0\r\nx: {}", "a".repeat(17 * 1024)).as_bytes()]),
        Err(Error::TrailersTooLarge(Excess::Bytes(16 * 1024)))
    );
}

#[test]
fn trailers_with_control_fields_are_dropped() {
    let text =
        b"0\r\nX-Sum: 1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\nHost: b\r\nTE: x\r\nTrailer: y\r\n\
                 Connection: close\r\nAuthorization: z\r\ngrpc-status: 0\r\n\r\nnext";
    let (_, trailers, done, left) = body(Framing::Chunked, &[text]).unwrap();
    assert_eq!(format!("{:?}", trailers.unwrap()), "[X-Sum: 1, grpc-status: 0]");
    assert!(done && left == b"next");
    let mut out = Vec::new();
    let fields: Fields = [("X-Sum", "1"), ("content-length", "5")].into_iter().collect();
    write_last_chunk(Some(&fields), &mut out);
    assert_eq!(out, b"0\r\nX-Sum: 1\r\n\r\n");
}

#[test]
fn ends_of_bodies_are_detected() {
    let mut decoder = BodyDecoder::new(Framing::Length(3));
    assert_eq!((decoder.remaining(), decoder.is_done()), (Some(3), false));
    let mut buffer = BytesMut::from("ab");
    assert_eq!(decoder.decode(&mut buffer, &Limits::default()), Ok(Some(Piece::Data("ab".into()))));
    assert_eq!(decoder.remaining(), Some(1));
    assert_eq!(decoder.end_of_stream(), Err(Error::Truncated));
    assert_eq!(BodyDecoder::new(Framing::Chunked).end_of_stream(), Err(Error::Truncated));
    let mut until = BodyDecoder::new(Framing::UntilClose);
    assert!(!until.is_done() && until.end_of_stream().is_ok() && until.is_done());
    assert!(BodyDecoder::new(Framing::None).is_done() && BodyDecoder::new(Framing::Length(0)).is_done());
}

#[test]
fn hop_by_hop_fields_are_removed() {
    let mut fields: Fields = [
        ("Connection", "close, X-Private"),
        ("X-PRIVATE", "1"),
        ("Keep-Alive", "5"),
        ("TE", "gzip"),
        ("te", "trailers"),
        ("Upgrade", "websocket"),
        ("Proxy-Connection", "x"),
        ("HTTP2-Settings", "x"),
        ("Transfer-Encoding", "chunked"),
        ("X-Public", "1"),
    ]
    .into_iter()
    .collect();
    strip_hop_by_hop(&mut fields);
    assert_eq!(format!("{fields:?}"), "[te: trailers, X-Public: 1]");
}

#[test]
fn an_upgrade_needs_both_fields_and_a_single_protocol() {
    let ask = |protocol: &str, connection: &str, version| {
        let fields: Fields = [("upgrade", protocol), ("connection", connection)].into_iter().collect();
        upgrade(&fields, version).is_some()
    };
    assert!(ask("websocket", "keep-alive, UPGRADE", Version::Http11));
    assert!(!ask("websocket", "keep-alive", Version::Http11));
    assert!(!ask("websocket", "upgrade", Version::Http10));
    for protocol in ["h2c", "H2C", "websocket, h2c", "HTTP/2.0", "", "a b"] {
        assert!(!ask(protocol, "upgrade", Version::Http11), "{protocol}");
    }
}

fn written(head: &Request, framing: Framing, connection: Connection<'_>) -> String {
    let mut out = Vec::new();
    write_request(head, framing, connection, &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn heads_are_written_with_their_framing() {
    let head = |version, fields: &[(&str, &str)]| {
        let fields = fields.iter().copied().collect();
        Request::new(version, b"GET", b"/x", Some(b"a"), fields).unwrap()
    };
    let fields = [("X", "1"), ("Content-Length", "9"), ("Cookie", "a"), ("Y", "2"), ("cookie", "b")];
    for (version, framing, connection, expected) in [
        (
            Version::Http2,
            Framing::None,
            Connection::KeepAlive,
            "1.1\r\nhost: a\r\nX: 1\r\nCookie: a; b\r\nY: 2\r\n\r\n",
        ),
        (
            Version::Http11,
            Framing::Length(3),
            Connection::Close,
            "1.1\r\nhost: a\r\nX: 1\r\nContent-Length: 3\r\nCookie: a; b\r\nY: 2\r\nconnection: close\r\n\r\n",
        ),
        (
            Version::Http11,
            Framing::Chunked,
            Connection::Upgrade(b"w"),
            "1.1\r\nhost: a\r\nX: 1\r\nCookie: a; b\r\nY: 2\r\ntransfer-encoding: chunked\r\nconnection: Upgrade\r\nupgrade: w\r\n\r\n",
        ),
        (
            Version::Http10,
            Framing::Length(0),
            Connection::KeepAlive,
            "1.0\r\nhost: a\r\nX: 1\r\nContent-Length: 0\r\nCookie: a; b\r\nY: 2\r\nconnection: keep-alive\r\n\r\n",
        ),
    ] {
        assert_eq!(written(&head(version, &fields), framing, connection), format!("GET /x HTTP/{expected}"));
    }
    let mut out = Vec::new();
    let mut answer = Response::new(Version::Http2, 200, [("content-length", "7")].into_iter().collect());
    write_response(&answer, Framing::None, Connection::KeepAlive, &mut out);
    assert_eq!(out, b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n");
    out.clear();
    answer.status = 204;
    answer.set_reason(b"Gone \xe4");
    write_response(&answer, Framing::None, Connection::KeepAlive, &mut out);
    assert_eq!(out, b"HTTP/1.1 204 Gone \xe4\r\n\r\n");
    out.clear();
    write_chunk_head(26, &mut out);
    assert_eq!(out, b"1a\r\n");
}

fn any_fields() -> impl Strategy<Value = Vec<(String, Vec<u8>)>> {
    let value = proptest::collection::vec(prop_oneof![0x21..=0x7e_u8, 0x80..=0xff_u8], 0..40);
    proptest::collection::vec(("[Xx]-[a-zA-Z0-9!#$%&'*+.^_`|~-]{0,20}", value), 0..60)
}

fn any_framing() -> impl Strategy<Value = Framing> {
    prop_oneof![Just(Framing::None), any::<u64>().prop_map(Framing::Length), Just(Framing::Chunked)]
}

proptest! {
    #[test]
    fn written_requests_are_parsed_at_every_split(
        fields in any_fields(), framing in any_framing(), path in "/[a-zA-Z0-9?&=%/ä-]{0,30}", method in "[A-Z]{1,9}", close: bool,
    ) {
        prop_assume!(method != "CONNECT");
        let fields: Fields = fields.into_iter().collect();
        let head = Request::new(Version::Http11, method.as_bytes(), path.as_bytes(), Some(b"a.example:81"), fields).unwrap();
        let mut out = Vec::new();
        write_request(&head, framing, if close { Connection::Close } else { Connection::KeepAlive }, &mut out);
        let mut buffer = BytesMut::new();
        for (i, byte) in out.iter().enumerate() {
            buffer.extend_from_slice(&[*byte]);
            let read = parse_request(&mut buffer, &Limits::default()).unwrap();
            prop_assert_eq!(read.is_some(), i + 1 == out.len());
            if let Some(mut read) = read {
                read.head.fields.retain(|field| field.known == Name::Other);
                prop_assert_eq!(&read.head.fields, &head.fields);
                prop_assert_eq!(read.head.method(), head.method());
                prop_assert_eq!(read.head.target(), head.target());
                prop_assert_eq!(read.head.authority(), head.authority());
                prop_assert_eq!((read.framing, read.keep_alive), (framing, !close));
            }
        }
        prop_assert!(buffer.is_empty());
    }

    #[test]
    fn written_responses_are_parsed(fields in any_fields(), framing in any_framing(), status in 200..=999_u16) {
        prop_assume!(status != 204 && status != 304);
        let framing = if framing == Framing::None { Framing::UntilClose } else { framing };
        let head = Response::new(Version::Http11, status, fields.into_iter().collect());
        let mut out = Vec::new();
        write_response(&head, framing, Connection::KeepAlive, &mut out);
        let mut read = response(&out, "GET").unwrap().unwrap();
        read.head.fields.retain(|field| field.known == Name::Other);
        prop_assert_eq!((read.head.status, read.framing, &read.head.fields), (status, framing, &head.fields));
    }

    #[test]
    fn chunks_are_decoded_at_every_split(chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..50), 0..8), cuts in proptest::collection::vec(1..9_usize, 1..20), trailer: bool) {
        let mut out = Vec::new();
        for chunk in &chunks {
            write_chunk_head(chunk.len(), &mut out);
            out.extend_from_slice(chunk);
            out.extend_from_slice(b"\r\n");
        }
        let trailers: Fields = [("X-Sum", "1")].into_iter().collect();
        write_last_chunk(trailer.then_some(&trailers), &mut out);
        out.extend_from_slice(b"next");
        let (mut pieces, mut rest, mut cuts) = (Vec::new(), &out[..], cuts.iter().cycle());
        while !rest.is_empty() {
            let (piece, more) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
            pieces.push(piece);
            rest = more;
        }
        let read = body(Framing::Chunked, &pieces).unwrap();
        prop_assert_eq!(read, (chunks.concat(), trailer.then_some(trailers), true, b"next".to_vec()));
    }

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(prop_oneof![any::<u8>(), Just(b'\r'), Just(b'\n'), Just(b':'), Just(b'0')], 0..200)) {
        for start in ["", "GET ", "GET / HTTP/1.1\r\n", "GET / HTTP/1.1\r\nHost: a\r\nX:", "HTTP/1.1 200 "] {
            let text = [start.as_bytes(), &bytes, b"\r\n\r\n"].concat();
            request(&text).ok();
            response(&text, "GET").ok();
        }
        for framing in [Framing::Chunked, Framing::Length(50), Framing::UntilClose] {
            body(framing, &[&bytes]).ok();
            body(framing, &[b"1\r\nx\r\n0\r\n", &bytes]).ok();
        }
    }
}

const SMALL: &str = "GET /index.html HTTP/1.1\r\nHost: 10.0.0.1:8080\r\nUser-Agent: wrk/4.2\r\nAccept: */*\r\n\r\n";
const BROWSER: &str = "GET /shop/products?id=42&page=3 HTTP/1.1\r\nHost: shop.example.com\r\nConnection: keep-alive\r\n\
    Cache-Control: max-age=0\r\nsec-ch-ua: \"Chromium\";v=\"130\", \"Not?A_Brand\";v=\"99\"\r\nsec-ch-ua-mobile: ?0\r\n\
    sec-ch-ua-platform: \"Linux\"\r\nUpgrade-Insecure-Requests: 1\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0.0.0 Safari/537.36\r\n\
    Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8\r\n\
    Sec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: navigate\r\nReferer: https://shop.example.com/\r\n\
    Accept-Encoding: gzip, deflate, br, zstd\r\nAccept-Language: en-GB,en;q=0.9\r\n\
    Cookie: session=0123456789abcdef0123456789abcdef; theme=dark\r\n\r\n";

#[test]
#[ignore = "slow: measures; run with --profile profiling"]
#[expect(clippy::disallowed_methods, reason = "it measures this machine's time")]
fn times_of_reading_and_writing() {
    const TIMES: u32 = 300_000;
    for (name, text) in [("small", SMALL), ("browser", BROWSER)] {
        let head = request(text).unwrap().unwrap().head;
        let (mut buffer, mut out) = (BytesMut::with_capacity(4096), Vec::with_capacity(4096));
        for _ in 0..3 {
            let started = std::time::Instant::now();
            for _ in 0..TIMES {
                buffer.clear();
                buffer.reserve(2048);
                buffer.extend_from_slice(text.as_bytes());
                std::hint::black_box(parse_request(&mut buffer, &Limits::default())).unwrap();
            }
            let read = started.elapsed() / TIMES;
            let started = std::time::Instant::now();
            for _ in 0..TIMES {
                out.clear();
                write_request(std::hint::black_box(&head), Framing::None, Connection::KeepAlive, &mut out);
                std::hint::black_box(&out);
            }
            println!("{name}: {} bytes, {read:?} to read, {:?} to write", text.len(), started.elapsed() / TIMES);
        }
    }
}
