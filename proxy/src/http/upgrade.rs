//! Protocol switches as HTTP: an HTTP/1 upgrade on one side, an extended CONNECT (RFC 8441) or another upgrade on the other.

use weft_http::{fields::Name, head::Response};

use super::{
    hop, http1,
    http2::{StreamRef, Tunnel},
};
use crate::{slot::Slot, stream::Duplex};

/// A connection or stream that an upstream has switched to another protocol.
#[derive(Debug)]
pub(crate) enum Switched {
    Http1(http1::SharedIo),
    Http2(StreamRef),
}

/// The bytes of an upstream that has switched.
pub(crate) struct Joined {
    pub(crate) stream: Box<dyn Duplex>,
    /// Held for as long as the bytes move.
    _slot: Option<Slot>,
}

impl Switched {
    /// Its bytes in both directions; `None` where the connection is gone. It keeps its place under the limit of connections.
    pub(crate) fn into_stream(self) -> Option<Joined> {
        match self {
            Self::Http1(io) => {
                let mut io = io.lock();
                let (slot, stream) = (io.take_slot(), io.take_stream()?);
                Some(Joined { stream: Box::new(stream), _slot: slot })
            }
            Self::Http2(stream) => Some(Joined { stream: Box::new(Tunnel::new(stream)), _slot: None }),
        }
    }
}

/// Whom an answer tells of a switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum To {
    Http1,
    Http2,
    /// Another proxy, by HTTP/2.
    Hop,
}

/// Whether the upstream has switched: 101, or over the hop 200 with the mark.
pub(crate) fn was_accepted(answer: &Response) -> bool {
    answer.status == 101 || (answer.status == 200 && hop::reserved(&answer.fields, hop::UPGRADED).is_some())
}

/// Makes the answer that tells a caller of a switch: the fields of the upstream's answer without those of its connection.
/// Returns the protocol switched to.
pub(crate) fn head(answer: &mut Response, asked: Option<&[u8]>, to: To) -> Vec<u8> {
    let chosen = hop::reserved(&answer.fields, hop::UPGRADED).or_else(|| answer.fields.first(Name::Upgrade)).or(asked);
    let chosen = chosen.unwrap_or(b"1").to_vec();
    answer.status = 101;
    hop::receive_answer(answer);
    for name in [Name::Reserved, Name::Connection, Name::Upgrade] {
        answer.fields.remove(name);
    }
    if to == To::Hop {
        hop::send_answer(answer);
    }
    if to != To::Http1 {
        answer.status = 200;
        answer.fields.push(hop::UPGRADED.as_bytes(), &chosen);
    }
    chosen
}
