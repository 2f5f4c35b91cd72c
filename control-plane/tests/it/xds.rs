//! Discovery through the real listener: who gets in, what the API then tells of the proxy.

use http::Method;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};
use weft_core::wire::{REVISION_NAME, ResourceType};
use weft_proto::envoy::{
    config::core::v3::Node,
    service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse,
        aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
};

use crate::harness::{Mesh, Svid, soon};

const SERVICE: &str =
    "{apiVersion: v1, kind: Service, metadata: {name: a, namespace: shop}, spec: {ports: [{port: 80}]}}";

struct Stream {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    answers: Streaming<DeltaDiscoveryResponse>,
}

async fn connect(mesh: &Mesh, svid: Option<&Svid>) -> Result<Stream, tonic::Status> {
    let channel = mesh.grpc(svid).await.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
    let (requests, receiver) = mpsc::channel(8);
    let mut client = AggregatedDiscoveryServiceClient::new(channel);
    let answers = client.delta_aggregated_resources(ReceiverStream::new(receiver)).await?.into_inner();
    Ok(Stream { requests, answers })
}

impl Stream {
    async fn subscribe(&self, kind: ResourceType, name: &str) {
        let node = Node { id: "order-1".into(), user_agent_name: "weft-proxy".into(), ..Node::default() };
        let request = DeltaDiscoveryRequest {
            node: Some(node),
            type_url: kind.type_url().into(),
            resource_names_subscribe: vec![name.into()],
            ..DeltaDiscoveryRequest::default()
        };
        self.requests.send(request).await.unwrap();
    }

    /// Takes answers up to a barrier and acknowledges each; the barrier is refused with `refusal` if there is one.
    async fn barrier(&mut self, refusal: Option<&str>) {
        loop {
            let answer = self.answers.message().await.unwrap().unwrap();
            let is_barrier = answer.type_url == ResourceType::Revision.type_url();
            let mut request = DeltaDiscoveryRequest {
                type_url: answer.type_url,
                response_nonce: answer.nonce,
                ..DeltaDiscoveryRequest::default()
            };
            if let Some(refusal) = refusal.filter(|_| is_barrier) {
                let message = refusal.to_owned();
                request.error_detail = Some(weft_proto::google::rpc::Status { code: 3, message, ..Default::default() });
            }
            self.requests.send(request).await.unwrap();
            if is_barrier {
                return;
            }
        }
    }
}

#[tokio::test]
async fn without_a_certificate_there_is_no_configuration() {
    let mesh = Mesh::start().await;
    assert_eq!(connect(&mesh, None).await.err().unwrap().code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_proxy_that_applies_and_one_that_refuses_show_in_status() {
    let mesh = Mesh::start().await;
    mesh.apply(SERVICE).await;
    let svid = mesh.svid("order").await;
    let mut stream = connect(&mesh, Some(&svid)).await.unwrap();
    stream.subscribe(ResourceType::Listener, "outbound").await;
    stream.subscribe(ResourceType::Revision, REVISION_NAME).await;
    stream.barrier(None).await;
    let proxy = soon("the acknowledgement", async || {
        let proxies = mesh.get("/api/v1/proxies").await;
        proxies["items"].as_array().unwrap().iter().find(|proxy| proxy["current"] == true).cloned()
    })
    .await;
    assert_eq!((&proxy["key"]["name"], &proxy["discovery"]["appliedRevision"]), (&json!("shop/order-1"), &json!(1)));
    let programmed = async || {
        let object = mesh.get("/api/v1/services/shop/a").await;
        object["status"]["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "Programmed").unwrap().clone()
    };
    assert_eq!(programmed().await["status"], "True");
    let (status, _) = mesh.local(Method::PUT, "/api/v1/services/shop/a", SERVICE.replace("80", "81")).await;
    assert_eq!(status, 200);
    stream.barrier(Some("cannot do that")).await;
    let told = soon("the refusal", async || Some(programmed().await).filter(|told| told["status"] == "False")).await;
    assert!(told["message"].as_str().unwrap().contains("cannot do that"), "{told}");
    drop(stream);
    let lost = soon("the proxy's end", async || {
        let proxies = mesh.get("/api/v1/proxies").await;
        proxies["items"].as_array().unwrap().iter().find(|proxy| !proxy["lost"].is_null()).cloned()
    })
    .await;
    assert!(lost["discovery"].is_null() && lost["lost"]["since"].is_string(), "{lost}");
}
