//! Delivery to the workload beside this proxy: a request to its application, or a connection for opaque bytes.
//! The application is called at the original destination, never at 127.0.0.1, so that a port on loopback stays private.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::io::AsyncReadExt;
use weft_core::{
    failure::{Failure, Limit},
    identity::Identity,
    retry::is_idempotent,
};
use weft_http::head::Version as HttpVersion;

use super::{attempt::Flight, authorize};
use crate::{
    http::{answer::Answer, body::Body, head::Head, hop},
    slot::Slot,
    stream::{Stream, kernel::bound_unread},
    upstream::{
        dial::plain,
        pool::{Bounds, Pool, SendError, Version},
    },
    worker::{APPLICATION, Worker},
};

/// The pools to the application that a connection uses, by version.
pub(crate) type Pools = [OnceLock<Arc<Pool>>; 2];

/// A connection to the application for opaque bytes.
pub(crate) struct Application {
    pub(crate) stream: Stream,
    /// Held until the connection has ended.
    pub(crate) slot: Slot,
}

impl AsMut<Stream> for Application {
    fn as_mut(&mut self) -> &mut Stream {
        &mut self.stream
    }
}

/// Connects to the application for opaque bytes.
pub(crate) async fn connect(worker: &Worker, destination: SocketAddr) -> Result<Application, Failure> {
    connect_within(worker, destination, APPLICATION.connect).await
}

/// The same for a caller's proxy that waits for the verdict: that one knows the policy, and gives up when it says so.
pub(crate) async fn connect_for(
    worker: &Worker,
    destination: SocketAddr,
    caller: &mut Stream,
) -> Result<Application, Failure> {
    tokio::select! {
        connected = connect_within(worker, destination, hop::MAX_CONNECT) => connected,
        // It sends nothing before the verdict.
        _gone = caller.read_u8() => Err(Failure::CallerGone),
    }
}

async fn connect_within(worker: &Worker, destination: SocketAddr, within: Duration) -> Result<Application, Failure> {
    let slot = Slot::take(&worker.application_counts.connections, APPLICATION.connections, Limit::Connections)?;
    let stream = worker.dialer.near(destination, within).await?;
    bound_unread(&stream);
    Ok(Application { stream: plain(stream), slot })
}

/// Hands a request to the application, in the version that its caller spoke.
pub(crate) async fn request(
    worker: &Arc<Worker>,
    [http1, http2]: &Pools,
    application: SocketAddr,
    caller: Option<&Identity>,
    head: &mut Head,
    body: Body,
) -> Result<(Answer, Flight), Failure> {
    head.write_for_hop(false);
    // Only this proxy tells the application who calls.
    hop::strip(&mut head.request.fields);
    if let Some(caller) = caller {
        head.request.fields.push(hop::CLIENT_ID.as_bytes(), caller.as_str().as_bytes());
    }
    let (version, body) = match (&head.upgrade, head.version) {
        (Some(_), _) => {
            head.request.version = HttpVersion::Http11;
            (Version::Http1, body)
        }
        (None, HttpVersion::Http2) => (Version::Http2, body),
        (None, version) => {
            head.request.version = version;
            (Version::Http1, body)
        }
    };
    let repeatable = head.upgrade.is_none() && matches!(body, Body::Empty) && is_idempotent(head.request.method());
    let pool = if version == Version::Http1 { http1 } else { http2 };
    let pool = pool.get_or_init(|| worker.application(application, version));
    let bounds = Bounds { connect: head.connect.unwrap_or(APPLICATION.connect), ..APPLICATION };
    let mut flight = Flight::default();
    let mut sent = pool.send(worker.opener(), bounds, head, body, &mut flight.switched).await;
    // The application closed an idle connection while the request was on its way (RFC 9112 §9.3.1). The caller does not know
    // our pool, so the request is repeated here, on a connection that is not out of it.
    if let Err(SendError { failure: Failure::Reset(_), reused: true, .. }) = &sent
        && repeatable
        && !head.has_half_closed()
    {
        let fresh = Bounds { idle: Duration::ZERO, ..bounds };
        sent = pool.send(worker.opener(), fresh, head, Body::Empty, &mut flight.switched).await;
    }
    let (mut response, body, lease) = sent.map_err(|error| error.failure)?;
    flight.lease = Some(lease);
    hop::strip(&mut response.fields);
    Ok((Answer::new(response, body), flight))
}

/// Delivers a request of the workload to itself: without a hop, under its own policy.
pub(crate) async fn request_to_self(
    worker: &Arc<Worker>,
    destination: SocketAddr,
    head: &mut Head,
    body: Body,
) -> Result<(Answer, Flight), Failure> {
    head.write_for_hop(false);
    let live = worker.shared.live.load_full();
    let identity = worker.shared.tls.load_full().map(|tls| tls.identity.clone());
    authorize::request(&live, destination.port(), identity.as_ref(), head)?;
    request(worker, &Pools::default(), destination, identity.as_ref(), head, body).await
}

/// Judges an opaque connection of the workload to itself by its own policy.
pub(crate) fn may_call_itself(worker: &Worker, destination: SocketAddr) -> Result<(), Failure> {
    let live = worker.shared.live.load();
    let identity = worker.shared.tls.load_full().map(|tls| tls.identity.clone());
    authorize::connection(&live, destination.port(), identity.as_ref())
}
