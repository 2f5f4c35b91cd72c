//! HTTP/2 on a stream: one task drives each connection ([`Driver`]), and whoever has a part in one of its streams holds a
//! [`StreamRef`]. What one side queues and the other reads stands in one [`Mux`] under a lock that nobody holds while waiting.
//! Invariant: a stream that nobody holds any more is over, and reset if it was not.

use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use weft_core::failure::Failure;
use weft_http::{
    fields::Fields,
    head::{Request, Response},
    http2::{Code, Config, Connection, Event, Role, SendError, StreamId},
};

use super::body::{Body, Next, Piece};
use crate::{
    buffer::{self, Filled},
    stream::Stream,
    upstream::pool::MAX_INTERIM,
};

/// Seconds of silence before a peer is asked for a sign of life, and before it is taken for dead.
const SILENCE: u32 = 30;
const DEAD: u32 = 50;

/// Bytes to write that do not wait for more.
const WAITS: usize = 16 * 1024;
/// Most turns of the worker that others wait.
const MAX_WAITS: u8 = 4;

/// One HTTP/2 connection.
#[derive(Debug)]
pub(crate) struct Mux {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    connection: Connection<Slot>,
    driver: Option<Waker>,
    /// The driver knows that there is something to do.
    woken: bool,
    /// What was taken to be written is written: TLS may hold some.
    flushed: bool,
    /// To be closed once no stream is left.
    retired: bool,
    /// Why the connection is over.
    over: Option<Failure>,
    /// Bytes came since the last tick, and how many ticks ago if not.
    heard: bool,
    silent: u32,
}

/// What is known of one stream.
#[derive(Debug, Default)]
struct Slot {
    answer: Option<Response>,
    data: VecDeque<Bytes>,
    trailers: Option<Fields>,
    /// All has come: data and trailers are the rest.
    ended: bool,
    failure: Option<Failure>,
    /// Reset, whatever had come before.
    gone: bool,
    /// Reset with NO_ERROR: of an answer that means its end, where nothing that was promised is missing. Node ends answers so
    /// when it is busy.
    no_error: bool,
    /// Interim answers so far.
    interim: u32,
    reader: Option<Waker>,
    writer: Option<Waker>,
    holders: u32,
}

/// A part in a stream. The last one to go ends it.
#[derive(Debug)]
pub(crate) struct StreamRef {
    mux: Arc<Mux>,
    id: StreamId,
}

/// The body that comes on a stream.
#[derive(Debug)]
pub(crate) struct Incoming {
    stream: StreamRef,
    /// What Content-Length says is left.
    left: Option<u64>,
    /// Of a request: what breaks it is the caller's doing.
    request: bool,
}

/// A request that arrived.
#[derive(Debug)]
pub(crate) enum Arrival {
    Request(StreamRef, Request, Body),
    /// One that is to be answered with this failure.
    Bad(StreamRef, Failure),
}

impl Mux {
    pub(crate) fn new(role: Role, config: Config) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                connection: Connection::new(role, config),
                driver: None,
                woken: false,
                flushed: true,
                retired: false,
                over: None,
                heard: true,
                silent: 0,
            }),
        })
    }

    /// Whether a request can be sent now.
    pub(crate) fn has_room(&self) -> bool {
        let state = self.state.lock();
        state.over.is_none() && !state.retired && state.connection.has_room()
    }

    /// Whether it will take no request any more.
    pub(crate) fn is_closed(&self) -> bool {
        let state = self.state.lock();
        state.over.is_some() || state.retired || state.connection.is_closing()
    }

    /// Whether no stream is left and all was written.
    pub(crate) fn is_done(&self) -> bool {
        let mut state = self.state.lock();
        state.over.is_some() || (state.connection.is_empty() && state.has_written())
    }

    /// Closes the connection as soon as no stream is left; new ones are not taken.
    pub(crate) fn retire(&self) {
        let mut state = self.state.lock();
        if !std::mem::replace(&mut state.retired, true) {
            state.connection.go_away();
            state.kick();
        }
    }

    /// To be called once a second.
    pub(crate) fn tick(&self) {
        let mut state = self.state.lock();
        state.connection.tick();
        if std::mem::take(&mut state.heard) {
            state.silent = 0;
            return;
        }
        state.silent += 1;
        if state.silent == SILENCE {
            state.connection.ping();
            state.kick();
        } else if state.silent >= DEAD && state.over.is_none() {
            state.end(Failure::Reset("the peer is silent".into()));
            state.kick();
        }
    }

    /// Opens a stream (client). `end`: the request has no body.
    /// Errors: no stream can be opened now.
    pub(crate) fn open(self: &Arc<Self>, head: &Request, end: bool) -> Result<StreamRef, SendError> {
        let mut state = self.state.lock();
        if state.over.is_some() || state.retired {
            return Err(SendError::Full);
        }
        let slot = Slot { holders: 1, ..Slot::default() };
        let id = state.connection.send_request(head, end, slot).map_err(|(error, _slot)| error)?;
        state.kick();
        Ok(StreamRef { mux: self.clone(), id })
    }
}

impl State {
    fn kick(&mut self) {
        if !std::mem::replace(&mut self.woken, true)
            && let Some(driver) = &self.driver
        {
            driver.wake_by_ref();
        }
    }

    /// Whether others may soon have something to write too, which then leaves with the same record and system call. After the
    /// first time only if they had.
    fn may_wait(&mut self, patience: &mut Patience) -> bool {
        let count = self.connection.unsent().remaining();
        let grew = count > patience.bytes;
        patience.bytes = count;
        patience.turns += 1;
        grew && count < WAITS && self.connection.len() > 1 && patience.turns <= MAX_WAITS
    }

    fn has_written(&mut self) -> bool {
        self.flushed && self.connection.unsent().is_empty()
    }

    fn slot(&mut self, id: StreamId) -> Option<&mut Slot> {
        self.connection.stream(id).map(|stream| &mut stream.value)
    }

    /// The connection is over: everybody hears of it.
    fn end(&mut self, failure: Failure) {
        for (_, stream) in self.connection.streams() {
            stream.value.fail(&failure);
        }
        self.over.get_or_insert(failure);
    }
}

impl Slot {
    fn wake_reader(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    fn fail(&mut self, failure: &Failure) {
        self.gone = true;
        if !self.ended {
            self.failure.get_or_insert_with(|| failure.clone());
        }
        self.wake_reader();
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
    }
}

/// Remembers who is to be woken, without cloning the same waker again.
pub(super) fn remember(place: &mut Option<Waker>, cx: &Context<'_>) {
    match place {
        Some(waker) if waker.will_wake(cx.waker()) => {}
        place => *place = Some(cx.waker().clone()),
    }
}

/// How a driver waits before it writes.
#[derive(Debug, Default)]
struct Patience {
    /// What there was to write the last time.
    bytes: usize,
    turns: u8,
}

/// Drives a connection to its end. `arrived` is called with each request (server).
pub(crate) struct Driver<F> {
    stream: Stream,
    mux: Arc<Mux>,
    /// The beginning of a frame.
    rest: Vec<u8>,
    /// All that came was read: who wakes the driver for something to write need not cost a read.
    drained: bool,
    patience: Patience,
    failed: Option<io::Error>,
    arrivals: Vec<Arrival>,
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
            arrived,
        }
    }

    /// Ready when the connection is over. Errors: it broke, or the peer broke the protocol.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mux = self.mux.clone();
        {
            let mut state = mux.state.lock();
            state.woken = false;
            remember(&mut state.driver, cx);
            if state.over.is_some() {
                return Poll::Ready(Ok(()));
            }
        }
        let mut result = Poll::Pending;
        match self.poll_read(cx) {
            Poll::Ready(Ok(Filled { count: 0, .. })) => {
                mux.state.lock().end(Failure::Reset("connection closed".into()));
                result = Poll::Ready(Ok(()));
            }
            Poll::Ready(Ok(Filled { drained: true, .. })) => {}
            // First those get their turn who wait for what has come: their buffer is free again then.
            Poll::Ready(Ok(_)) => cx.waker().wake_by_ref(),
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                mux.state.lock().end(Failure::Reset(error.to_string().into()));
                result = Poll::Ready(Err(error));
            }
            Poll::Ready(Err(error)) => {
                mux.state.lock().end(Failure::Reset(error.to_string().into()));
                return Poll::Ready(Err(error));
            }
            // An idle connection holds no buffer.
            Poll::Pending if self.rest.is_empty() => self.rest = Vec::new(),
            Poll::Pending => {}
        }
        for arrival in self.arrivals.drain(..) {
            (self.arrived)(arrival);
        }
        let mut state = mux.state.lock();
        if result.is_pending() && state.may_wait(&mut self.patience) {
            // Woken behind those who have something to do by then, and by nobody before.
            state.woken = true;
            let _pending = pin!(tokio::task::yield_now()).poll(cx);
            return Poll::Pending;
        }
        self.patience = Patience::default();
        if let Poll::Ready(Err(error)) = write(&mut self.stream, &mut state, cx) {
            state.end(Failure::Reset(error.to_string().into()));
            // What was found wrong with what came says more.
            return if result.is_pending() { Poll::Ready(Err(error)) } else { result };
        }
        let over = state.retired && state.connection.is_gone() && state.connection.is_empty();
        if result.is_pending() && over && state.has_written() {
            state.end(Failure::Reset("connection closed".into()));
            return Poll::Ready(Ok(()));
        }
        result
    }

    /// Writes what is left, and says goodbye to TLS and TCP.
    pub(crate) fn poll_goodbye(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        {
            let mut state = self.mux.state.lock();
            ready!(write(&mut self.stream, &mut state, cx))?;
            if !state.connection.unsent().is_empty() {
                return Poll::Pending;
            }
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    /// Reads, and hands on what the bytes mean. Errors of the kind `InvalidData`: the peer broke the protocol, and is to hear so.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Filled>> {
        if self.drained && self.failed.is_none() && !self.stream.poll_readable(cx, true) {
            return Poll::Pending;
        }
        buffer::lend(|input| {
            input.extend_from_slice(&self.rest);
            let filled = buffer::poll_fill(&mut self.stream, cx, input, buffer::SIZE, &mut self.failed);
            self.drained = matches!(filled, Poll::Pending | Poll::Ready(Ok(Filled { drained: true, .. })));
            let filled = ready!(filled)?;
            self.understand(input).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            self.rest.clear();
            self.rest.extend_from_slice(input);
            Poll::Ready(Ok(filled))
        })
    }

    fn understand(&mut self, input: &mut BytesMut) -> Result<(), weft_http::http2::Error> {
        let mut state = self.mux.state.lock();
        state.heard = true;
        while let Some(event) = state.connection.receive(input)? {
            match event {
                Event::Request { id, head, end } => {
                    if let Some(slot) = state.slot(id) {
                        slot.ended = end;
                        slot.holders = if end { 1 } else { 2 };
                    }
                    let stream = || StreamRef { mux: self.mux.clone(), id };
                    let body = if end { Body::Empty } else { Body::Http2(Incoming::new(stream(), &head.fields, true)) };
                    self.arrivals.push(Arrival::Request(stream(), head, body));
                }
                Event::BadRequest { id, status, reason } => {
                    if let Some(slot) = state.slot(id) {
                        slot.holders = 1;
                    }
                    let failure = if status == 431 { Failure::HeadTooLarge } else { Failure::BadRequest(reason) };
                    self.arrivals.push(Arrival::Bad(StreamRef { mux: self.mux.clone(), id }, failure));
                }
                Event::Response { id, head, end } => {
                    if let Some(slot) = state.slot(id) {
                        slot.answer = Some(head);
                        slot.ended = end;
                        slot.wake_reader();
                    }
                }
                Event::Data { id, data, end } => {
                    if let Some(slot) = state.slot(id) {
                        if !data.is_empty() {
                            slot.data.push_back(data);
                        }
                        slot.ended = end;
                        slot.wake_reader();
                    }
                }
                Event::Trailers { id, fields } => {
                    if let Some(slot) = state.slot(id) {
                        slot.trailers = Some(fields);
                        slot.ended = true;
                        slot.wake_reader();
                    }
                }
                Event::Reset { id, code, by_peer, unprocessed } => {
                    let failure = match (unprocessed, by_peer) {
                        (true, _) => Failure::RefusedStream,
                        (false, true) => Failure::Reset(format!("stream reset by the peer: {code:?}").into()),
                        (false, false) => Failure::BadAnswer("not HTTP"),
                    };
                    if let Some(slot) = state.slot(id) {
                        slot.no_error = by_peer && code == Code::NoError;
                        slot.fail(&failure);
                    }
                }
                Event::Writable { id } => {
                    if let Some(writer) = state.slot(id).and_then(|slot| slot.writer.take()) {
                        writer.wake();
                    }
                }
                Event::Interim { id, .. } => {
                    let Some(slot) = state.slot(id) else { continue };
                    slot.interim += 1;
                    if slot.interim > MAX_INTERIM {
                        slot.fail(&Failure::BadAnswer("too many interim answers"));
                        state.connection.reset(id, Code::EnhanceYourCalm);
                    }
                }
                Event::GoAway { .. } | Event::Pong => {}
            }
        }
        Ok(())
    }
}

/// However its task ends, by a panic too: whoever has a part in a stream hears of it.
impl<F> Drop for Driver<F> {
    fn drop(&mut self) {
        self.mux.state.lock().end(Failure::Reset("connection closed".into()));
    }
}

/// Writes what waits, and lets those go on who wait for room.
fn write(stream: &mut Stream, state: &mut State, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    let unsent = state.connection.unsent();
    if unsent.is_empty() {
        return flush(stream, state, cx);
    }
    while unsent.has_remaining() {
        match tokio_util::io::poll_write_buf(Pin::new(stream), cx, unsent) {
            Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            Poll::Ready(Ok(_)) => {}
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Pending => break,
        }
    }
    unsent.shrink();
    state.connection.written();
    while let Some(id) = state.connection.next_writable() {
        if let Some(writer) = state.slot(id).and_then(|slot| slot.writer.take()) {
            writer.wake();
        }
    }
    flush(stream, state, cx)
}

fn flush(stream: &mut Stream, state: &mut State, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    let flushed = Pin::new(stream).poll_flush(cx);
    state.flushed = flushed.is_ready();
    flushed
}

impl StreamRef {
    /// The head of the answer (client).
    pub(crate) fn poll_answer(&self, cx: &Context<'_>) -> Poll<Result<Response, Failure>> {
        let mut state = self.mux.state.lock();
        let over = state.over.clone();
        let Some(slot) = state.slot(self.id) else { return Poll::Ready(Err(Failure::Reset("no such stream".into()))) };
        if let Some(answer) = slot.answer.take() {
            return Poll::Ready(Ok(answer));
        }
        match slot.failure.clone().or(over) {
            Some(failure) => Poll::Ready(Err(failure)),
            None => {
                remember(&mut slot.reader, cx);
                Poll::Pending
            }
        }
    }

    /// The body that comes behind a head.
    pub(crate) fn into_body(self, fields: &Fields) -> Body {
        let incoming = Incoming::new(self, fields, false);
        if incoming.is_end() { Body::Empty } else { Body::Http2(incoming) }
    }

    /// Sends the head of an answer (server).
    pub(crate) fn send_answer(&self, head: &Response, end: bool) -> Result<(), Failure> {
        let mut state = self.mux.state.lock();
        let sent = state.connection.send_response(self.id, head, end);
        state.kick();
        sent.map_err(|_closed| Failure::CallerGone)
    }

    /// Sends data; what is taken is taken out of `data`. Errors: the stream is over.
    pub(crate) fn poll_send(&self, cx: &Context<'_>, data: &mut Bytes, end: bool) -> Poll<Result<(), Failure>> {
        let mut state = self.mux.state.lock();
        if state.over.is_some() {
            return Poll::Ready(Err(Failure::CallerGone));
        }
        let sent = state.connection.send_data(self.id, data, end);
        state.kick();
        match sent {
            Ok(true) => Poll::Ready(Ok(())),
            Ok(false) => {
                if let Some(slot) = state.slot(self.id) {
                    remember(&mut slot.writer, cx);
                }
                Poll::Pending
            }
            Err(_closed) => Poll::Ready(Err(Failure::CallerGone)),
        }
    }

    /// Ready when the stream is over before its end.
    pub(crate) fn poll_gone(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.mux.state.lock();
        let over = state.over.is_some();
        match state.slot(self.id) {
            Some(slot) if !slot.gone && !over => {
                remember(&mut slot.writer, cx);
                Poll::Pending
            }
            _ => Poll::Ready(()),
        }
    }

    /// Ends a body with trailers.
    pub(crate) fn send_trailers(&self, fields: &Fields) -> Result<(), Failure> {
        let mut state = self.mux.state.lock();
        let sent = state.connection.send_trailers(self.id, fields);
        state.kick();
        sent.map_err(|_closed| Failure::CallerGone)
    }

    /// Ends the stream before its end.
    pub(crate) fn reset(&self, code: Code) {
        let mut state = self.mux.state.lock();
        state.connection.reset(self.id, code);
        // Nothing more comes on it: whoever still reads or writes it would wait for ever.
        if let Some(slot) = state.slot(self.id) {
            slot.fail(&Failure::Reset("the other half of the exchange broke off".into()));
        }
        state.kick();
    }

    /// Sends a whole body, as far as it goes at once. Errors: why the body broke off, or none when the stream is over.
    pub(crate) fn poll_body(
        &self,
        cx: &mut Context<'_>,
        body: &mut Body,
        rest: &mut Bytes,
    ) -> Poll<Result<(), Option<Failure>>> {
        loop {
            if !rest.is_empty() {
                let end = body.is_end();
                ready!(self.poll_send(cx, rest, end)).map_err(|_over| None)?;
                if end {
                    return Poll::Ready(Ok(()));
                }
            }
            match ready!(body.poll_piece(cx)) {
                Some(Ok(Piece::Data(data))) => *rest = data,
                Some(Ok(Piece::Trailers(fields))) => {
                    return Poll::Ready(self.send_trailers(&fields).map_err(|_over| None));
                }
                Some(Err(failure)) => {
                    // Callers take CANCEL for an end that they asked for (Node, hyper): a cut answer must not look like one.
                    let gone = matches!(failure, Failure::CallerGone);
                    self.reset(if gone { Code::Cancel } else { Code::InternalError });
                    return Poll::Ready(Err(Some(failure)));
                }
                None => return self.poll_send(cx, rest, true).map_err(|_over| None),
            }
        }
    }
}

impl StreamRef {
    /// Sends what is left of a body, until all is sent or the stream is over. `rest`: what was taken out of it and not yet sent.
    /// Errors: as in [`StreamRef::poll_body`].
    pub(crate) async fn send_body(&self, mut body: Body, mut rest: Bytes) -> Result<(), Option<Failure>> {
        poll_fn(|cx| {
            let sent = self.poll_body(cx, &mut body, &mut rest);
            if sent.is_pending() && self.poll_gone(cx).is_ready() {
                return Poll::Ready(Err(None));
            }
            sent
        })
        .await
    }
}

impl Clone for StreamRef {
    fn clone(&self) -> Self {
        if let Some(slot) = self.mux.state.lock().slot(self.id) {
            slot.holders += 1;
        }
        Self { mux: self.mux.clone(), id: self.id }
    }
}

impl Drop for StreamRef {
    fn drop(&mut self) {
        let mut state = self.mux.state.lock();
        let Some(stream) = state.connection.stream(self.id) else { return };
        stream.value.holders = stream.value.holders.saturating_sub(1);
        if stream.value.holders > 0 {
            return;
        }
        // A server that has answered needs the rest of the request no more (RFC 9113 §8.1).
        let code = if stream.has_sent_all() { Code::NoError } else { Code::Cancel };
        let unread: usize = stream.value.data.iter().map(Bytes::len).sum();
        if unread > 0 {
            state.connection.consumed(self.id, unread);
        }
        state.connection.forget(self.id, code);
        if state.retired || !state.connection.unsent().is_empty() {
            state.kick();
        }
    }
}

impl Incoming {
    fn new(stream: StreamRef, fields: &Fields, request: bool) -> Self {
        let length = fields.first(weft_http::fields::Name::ContentLength);
        let left = length.and_then(|length| std::str::from_utf8(length).ok()?.parse().ok());
        Self { stream, left, request }
    }

    pub(crate) fn poll_piece(&mut self, cx: &Context<'_>) -> Poll<Next> {
        let id = self.stream.id;
        let whole = self.may_end_without_error();
        let mut state = self.stream.mux.state.lock();
        let Some(slot) = state.slot(id) else { return Poll::Ready(None) };
        if let Some(data) = slot.data.pop_front() {
            state.connection.consumed(id, data.len());
            if !state.connection.unsent().is_empty() {
                state.kick();
            }
            self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
            return Poll::Ready(Some(Ok(Piece::Data(data))));
        }
        if let Some(trailers) = slot.trailers.take() {
            return Poll::Ready(Some(Ok(Piece::Trailers(trailers))));
        }
        if slot.ended || (slot.no_error && whole) {
            return Poll::Ready(None);
        }
        if let Some(failure) = &slot.failure {
            return Poll::Ready(Some(Err(if self.request { Failure::CallerGone } else { failure.clone() })));
        }
        remember(&mut slot.reader, cx);
        Poll::Pending
    }

    pub(crate) fn is_end(&self) -> bool {
        let mut state = self.stream.mux.state.lock();
        let Some(slot) = state.slot(self.stream.id) else { return true };
        let ended = slot.ended || (slot.no_error && self.may_end_without_error());
        ended && slot.data.is_empty() && slot.trailers.is_none()
    }

    /// Whether a reset with NO_ERROR is taken for the end, once all that came was read.
    fn may_end_without_error(&self) -> bool {
        !self.request && self.left.is_none_or(|left| left == 0)
    }

    pub(crate) fn exact(&self) -> Option<u64> {
        if self.is_end() { Some(0) } else { self.left }
    }
}

/// A stream as a tunnel: bytes both ways, as DATA.
#[derive(Debug)]
pub(crate) struct Tunnel {
    incoming: Incoming,
    unread: Bytes,
    unsent: Bytes,
}

impl Tunnel {
    pub(crate) fn new(stream: StreamRef) -> Self {
        Self { incoming: Incoming { stream, left: None, request: false }, unread: Bytes::new(), unsent: Bytes::new() }
    }

    fn poll_unsent(&mut self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        if self.unsent.is_empty() {
            return Poll::Ready(Ok(()));
        }
        self.incoming.stream.poll_send(cx, &mut self.unsent, false).map_err(io::Error::other)
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            match ready!(self.incoming.poll_piece(cx)) {
                Some(Ok(Piece::Data(data))) => self.unread = data,
                Some(Ok(Piece::Trailers(_))) | None => return Poll::Ready(Ok(())),
                Some(Err(failure)) => return Poll::Ready(Err(io::Error::other(failure))),
            }
        }
        let count = self.unread.len().min(buf.remaining());
        buf.put_slice(&self.unread.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_unsent(cx))?;
        self.unsent = Bytes::copy_from_slice(buf);
        // What cannot go now is kept, and goes before the next.
        match self.poll_unsent(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(buf.len())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_unsent(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_unsent(cx))?;
        self.incoming.stream.poll_send(cx, &mut Bytes::new(), true).map_err(io::Error::other)
    }
}
