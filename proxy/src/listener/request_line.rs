//! Whether the first bytes of a connection can be a request of HTTP/1, judged as the most lenient server would: the application
//! behind a port may be one, and reads what the proxy passes on unread (docs/adr/0029).
//! Shape: [`judge`] takes the bytes so far. [`proxied`] finds the authority of a request to a forward proxy.
//! Spec: RFC 9112 §2.2 (empty lines before a request), §3 (white space between the parts of a request line), §3.2.

/// Longest request line looked at.
pub(crate) const MAX_LINE: usize = 16 * 1024;
/// Longest method waited for.
const MAX_METHOD: usize = 128;
/// Most white space before a request line that is skipped.
const MAX_BLANK: usize = 64;
/// The start of the PROXY protocol, version 2. HTTP may follow it.
const PROXY_V2: &[u8] = b"\r\n\r\n\0";
/// Methods of requests that lenient servers take without a version (HTTP/0.9).
const METHODS: [&[u8]; 9] = [b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE", b"CONNECT"];

/// What a first line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// A request, well-formed or not.
    Request,
    /// No server reads a request in it.
    Other,
    /// It begins with bytes that no text has. A server that looks at no method may still find a request in the whole line.
    Binary,
    /// Not a request by any standard, but a lenient server may read one in it or in what follows.
    Doubtful,
}

/// Judges the bytes so far; `None`: more are needed. The verdict does not change with more bytes.
pub(crate) fn judge(bytes: &[u8]) -> Option<Line> {
    let blank = bytes.iter().take_while(|byte| is_blank(**byte)).count();
    if blank > MAX_BLANK {
        return Some(Line::Request);
    }
    let rest = bytes.get(blank..).unwrap_or_default();
    let end = memchr::memchr(b'\n', rest);
    let line = rest.get(..end.unwrap_or(rest.len())).unwrap_or_default();
    let method = line.iter().take_while(|byte| weft_http::head::is_token(**byte)).count();
    match line.get(method) {
        _ if method > MAX_METHOD => return Some(Line::Doubtful),
        // A line of one word is no request.
        None => return end.map(|_| Line::Other),
        Some(byte) if method > 0 && is_blank(*byte) => {}
        // Text, but not a method: some servers look at no method.
        Some(b' '..=b'~') => return Some(Line::Doubtful),
        Some(_) if bytes.starts_with(PROXY_V2) => return Some(Line::Doubtful),
        Some(_) => return Some(Line::Binary),
    }
    let control = line.iter().position(|byte| byte.is_ascii_control() && !is_blank(*byte));
    match (control, end) {
        (Some(at), _) if at < MAX_LINE => Some(Line::Doubtful),
        _ if line.len() >= MAX_LINE => Some(Line::Request),
        (_, None) => None,
        (_, Some(_)) => Some(whole(line)),
    }
}

/// Judges a whole line that begins with a token.
fn whole(line: &[u8]) -> Line {
    let mut words = words(line);
    let (method, target) = (words.next().unwrap_or_default(), words.next());
    let Some(target) = target else { return Line::Other };
    let is_version = |word: &[u8]| word.get(..5).is_some_and(|start| start.eq_ignore_ascii_case(b"HTTP/"));
    let versioned = is_version(target) || words.clone().any(is_version);
    let is_target = target.first() == Some(&b'/') || memchr::memmem::find(target, b"://").is_some();
    match METHODS.contains(&method) {
        _ if versioned => Line::Request,
        true if is_target => Line::Request,
        true if words.next().is_none() => Line::Doubtful,
        // The PROXY protocol, version 1: HTTP may follow it.
        false if method == b"PROXY" => Line::Doubtful,
        _ => Line::Other,
    }
}

/// The authority in the first line of a request to a forward proxy: of CONNECT, or of a target in absolute form (RFC 9112
/// §3.2.2, §3.2.3). `None` for a request to the server itself.
pub(crate) fn proxied(bytes: &[u8]) -> Option<&str> {
    let start = bytes.iter().position(|byte| !is_blank(*byte))?;
    let line = bytes.get(start..)?.split(|byte| *byte == b'\n').next()?;
    let mut words = words(line);
    let (method, target) = (words.next()?, words.next()?);
    let authority = match memchr::memmem::find(target, b"://") {
        _ if method == b"CONNECT" => target,
        // `://` in the path or query of another target.
        Some(at) if !target.get(..at)?.iter().any(|byte| b"/?#".contains(byte)) => {
            target.get(at + 3..)?.split(|byte| b"/?#".contains(byte)).next()?
        }
        Some(_) | None => return None,
    };
    std::str::from_utf8(authority).ok()
}

fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> + Clone {
    line.split(|byte| is_blank(*byte)).filter(|word| !word.is_empty())
}

/// White space to some server: Python's `str.split`, on which its `http.server` relies, takes the last eight for it too.
fn is_blank(byte: u8) -> bool {
    matches!(byte, b'\t'..=b'\r' | b' ' | 0x1c..=0x1f | 0x85 | 0xa0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_line_that_a_lenient_server_takes_for_a_request_is_one() {
        for line in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"GET /a b HTTP/1.1\r\n",
            b"PROPFIND /a HTTP/1.0\n",
            b"\r\nGET / HTTP/1.1\r\n",
            b"\n\n \tGET / HTTP/1.1\r\n",
            b"GET\t/\x0bHTTP/1.1\r\n",
            b"GET\r/ HTTP/1.1\r\n",
            b"GET / http/1.1\r\n",
            b"GET / HTTP/3.0\r\n",
            b"GET / HTTP/1.1 \r\n",
            b"GET /who\r\n",
            b"GET http://a/\r\n",
            b"FOO \xff HTTP/1.1\r\n",
            b"\x85GET\xa0/ HTTP/1.1\r\n",
            b"CONNECT a:443 HTTP/1.1\r\n",
        ] {
            assert_eq!(judge(line), Some(Line::Request), "{}", line.escape_ascii());
        }
        let long = |count: usize| [&vec![b'M'; count], &b" / HTTP/1.1\r\n"[..]].concat();
        assert_eq!((judge(&long(33)), judge(&long(128))), (Some(Line::Request), Some(Line::Request)));
        assert_eq!(judge(&long(129)), Some(Line::Doubtful));
        assert_eq!(judge(format!("GET /{}", "a".repeat(MAX_LINE)).as_bytes()), Some(Line::Request));
        assert_eq!(judge(&[b'\n'; MAX_BLANK + 1]), Some(Line::Request));
    }

    #[test]
    fn other_protocols_are_told_apart_at_their_first_line_or_byte() {
        for line in [
            &b"*1\r\n$4\r\nPING\r\n"[..],
            b"PING\r\n",
            b"SET a b\r\n",
            b"get foo\r\n",
            b"set k 0 0 5\r\n",
            b"EHLO a.example\r\n",
            b"USER x\r\n",
            b"NICK x\r\n",
            b"SSH-2.0-OpenSSH_9.6 Ubuntu-3\r\n",
            b"CONNECT {\"verbose\": false, \"pedantic\": false}\r\n",
            b"INVITE sip:a@b SIP/2.0\r\n",
            b"DESCRIBE rtsp://a/b RTSP/1.0\r\n",
            b"PRIVMSG #c :GET / please\r\n",
        ] {
            assert_eq!(judge(line), Some(Line::Other), "{}", line.escape_ascii());
        }
        for line in [
            &b"\x00\x00\x00\x08\x04\xd2\x16\x2f"[..],
            b"AMQP\x00\x00\x09\x01",
            b"\x10\x0c\x00\x04MQTT",
            b"\n\x00\x00",
            b"\x01GET / HTTP/1.1\r\n",
        ] {
            assert_eq!(judge(line), Some(Line::Binary), "{}", line.escape_ascii());
        }
        // Text that is passed on, with an eye on what follows.
        for line in [
            &b"{\"id\""[..],
            b"/path\r\n",
            b"GET key\r\n",
            b"PROXY TCP4 1.2.3.4 1.2.3.5 1 2\r\n",
            b"\r\n\r\n\0\r\nQUIT\n",
            b"0032git-upload-pack /a.git\0host=b\0",
            b"GET /\x01 HTTP/1.1\r\n",
            b"G(T / HTTP/1.1\r\n",
            b"0\x0c\x02\x01\x01",
        ] {
            assert_eq!(judge(line), Some(Line::Doubtful), "{}", line.escape_ascii());
        }
        for line in [&b""[..], b"G", b"GET", b"GET ", b"GET /very/long", b"\r\n", b"ruok", b"PING\r"] {
            assert_eq!(judge(line), None, "{}", line.escape_ascii());
        }
    }

    #[test]
    fn a_request_to_a_forward_proxy_names_another_authority() {
        for (line, expected) in [
            (&b"CONNECT a:443 HTTP/1.1\r\n"[..], Some("a:443")),
            (b"\r\nGET http://a/b?c HTTP/1.1\r\n", Some("a")),
            (b"GET https://a:8443 HTTP/1.1\r\n", Some("a:8443")),
            (b"GET http://[::1]:80?q HTTP/1.1\r\n", Some("[::1]:80")),
            (b"GET /b?to=http://a/ HTTP/1.1\r\n", None),
            (b"GET / HTTP/1.1\r\n", None),
            (b"OPTIONS * HTTP/1.1\r\n", None),
        ] {
            assert_eq!(proxied(line), expected, "{}", line.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn a_verdict_never_changes_with_more_bytes(
            bytes in prop_oneof!["[GETPROXY /:{\r\n\t\x01H.1]{1,60}".prop_map(String::into_bytes),
                prop::collection::vec(any::<u8>(), 1..200)],
            cut in 1usize..200,
        ) {
            let cut = cut.min(bytes.len());
            if let Some(early) = judge(&bytes[..cut]) {
                prop_assert_eq!(judge(&bytes), Some(early));
            }
        }
    }
}
