//! Pools of HTTP connections of one worker to one address and identity.
//! Shape: [`Pool::send`] takes a request and gives back the head and body of the answer with a [`Lease`], which returns the
//! connection when the answer's body has ended.
//! Invariant: a request that was not sent comes back with the error, so that it can go elsewhere whatever its method.
//!
//! - [`http1`], [`http2`]: the connections of each version.

mod http1;
mod http2;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use weft_core::{failure::Failure, identity::Identity};
use weft_http::head::Response;

use self::{
    http1::Idle,
    http2::{Multiplexed, Usage},
};
use super::dial::{Dialer, plain};
use crate::{
    http::{body::Body, head::Head, http1::SharedIo, muxes::Muxes, upgrade::Switched},
    stream::Stream,
};

/// Where a pool's connections lead.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) transport: Transport,
    /// It is the workload on this host.
    pub(crate) near: bool,
}

/// How a pool's connections are protected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Plain,
    /// Mesh TLS to this identity.
    Mesh(Identity),
}

/// The HTTP version of a pool's connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Version {
    Http1,
    Http2,
}

/// Bounds for one call. `connections` and `pending` count over all pools of a cluster.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) connect: Duration,
    pub(crate) connections: u32,
    pub(crate) pending: u32,
    pub(crate) idle: Duration,
}

/// Open connections and waiting requests of a cluster, over all its pools.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) connections: Arc<AtomicU32>,
    /// Requests that wait for a connection.
    pub(crate) pending: Arc<AtomicU32>,
}

/// How to open connections; those of HTTP/2 join the worker's `muxes`.
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
    /// HTTP/1: connections without a request, the one used last at the end.
    idle: Mutex<Vec<Idle>>,
    /// HTTP/2: connections that take requests.
    multiplexed: Mutex<Vec<Multiplexed>>,
    /// Held while a connection is opened that other requests wait for.
    opening: tokio::sync::Mutex<()>,
    /// How long a connection may be idle, as the last request said, in milliseconds.
    idle_limit_ms: AtomicU64,
    /// HTTP/1: the shortest time after which the peer was seen to close an idle connection, in milliseconds; forgotten slowly.
    closes_after_ms: AtomicU64,
}

/// A connection in use by one request.
#[derive(Debug)]
pub(crate) struct Lease(Option<Held>);

#[derive(Debug)]
enum Held {
    Http1(Arc<Pool>, SharedIo),
    Http2(Arc<Usage>),
}

/// An answer: its head, its body, and the lease of the connection that it comes on.
pub(crate) type Sent = (Response, Body, Lease);

/// Why a request failed.
#[derive(Debug)]
pub(crate) struct SendError {
    pub(crate) failure: Failure,
    /// The request's body when nothing of the request was sent.
    pub(crate) unsent: Option<Body>,
    /// It went out on a connection that had served other requests before, which the peer may just have closed as idle.
    pub(crate) reused: bool,
}

impl Pool {
    pub(crate) fn new(target: Target, version: Version, counts: Counts) -> Self {
        Self {
            target,
            version,
            counts,
            idle: Mutex::default(),
            multiplexed: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
            idle_limit_ms: AtomicU64::new(u64::MAX),
            closes_after_ms: AtomicU64::new(u64::MAX),
        }
    }

    /// Sends a request on a pooled connection, opening one when there is none. Where it asks for another protocol and the answer
    /// accepts, `switched` is filled.
    /// Errors: with the body where nothing was sent.
    pub(crate) async fn send(
        self: &Arc<Self>,
        opener: Opener<'_>,
        bounds: Bounds,
        head: &Head,
        body: Body,
        switched: &mut Option<Switched>,
    ) -> Result<Sent, SendError> {
        self.limit_idle(bounds.idle);
        match self.version {
            Version::Http1 => self.send_http1(opener, bounds, head, body, switched).await,
            Version::Http2 => self.send_http2(opener, bounds, head, body, switched).await,
        }
    }

    /// Whether a connection is open that the next request could take.
    pub(crate) fn is_ready(&self) -> bool {
        match self.version {
            Version::Http1 => !self.idle.lock().is_empty(),
            Version::Http2 => self.multiplexed.lock().iter().any(Multiplexed::has_room),
        }
    }

    /// Whether a connection is being opened that other requests wait for.
    pub(crate) fn is_opening(&self) -> bool {
        self.opening.try_lock().is_err()
    }

    /// Opens a connection for requests to come; does nothing when one is being opened.
    pub(crate) async fn warm(&self, opener: Opener<'_>, bounds: Bounds) -> Result<(), Failure> {
        self.limit_idle(bounds.idle);
        match self.version {
            Version::Http1 => {
                let Ok(_one_at_a_time) = self.opening.try_lock() else { return Ok(()) };
                let io = self.open_http1(opener.dialer, bounds).await?;
                self.put_idle(io);
            }
            Version::Http2 if self.is_opening() => {}
            Version::Http2 => drop(Lease(Some(Held::Http2(self.open_http2(opener, bounds, false).await?.usage)))),
        }
        Ok(())
    }

    fn limit_idle(&self, limit: Duration) {
        self.idle_limit_ms.store(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX), Relaxed);
    }

    async fn open(&self, dialer: &Dialer, within: Duration) -> Result<(Stream, Arc<AtomicBool>), Failure> {
        match &self.target.transport {
            Transport::Plain => {
                let address = self.target.address;
                let stream = if self.target.near {
                    dialer.near(address, within).await
                } else {
                    dialer.tcp(address, within).await
                };
                Ok((plain(stream?), Arc::new(AtomicBool::new(false))))
            }
            Transport::Mesh(identity) => {
                let mut stream = dialer.mesh(self.target.address, identity, within).await?;
                let alerted = stream.alerted();
                Ok((stream, alerted))
            }
        }
    }

    /// Closes the connections that have been idle for too long.
    pub(crate) fn sweep(&self) {
        let limit = Duration::from_millis(self.idle_limit_ms.load(Relaxed));
        self.sweep_http1(limit);
        self.sweep_http2(limit);
    }

    /// Closes the connections that are idle now. Returns whether there was any.
    pub(crate) fn close_idle(&self) -> bool {
        let idle = std::mem::take(&mut *self.idle.lock());
        self.close_idle_http2() | !idle.is_empty()
    }

    /// Whether it has no connection.
    pub(crate) fn is_empty(&self) -> bool {
        self.idle.lock().is_empty() && self.multiplexed.lock().is_empty()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.multiplexed.get_mut().iter().for_each(|connection| connection.mux.retire());
    }
}

impl Lease {
    /// Gives the connection back for the next request: the answer's body has ended.
    pub(crate) fn finish(mut self) {
        if let Some(Held::Http1(pool, io)) = self.0.take_if(|held| matches!(held, Held::Http1(..)))
            && io.lock().is_reusable()
        {
            pool.put_idle(io);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(Held::Http2(usage)) = &self.0 {
            usage.end_request();
        }
    }
}
