//! Serving HTTP/1 and HTTP/2 on a stream, with every limit set here.
//!
//! # Defaults
//! Heads of 16 KiB and 100 fields (the field count also in `http::head`), 100 streams at once, 64 KiB unsent per stream; a ping after
//! 30 s of silence with 20 s to answer. Head and idle times: `connection`.

use std::{
    future::Future,
    io,
    panic::AssertUnwindSafe,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::FutureExt;
use http::{Request, Response};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::sleep,
};
use weft_core::failure::Failure;

use super::{body::Body, respond};
use crate::{
    connection::{Connection, Running},
    drain::Drain,
    stream::Stream,
    telemetry::Metrics,
};

/// Largest request head in HTTP/1, in bytes; above it 431.
pub(crate) const MAX_HEAD: usize = 16 * 1024;
/// Largest head in HTTP/2: the same, counted as RFC 9113 §10.5.1 does.
pub(crate) const MAX_HEAD_HTTP2: u32 = 16 * 1024;
/// Largest head on the hop: what HTTP/1 and we ourselves let through, with 32 bytes a field on top (RFC 9113 §10.5.1).
pub(crate) const MAX_HEAD_HOP: u32 = 24 * 1024;
/// Buffer of an HTTP/1 connection: a head and some more.
const BUFFER: usize = 64 * 1024;
/// Requests at once on one HTTP/2 connection.
const MAX_STREAMS: u32 = 100;
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
const SEND_BUFFER: usize = 64 * 1024;
/// How long a caller that is told to go may take to say goodbye while it has no request running.
const FAREWELL: Duration = Duration::from_secs(1);
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// What answers the requests of a connection.
pub(crate) trait Handler: Send + Sync + 'static {
    /// Answers one request. Errors: the request did not reach the application, and the peer is to be told by REFUSED_STREAM.
    /// `running` is to be kept until the answer has been sent.
    fn handle(
        &self,
        request: Request<Incoming>,
        running: Running,
    ) -> impl Future<Output = Result<Response<Body>, Refused>> + Send;
}

/// The request did not reach the application; it may be tried elsewhere whatever its method.
#[derive(Debug, thiserror::Error)]
#[error("refused before it was processed")]
pub(crate) struct Refused(#[source] h2::Error);

impl Refused {
    pub(crate) fn new() -> Self {
        Self(h2::Reason::REFUSED_STREAM.into())
    }
}

/// Serves HTTP/1 until the connection ends.
pub(crate) async fn http1(
    stream: Stream,
    connection: Arc<Connection>,
    handler: Arc<impl Handler>,
    metrics: Arc<Metrics>,
    drain: Drain,
) {
    connection.http_begins();
    let service = service_fn(|request| answer(request, &connection, &handler, &metrics));
    let io = TokioIo::new(Watched { stream, connection: connection.clone() });
    let served = http1::Builder::new()
        .half_close(true)
        .max_header_size(MAX_HEAD)
        .max_buf_size(BUFFER)
        .auto_date_header(false)
        .serve_connection(io, service)
        .with_upgrades();
    let mut served = pin!(served);
    let result = tokio::select! {
        result = served.as_mut() => result,
        () = connection.closing() => return,
        () = drain.begun() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, peer = %connection.peer, "HTTP/1 connection ended");
    }
    // After an upgrade the connection lives on as a tunnel, and goes on to count as one.
    connection.unused().await;
}

/// Serves HTTP/2 until the connection ends.
pub(crate) async fn http2(
    stream: Stream,
    connection: Arc<Connection>,
    handler: Arc<impl Handler>,
    metrics: Arc<Metrics>,
    drain: Drain,
) {
    connection.http_begins();
    let requests = connection.clone();
    let service = service_fn(move |request| {
        let (connection, handler, metrics) = (requests.clone(), handler.clone(), metrics.clone());
        async move { answer(request, &connection, &handler, &metrics).await }
    });
    let served = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(if connection.identity.is_some() { MAX_HEAD_HOP } else { MAX_HEAD_HTTP2 })
        .max_send_buf_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(200)
        .max_local_error_reset_streams(200)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .enable_connect_protocol()
        .auto_date_header(false)
        .serve_connection(TokioIo::new(stream), service);
    let mut served = pin!(served);
    let result = tokio::select! {
        result = served.as_mut() => result,
        () = connection.closing() => {
            served.as_mut().graceful_shutdown();
            tokio::select! {
                result = served.as_mut() => result,
                () = async { sleep(FAREWELL).await; connection.unused().await } => return,
            }
        }
        () = drain.begun() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, peer = %connection.peer, "HTTP/2 connection ended");
    }
}

/// Runs one request; a panic in it becomes a 500 and hurts nothing else.
async fn answer(
    request: Request<Incoming>,
    connection: &Arc<Connection>,
    handler: &Arc<impl Handler>,
    metrics: &Metrics,
) -> Result<Response<Body>, Refused> {
    let running = connection.request_starts();
    let result = AssertUnwindSafe(handler.handle(request, running)).catch_unwind().await;
    result.unwrap_or_else(|_panic| {
        metrics.event("weft_panics_total", &[("where", "request")]);
        Ok(respond::to(&Failure::Panic, false))
    })
}

/// A stream that tells its connection when bytes arrive.
struct Watched {
    stream: Stream,
    connection: Arc<Connection>,
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if matches!(polled, Poll::Ready(Ok(()))) {
            self.connection.received();
        }
        polled
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        true
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
