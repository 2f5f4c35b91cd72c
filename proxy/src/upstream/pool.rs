//! Pools of HTTP connections of one worker to one address and identity.
//! Shape: [`Pool::send`] takes a request and gives back the head of the answer with a [`Lease`], which returns the connection
//! when the answer's body has ended. HTTP/1: one request a connection at a time, last used first. HTTP/2: up to
//! [`MAX_STREAMS`] requests a connection.
//! Invariant: a request that was not sent comes back with the error, so that it can go elsewhere whatever its method.

use std::{
    error::Error,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};
use weft_core::{failure::Failure, identity::Identity};

use super::dial::{Alpn, Dialer, Slot, plain};
use crate::{http::body::Body, stream::Stream, tls::MeshTls};

/// Requests at once on one HTTP/2 connection before another is opened.
pub(crate) const MAX_STREAMS: usize = 100;
/// Idle HTTP/1 connections kept per pool.
const MAX_IDLE: usize = 256;
/// What one HTTP/2 stream may send us unread.
const STREAM_WINDOW: u32 = 256 * 1024;
/// What one HTTP/2 connection may send us unread.
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// What we keep unsent for one HTTP/2 stream.
const SEND_BUFFER: usize = 64 * 1024;
/// A silent HTTP/2 connection is asked for a sign of life after this, and given [`PING_TIMEOUT`] to answer.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// What [`Failure::Overloaded`] names when a cluster has as many connections as it may.
pub(crate) const CONNECTIONS: &str = "connections";

/// Where a pool's connections lead.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) transport: Transport,
}

/// How a pool's connections are protected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Plain,
    /// Mesh TLS to this identity.
    Mesh(Identity),
}

/// What a pool's connections speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Version {
    Http1,
    Http2,
}

/// Bounds for one call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) connect: Duration,
    pub(crate) connections: u32,
    pub(crate) pending: u32,
    pub(crate) idle: Duration,
}

/// What a cluster has open and waiting, over all its pools.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) connections: Arc<AtomicU32>,
    /// Requests that wait for a connection.
    pub(crate) pending: Arc<AtomicU32>,
}

/// The connections of one worker to one target.
#[derive(Debug)]
pub(crate) struct Pool {
    target: Target,
    version: Version,
    counts: Counts,
    idle: Mutex<Vec<Idle>>,
    shared: Mutex<Vec<Shared>>,
    opening: tokio::sync::Mutex<()>,
    /// How long a connection may be idle, as the last request said.
    idle_limit_ms: AtomicU64,
}

#[derive(Debug)]
struct Idle {
    sender: http1::SendRequest<Body>,
    since: Instant,
}

#[derive(Clone, Debug)]
struct Shared {
    sender: http2::SendRequest<Body>,
    use_: Arc<Use>,
    /// The certificate that we showed, and the roots that the peer's led to.
    tls: Option<Arc<MeshTls>>,
}

#[derive(Debug)]
struct Use {
    streams: AtomicUsize,
    last: Mutex<Instant>,
    alerted: Arc<AtomicBool>,
    /// Set once an answer came, so that a later alert is no refusal of our identity.
    answered: AtomicBool,
}

/// A connection in use by one request.
#[derive(Debug)]
pub(crate) struct Lease(Option<Held>);

#[derive(Debug)]
enum Held {
    Http1(Arc<Pool>, http1::SendRequest<Body>),
    Http2(Arc<Use>),
}

/// Why a request failed.
#[derive(Debug)]
pub(crate) struct SendError {
    pub(crate) failure: Failure,
    /// The request itself when nothing of it was sent.
    pub(crate) request: Option<Request<Body>>,
    /// It went out on a connection that had served others before, and may just have been closed for being idle.
    pub(crate) reused: bool,
}

impl Pool {
    pub(crate) fn new(target: Target, version: Version, counts: Counts) -> Self {
        Self {
            target,
            version,
            counts,
            idle: Mutex::default(),
            shared: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
            idle_limit_ms: AtomicU64::new(u64::MAX),
        }
    }

    /// Sends a request on a pooled connection, opening one when there is none.
    pub(crate) async fn send(
        self: &Arc<Self>,
        dialer: &Dialer,
        bounds: Bounds,
        request: Request<Body>,
    ) -> Result<(Response<Incoming>, Lease), SendError> {
        self.idle_limit_ms.store(u64::try_from(bounds.idle.as_millis()).unwrap_or(u64::MAX), Relaxed);
        match self.version {
            Version::Http1 => self.send_http1(dialer, bounds, request).await,
            Version::Http2 => self.send_http2(dialer, bounds, request).await,
        }
    }

    async fn send_http1(
        self: &Arc<Self>,
        dialer: &Dialer,
        bounds: Bounds,
        mut request: Request<Body>,
    ) -> Result<(Response<Incoming>, Lease), SendError> {
        loop {
            let (mut sender, reused) = match self.pop_idle(bounds.idle) {
                Some(sender) => (sender, true),
                None => match Box::pin(self.open_http1(dialer, bounds)).await {
                    Ok(sender) => (sender, false),
                    Err(failure) => return Err(SendError { failure, request: Some(request), reused: false }),
                },
            };
            match sender.try_send_request(request).await {
                Ok(response) => return Ok((response, Lease(Some(Held::Http1(self.clone(), sender))))),
                Err(error) => match failed(error, reused) {
                    // The application closed the idle connection: nothing was sent, so another one is as good as this.
                    SendError { request: Some(unsent), reused: true, .. } => request = unsent,
                    other => return Err(other),
                },
            }
        }
    }

    fn pop_idle(&self, limit: Duration) -> Option<http1::SendRequest<Body>> {
        let mut idle = self.idle.lock();
        while let Some(candidate) = idle.pop() {
            if candidate.sender.is_ready() && candidate.since.elapsed() < limit {
                return Some(candidate.sender);
            }
        }
        None
    }

    async fn open_http1(&self, dialer: &Dialer, bounds: Bounds) -> Result<http1::SendRequest<Body>, Failure> {
        let _pending = Slot::take(&self.counts.pending, bounds.pending, "pending")?;
        let slot = Slot::take(&self.counts.connections, bounds.connections, CONNECTIONS)?;
        let (stream, _alerted) = self.open(dialer, bounds.connect).await?;
        let (sender, connection) = http1::Builder::new()
            .max_header_size(crate::http::serve::MAX_HEAD)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| Failure::Connect(error.to_string().into()))?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "upstream connection ended");
            }
            drop(slot);
        });
        Ok(sender)
    }

    async fn send_http2(
        self: &Arc<Self>,
        dialer: &Dialer,
        bounds: Bounds,
        request: Request<Body>,
    ) -> Result<(Response<Incoming>, Lease), SendError> {
        let mut connection = match self.acquire_http2(dialer, bounds).await {
            Ok(connection) => connection,
            Err(failure) => return Err(SendError { failure, request: Some(request), reused: false }),
        };
        let lease = Lease(Some(Held::Http2(connection.use_.clone())));
        match connection.sender.try_send_request(request).await {
            Ok(response) => {
                connection.use_.answered.store(true, Relaxed);
                Ok((response, lease))
            }
            Err(error) => {
                let error = failed(error, false);
                let refused = connection.use_.alerted.load(Relaxed) && !connection.use_.answered.load(Relaxed);
                Err(if refused { SendError { failure: Failure::IdentityRefused, ..error } } else { error })
            }
        }
    }

    async fn acquire_http2(&self, dialer: &Dialer, bounds: Bounds) -> Result<Shared, Failure> {
        match self.shared_with_room(dialer) {
            Some(connection) => Ok(connection),
            // Boxed: opening is rare, and its state would be moved with every request.
            None => Box::pin(self.open_http2(dialer, bounds)).await,
        }
    }

    async fn open_http2(&self, dialer: &Dialer, bounds: Bounds) -> Result<Shared, Failure> {
        let _pending = Slot::take(&self.counts.pending, bounds.pending, "pending")?;
        // Whoever waits for another's attempt waits no longer than for one of its own, so that they do not add up.
        let opening = timeout(bounds.connect, self.opening.lock()).await;
        let _one_at_a_time = opening.map_err(|_elapsed| Failure::ConnectTimeout)?;
        if let Some(connection) = self.shared_with_room(dialer) {
            return Ok(connection);
        }
        let slot = Slot::take(&self.counts.connections, bounds.connections, CONNECTIONS)?;
        // Read before the handshake: if it changes meanwhile, the connection counts as an old one.
        let tls = if self.target.transport == Transport::Plain { None } else { dialer.tls.load_full() };
        let (stream, alerted) = self.open(dialer, bounds.connect).await?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(crate::http::serve::MAX_HEAD_HOP)
            .max_send_buf_size(SEND_BUFFER)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| Failure::Connect(error.to_string().into()))?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "upstream connection ended");
            }
            drop(slot);
        });
        let use_ = Use {
            streams: AtomicUsize::new(1),
            last: Mutex::new(Instant::now()),
            alerted,
            answered: AtomicBool::new(false),
        };
        let connection = Shared { sender, use_: Arc::new(use_), tls };
        self.shared.lock().push(connection.clone());
        Ok(connection)
    }

    /// A connection with room for one more request, which is counted. One that was made with a certificate or roots that are
    /// no longer ours gets no new requests, and ends with those that run.
    fn shared_with_room(&self, dialer: &Dialer) -> Option<Shared> {
        let current = dialer.tls.load();
        let is_current = |tls: &Arc<MeshTls>| current.as_ref().is_some_and(|current| Arc::ptr_eq(current, tls));
        let mut shared = self.shared.lock();
        shared.retain(|connection| !connection.sender.is_closed() && connection.tls.as_ref().is_none_or(is_current));
        let connection = shared.iter().find(|connection| connection.use_.streams.load(Relaxed) < MAX_STREAMS)?;
        connection.use_.streams.fetch_add(1, Relaxed);
        Some(connection.clone())
    }

    async fn open(&self, dialer: &Dialer, within: Duration) -> Result<(Stream, Arc<AtomicBool>), Failure> {
        match &self.target.transport {
            Transport::Plain => {
                Ok((plain(dialer.tcp(self.target.address, within).await?), Arc::new(AtomicBool::new(false))))
            }
            Transport::Mesh(identity) => {
                let stream = dialer.mesh(self.target.address, identity, Alpn::Http, within).await?;
                let alerted = match &stream {
                    Stream::Dialled(_, alerted) => alerted.clone(),
                    Stream::Tcp(_) | Stream::Accepted(_) => Arc::new(AtomicBool::new(false)),
                };
                Ok((stream, alerted))
            }
        }
    }

    /// Closes what has been idle for too long.
    pub(crate) fn sweep(&self) {
        let limit = Duration::from_millis(self.idle_limit_ms.load(Relaxed));
        self.idle.lock().retain(|idle| idle.sender.is_ready() && idle.since.elapsed() < limit);
        self.shared.lock().retain(|connection| {
            !connection.sender.is_closed()
                && (connection.use_.streams.load(Relaxed) > 0 || connection.use_.last.lock().elapsed() < limit)
        });
    }

    /// Closes what is idle now. Returns whether there was anything.
    pub(crate) fn close_idle(&self) -> bool {
        let idle = std::mem::take(&mut *self.idle.lock());
        let mut shared = self.shared.lock();
        let before = shared.len();
        shared.retain(|connection| connection.use_.streams.load(Relaxed) > 0);
        !idle.is_empty() || shared.len() < before
    }

    /// Whether it has no connection.
    pub(crate) fn is_empty(&self) -> bool {
        self.idle.lock().is_empty() && self.shared.lock().is_empty()
    }
}

impl Lease {
    /// Gives the connection back for the next request: the answer's body has ended.
    pub(crate) fn finish(mut self) {
        if let Some(Held::Http1(pool, sender)) = self.0.take_if(|held| matches!(held, Held::Http1(..))) {
            if sender.is_closed() {
                return;
            }
            let mut idle = pool.idle.lock();
            if idle.len() < MAX_IDLE {
                idle.push(Idle { sender, since: Instant::now() });
            }
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(Held::Http2(use_)) = &self.0
            && use_.streams.fetch_sub(1, Relaxed) == 1
        {
            *use_.last.lock() = Instant::now();
        }
    }
}

fn failed(mut error: TrySendError<Request<Body>>, reused: bool) -> SendError {
    let request = error.take_message();
    let error = error.into_error();
    let failure = if request.is_some() {
        Failure::Connect("the connection closed before the request was sent".into())
    } else {
        broken(&error)
    };
    SendError { failure, request, reused }
}

/// What an error of a request that may have been seen means.
pub(crate) fn broken(error: &hyper::Error) -> Failure {
    if error.is_user() {
        // The only thing of ours that can fail is the request's body: its caller broke it off.
        return Failure::CallerGone;
    }
    let mut source: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(current) = source {
        if let Some(h2) = current.downcast_ref::<h2::Error>() {
            let refused = h2.reason() == Some(h2::Reason::REFUSED_STREAM);
            // A stream that ends by GOAWAY is one above the last that the peer processed (RFC 9113 §6.8).
            if h2.is_remote() && (refused || h2.is_go_away()) {
                return Failure::RefusedStream;
            }
            if h2.is_reset() && !h2.is_remote() && !h2.is_library() {
                return Failure::CallerGone;
            }
        }
        source = current.source();
    }
    if error.is_parse() {
        return Failure::BadAnswer("not HTTP");
    }
    Failure::Reset(error.to_string().into())
}
