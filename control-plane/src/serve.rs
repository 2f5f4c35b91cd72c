//! Listeners: accept, TLS, HTTP; each request carries its caller as [`Peer`].
//! One loop for gRPC, API and metrics. Bounds: handshake and head 10 s each, the number of connections, HTTP/2 pings every
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
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;
use weft_core::identity::Identity;

use crate::tls;

/// Timeout of a TLS handshake, and of the head of a request.
const HANDSHAKE: Duration = Duration::from_secs(10);
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
    /// Maximum number of connections; more wait in the backlog of the kernel.
    pub connections: usize,
    /// Maximum age of a connection without a certificate, so that unknown callers cannot occupy the listener.
    pub anonymous: Duration,
}

/// Binds a TCP listener; returns its address too.
pub async fn bind(address: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address).await?;
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
    let permits = Arc::new(Semaphore::new(settings.connections));
    while let Some(permit) = permit(&permits, &stop).await {
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
        // The handshake is in the task too: a slow one delays no other connection.
        let (settings, router, stop) = (settings.clone(), router.clone(), stop.clone());
        tasks.spawn(async move {
            let mut peer = Peer { address: Some(address), svid: None, local: false };
            match settings.tls {
                None => connection(stream, peer, router, settings.anonymous, stop).await,
                Some(tls) => {
                    let handshake = tokio::time::timeout(HANDSHAKE, TlsAcceptor::from(tls).accept(stream));
                    match handshake.await {
                        Ok(Ok(stream)) => {
                            let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
                            peer.svid = certificate
                                .and_then(tls::peer_of)
                                .map(|(identity, expires)| Svid { identity, expires });
                            connection(stream, peer, router, settings.anonymous, stop).await;
                        }
                        Ok(Err(error)) => {
                            tracing::debug!(listener = settings.name, peer = %address, error = &error as &dyn std::error::Error, "TLS handshake failed");
                        }
                        Err(_) => tracing::debug!(listener = settings.name, peer = %address, "TLS handshake timed out"),
                    }
                }
            }
            drop(permit);
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
                    connection(stream, Peer { address: None, svid: None, local: true }, router, anonymous, stop).await;
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

async fn connection<S>(stream: S, peer: Peer, router: Router, anonymous: Duration, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // A caller with a credential may keep its connection.
    let known = peer.svid.is_some() || peer.local;
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
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HANDSHAKE).max_buf_size(64 * 1024);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(20))
        .max_concurrent_streams(200)
        .max_header_list_size(16 * 1024);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(service));
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
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
