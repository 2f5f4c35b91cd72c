//! The service `weft.v1.Agent`: one stream per proxy, from which the registry and the proxy table are updated.
//! The identity comes from the certificate; a workload can only be registered in the certificate's own namespace, as the
//! certificate's own service account. The stream ends when the certificate expires, when another process registers the
//! workload, and when the control plane stops.

use std::{net::IpAddr, sync::Arc, time::SystemTime};

use futures_util::stream::BoxStream;
use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use weft_core::{api::proxy_config::ProxyMode, endpoint::Health, identity::Identity};
use weft_proto::weft::v1::{
    self, AgentMessage, ControlMessage, Heartbeat, RefusedAddress, Register, Registered, agent_message, agent_server,
    control_message,
};

use crate::{
    quota::{Quota, Share},
    registry::{HeartbeatResult, MAX_WORKLOADS_OF_IDENTITY, RefusedClaim, Registry, Session, WorkloadKey},
    serve::{Peer, Svid},
    state::{AgentStream, ProxyKey, ProxyTable, WorkloadHealth},
};

mod register;

pub use register::OwnEndpoints;

/// Maximum length of a kept reason, in bytes.
const MAX_REASON: usize = 256;
/// Maximum number of streams.
const MAX_STREAMS: usize = 20_000;
/// Maximum number of streams of one identity. Twice the number of its workloads, as a lost one is noticed late.
const MAX_STREAMS_OF_IDENTITY: usize = 2 * MAX_WORKLOADS_OF_IDENTITY;

/// The service. A clone is the same one.
#[derive(Clone)]
pub struct Service {
    registry: Arc<Registry>,
    proxies: Arc<ProxyTable>,
    own: Arc<OwnEndpoints>,
    stop: CancellationToken,
    permits: Arc<Semaphore>,
    quota: Arc<Quota>,
}

impl Service {
    /// The service of a registry; its streams end at `stop`. `own`: where the control plane listens.
    pub fn new(registry: Arc<Registry>, proxies: Arc<ProxyTable>, own: OwnEndpoints, stop: CancellationToken) -> Self {
        let (permits, quota) = (Arc::new(Semaphore::new(MAX_STREAMS)), Quota::new(MAX_STREAMS_OF_IDENTITY));
        Self { registry, proxies, own: Arc::new(own), stop, permits, quota }
    }
}

#[tonic::async_trait]
impl agent_server::Agent for Service {
    type SessionStream = BoxStream<'static, Result<ControlMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let peer = request.extensions().get::<Peer>();
        let source = peer.and_then(|peer| peer.address).map(|address| address.ip().to_canonical());
        let svid = peer.and_then(|peer| peer.svid.clone());
        let Some(svid) = svid else {
            return Err(Status::unauthenticated("the agent stream needs a client certificate of this mesh"));
        };
        if svid.identity.namespace().is_none() {
            return Err(Status::permission_denied(format!("{} names no namespace and service account", svid.identity)));
        }
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
            return Err(Status::resource_exhausted("too many agent streams on this control plane"));
        };
        let share = self.quota.take(svid.identity.clone());
        let share = share.map_err(|error| Status::resource_exhausted(format!("agent streams: {error}")))?;
        let (sender, receiver) = mpsc::channel(8);
        let stream = Stream {
            service: self.clone(),
            identity: svid.identity.clone(),
            source,
            answers: sender,
            registration: None,
            _permit: (permit, share),
        };
        tokio::spawn(stream.serve(svid, request.into_inner()));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// One proxy's stream.
struct Stream {
    service: Service,
    identity: Identity,
    /// The address that it connects from, which proves the claim of that address.
    source: Option<IpAddr>,
    answers: mpsc::Sender<Result<ControlMessage, Status>>,
    registration: Option<Registration>,
    _permit: (OwnedSemaphorePermit, Share),
}

struct Registration {
    key: WorkloadKey,
    session: Session,
    health: Health,
    proxy: AgentStream,
}

impl Stream {
    async fn serve(mut self, svid: Svid, mut messages: Streaming<AgentMessage>) {
        let left = svid.expires.duration_since(SystemTime::now()).unwrap_or_default();
        let expires = tokio::time::sleep(left);
        tokio::pin!(expires);
        let answers = self.answers.clone();
        let end = loop {
            let message = tokio::select! {
                message = messages.next() => message,
                () = &mut expires => break Some(Status::unauthenticated("the certificate of this connection has expired")),
                () = self.service.stop.cancelled() => break Some(Status::unavailable("the control plane is stopping")),
                () = answers.closed() => break None,
            };
            match message {
                Some(Ok(message)) => {
                    if let Err(status) = self.take(message).await {
                        break Some(status);
                    }
                }
                Some(Err(_)) | None => break None,
            }
        };
        if let Some(registration) = self.registration.take() {
            self.service.registry.disconnected(&registration.key, registration.session);
        }
        if let Some(status) = end
            && self.answers.send(Err(status)).await.is_err()
        {
            tracing::debug!(identity = %self.identity, "a proxy disconnected before the reason was sent");
        }
    }

    async fn take(&mut self, message: AgentMessage) -> Result<(), Status> {
        match message.message {
            Some(agent_message::Message::Register(register)) => self.register(register).await,
            Some(agent_message::Message::Heartbeat(heartbeat)) => self.heartbeat(&heartbeat).await,
            Some(agent_message::Message::Deregister(_)) => {
                if let Some(registration) = self.registration.take() {
                    tracing::info!(workload = %registration.key, "a workload deregistered");
                    self.service.registry.deregister(&registration.key, registration.session);
                    registration.proxy.deregistered();
                }
                Ok(())
            }
            // A message of a later version of the protocol.
            None => Ok(()),
        }
    }

    /// Registers the workload, or changes its registration, and answers with the reason if it is rejected.
    async fn register(&mut self, register: Register) -> Result<(), Status> {
        let (refused, missing) = match self.try_register(register) {
            Ok(missing) => (String::new(), missing),
            Err(reason) => {
                tracing::warn!(identity = %self.identity, reason, "a registration was rejected");
                (reason, Vec::new())
            }
        };
        self.answer(refused, missing).await
    }

    /// Returns the rejected addresses; the rest is registered.
    /// Errors: the reason for the proxy's log.
    fn try_register(&mut self, register: Register) -> Result<Vec<RefusedClaim>, String> {
        let health = self.registration.as_ref().map_or(Health::Healthy, |registration| registration.health);
        let version = cut(&register.version, 64);
        let workload = register::workload(register, &self.identity, self.source, health, &self.service.own)?;
        let mode = if workload.gateway { ProxyMode::Gateway } else { ProxyMode::Sidecar };
        let key = workload.key.clone();
        // A stream has one workload: another name replaces the first.
        if let Some(old) = self.registration.take_if(|registration| registration.key != key) {
            self.service.registry.deregister(&old.key, old.session);
            old.proxy.deregistered();
        }
        let unproven: Vec<_> =
            workload.addresses.iter().filter(|address| workload.source != Some(**address)).copied().collect();
        let (session, missing) = self.service.registry.register(workload).map_err(|error| error.to_string())?;
        if !unproven.is_empty() {
            tracing::debug!(workload = %key, source = ?self.source, ?unproven, "the session comes from another address than these; they wait for a proof");
        }
        self.warn(&key, &missing);
        let proxy = match self.registration.take() {
            Some(old) => old.proxy,
            None => {
                tracing::info!(workload = %key, identity = %self.identity, version, "a workload registered");
                let proxy = ProxyKey { identity: self.identity.clone(), name: key.to_string().into() };
                self.service.proxies.agent(proxy, mode, version.clone(), Timestamp::now())
            }
        };
        proxy.update(|status| {
            (status.mode, status.version, status.address) = (mode, version, self.source);
            status.refused_addresses.clone_from(&missing);
        });
        self.registration = Some(Registration { key, session, health, proxy });
        Ok(missing)
    }

    fn warn(&self, key: &WorkloadKey, claims: &[RefusedClaim]) {
        for claim in claims {
            tracing::warn!(workload = %key, identity = %self.identity, %claim, "an address was refused, the rest is registered");
        }
    }

    /// Sends the outcome of a registration.
    async fn answer(&self, refused: String, missing: Vec<RefusedClaim>) -> Result<(), Status> {
        let interval = u32::try_from(self.service.registry.interval().as_millis()).unwrap_or(u32::MAX);
        let missing = missing
            .into_iter()
            .map(|claim| RefusedAddress { address: claim.address.to_string(), reason: claim.reason })
            .collect();
        let answer = Registered { heartbeat_interval_ms: interval, refused, refused_addresses: missing };
        let answer = ControlMessage { message: Some(control_message::Message::Registered(answer)) };
        self.answers.send(Ok(answer)).await.map_err(|_cause| Status::cancelled("the proxy went away"))
    }

    async fn heartbeat(&mut self, heartbeat: &Heartbeat) -> Result<(), Status> {
        let Some(registration) = &mut self.registration else {
            return Ok(()); // rejected, or already deregistered
        };
        let (health, reported) = match heartbeat.health() {
            v1::Health::Healthy => (Health::Healthy, WorkloadHealth::Healthy),
            v1::Health::Unhealthy => (Health::Unhealthy, WorkloadHealth::Unhealthy),
            v1::Health::Draining => (Health::Draining, WorkloadHealth::Draining),
            v1::Health::Unspecified => (registration.health, WorkloadHealth::Unknown),
        };
        registration.health = health;
        let expiry = heartbeat.certificate_expiry.as_ref();
        let expiry = expiry.and_then(|at| Timestamp::new(at.seconds, at.nanos).ok());
        registration.proxy.update(|status| {
            status.health = reported;
            status.reason = cut(&heartbeat.reason, MAX_REASON);
            status.certificate_expiry = expiry;
            status.revision = heartbeat.revision;
            status.revision_hash =
                data_encoding::HEXLOWER.encode(heartbeat.revision_hash.get(..32).unwrap_or(&heartbeat.revision_hash));
            status.last_heartbeat = Timestamp::now();
        });
        match self.service.registry.heartbeat(&registration.key, registration.session, health) {
            HeartbeatResult::Unchanged => Ok(()),
            HeartbeatResult::Lost => {
                let key = &registration.key;
                Err(Status::aborted(format!("{key} was registered by another process, or has expired; register again")))
            }
            HeartbeatResult::Changed(missing) => {
                registration.proxy.update(|status| status.refused_addresses.clone_from(&missing));
                let key = registration.key.clone();
                tracing::info!(workload = %key, "the addresses of a workload changed");
                self.warn(&key, &missing);
                self.answer(String::new(), missing).await
            }
        }
    }
}

fn cut(text: &str, bytes: usize) -> String {
    let end = (0..=bytes.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text.get(..end).unwrap_or_default().to_owned()
}
