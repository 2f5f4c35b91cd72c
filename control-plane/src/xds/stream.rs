//! One stream of the incremental variant, without a task of its own: the reader of its responses drives it, so a slow client
//! holds only its cursor.

use std::{collections::VecDeque, sync::Arc, time::SystemTime};

use futures_util::{FutureExt, Stream, stream};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tonic::{Status, Streaming};
use weft_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};

use super::{
    Server,
    connected::Connected,
    delta::{Session, SessionError},
    messages::Outgoing,
};
use crate::{quota::Share, serve::Svid};

/// Requests that are taken in together before they are answered.
const MAX_TOGETHER: usize = 64;

struct Driver {
    server: Arc<Server>,
    session: Session,
    requests: Streaming<DeltaDiscoveryRequest>,
    changed: watch::Receiver<u64>,
    pending: VecDeque<Outgoing>,
    expires: tokio::time::Instant,
    proxy: Option<Connected>,
    ended: bool,
    _permit: (OwnedSemaphorePermit, Share),
}

/// The responses to a client's requests, until its certificate expires.
pub(super) fn answers(
    server: Arc<Server>,
    svid: Svid,
    requests: Streaming<DeltaDiscoveryRequest>,
    permit: (OwnedSemaphorePermit, Share),
) -> impl Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send + 'static {
    let left = svid.expires.duration_since(SystemTime::now()).unwrap_or_default();
    let driver = Driver {
        session: Session::new(server.names_of.of(svid.identity), server.limits),
        changed: server.changed.subscribe(),
        server,
        requests,
        pending: VecDeque::new(),
        expires: tokio::time::Instant::now() + left,
        proxy: None,
        ended: false,
        _permit: permit,
    };
    stream::unfold(driver, |mut driver| async move {
        if driver.ended {
            return None;
        }
        let answer = driver.next().await.transpose()?;
        driver.ended = answer.is_err();
        Some((answer, driver))
    })
}

impl Driver {
    /// The next message; `None` when the client has ended its side.
    async fn next(&mut self) -> Result<Option<DeltaDiscoveryResponse>, Status> {
        loop {
            if let Some(message) = self.pending.pop_front() {
                return Ok(Some(message.finish()));
            }
            tokio::select! {
                request = self.requests.message() => match request? {
                    Some(request) => {
                        self.take(request)?;
                        for _ in 1..MAX_TOGETHER {
                            match self.requests.message().now_or_never() {
                                Some(Ok(Some(request))) => self.take(request)?,
                                Some(Ok(None)) => break,
                                Some(Err(status)) => return Err(status),
                                None => break,
                            }
                        }
                    }
                    None => return Ok(None),
                },
                () = self.server.closed.cancelled() => {
                    return Err(Status::unavailable("the control plane is stopping"));
                }
                // The sender lives as long as `server`.
                _ = self.changed.changed() => {}
                () = tokio::time::sleep_until(self.expires) => {
                    return Err(Status::unauthenticated("the certificate of this connection has expired"));
                }
            }
            self.changed.mark_unchanged();
            self.collect();
        }
    }

    /// Puts the messages that are due into `pending`. The lock is held for no longer than that.
    fn collect(&mut self) {
        let messages = {
            let mut cache = self.server.cache.lock();
            if !self.session.concerned(&cache) {
                return;
            }
            self.session.collect(&mut cache)
        };
        if let Some(proxy) = &self.proxy {
            proxy.sent(&self.session);
        }
        self.pending.extend(messages);
    }

    fn take(&mut self, request: DeltaDiscoveryRequest) -> Result<(), Status> {
        let reply = self.session.request(request).map_err(status)?;
        if self.proxy.is_none() {
            let connected = |client| Connected::new(&self.server.proxies, &self.session, client);
            self.proxy = self.session.client().map(connected);
        }
        if let (Some(proxy), Some(reply)) = (&self.proxy, reply) {
            proxy.reply(reply);
        }
        Ok(())
    }
}

fn status(error: SessionError) -> Status {
    match error {
        SessionError::NoNode | SessionError::Client(_) => Status::invalid_argument(chain(&error)),
        SessionError::TooManyNames(_) | SessionError::Quota(_) => Status::resource_exhausted(chain(&error)),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |cause| cause.source())
        .fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
