//! The caller of a request until it is answered: interim answers (1xx) go to it as they come (RFC 9110 §15.2), and the end of its
//! sending side is passed on, so that the application may give up the request as it would without proxies.

use std::sync::Arc;

use weft_http::{
    fields::Name,
    head::{Response, Version},
    http1::{self as codec, Connection, Framing},
    http2::StreamId,
};

use super::{hop, http1::SharedIo, http2::Mux};

/// The caller of a request that has not been answered.
#[derive(Clone, Debug)]
pub(crate) enum Interim {
    Http1(SharedIo, Version),
    Http2(Arc<Mux>, StreamId),
    /// Another proxy, by HTTP/2.
    Hop(Arc<Mux>, StreamId),
}

impl Interim {
    /// Whether the caller has closed its sending side, behind the whole request. The task that waits for the answer is woken then.
    pub(crate) fn has_half_closed(&self) -> bool {
        match self {
            Self::Http1(io, _) => io.lock().has_half_closed(),
            Self::Http2(mux, stream) | Self::Hop(mux, stream) => mux.has_half_closed(*stream),
        }
    }

    /// Queues an interim answer for the caller. Its connection is flushed by the task that waits for the answer.
    pub(crate) fn send(&self, mut head: Response) {
        codec::strip_hop_by_hop(&mut head.fields);
        hop::receive_answer(&mut head);
        hop::strip(&mut head.fields);
        head.fields.remove(Name::ContentLength);
        match self {
            Self::Http1(_, Version::Http10) => {}
            Self::Http1(io, _) => io.lock().put_with(|out| {
                codec::write_response(&head, Framing::None, Connection::KeepAlive, out);
            }),
            Self::Http2(mux, stream) => mux.send_interim(*stream, &head),
            Self::Hop(mux, stream) => {
                hop::send_answer(&mut head);
                mux.send_interim(*stream, &head);
            }
        }
    }
}
