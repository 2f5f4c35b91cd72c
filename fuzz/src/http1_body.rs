//! HTTP/1 bodies. The first line of the input says how the body is framed: `chunked`, `close`, or a number of bytes; the rest is
//! what arrives.
//! Oracles: the same bytes in other pieces; a naive reading of chunks; what was decoded, written in chunks and decoded again is
//! the same body.
//! Spec: RFC 9112 §6, §7.1.

use bytes::BytesMut;
use weft_http::{
    fields::Fields,
    http1::{BodyDecoder, Error, Framing, Limits, Piece, write_chunk_head, write_last_chunk},
};

use crate::{cuts, lines, must};

/// The limits of the run: small, so that short inputs reach them.
const LIMITS: Limits = Limits { head: 1024, fields: 10, target: 1024 };
/// Trailers that are written again are longer by a space per field.
const WRITTEN: Limits = Limits { head: LIMITS.head + LIMITS.fields, ..LIMITS };

/// Runs the target.
pub fn run(bytes: &[u8]) {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { return };
    let (first, body) = bytes.split_at(end);
    let body = body.get(1..).unwrap_or_default();
    let framing = match first {
        b"close" => Framing::UntilClose,
        b"chunked" => Framing::Chunked,
        number => match std::str::from_utf8(number).ok().and_then(|number| number.parse().ok()) {
            Some(length) => Framing::Length(length),
            None => return,
        },
    };
    let whole = decode(framing, &[body], &LIMITS);
    for pieces in cuts::ways(body) {
        let other = decode(framing, &pieces, &LIMITS);
        // Data before an error depends on the cuts only in how much of a chunk had come.
        assert_eq!((&whole.data, &whole.error), (&other.data, &other.error), "the cuts make a difference");
        assert_eq!((&whole.trailers, whole.done, &whole.rest), (&other.trailers, other.done, &other.rest));
    }
    match framing {
        Framing::Chunked => chunked(body, &whole),
        Framing::Length(length) => {
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            let (data, rest) = body.split_at_checked(length).unwrap_or((body, &[]));
            assert_eq!((&whole.data[..], &whole.rest[..], whole.done), (data, rest, body.len() >= length));
        }
        Framing::UntilClose => assert_eq!((&whole.data[..], whole.done), (body, false)),
        Framing::None => {}
    }
}

/// What came of a body.
#[derive(Debug, Default)]
struct Decoded {
    data: Vec<u8>,
    trailers: Option<Fields>,
    done: bool,
    error: Option<Error>,
    /// What is left behind its end.
    rest: Vec<u8>,
}

fn decode(framing: Framing, pieces: &[&[u8]], limits: &Limits) -> Decoded {
    let mut decoder = BodyDecoder::new(framing);
    let mut buffer = BytesMut::new();
    let mut decoded = Decoded::default();
    // The last piece is empty: a body without any bytes has an end too.
    for piece in pieces.iter().chain([&&b""[..]]) {
        buffer.extend_from_slice(piece);
        while !decoded.done && decoded.error.is_none() {
            match decoder.decode(&mut buffer, limits) {
                Ok(Some(Piece::Data(data))) => {
                    assert!(!data.is_empty(), "a piece without data");
                    decoded.data.extend_from_slice(&data);
                }
                Ok(Some(Piece::Trailers(fields))) => {
                    assert!(!fields.is_empty(), "trailers without a field");
                    decoded.trailers = Some(fields);
                    decoded.done = true;
                }
                Ok(Some(Piece::End)) => decoded.done = true,
                Ok(None) => break,
                Err(error) => decoded.error = Some(error),
            }
        }
        assert!(
            decoded.done || decoded.error.is_some() || buffer.len() <= limits.head,
            "the decoder holds back too much"
        );
    }
    if decoded.done {
        assert!(decoder.is_done(), "an end that is none");
        decoded.rest = buffer.to_vec();
    }
    if decoded.error.is_none() {
        let complete = decoded.done || framing == Framing::UntilClose || decoder.is_done();
        assert_eq!(decoder.end_of_stream().is_ok(), complete, "the end of the connection has another meaning");
    }
    decoded
}

/// Compares with a naive reading, and writes it again.
fn chunked(body: &[u8], decoded: &Decoded) {
    if !decoded.done {
        return;
    }
    let (mut data, mut rest) = (Vec::new(), body);
    loop {
        let (line, after) = line(rest);
        let (digits, _extension) = line.split_at(line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count());
        let size =
            must(usize::from_str_radix(&String::from_utf8_lossy(digits), 16), "a chunk size in hexadecimal digits");
        rest = after;
        if size == 0 {
            break;
        }
        let (chunk, after) = must(rest.split_at_checked(size).ok_or(size), "a whole chunk");
        data.extend_from_slice(chunk);
        rest = must(after.strip_prefix(b"\r\n").ok_or(after), "a CRLF behind a chunk");
    }
    assert_eq!(data, decoded.data, "the data have another reading");
    let end = rest.len() - decoded.rest.len();
    let (section, behind) = rest.split_at(end);
    assert_eq!(behind, decoded.rest, "the end has another reading");
    let (_, fields) = lines::split(section, false);
    if let Some(trailers) = &decoded.trailers {
        for field in trailers.iter() {
            assert!(
                lines::named(&fields, &String::from_utf8_lossy(field.name)).contains(&field.value),
                "{field:?} came from nowhere"
            );
        }
        for name in ["content-length", "transfer-encoding", "host", "connection", "authorization", "set-cookie", "te"] {
            assert_eq!(trailers.named(name).count(), 0, "{name} was accepted among trailers");
        }
    }

    // Written again in chunks of another size.
    let mut text = Vec::new();
    for chunk in decoded.data.chunks(1 + decoded.data.len() / 3) {
        write_chunk_head(chunk.len(), &mut text);
        text.extend_from_slice(chunk);
        text.extend_from_slice(b"\r\n");
    }
    write_last_chunk(decoded.trailers.as_ref(), &mut text);
    let again = decode(Framing::Chunked, &[&text], &WRITTEN);
    assert_eq!((&again.data, &again.trailers, again.done), (&decoded.data, &decoded.trailers, true));
    assert!(again.rest.is_empty(), "a written body has two readings");
}

/// The first line, and what is behind its CRLF.
fn line(bytes: &[u8]) -> (&[u8], &[u8]) {
    let end = must(bytes.iter().position(|byte| *byte == b'\n').ok_or(bytes), "a whole line");
    let (line, rest) = bytes.split_at(end + 1);
    (must(line.strip_suffix(b"\r\n").ok_or(line), "a line that ends with CRLF"), rest)
}
