//! HTTP/2 in a pool: up to [`MAX_STREAMS`] requests in flight on a connection; another is opened when all are full.

use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};
use weft_core::failure::{Failure, Limit};
use weft_http::{head::Response, http2::Config};

use super::{Bounds, Held, Lease, Opener, Pool, SendError, Sent, Transport};
use crate::{
    http::{
        body::Body,
        head::Head,
        http2::{Driver, HalfClosed, Mux, StreamRef},
        interim::Interim,
        limits::{MAX_FIELDS, MAX_HEAD_HOP, Peer, Windows},
        upgrade::Switched,
    },
    slot::Slot,
    tls::MeshTls,
    upstream::dial::Dialer,
};

/// Requests in flight on one connection before another is opened.
const MAX_STREAMS: u32 = 100;
/// How long a connection without requests may take to close.
const CLOSE: Duration = Duration::from_millis(2_500);

/// An HTTP/2 connection.
#[derive(Clone, Debug)]
pub(super) struct Multiplexed {
    pub(super) mux: Arc<Mux>,
    pub(super) usage: Arc<Usage>,
    /// Our certificate, and the roots of the peer's, as of the handshake.
    tls: Option<Arc<MeshTls>>,
}

impl Multiplexed {
    /// Whether it takes one more request now.
    pub(super) fn has_room(&self) -> bool {
        self.usage.streams.load(Relaxed) < MAX_STREAMS && self.mux.has_room()
    }

    /// Whether one more request on it would wait for none of those in flight. `body`: the request has one.
    fn is_free(&self, body: bool) -> bool {
        self.has_room() && !(body && self.mux.is_clogged())
    }
}

/// The requests on a connection.
#[derive(Debug)]
pub(super) struct Usage {
    /// Requests in flight.
    streams: AtomicU32,
    /// When the last request ended.
    last: Mutex<Instant>,
    /// Set when the peer sends a TLS alert.
    alerted: Arc<AtomicBool>,
    /// Set once an answer came: an alert before it is a refusal of our identity, a later one is not.
    answered: AtomicBool,
}

impl Usage {
    /// One request less in flight.
    pub(super) fn end_request(&self) {
        if self.streams.fetch_sub(1, Relaxed) == 1 {
            *self.last.lock() = Instant::now();
        }
    }

    fn is_used(&self) -> bool {
        self.streams.load(Relaxed) > 0
    }
}

impl Pool {
    pub(super) async fn send_http2(
        self: &Arc<Self>,
        opener: Opener<'_>,
        bounds: Bounds,
        Head { request: head, interim, .. }: &Head,
        body: Body,
        switched: &mut Option<Switched>,
    ) -> Result<Sent, SendError> {
        let end = body.is_end() && head.protocol().is_none();
        let unsent = |failure, body| SendError { failure, unsent: Some(body), reused: false };
        let (stream, usage, lease) = loop {
            let Multiplexed { mux, usage, .. } = match self.acquire_http2(opener, bounds, !end).await {
                Ok(connection) => connection,
                Err(failure) => return Err(unsent(failure, body)),
            };
            let lease = Lease(Some(Held::Http2(usage.clone())));
            // A proxy takes as many requests as we send, or refuses what it does not take so that it may be sent again. An
            // application may take fewer, and its SETTINGS say so first (RFC 9113 §3.4).
            if self.target.transport == Transport::Plain
                && let Err(failure) = mux.settings().await
            {
                return Err(unsent(failure, body));
            }
            // It may be full or closed since it was chosen; then it is not chosen again.
            match mux.open(head, end) {
                Ok(stream) => break (stream, usage, lease),
                Err(_full) if mux.takes_none() => {
                    mux.retire();
                    return Err(unsent(Failure::RefusedStream, body));
                }
                Err(_full) => {}
            }
        };
        let body = if end { Body::Empty } else { body };
        let answered = exchange(&stream, body, head.protocol().is_some(), interim.as_ref()).await;
        match answered {
            Ok(response) => {
                usage.answered.store(true, Relaxed);
                if head.protocol().is_some() && response.status == 200 {
                    *switched = Some(Switched::Http2(stream));
                    return Ok((response, Body::Empty, lease));
                }
                let body = stream.into_body(&response.fields);
                Ok((response, body, lease))
            }
            Err(failure) => {
                let refused = usage.alerted.load(Relaxed) && !usage.answered.load(Relaxed);
                let failure = if refused { Failure::IdentityRefused } else { failure };
                Err(SendError { failure, unsent: None, reused: false })
            }
        }
    }

    async fn acquire_http2(&self, opener: Opener<'_>, bounds: Bounds, body: bool) -> Result<Multiplexed, Failure> {
        match self.with_room(opener.dialer, |connection| connection.is_free(body)) {
            Some(connection) => Ok(connection),
            // Boxed: opening is rare, and its state would be moved with every request.
            None => Box::pin(self.open_http2(opener, bounds, body)).await,
        }
    }

    /// Opens a connection, or waits for the one that is being opened. One request is counted on it. `body`: the request has one.
    pub(super) async fn open_http2(
        &self,
        opener: Opener<'_>,
        bounds: Bounds,
        body: bool,
    ) -> Result<Multiplexed, Failure> {
        let _pending = Slot::take(&self.counts.pending, bounds.pending, Limit::Pending)?;
        // A request that waits for another's attempt waits no longer than for one of its own, so that the times do not add up.
        let opening = timeout(bounds.connect, self.opening.lock()).await;
        let _one_at_a_time = opening.map_err(|_elapsed| Failure::ConnectTimeout)?;
        if let Some(connection) = self.with_room(opener.dialer, |connection| connection.is_free(body)) {
            return Ok(connection);
        }
        let slot = match Slot::take(&self.counts.connections, bounds.connections, Limit::Connections) {
            Ok(slot) => slot,
            // Better to wait behind the streams of a connection than to fail.
            Err(failure) => return self.with_room(opener.dialer, Multiplexed::has_room).ok_or(failure),
        };
        // Read before the handshake: if the certificate changes meanwhile, the connection counts as one with the old one.
        let tls = if self.target.transport == Transport::Plain { None } else { opener.dialer.tls.load_full() };
        let (stream, alerted) = self.open(opener.dialer, bounds.connect).await?;
        let peer = if self.target.transport == Transport::Plain { Peer::Plain } else { Peer::Proxy };
        let windows = Windows::new(peer, MAX_STREAMS);
        let config = Config {
            max_streams: 0,
            stream_window: windows.stream,
            grown_window: windows.grown,
            growth: windows.growth,
            connection_window: Windows::CONNECTION,
            max_head: MAX_HEAD_HOP,
            max_fields: 2 * MAX_FIELDS,
            connect_protocol: false,
        };
        let half_closed = match peer {
            Peer::Proxy => HalfClosed::Told,
            Peer::Plain | Peer::Outside => HalfClosed::Cancelled(opener.muxes.half_closed),
        };
        let mux = Mux::client(config, half_closed);
        opener.muxes.watch(&mux);
        let mut driver = Driver::new(stream, mux.clone(), drop);
        let (dialer, target) = (opener.dialer.clone(), self.target.clone());
        tokio::spawn(async move {
            let keep_proven = async {
                match &target.transport {
                    Transport::Mesh(identity) => dialer.keep_proven(target.address, identity).await,
                    Transport::Plain => std::future::pending().await,
                }
            };
            let driven = tokio::select! {
                driven = poll_fn(|cx| driver.poll(cx)) => driven,
                () = keep_proven => Ok(()),
            };
            if let Err(error) = driven {
                tracing::debug!(%error, "upstream connection ended");
            }
            if timeout(CLOSE, poll_fn(|cx| driver.poll_close(cx))).await.is_err() {
                tracing::debug!("an upstream connection was not closed in time");
            }
            drop(slot);
        });
        let usage = Usage {
            streams: AtomicU32::new(1),
            last: Mutex::new(Instant::now()),
            alerted,
            answered: AtomicBool::new(false),
        };
        let connection = Multiplexed { mux, usage: Arc::new(usage), tls };
        self.multiplexed.lock().push(connection.clone());
        Ok(connection)
    }

    /// A connection that is `fit` for one more request, which is counted. A connection made with a certificate or roots that are
    /// no longer ours gets no new requests, and ends with those in flight.
    fn with_room(&self, dialer: &Dialer, fit: impl Fn(&Multiplexed) -> bool) -> Option<Multiplexed> {
        let current = dialer.tls.load();
        let is_current = |tls: &Arc<MeshTls>| current.as_ref().is_some_and(|current| Arc::ptr_eq(current, tls));
        let mut multiplexed = self.multiplexed.lock();
        multiplexed.retain(|connection| {
            let kept = !connection.mux.is_closed() && connection.tls.as_ref().is_none_or(is_current);
            if !kept {
                connection.mux.retire();
            }
            kept
        });
        let connection = multiplexed.iter().find(|connection| fit(connection))?;
        connection.usage.streams.fetch_add(1, Relaxed);
        Some(connection.clone())
    }

    /// Closes the connections that have been idle for too long.
    pub(super) fn sweep_http2(&self, limit: Duration) {
        self.multiplexed.lock().retain(|connection| {
            let used = connection.usage.is_used() || connection.usage.last.lock().elapsed() < limit;
            let kept = used && !connection.mux.is_closed();
            // A connection on which the peer takes no more requests ends with those in flight; only the pool closes it then.
            if !kept {
                connection.mux.retire();
            }
            kept
        });
    }

    /// Closes the connections without a request in flight. Returns whether there was any.
    pub(super) fn close_idle_http2(&self) -> bool {
        let mut multiplexed = self.multiplexed.lock();
        let before = multiplexed.len();
        multiplexed.retain(|connection| {
            let used = connection.usage.is_used();
            if !used {
                connection.mux.retire();
            }
            used
        });
        multiplexed.len() < before
    }
}

/// Sends the body of a request and waits for the head of its answer. `open`: the stream is to become a tunnel, so the end of the
/// body is not its end. `interim`: where interim answers go.
async fn exchange(
    stream: &StreamRef,
    mut body: Body,
    open: bool,
    interim: Option<&Interim>,
) -> Result<Response, Failure> {
    let mut silence = None;
    let mut rest = Bytes::new();
    let mut writing = !matches!(body, Body::Empty);
    let response = poll_fn(|cx| {
        if writing {
            match stream.poll_body(cx, &mut body, &mut rest, open) {
                Poll::Ready(Err(Some(failure))) => return Poll::Ready(Err(failure)),
                Poll::Ready(Ok(()) | Err(None)) => writing = false,
                Poll::Pending => {}
            }
        }
        while let Some(head) = stream.take_interim() {
            if let Some(caller) = interim {
                caller.send(head);
            }
        }
        if !writing
            && !open
            && interim.is_some_and(Interim::has_half_closed)
            && stream.poll_half_closed(cx, &mut silence).is_ready()
        {
            return Poll::Ready(Err(Failure::CallerGone));
        }
        stream.poll_answer(cx)
    })
    .await?;
    // The answer came before the end of the request: its rest is sent beside the answer. In front of a tunnel it must not.
    if writing && !open {
        let stream = stream.clone();
        tokio::spawn(async move {
            if let Err(Some(failure)) = stream.send_body(body, rest).await {
                tracing::debug!(failure = %failure.report(), "a request broke off after its answer had begun");
            }
        });
    }
    Ok(response)
}
