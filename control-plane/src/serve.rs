//! Listeners: accept, TLS, HTTP; each request carries its caller as [`Peer`].
//! One loop for gRPC, API and metrics. Bounds: handshake, first byte and head 10 s each; 30 s in which the peer takes no byte
//! of an answer (`watched`); the number of connections, of which the oldest silent one gives way (`places`); HTTP/2 pings every
//! 20 s. A connection that violates the protocol is closed without effect on others.

use std::{
    io,
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use rustls::ServerConfig;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;
use weft_core::identity::Identity;

use self::{
    places::{Place, Places},
    watched::Watched,
};
use crate::tls;

mod places;
mod watched;

/// Timeout of a TLS handshake, and of the head of a request.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// TCP keep-alive: idle time before the first probe, time between probes, and probes without an answer.
const IDLE: Duration = Duration::from_secs(30);
const PROBE: Duration = Duration::from_secs(10);
const PROBES: u32 = 3;
/// TCP_USER_TIMEOUT: time without an acknowledgement of what was sent.
const UNACKNOWLEDGED: Duration = Duration::from_secs(60);
/// Time for requests in flight on a connection that is shut down because of its age.
const LAST_REQUEST: Duration = Duration::from_secs(35);

/// The caller of a connection; in every request's extensions.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address; `None` on the Unix socket.
    pub address: Option<SocketAddr>,
    /// Its verified certificate.
    pub svid: Option<Svid>,
    /// It uses the Unix socket, whose file permission is the credential.
    pub local: bool,
}

/// A verified certificate of a caller.
#[derive(Clone, Debug)]
pub struct Svid {
    /// The SPIFFE ID.
    pub identity: Identity,
    /// When the certificate expires; the connection may outlive it.
    pub expires: SystemTime,
}

/// How a listener treats its connections.
#[derive(Clone)]
pub struct Settings {
    /// For logs: `grpc`, `api`, `metrics`.
    pub name: &'static str,
    /// TLS, or plaintext without it.
    pub tls: Option<Arc<ServerConfig>>,
    /// Maximum number of connections; for one more the oldest silent one without a certificate is closed. On TCP 16 more are kept
    /// for loopback.
    pub connections: usize,
    /// Maximum age of a connection without a certificate, so that unknown callers cannot occupy the listener.
    pub anonymous: Duration,
}

/// Binds a TCP listener; returns its address too. The kernel finds out about peers that are gone: accepted connections inherit the
/// options.
pub async fn bind(address: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address).await?;
    let options = SockRef::from(&listener);
    options.set_tcp_keepalive(&TcpKeepalive::new().with_time(IDLE).with_interval(PROBE).with_retries(PROBES))?;
    options.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    let bound = listener.local_addr()?;
    Ok((listener, bound))
}

/// Binds a Unix socket that only this user can open, from its first moment on. Replaces an old one.
pub fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;
    let beside = path.with_extension("new");
    match std::fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(&beside)?;
    std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&beside, path)?;
    Ok(listener)
}

/// Serves a TCP listener until `stop`; requests in flight complete then. Tracks its connections in `tasks`.
pub async fn tcp(
    listener: TcpListener,
    settings: Settings,
    router: Router,
    stop: CancellationToken,
    tasks: TaskTracker,
) {
    let places = Places::new(settings.connections);
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                accept_failed(settings.name, &error).await;
                continue;
            }
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(error = &error as &dyn std::error::Error, "a connection was closed at once");
            continue;
        }
        let Some(place) = places.take(address).await else {
            tracing::debug!(listener = settings.name, peer = %address, "closed: every place is taken by a known or busy caller");
            continue;
        };
        // The handshake is in the task too: a slow one delays no other connection.
        let (settings, router, stop) = (settings.clone(), router.clone(), stop.clone());
        tasks.spawn(async move {
            let mut peer = Peer { address: Some(address), svid: None, local: false };
            match settings.tls {
                None => connection(stream, peer, router, settings.anonymous, Some(place), stop).await,
                Some(tls) => {
                    let handshake = tokio::time::timeout(HANDSHAKE, TlsAcceptor::from(tls).accept(stream));
                    let leave = place.visitor.leave.clone();
                    let shaken = tokio::select! {
                        shaken = handshake => shaken,
                        () = leave.cancelled() => return,
                    };
                    match shaken {
                        Ok(Ok(stream)) => {
                            let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
                            peer.svid = certificate
                                .and_then(tls::peer_of)
                                .map(|(identity, expires)| Svid { identity, expires });
                            connection(stream, peer, router, settings.anonymous, Some(place), stop).await;
                        }
                        Ok(Err(error)) => {
                            tracing::debug!(listener = settings.name, peer = %address, error = &error as &dyn std::error::Error, "TLS handshake failed");
                        }
                        Err(_) => tracing::debug!(listener = settings.name, peer = %address, "TLS handshake timed out"),
                    }
                }
            }
        });
    }
}

/// Serves the Unix socket until `stop`.
pub async fn unix(
    listener: UnixListener,
    settings: Settings,
    router: Router,
    stop: CancellationToken,
    tasks: TaskTracker,
) {
    let permits = Arc::new(Semaphore::new(settings.connections));
    while let Some(permit) = permit(&permits, &stop).await {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let (router, stop, anonymous) = (router.clone(), stop.clone(), settings.anonymous);
                tasks.spawn(async move {
                    connection(stream, Peer { address: None, svid: None, local: true }, router, anonymous, None, stop)
                        .await;
                    drop(permit);
                });
            }
            Err(error) => accept_failed(settings.name, &error).await,
        }
    }
}

async fn permit(permits: &Arc<Semaphore>, stop: &CancellationToken) -> Option<OwnedSemaphorePermit> {
    tokio::select! {
        () = stop.cancelled() => None,
        permit = permits.clone().acquire_owned() => permit.ok(),
    }
}

/// Out of file descriptors or memory: pause instead of spinning.
async fn accept_failed(listener: &'static str, error: &io::Error) {
    tracing::warn!(listener, error = error as &dyn std::error::Error, "accepting a connection failed");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

async fn connection<S>(
    stream: S,
    peer: Peer,
    router: Router,
    anonymous: Duration,
    place: Option<Place>,
    stop: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // A caller with a credential may keep its connection.
    let known = peer.svid.is_some() || peer.local;
    if let Some(place) = place.as_ref().filter(|_| known) {
        place.known();
    }
    let visitor = place.as_ref().map(|place| Arc::clone(&place.visitor)).unwrap_or_default();
    let leave = visitor.leave.clone();
    let age = async move {
        if known {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(anonymous).await;
    };
    let service = router.map_request(move |mut request: http::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(peer.clone());
        request.map(axum::body::Body::new)
    });
    let service = service.map_future(move |answer| {
        let busy = visitor.busy();
        async move {
            let answer = answer.await;
            drop(busy);
            answer
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HANDSHAKE).max_buf_size(64 * 1024);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(20))
        .max_concurrent_streams(200)
        .max_header_list_size(16 * 1024);
    let connection =
        builder.serve_connection_with_upgrades(TokioIo::new(Watched::new(stream)), TowerToHyperService::new(service));
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = leave.cancelled() => Ok(()),
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        () = age => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(LAST_REQUEST, connection).await {
                Ok(result) => result,
                Err(_) => Ok(()),
            }
        }
    };
    if let Err(error) = result {
        tracing::debug!(error = &*error as &dyn std::error::Error, "a connection failed");
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn a_stranger_that_says_nothing_loses_its_place() {
        let (listener, address) = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let settings = Settings { name: "test", tls: None, connections: 1, anonymous: Duration::from_millis(50) };
        let stop = CancellationToken::new();
        let router = Router::new();
        let serving = tokio::spawn(tcp(listener, settings, router, stop.clone(), TaskTracker::new()));
        for _ in 0..3 {
            let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
            let mut answer = Vec::new();
            let ended = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await;
            assert!(ended.is_ok(), "the next one waits for the only place");
        }
        stop.cancel();
        serving.await.unwrap();
    }

    async fn ready(address: SocketAddr) -> String {
        use tokio::io::AsyncWriteExt;
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        let ended = tokio::time::timeout(Duration::from_secs(5), stream.read_to_string(&mut answer)).await;
        ended.map_or_else(|_| "no answer".to_owned(), |_| answer)
    }

    /// Silent connections hold every place, and more come: a request is answered all the same. (32)
    #[tokio::test]
    async fn silent_connections_give_way() {
        let (listener, address) = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let long = Duration::from_secs(600);
        let settings = Settings { name: "test", tls: None, connections: 4, anonymous: long };
        let stop = CancellationToken::new();
        let router = Router::new().route("/", axum::routing::get(|| async { "ready" }));
        let serving = tokio::spawn(tcp(listener, settings, router, stop.clone(), TaskTracker::new()));
        let mut silent = Vec::new();
        for _ in 0..100 {
            silent.push(tokio::net::TcpStream::connect(address).await.unwrap());
        }
        for _ in 0..3 {
            assert!(ready(address).await.ends_with("ready"));
        }
        drop(silent);
        stop.cancel();
        serving.await.unwrap();
    }

    /// (32)
    #[tokio::test]
    async fn this_machine_has_places_of_its_own_and_a_busy_or_known_caller_keeps_its_place() {
        let places = Places::new(1);
        let (outside, here): (SocketAddr, SocketAddr) = (([192, 0, 2, 1], 1).into(), ([127, 0, 0, 1], 1).into());
        let first = places.take(outside).await.unwrap();
        let local = places.take(here).await.unwrap();
        assert!(!first.visitor.leave.is_cancelled(), "a place of the reserve");
        local.known();
        let busy = first.visitor.busy();
        assert!(places.take(outside).await.is_none(), "it has a request in flight");
        drop(busy);
        let (second, ()) = tokio::join!(places.take(outside), async {
            first.visitor.leave.cancelled().await;
            drop(first);
        });
        second.unwrap().known();
        assert!(places.take(outside).await.is_some(), "a place that was left is free");
    }

    /// (32)
    #[tokio::test(start_paused = true)]
    async fn a_silent_peer_and_one_that_reads_nothing_are_late() {
        use tokio::io::AsyncWriteExt;
        let (ours, _theirs) = tokio::io::duplex(8);
        let mut ours = Watched::new(ours);
        let started = tokio::time::Instant::now();
        let error = ours.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!((error.kind(), started.elapsed()), (io::ErrorKind::TimedOut, watched::FIRST_BYTE));
        let (ours, mut theirs) = tokio::io::duplex(8);
        let mut ours = Watched::new(ours);
        ours.write_all(&[0; 8]).await.unwrap();
        let (written, ()) = tokio::join!(ours.write_all(&[0; 8]), async {
            tokio::time::sleep(watched::WRITE - Duration::from_secs(1)).await;
            theirs.read_exact(&mut [0; 8]).await.unwrap();
        });
        written.unwrap();
        assert_eq!(ours.write_all(&[0; 8]).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn the_options_of_a_listener_are_those_of_its_connections() {
        let (listener, address) = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let _peer = tokio::net::TcpStream::connect(address).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let options = SockRef::from(&stream);
        assert!(options.keepalive().unwrap() && options.tcp_keepalive_time().unwrap() == IDLE);
        assert_eq!(options.tcp_user_timeout().unwrap(), Some(UNACKNOWLEDGED));
    }

    #[tokio::test]
    async fn the_unix_socket_is_private_and_replaces_an_old_one() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        drop(bind_unix(&path).unwrap());
        let _listener = bind_unix(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        tokio::net::UnixStream::connect(&path).await.unwrap();
    }
}
