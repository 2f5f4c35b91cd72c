//! Bodies on a connection of HTTP/1: reading the one that comes, and writing one.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use weft_core::failure::Failure;
use weft_http::{
    fields::Fields,
    http1::{self, Framing},
};

use super::{Io, SharedIo};
use crate::{
    buffer,
    http::{
        body::{Body, Next, Piece},
        limits::HTTP1,
    },
};

/// Queued bytes beyond which no more is taken of a body.
const MAX_UNSENT: usize = 128 * 1024;

/// The body that comes on a connection.
#[derive(Debug)]
pub(crate) struct Incoming {
    io: SharedIo,
    /// Of a request: where it breaks off, the caller is gone.
    request: bool,
    /// All of it was read: later bytes on the connection belong to another message.
    ended: bool,
}

impl Io {
    /// A body that has been read already, in whole.
    fn take_small_body(&mut self) -> Option<Body> {
        let length = self.body.remaining().filter(|length| *length <= self.input.len() as u64)?;
        if length == 0 {
            return self.body.is_done().then_some(Body::Empty);
        }
        match self.body.decode(&mut self.input, &HTTP1) {
            Ok(Some(http1::Piece::Data(data))) => Some(Body::Full(data)),
            _ => None,
        }
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>, request: bool) -> Poll<Next> {
        let broken = |reason: &str| {
            if request { Failure::CallerGone } else { Failure::reset(reason) }
        };
        loop {
            match self.body.decode(&mut self.input, &HTTP1) {
                Ok(Some(http1::Piece::Data(data))) => return Poll::Ready(Some(Ok(Piece::Data(data)))),
                Ok(Some(http1::Piece::Trailers(fields))) => return Poll::Ready(Some(Ok(Piece::Trailers(fields)))),
                Ok(Some(http1::Piece::End)) => return Poll::Ready(None),
                Ok(None) if self.body.is_done() => return Poll::Ready(None),
                Ok(None) => {}
                Err(error) => return Poll::Ready(Some(Err(self.refuse(error, request)))),
            }
            let filled = self.poll_fill(cx, buffer::SIZE);
            if let Some(caller) = &self.caller {
                caller.body_awaited(filled.is_pending());
            }
            match ready!(filled) {
                Ok(0) => {
                    return Poll::Ready(match self.body.end_of_stream() {
                        Ok(()) => None,
                        Err(_cut) => Some(Err(broken("connection closed before the end of the body"))),
                    });
                }
                Err(error) => return Poll::Ready(Some(Err(broken(&error.to_string())))),
                Ok(_) => {}
            }
        }
    }

    /// Queues a piece of a body. `chunked`: how it is framed.
    fn put(&mut self, data: Bytes, chunked: bool) {
        if data.is_empty() {
            return;
        }
        if !chunked {
            return self.out.put_data(data);
        }
        self.put_with(|out| http1::write_chunk_head(data.len(), out));
        self.out.put_data(data);
        self.out.put(b"\r\n");
    }

    fn put_end(&mut self, chunked: bool, trailers: Option<&Fields>) {
        if chunked {
            self.put_with(|out| http1::write_last_chunk(trailers, out));
        }
    }
}

impl Incoming {
    /// The body behind a head of this framing. `request`: where it breaks off, the caller is gone.
    pub(crate) fn body(io: &SharedIo, framing: Framing, request: bool) -> Body {
        if framing == Framing::None {
            return Body::Empty;
        }
        let small = io.lock().take_small_body();
        small.unwrap_or_else(|| Body::Http1(Self { io: io.clone(), request, ended: false }))
    }

    pub(crate) fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        if self.ended {
            return Poll::Ready(None);
        }
        let mut io = self.io.lock();
        if io.dismissed {
            return Poll::Ready(Some(Err(Failure::CallerGone)));
        }
        let piece = ready!(io.poll_piece(cx, self.request));
        self.ended = !matches!(piece, Some(Err(_))) && io.body.is_done();
        Poll::Ready(piece)
    }

    /// To be polled while more of an answer is awaited whose caller has closed its sending side: so does the proxy.
    pub(crate) fn half_close(&self, cx: &mut Context<'_>) {
        if !self.ended {
            self.io.lock().poll_half_close(cx);
        }
    }

    pub(crate) fn is_end(&self) -> bool {
        self.ended || self.io.lock().body.is_done()
    }

    pub(crate) fn exact(&self) -> Option<u64> {
        if self.ended {
            return Some(0);
        }
        let io = self.io.lock();
        if io.body.is_done() { Some(0) } else { io.body.remaining() }
    }
}

/// Writes a body and flushes it. `body`: taken out at its end. `trailers`: whether the peer wants them.
/// Errors: why the body broke off; `None` where the connection did.
pub(crate) fn poll_body(
    io: &SharedIo,
    cx: &mut Context<'_>,
    body: &mut Option<Body>,
    chunked: bool,
    trailers: bool,
) -> Poll<Result<(), Option<Failure>>> {
    while let Some(source) = body {
        {
            // A peer that reads slowly makes the source wait, instead of filling the memory.
            let mut io = io.lock();
            if io.out.len() >= MAX_UNSENT {
                ready!(io.poll_flush(cx)).map_err(|_broken| None)?;
            }
        }
        match source.poll_piece(cx) {
            Poll::Ready(Some(Ok(Piece::Data(data)))) => {
                let end = source.is_end();
                let mut io = io.lock();
                io.put(data, chunked);
                if end {
                    io.put_end(chunked, None);
                    *body = None;
                }
            }
            Poll::Ready(Some(Ok(Piece::Trailers(fields)))) => {
                io.lock().put_end(chunked, Some(&fields).filter(|_| trailers));
                *body = None;
            }
            Poll::Ready(Some(Err(failure))) => {
                // The pieces before go out all the same, so that the peer sees a message that was cut, and not none.
                let _flushed = io.lock().poll_flush(cx).is_ready();
                return Poll::Ready(Err(Some(failure)));
            }
            Poll::Ready(None) => {
                io.lock().put_end(chunked, None);
                *body = None;
            }
            Poll::Pending => {
                // The pieces so far go out now: the next one may be long in coming.
                let mut io = io.lock();
                if let Poll::Ready(Err(_broken)) = io.poll_flush(cx) {
                    return Poll::Ready(Err(None));
                }
                return Poll::Pending;
            }
        }
    }
    io.lock().poll_flush(cx).map_err(|_broken| None)
}
