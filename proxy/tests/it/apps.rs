//! Applications and callers for the tests: HTTP servers and clients of hyper, raw HTTP/2 of h2, raw sockets, and pairs of
//! proxies between them.

use std::{future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, client, server, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use weft_core::{cluster::Cluster, identity::Identity, listener::InboundMode, policy::Authorization, route::Forward};

use crate::pair::{Authority, Proxy, identity, inbound, outbound};

pub(crate) type TestBody = UnsyncBoxBody<Bytes, io::Error>;
pub(crate) type Frames = mpsc::Sender<Result<Frame<Bytes>, io::Error>>;

pub(crate) fn full(bytes: impl Into<Bytes>) -> TestBody {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

pub(crate) fn empty() -> TestBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A body that is fed while it is sent; at most one frame waits.
pub(crate) fn channel() -> (Frames, TestBody) {
    let (frames, queue) = mpsc::channel(1);
    (frames, StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(queue)).boxed_unsync())
}

pub(crate) fn data(bytes: impl Into<Bytes>) -> Result<Frame<Bytes>, io::Error> {
    Ok(Frame::data(bytes.into()))
}

/// An HTTP/2 application with prior knowledge.
pub(crate) async fn http2_app<F, R>(service: F) -> SocketAddr
where
    F: Fn(Request<Incoming>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Response<TestBody>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service.clone();
            let service = service_fn(move |request| {
                let answer = service(request);
                async move { Ok::<_, std::convert::Infallible>(answer.await) }
            });
            let mut server = server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(server.max_concurrent_streams(1000).serve_connection(TokioIo::new(stream), service));
        }
    });
    address
}

/// An HTTP/1 application.
pub(crate) async fn http1_app<F, R>(service: F) -> SocketAddr
where
    F: Fn(Request<Incoming>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Response<TestBody>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service.clone();
            let service = service_fn(move |request| {
                let answer = service(request);
                async move { Ok::<_, std::convert::Infallible>(answer.await) }
            });
            tokio::spawn(server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    address
}

/// An application that does with each raw connection what `serve` says.
pub(crate) async fn raw_app<F, R>(serve: F) -> SocketAddr
where
    F: Fn(TcpStream) -> R + Send + Sync + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    address
}

/// An application that answers every request with one status and body, by raw bytes, on connections that stay open.
pub(crate) async fn fixed_app(status: u16, body: &'static str) -> SocketAddr {
    raw_app(move |mut stream| async move {
        while let Some(_head) = read_head(&mut stream).await {
            let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    })
    .await
}

/// Reads one head and the body that its Content-Length announces; `None` when the connection ends first.
pub(crate) async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(stream.read_u8().await.ok()?);
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).await.ok()?;
    Some(text)
}

/// A caller with prior knowledge of HTTP/2.
pub(crate) async fn http2_client(address: SocketAddr) -> client::conn::http2::SendRequest<TestBody> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (sender, connection) =
        client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// A request without a body.
pub(crate) fn request(method: &str, path: &str) -> Request<TestBody> {
    let mut request = get(path);
    *request.method_mut() = method.parse().unwrap();
    request
}

/// A GET for HTTP/2.
pub(crate) fn get(path: &str) -> Request<TestBody> {
    Request::get(format!("http://product{path}")).body(empty()).unwrap()
}

/// The body of an answer as text; `None` when it broke off.
pub(crate) async fn text(response: Response<Incoming>) -> Option<String> {
    let bytes = response.into_body().collect().await.ok()?.to_bytes();
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Sends raw bytes on a new connection and reads until the other side closes it or `patience` is over; what came, and
/// whether it was closed.
pub(crate) async fn raw(address: SocketAddr, bytes: &[u8], patience: Duration) -> (String, bool) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.ok();
    let mut answer = Vec::new();
    let closed =
        timeout(patience, async { while stream.read_buf(&mut answer).await.unwrap_or(0) != 0 {} }).await.is_ok();
    (String::from_utf8_lossy(&answer).into_owned(), closed)
}

/// One request in HTTP/1 on a connection of its own that ends with it.
pub(crate) async fn once(address: SocketAddr, method: &str, path: &str) -> String {
    let request =
        format!("{method} {path} HTTP/1.1\r\nhost: product\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    raw(address, request.as_bytes(), Duration::from_secs(10)).await.0
}

/// A pair of proxies before one application.
pub(crate) struct Mesh {
    pub(crate) outbound: Proxy,
    pub(crate) inbound: Proxy,
    pub(crate) address: SocketAddr,
}

/// A pair of proxies before one application, with changes to the cluster and its route.
pub(crate) async fn mesh(application: SocketAddr, change: impl FnOnce(&mut Cluster, &mut Forward)) -> Mesh {
    let authority = Authority::new();
    let (inbound, at) =
        inbound(authority.svid("product", true), application, InboundMode::Strict, Authorization::default());
    let (outbound, address) = outbound(Some(authority.svid("order", true)), &[(at, Some(identity("product")))], change);
    Mesh { outbound, inbound, address }
}

/// Only an outbound proxy, with applications outside of mesh TLS behind it.
pub(crate) fn direct(
    applications: &[SocketAddr],
    change: impl FnOnce(&mut Cluster, &mut Forward),
) -> (Proxy, SocketAddr) {
    let endpoints: Vec<(SocketAddr, Option<Identity>)> = applications.iter().map(|address| (*address, None)).collect();
    outbound(None, &endpoints, change)
}

/// Waits until `done`, at most `patience`; how long it took.
pub(crate) async fn until(patience: Duration, done: impl Fn() -> bool) -> Option<Duration> {
    let started = Instant::now();
    while !done() {
        if started.elapsed() > patience {
            return None;
        }
        sleep(Duration::from_millis(5)).await;
    }
    Some(started.elapsed())
}

/// Raised when the future that holds it is dropped or has ended.
pub(crate) struct Ended(pub(crate) Arc<std::sync::atomic::AtomicUsize>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
}
