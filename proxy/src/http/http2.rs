//! HTTP/2 on a stream: one task drives each connection ([`Driver`]), and each task with a part in one of its streams holds a
//! [`StreamRef`]. They meet in one [`Mux`], under a lock that is never held across a wait.
//! Invariant: a stream without any [`StreamRef`] is over, and reset if it was not.
//!
//! - [`driver`]: reads and writes the connection. [`heads`]: the memory of heads. [`stream`]: one stream. [`incoming`]: the body that comes on it.
//!   [`waiting`]: its data that was not read. [`tunnel`]: a stream as bytes in both directions.
//!
//! # Defaults
//! A peer that is silent for 30 s is sent a PING; after 50 s the connection is over. Bodies that are not read: `stall`.

mod driver;
mod heads;
mod incoming;
mod stream;
mod tunnel;
mod waiting;

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::AtomicUsize},
    task::Waker,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::Notify;
use weft_core::failure::Failure;
use weft_http::{
    fields::Fields,
    head::{Request, Response},
    http2::{Code, Config, Connection, MAX_UNSENT, Role, SendError, StreamId},
};

pub(crate) use self::{
    driver::{Arrival, Driver},
    incoming::Incoming,
    stream::StreamRef,
    tunnel::Tunnel,
};
use self::{
    heads::{Heads, Held},
    waiting::Waiting,
};
use super::stall::Timeouts;

/// Seconds of silence before a peer is sent a PING.
const SILENCE: u32 = 30;
/// Seconds of silence before a peer is taken for dead.
const DEAD: u32 = 50;

/// The peer has reset a stream.
#[derive(Debug, thiserror::Error)]
#[error("stream reset by the peer: {0:?}")]
struct StreamReset(Code);

/// The code by which the application has reset its stream; `None` where the stream was lost with its connection, which a proxy
/// tells by CONNECT_ERROR.
pub(crate) fn reset_code(failure: &Failure) -> Option<Code> {
    let Failure::Reset(cause) = failure else { return None };
    let StreamReset(code) = cause.downcast_ref()?;
    (*code != Code::ConnectError).then_some(*code)
}

/// One HTTP/2 connection.
#[derive(Debug)]
pub(crate) struct Mux {
    inner: Mutex<Inner>,
    half_closed: HalfClosed,
}

/// What becomes of a request whose caller has closed its sending side (client).
#[derive(Clone, Copy, Debug)]
pub(crate) enum HalfClosed {
    /// The peer is a proxy, and is told.
    Told,
    /// It is cancelled after so long without a byte of its answer; `None`: never.
    Cancelled(Option<Duration>),
}

/// The part of a connection that the driver and the tasks of its streams share.
#[derive(Debug)]
struct Inner {
    connection: Connection<StreamState>,
    heads: Heads,
    driver: Option<Waker>,
    /// Wakes the tasks that wait for the peer's SETTINGS (client), at the first ones and at the end.
    settled: Arc<Notify>,
    /// The driver has been woken and has not run since.
    woken: bool,
    /// The stream holds no unwritten bytes; with TLS it may.
    flushed: bool,
    /// To be closed once no stream is left.
    retired: bool,
    /// Why the connection is over.
    over: Option<Failure>,
    /// Bytes were written since the last tick.
    wrote: bool,
    /// Ticks without a byte written while some wait, in seconds.
    unread: u32,
    /// Bytes came since the last tick.
    heard: bool,
    /// Ticks without bytes, in seconds.
    silent: u32,
}

/// One stream, as its task and the driver see it.
#[derive(Debug, Default)]
struct StreamState {
    answer: Option<Response>,
    data: Waiting,
    trailers: Option<Fields>,
    /// END_STREAM has come: `data` and `trailers` are the rest of the message.
    ended: bool,
    failure: Option<Failure>,
    /// The stream was reset, or its connection broke.
    gone: bool,
    /// It was ended here, because its reader took nothing.
    stalled: bool,
    /// Reset with NO_ERROR: the end of an answer whose Content-Length has come. Node ends answers this way when it is busy.
    no_error: bool,
    /// Memory of its head, taken from [`Heads`].
    head: Held,
    /// The caller of the request has closed its sending side (server).
    half_closed: bool,
    /// Interim answers that were not taken, and the number of all.
    interim: VecDeque<Response>,
    interims: u32,
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// [`StreamRef`]s of this stream.
    holders: u32,
}

impl Mux {
    /// A connection of the pool.
    pub(crate) fn client(config: Config, half_closed: HalfClosed) -> Arc<Self> {
        Self::new(Role::Client, config, Heads::default(), half_closed)
    }

    /// The connection of a caller. `heads`: bytes of the heads of requests in flight on all such connections.
    pub(crate) fn server(config: Config, heads: Arc<AtomicUsize>, is_proxy: bool) -> Arc<Self> {
        Self::new(Role::Server, config, Heads::new(heads, is_proxy), HalfClosed::Cancelled(None))
    }

    fn new(role: Role, config: Config, heads: Heads, half_closed: HalfClosed) -> Arc<Self> {
        Arc::new(Self {
            half_closed,
            inner: Mutex::new(Inner {
                connection: Connection::new(role, config),
                heads,
                driver: None,
                settled: Arc::default(),
                woken: false,
                flushed: true,
                retired: false,
                over: None,
                wrote: false,
                unread: 0,
                heard: true,
                silent: 0,
            }),
        })
    }

    /// Whether a request can be sent now.
    pub(crate) fn has_room(&self) -> bool {
        let inner = self.inner.lock();
        inner.over.is_none() && !inner.retired && inner.connection.has_room()
    }

    /// Whether data of a new request would wait for streams that the peer does not read.
    pub(crate) fn is_clogged(&self) -> bool {
        self.inner.lock().connection.is_clogged()
    }

    /// Whether the SETTINGS of the peer allow no request at all.
    pub(crate) fn takes_none(&self) -> bool {
        self.inner.lock().connection.takes_none()
    }

    /// Waits for the SETTINGS of the peer, which say how many requests it takes. Errors: the connection ended before.
    pub(crate) async fn settings(&self) -> Result<(), Failure> {
        loop {
            let changed = {
                let inner = self.inner.lock();
                if let Some(failure) = &inner.over {
                    return Err(failure.clone());
                }
                if inner.connection.has_settings() {
                    return Ok(());
                }
                inner.settled.clone().notified_owned()
            };
            changed.await;
        }
    }

    /// Whether it takes no more requests, now and later.
    pub(crate) fn is_closed(&self) -> bool {
        let inner = self.inner.lock();
        inner.over.is_some() || inner.retired || inner.connection.is_closing()
    }

    /// Whether no stream is left and every byte was written.
    pub(crate) fn is_done(&self) -> bool {
        let mut inner = self.inner.lock();
        inner.over.is_some() || (inner.connection.is_empty() && inner.has_written())
    }

    /// Sends GOAWAY, and closes the connection as soon as no stream is left.
    pub(crate) fn retire(&self) {
        let mut inner = self.inner.lock();
        if !std::mem::replace(&mut inner.retired, true) {
            inner.connection.go_away();
            inner.kick();
        }
    }

    /// Whether the caller of a request has closed its sending side (server).
    pub(crate) fn has_half_closed(&self, id: StreamId) -> bool {
        self.inner.lock().state(id).is_some_and(|state| state.half_closed)
    }

    /// Sends an interim answer (server), unless the stream is over.
    pub(crate) fn send_interim(&self, id: StreamId, head: &Response) {
        let mut inner = self.inner.lock();
        if inner.over.is_none() && inner.connection.send_response(id, head, false).is_ok() {
            inner.kick();
        }
    }

    /// Moves the clock; called once a second. Ends streams whose reader takes nothing, and a connection whose peer does not.
    pub(crate) fn tick(&self, stall: Timeouts) {
        let mut inner = self.inner.lock();
        inner.connection.tick();
        inner.connection.streams().for_each(|(_, stream)| stream.value.data.tick());
        let stalled = inner.connection.stalled(|taken| stall.ticks(taken));
        for id in stalled {
            inner.connection.reset(id, Code::EnhanceYourCalm);
            if let Some(state) = inner.state(id) {
                state.stalled = true;
                state.fail(&Failure::Stalled);
            }
        }
        if std::mem::take(&mut inner.wrote) || inner.has_written() {
            inner.unread = 0;
        } else {
            inner.unread += 1;
            if inner.unread >= stall.ticks(false) && inner.over.is_none() {
                inner.end(Failure::Stalled);
                inner.kick();
            }
        }
        // Credit of streams that are read slowly.
        if !inner.connection.unsent().is_empty() {
            inner.kick();
        }
        if std::mem::take(&mut inner.heard) {
            inner.silent = 0;
            return;
        }
        inner.silent += 1;
        if inner.silent == SILENCE {
            inner.connection.ping();
            inner.kick();
        } else if inner.silent >= DEAD && inner.over.is_none() {
            inner.end(Failure::reset("the peer is silent"));
            inner.kick();
        }
    }

    /// Opens a stream (client). `end`: the request has no body.
    /// Errors: no stream can be opened now.
    pub(crate) fn open(self: &Arc<Self>, head: &Request, end: bool) -> Result<StreamRef, SendError> {
        let mut inner = self.inner.lock();
        if inner.over.is_some() || inner.retired {
            return Err(SendError::Full);
        }
        let state = StreamState { holders: 1, ..StreamState::default() };
        let id = inner.connection.send_request(head, end, state).map_err(|(error, _state)| error)?;
        inner.kick();
        Ok(StreamRef { mux: self.clone(), id })
    }
}

impl Inner {
    /// Wakes the driver, unless it has been woken already.
    fn kick(&mut self) {
        if !std::mem::replace(&mut self.woken, true)
            && let Some(driver) = &self.driver
        {
            driver.wake_by_ref();
        }
    }

    /// Whether a caller leaves unread more than bodies may queue (server): the heads of answers, which no window holds back.
    fn is_unread(&mut self) -> bool {
        self.connection.role() == Role::Server && self.connection.unsent().len() > 2 * MAX_UNSENT
    }

    fn has_written(&mut self) -> bool {
        self.flushed && self.connection.unsent().is_empty()
    }

    fn state(&mut self, id: StreamId) -> Option<&mut StreamState> {
        self.connection.stream(id).map(|stream| &mut stream.value)
    }

    /// Ends the connection: every stream fails, and its tasks are woken.
    fn end(&mut self, failure: Failure) {
        for (_, stream) in self.connection.streams() {
            stream.value.fail(&failure);
        }
        self.over.get_or_insert(failure);
        self.settled.notify_waiters();
    }
}

impl StreamState {
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
