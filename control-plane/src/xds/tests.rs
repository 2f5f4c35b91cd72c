//! The real server over loopback with a real gRPC client; who calls comes in a header instead of a certificate.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Streaming, service::interceptor::InterceptedService, transport::Server};
use weft_core::{
    api::parse_documents,
    endpoint::Health,
    identity::{Identity, TrustDomain},
    wire::{REVISION_NAME, ResourceType, parse_revision, revision_hash},
};
use weft_proto::{
    envoy::{
        config::core::v3::Node,
        service::discovery::v3::{Resource, aggregated_discovery_service_client::AggregatedDiscoveryServiceClient},
    },
    google::rpc,
};

use super::*;
use crate::{
    desired::Desired,
    registry::{Registered, RegisteredPort, RegisteredWorkload, WorkloadKey, WorkloadMap},
    serve::Svid,
    state::{Mesh, ProxyTable},
};

mod barrier;
mod envoy;
mod scale;
mod subscriptions;

/// Between publications.
const INTERVAL: Duration = Duration::from_millis(50);
const WAIT: Duration = Duration::from_secs(20);
const CLUSTER: ResourceType = ResourceType::Cluster;
const ENDPOINTS: ResourceType = ResourceType::Endpoints;
const LISTENER: ResourceType = ResourceType::Listener;
const ROUTE: ResourceType = ResourceType::Route;
const REVISION: ResourceType = ResourceType::Revision;

/// A server with its inputs in the test's hands.
struct Plane {
    address: SocketAddr,
    desired: watch::Sender<Arc<Desired>>,
    registered: watch::Sender<Arc<Registered>>,
    proxies: Arc<ProxyTable>,
    ads: Ads,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Plane {
    async fn start(yaml: &str) -> Self {
        Self::with(yaml, Limits::default(), INTERVAL).await
    }

    async fn with(yaml: &str, limits: Limits, interval: Duration) -> Self {
        let desired = watch::Sender::new(Arc::new(objects(yaml, 1)));
        let registered = watch::Sender::new(Arc::new(Registered::default()));
        let proxies = Arc::new(ProxyTable::default());
        let mesh = Mesh::new(&desired, &registered, Arc::clone(&proxies));
        let feed = Feed::new(mesh, TrustDomain::parse("weft.local").unwrap());
        let ads = feed.server(limits, None);
        let stop = CancellationToken::new();
        let run = tokio::spawn(feed.run(ads.clone(), interval, stop.clone()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = InterceptedService::new(ads.service(), |mut request: Request<()>| {
            let caller = request.metadata().get("caller").map(|caller| caller.to_str().unwrap().to_owned());
            let lifetime = request.metadata().get("lifetime-ms").map(|ms| ms.to_str().unwrap().parse().unwrap());
            let svid = caller.map(|caller| Svid {
                identity: Identity::parse(&caller).unwrap(),
                expires: std::time::SystemTime::now() + Duration::from_millis(lifetime.unwrap_or(3_600_000)),
            });
            request.extensions_mut().insert(Peer { address: None, svid, local: false });
            Ok(request)
        });
        let server = Server::builder().add_service(service);
        let serve = tokio::spawn({
            let stop = stop.clone();
            async move {
                let incoming = TcpListenerStream::new(listener);
                server.serve_with_incoming_shutdown(incoming, stop.cancelled_owned()).await.unwrap();
            }
        });
        Self { address, desired, registered, proxies, ads, stop, tasks: vec![run, serve] }
    }

    fn apply(&self, yaml: &str, revision: u64) {
        self.desired.send_replace(Arc::new(objects(yaml, revision)));
    }

    fn register(&self, change: impl FnOnce(&mut WorkloadMap)) {
        self.registered.send_modify(|registered| {
            let mut next = Registered::clone(registered);
            next.version += 1;
            change(&mut next.workloads);
            *registered = Arc::new(next);
        });
    }

    async fn call(
        &self,
        caller: Option<&str>,
        requests: mpsc::Receiver<DeltaDiscoveryRequest>,
    ) -> Result<Streaming<DeltaDiscoveryResponse>, Status> {
        let mut client = AggregatedDiscoveryServiceClient::connect(format!("http://{}", self.address)).await.unwrap();
        let mut request = Request::new(ReceiverStream::new(requests));
        if let Some(caller) = caller {
            request.metadata_mut().insert("caller", caller.parse().unwrap());
        }
        Ok(client.delta_aggregated_resources(request).await?.into_inner())
    }

    async fn proxy(&self, account: &str) -> Client {
        self.client(&format!("spiffe://weft.local/ns/shop/sa/{account}"), account, WEFT_USER_AGENT).await
    }

    /// A proxy at the edge.
    async fn gateway(&self, caller: &str, id: &str) -> Client {
        let mut client = self.client(caller, id, WEFT_USER_AGENT).await;
        let text = |text: &str| prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(text.into())) };
        let mode = prost_types::Struct { fields: [("mode".to_owned(), text("gateway"))].into() };
        let ours = prost_types::Value { kind: Some(prost_types::value::Kind::StructValue(mode)) };
        let metadata = prost_types::Struct { fields: [("weft.dev".to_owned(), ours)].into() };
        client.node = client.node.map(|node| Node { metadata: Some(metadata), ..node });
        client
    }

    async fn client(&self, caller: &str, id: &str, agent: &str) -> Client {
        let (requests, receiver) = mpsc::channel(64);
        let node =
            Node { id: id.into(), user_agent_name: agent.into(), user_agent_version: "1".into(), ..Node::default() };
        // The answer's head comes with the first message, so the stream is opened beside.
        let answers = self.call(Some(caller), receiver).await.unwrap();
        Client { requests, answers, node: Some(node), held: BTreeMap::new(), resources: BTreeMap::new() }
    }

    async fn end(self) {
        self.stop.cancel();
        for task in self.tasks {
            tokio::time::timeout(WAIT, task).await.unwrap().unwrap();
        }
    }
}

fn objects(yaml: &str, revision: u64) -> Desired {
    let parsed = parse_documents(yaml).unwrap_or_else(|errors| panic!("{errors:#?}"));
    Desired { revision, objects: parsed.into_iter().map(|object| (object.key(), Arc::new(object))).collect() }
}

fn workload(name: &str, app: &str, address: &str) -> Arc<RegisteredWorkload> {
    Arc::new(RegisteredWorkload {
        key: WorkloadKey::new("shop", name),
        identity: Identity::parse(&format!("spiffe://weft.local/ns/shop/sa/{app}")).unwrap(),
        service_account: app.into(),
        labels: BTreeMap::from([("app".into(), app.into())]),
        addresses: vec![address.parse().unwrap()],
        unproven: Vec::new(),
        ports: vec![RegisteredPort {
            name: "http".into(),
            port: 8080.try_into().unwrap(),
            protocol: weft_core::listener::Protocol::Http,
            proxy_port: None,
        }],
        skipped_ports: Vec::new(),
        weight: std::num::NonZeroU32::MIN,
        zone: String::new(),
        gateway: false,
        health: Health::Healthy,
        incarnation: "1".into(),
        source: None,
    })
}

fn add(name: &str, app: &str, address: &str) -> impl FnOnce(&mut WorkloadMap) {
    let workload = workload(name, app, address);
    move |all| {
        all.insert_mut(workload.key.clone(), workload);
    }
}

/// A client that keeps what it holds as rule 8 says.
struct Client {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    answers: Streaming<DeltaDiscoveryResponse>,
    node: Option<Node>,
    held: BTreeMap<(ResourceType, String), String>,
    resources: BTreeMap<(ResourceType, String), Resource>,
}

/// One message, as tests look at it.
#[derive(Debug, PartialEq)]
struct Seen {
    kind: ResourceType,
    names: Vec<String>,
    removed: Vec<String>,
    codes: Vec<i32>,
}

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(|name| (*name).to_owned()).collect()
}

fn sent(kind: ResourceType, list: &[&str]) -> Seen {
    Seen { kind, names: names(list), removed: vec![], codes: vec![] }
}

fn gone(kind: ResourceType, list: &[&str], codes: &[i32]) -> Seen {
    Seen { kind, names: vec![], removed: names(list), codes: codes.to_vec() }
}

impl Client {
    async fn send(&mut self, mut request: DeltaDiscoveryRequest) {
        request.node = self.node.take();
        self.requests.send(request).await.unwrap();
    }

    async fn ask(&mut self, kind: ResourceType, subscribe: &[&str], unsubscribe: &[&str]) {
        for name in unsubscribe {
            self.held.remove(&(kind, (*name).to_owned()));
        }
        self.send(DeltaDiscoveryRequest {
            type_url: kind.type_url().into(),
            resource_names_subscribe: names(subscribe),
            resource_names_unsubscribe: names(unsubscribe),
            ..DeltaDiscoveryRequest::default()
        })
        .await;
    }

    async fn ask_with(&mut self, kind: ResourceType, subscribe: &[&str], versions: &[(&str, &str)]) {
        for (name, version) in versions {
            self.held.insert((kind, (*name).to_owned()), (*version).to_owned());
        }
        self.send(DeltaDiscoveryRequest {
            type_url: kind.type_url().into(),
            resource_names_subscribe: names(subscribe),
            initial_resource_versions: versions.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
            ..DeltaDiscoveryRequest::default()
        })
        .await;
    }

    async fn raw(&mut self) -> Result<DeltaDiscoveryResponse, Status> {
        let message = tokio::time::timeout(WAIT, self.answers.message()).await.expect("an answer in time")?;
        Ok(message.expect("the stream goes on"))
    }

    /// The next message, acknowledged.
    async fn next(&mut self) -> Seen {
        let (seen, nonce) = self.next_unanswered().await;
        self.answer(seen.kind, nonce, None).await;
        seen
    }

    async fn next_unanswered(&mut self) -> (Seen, String) {
        let message = self.raw().await.unwrap();
        let kind = ResourceType::from_type_url(&message.type_url).unwrap();
        let mut seen = Seen { kind, names: vec![], removed: message.removed_resources, codes: vec![] };
        for resource in message.resources {
            seen.names.push(resource.name.clone());
            self.held.insert((kind, resource.name.clone()), resource.version.clone());
            self.resources.insert((kind, resource.name.clone()), resource);
        }
        for name in &seen.removed {
            self.held.remove(&(kind, name.clone()));
        }
        seen.codes = message.resource_errors.iter().map(|e| e.error_detail.as_ref().unwrap().code).collect();
        (seen, message.nonce)
    }

    async fn answer(&mut self, kind: ResourceType, nonce: String, error: Option<&str>) {
        let error_detail = error.map(|message| rpc::Status { code: 3, message: message.into(), ..Default::default() });
        let type_url = kind.type_url().into();
        self.send(DeltaDiscoveryRequest { type_url, response_nonce: nonce, error_detail, ..Default::default() }).await;
    }

    /// Everything up to the next barrier, and the barrier; its hash has to be that of what is held.
    async fn until_barrier(&mut self) -> (Vec<Seen>, u64, [u8; 32]) {
        let mut all = Vec::new();
        loop {
            let seen = self.next().await;
            if seen.kind != REVISION {
                all.push(seen);
                continue;
            }
            let resource = &self.resources[&(REVISION, REVISION_NAME.to_owned())];
            let revision = parse_revision(REVISION_NAME, resource.resource.as_ref().unwrap()).unwrap();
            assert_eq!(revision.hash, self.hash(), "the barrier names what this client holds: {:?}", self.held);
            return (all, revision.number, revision.hash);
        }
    }

    fn hash(&self) -> [u8; 32] {
        revision_hash(self.held.iter().map(|((kind, name), version)| (*kind, name.as_str(), version.as_str())))
    }

    fn version(&self, kind: ResourceType, name: &str) -> &str {
        &self.held[&(kind, name.to_owned())]
    }

    /// Nothing was under way: the next message is the answer to a question asked now.
    async fn is_quiet(&mut self) {
        self.ask(CLUSTER, &["probe"], &[]).await;
        let seen = self.next().await;
        assert_eq!(seen, gone(CLUSTER, &["probe"], &[3]), "nothing else was under way");
        self.ask(CLUSTER, &[], &["probe"]).await;
    }
}

/// What waits for a change that another task makes.
async fn eventually(what: &str, mut test: impl FnMut() -> bool) {
    let wait = async {
        while !test() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(WAIT, wait).await.is_ok(), "{what}");
}

/// A shop: product, cart; and a gateway.
const SHOP: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: product, namespace: shop}
spec: {selector: {app: product}, clusterIP: 240.0.0.1, ports: [{port: 80, targetPort: http, appProtocol: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {selector: {app: cart}, clusterIPs: [240.0.0.2, "fd77:6566:7400::2"], ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: shop}
spec: {gatewayClassName: weft, listeners: [{name: http, port: 80, protocol: HTTP}]}
"#;

/// An HTTPRoute of the product service to a backend.
fn route_to(backend: &str) -> String {
    format!(
        r#"
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: product, namespace: shop}}
spec:
  parentRefs: [{{group: "", kind: Service, name: product}}]
  rules: [{{backendRefs: [{{name: {backend}, port: 80}}]}}]
"#
    )
}
