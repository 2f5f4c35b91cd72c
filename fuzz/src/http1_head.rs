//! HTTP/1 heads, as a request and as an answer to GET, HEAD and CONNECT.
//! Oracles: the same bytes in other pieces; a naive reading of the lines (CL.TE, TE.CL and their kind must be refused); what was
//! parsed, written and parsed again is the same head.
//! Spec: RFC 9112 §2-§6, §11.2.

use bytes::BytesMut;
use weft_http::{
    fields::{Field, Name},
    head::Version,
    http1::{
        Connection, Error, Framing, Limits, ParsedRequest, ParsedResponse, parse_request, parse_response,
        write_request, write_response,
    },
};

use crate::{cuts, lines, must, some, violated};

/// The limits of the run: small, so that short inputs reach them.
const LIMITS: Limits = Limits { head: 4 * 1024, fields: 20, target: 1024 };

/// Runs the target. The input is what arrives on a connection.
pub fn run(bytes: &[u8]) {
    requests(bytes);
    for method in ["GET", "HEAD", "CONNECT"] {
        answers(bytes, method);
    }
}

/// What a parser made of some bytes: `None` when it waits for more. Beside the head: what is left behind it.
type Outcome<P> = Result<Option<(P, Vec<u8>)>, Error>;

fn feed<P>(pieces: &[&[u8]], parse: impl Fn(&mut BytesMut) -> Result<Option<P>, Error>) -> Outcome<P> {
    let mut buffer = BytesMut::new();
    let mut parsed = None;
    for piece in pieces {
        buffer.extend_from_slice(piece);
        if parsed.is_none() {
            let before = buffer.len();
            parsed = parse(&mut buffer)?;
            assert!(parsed.is_some() || buffer.len() == before, "bytes were taken of a head that is not whole");
        }
    }
    Ok(parsed.map(|parsed| (parsed, buffer.to_vec())))
}

/// Parses in one piece and in others, and asserts that it makes no difference to what `facts` tells.
fn parse<P, F: PartialEq + std::fmt::Debug>(
    bytes: &[u8],
    parse: impl Fn(&mut BytesMut) -> Result<Option<P>, Error>,
    facts: impl Fn(&P) -> F,
) -> Option<(P, Vec<u8>)> {
    let whole = feed(&[bytes], &parse);
    for pieces in cuts::ways(bytes) {
        match (&whole, &feed(&pieces, &parse)) {
            // Which rule a prefix breaks first may differ; that it breaks one may not.
            (Err(_), Err(_)) | (Ok(None), Ok(None)) => {}
            (Ok(Some((whole, rest))), Ok(Some((other, others_rest)))) => {
                assert_eq!((facts(whole), rest), (facts(other), others_rest), "the cuts make a difference");
            }
            (whole, other) => {
                let outcomes = [whole, other].map(|outcome| outcome.as_ref().map(Option::is_some));
                violated(format_args!("the cuts make a difference: {outcomes:?}"));
            }
        }
    }
    whole.ok().flatten()
}

fn requests(bytes: &[u8]) {
    let Some((parsed, rest)) = parse(bytes, |buffer| parse_request(buffer, &LIMITS), request_facts) else { return };
    let ParsedRequest { head, framing, keep_alive, .. } = parsed;
    let mut section = taken(bytes, &rest);
    while let [b'\r', b'\n', after @ ..] = section {
        section = after;
    }
    let (start, fields) = lines::split(section, true);
    let words: Vec<&[u8]> = start.split(|byte| *byte == b' ').collect();
    assert!(
        matches!(words[..], [method, target, version] if method == head.method().as_bytes() && !target.is_empty()
        && version == if head.version == Version::Http10 { b"HTTP/1.0" } else { b"HTTP/1.1" }),
        "the request line has another reading"
    );
    let hosts = lines::named(&fields, "host").len();
    assert!(hosts == 1 || (hosts == 0 && head.version == Version::Http10), "{hosts} Host fields were accepted");
    let expected = length(&fields, head.version).unwrap_or(Framing::None);
    assert_eq!(framing, expected, "the length has another reading");
    // A CONNECT is answered by the proxy itself and never written.
    if head.method() == "CONNECT" {
        return;
    }

    let connection = if keep_alive { Connection::KeepAlive } else { Connection::Close };
    let mut text = Vec::new();
    write_request(&head, framing, connection, &mut text);
    let mut buffer = BytesMut::from(&text[..]);
    // The Host moves to the front and values that came without white space get some: the limits are not the subject here.
    let again = must(parse_request(&mut buffer, &Limits::default()), "a written request that is valid");
    let again = some(again, "a written request that is whole");
    assert!(buffer.is_empty(), "a written request has two readings");
    assert_eq!(
        (again.head.version, again.head.method(), again.head.target(), again.framing, again.keep_alive),
        (head.version, head.method(), head.target(), framing, keep_alive)
    );
    assert_eq!(again.head.authority().unwrap_or_default(), head.authority().unwrap_or_default());
    assert!(again.head.fields.iter().filter(is_kept).eq(head.fields.iter().filter(is_kept)), "the fields differ");
    let mut second = Vec::new();
    write_request(&again.head, again.framing, connection, &mut second);
    assert_eq!(text.escape_ascii().to_string(), second.escape_ascii().to_string(), "writing is not stable");
}

fn answers(bytes: &[u8], method: &str) {
    let Some((parsed, rest)) = parse(bytes, |buffer| parse_response(buffer, &LIMITS, method), answer_facts) else {
        return;
    };
    let ParsedResponse { head, framing, keep_alive } = parsed;
    let (start, fields) = lines::split(taken(bytes, &rest), true);
    assert!(
        start.len() >= 12 && start.get(9..12) == Some(head.status.to_string().as_bytes()),
        "the status has another reading"
    );
    let length = length(&fields, head.version);
    let bodiless = head.status < 200 || matches!(head.status, 204 | 304) || method == "HEAD";
    let expected = match length {
        _ if bodiless || (method == "CONNECT" && (200..300).contains(&head.status)) => Framing::None,
        length => length.unwrap_or(Framing::UntilClose),
    };
    assert_eq!(framing, expected, "the length has another reading");
    assert!(!(keep_alive && framing == Framing::UntilClose), "a body until the end of a connection that stays");

    let connection = if keep_alive { Connection::KeepAlive } else { Connection::Close };
    let mut text = Vec::new();
    write_response(&head, framing, connection, &mut text);
    let mut buffer = BytesMut::from(&text[..]);
    let again = must(parse_response(&mut buffer, &Limits::default(), method), "a written answer that is valid");
    let again = some(again, "a written answer that is whole");
    assert!(buffer.is_empty(), "a written answer has two readings");
    assert_eq!((again.head.version, again.head.status, again.framing), (head.version, head.status, framing));
    assert_eq!(again.head.reason(), head.reason());
    assert!(again.head.fields.iter().filter(is_kept).eq(head.fields.iter().filter(is_kept)), "the fields differ");
    let mut second = Vec::new();
    write_response(&again.head, again.framing, connection, &mut second);
    assert_eq!(text.escape_ascii().to_string(), second.escape_ascii().to_string(), "writing is not stable");
}

fn request_facts(parsed: &ParsedRequest) -> impl PartialEq + std::fmt::Debug + use<> {
    (parsed.head.clone(), parsed.framing, parsed.keep_alive, parsed.expects_continue)
}

fn answer_facts(parsed: &ParsedResponse) -> impl PartialEq + std::fmt::Debug + use<> {
    (parsed.head.clone(), parsed.framing, parsed.keep_alive)
}

/// What was taken of the input.
fn taken<'a>(bytes: &'a [u8], rest: &[u8]) -> &'a [u8] {
    bytes.get(..bytes.len() - rest.len()).unwrap_or_default()
}

/// The length that an accepted head says, naively. Panics when it says one twice or in two ways.
fn length(fields: &[lines::Line<'_>], version: Version) -> Option<Framing> {
    let (lengths, codings) = (lines::named(fields, "content-length"), lines::named(fields, "transfer-encoding"));
    assert!(lengths.len() + codings.len() <= 1, "a message with two lengths was accepted");
    if let [coding] = codings[..] {
        assert!(coding.eq_ignore_ascii_case(b"chunked") && version == Version::Http11, "a coding was accepted");
        return Some(Framing::Chunked);
    }
    lengths.first().map(|length| {
        assert!(!length.is_empty() && length.iter().all(u8::is_ascii_digit), "a Content-Length was accepted");
        Framing::Length(must(String::from_utf8_lossy(length).parse(), "a Content-Length of 64 bits"))
    })
}

/// Fields that are written as they came: not those of one connection, not the length, and not cookies, which are joined.
fn is_kept(field: &Field<'_>) -> bool {
    !matches!(
        field.known,
        Name::Connection
            | Name::ContentLength
            | Name::Cookie
            | Name::Http2Settings
            | Name::KeepAlive
            | Name::ProxyConnection
            | Name::TransferEncoding
            | Name::Upgrade
    )
}
