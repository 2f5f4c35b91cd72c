//! Interim answers (1xx) on their way to the caller, as they come (RFC 9110 §15.2).

use std::sync::Arc;

use weft_http::{
    fields::Name,
    head::Response,
    http1::{self as codec, Connection, Framing},
    http2::StreamId,
};

use super::{hop, http1::SharedIo, http2::Mux};

/// The caller of a request that has not been answered.
#[derive(Clone, Debug)]
pub(crate) enum Interim {
    /// HTTP/1.1: version 1.0 has no interim answers.
    Http1(SharedIo),
    Http2(Arc<Mux>, StreamId),
}

impl Interim {
    /// Queues an interim answer for the caller. Its connection is flushed by the task that waits for the answer.
    pub(crate) fn send(&self, mut head: Response) {
        codec::strip_hop_by_hop(&mut head.fields);
        hop::strip(&mut head.fields);
        head.fields.remove(Name::ContentLength);
        match self {
            Self::Http1(io) => io.lock().put_with(|out| {
                codec::write_response(&head, Framing::None, Connection::KeepAlive, out);
            }),
            Self::Http2(mux, stream) => mux.send_interim(*stream, &head),
        }
    }
}
