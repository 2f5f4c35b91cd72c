//! The server for protocols that nginx cannot serve: gRPC with trailers, streams of messages, bodies of 1 MiB, an echo of opaque bytes.
//! It runs in the bench's own thread, on the load's CPU, and is the same for every pair.
//! Shape: three listeners; a [`Tally`] that server and clients share, read at the window's edges.

use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context as Poller, Poll};

use anyhow::Result;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::scenario::{Protocol, Scenario};
use crate::server::BODY;

/// A body of 1 MiB.
pub const LARGE: &[u8] = &[b'x'; 1024 * 1024];
/// One gRPC message of 128 bytes behind its prefix: not compressed, big-endian length.
#[expect(clippy::indexing_slicing, reason = "in a constant the compiler judges it")]
pub const MESSAGE: &[u8] = &{
    let mut message = [b'm'; 133];
    let prefix = [0, 0, 0, 0, 128];
    let mut at = 0;
    while at < prefix.len() {
        message[at] = prefix[at];
        at += 1;
    }
    message
};

/// What was done so far.
#[derive(Debug, Default)]
pub struct Tally {
    /// Requests answered, or messages received.
    pub requests: AtomicU64,
    /// Bytes of bodies or opaque bytes received at the end of their way.
    pub bytes: AtomicU64,
}

impl Tally {
    /// Counts `requests` and `bytes`.
    pub fn add(&self, requests: u64, bytes: usize) {
        self.requests.fetch_add(requests, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Requests and bytes so far.
    #[must_use]
    pub fn read(&self) -> (u64, u64) {
        (self.requests.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }
}

/// The running server; it ends when dropped.
#[derive(Debug)]
pub struct App {
    http1: SocketAddr,
    http2: SocketAddr,
    tcp: SocketAddr,
    tally: Arc<Tally>,
    _listeners: JoinSet<()>,
}

impl App {
    /// Starts the three listeners on free ports.
    ///
    /// # Errors
    /// No port is free.
    pub async fn start() -> Result<Self> {
        let tally = Arc::new(Tally::default());
        let mut listeners = JoinSet::new();
        let mut addresses = [SocketAddr::from((Ipv4Addr::LOCALHOST, 0)); 3];
        for (address, protocol) in addresses.iter_mut().zip([Protocol::Http1, Protocol::Http2, Protocol::Tcp]) {
            let listener = TcpListener::bind(*address).await?;
            *address = listener.local_addr()?;
            listeners.spawn(accept(listener, protocol, Arc::clone(&tally)));
        }
        let [http1, http2, tcp] = addresses;
        Ok(Self { http1, http2, tcp, tally, _listeners: listeners })
    }

    /// Where it speaks `protocol`.
    #[must_use]
    pub fn address(&self, protocol: Protocol) -> SocketAddr {
        match protocol {
            Protocol::Http1 => self.http1,
            Protocol::Http2 => self.http2,
            Protocol::Tcp => self.tcp,
        }
    }

    /// The count that server and clients share.
    #[must_use]
    pub fn tally(&self) -> &Arc<Tally> {
        &self.tally
    }

    /// Whether `scenario` needs this server in place of nginx.
    #[must_use]
    pub fn serves(scenario: Scenario) -> bool {
        matches!(scenario, Scenario::GrpcMany | Scenario::GrpcStream | Scenario::Bodies | Scenario::TcpBulk)
    }
}

async fn accept(listener: TcpListener, protocol: Protocol, tally: Arc<Tally>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok((stream, _)) = listener.accept().await else { continue };
        if stream.set_nodelay(true).is_err() {
            continue;
        }
        let tally = Arc::clone(&tally);
        // A connection that breaks shows at the client.
        connections.spawn(async move {
            let answer = service_fn(|request| answer(request, Arc::clone(&tally)));
            _ = match protocol {
                Protocol::Http1 => http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await.is_ok(),
                Protocol::Http2 => {
                    let builder = http2::Builder::new(TokioExecutor::new());
                    builder.serve_connection(TokioIo::new(stream), answer).await.is_ok()
                }
                Protocol::Tcp => echo(stream).await.is_ok(),
            };
        });
    }
}

async fn echo(mut stream: TcpStream) -> Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        stream.write_all(buffer.get(..length).unwrap_or_default()).await?;
    }
}

async fn answer(request: Request<Incoming>, tally: Arc<Tally>) -> Result<Response<Answer>, hyper::Error> {
    let grpc = |answer| {
        let mut response = Response::new(answer);
        response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        response
    };
    let (head, mut body) = request.into_parts();
    if head.uri.path() == "/bench.Echo/Stream" {
        return Ok(grpc(Answer::Echo(body)));
    }
    let mut received = 0;
    while let Some(frame) = body.frame().await {
        received += frame?.data_ref().map_or(0, Bytes::len);
    }
    Ok(match (head.method, head.uri.path()) {
        (Method::POST, "/bench.Echo/Unary") => {
            tally.add(1, received);
            grpc(Answer::Unary { sent: false })
        }
        (Method::POST, _) => {
            tally.add(1, received);
            Response::new(Answer::Whole(None))
        }
        (_, "/large") => Response::new(Answer::Whole(Some(Bytes::from_static(LARGE)))),
        _ => Response::new(Answer::Whole(Some(Bytes::from_static(BODY.as_bytes())))),
    })
}

/// A body.
enum Answer {
    Whole(Option<Bytes>),
    /// One message, then the trailers.
    Unary {
        sent: bool,
    },
    /// What the client sends, until it goes.
    Echo(Incoming),
}

impl Body for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, poller: &mut Poller<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let message = || Frame::data(Bytes::from_static(MESSAGE));
        let this = self.get_mut();
        Poll::Ready(match this {
            Self::Whole(bytes) => bytes.take().map(|bytes| Ok(Frame::data(bytes))),
            Self::Unary { sent: sent @ false } => {
                *sent = true;
                Some(Ok(message()))
            }
            Self::Unary { sent: true } => {
                *this = Self::Whole(None);
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", HeaderValue::from_static("0"));
                Some(Ok(Frame::trailers(trailers)))
            }
            Self::Echo(body) => return Pin::new(body).poll_frame(poller),
        })
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Unary { .. } | Self::Echo(_) => SizeHint::default(),
        }
    }
}
