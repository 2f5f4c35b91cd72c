//! Bodies: streamed from one side to the other, kept for another attempt up to a bound, counted, and watched to their end.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use weft_core::{failure::Failure, retry::MAX_REPLAY};
use weft_http::fields::Fields;

use super::{http1, http2, remember};

/// A body on its way through the proxy.
#[derive(Debug, Default)]
pub(crate) enum Body {
    #[default]
    Empty,
    Full(Bytes),
    Http1(http1::Incoming),
    Http2(http2::Incoming),
    Replay(Replay),
    Counted(Box<Counted>),
    Timed(Box<Timed>),
}

/// A piece of a body.
#[derive(Clone, Debug)]
pub(crate) enum Piece {
    Data(Bytes),
    /// Always the last.
    Trailers(Fields),
}

/// The next piece; `None` at the end.
pub(crate) type Next = Option<Result<Piece, Failure>>;

/// A body that keeps its pieces, so that another attempt can send it again. Clones share one source; only the newest one reads.
#[derive(Clone, Debug)]
pub(crate) struct Replay {
    kept: Arc<Mutex<Kept>>,
    next: usize,
    /// Which reader this is; 0 until it reads.
    reader: u32,
}

#[derive(Debug)]
struct Kept {
    source: Body,
    pieces: Vec<Piece>,
    size: usize,
    /// More bytes passed than may be kept.
    overflowed: bool,
    ended: bool,
    /// The reader of now; a reader before it gets an error.
    reader: u32,
    waker: Option<Waker>,
}

/// A body that reports its bytes and its end to a watcher.
pub(crate) struct Counted {
    body: Body,
    watcher: Option<Box<dyn Watcher>>,
}

/// A body that breaks off at a deadline, or when it does not move for some time.
#[derive(Debug)]
pub(crate) struct Timed {
    body: Body,
    deadline: Option<Pin<Box<Sleep>>>,
    idle: Option<(Duration, Pin<Box<Sleep>>)>,
}

/// The observer of a body. Dropped when the body is dropped before its end.
pub(crate) trait Watcher: Send {
    /// Whether the reader of the body has closed its sending side. The task that polls the body is woken then.
    fn has_half_closed(&self) -> bool {
        false
    }
    /// Bytes passed.
    fn bytes(&mut self, count: usize);
    /// Trailers passed.
    fn trailers(&mut self, trailers: &mut Fields);
    /// It came to its end.
    fn end(self: Box<Self>);
    /// It broke off. Returns the trailers that say so, where the receiver knows errors in trailers: then they end the body.
    fn error(self: Box<Self>, error: &Failure) -> Option<Fields>;
}

impl std::fmt::Debug for Counted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Counted").field("body", &self.body).finish_non_exhaustive()
    }
}

impl Body {
    /// A body that reports to `watcher`.
    pub(crate) fn counted(self, watcher: Box<dyn Watcher>) -> Self {
        if self.is_end() {
            watcher.end();
            return self;
        }
        Self::Counted(Box::new(Counted { body: self, watcher: Some(watcher) }))
    }

    /// A body that breaks off at a deadline, or when it does not move for the idle time.
    pub(crate) fn bounded(self, deadline: Option<Instant>, idle: Option<Duration>) -> Self {
        if self.is_end() {
            return self;
        }
        let deadline = deadline.map(|deadline| Box::pin(sleep_until(deadline)));
        let idle = idle.map(|idle| (idle, Box::pin(sleep(idle))));
        Self::Timed(Box::new(Timed { body: self, deadline, idle }))
    }

    /// The body with the means to send it again in another attempt.
    pub(crate) fn replayable(self) -> Self {
        match self {
            Self::Empty | Self::Full(_) | Self::Replay(_) => self,
            Self::Http1(_) | Self::Http2(_) | Self::Counted(_) | Self::Timed(_) => {
                if self.is_end() {
                    return Self::Empty;
                }
                let kept = Kept {
                    source: self,
                    pieces: Vec::new(),
                    size: 0,
                    overflowed: false,
                    ended: false,
                    reader: 0,
                    waker: None,
                };
                Self::Replay(Replay { kept: Arc::new(Mutex::new(kept)), next: 0, reader: 0 })
            }
        }
    }

    /// The same body from its beginning; `None` when it cannot be sent again.
    pub(crate) fn again(&self) -> Option<Self> {
        match self {
            Self::Empty => Some(Self::Empty),
            Self::Full(bytes) => Some(Self::Full(bytes.clone())),
            Self::Replay(replay) if !replay.kept.lock().overflowed => {
                Some(Self::Replay(Replay { kept: replay.kept.clone(), next: 0, reader: 0 }))
            }
            Self::Replay(_) | Self::Http1(_) | Self::Http2(_) | Self::Counted(_) | Self::Timed(_) => None,
        }
    }

    /// The body in front of a tunnel on the same stream: so many bytes.
    pub(crate) fn first(self, length: u64) -> Self {
        if let Self::Http2(incoming) = self
            && length > 0
        {
            return Self::Http2(incoming.first(length));
        }
        Self::Empty
    }

    /// All of it in one piece, without its trailers. Errors: it breaks off, or is longer than `most` bytes.
    pub(crate) async fn collect(mut self, most: usize) -> Result<Bytes, Failure> {
        let mut all = BytesMut::new();
        while let Some(piece) = poll_fn(|cx| self.poll_piece(cx)).await {
            if let Piece::Data(data) = piece? {
                if all.len() + data.len() > most {
                    return Err(Failure::BodyTooLarge);
                }
                all.extend_from_slice(&data);
            }
        }
        Ok(all.freeze())
    }

    /// The next piece.
    pub(crate) fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        match self {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Full(bytes) => Poll::Ready(Some(Ok(Piece::Data(std::mem::take(bytes))))),
            Self::Http1(incoming) => incoming.poll_piece(cx),
            Self::Http2(incoming) => incoming.poll_piece(cx),
            Self::Replay(replay) => replay.poll(cx),
            Self::Counted(counted) => counted.poll(cx),
            Self::Timed(timed) => timed.poll(cx),
        }
    }

    /// To be polled while more of an answer is awaited whose caller has closed its sending side: the application is told, or the
    /// body breaks off.
    fn poll_half_closed(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        match self {
            Self::Http1(incoming) => incoming.half_close(cx),
            Self::Http2(incoming) => return incoming.poll_half_closed(cx),
            Self::Counted(counted) => return counted.body.poll_half_closed(cx),
            Self::Timed(timed) => return timed.body.poll_half_closed(cx),
            Self::Empty | Self::Full(_) | Self::Replay(_) => {}
        }
        Poll::Pending
    }

    /// Gives it up before its end, and says why.
    pub(crate) fn break_off(&mut self, failure: &Failure) {
        if let Self::Counted(counted) = self
            && let Some(watcher) = counted.watcher.take()
        {
            watcher.error(failure);
        }
    }

    /// Whether it is known that nothing more comes.
    pub(crate) fn is_end(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_empty(),
            Self::Http1(incoming) => incoming.is_end(),
            Self::Http2(incoming) => incoming.is_end(),
            Self::Replay(replay) => replay.is_end(),
            Self::Counted(counted) => counted.watcher.is_none() && counted.body.is_end(),
            Self::Timed(timed) => timed.body.is_end(),
        }
    }

    /// How many bytes are left, where that is known.
    pub(crate) fn exact(&self) -> Option<u64> {
        match self {
            Self::Empty => Some(0),
            Self::Full(bytes) => Some(bytes.len() as u64),
            Self::Http1(incoming) => incoming.exact(),
            Self::Http2(incoming) => incoming.exact(),
            Self::Replay(replay) => replay.exact(),
            Self::Counted(counted) => counted.body.exact(),
            Self::Timed(timed) => timed.body.exact(),
        }
    }
}

impl Replay {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        let mut kept = self.kept.lock();
        if self.reader == 0 {
            kept.reader += 1;
            self.reader = kept.reader;
            if let Some(before) = kept.waker.take() {
                before.wake();
            }
        } else if self.reader != kept.reader {
            // An attempt that was given up may still be uploading: it must take nothing from the one in flight.
            return Poll::Ready(Some(Err(Failure::CallerGone)));
        }
        if let Some(piece) = kept.pieces.get(self.next) {
            self.next += 1;
            return Poll::Ready(Some(Ok(piece.clone())));
        }
        if kept.ended {
            return Poll::Ready(None);
        }
        remember(&mut kept.waker, cx);
        let polled = ready!(kept.source.poll_piece(cx));
        match &polled {
            Some(Ok(piece)) => {
                if let Piece::Data(data) = piece {
                    kept.size = kept.size.saturating_add(data.len());
                }
                if kept.size > MAX_REPLAY {
                    kept.overflowed = true;
                    kept.pieces = Vec::new();
                    self.next = 0;
                } else {
                    let piece = piece.clone();
                    kept.pieces.push(piece);
                    self.next += 1;
                }
                kept.ended = matches!(piece, Piece::Trailers(_)) || kept.source.is_end();
            }
            Some(Err(_)) => kept.overflowed = true,
            None => kept.ended = true,
        }
        Poll::Ready(polled)
    }

    fn is_end(&self) -> bool {
        let kept = self.kept.lock();
        self.next >= kept.pieces.len() && (kept.ended || kept.source.is_end())
    }

    fn exact(&self) -> Option<u64> {
        let kept = self.kept.lock();
        let rest = kept.pieces.iter().skip(self.next).map(|piece| match piece {
            Piece::Data(data) => data.len() as u64,
            Piece::Trailers(_) => 0,
        });
        let rest: u64 = rest.sum();
        if kept.ended { Some(rest) } else { kept.source.exact().map(|more| more.saturating_add(rest)) }
    }
}

impl Timed {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        if self.deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(Some(Err(Failure::RequestTimeout)));
        }
        let polled = self.body.poll_piece(cx);
        if let Some((idle, sleep)) = &mut self.idle {
            if polled.is_ready() {
                sleep.as_mut().reset(Instant::now() + *idle);
            } else if sleep.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Some(Err(Failure::IdleTimeout)));
            }
        }
        polled
    }
}

impl Counted {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        let polled = match (self.body.poll_piece(cx), &self.watcher) {
            (Poll::Pending, Some(watcher)) if watcher.has_half_closed() => self.body.poll_half_closed(cx),
            (polled, _) => polled,
        };
        let mut polled = ready!(polled);
        match (&mut polled, self.watcher.take()) {
            (Some(Ok(piece)), Some(mut watcher)) => {
                let last = match piece {
                    Piece::Data(data) => {
                        watcher.bytes(data.len());
                        self.body.is_end()
                    }
                    Piece::Trailers(trailers) => {
                        watcher.trailers(trailers);
                        true
                    }
                };
                if last {
                    // The watcher may give the connection to the next request, whose body this must not read.
                    self.body = Body::Empty;
                    watcher.end();
                } else {
                    self.watcher = Some(watcher);
                }
            }
            (Some(Err(error)), Some(watcher)) => {
                if let Some(trailers) = watcher.error(error) {
                    self.body = Body::Empty;
                    polled = Some(Ok(Piece::Trailers(trailers)));
                }
            }
            (None, Some(watcher)) => {
                self.body = Body::Empty;
                watcher.end();
            }
            (_, None) => {}
        }
        Poll::Ready(polled)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    /// Reads a body that is ready to its end.
    fn drain(body: &mut Body) -> Vec<u8> {
        let mut cx = Context::from_waker(Waker::noop());
        let mut data = Vec::new();
        while let Poll::Ready(Some(piece)) = body.poll_piece(&mut cx) {
            if let Piece::Data(bytes) = piece.unwrap() {
                data.extend(bytes);
            }
        }
        data
    }

    struct Nothing;
    impl Watcher for Nothing {
        fn bytes(&mut self, _: usize) {}
        fn trailers(&mut self, _: &mut Fields) {}
        fn end(self: Box<Self>) {}
        fn error(self: Box<Self>, _: &Failure) -> Option<Fields> {
            None
        }
    }

    fn source(size: usize) -> Body {
        Body::Full(Bytes::from(vec![b'x'; size])).counted(Box::new(Nothing))
    }

    #[test]
    fn a_small_body_can_be_sent_again_in_whole() {
        let mut first = source(1000).replayable();
        let mut second = first.again().unwrap();
        assert_eq!(drain(&mut first).len(), 1000);
        assert_eq!(second.exact(), Some(1000));
        assert_eq!(drain(&mut second).len(), 1000);
        assert!(second.is_end());
        assert_eq!(drain(&mut first.again().unwrap()).len(), 1000);
    }

    #[test]
    fn a_try_that_was_given_up_takes_nothing_from_the_next() {
        let mut first = source(1000).replayable();
        let mut second = first.again().unwrap();
        let mut cx = Context::from_waker(Waker::noop());
        assert!(first.poll_piece(&mut cx).is_ready());
        assert_eq!(drain(&mut second).len(), 1000);
        assert!(matches!(first.poll_piece(&mut cx), Poll::Ready(Some(Err(Failure::CallerGone)))));
        assert!(second.is_end());
    }

    #[test]
    fn a_body_above_the_bound_is_sent_once() {
        let mut first = source(MAX_REPLAY + 1).replayable();
        assert!(first.again().is_some());
        assert_eq!(drain(&mut first).len(), MAX_REPLAY + 1);
        assert!(first.again().is_none());
    }
}
