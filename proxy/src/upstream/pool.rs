//! Pools of HTTP connections of one worker to one address and identity.
//! Shape: [`Pool::send`] takes a request and gives back the head and body of the answer with a [`Lease`], which returns the
//! connection when the answer's body has ended. HTTP/1: one request a connection at a time, last used first. HTTP/2: up to
//! [`MAX_STREAMS`] requests a connection.
//! Invariant: a request that was not sent comes back with the error, so that it can go elsewhere whatever its method.

use std::{
    future::poll_fn,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};
use weft_core::{
    failure::{Failure, Limit},
    identity::Identity,
};
use weft_http::{
    fields::Name,
    head::{Request, Response, Version as HttpVersion},
    http1::{self as codec, Framing},
    http2::{Config, Role},
};

use super::dial::{Alpn, Dialer, Slot, plain};
use crate::{
    http::{
        body::Body,
        head::MAX_FIELDS,
        http1::{self, Incoming, Io, Shared},
        http2::{Driver, Mux, StreamRef},
        serve::{MAX_HEAD_HOP, windows},
        upgrade::Switched,
    },
    stream::Stream,
    tls::MeshTls,
    worker::Muxes,
};

/// Requests at once on one HTTP/2 connection before another is opened.
pub(crate) const MAX_STREAMS: usize = 100;
/// Idle HTTP/1 connections kept per pool.
const MAX_IDLE: usize = 256;
/// Interim answers (1xx) that an application may give before its answer.
pub(crate) const MAX_INTERIM: u32 = 16;
/// The least time that an idle connection is kept, however soon its peer closes others.
const LEAST_PATIENCE: Duration = Duration::from_secs(1);
/// How long a connection that is done may take to say goodbye.
const FAREWELL: Duration = Duration::from_secs(1);

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

/// How to open connections, and who looks after them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opener<'a> {
    pub(crate) dialer: &'a Dialer,
    pub(crate) muxes: &'a Muxes,
}

/// The connections of one worker to one target.
#[derive(Debug)]
pub(crate) struct Pool {
    target: Target,
    version: Version,
    counts: Counts,
    idle: Mutex<Vec<Idle>>,
    shared: Mutex<Vec<Mesh>>,
    opening: tokio::sync::Mutex<()>,
    /// How long a connection may be idle, as the last request said.
    idle_limit_ms: AtomicU64,
    /// The shortest time after which the peer was seen to close an idle connection; forgotten slowly.
    closes_after_ms: AtomicU64,
}

#[derive(Debug)]
struct Idle {
    io: Shared,
    since: Instant,
}

/// An HTTP/2 connection.
#[derive(Clone, Debug)]
struct Mesh {
    mux: Arc<Mux>,
    use_: Arc<Use>,
    /// The certificate that we showed, and the roots that the peer's led to.
    tls: Option<Arc<MeshTls>>,
}

impl Mesh {
    fn has_room(&self) -> bool {
        self.use_.streams.load(Relaxed) < MAX_STREAMS && self.mux.has_room()
    }
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
    Http1(Arc<Pool>, Shared),
    Http2(Arc<Use>),
}

/// An answer: its head, its body, and the connection that it comes on.
pub(crate) type Sent = (Response, Body, Lease);

/// Why a request failed.
#[derive(Debug)]
pub(crate) struct SendError {
    pub(crate) failure: Failure,
    /// The request's body when nothing of the request was sent.
    pub(crate) unsent: Option<Body>,
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
            closes_after_ms: AtomicU64::new(u64::MAX),
        }
    }

    /// Sends a request on a pooled connection, opening one when there is none. `upgrade`: the protocol that an HTTP/1 request
    /// asks for; where it is not `None` and the answer says so, `switched` is filled.
    pub(crate) async fn send(
        self: &Arc<Self>,
        opener: Opener<'_>,
        bounds: Bounds,
        head: &Request,
        upgrade: Option<&[u8]>,
        body: Body,
        switched: &mut Option<Switched>,
    ) -> Result<Sent, SendError> {
        self.limit_idle(bounds.idle);
        match self.version {
            Version::Http1 => self.send_http1(opener, bounds, head, upgrade, body, switched).await,
            Version::Http2 => self.send_http2(opener, bounds, head, body, switched).await,
        }
    }

    /// Whether a connection is open that the next request could take.
    pub(crate) fn is_ready(&self) -> bool {
        match self.version {
            Version::Http1 => !self.idle.lock().is_empty(),
            Version::Http2 => self.shared.lock().iter().any(Mesh::has_room),
        }
    }

    /// Whether a connection is being opened that nobody else may open beside.
    pub(crate) fn is_opening(&self) -> bool {
        self.opening.try_lock().is_err()
    }

    /// Opens a connection for requests to come; nothing when one is being opened.
    pub(crate) async fn warm(&self, opener: Opener<'_>, bounds: Bounds) -> Result<(), Failure> {
        self.limit_idle(bounds.idle);
        match self.version {
            Version::Http1 => {
                let Ok(_one_at_a_time) = self.opening.try_lock() else { return Ok(()) };
                let io = self.open_http1(opener.dialer, bounds).await?;
                self.put_idle(io);
            }
            Version::Http2 if self.is_opening() => {}
            Version::Http2 => drop(Lease(Some(Held::Http2(self.open_http2(opener, bounds).await?.use_)))),
        }
        Ok(())
    }

    fn limit_idle(&self, limit: Duration) {
        self.idle_limit_ms.store(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX), Relaxed);
    }

    fn put_idle(&self, io: Shared) {
        let mut idle = self.idle.lock();
        if idle.len() < MAX_IDLE {
            idle.push(Idle { io, since: Instant::now() });
        }
    }

    async fn send_http1(
        self: &Arc<Self>,
        opener: Opener<'_>,
        bounds: Bounds,
        head: &Request,
        upgrade: Option<&[u8]>,
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
        let sent = exchange(&io, head, upgrade, body).await;
        let (response, framing) = sent.map_err(|failure| SendError { failure, unsent: None, reused })?;
        if response.status == 101 {
            if upgrade.is_none() {
                let failure = Failure::BadAnswer("a switch of protocols that was not asked for");
                return Err(SendError { failure, unsent: None, reused: false });
            }
            *switched = Some(Switched::Http1(io));
            return Ok((response, Body::Empty, Lease(None)));
        }
        let body = Incoming::body(&io, framing, false);
        Ok((response, body, Lease(Some(Held::Http1(self.clone(), io)))))
    }

    fn pop_idle(&self, limit: Duration) -> Option<Shared> {
        let mut idle = self.idle.lock();
        while let Some(candidate) = idle.pop() {
            if self.is_fit(&candidate, limit.min(self.patience())) {
                return Some(candidate.io);
            }
        }
        None
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

    /// How long connections are kept idle so that the peer does not close them just when a request is on its way: four fifths
    /// of the shortest time that it was seen to keep one, at least a second.
    fn patience(&self) -> Duration {
        let closes = self.closes_after_ms.load(Relaxed);
        Duration::from_millis((closes / 5).saturating_mul(4)).max(LEAST_PATIENCE)
    }

    async fn open_http1(&self, dialer: &Dialer, bounds: Bounds) -> Result<Shared, Failure> {
        let _pending = Slot::take(&self.counts.pending, bounds.pending, Limit::Pending)?;
        let slot = Slot::take(&self.counts.connections, bounds.connections, Limit::Connections)?;
        let (stream, _alerted) = self.open(dialer, bounds.connect).await?;
        Ok(Arc::new(Mutex::new(Io::new(stream, Some(slot), None))))
    }

    async fn send_http2(
        self: &Arc<Self>,
        opener: Opener<'_>,
        bounds: Bounds,
        head: &Request,
        body: Body,
        switched: &mut Option<Switched>,
    ) -> Result<Sent, SendError> {
        let end = body.is_end() && head.protocol().is_none();
        let (stream, use_) = loop {
            let connection = match self.acquire_http2(opener, bounds).await {
                Ok(connection) => connection,
                Err(failure) => return Err(SendError { failure, unsent: Some(body), reused: false }),
            };
            // It may have gone away since it was chosen; then it is not chosen again.
            match connection.mux.open(head, end) {
                Ok(stream) => break (stream, connection.use_),
                Err(_full) => drop(Lease(Some(Held::Http2(connection.use_)))),
            }
        };
        let lease = Lease(Some(Held::Http2(use_.clone())));
        let answered = request_http2(&stream, if end { Body::Empty } else { body }, head.protocol().is_some()).await;
        match answered {
            Ok(response) => {
                use_.answered.store(true, Relaxed);
                if head.protocol().is_some() && response.status == 200 {
                    *switched = Some(Switched::Http2(stream));
                    return Ok((response, Body::Empty, lease));
                }
                let body = stream.into_body(&response.fields);
                Ok((response, body, lease))
            }
            Err(failure) => {
                let refused = use_.alerted.load(Relaxed) && !use_.answered.load(Relaxed);
                let failure = if refused { Failure::IdentityRefused } else { failure };
                Err(SendError { failure, unsent: None, reused: false })
            }
        }
    }

    async fn acquire_http2(&self, opener: Opener<'_>, bounds: Bounds) -> Result<Mesh, Failure> {
        match self.with_room(opener.dialer) {
            Some(connection) => Ok(connection),
            // Boxed: opening is rare, and its state would be moved with every request.
            None => Box::pin(self.open_http2(opener, bounds)).await,
        }
    }

    async fn open_http2(&self, opener: Opener<'_>, bounds: Bounds) -> Result<Mesh, Failure> {
        let _pending = Slot::take(&self.counts.pending, bounds.pending, Limit::Pending)?;
        // Whoever waits for another's attempt waits no longer than for one of its own, so that they do not add up.
        let opening = timeout(bounds.connect, self.opening.lock()).await;
        let _one_at_a_time = opening.map_err(|_elapsed| Failure::ConnectTimeout)?;
        if let Some(connection) = self.with_room(opener.dialer) {
            return Ok(connection);
        }
        let slot = Slot::take(&self.counts.connections, bounds.connections, Limit::Connections)?;
        // Read before the handshake: if it changes meanwhile, the connection counts as an old one.
        let tls = if self.target.transport == Transport::Plain { None } else { opener.dialer.tls.load_full() };
        let (stream, alerted) = self.open(opener.dialer, bounds.connect).await?;
        let (stream_window, connection_window) = windows(self.target.transport != Transport::Plain);
        let config = Config {
            max_streams: 0,
            stream_window,
            connection_window,
            max_head: MAX_HEAD_HOP,
            max_fields: 2 * MAX_FIELDS,
            connect_protocol: false,
        };
        let mux = Mux::new(Role::Client, config);
        opener.muxes.watch(&mux);
        let mut driver = Driver::new(stream, mux.clone(), drop);
        tokio::spawn(async move {
            if let Err(error) = poll_fn(|cx| driver.poll(cx)).await {
                tracing::debug!(%error, "upstream connection ended");
            }
            if timeout(FAREWELL, poll_fn(|cx| driver.poll_goodbye(cx))).await.is_err() {
                tracing::debug!("an upstream connection did not take its goodbye");
            }
            drop(slot);
        });
        let use_ = Use {
            streams: AtomicUsize::new(1),
            last: Mutex::new(Instant::now()),
            alerted,
            answered: AtomicBool::new(false),
        };
        let connection = Mesh { mux, use_: Arc::new(use_), tls };
        self.shared.lock().push(connection.clone());
        Ok(connection)
    }

    /// A connection with room for one more request, which is counted. One that was made with a certificate or roots that are
    /// no longer ours gets no new requests, and ends with those that run.
    fn with_room(&self, dialer: &Dialer) -> Option<Mesh> {
        let current = dialer.tls.load();
        let is_current = |tls: &Arc<MeshTls>| current.as_ref().is_some_and(|current| Arc::ptr_eq(current, tls));
        let mut shared = self.shared.lock();
        shared.retain(|connection| {
            let kept = !connection.mux.is_closed() && connection.tls.as_ref().is_none_or(is_current);
            if !kept {
                connection.mux.retire();
            }
            kept
        });
        let connection = shared.iter().find(|connection| connection.has_room())?;
        connection.use_.streams.fetch_add(1, Relaxed);
        Some(connection.clone())
    }

    async fn open(&self, dialer: &Dialer, within: Duration) -> Result<(Stream, Arc<AtomicBool>), Failure> {
        match &self.target.transport {
            Transport::Plain => {
                Ok((plain(dialer.tcp(self.target.address, within).await?), Arc::new(AtomicBool::new(false))))
            }
            Transport::Mesh(identity) => {
                let mut stream = dialer.mesh(self.target.address, identity, Alpn::Http, within).await?;
                let alerted = stream.alerted();
                Ok((stream, alerted))
            }
        }
    }

    /// Closes what has been idle for too long.
    pub(crate) fn sweep(&self) {
        let limit = Duration::from_millis(self.idle_limit_ms.load(Relaxed));
        // What was learned is forgotten by and by, in case the peer now keeps them for longer: doubled in some 700 sweeps.
        let closes = self.closes_after_ms.load(Relaxed);
        self.closes_after_ms.store(closes.saturating_add(closes / 1024), Relaxed);
        let short = limit.min(self.patience());
        self.idle.lock().retain(|idle| self.is_fit(idle, short));
        self.shared.lock().retain(|connection| {
            let used = connection.use_.streams.load(Relaxed) > 0 || connection.use_.last.lock().elapsed() < limit;
            let kept = used && !connection.mux.is_closed();
            // One that the peer takes no more requests on ends with those that run; nobody else would close it.
            if !kept {
                connection.mux.retire();
            }
            kept
        });
    }

    /// Closes what is idle now. Returns whether there was anything.
    pub(crate) fn close_idle(&self) -> bool {
        let idle = std::mem::take(&mut *self.idle.lock());
        let mut shared = self.shared.lock();
        let before = shared.len();
        shared.retain(|connection| {
            let used = connection.use_.streams.load(Relaxed) > 0;
            if !used {
                connection.mux.retire();
            }
            used
        });
        !idle.is_empty() || shared.len() < before
    }

    /// Whether it has no connection.
    pub(crate) fn is_empty(&self) -> bool {
        self.idle.lock().is_empty() && self.shared.lock().is_empty()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.get_mut().iter().for_each(|connection| connection.mux.retire());
    }
}

/// Writes a request and reads the head of its answer.
async fn exchange(
    io: &Shared,
    head: &Request,
    upgrade: Option<&[u8]>,
    body: Body,
) -> Result<(Response, Framing), Failure> {
    let framing = match body.exact() {
        // A method that means a body has one, if empty (RFC 9110 §8.6).
        Some(0) if !head.fields.has(Name::ContentLength) && !matches!(head.method(), "POST" | "PUT" | "PATCH") => {
            Framing::None
        }
        Some(length) => Framing::Length(length),
        None => Framing::Chunked,
    };
    {
        let mut io = io.lock();
        let connection = match upgrade {
            Some(protocol) => codec::Connection::Upgrade(protocol),
            None => codec::Connection::KeepAlive,
        };
        io.put_with(|out| codec::write_request(head, framing, connection, out));
        io.writing = true;
    }
    let (mut body, chunked) = (Some(body), framing == Framing::Chunked);
    let mut writing = true;
    let mut interim = 0;
    let parsed = poll_fn(|cx| {
        if writing {
            match http1::poll_body(io, cx, &mut body, chunked, true) {
                Poll::Ready(Ok(())) => {
                    writing = false;
                    io.lock().writing = false;
                }
                Poll::Ready(Err(Some(failure))) => return Poll::Ready(Err(failure)),
                // The application takes no more: it may have answered all the same.
                Poll::Ready(Err(None)) => writing = false,
                Poll::Pending => {}
            }
        }
        loop {
            let parsed = std::task::ready!(io.lock().poll_response(cx, head.method()))?;
            if !parsed.head.is_interim() {
                return Poll::Ready(Ok(parsed));
            }
            interim += 1;
            if interim > MAX_INTERIM {
                return Poll::Ready(Err(Failure::BadAnswer("too many interim answers")));
            }
        }
    })
    .await?;
    if writing {
        let io = io.clone();
        tokio::spawn(async move {
            match poll_fn(|cx| http1::poll_body(&io, cx, &mut body, chunked, true)).await {
                Ok(()) => io.lock().writing = false,
                // The application takes no more; its answer may be there all the same.
                Err(None) => {}
                Err(Some(_)) => io.lock().abort(),
            }
        });
    }
    let mut response = parsed.head;
    if response.status != 101 {
        codec::strip_hop_by_hop(&mut response.fields);
    }
    debug_assert!(response.version != HttpVersion::Http2, "HTTP/1 was parsed");
    Ok((response, parsed.framing))
}

/// Sends the body of a request and waits for the head of its answer. `open`: the stream is to become a tunnel.
async fn request_http2(stream: &StreamRef, mut body: Body, open: bool) -> Result<Response, Failure> {
    let mut rest = Bytes::new();
    let mut writing = !open && !matches!(body, Body::Empty);
    let response = poll_fn(|cx| {
        if writing {
            match stream.poll_body(cx, &mut body, &mut rest) {
                Poll::Ready(Err(Some(failure))) => return Poll::Ready(Err(failure)),
                Poll::Ready(Ok(()) | Err(None)) => writing = false,
                Poll::Pending => {}
            }
        }
        stream.poll_answer(cx)
    })
    .await?;
    if writing {
        let stream = stream.clone();
        tokio::spawn(async move {
            if let Err(Some(failure)) = stream.send_body(body, rest).await {
                tracing::debug!(%failure, "a request broke off after its answer had begun");
            }
        });
    }
    Ok(response)
}

impl Lease {
    /// Gives the connection back for the next request: the answer's body has ended.
    pub(crate) fn finish(mut self) {
        if let Some(Held::Http1(pool, io)) = self.0.take_if(|held| matches!(held, Held::Http1(..))) {
            if !io.lock().is_reusable() {
                return;
            }
            pool.put_idle(io);
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
