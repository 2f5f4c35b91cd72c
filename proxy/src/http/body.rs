//! Bodies: streamed from one side to the other, kept for another try up to a bound, counted, and told when they end.

use std::{
    error::Error,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use weft_core::{failure::Failure, retry::MAX_REPLAY};

/// A body on its way through the proxy.
#[derive(Debug, Default)]
pub(crate) enum Body {
    #[default]
    Empty,
    Full(Bytes),
    Incoming(Incoming),
    Replay(Replay),
    Counted(Box<Counted>),
    Timed(Box<Timed>),
}

/// Why a body broke off.
pub(crate) type BodyError = Box<dyn Error + Send + Sync>;

/// A body that keeps what passes, so that another try can send it again. Clones share one source; only the newest reads.
#[derive(Clone, Debug)]
pub(crate) struct Replay {
    kept: Arc<Mutex<Kept>>,
    next: usize,
}

#[derive(Debug)]
struct Kept {
    source: Body,
    frames: Vec<Bytes>,
    trailers: Option<http::HeaderMap>,
    size: usize,
    /// More passed than may be kept.
    overflowed: bool,
    ended: bool,
}

/// A body that counts its bytes and tells its watcher how it ended.
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

/// Who wants to know about a body. Dropped when the body is dropped before its end.
pub(crate) trait Watcher: Send {
    /// Bytes passed.
    fn bytes(&mut self, count: usize);
    /// Trailers passed.
    fn trailers(&mut self, trailers: &mut http::HeaderMap);
    /// It came to its end.
    fn end(self: Box<Self>);
    /// It broke off.
    fn error(self: Box<Self>, error: &BodyError);
}

impl std::fmt::Debug for Counted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Counted").field("body", &self.body).finish_non_exhaustive()
    }
}

impl Body {
    /// A body that reports to `watcher`.
    pub(crate) fn counted(self, watcher: Box<dyn Watcher>) -> Self {
        if self.is_end_stream() {
            watcher.end();
            return self;
        }
        Self::Counted(Box::new(Counted { body: self, watcher: Some(watcher) }))
    }

    /// A body that breaks off at a deadline, or when it does not move for the idle time.
    pub(crate) fn bounded(self, deadline: Option<Instant>, idle: Option<Duration>) -> Self {
        if self.is_end_stream() {
            return self;
        }
        let deadline = deadline.map(|deadline| Box::pin(sleep_until(deadline)));
        let idle = idle.map(|idle| (idle, Box::pin(sleep(idle))));
        Self::Timed(Box::new(Timed { body: self, deadline, idle }))
    }

    /// The body as it is sent in one try, and the means to send it again in another.
    pub(crate) fn replayable(self) -> Self {
        match self {
            Self::Empty | Self::Full(_) | Self::Replay(_) => self,
            body if body.is_end_stream() => Self::Empty,
            Self::Incoming(_) | Self::Counted(_) | Self::Timed(_) => {
                let kept =
                    Kept { source: self, frames: Vec::new(), trailers: None, size: 0, overflowed: false, ended: false };
                Self::Replay(Replay { kept: Arc::new(Mutex::new(kept)), next: 0 })
            }
        }
    }

    /// The same body from its beginning; `None` when it cannot be sent again.
    pub(crate) fn again(&self) -> Option<Self> {
        match self {
            Self::Empty => Some(Self::Empty),
            Self::Full(bytes) => Some(Self::Full(bytes.clone())),
            Self::Replay(replay) if !replay.kept.lock().overflowed => {
                Some(Self::Replay(Replay { kept: replay.kept.clone(), next: 0 }))
            }
            Self::Replay(_) | Self::Incoming(_) | Self::Counted(_) | Self::Timed(_) => None,
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Full(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Incoming(incoming) => Pin::new(incoming).poll_frame(cx).map_err(Into::into),
            Self::Replay(replay) => replay.poll(cx),
            Self::Counted(counted) => counted.poll(cx),
            Self::Timed(timed) => timed.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_empty(),
            Self::Incoming(incoming) => incoming.is_end_stream(),
            Self::Replay(replay) => replay.is_end(),
            Self::Counted(counted) => counted.watcher.is_none() && counted.body.is_end_stream(),
            Self::Timed(timed) => timed.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Incoming(incoming) => incoming.size_hint(),
            Self::Replay(replay) => replay.size_hint(),
            Self::Counted(counted) => counted.body.size_hint(),
            Self::Timed(timed) => timed.body.size_hint(),
        }
    }
}

impl Replay {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut kept = self.kept.lock();
        if let Some(frame) = kept.frames.get(self.next) {
            self.next += 1;
            return Poll::Ready(Some(Ok(Frame::data(frame.clone()))));
        }
        if kept.ended {
            let trailers = if self.next == kept.frames.len() { kept.trailers.clone() } else { None };
            self.next = usize::MAX;
            return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
        }
        let polled = std::task::ready!(Pin::new(&mut kept.source).poll_frame(cx));
        match &polled {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    kept.size = kept.size.saturating_add(data.len());
                    if kept.size > MAX_REPLAY {
                        kept.overflowed = true;
                        kept.frames = Vec::new();
                        self.next = 0;
                    } else {
                        kept.frames.push(data.clone());
                        self.next += 1;
                    }
                } else if let Some(trailers) = frame.trailers_ref() {
                    kept.trailers = Some(trailers.clone());
                    kept.ended = true;
                    self.next = usize::MAX;
                }
            }
            Some(Err(_)) => kept.overflowed = true,
            None => kept.ended = true,
        }
        Poll::Ready(polled)
    }

    fn is_end(&self) -> bool {
        let kept = self.kept.lock();
        match (kept.ended, self.next) {
            (true, usize::MAX) => true,
            (true, next) => next >= kept.frames.len() && kept.trailers.is_none(),
            (false, next) => next >= kept.frames.len() && kept.source.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        let kept = self.kept.lock();
        if self.next == 0 && kept.frames.is_empty() {
            return kept.source.size_hint();
        }
        let rest: usize = kept.frames.iter().skip(self.next).map(Bytes::len).sum();
        match (kept.ended, kept.source.size_hint().exact()) {
            (true, _) => SizeHint::with_exact(rest as u64),
            (false, Some(more)) => SizeHint::with_exact(more.saturating_add(rest as u64)),
            (false, None) => SizeHint::default(),
        }
    }
}

impl Timed {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(Some(Err(Box::new(Failure::RequestTimeout))));
        }
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Some((idle, sleep)) = &mut self.idle {
            if polled.is_ready() {
                sleep.as_mut().reset(Instant::now() + *idle);
            } else if sleep.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Some(Err(Box::new(Failure::IdleTimeout))));
            }
        }
        polled
    }
}

impl Counted {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut polled = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        match (&mut polled, self.watcher.take()) {
            (Some(Ok(frame)), Some(mut watcher)) => {
                if let Some(data) = frame.data_ref() {
                    watcher.bytes(data.len());
                }
                let last = frame.is_trailers() || self.body.is_end_stream();
                if let Some(trailers) = frame.trailers_mut() {
                    watcher.trailers(trailers);
                }
                if last {
                    watcher.end();
                } else {
                    self.watcher = Some(watcher);
                }
            }
            (Some(Err(error)), Some(watcher)) => watcher.error(error),
            (None, Some(watcher)) => watcher.end(),
            (_, None) => {}
        }
        Poll::Ready(polled)
    }
}

impl From<Incoming> for Body {
    fn from(incoming: Incoming) -> Self {
        if incoming.is_end_stream() { Self::Empty } else { Self::Incoming(incoming) }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    /// Reads a body that is ready to its end: data and whether there were trailers.
    fn drain(body: &mut Body) -> (Vec<u8>, bool) {
        let mut cx = Context::from_waker(Waker::noop());
        let (mut data, mut trailers) = (Vec::new(), false);
        while let Poll::Ready(Some(frame)) = Pin::new(&mut *body).poll_frame(&mut cx) {
            match frame.unwrap().into_data() {
                Ok(bytes) => data.extend(bytes),
                Err(frame) => trailers = frame.is_trailers(),
            }
        }
        (data, trailers)
    }

    struct Nothing;
    impl Watcher for Nothing {
        fn bytes(&mut self, _: usize) {}
        fn trailers(&mut self, _: &mut http::HeaderMap) {}
        fn end(self: Box<Self>) {}
        fn error(self: Box<Self>, _: &BodyError) {}
    }

    fn source(size: usize) -> Body {
        Body::Full(Bytes::from(vec![b'x'; size])).counted(Box::new(Nothing))
    }

    #[test]
    fn a_small_body_can_be_sent_again_in_whole() {
        let mut first = source(1000).replayable();
        let mut second = first.again().unwrap();
        assert_eq!(drain(&mut first).0.len(), 1000);
        assert_eq!(second.size_hint().exact(), Some(1000));
        assert_eq!(drain(&mut second).0.len(), 1000);
        assert!(second.is_end_stream());
        assert_eq!(drain(&mut first.again().unwrap()).0.len(), 1000);
    }

    #[test]
    fn a_body_above_the_bound_is_sent_once() {
        let mut first = source(MAX_REPLAY + 1).replayable();
        assert!(first.again().is_some());
        assert_eq!(drain(&mut first).0.len(), MAX_REPLAY + 1);
        assert!(first.again().is_none());
    }
}
