//! HTTP/1 in a pool: one request a connection at a time; the connection that was used last goes first.
//! Invariant: an idle connection is given up before its peer is expected to close it.

use std::{
    future::poll_fn,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::Poll,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;
use weft_core::failure::{Failure, Limit};
use weft_http::{
    fields::Name,
    head::{Response, Version as HttpVersion},
    http1::{self as codec, Framing},
};

use super::{Bounds, Held, Lease, Opener, Pool, SendError, Sent};
use crate::{
    http::{
        body::Body,
        head::Head,
        http1::{self, Incoming, Io, SharedIo},
        interim::Interim,
        limits::MAX_INTERIM,
        stall::{Timeouts, Watch},
        upgrade::Switched,
    },
    slot::Slot,
    upstream::dial::Dialer,
};

/// Idle HTTP/1 connections kept per pool.
const MAX_IDLE: usize = 256;
/// An idle connection is kept for at least this time, however soon its peer closes others.
const LEAST_PATIENCE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Idle {
    io: SharedIo,
    since: Instant,
}

impl Pool {
    pub(super) fn put_idle(&self, io: SharedIo) {
        let mut idle = self.idle.lock();
        if idle.len() < MAX_IDLE {
            idle.push(Idle { io, since: Instant::now() });
        }
    }

    pub(super) async fn send_http1(
        self: &Arc<Self>,
        opener: Opener<'_>,
        bounds: Bounds,
        head: &Head,
        body: Body,
        switched: &mut Option<Switched>,
    ) -> Result<Sent, SendError> {
        let (io, reused) = match self.pop_idle(bounds.idle) {
            Some(io) => (io, true),
            None => match Box::pin(self.open_http1(opener.dialer, bounds)).await {
                Ok(io) => (io, false),
                Err(failure) => return Err(SendError { failure, unsent: Some(body), reused: false }),
            },
        };
        let sent = exchange(&io, head, body, opener.muxes.stall).await;
        let (response, framing) = sent.map_err(|failure| SendError { failure, unsent: None, reused })?;
        if response.status == 101 {
            if head.upgrade.is_none() || io.lock().writing {
                let failure = Failure::BadAnswer("a switch of protocols that was not asked for");
                return Err(SendError { failure, unsent: None, reused: false });
            }
            *switched = Some(Switched::Http1(io));
            return Ok((response, Body::Empty, Lease(None)));
        }
        let body = Incoming::body(&io, framing, false);
        Ok((response, body, Lease(Some(Held::Http1(self.clone(), io)))))
    }

    fn pop_idle(&self, limit: Duration) -> Option<SharedIo> {
        let mut idle = self.idle.lock();
        while let Some(candidate) = idle.pop() {
            if self.is_fit(&candidate, limit.min(self.patience())) {
                return Some(candidate.io);
            }
        }
        None
    }

    /// Closes the connections that have been idle for too long.
    pub(super) fn sweep_http1(&self, limit: Duration) {
        // A learned time is forgotten slowly, in case the peer keeps connections for longer now: it doubles in some 700 sweeps.
        let closes = self.closes_after_ms.load(Relaxed);
        self.closes_after_ms.store(closes.saturating_add(closes / 1024), Relaxed);
        let limit = limit.min(self.patience());
        self.idle.lock().retain(|idle| self.is_fit(idle, limit));
    }

    /// Whether an idle connection may be used; learns from one that the peer has closed.
    fn is_fit(&self, candidate: &Idle, limit: Duration) -> bool {
        let age = candidate.since.elapsed();
        if !candidate.io.lock().is_alive() {
            self.closes_after_ms.fetch_min(u64::try_from(age.as_millis()).unwrap_or(u64::MAX), Relaxed);
            return false;
        }
        age < limit
    }

    /// How long connections are kept idle, so that the peer does not close one just when a request is sent on it: four fifths of
    /// the shortest time that the peer was seen to keep one, at least [`LEAST_PATIENCE`].
    fn patience(&self) -> Duration {
        let closes = self.closes_after_ms.load(Relaxed);
        Duration::from_millis((closes / 5).saturating_mul(4)).max(LEAST_PATIENCE)
    }

    pub(super) async fn open_http1(&self, dialer: &Dialer, bounds: Bounds) -> Result<SharedIo, Failure> {
        let _pending = Slot::take(&self.counts.pending, bounds.pending, Limit::Pending)?;
        let slot = Slot::take(&self.counts.connections, bounds.connections, Limit::Connections)?;
        let (stream, _alerted) = self.open(dialer, bounds.connect).await?;
        Ok(Arc::new(Mutex::new(Io::new(stream, Some(slot), None))))
    }
}

/// Writes a request and reads the head of its answer.
async fn exchange(io: &SharedIo, head: &Head, body: Body, stall: Timeouts) -> Result<(Response, Framing), Failure> {
    let Head { request: head, upgrade, interim: caller, .. } = head;
    let framing = match body.exact() {
        // Only a method that anticipates a body says that it is empty (RFC 9110 §8.6).
        Some(0) if !head.fields.has(Name::ContentLength) && !matches!(head.method(), "POST" | "PUT" | "PATCH") => {
            Framing::None
        }
        Some(length) => Framing::Length(length),
        None => Framing::Chunked,
    };
    {
        let mut io = io.lock();
        let connection = match upgrade.as_deref() {
            Some(protocol) => codec::Connection::Upgrade(protocol),
            None => codec::Connection::KeepAlive,
        };
        io.put_with(|out| codec::write_request(head, framing, connection, out));
        (io.writing, io.unfinished) = (true, true);
    }
    let (mut body, chunked) = (Some(body), framing == Framing::Chunked);
    let mut writing = true;
    let mut interim = 0;
    let mut watch = Watch::new(stall);
    let parsed = poll_fn(|cx| {
        if writing {
            match http1::poll_body(io, cx, &mut body, chunked, true) {
                Poll::Ready(Ok(())) => {
                    writing = false;
                    io.lock().writing = false;
                }
                Poll::Ready(Err(Some(failure))) => return Poll::Ready(Err(failure)),
                // The application has stopped reading: it may have answered all the same.
                Poll::Ready(Err(None)) => writing = false,
                Poll::Pending if io.lock().poll_stalled(cx, &mut watch).is_ready() => {
                    return Poll::Ready(Err(Failure::Stalled));
                }
                Poll::Pending => {}
            }
        }
        if !writing && caller.as_ref().is_some_and(Interim::has_half_closed) {
            io.lock().poll_half_close(cx);
        }
        loop {
            let parsed = std::task::ready!(io.lock().poll_response(cx, head.method()))?;
            if !parsed.head.is_interim() {
                return Poll::Ready(Ok(parsed));
            }
            if let Some(caller) = caller {
                caller.send(parsed.head);
            }
            interim += 1;
            if interim > MAX_INTERIM {
                return Poll::Ready(Err(Failure::BadAnswer("too many interim answers")));
            }
        }
    })
    .await?;
    // The answer came before the end of the request: its rest is sent beside the answer.
    if writing {
        let io = io.clone();
        tokio::spawn(async move {
            match poll_fn(|cx| http1::poll_body(&io, cx, &mut body, chunked, true)).await {
                Ok(()) => io.lock().writing = false,
                // The application has stopped reading; its answer may be there all the same.
                Err(None) => {}
                Err(Some(failure)) => {
                    let mut io = io.lock();
                    // That the caller has left is no failure of the application.
                    if matches!(failure, Failure::CallerGone) {
                        io.dismiss();
                    }
                    io.abort();
                }
            }
        });
    }
    let mut response = parsed.head;
    if response.status != 101 {
        codec::strip_answer(&mut response);
    }
    debug_assert!(response.version != HttpVersion::Http2, "HTTP/1 was parsed");
    Ok((response, parsed.framing))
}
