//! The first bytes of a captured connection: mesh TLS, the application's own TLS, HTTP, or something else.
//! Oracles: a verdict never changes when more bytes arrive; rustls on whether it is a ClientHello; a naive reading of its ALPN.
//! Spec: RFC 8446 §4.1.2, §5.1; RFC 7301 §3.1.

use rustls::server::Acceptor;
use weft_proxy::{
    fuzzing::{self, Hello},
    tls::ALPNS,
};

use crate::cuts;

/// Runs the target.
pub fn run(bytes: &[u8]) {
    let (hello, speaks) = (fuzzing::hello(bytes), fuzzing::speaks(bytes));
    for pieces in cuts::ways(bytes) {
        let mut end = 0;
        for piece in pieces {
            end += piece.len();
            let part = bytes.get(..end).unwrap_or_default();
            let early = fuzzing::hello(part);
            assert!(early == Hello::Partial || early == hello, "{early:?} of {end} bytes, {hello:?} of all");
            let early = fuzzing::speaks(part);
            assert!(early.is_none() || early == speaks, "{early:?} of {end} bytes, {speaks:?} of all");
        }
    }
    match hello {
        Hello::Mesh | Hello::Application if bytes.len() < fuzzing::MAX_HELLO => {
            assert_eq!(accepts(bytes), Some(true), "{hello:?}, but rustls finds no ClientHello");
            let ours = alpn(bytes).is_some_and(|names| names.iter().any(|name| ALPNS.contains(name)));
            assert_eq!(hello == Hello::Mesh, ours, "the ALPN has another reading");
        }
        // Too long to be of the mesh.
        Hello::Application => assert_ne!(accepts(bytes).unwrap_or(false), alpn(bytes).is_none(), "a long hello"),
        Hello::Mesh => assert_eq!(accepts(bytes), Some(true), "{hello:?}, but rustls finds no ClientHello"),
        Hello::Malformed => assert_eq!(accepts(bytes), Some(false), "malformed, but rustls does not think so"),
        Hello::Partial => assert_eq!(accepts(bytes), None, "rustls needs no more bytes"),
    }
}

/// Whether rustls takes the bytes for a ClientHello; `None`: it needs more.
fn accepts(bytes: &[u8]) -> Option<bool> {
    let mut acceptor = Acceptor::default();
    let mut rest = bytes;
    while !rest.is_empty() {
        match acceptor.read_tls(&mut rest) {
            Ok(0) => break,
            Ok(_) => {}
            Err(_full) => return Some(false),
        }
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(_)) => return Some(true),
            Err(_) => return Some(false),
        }
    }
    None
}

/// The ALPN names of the ClientHello at the beginning; `None` where there is no such extension, or what is there is cut off.
fn alpn(bytes: &[u8]) -> Option<Vec<&'static [u8]>> {
    let names = ALPNS;
    // The message may span records: joined first.
    let (mut message, mut rest) = (Vec::new(), bytes);
    while let Some((&[_, _, _, high, low], after)) = rest.split_first_chunk::<5>() {
        let (content, after) = after.split_at_checked(usize::from(u16::from_be_bytes([high, low])))?;
        message.extend_from_slice(content);
        rest = after;
        if message.get(1..4).is_some_and(|length| message.len() >= 4 + number(length)) {
            break;
        }
    }
    let mut body = Reader(message.get(4..)?);
    body.take(2 + 32)?;
    body.sized(1)?;
    body.sized(2)?;
    body.sized(1)?;
    let mut extensions = Reader(body.sized(2)?);
    while let Some(kind) = extensions.take(2) {
        let content = extensions.sized(2)?;
        if kind == [0, 16] {
            let (mut list, mut found) = (Reader(Reader(content).sized(2)?), Vec::new());
            while let Some(name) = list.sized(1) {
                found.extend(names.iter().filter(|ours| **ours == name));
            }
            return Some(found);
        }
    }
    None
}

/// Takes bytes off the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    /// A vector behind its length of so many bytes.
    fn sized(&mut self, prefix: usize) -> Option<&'a [u8]> {
        let length = number(self.take(prefix)?);
        self.take(length)
    }
}

fn number(bytes: &[u8]) -> usize {
    bytes.iter().fold(0, |number, byte| number << 8 | usize::from(*byte))
}
