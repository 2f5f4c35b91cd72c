//! The task's side of an HTTP/2 connection: bytes that come become events of streams, and queued frames are written.

use std::{
    future::Future,
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use tokio::io::AsyncWrite;
use weft_core::failure::Failure;
use weft_http::{
    head::Request,
    http2::{BadRequest, Code, Event, Role, StreamId},
};

use super::{Incoming, Inner, Mux, StreamRef, StreamReset};
use crate::{
    buffer::{self, Filled},
    http::{
        body::Body,
        limits::{MAX_INTERIM, too_large},
        remember,
    },
    stream::{Duplex, Stream, kernel::linger},
};

/// Queued bytes that are written at once, without waiting for more.
const WAITS: usize = 16 * 1024;
/// Most turns of the worker that queued bytes wait for more.
const MAX_WAITS: u8 = 4;

/// A request that arrived.
#[derive(Debug)]
pub(crate) enum Arrival {
    Request(StreamRef, Request, Body),
    /// A malformed request, to be answered with this failure.
    Bad(StreamRef, Failure),
}

impl Arrival {
    fn id(&self) -> StreamId {
        match self {
            Self::Request(stream, ..) | Self::Bad(stream, _) => stream.id,
        }
    }
}

/// How long queued bytes wait before they are written.
#[derive(Debug, Default)]
struct Patience {
    /// The bytes that were queued at the last turn.
    bytes: usize,
    turns: u8,
}

impl Patience {
    /// Whether other streams may soon queue bytes too, which then leave with the same record and system call. After the first
    /// turn only if they have.
    fn may_wait(&mut self, inner: &mut Inner) -> bool {
        let count = inner.connection.unsent().remaining();
        let grew = count > self.bytes;
        self.bytes = count;
        self.turns += 1;
        grew && count < WAITS && inner.connection.len() > 1 && self.turns <= MAX_WAITS
    }
}

/// Drives a connection to its end. `arrived` is called with each request (server).
pub(crate) struct Driver<F> {
    stream: Stream,
    mux: Arc<Mux>,
    /// The beginning of a frame whose end has not come.
    rest: Vec<u8>,
    /// Every byte that came was read: a wake-up for something to write costs no read.
    drained: bool,
    patience: Patience,
    failed: Option<io::Error>,
    arrivals: Vec<Arrival>,
    /// Arrivals that were given up at once.
    stillborn: Vec<Arrival>,
    arrived: F,
}

impl<F: FnMut(Arrival)> Driver<F> {
    pub(crate) fn new(stream: Stream, mux: Arc<Mux>, arrived: F) -> Self {
        Self {
            stream,
            mux,
            rest: Vec::new(),
            drained: false,
            patience: Patience::default(),
            failed: None,
            arrivals: Vec::new(),
            stillborn: Vec::new(),
            arrived,
        }
    }

    /// Ready when the connection is over. Errors: it broke, or the peer broke the protocol.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mux = self.mux.clone();
        let waits = {
            let mut inner = mux.inner.lock();
            inner.woken = false;
            remember(&mut inner.driver, cx);
            if inner.over.is_some() {
                return Poll::Ready(Ok(()));
            }
            inner.is_unread()
        };
        let mut result = Poll::Pending;
        // A caller that does not read its answers is not read: each of its requests would add another.
        match if waits { Poll::Pending } else { self.poll_read(cx) } {
            Poll::Ready(Ok(Filled { count: 0, .. })) => {
                mux.inner.lock().end(Failure::reset("connection closed"));
                result = Poll::Ready(Ok(()));
            }
            Poll::Ready(Ok(Filled { drained: true, .. })) => {}
            // More may be readable. The tasks that wait for the bytes read so far run first: then the buffer is free again.
            Poll::Ready(Ok(_)) => cx.waker().wake_by_ref(),
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                mux.inner.lock().end(Failure::reset(error.to_string()));
                result = Poll::Ready(Err(error));
            }
            Poll::Ready(Err(error)) => {
                mux.inner.lock().end(Failure::reset(error.to_string()));
                return Poll::Ready(Err(error));
            }
            // An idle connection holds no buffer.
            Poll::Pending if self.rest.is_empty() => self.rest = Vec::new(),
            Poll::Pending => {}
        }
        self.stillborn.clear();
        for arrival in self.arrivals.drain(..) {
            (self.arrived)(arrival);
        }
        let mut inner = mux.inner.lock();
        if result.is_pending() && self.patience.may_wait(&mut inner) {
            // `yield_now` wakes the driver behind every task that is ready now; until then a kick must not wake it.
            inner.woken = true;
            let _pending = pin!(tokio::task::yield_now()).poll(cx);
            return Poll::Pending;
        }
        self.patience = Patience::default();
        if let Poll::Ready(Err(error)) = write(&mut self.stream, &mut inner, cx) {
            inner.end(Failure::reset(error.to_string()));
            // A protocol error of the peer says more than a failed write.
            return if result.is_pending() { Poll::Ready(Err(error)) } else { result };
        }
        if waits && !inner.is_unread() {
            cx.waker().wake_by_ref();
        }
        let over = inner.connection.sent_final_goaway() && inner.connection.is_empty();
        if result.is_pending() && over && inner.has_written() {
            inner.end(Failure::reset("connection closed"));
            return Poll::Ready(Ok(()));
        }
        result
    }

    /// Writes the queued bytes, then closes TLS and TCP.
    pub(crate) fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        {
            let mut inner = self.mux.inner.lock();
            if matches!(inner.over, Some(Failure::Stalled)) {
                // The peer does not read: what the kernel holds for it is discarded.
                linger(self.stream.socket(), Some(Duration::ZERO));
                return Poll::Ready(Ok(()));
            }
            ready!(write(&mut self.stream, &mut inner, cx))?;
            if !inner.connection.unsent().is_empty() {
                return Poll::Pending;
            }
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    /// Reads, and hands the events on to their streams. Errors of the kind `InvalidData`: the peer broke the protocol, and a
    /// GOAWAY that says so is queued.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Filled>> {
        if self.drained && self.failed.is_none() && !self.stream.poll_readable(cx, true) {
            return Poll::Pending;
        }
        buffer::lend(|input| {
            input.extend_from_slice(&self.rest);
            let filled = buffer::poll_fill(&mut self.stream, cx, input, buffer::SIZE, &mut self.failed);
            self.drained = matches!(filled, Poll::Pending | Poll::Ready(Ok(Filled { drained: true, .. })));
            let filled = ready!(filled)?;
            self.receive(input).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            self.rest.clear();
            self.rest.extend_from_slice(input);
            Poll::Ready(Ok(filled))
        })
    }

    /// Parses the whole frames of `input`; the beginning of another one stays in it.
    fn receive(&mut self, input: &mut BytesMut) -> Result<(), weft_http::http2::Error> {
        let mut inner = self.mux.inner.lock();
        inner.heard = true;
        let had_settings = inner.connection.has_settings();
        while let Some(event) = inner.connection.receive(input)? {
            match event {
                Event::Request { id, mut head, end, wire } => {
                    let Some(held) = inner.heads.take(&mut head.fields, wire) else {
                        inner.connection.refuse(id);
                        continue;
                    };
                    // One holder is the task of the request, another its body.
                    if let Some(state) = inner.state(id) {
                        state.head = held;
                        state.ended = end;
                        state.holders = if end { 1 } else { 2 };
                    }
                    let stream = || StreamRef { mux: self.mux.clone(), id };
                    let body = if end { Body::Empty } else { Body::Http2(Incoming::new(stream(), &head.fields, true)) };
                    self.arrivals.push(Arrival::Request(stream(), head, body));
                }
                Event::BadRequest { id, reason } => {
                    if let Some(state) = inner.state(id) {
                        state.holders = 1;
                    }
                    let failure = match reason {
                        BadRequest::TooLarge(excess) => too_large(true, false, excess),
                        BadRequest::Target(reason) => Failure::BadRequest(reason),
                    };
                    self.arrivals.push(Arrival::Bad(StreamRef { mux: self.mux.clone(), id }, failure));
                }
                Event::Response { id, head, end } => {
                    if let Some(state) = inner.state(id) {
                        state.answer = Some(head);
                        state.ended = end;
                        state.wake_reader();
                    }
                }
                Event::Data { id, data, end } => {
                    if let Some(state) = inner.state(id) {
                        if !data.is_empty() {
                            state.data.push(data);
                        }
                        state.ended = end;
                        state.wake_reader();
                    }
                }
                Event::Trailers { id, fields } => {
                    if let Some(state) = inner.state(id) {
                        state.trailers = Some(fields);
                        state.ended = true;
                        state.wake_reader();
                    }
                }
                Event::TooLarge { id, trailers, excess } => {
                    let request = inner.connection.role() == Role::Server;
                    let failure = too_large(request, trailers, excess);
                    let Some(state) = inner.state(id) else { continue };
                    if request {
                        // The request may still be answered: its task is not given up.
                        state.failure.get_or_insert(failure);
                        state.wake_reader();
                    } else {
                        state.fail(&failure);
                    }
                }
                Event::Reset { id, code, by_peer, unprocessed } => {
                    // A stream that the peer has not processed is safe to send again (RFC 9113 §8.7).
                    let failure = match (unprocessed, by_peer) {
                        (true, _) => Failure::RefusedStream,
                        (false, true) if code == Code::NoError => Failure::Unended,
                        (false, true) => Failure::reset(StreamReset(code)),
                        (false, false) => Failure::BadAnswer("not HTTP"),
                    };
                    if let Some(state) = inner.state(id) {
                        state.no_error = by_peer && code == Code::NoError;
                        state.fail(&failure);
                    }
                    // Given up before its task began: it is not begun. Dropped later, since that takes the lock.
                    if let Some(position) = self.arrivals.iter().position(|arrival| arrival.id() == id) {
                        self.stillborn.push(self.arrivals.remove(position));
                    }
                }
                Event::Writable { id } => {
                    if let Some(writer) = inner.state(id).and_then(|state| state.writer.take()) {
                        writer.wake();
                    }
                }
                Event::Interim { id, head } => {
                    let Some(state) = inner.state(id) else { continue };
                    state.interim.push_back(head);
                    state.interims += 1;
                    state.wake_reader();
                    if state.interims > MAX_INTERIM {
                        state.fail(&Failure::BadAnswer("too many interim answers"));
                        inner.connection.reset(id, Code::EnhanceYourCalm);
                    }
                }
                // The state machine keeps the GOAWAY; any byte counts as a sign of life, a PONG too.
                Event::GoAway { .. } | Event::Pong => {}
                Event::HalfClosed { id } => {
                    if let Some(state) = inner.state(id) {
                        state.half_closed = true;
                        state.wake_reader();
                        if let Some(writer) = state.writer.take() {
                            writer.wake();
                        }
                    }
                }
            }
        }
        if inner.connection.has_settings() && !had_settings {
            inner.settled.notify_waiters();
        }
        Ok(())
    }
}

/// However the task of the connection ends, by a panic too: its streams end with it.
impl<F> Drop for Driver<F> {
    fn drop(&mut self) {
        self.mux.inner.lock().end(Failure::reset("connection closed"));
    }
}

/// Writes queued bytes, and wakes the tasks that wait for room.
fn write(stream: &mut Stream, inner: &mut Inner, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    let unsent = inner.connection.unsent();
    if unsent.is_empty() {
        return flush(stream, inner, cx);
    }
    while unsent.has_remaining() {
        match tokio_util::io::poll_write_buf(Pin::new(stream), cx, unsent) {
            Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            Poll::Ready(Ok(_)) => inner.wrote = true,
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Pending => break,
        }
    }
    unsent.shrink();
    inner.connection.written();
    while let Some(id) = inner.connection.next_writable() {
        if let Some(writer) = inner.state(id).and_then(|state| state.writer.take()) {
            writer.wake();
        }
    }
    flush(stream, inner, cx)
}

fn flush(stream: &mut Stream, inner: &mut Inner, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    let flushed = Pin::new(stream).poll_flush(cx);
    inner.flushed = flushed.is_ready();
    flushed
}
