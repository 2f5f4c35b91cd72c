//! One stream of an HTTP/2 connection, as the task of its request uses it.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tokio::time::{Sleep, sleep};
use weft_core::failure::Failure;
use weft_http::{
    fields::Fields,
    head::Response,
    http2::{Code, Role, StreamId},
};

use super::{HalfClosed, Incoming, Mux, reset_code};
use crate::http::{
    body::{Body, Piece},
    interim::Interim,
    remember,
};

/// A share in a stream. Dropping the last one ends the stream.
#[derive(Debug)]
pub(crate) struct StreamRef {
    pub(super) mux: Arc<Mux>,
    pub(super) id: StreamId,
}

impl StreamRef {
    /// Where interim answers to its request go (server). Holds no share in the stream. `hop`: to another proxy.
    pub(crate) fn interim(&self, hop: bool) -> Interim {
        let caller = if hop { Interim::Hop } else { Interim::Http2 };
        caller(self.mux.clone(), self.id)
    }

    /// To be polled while an answer is awaited whose caller has closed its sending side behind the whole request (client). Ready
    /// when the request is to be cancelled. `silence`: until the next byte of the answer.
    pub(crate) fn poll_half_closed(&self, cx: &mut Context<'_>, silence: &mut Option<Pin<Box<Sleep>>>) -> Poll<()> {
        match self.mux.half_closed {
            HalfClosed::Told => {
                let mut inner = self.mux.inner.lock();
                inner.connection.half_close(self.id);
                if !inner.connection.unsent().is_empty() {
                    inner.kick();
                }
                Poll::Pending
            }
            HalfClosed::Cancelled(None) => Poll::Pending,
            HalfClosed::Cancelled(Some(wait)) => silence.get_or_insert_with(|| Box::pin(sleep(wait))).as_mut().poll(cx),
        }
    }

    /// The next interim answer that came before the answer (client).
    pub(crate) fn take_interim(&self) -> Option<Response> {
        self.mux.inner.lock().state(self.id)?.interim.pop_front()
    }

    /// The head of the answer (client).
    pub(crate) fn poll_answer(&self, cx: &Context<'_>) -> Poll<Result<Response, Failure>> {
        let mut inner = self.mux.inner.lock();
        let over = inner.over.clone();
        let Some(state) = inner.state(self.id) else {
            return Poll::Ready(Err(Failure::reset("no such stream")));
        };
        if let Some(answer) = state.answer.take() {
            return Poll::Ready(Ok(answer));
        }
        match state.failure.clone().or(over) {
            Some(failure) => Poll::Ready(Err(failure)),
            None => {
                remember(&mut state.reader, cx);
                Poll::Pending
            }
        }
    }

    /// The body behind a head.
    pub(crate) fn into_body(self, fields: &Fields) -> Body {
        let incoming = Incoming::new(self, fields, false);
        if incoming.is_end() { Body::Empty } else { Body::Http2(incoming) }
    }

    /// Sends the head of an answer (server).
    pub(crate) fn send_answer(&self, head: &Response, end: bool) -> Result<(), Failure> {
        let mut inner = self.mux.inner.lock();
        let sent = inner.connection.send_response(self.id, head, end);
        inner.kick();
        sent.map_err(|_closed| Failure::CallerGone)
    }

    /// Sends data; the bytes that were sent are taken out of `data`. Errors: the stream is over.
    pub(crate) fn poll_send(&self, cx: &Context<'_>, data: &mut Bytes, end: bool) -> Poll<Result<(), Failure>> {
        let mut inner = self.mux.inner.lock();
        if inner.over.is_some() {
            return Poll::Ready(Err(Failure::CallerGone));
        }
        let sent = inner.connection.send_data(self.id, data, end);
        inner.kick();
        match sent {
            Ok(true) => Poll::Ready(Ok(())),
            Ok(false) => {
                if let Some(state) = inner.state(self.id) {
                    remember(&mut state.writer, cx);
                }
                Poll::Pending
            }
            Err(_closed) => Poll::Ready(Err(Failure::CallerGone)),
        }
    }

    /// Ready when the stream is over before its end.
    pub(crate) fn poll_gone(&self, cx: &Context<'_>) -> Poll<()> {
        let mut inner = self.mux.inner.lock();
        let over = inner.over.is_some();
        match inner.state(self.id) {
            Some(state) if !state.gone && !over => {
                remember(&mut state.writer, cx);
                Poll::Pending
            }
            _ => Poll::Ready(()),
        }
    }

    /// Whether it was ended because its reader took nothing.
    fn is_stalled(&self) -> bool {
        let mut inner = self.mux.inner.lock();
        let over = matches!(inner.over, Some(Failure::Stalled));
        over || inner.state(self.id).is_some_and(|state| state.stalled)
    }

    /// Ends a body with trailers.
    pub(crate) fn send_trailers(&self, fields: &Fields) -> Result<(), Failure> {
        let mut inner = self.mux.inner.lock();
        let sent = inner.connection.send_trailers(self.id, fields);
        inner.kick();
        sent.map_err(|_closed| Failure::CallerGone)
    }

    /// Ends the stream before its end.
    pub(crate) fn reset(&self, code: Code) {
        self.reset_for(code, &Failure::reset("the other half of the exchange broke off"));
    }

    /// The same with what the other half of the exchange is told: that its caller has gone is no failure of the peer.
    fn reset_for(&self, code: Code, failure: &Failure) {
        let mut inner = self.mux.inner.lock();
        inner.connection.reset(self.id, code);
        // Nothing more comes on it: a task that still reads or writes it would wait for ever.
        if let Some(state) = inner.state(self.id) {
            state.fail(failure);
        }
        inner.kick();
    }

    /// Sends a body, as far as it goes at once. `rest`: a piece of it that was not sent in whole. `open`: the stream goes on
    /// behind it.
    /// Errors: why the body broke off; `None` where the stream is over.
    pub(crate) fn poll_body(
        &self,
        cx: &mut Context<'_>,
        body: &mut Body,
        rest: &mut Bytes,
        open: bool,
    ) -> Poll<Result<(), Option<Failure>>> {
        loop {
            if !rest.is_empty() {
                let end = body.is_end();
                ready!(self.poll_send(cx, rest, end && !open)).map_err(|_over| None)?;
                if end {
                    return Poll::Ready(Ok(()));
                }
            }
            match ready!(body.poll_piece(cx)) {
                Some(Ok(Piece::Data(data))) => *rest = data,
                Some(Ok(Piece::Trailers(_))) | None if open => return Poll::Ready(Ok(())),
                Some(Ok(Piece::Trailers(fields))) => {
                    return Poll::Ready(self.send_trailers(&fields).map_err(|_over| None));
                }
                Some(Err(failure)) => {
                    // Callers take CANCEL for an end that they asked for (Node, hyper): a cut answer must not look like one.
                    let code = match (&failure, reset_code(&failure)) {
                        (Failure::CallerGone, _) => Code::Cancel,
                        (Failure::Unended, _) => Code::NoError,
                        (_, Some(Code::NoError | Code::Cancel)) => Code::InternalError,
                        // As the application has reset it.
                        (_, Some(code)) => code,
                        (Failure::Reset(_), None) => Code::ConnectError,
                        (_, None) => Code::InternalError,
                    };
                    self.reset_for(code, &failure);
                    return Poll::Ready(Err(Some(failure)));
                }
                None => return self.poll_send(cx, rest, true).map_err(|_over| None),
            }
        }
    }

    /// Sends the rest of a body, until all of it is sent or the stream is over. `rest` and errors: as for
    /// [`StreamRef::poll_body`].
    pub(crate) async fn send_body(&self, mut body: Body, mut rest: Bytes) -> Result<(), Option<Failure>> {
        let sent = poll_fn(|cx| {
            let sent = self.poll_body(cx, &mut body, &mut rest, false);
            if sent.is_pending() && self.poll_gone(cx).is_ready() {
                return Poll::Ready(Err(None));
            }
            sent
        })
        .await;
        if sent.as_ref().is_err_and(Option::is_none) && self.is_stalled() {
            body.break_off(&Failure::Stalled);
            return Err(Some(Failure::Stalled));
        }
        sent
    }
}

impl Clone for StreamRef {
    fn clone(&self) -> Self {
        if let Some(state) = self.mux.inner.lock().state(self.id) {
            state.holders += 1;
        }
        Self { mux: self.mux.clone(), id: self.id }
    }
}

impl Drop for StreamRef {
    fn drop(&mut self) {
        let mut inner = self.mux.inner.lock();
        let is_server = inner.connection.role() == Role::Server;
        let Some(stream) = inner.connection.stream(self.id) else { return };
        stream.value.holders = stream.value.holders.saturating_sub(1);
        if stream.value.holders > 0 {
            return;
        }
        // A server that has answered does not need the rest of the request (RFC 9113 §8.1).
        let has_answered = stream.has_sent_all() && is_server;
        let code = if has_answered { Code::NoError } else { Code::Cancel };
        if let Some(state) = inner.connection.remove(self.id, code) {
            inner.heads.release(state.head);
        }
        if inner.connection.sent_final_goaway() || !inner.connection.unsent().is_empty() {
            inner.kick();
        }
    }
}
