//! The body that comes on a stream of HTTP/2.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::time::Sleep;
use weft_core::failure::Failure;
use weft_http::{
    fields::{Fields, Name},
    http2::Code,
};

use super::{StreamRef, StreamReset};
use crate::http::{
    body::{Next, Piece},
    remember,
};

/// The body that comes on a stream.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(super) stream: StreamRef,
    /// Bytes that Content-Length announced and that have not come.
    left: Option<u64>,
    /// Of a request: where it breaks off, the caller is gone.
    request: bool,
    /// Bytes after which the body ends although the stream goes on: a tunnel's follow.
    first: Option<u64>,
    /// Runs while the caller of an answer has closed its sending side and none of the answer comes.
    silence: Option<Pin<Box<Sleep>>>,
}

impl Incoming {
    pub(super) fn new(stream: StreamRef, fields: &Fields, request: bool) -> Self {
        let length = fields.first(Name::ContentLength);
        let left = length.and_then(|length| std::str::from_utf8(length).ok()?.parse().ok());
        Self { stream, left, request, first: None, silence: None }
    }

    /// The bytes that come on a stream without an announced end, a tunnel's: only END_STREAM is their end.
    pub(super) fn open(stream: StreamRef) -> Self {
        Self { stream, left: None, request: false, first: None, silence: None }
    }

    /// The body in front of a tunnel: so many bytes of the stream.
    pub(crate) fn first(self, length: u64) -> Self {
        Self { left: None, first: Some(length), ..self }
    }

    pub(crate) fn poll_piece(&mut self, cx: &Context<'_>) -> Poll<Next> {
        if self.first == Some(0) {
            return Poll::Ready(None);
        }
        let id = self.stream.id;
        let whole = self.may_end_without_error();
        let mut inner = self.stream.mux.inner.lock();
        let Some(state) = inner.state(id) else { return Poll::Ready(None) };
        if let Some(mut data) = state.data.pop() {
            if let Some(first) = &mut self.first {
                let length = usize::try_from(*first).unwrap_or(usize::MAX).min(data.len());
                let behind = data.split_off(length);
                if !behind.is_empty() {
                    state.data.put_back(behind);
                }
                *first = first.saturating_sub(length as u64);
            }
            inner.connection.consumed(id, data.len());
            if !inner.connection.unsent().is_empty() {
                inner.kick();
            }
            self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
            self.silence = None;
            return Poll::Ready(Some(Ok(Piece::Data(data))));
        }
        if let Some(trailers) = state.trailers.take() {
            return Poll::Ready(Some(Ok(Piece::Trailers(trailers))));
        }
        if state.ended || (state.no_error && whole) {
            let cut = self.first.is_some();
            return Poll::Ready(cut.then_some(Err(Failure::CallerGone)));
        }
        if let Some(failure) = &state.failure {
            let failure = if self.request && !failure.is_too_large() {
                Failure::CallerGone
            } else if self.left.is_some() && matches!(failure, Failure::Unended) {
                // What Content-Length announced is missing: that is no end to any caller.
                Failure::reset(StreamReset(Code::InternalError))
            } else {
                failure.clone()
            };
            return Poll::Ready(Some(Err(failure)));
        }
        remember(&mut state.reader, cx);
        Poll::Pending
    }

    /// To be polled while more of an answer is awaited whose caller has closed its sending side.
    pub(crate) fn poll_half_closed(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        ready!(self.stream.poll_half_closed(cx, &mut self.silence));
        Poll::Ready(Some(Err(Failure::CallerGone)))
    }

    pub(crate) fn is_end(&self) -> bool {
        if let Some(first) = self.first {
            return first == 0;
        }
        let mut inner = self.stream.mux.inner.lock();
        let Some(state) = inner.state(self.stream.id) else { return true };
        let ended = state.ended || (state.no_error && self.may_end_without_error());
        ended && state.data.is_empty() && state.trailers.is_none()
    }

    /// Whether a reset with NO_ERROR is the end of the body, once every byte that came was read: only Content-Length can say so.
    fn may_end_without_error(&self) -> bool {
        !self.request && self.left == Some(0)
    }

    pub(crate) fn exact(&self) -> Option<u64> {
        if self.is_end() { Some(0) } else { self.first.or(self.left) }
    }
}
